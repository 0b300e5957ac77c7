"""A forward pass of one layer: memory, jobs for the kernels, results."""

from collections.abc import Mapping, Sequence

import numpy

from cupy_lstm.backend import HostArray
from cupy_lstm.notation import LayerWeights, States
from cupy_lstm.simd.amx.forward import TileJob, forward_tiles
from cupy_lstm.simd.amx.unit import SIDE
from cupy_lstm.simd.compiled import kernel
from cupy_lstm.simd.forward import ForwardJob, forward_sweep
from cupy_lstm.simd.layout import Layout
from cupy_lstm.simd.rows import Rows, rows_of
from cupy_lstm.simd.scratch import Memory, Shared, address
from cupy_lstm.simd.sharing import Share, split
from cupy_lstm.simd.stages import OWN, Stages
from cupy_lstm.simd.tape import Recorded
from cupy_lstm.simd.threads import Call, Crew
from cupy_lstm.simd.weights import LARGEST, Packed, Packing, room_for_packed
from cupy_lstm.steps import Directions

PAIR = 2
"""Blocks that the forward sweep takes together where rows are few."""


class ForwardSweep:
    """The steps of one layer as a stage.

    Parameters
    ----------
    stages : Stages
        Of the pass.
    layout : Layout
        Of the layer.
    rows : sequence of Rows
        Which rows take part, for each direction.
    packed : Packed
        The weights.
    h : array [D,2,B,...]
        Outputs by row, before and after even and odd steps. A row keeps its output in the part for
        even steps until it takes part in one.
    c : array [D,B,...]
        Cell states by row.
    gates, cell_steps : sequence of array [slots,4H] and [slots,H]
        Receive what backward needs, for each direction; empty where nothing follows.
    """

    def __init__(
        self,
        stages: Stages,
        layout: Layout,
        rows: Sequence[Rows],
        packed: Packed,
        h: HostArray,
        c: HostArray,
        gates: Sequence[Memory] = (),
        cell_steps: Sequence[Memory] = (),
    ) -> None:
        self.stages, self.layout, self.rows, self.packed = stages, layout, rows, packed
        self.h, self.c, self.gates, self.cell_steps = h, c, gates, cell_steps
        for owned in (h, c, *(table for some in rows for table in (some.order, some.lengths))):
            stages.scratch.keep(owned)
        self.shared = Shared(stages.scratch)
        self.barriers = stages.scratch.counters(8 * layout.shape.D)

    def add_stage(self, x: Memory, y: Memory, cells: Memory | None, chunk: int) -> None:
        """Add the stage that runs over x [T,B,I] into y [T,B,D,P] and cells [T,B,D,H].

        Parameters
        ----------
        chunk : int
            Steps whose input projection is done at once.
        """
        self.stages.add("recurrence", [calls for calls, _ in self.parts(x, y, cells, chunk)])

    def parts(
        self, x: Memory, y: Memory, cells: Memory | None, chunk: int
    ) -> list[tuple[list[Call], list[Share]]]:
        """Return what each thread does of the same, and what its shares are."""
        layout, scratch = self.layout, self.stages.scratch
        threads = self.stages.threads(layout.work(sum(rows.total for rows in self.rows)))
        sweep = kernel(forward_tiles if layout.tiles else forward_sweep, layout.lanes)
        found: list[tuple[list[Call], list[Share]]] = []
        projected = self.packed.weight_ho is not None
        for shares in split(layout, self.rows, threads, projected, PAIR):
            calls = []
            for share in shares:
                job = self.job(share, x, y, cells, chunk)
                if layout.tiles:
                    job = job._replace(tiles=self.tile_job(share))
                calls.append((sweep, scratch.job(job)))
            found.append((calls, shares))
        return found

    def job(
        self,
        share: Share,
        x: Memory,
        y: Memory,
        cells: Memory | None,
        chunk: int,
    ) -> ForwardJob:
        """Return what a thread does of one direction."""
        d, packed, (_, B, I, H, P, _) = share.direction, self.packed, self.layout.shape  # noqa: E741
        rows, lanes, scratch = self.rows[d], self.layout.lanes, self.stages.scratch
        slots = chunk * (share.last_row - share.first_row)
        if self.gates:
            gates = address(self.gates[d])
        else:  # threads that share rows write different columns
            gates = self.shared.numbers((d, share.first_row), slots, self.layout.gate_width)
        return ForwardJob(
            steps=len(rows.times),
            time=rows.times[0],
            direction=rows.times.step,
            order=address(rows.order),
            lengths=address(rows.lengths),
            batch=B,
            first_slot=rows.first_slot(rows.times[0]),
            first_row=share.first_row,
            last_row=share.last_row,
            first_unit_block=share.first_block,
            last_unit_block=share.last_block,
            input_size=I,
            hidden_size=H,
            output_size=P,
            weight_ih=address(packed.weight_ih[d]),
            weight_hh=address(packed.weight_hh[d]),
            weight_ho=0 if packed.weight_ho is None else address(packed.weight_ho[d]),
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
            m=0
            if packed.weight_ho is None
            else self.shared.numbers(("m", d), B, self.layout.c_width),
            gates=gates,
            cell_steps=address(self.cell_steps[d]) if self.gates else 0,
            chunk=chunk,
            tables=scratch.table(2 * slots + lanes.rows),
            team=share.team,
            barrier=address(self.barriers) + 64 * d,
            tiles=0,
        )

    def tile_job(self, share: Share) -> int:
        """Return the address of what a thread needs beside, in the matrix unit."""
        d, layout, scratch = share.direction, self.layout, self.stages.scratch
        I, H = layout.shape.I, layout.shape.H  # noqa: E741
        rows = share.last_row - share.first_row
        job = TileJob(
            h=self.shared.numbers(("h", d, share.first_row), 2, *layout.split_rows(rows, H)),
            x=scratch.numbers(*layout.split_rows(rows, I)),
            odd=scratch.table(rows),
            odd_rows=scratch.table(rows),
            odd_weights=address(self.packed.odd),
            sums=scratch.numbers(2, SIDE, 4 * SIDE),
            configuration=scratch.numbers(16),
        )
        return scratch.job(job)


