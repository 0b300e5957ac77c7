"""Gradients of weights and input: sums over the slots that a backward sweep has left.

Every number is summed by one thread in an order that does not depend on how many threads there
are, nor on how a sequence is cut into ranges of steps.
"""

from collections.abc import Sequence

import numpy

from cupy_lstm.backend import HostArray
from cupy_lstm.notation import LayerGradients, LayerWeights, Wanted
from cupy_lstm.plan import SUMMED_STEPS
from cupy_lstm.simd import packing
from cupy_lstm.simd.amx.products import (
    TileInputJob,
    TileProductJob,
    add_tile_input_gradient,
    add_tile_products,
)
from cupy_lstm.simd.amx.unit import SIDE
from cupy_lstm.simd.compiled import kernel
from cupy_lstm.simd.layout import Layout, Scratch, address, has_rows, row_major
from cupy_lstm.simd.matrix import ProjectionJob, project_steps
from cupy_lstm.simd.products import (
    BEFORE,
    BY_ROW,
    BY_SLOT,
    PANEL,
    InputGradientJob,
    Places,
    ProductJob,
    add_input_gradient,
    add_outer_products,
)
from cupy_lstm.simd.rows import Rows
from cupy_lstm.simd.sharing import equal
from cupy_lstm.simd.stages import Stages
from cupy_lstm.simd.threads import Call
from cupy_lstm.simd.weights import Packing

SLOTS_AT_ONCE = 48
"""Slots whose product with a panel of weights is taken while it is in the cache."""

TERMS_AT_ONCE = 96
"""Slots whose outer products are summed while what they have in a group of blocks is cached."""


Sums = dict[tuple[int, str], HostArray]
"""The sums so far, packed, by direction and weight; empty before the last range of steps."""


