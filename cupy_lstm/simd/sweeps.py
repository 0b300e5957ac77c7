"""A forward and a backward sweep of one layer: memory, jobs for the kernels, results."""

from dataclasses import dataclass

import numpy

from cupy_lstm.backend import HostArray
from cupy_lstm.notation import LayerWeights, States
from cupy_lstm.simd.amx.backward import TileBackJob, backward_tiles
from cupy_lstm.simd.amx.forward import TileJob, forward_tiles
from cupy_lstm.simd.amx.unit import SIDE
from cupy_lstm.simd.backward import BackwardJob, backward_sweep
from cupy_lstm.simd.compiled import kernel
from cupy_lstm.simd.forward import ForwardJob, forward_sweep
from cupy_lstm.simd.layout import Layout, Scratch, address, has_rows, layout_of, row_major
from cupy_lstm.simd.products import PANEL
from cupy_lstm.simd.rows import Rows, rows_of
from cupy_lstm.simd.sharing import Share, split
from cupy_lstm.simd.stages import Stages
from cupy_lstm.simd.threads import Call
from cupy_lstm.simd.weights import Packed, Packing
from cupy_lstm.steps import Directions

PAIR = 2
"""Blocks that the forward sweep takes together where rows are few."""


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
        Activated gates; backward turns them into the gradients of their pre-activations.
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


class ForwardSweep:
    """One forward sweep and its memory.

    Attributes
    ----------
    h : array [D,2,B,...]
        Outputs by row, after even and after odd steps.
    c : array [D,B,...]
        Cell states by row.
    jobs : list of array
        Those of the kernels, once there are some.
    """

    def __init__(
        self,
        layout: Layout,
        x: HostArray,
        packed: Packed,
        states: States,
        lengths: HostArray | None,
        reverse: Directions,
        steps: range,
        keep: bool,
    ) -> None:
        T, B, _, H, P, D = layout.shape
        self.layout, self.packed, self.x = layout, packed, x
        self.reverse, self.steps, self.keep = reverse, steps, keep
        self.rows = [rows_of(lengths, T, B, steps, backwards) for backwards in reverse]
        # A row keeps its state in the buffer of even steps until it takes part in one.
        self.h = layout.zeros(D, 2, B, layout.h_width)
        self.c = layout.zeros(D, B, layout.c_width)
        for d, rows in enumerate(self.rows):
            self.h[d, :, :, :P] = states[0][d, rows.order]
            self.c[d, :, :H] = states[1][d, rows.order]
        self.jobs: list[HostArray] = []
        self.gates: list[HostArray] = []
        self.cell_steps: list[HostArray] = []
        if keep:
            self.h0, self.c0 = self.h[:, 0].copy(), self.c.copy()
            self.gates = [layout.empty(rows.total, layout.gate_width) for rows in self.rows]
            self.cell_steps = [layout.empty(rows.total, layout.c_width) for rows in self.rows]

    def sweep(self, stages: Stages, y: HostArray, cells: HostArray | None, chunk: int) -> None:
        """Run all steps after the stages there are, and write y and cells."""
        x = row_major(self.x)
        outputs = y if has_rows(y) else numpy.empty(y.shape, y.dtype)
        kept = cells if cells is None or has_rows(cells) else numpy.empty(cells.shape, cells.dtype)
        parts, scratch = self.parts(stages.crew.threads(self.work), x, outputs, kept, chunk)
        stages.add("recurrence", parts, self, x, outputs, kept, scratch)
        del scratch  # the stages have it until they have run
        stages.run()
        for target, filled in ((y, outputs), (cells, kept)):
            if target is not None and filled is not None and filled is not target:
                for d, rows in enumerate(self.rows):
                    times = slice(min(rows.times), max(rows.times) + 1)
                    target[times, :, d] = filled[times, :, d]

    @property
    def work(self) -> int:
        """Multiply-adds of the products."""
        _, _, I, H, P, _ = self.layout.shape  # noqa: E741
        return sum(rows.total for rows in self.rows) * 4 * H * (I + P)

    def parts(
        self, threads: int, x: HostArray, y: HostArray, cells: HostArray | None, chunk: int
    ) -> tuple[list[list[Call]], Scratch]:
        """Return what each thread does, and memory that must live as long, beside this object."""
        layout, scratch = self.layout, Scratch(self.layout)
        self.barriers = numpy.zeros((layout.shape.D, 8), "int64")
        sweep = kernel(forward_tiles if layout.tiles else forward_sweep, layout.lanes)
        found: list[list[Call]] = []
        for shares in split(layout, self.rows, threads, bool(self.packed.weight_ho), PAIR):
            found.append([])
            for share in shares:
                job = self.job(share, x, y, cells, chunk, scratch)
                if layout.tiles:
                    job = job._replace(tiles=self.tile_job(share, scratch))
                self.jobs.append(numpy.array(job, "int64"))
                found[-1].append((sweep, address(self.jobs[-1])))
        return found, scratch

    def job(
        self,
        share: Share,
        x: HostArray,
        y: HostArray,
        cells: HostArray | None,
        chunk: int,
        scratch: Scratch,
    ) -> ForwardJob:
        """Return what a thread does of one direction."""
        d, packed, (_, B, I, H, P, _) = share.direction, self.packed, self.layout.shape  # noqa: E741
        rows, lanes = self.rows[d], self.layout.lanes
        slots = chunk * (share.last_row - share.first_row)
        if self.keep:
            gates = address(self.gates[d])
        else:  # threads that share rows write different columns
            gates = scratch.shared((d, share.first_row), slots, self.layout.gate_width)
        return ForwardJob(
            steps=len(self.steps),
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
            m=scratch.shared(("m", d), B, self.layout.c_width) if packed.weight_ho else 0,
            gates=gates,
            cell_steps=address(self.cell_steps[d]) if self.keep else 0,
            chunk=chunk,
            tables=scratch.table(2 * slots + lanes.rows),
            team=share.team,
            barrier=address(self.barriers[d]),
            tiles=0,
        )

    def tile_job(self, share: Share, scratch: Scratch) -> int:
        """Return the address of what a thread needs beside, in the matrix unit."""
        d, layout = share.direction, self.layout
        I, H = layout.shape.I, layout.shape.H  # noqa: E741
        rows = share.last_row - share.first_row
        job = TileJob(
            h=scratch.shared(("h", d, share.first_row), 2, *layout.split_rows(rows, H)),
            x=scratch.numbers(*layout.split_rows(rows, I)),
            odd=scratch.table(rows),
            odd_rows=scratch.table(rows),
            odd_weights=address(self.packed.odd),
            sums=scratch.numbers(2, SIDE, 4 * SIDE),
            configuration=scratch.numbers(16),
        )
        return scratch.job(job)

    def final_states(self) -> States:
        """Return h and c after the last step."""
        _, B, _, H, P, D = self.layout.shape
        h = numpy.empty((D, B, P), self.x.dtype)
        c = numpy.empty((D, B, H), self.x.dtype)
        for d, rows in enumerate(self.rows):
            # A row's last output lies in the buffer of its last step.
            taken = rows.steps
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