class ForwardPass:
    """A forward pass of a layer over a range of steps, on any memory of some shapes and strides.

    Parameters
    ----------
    layout : Layout
        Of the layer.
    team : int
        Threads there are.
    memory : mapping of str to array
        Memory like that of a run: ``x`` [T,B,I], ``y`` [T,B,D,P], perhaps ``cells`` [T,B,D,H], and
        unless they are packed the weights, by the names of `LayerWeights`. The numbers of a row of
        x, y and cells lie side by side, and those of a weight in order.
    lengths : array [B] of int, or None
        Valid times of each row.
    reverse : Directions
        Which directions run from the end.
    steps : range
        The steps to run.
    keep : bool
        Whether the memory of a run has a ``tape``, too, to be written.
    packed : Packed, optional
        The weights, packed.
    chunk : int
        Steps whose input projection is done at once.

    Attributes
    ----------
    rows : list of Rows
        Which rows take part, for each direction.
    recorded : Recorded
        What is in a tape.
    nbytes : int
        Bytes of the pass's own memory.
    """

    def __init__(
        self,
        layout: Layout,
        team: int,
        memory: Mapping[str, HostArray],
        lengths: HostArray | None,
        reverse: Directions,
        steps: range,
        *,
        keep: bool,
        packed: Packed | None,
        chunk: int,
    ) -> None:
        T, B, _, H, P, D = layout.shape
        self.rows = [rows_of(lengths, T, B, steps, backwards) for backwards in reverse]
        self._reverse, self._even = reverse, lengths is None
        h, c = layout.zeros(D, 2, B, layout.h_width), layout.zeros(D, B, layout.c_width)
        self._h, self._c = h[:, :, :, :P], c[:, :, :H]
        self._whole = h, c
        # Passes of packed weights are few, and may keep as much as they are kept with.
        self._stages = stages = Stages(layout, team, OWN if packed is None else LARGEST)
        scratch = stages.scratch
        given = {name: scratch.given(name, array) for name, array in memory.items()}
        self._packed = packed
        if packed is None:
            raw = LayerWeights(*[given.get(name) for name in LayerWeights._fields])
            packing = Packing(stages, layout)
            projected = raw.weight_ho is not None
            packed = room_for_packed(layout, projected, scratch.memory, packing.odd)
            packing.forward(raw, packed)
        self.recorded = Recorded(layout, self.rows)
        tape = self.recorded.given(scratch) if keep else {}
        gates, cell_steps = (
            [tape[f"{name} {d}"] for d in range(D) if keep] for name in ("gates", "cells")
        )
        sweep = ForwardSweep(stages, layout, self.rows, packed, h, c, gates, cell_steps)
        if len(steps) and B:
            sweep.add_stage(
                given["x"], given["y"], given.get("cells"), max(1, min(chunk, len(steps)))
            )
        self.nbytes = scratch.nbytes

    def begin(self, states: States) -> None:
        """Set the states h [D,B,P] and c [D,B,H] to begin with."""
        if self._even:
            self._h[:, 0], self._c[...] = states
            return
        for d, rows in enumerate(self.rows):
            self._h[d] = states[0][d, rows.batch_rows]
            self._c[d] = states[1][d, rows.batch_rows]

    def new_tape(self) -> HostArray:
        """Return memory for a tape, the states to begin with in it."""
        tape = self._stages.layout.empty(self.recorded.size)
        h, c = self._whole
        for name, state in (("h0", h[:, 0]), ("c0", c)):
            first = self.recorded.sizes[name][0]
            tape[first : first + state.size] = state.reshape(-1)
        return tape

    def times(self) -> list[slice]:
        """Return the times of the steps in each direction."""
        ends = [sorted((rows.times[0], rows.times[-1])) for rows in self.rows if rows.times]
        return [slice(first, last + 1) for first, last in ends]

    def run(self, crew: Crew, places: Mapping[str, int], alive: object) -> States:
        """Run on memory at these addresses.

        Parameters
        ----------
        alive : object
            What that memory belongs to.

        Returns
        -------
        tuple of array [D,B,P] and [D,B,H]
            h and c after the last step.
        """
        self._stages.run(crew, places, (alive, self._packed))
        steps = len(self.rows[0].times)
        if self._even:
            return self._h[:, steps % 2].copy(), self._c.copy()
        h, c = numpy.empty_like(self._h[:, 0]), numpy.empty_like(self._c)
        for d, rows in enumerate(self.rows):
            # A row's last output lies in the part of its last step.
            taken = rows.steps
            if self._reverse[d]:
                taken = numpy.where(taken > 0, steps, 0)
            h[d, rows.order] = self._h[d, taken % 2, numpy.arange(len(rows.order))]
            c[d, rows.order] = self._c[d]
        return h, c
