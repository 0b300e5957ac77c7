"""The engine for CPUs: one compiled sweep over all steps, in SIMD vectors.

Weights are packed once a call; each thread takes a slice of the batch through all steps, the
sums of a step and its gates stay in registers and the nearest cache, and padding costs nothing.
The kernels are in `cupy_lstm.simd`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy

from cupy_lstm.backend import HostArray
from cupy_lstm.notation import LayerGradients, LayerWeights, Shape, States, Wanted, layer_shape
from cupy_lstm.simd import backward as kernels_backward
from cupy_lstm.simd import forward as kernels_forward
from cupy_lstm.simd import packing
from cupy_lstm.simd.compiled import host_lanes, kernel
from cupy_lstm.simd.rows import Rows, rows_of, shares, slot_places
from cupy_lstm.simd.threads import Crew, crew
from cupy_lstm.simd.vector import Lanes
from cupy_lstm.steps import Directions

Part = list[tuple[Any, ...]]


class Layout:
    """Sizes of a layer in whole vectors, and arrays of them.

    Attributes
    ----------
    blocks : int
        Vectors of H.
    h_width, c_width, gate_width : int
        Numbers in h, c and the gates of a row.
    """

    def __init__(self, shape: Shape, lanes: Lanes) -> None:
        self.lanes, self.dtype, self.itemsize = lanes, numpy.dtype(lanes.dtype), lanes.itemsize
        self.blocks = -(-shape.H // lanes.count)
        self.c_width = self.blocks * lanes.count
        self.h_width = -(-shape.P // lanes.count) * lanes.count
        self.x_width = -(-shape.I // lanes.count) * lanes.count
        self.gate_width = 4 * self.c_width

    def empty(self, *shape: int) -> HostArray:
        """Return an array that begins with a cache line."""
        size = int(numpy.prod(shape))
        memory = numpy.empty(size + 64 // self.itemsize, self.dtype)
        skipped = -address(memory) % 64 // self.itemsize
        return memory[skipped : skipped + size].reshape(shape)

    def zeros(self, *shape: int) -> HostArray:
        """Return an array of zeros that begins with a cache line."""
        array = self.empty(*shape)
        array.fill(0)
        return array


@dataclass
class Packed:
    """Weights of a layer, packed for the forward sweep, one array for each direction."""

    weights: LayerWeights
    weight_ih: list[HostArray]
    weight_hh: list[HostArray]
    weight_ho: list[HostArray]
    bias: list[HostArray]


@dataclass
class Tape:
    """What backward needs of a forward over a range of steps; lists have an entry a direction.

    Attributes
    ----------
    x : array [T,B,I]
        The input, by reference.
    rows : list of Rows
        Where the rows of each time lie.
    h0, c0 : array [D,B,...]
        States before the first step, by row.
    gates : list of array [slots,4H]
        Activated gates; backward turns them into their gradients.
    c : list of array [slots,H]
        Cell states; backward turns them into outputs before the projection.
    """

    x: HostArray
    weights: LayerWeights
    reverse: Directions
    steps: range
    rows: list[Rows]
    h0: HostArray
    c0: HostArray
    gates: list[HostArray]
    c: list[HostArray]


def address(array: HostArray) -> int:
    """Return where the numbers of an array begin."""
    place: int = array.__array_interface__["data"][0]
    return place


def prepare(weights: LayerWeights) -> Packed:
    """Pack the weights of a layer, for any number of forward sweeps.

    Parameters
    ----------
    weights : LayerWeights
        Weights of the layer, [D,...] each.

    Returns
    -------
    Packed
        To be given to `forward` in their place.
    """
    with crew() as team:
        return _pack(weights, team)


def _pack(weights: LayerWeights, team: Crew) -> Packed:
    shape = layer_shape(0, 0, weights)
    lanes = host_lanes(weights.weight_hh.dtype.name)
    layout = Layout(shape, lanes)
    D, H, P = shape.D, shape.H, shape.P
    packed = Packed(weights, [], [], [], [])
    calls: Part = []
    for d in range(D):
        for name, terms in (("weight_ih", shape.I), ("weight_hh", P)):
            source = numpy.ascontiguousarray(getattr(weights, name)[d])
            target = layout.empty(layout.blocks, terms, 4, lanes.count)
            getattr(packed, name).append(target)
            calls.append((packing.pack_by_units, source, terms, H, target))
        biases = [
            None if bias is None else numpy.ascontiguousarray(bias[d])
            for bias in (weights.bias_ih, weights.bias_hh)
        ]
        packed.bias.append(layout.empty(layout.gate_width))
        calls.append((packing.pack_bias, *biases, H, packed.bias[d]))
        if weights.weight_ho is not None:
            source = numpy.ascontiguousarray(weights.weight_ho[d])
            packed.weight_ho.append(layout.empty(H, layout.h_width))
            calls.append((packing.pack_columns, source, H, P, packed.weight_ho[d]))
    _call(team, lanes, calls)
    return packed


def _call(team: Crew, lanes: Lanes, calls: Part) -> None:
    """Call kernels that do not depend on each other; arrays stand for their addresses."""
    prepared = [
        (
            kernel(function, lanes),
            lanes,
            *(
                0 if a is None else address(a) if isinstance(a, numpy.ndarray) else a
                for a in arguments
            ),
        )
        for function, *arguments in calls
    ]
    team.run(_apply, [prepared[p :: team.size] for p in range(team.size)])


def _apply(function: Callable[..., None], *arguments: Any) -> None:
    function(*arguments)


def forward(
    x: HostArray,
    weights: LayerWeights | Packed,
    states: States,
    lengths: HostArray | None,
    *,
    reverse: Directions,
    y: HostArray,
    cells: HostArray | None = None,
    keep: bool,
    steps: range | None = None,
    chunk: int,
) -> tuple[States, Tape | None]:
    """Run one layer forward over a range of steps; see `cupy_lstm.engines.stepwise.forward`.

    Weights may be given as `prepare` has packed them. The results do not depend on the number
    of threads.
    """
    with crew() as team:
        packed = weights if isinstance(weights, Packed) else _pack(weights, team)
        T, B = x.shape[:2]
        steps = range(T) if steps is None else steps
        shape = layer_shape(T, B, packed.weights)
        run = _Forward(x, packed, shape, states, lengths, reverse, steps, keep)
        run.sweep(team, y, cells, max(1, min(chunk, len(steps))))
    return run.final_states(), run.tape() if keep else None


class _Forward:
    """One forward sweep and its memory."""

    def __init__(
        self,
        x: HostArray,
        packed: Packed,
        shape: Shape,
        states: States,
        lengths: HostArray | None,
        reverse: Directions,
        steps: range,
        keep: bool,
    ) -> None:
        T, B, _, H, P, D = shape
        self.shape, self.packed, self.x = shape, packed, x
        self.reverse, self.steps, self.keep, self.states = reverse, steps, keep, states
        self.lanes = host_lanes(x.dtype.name)
        self.layout = layout = Layout(shape, self.lanes)
        self.rows = [rows_of(lengths, T, B, times_of(steps, T, backwards)) for backwards in reverse]
        # Rows that take part in no step keep their state in the buffer of even steps.
        self.h = layout.zeros(D, 2, B, layout.h_width)
        self.c = layout.zeros(D, B, layout.c_width)
        for d, rows in enumerate(self.rows):
            self.h[d, :, :, :P] = states[0][d, rows.order]
            self.c[d, :, :H] = states[1][d, rows.order]
        self.gates: list[HostArray] = []
        self.cell_steps: list[HostArray] = []
        if keep:
            self.h0, self.c0 = self.h[:, 0].copy(), self.c.copy()
            self.gates = [layout.empty(rows.total, layout.gate_width) for rows in self.rows]
            self.cell_steps = [layout.empty(rows.total, layout.c_width) for rows in self.rows]

    def sweep(self, team: Crew, y: HostArray, cells: HostArray | None, chunk: int) -> None:
        """Run all steps, and write y and cells."""
        if not len(self.steps) or not self.shape.B:
            return
        x = row_major(self.x)
        outputs = y if has_rows(y) else numpy.empty_like(y, order="C")
        states = cells if cells is None or has_rows(cells) else numpy.empty_like(cells, order="C")
        m = self.layout.empty(*self.c.shape) if self.packed.weight_ho else None
        barriers = numpy.zeros((self.shape.D, 8), "int64")
        parts: list[Part] = []
        kept_alive: list[HostArray] = []
        for some in split(self.shape, self.layout, self.rows, team.size):
            part: Part = []
            for share in some:
                rows = share.last_row - share.first_row
                tables = numpy.empty(2 * chunk * rows + self.lanes.rows, "int64")
                kept_alive.append(tables)
                gates, slots = 0, None
                if not self.keep:
                    scratch = self.layout.empty(chunk * rows, self.layout.gate_width)
                    kept_alive.append(scratch)
                    gates = address(scratch)
                job = self.job(share, x, outputs, states, m, chunk, tables, gates, barriers)
                part.append((self.lanes, job))
            parts.append(part)
        team.run(kernel(kernels_forward.forward_sweep, self.lanes), parts)
        for target, filled in ((y, outputs), (cells, states)):
            if target is not None and filled is not target:
                for d, rows in enumerate(self.rows):
                    times = slice(rows.first_time, rows.last_time)
                    target[times, :, d] = filled[times, :, d]

    def job(
        self,
        share: "Share",
        x: HostArray,
        y: HostArray,
        cells: HostArray | None,
        m: HostArray | None,
        chunk: int,
        tables: HostArray,
        gates: int,
        barriers: HostArray,
    ) -> kernels_forward.ForwardJob:
        """Return the job of one thread in one direction."""
        d, rows, packed, shape = (
            share.direction,
            self.rows[share.direction],
            self.packed,
            self.shape,
        )
        times = times_of(self.steps, shape.T, self.reverse[d])
        return kernels_forward.ForwardJob(
            steps=len(self.steps),
            time=times[0],
            direction=-1 if self.reverse[d] else 1,
            counts=address(rows.counts),
            slots=address(rows.slots),
            order=address(rows.order),
            first_row=share.first_row,
            last_row=share.last_row,
            first_unit_block=share.first_block,
            last_unit_block=share.last_block,
            batch=shape.B,
            input_size=shape.I,
            hidden_size=shape.H,
            output_size=shape.P,
            weight_ih=address(packed.weight_ih[d]),
            weight_hh=address(packed.weight_hh[d]),
            weight_ho=address(packed.weight_ho[d]) if packed.weight_ho else 0,
            bias=address(packed.bias[d]),
            x=address(x),
            x_time=x.strides[0],
            x_row=x.strides[1],
            y=address(y) + d * y.strides[2],
            y_time=y.strides[0],
            y_row=y.strides[1],
            cells=0 if cells is None else address(cells) + d * cells.strides[2],
            cells_time=0 if cells is None else cells.strides[0],
            cells_row=0 if cells is None else cells.strides[1],
            h=address(self.h[d]),
            c=address(self.c[d]),
            m=0 if m is None else address(m[d]),
            gates=address(self.gates[d]) if self.keep else gates,
            cell_steps=address(self.cell_steps[d]) if self.keep else 0,
            chunk=chunk,
            tables=address(tables),
            team=share.team,
            barrier=address(barriers[d]),
        )

    def final_states(self) -> States:
        """Return h and c after the last step."""
        _, B, _, H, P, D = self.shape
        h = numpy.empty((D, B, P), self.x.dtype)
        c = numpy.empty((D, B, H), self.x.dtype)
        for d, rows in enumerate(self.rows):
            # A row's last output lies in the buffer of its last step.
            taken = rows.weights
            if self.reverse[d]:
                taken = numpy.where(taken > 0, len(self.steps), 0)
            h[d, rows.order] = self.h[d, taken % 2, numpy.arange(B), :P]
            c[d, rows.order] = self.c[d, :, :H]
        return h, c

    def tape(self) -> Tape:
        """Return what the backward pass needs."""
        return Tape(
            self.x,
            self.packed.weights,
            self.reverse,
            self.steps,
            self.rows,
            self.h0,
            self.c0,
            self.gates,
            self.cell_steps,
        )


@dataclass(frozen=True)
class Share:
    """What one thread does of one direction: some rows, some blocks of units."""

    direction: int
    first_row: int
    last_row: int
    first_block: int
    last_block: int
    team: int


SMALL_BATCH = 4
"""Rows of a thread up to which threads share the rows and divide the units instead."""


def split(shape: Shape, layout: Layout, rows: Sequence[Rows], threads: int) -> list[list[Share]]:
    """Divide a sweep among threads.

    Rows are independent, so each thread takes some through all steps. Where there are few, each
    would read all weights at every step for little work; then threads take some units of all rows
    each, in groups of four blocks, and meet after every step.
    """
    B, D, blocks = shape.B, shape.D, layout.blocks
    team = threads // D
    groups = blocks // 4
    if team > 1 and SMALL_BATCH * threads >= B * D and groups > 1 and shape.H == shape.P:
        team = min(team, groups)
        bounds = [4 * (groups * p // team) for p in range(team)] + [blocks]
        return [
            [Share(d, 0, B, bounds[p], bounds[p + 1], team)] for d in range(D) for p in range(team)
        ]
    bounds = shares(numpy.concatenate([some.weights for some in rows]), threads)
    parts = []
    for first, last in zip(bounds[:-1], bounds[1:], strict=True):
        limits = [(d, max(first, d * B) - d * B, min(last, (d + 1) * B) - d * B) for d in range(D)]
        parts.append([Share(d, a, b, 0, blocks, 1) for d, a, b in limits if a < b])
    return parts


def times_of(steps: range, T: int, backwards: bool) -> range:
    """Return the times of some steps."""
    return range(T - 1 - steps.start, T - 1 - steps.stop, -1) if backwards else steps


def has_rows(array: HostArray) -> bool:
    """Whether the numbers of a row lie side by side."""
    side_by_side = array.shape[-1] == 1 or array.strides[-1] == array.itemsize
    return side_by_side and array.flags.aligned


def row_major(array: HostArray) -> HostArray:
    """Return the array, copied if the numbers of a row do not lie side by side."""
    return array if has_rows(array) else numpy.ascontiguousarray(array)


def backward(
    tape: Tape,
    dy: HostArray | None,
    dstates: tuple[HostArray | None, HostArray | None],
    dcells: HostArray | None = None,
    *,
    wanted: Wanted,
    gradients: LayerGradients,
    dx: HostArray | None,
) -> States:
    """Run one layer backward over the steps of a tape; see `cupy_lstm.engines.stepwise.backward`."""
    with crew() as team:
        run = _Backward(tape, team)
        run.sweep(dy, dstates, dcells)
        run.products(wanted, gradients, dx)
    return run.initial_states()


class _Backward:
    """One backward pass and its memory."""

    def __init__(self, tape: Tape, team: Crew) -> None:
        T, B = tape.x.shape[:2]
        self.tape, self.team = tape, team
        self.shape = layer_shape(T, B, tape.weights)
        self.lanes = host_lanes(tape.x.dtype.name)
        self.layout = Layout(self.shape, self.lanes)
        self.projected = tape.weights.weight_ho is not None
        widest = max(self.layout.h_width, self.layout.c_width, self.layout.x_width)
        self.zeros = self.layout.zeros(widest)
        self.dh_steps = (
            [self.layout.empty(rows.total, self.layout.h_width) for rows in tape.rows]
            if self.projected
            else []
        )

    def sweep(
        self,
        dy: HostArray | None,
        dstates: tuple[HostArray | None, HostArray | None],
        dcells: HostArray | None,
    ) -> None:
        """Go back through all steps."""
        _, B, _, H, P, D = self.shape
        tape, layout, lanes = self.tape, self.layout, self.lanes
        self.dh, self.dc = layout.zeros(D, B, layout.h_width), layout.zeros(D, B, layout.c_width)
        for d, rows in enumerate(tape.rows):
            for gradient, given, width in ((self.dh, dstates[0], P), (self.dc, dstates[1], H)):
                if given is not None:
                    gradient[d, :, :width] = given[d, rows.order]
        if not len(tape.steps) or not B:
            return
        weight_hh = self.packed(packing.pack_gate_rows, "weight_hh", layout.gate_width, P)
        weight_ho = self.packed(packing.pack_columns_transposed, "weight_ho", P, H)
        dy = None if dy is None else row_major(dy)
        dcells = None if dcells is None else row_major(dcells)
        dm = layout.empty(*self.dc.shape) if self.projected else None
        barriers = numpy.zeros((D, 8), "int64")
        parts, kept_alive = [], []
        for some in split(self.shape, layout, tape.rows, self.team.size):
            part: Part = []
            for share in some:
                d, rows = share.direction, tape.rows[share.direction]
                tables = numpy.empty(4 * (share.last_row - share.first_row), "int64")
                kept_alive.append(tables)
                job = kernels_backward.BackwardJob(
                    steps=len(tape.steps),
                    time=times_of(tape.steps, self.shape.T, tape.reverse[d])[0],
                    direction=-1 if tape.reverse[d] else 1,
                    counts=address(rows.counts),
                    slots=address(rows.slots),
                    order=address(rows.order),
                    first_row=share.first_row,
                    last_row=share.last_row,
                    first_unit_block=share.first_block,
                    last_unit_block=share.last_block,
                    hidden_size=H,
                    output_size=P,
                    weight_hh=address(weight_hh[d]),
                    weight_ho=address(weight_ho[d]) if self.projected else 0,
                    dy=0 if dy is None else address(dy) + d * dy.strides[2],
                    dy_time=0 if dy is None else dy.strides[0],
                    dy_row=0 if dy is None else dy.strides[1],
                    dcells=0 if dcells is None else address(dcells) + d * dcells.strides[2],
                    dcells_time=0 if dcells is None else dcells.strides[0],
                    dcells_row=0 if dcells is None else dcells.strides[1],
                    dh=address(self.dh[d]),
                    dc=address(self.dc[d]),
                    dm=0 if dm is None else address(dm[d]),
                    gates=address(tape.gates[d]),
                    cell_steps=address(tape.c[d]),
                    c=address(tape.c0[d]),
                    dh_steps=address(self.dh_steps[d]) if self.projected else 0,
                    zeros=address(self.zeros),
                    tables=address(tables),
                    team=share.team,
                    barrier=address(barriers[d]),
                )
                part.append((lanes, job))
            parts.append(part)
        self.team.run(kernel(kernels_backward.backward_sweep, lanes), parts)

    def packed(self, function: Any, name: str, terms: int, columns: int) -> list[HostArray]:
        """Return a kind of weight packed by columns, for each direction; [] where there is none."""
        weight = getattr(self.tape.weights, name)
        if weight is None:
            return []
        columns_in_vectors = -(-columns // self.lanes.count) * self.lanes.count
        sources = [numpy.ascontiguousarray(weight[d]) for d in range(self.shape.D)]
        targets = [self.layout.empty(terms, columns_in_vectors) for _ in sources]
        sizes = (
            (columns, terms)
            if function is packing.pack_columns_transposed
            else (
                (self.shape.H, columns) if function is packing.pack_gate_rows else (terms, columns)
            )
        )
        _call(
            self.team,
            self.lanes,
            [(function, a, *sizes, b) for a, b in zip(sources, targets, strict=True)],
        )
        return targets

    def products(self, wanted: Wanted, gradients: LayerGradients, dx: HostArray | None) -> None:
        """Add the gradients of weights and input, which are sums over all slots."""
        tape, D = self.tape, self.shape.D
        if not any(rows.total for rows in tape.rows):
            return
        self.h_steps = self.outputs()
        weight_ih = (
            []
            if dx is None
            else self.packed(
                packing.pack_gate_rows, "weight_ih", self.layout.gate_width, self.shape.I
            )
        )
        target = None if dx is None or has_rows(dx) else numpy.zeros(dx.shape, dx.dtype)
        if dx is not None and target is None:
            target = dx
        for d in range(D):
            parts: list[Part] = [[] for _ in range(self.team.size)]
            sums = _Sums(self, d, wanted, gradients)
            for part, some in zip(parts, sums.parts(self.team.size), strict=True):
                part += some
            if target is not None:
                for part, some in zip(
                    parts, self.input_parts(d, weight_ih[d], target), strict=True
                ):
                    part += some
            self.team.run(_apply, parts)
            sums.finish()
        if dx is not None and target is not dx:
            numpy.add(dx, target, out=dx)

    def outputs(self) -> list[HostArray]:
        """Return the outputs after every slot, as forward had them."""
        tape, layout, (_, _, _, H, P, D) = self.tape, self.layout, self.shape
        if not self.projected:
            return tape.c
        weight_ho = self.packed(packing.pack_columns, "weight_ho", H, P)
        outputs = [layout.empty(rows.total, layout.h_width) for rows in tape.rows]
        parts: list[Part] = [[] for _ in range(self.team.size)]
        self.kept_alive = []
        for d, rows in enumerate(tape.rows):
            bounds = [rows.total * p // self.team.size for p in range(self.team.size + 1)]
            for part, first, last in zip(parts, bounds[:-1], bounds[1:], strict=True):
                tables = numpy.empty(3 * SLOTS_AT_ONCE, "int64")
                self.kept_alive.append(tables)
                job = kernels_forward.ProjectionJob(
                    first,
                    last,
                    H,
                    P,
                    address(tape.c[d]),
                    layout.c_width * layout.itemsize,
                    address(outputs[d]),
                    layout.h_width * layout.itemsize,
                    address(weight_ho[d]),
                    address(self.zeros),
                    address(tables),
                    SLOTS_AT_ONCE,
                )
                part.append((self.lanes, job))
        self.team.run(kernel(kernels_forward.project_steps, self.lanes), parts)
        return outputs

    def input_parts(self, d: int, weight_ih: HostArray, dx: HostArray) -> list[Part]:
        """Return each thread's part of the gradient of the input."""
        layout, rows = self.layout, self.tape.rows[d]
        times, places = slot_places(rows)
        targets = address(dx) + times * dx.strides[0] + rows.order[places] * dx.strides[1]
        size = self.team.size
        bounds = [rows.total * p // size for p in range(size + 1)]
        self.kept_alive = [targets]
        parts: list[Part] = []
        for first, last in zip(bounds[:-1], bounds[1:], strict=True):
            tables = numpy.empty(3 * SLOTS_AT_ONCE, "int64")
            scratch = layout.empty(SLOTS_AT_ONCE, layout.x_width)
            self.kept_alive += [tables, scratch]
            job = kernels_backward.InputGradientJob(
                first,
                last,
                address(self.tape.gates[d]),
                layout.gate_width * layout.itemsize,
                layout.gate_width,
                self.shape.I,
                address(weight_ih),
                address(targets),
                address(self.zeros),
                address(tables),
                address(scratch),
                SLOTS_AT_ONCE,
            )
            parts.append(
                [(kernel(kernels_backward.add_input_gradient, self.lanes), self.lanes, job)]
            )
        return parts

    def initial_states(self) -> States:
        """Return the gradients of h and c before the first step."""
        _, B, _, H, P, D = self.shape
        dh = numpy.empty((D, B, P), self.tape.x.dtype)
        dc = numpy.empty((D, B, H), self.tape.x.dtype)
        for d, rows in enumerate(self.tape.rows):
            dh[d, rows.order] = self.dh[d, :, :P]
            dc[d, rows.order] = self.dc[d, :, :H]
        return dh, dc


SLOTS_AT_ONCE = 48
"""Rows of a product whose weights are read once."""


class _Sums:
    """Sums over the slots of one direction: the gradients of its weights."""

    def __init__(self, run: _Backward, d: int, wanted: Wanted, gradients: LayerGradients) -> None:
        self.run, self.d, self.gradients = run, d, gradients
        self.wanted = {
            name: some is not None and d in range(*some.indices(run.shape.D))
            for name, some in zip(wanted._fields, wanted, strict=True)
        }
        tape, layout, rows = run.tape, run.layout, run.tape.rows[d]
        _, B, I, H, P, _ = run.shape  # noqa: E741
        times, places = slot_places(rows)
        self.one = numpy.ones(1, layout.dtype)
        self.results: dict[str, HostArray] = {}
        self.sources: list[HostArray] = []
        self.jobs: list[tuple[int, kernels_backward.ProductJob]] = []
        self.tables: list[HostArray] = []
        if self.wanted["weight_ih"]:
            self.x = row_major(tape.x)
            x_rows = (
                address(self.x) + times * self.x.strides[0] + rows.order[places] * self.x.strides[1]
            )
            self.add("weight_ih", x_rows, I)
        if self.wanted["weight_hh"]:
            self.add("weight_hh", self.rows_before(times, places), P)
        if self.wanted["bias_ih"] or self.wanted["bias_hh"]:
            self.add("bias", numpy.full(rows.total, address(self.one)), 1)
        if self.wanted["weight_ho"]:
            size = layout.itemsize
            m_rows = address(tape.c[d]) + numpy.arange(rows.total) * (layout.c_width * size)
            result = layout.zeros(H, layout.h_width)
            self.append(
                "weight_ho",
                m_rows,
                H,
                run.dh_steps[d],
                layout.h_width,
                result,
                layout.h_width,
                4 * run.lanes.count,
            )

    def rows_before(self, times: HostArray, places: HostArray) -> HostArray:
        """Return the address of h before each slot: of the step before, or the initial one."""
        run, rows, d = self.run, self.run.tape.rows[self.d], self.d
        before = times - (-1 if run.tape.reverse[d] else 1)
        inside = (before >= rows.first_time) & (before < rows.last_time)
        before = numpy.where(inside, before, rows.first_time)
        there = inside & (places < rows.counts[before])
        row_bytes = run.layout.h_width * run.layout.itemsize
        slots = rows.slots[before] + places
        initial = address(run.tape.h0[d]) + places * row_bytes
        return numpy.where(there, address(run.h_steps[d]) + slots * row_bytes, initial)

    def add(self, name: str, sources: HostArray, features: int) -> None:
        """Sum the products of some rows with the gradients of the gates."""
        layout, lanes = self.run.layout, self.run.lanes
        result = layout.zeros(layout.blocks, features, 4, lanes.count)
        self.append(
            name,
            sources,
            features,
            self.run.tape.gates[self.d],
            layout.gate_width,
            result,
            4 * lanes.count,
            features * 4 * lanes.count,
        )

    def append(
        self,
        name: str,
        sources: HostArray,
        features: int,
        right: HostArray,
        width: int,
        result: HostArray,
        out_step: int,
        panel_step: int,
    ) -> None:
        """Note a sum of products; its sizes are in numbers."""
        size, lanes = self.run.layout.itemsize, self.run.lanes
        blocks = width // lanes.count
        tiles = -(-blocks // 4) * -(-features // lanes.rows)
        self.results[name] = result
        self.sources.append(sources)
        job = kernels_backward.ProductJob(
            len(sources),
            address(sources),
            features,
            address(right),
            width * size,
            blocks,
            address(result),
            out_step * size,
            panel_step * size,
            0,
            tiles,
            0,
        )
        self.jobs.append((tiles, job))

    def parts(self, threads: int) -> list[Part]:
        """Return each thread's part."""
        function = kernel(kernels_backward.add_outer_products, self.run.lanes)
        parts: list[Part] = []
        for p in range(threads):
            tables = numpy.empty(self.run.lanes.rows, "int64")
            self.tables.append(tables)
            parts.append(
                [
                    (
                        function,
                        self.run.lanes,
                        job._replace(
                            first=tiles * p // threads,
                            last=tiles * (p + 1) // threads,
                            tables=address(tables),
                        ),
                    )
                    for tiles, job in self.jobs
                ]
            )
        return parts

    def finish(self) -> None:
        """Add the sums to the gradients."""
        run, d, lanes = self.run, self.d, self.run.lanes
        _, _, I, H, P, _ = run.shape  # noqa: E741
        calls: Part = []
        targets: list[tuple[HostArray, HostArray]] = []
        scratch = [run.layout.empty(lanes.count, lanes.count) for _ in range(2 * run.team.size)]
        for name in ("weight_ih", "weight_hh"):
            if name in self.results:
                target = self.target(name, targets)
                features = self.results[name].shape[1]
                for p in range(run.team.size):
                    first = run.layout.blocks * p // run.team.size
                    last = run.layout.blocks * (p + 1) // run.team.size
                    calls.append(
                        (
                            packing.unpack_by_units,
                            self.results[name],
                            features,
                            H,
                            first,
                            last,
                            scratch.pop(),
                            target,
                        )
                    )
        for name in ("bias_ih", "bias_hh"):
            if self.wanted[name]:
                calls.append(
                    (packing.unpack_bias, self.results["bias"], H, self.target(name, targets))
                )
        scratch_kept = [call[6] for call in calls if call[0] is packing.unpack_by_units]
        _call(run.team, lanes, calls)
        del scratch_kept
        for gradient, target in targets:
            gradient += target
        if self.wanted["weight_ho"]:
            self.gradients.weight_ho[d] += self.results["weight_ho"][:, :P]

    def target(self, name: str, targets: list[tuple[HostArray, HostArray]]) -> HostArray:
        """Return the gradient to add to, or zeros to be added to it where it has other strides."""
        gradient: HostArray = getattr(self.gradients, name)[self.d]
        if gradient.flags.c_contiguous and gradient.flags.aligned:
            return gradient
        target = numpy.zeros(gradient.shape, gradient.dtype)
        targets.append((gradient, target))
        return target
