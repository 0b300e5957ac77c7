"""A backward pass of one layer: the sweep back through the steps, and the gradients after it."""

from collections.abc import Mapping, Sequence

import numpy

from cupy_lstm.backend import HostArray
from cupy_lstm.notation import States
from cupy_lstm.simd.amx.backward import TileBackJob, backward_tiles
from cupy_lstm.simd.amx.unit import SIDE
from cupy_lstm.simd.backward import BackwardJob, backward_sweep
from cupy_lstm.simd.compiled import kernel
from cupy_lstm.simd.gradients import Products
from cupy_lstm.simd.input_gradient import PANEL
from cupy_lstm.simd.layout import Layout
from cupy_lstm.simd.rows import Rows
from cupy_lstm.simd.scratch import Given, Memory, Shared, address
from cupy_lstm.simd.sharing import Share, split
from cupy_lstm.simd.stages import Stages
from cupy_lstm.simd.tape import Recorded
from cupy_lstm.simd.targets import Sums, Target
from cupy_lstm.simd.threads import Crew
from cupy_lstm.simd.weights import Packing


class BackwardSweep:
    """The way back through the steps, as stages.

    Parameters
    ----------
    stages : Stages
        Of the pass.
    layout : Layout
        Of the layer.
    rows : sequence of Rows
        Which rows take part, for each direction.
    given : mapping of str to Given
        What the pass is given, the parts of the tape among it; see `BackwardPass`.
    dh, dc : array [D,B,...]
        Gradients of the states by row, after the steps and then before them.

    Attributes
    ----------
    dh_steps : list of array [slots,P]
        Whole gradient of h after each step, where there is a projection.
    """

    def __init__(
        self,
        stages: Stages,
        layout: Layout,
        rows: Sequence[Rows],
        given: Mapping[str, Given],
        dh: HostArray,
        dc: HostArray,
    ) -> None:
        self.stages, self.layout, self.rows, self.given = stages, layout, rows, given
        self.dh, self.dc = dh, dc
        (_, B, _, H, P, D), scratch = layout.shape, stages.scratch
        self.zeros = layout.zeros(max(layout.h_width, layout.c_width))
        tables = (table for some in rows for table in (some.order, some.lengths))
        for owned in (dh, dc, self.zeros, *tables):
            scratch.keep(owned)
        self.shared = Shared(scratch)
        self.barriers = scratch.counters(8 * D)
        self.odd_rows = scratch.counters(D * B) if layout.tiles else None
        packing = Packing(stages, layout)
        self.odd = packing.odd
        self.weight_hh = packing.gate_rows(given["weight_hh"], P, layout.tiles)
        self.weight_ho: Memory | None = None
        self.dm: Memory | None = None
        self.dh_steps: list[Memory] = []
        if "weight_ho" in given:
            self.weight_ho = packing.transposed(given["weight_ho"], H, P)
            self.dm = scratch.memory(D, B, layout.c_width)
            self.dh_steps = [scratch.memory(some.total, layout.h_width) for some in rows]
        sweep = kernel(backward_tiles if layout.tiles else backward_sweep, layout.lanes)
        threads = stages.threads(sum(some.total for some in rows) * 4 * H * P)
        projected = self.weight_ho is not None
        stages.add(
            "recurrence",
            [
                [(sweep, scratch.job(self.job(share))) for share in shares]
                for shares in split(layout, rows, threads, projected, PANEL)
            ],
        )

    def job(self, share: Share) -> BackwardJob:
        """Return what a thread does of one direction."""
        d, layout, scratch = share.direction, self.layout, self.stages.scratch
        given, rows = self.given, self.rows[d]
        dy, dcells = given.get("dy"), given.get("dcells")
        return BackwardJob(
            steps=len(rows.times),
            time=rows.times[0],
            direction=rows.times.step,
            order=address(rows.order),
            lengths=address(rows.lengths),
            batch=layout.shape.B,
            last_slot=rows.first_slot(rows.times[-1]),
            first_row=share.first_row,
            last_row=share.last_row,
            first_unit_block=share.first_block,
            last_unit_block=share.last_block,
            hidden_size=layout.shape.H,
            output_size=layout.shape.P,
            weight_hh=address(self.weight_hh[d]),
            weight_ho=0 if self.weight_ho is None else address(self.weight_ho[d]),
            dy=0 if dy is None else address(dy) + d * dy.strides[2],
            dy_time=0 if dy is None else dy.strides[0],
            dy_row=0 if dy is None else dy.strides[1],
            dcells=0 if dcells is None else address(dcells) + d * dcells.strides[2],
            dcells_time=0 if dcells is None else dcells.strides[0],
            dcells_row=0 if dcells is None else dcells.strides[1],
            dh=address(self.dh[d]),
            dc=address(self.dc[d]),
            dm=0 if self.dm is None else address(self.dm[d]),
            gates=address(given[f"gates {d}"]),
            cell_steps=address(given[f"cells {d}"]),
            c=address(given["c0"][d]),
            dh_steps=address(self.dh_steps[d]) if self.dh_steps else 0,
            zeros=address(self.zeros),
            tables=scratch.table(4 * (share.last_row - share.first_row)),
            team=share.team,
            barrier=address(self.barriers) + 64 * d,
            tiles=self.tile_job(share) if layout.tiles else 0,
        )

    def tile_job(self, share: Share) -> int:
        """Return the address of what a thread needs beside, in the matrix unit."""
        d, layout, scratch = share.direction, self.layout, self.stages.scratch
        rows = share.last_row - share.first_row
        split = layout.split_rows(rows, layout.gate_width)
        job = TileBackJob(
            dz=self.shared.numbers(("dz", d, share.first_row), 2, *split),
            odd_rows=address(self.odd_rows) + 8 * d * layout.shape.B,
            odd_weights=address(self.odd),
            sums=scratch.numbers(SIDE, layout.c_width),
            configuration=scratch.numbers(16),
        )
        return scratch.job(job)