class Products:
    """The products of a backward pass over a range of steps; lists have an entry a direction.

    Attributes
    ----------
    sums : Sums
        Of this range and all later ones.
    dz : list of array [slots,4H]
        Gradients of the pre-activations.
    m : list of array [slots,H]
        Outputs before the projection.
    """

    def __init__(
        self,
        stages: Stages,
        weights: LayerWeights,
        rows: Sequence[Rows],
        dz: Sequence[HostArray],
        m: Sequence[HostArray],
        sums: "Sums",
    ) -> None:
        self.stages, self.layout, self.weights = stages, stages.layout, weights
        self.rows, self.dz, self.m, self.sums = rows, dz, m, sums
        slots = sum(some.total for some in rows)
        _, _, I, H, P, D = self.layout.shape  # noqa: E741
        self.threads = stages.crew.threads(slots // D * 4 * H * min(I, P))
        self.zeros = self.layout.zeros(max(self.layout.h_width, self.layout.x_width))
        # Gradients of other strides than a kernel writes, and what is to be added to them.
        self.apart: list[tuple[HostArray, HostArray]] = []

    def add_stages(
        self,
        wanted: Wanted,
        gradients: LayerGradients,
        dx: HostArray | None,
        *,
        x: HostArray,
        h0: HostArray,
        dh_steps: Sequence[HostArray],
        last: bool,
    ) -> None:
        """Add the stages that sum the gradients that are wanted; `finish` ends it.

        Parameters
        ----------
        dx : array [T,B,I] or None
            Receives the gradient of the input.
        x : array [T,B,I]
            Input.
        h0 : array [D,B,...]
            Outputs before the first step, by row.
        dh_steps : sequence of array [slots,P]
            Gradient of h after each step, where there is a projection.
        last : bool
            Whether no earlier range of steps follows: then the sums are added to `gradients`.
        """
        x, h_steps = row_major(x), self.outputs()
        packed = []
        packing = Packing(self.stages)
        if dx is not None:
            packed = packing.gate_rows(
                self.weights.weight_ih, self.layout.shape.I, self.layout.product_tiles
            )
            packing.finish()
        sums = _Tiles(self.layout, self.threads, self.sums)
        for d in range(self.layout.shape.D):
            names = [
                name
                for name, some in zip(wanted._fields, wanted, strict=True)
                if some is not None and d in range(*some.indices(self.layout.shape.D))
            ]
            self.ask_for(sums, d, names, x, h_steps, h0, dh_steps)
            for name in names if last else ():
                sums.add_to(d, name, getattr(gradients, name)[d], self.apart)
        parts = sums.products()
        self.stages.keep(self, sums, x, h0, h_steps, dh_steps, packed)
        if dx is not None:
            for calls in self.input_gradient(dx, packed, packing.odd):
                # Behind the sums, whose parts are fixed: it evens out what they left uneven.
                for part, call in zip(parts, calls, strict=True):
                    part.append(call)
                self.stages.add("gradients", parts)
                parts = [[] for _ in parts]
        parts = [part + more for part, more in zip(parts, sums.additions(), strict=True)]
        self.stages.add("gradients", parts)

    def finish(self) -> None:
        """Add what kernels could not write themselves."""
        for gradient, target in self.apart:
            gradient += target

    def ask_for(
        self,
        sums: "_Tiles",
        d: int,
        names: Sequence[str],
        x: HostArray,
        h_steps: Sequence[HostArray],
        h0: HostArray,
        dh_steps: Sequence[HostArray],
    ) -> None:
        """Ask for the sums of one direction that some weights need."""
        layout = self.layout
        h_bytes, c_bytes = layout.h_width * layout.itemsize, layout.c_width * layout.itemsize
        if "weight_ih" in names:
            left = self.places(d, BY_ROW, x, x.strides[0], x.strides[1])
            sums.add_by_units((d, "weight_ih"), left, layout.shape.I, self.dz[d])
        if "weight_hh" in names:
            left = self.places(d, BEFORE, h_steps[d], 0, h_bytes, initial=h0[d])
            sums.add_by_units((d, "weight_hh"), left, layout.shape.P, self.dz[d])
        if "bias_ih" in names or "bias_hh" in names:
            left = self.places(d, BY_ROW, sums.one, 0, 0)
            sums.add_by_units((d, "bias"), left, 1, self.dz[d])
        if "weight_ho" in names:
            left = self.places(d, BY_SLOT, self.m[d], 0, c_bytes)
            sums.add_by_columns((d, "weight_ho"), left, layout.shape.H, dh_steps[d])

    def outputs(self) -> Sequence[HostArray]:
        """Return h after each step [slots,P], there when the stages have run."""
        layout, (_, _, _, H, P, _) = self.layout, self.layout.shape
        if self.weights.weight_ho is None:
            return self.m
        packing = Packing(self.stages)
        weight_ho = packing.columns(self.weights.weight_ho, H, P)
        packing.finish()
        outputs = [layout.empty(rows.total, layout.h_width) for rows in self.rows]
        scratch, project = Scratch(layout), kernel(project_steps, layout.lanes)
        parts: list[list[Call]] = [[] for _ in range(self.threads)]
        for d, rows in enumerate(self.rows):
            for part, (first, last) in zip(parts, equal(rows.total, self.threads), strict=True):
                job = ProjectionJob(
                    first=first,
                    last=last,
                    terms=H,
                    columns=P,
                    m=address(self.m[d]),
                    m_bytes=layout.c_width * layout.itemsize,
                    out=address(outputs[d]),
                    out_bytes=layout.h_width * layout.itemsize,
                    weight_ho=address(weight_ho[d]),
                    zeros=address(self.zeros),
                    tables=scratch.table(3 * SLOTS_AT_ONCE),
                    chunk=SLOTS_AT_ONCE,
                )
                part.append((project, scratch.job(job)))
        self.stages.add("recomputation", parts, self, weight_ho, outputs, scratch)
        return outputs

    def places(
        self,
        d: int,
        kind: int,
        array: HostArray,
        time_step: int,
        row_step: int,
        initial: HostArray | None = None,
    ) -> Places:
        """Return where the rows of an array lie that belong to the slots."""
        rows = self.rows[d]
        return Places(
            kind=kind,
            base=address(array),
            time_step=time_step,
            row_step=row_step,
            initial=address(initial),
            time=min(rows.times),
            last_time=max(rows.times) + 1,
            direction=rows.times.step,
            order=address(rows.order),
            lengths=address(rows.lengths),
            batch=len(rows.order),
        )

    def input_gradient(
        self, dx: HostArray, weight_ih: Sequence[HostArray], odd: HostArray
    ) -> list[list[Call]]:
        """Return the calls that add the gradient of the input to dx [T,B,I], one a thread.

        `odd` is that of `Packing`.
        Where both directions are at the same times they have the same slots, and add together; if
        not, they add one after the other, for they may add to the same numbers.
        """
        layout = self.layout
        target = dx
        if not has_rows(dx):
            target = numpy.zeros(dx.shape, dx.dtype)
            self.apart.append((dx, target))
        ranges = {(min(some.times), max(some.times)) for some in self.rows}
        directions = list(range(layout.shape.D))
        groups = [directions] if len(ranges) == 1 else [[d] for d in directions]
        add = kernel(
            add_tile_input_gradient if layout.product_tiles else add_input_gradient, layout.lanes
        )
        scratch = Scratch(layout)
        counters = numpy.zeros(len(groups), "int64")
        self.stages.keep(scratch, counters, odd)
        found: list[list[Call]] = []
        for number, group in enumerate(groups):
            d, last = group[0], group[-1]
            places = self.places(d, BY_ROW, target, target.strides[0], target.strides[1])
            job = InputGradientJob(
                counter=address(counters) + number * counters.itemsize,
                chunk=SLOTS_AT_ONCE,
                slots=self.rows[d].total,
                gates=address(self.dz[d]),
                gates_beside=address(self.dz[last]) if last > d else 0,
                gate_bytes=layout.gate_width * layout.itemsize,
                weight_ih=address(weight_ih[d]),
                weight_ih_beside=address(weight_ih[last]) if last > d else 0,
                terms=layout.gate_width,
                columns=layout.shape.I,
                zeros=address(self.zeros),
                tables=0,
                scratch=0,
                targets=scratch.job(places),
                tiles=0,
            )
            found.append([])
            for _ in range(self.threads):
                tables = scratch.table(4 * SLOTS_AT_ONCE)
                products = scratch.numbers(SLOTS_AT_ONCE, PANEL * layout.lanes.count)
                tiles = self.tile_job(len(group), odd, scratch) if layout.product_tiles else 0
                own = job._replace(tables=tables, scratch=products, tiles=tiles)
                found[-1].append((add, scratch.job(own)))
        return found

    def tile_job(self, sides: int, odd: HostArray, scratch: Scratch) -> int:
        """Return the address of what a thread needs beside, in the matrix unit."""
        layout = self.layout
        job = TileInputJob(
            dz=scratch.numbers(sides, *layout.split_rows(SLOTS_AT_ONCE, layout.gate_width)),
            odd=scratch.table(SLOTS_AT_ONCE),
            odd_weights=address(odd),
            sums=scratch.numbers(2, SIDE, layout.x_width),
            configuration=scratch.numbers(16),
        )
        return scratch.job(job)


class _Tiles:
    """Sums over slots of the products of two rows each, for one weight of one direction each."""

    def __init__(self, layout: Layout, threads: int, results: Sums) -> None:
        self.layout, self.threads, self.results = layout, threads, results
        self.one = numpy.ones(1, layout.dtype)
        self.jobs: list[tuple[ProductJob, bool]] = []
        self.calls: list[Call] = []
        self.scratch = Scratch(layout)

    def add_by_units(
        self, name: tuple[int, str], left: Places, features: int, dz: HostArray
    ) -> None:
        """Ask for the products of some rows with those of dz."""
        layout, group = self.layout, 4 * self.layout.lanes.count
        tiles = layout.product_tiles and features > 1
        there = -(-features // SIDE) * SIDE if tiles else features
        if name not in self.results:
            self.results[name] = layout.zeros(layout.blocks, there, group)
        self._add(name, left, features, dz, group, there * group, tiles)

    def add_by_columns(
        self, name: tuple[int, str], left: Places, features: int, right: HostArray
    ) -> None:
        """Ask for the products of some rows with others."""
        if name not in self.results:
            self.results[name] = self.layout.zeros(features, right.shape[1])
        group = 4 * self.layout.lanes.count
        self._add(name, left, features, right, right.shape[1], group, False)

    def _add(
        self,
        name: tuple[int, str],
        left: Places,
        features: int,
        right: HostArray,
        out_step: int,
        panel_step: int,
        tiles: bool,
    ) -> None:
        size, lanes, width = self.layout.itemsize, self.layout.lanes, right.shape[1]
        job = ProductJob(
            steps=SUMMED_STEPS,
            features=features,
            right=address(right),
            right_step=width * size,
            blocks=width // lanes.count,
            out=address(self.results[name]),
            out_step=out_step * size,
            panel_step=panel_step * size,
            first=0,
            last=0,
            tables=0,
            chunk=TERMS_AT_ONCE,
            left=self.scratch.job(left),
            tiles=0,
        )
        self.jobs.append((job, tiles))

    def products(self) -> list[list[Call]]:
        """Return each thread's part of the sums."""
        lanes = self.layout.lanes
        parts: list[list[Call]] = [[] for _ in range(self.threads)]
        for job, tiles in self.jobs:
            count = -(-job.blocks // 4)
            add = kernel(add_tile_products if tiles else add_outer_products, lanes)
            if not tiles:
                count *= -(-job.features // lanes.rows)
            for part, (first, last) in zip(parts, equal(count, self.threads), strict=True):
                if first == last:
                    continue
                tables = self.scratch.table(TERMS_AT_ONCE + lanes.rows)
                piece = job._replace(first=first, last=last, tables=tables)
                if tiles:
                    piece = piece._replace(tiles=self._tile_job(job.features))
                part.append((add, self.scratch.job(piece)))
        return parts

    def _tile_job(self, features: int) -> int:
        """Return the address of what a thread needs beside, in the matrix unit."""
        layout, scratch = self.layout, self.scratch
        job = TileProductJob(
            left=scratch.numbers(*layout.split_rows(features, TERMS_AT_ONCE)),
            right=scratch.numbers(*layout.split_rows(4 * SIDE, TERMS_AT_ONCE)),
            blocks=scratch.numbers(48, layout.lanes.count),
            configuration=scratch.numbers(16),
        )
        return scratch.job(job)

    def add_to(
        self, d: int, name: str, gradient: HostArray, apart: list[tuple[HostArray, HostArray]]
    ) -> None:
        """Ask for a sum to be added to a gradient; what a kernel cannot add is put `apart`."""
        layout, lanes = self.layout, self.layout.lanes
        if name == "weight_ho":
            apart.append((gradient, self.results[d, name][:, : layout.shape.P]))
            return
        target = gradient
        if not (gradient.flags.c_contiguous and gradient.flags.aligned):
            target = numpy.zeros(gradient.shape, gradient.dtype)
            apart.append((gradient, target))
        H = layout.shape.H
        if name in ("bias_ih", "bias_hh"):
            job = packing.PackingJob(
                address(target), 0, H, 4, 0, 0, address(self.results[d, "bias"]), 1
            )
            self.calls.append((kernel(packing.unpack_bias, lanes), self.scratch.job(job)))
            return
        result = self.results[d, name]
        unpack = kernel(packing.unpack_by_units, lanes)
        for first, last in equal(layout.blocks, self.threads):
            job = packing.PackingJob(
                weight=address(target),
                other=self.scratch.numbers(lanes.count, lanes.count),
                rows=H,
                columns=gradient.shape[1],
                first=first,
                last=last,
                packed=address(result),
                terms=result.shape[1],
            )
            self.calls.append((unpack, self.scratch.job(job)))

    def additions(self) -> list[list[Call]]:
        """Return each thread's part of what `add_to` has asked for."""
        return [self.calls[part :: self.threads] for part in range(self.threads)]