class BackwardSweep:
    """One backward sweep and its memory.

    Attributes
    ----------
    dh, dc : array [D,B,...]
        Gradients of the states by row.
    dh_steps : list of array [slots,P]
        Whole gradient of h after each step, where there is a projection.
    """

    def __init__(self, tape: Tape, dstates: tuple[HostArray | None, HostArray | None]) -> None:
        self.tape = tape
        T, B = tape.x.shape[:2]
        self.layout = layout = layout_of(T, B, tape.weights)
        self.shape = shape = layout.shape
        self.dh = layout.zeros(shape.D, B, layout.h_width)
        self.dc = layout.zeros(shape.D, B, layout.c_width)
        for d, rows in enumerate(tape.rows):
            if dstates[0] is not None:
                self.dh[d, :, : shape.P] = dstates[0][d, rows.order]
            if dstates[1] is not None:
                self.dc[d, :, : shape.H] = dstates[1][d, rows.order]
        self.dh_steps: list[HostArray] = []
        if tape.weights.weight_ho is not None:
            self.dh_steps = [layout.empty(rows.total, layout.h_width) for rows in tape.rows]

    def add_to(self, stages: Stages, dy: HostArray | None, dcells: HostArray | None) -> None:
        """Add the stages that go back through all steps."""
        layout, weights, (_, _, _, H, P, D) = self.layout, self.tape.weights, self.shape
        packing = Packing(stages)
        weight_hh = packing.gate_rows(weights.weight_hh, P, layout.tiles)
        weight_ho = packing.transposed(weights.weight_ho, H, P)
        packing.finish()
        scratch, zeros = Scratch(layout), layout.zeros(max(layout.h_width, layout.c_width))
        dm = layout.empty(*self.dc.shape) if weight_ho else None
        barriers = numpy.zeros((D, 8), "int64")
        sweep = kernel(backward_tiles if layout.tiles else backward_sweep, layout.lanes)
        odd_rows = numpy.zeros((D, layout.shape.B), "int64")
        parts = []
        count = stages.crew.threads(sum(rows.total for rows in self.tape.rows) * 4 * H * P)
        for shares in split(layout, self.tape.rows, count, bool(weight_ho), PANEL):
            part = []
            for share in shares:
                d = share.direction
                job = self.job(share, dy, dcells)._replace(
                    weight_hh=address(weight_hh[d]),
                    weight_ho=address(weight_ho[d]) if weight_ho else 0,
                    dm=0 if dm is None else address(dm[d]),
                    zeros=address(zeros),
                    tables=scratch.table(4 * (share.last_row - share.first_row)),
                    barrier=address(barriers[d]),
                )
                if layout.tiles:
                    tiles = self.tile_job(share, scratch, odd_rows[d], packing.odd)
                    job = job._replace(tiles=tiles)
                part.append((sweep, scratch.job(job)))
            parts.append(part)
        alive = weight_hh, weight_ho, dy, dcells, dm, scratch, zeros, barriers, odd_rows
        stages.add("recurrence", parts, self, *alive)

    def job(self, share: Share, dy: HostArray | None, dcells: HostArray | None) -> BackwardJob:
        """Return what a thread does of one direction, but for the memory of the call."""
        d, tape = share.direction, self.tape
        rows = tape.rows[d]
        return BackwardJob(
            steps=len(tape.steps),
            time=rows.times[0],
            direction=rows.times.step,
            order=address(rows.order),
            lengths=address(rows.lengths),
            batch=self.shape.B,
            last_slot=rows.first_slot(rows.times[-1]),
            first_row=share.first_row,
            last_row=share.last_row,
            first_unit_block=share.first_block,
            last_unit_block=share.last_block,
            hidden_size=self.shape.H,
            output_size=self.shape.P,
            weight_hh=0,
            weight_ho=0,
            dy=0 if dy is None else address(dy) + d * dy.strides[2],
            dy_time=0 if dy is None else dy.strides[0],
            dy_row=0 if dy is None else dy.strides[1],
            dcells=0 if dcells is None else address(dcells) + d * dcells.strides[2],
            dcells_time=0 if dcells is None else dcells.strides[0],
            dcells_row=0 if dcells is None else dcells.strides[1],
            dh=address(self.dh[d]),
            dc=address(self.dc[d]),
            dm=0,
            gates=address(tape.gates[d]),
            cell_steps=address(tape.c[d]),
            c=address(tape.c0[d]),
            dh_steps=address(self.dh_steps[d]) if self.dh_steps else 0,
            zeros=0,
            tables=0,
            team=share.team,
            barrier=0,
            tiles=0,
        )

    def tile_job(self, share: Share, scratch: Scratch, odd_rows: HostArray, odd: HostArray) -> int:
        """Return the address of what a thread needs beside, in the matrix unit."""
        d, layout = share.direction, self.layout
        rows = share.last_row - share.first_row
        split = layout.split_rows(rows, layout.gate_width)
        job = TileBackJob(
            dz=scratch.shared(("dz", d, share.first_row), 2, *split),
            odd_rows=address(odd_rows),
            odd_weights=address(odd),
            sums=scratch.numbers(SIDE, layout.c_width),
            configuration=scratch.numbers(16),
        )
        return scratch.job(job)

    def initial_states(self) -> States:
        """Return the gradients of h and c before the first step."""
        _, B, _, H, P, D = self.shape
        dh = numpy.empty((D, B, P), self.tape.x.dtype)
        dc = numpy.empty((D, B, H), self.tape.x.dtype)
        for d, rows in enumerate(self.tape.rows):
            dh[d, rows.order] = self.dh[d, :, :P]
            dc[d, rows.order] = self.dc[d, :, :H]
        return dh, dc