class BackwardPass:
    """A backward pass of a layer over a range of steps, on any memory of some shapes and strides.

    Parameters
    ----------
    layout : Layout
        Of the layer.
    team : int
        Threads there are.
    memory : mapping of str to array
        Memory like that of a run: the weights by the names of `LayerWeights`; ``x`` [T,B,I];
        perhaps ``dy`` [T,B,D,P], ``dcells`` [T,B,D,H] and ``dx`` [T,B,I]; where the sums end here,
        ``gradient`` and the name of each weight whose gradient is wanted. The numbers of a row lie
        side by side, those of weights and their gradients in order. A run has a ``tape`` and
        ``sums``, too.
    rows : sequence of Rows
        Which rows take part, for each direction.
    targets : sequence of Target
        The weights whose gradients are wanted.
    unset : frozenset of str
        The weights whose gradients are set, not added to; and ``dx`` if that is.
    first : bool
        Whether the sums begin here.
    last : bool
        Whether no earlier range of steps follows: then the sums are added to the gradients.

    Attributes
    ----------
    sums : Sums
        What is in ``sums``.
    nbytes : int
        Bytes of the pass's own memory.
    """

    def __init__(
        self,
        layout: Layout,
        team: int,
        memory: Mapping[str, HostArray],
        rows: Sequence[Rows],
        targets: Sequence[Target],
        unset: frozenset[str],
        *,
        first: bool,
        last: bool,
    ) -> None:
        _, B, _, H, P, D = layout.shape
        dh, dc = layout.zeros(D, B, layout.h_width), layout.zeros(D, B, layout.c_width)
        self._dh, self._dc = dh[:, :, :P], dc[:, :, :H]
        self._whole, self._rows = (dh, dc), rows
        self._stages = stages = Stages(layout, team)
        given = {name: stages.scratch.given(name, array) for name, array in memory.items()}
        given |= Recorded(layout, rows).given(stages.scratch)
        sweep = BackwardSweep(stages, layout, rows, given, dh, dc)
        self.sums = Sums(layout, targets)
        sums = self.sums.given(stages.scratch)
        Products(
            stages,
            layout,
            rows,
            given,
            sums,
            sweep.dh_steps,
            targets if last else (),
            unset,
            first=first,
        )
        self.nbytes = stages.scratch.nbytes

    def run(
        self,
        crew: Crew,
        places: Mapping[str, int],
        alive: object,
        dstates: tuple[HostArray | None, HostArray | None],
    ) -> States:
        """Run on memory at these addresses.

        Parameters
        ----------
        alive : object
            What that memory belongs to.
        dstates : tuple of array [D,B,P] or None, and array [D,B,H] or None
            Gradients of the states after the steps.

        Returns
        -------
        tuple of array [D,B,P] and [D,B,H]
            Those before the steps.
        """
        for whole, gradient, given in zip(self._whole, (self._dh, self._dc), dstates, strict=True):
            whole.fill(0)
            if given is not None:
                for d, rows in enumerate(self._rows):
                    gradient[d] = given[d, rows.batch_rows]
        self._stages.run(crew, places, alive)
        dh, dc = numpy.empty_like(self._dh), numpy.empty_like(self._dc)
        for d, rows in enumerate(self._rows):
            dh[d, rows.batch_rows], dc[d, rows.batch_rows] = self._dh[d], self._dc[d]
        return dh, dc
