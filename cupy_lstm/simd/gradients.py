"""Gradients of weights and input: sums over the slots that a backward sweep has left.

Every number is summed by one thread in the order of the slots, so it does not depend on how many
threads there are.
"""

from collections.abc import Sequence

import numpy

from cupy_lstm.backend import HostArray
from cupy_lstm.notation import LayerGradients, LayerWeights, Wanted
from cupy_lstm.simd import packing
from cupy_lstm.simd.compiled import kernel
from cupy_lstm.simd.layout import Layout, Scratch, address, has_rows, row_major
from cupy_lstm.simd.matrix import ProjectionJob, project_steps
from cupy_lstm.simd.products import (
    BEFORE,
    BY_ROW,
    BY_SLOT,
    InputGradientJob,
    Places,
    ProductJob,
    add_input_gradient,
    add_outer_products,
)
from cupy_lstm.simd.rows import Rows
from cupy_lstm.simd.sharing import equal
from cupy_lstm.simd.threads import Call, Crew
from cupy_lstm.simd.weights import Packing

SLOTS_AT_ONCE = 48
"""Slots whose product with a panel of weights is taken while it is in the cache."""

TERMS_AT_ONCE = 96
"""Slots whose outer products are summed while what they have in a group of blocks is cached."""


class Products:
    """The products of one backward pass; lists have an entry a direction.

    Attributes
    ----------
    dz : list of array [slots,4H]
        Gradients of the pre-activations.
    m : list of array [slots,H]
        Outputs before the projection.
    """

    def __init__(
        self,
        layout: Layout,
        team: Crew,
        weights: LayerWeights,
        rows: Sequence[Rows],
        dz: Sequence[HostArray],
        m: Sequence[HostArray],
    ) -> None:
        self.layout, self.team, self.weights = layout, team, weights
        self.rows, self.dz, self.m = rows, dz, m
        slots = sum(some.total for some in rows)
        _, _, I, H, P, D = layout.shape  # noqa: E741
        self.threads = team.threads(slots // D * 4 * H * min(I, P))
        self.zeros = layout.zeros(max(layout.h_width, layout.x_width))

    def add_weight_gradients(
        self,
        wanted: Wanted,
        gradients: LayerGradients,
        x: HostArray,
        h0: HostArray,
        dh_steps: Sequence[HostArray],
    ) -> None:
        """Add the gradients of the weights that are wanted.

        Parameters
        ----------
        x : array [T,B,I]
            Input.
        h0 : array [D,B,...]
            Outputs before the first step, by row.
        dh_steps : sequence of array [slots,P]
            Gradient of h after each step, where there is a projection.
        """
        x, h_steps = row_major(x), self.outputs()
        for d, rows in enumerate(self.rows):
            names = [
                name
                for name, some in zip(wanted._fields, wanted, strict=True)
                if some is not None and d in range(*some.indices(self.layout.shape.D))
            ]
            sums = _Sums(self.layout, self.team, self.threads, rows.total)
            one = numpy.ones(1, self.layout.dtype)
            h_bytes, c_bytes = (
                width * self.layout.itemsize for width in (self.layout.h_width, self.layout.c_width)
            )
            if "weight_ih" in names:
                left = self.places(d, BY_ROW, x, x.strides[0], x.strides[1])
                sums.add_by_units("weight_ih", left, self.layout.shape.I, self.dz[d])
            if "weight_hh" in names:
                left = self.places(d, BEFORE, h_steps[d], 0, h_bytes, initial=h0[d])
                sums.add_by_units("weight_hh", left, self.layout.shape.P, self.dz[d])
            if "bias_ih" in names or "bias_hh" in names:
                left = self.places(d, BY_ROW, one, 0, 0)
                sums.add_by_units("bias", left, 1, self.dz[d])
            if "weight_ho" in names:
                left = self.places(d, BY_SLOT, self.m[d], 0, c_bytes)
                sums.add_by_columns("weight_ho", left, self.layout.shape.H, dh_steps[d])
            sums.run((self, x, h0, h_steps, dh_steps, one))
            for name in names:
                sums.add_to(name, getattr(gradients, name)[d])
            sums.finish()

    def outputs(self) -> Sequence[HostArray]:
        """Return h after each step [slots,P]."""
        layout, (_, _, _, H, P, _) = self.layout, self.layout.shape
        if self.weights.weight_ho is None:
            return self.m
        packed = Packing(layout, self.team)
        weight_ho = packed.columns(self.weights.weight_ho, H, P)
        packed.finish()
        outputs = [layout.empty(rows.total, layout.h_width) for rows in self.rows]
        scratch, project = Scratch(layout), kernel(project_steps, layout.lanes)
        for d, rows in enumerate(self.rows):
            job = ProjectionJob(
                first=0,
                last=0,
                terms=H,
                columns=P,
                m=address(self.m[d]),
                m_bytes=layout.c_width * layout.itemsize,
                out=address(outputs[d]),
                out_bytes=layout.h_width * layout.itemsize,
                weight_ho=address(weight_ho[d]),
                zeros=address(self.zeros),
                tables=0,
                chunk=SLOTS_AT_ONCE,
            )
            parts: list[list[Call]] = []
            for first, last in equal(rows.total, self.threads):
                tables = scratch.table(3 * SLOTS_AT_ONCE)
                part = job._replace(first=first, last=last, tables=tables)
                parts.append([(project, layout.lanes, part)])
            self.team.run(parts, (self, weight_ho, outputs, scratch))
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

    def add_input_gradient(self, dx: HostArray) -> None:
        """Add the gradient of the input to dx [T,B,I], of any strides."""
        layout, I = self.layout, self.layout.shape.I  # noqa: E741
        packed = Packing(layout, self.team)
        weight_ih = packed.gate_rows(self.weights.weight_ih, I)
        packed.finish()
        target = dx if has_rows(dx) else numpy.zeros(dx.shape, dx.dtype)
        add = kernel(add_input_gradient, layout.lanes)
        # Both directions add to the same numbers: one after the other.
        for d, rows in enumerate(self.rows):
            targets = self.places(d, BY_ROW, target, target.strides[0], target.strides[1])
            scratch, parts = Scratch(layout), []
            for first, last in equal(rows.total, self.threads):
                job = InputGradientJob(
                    first=first,
                    last=last,
                    gates=address(self.dz[d]),
                    gate_bytes=layout.gate_width * layout.itemsize,
                    terms=layout.gate_width,
                    columns=I,
                    weight_ih=address(weight_ih[d]),
                    zeros=address(self.zeros),
                    tables=scratch.table(4 * SLOTS_AT_ONCE),
                    scratch=scratch.numbers(SLOTS_AT_ONCE, layout.x_width),
                    chunk=SLOTS_AT_ONCE,
                )
                parts.append([(add, layout.lanes, job, targets)])
            self.team.run(parts, (self, weight_ih, target, scratch))
        if target is not dx:
            numpy.add(dx, target, out=dx)


class _Sums:
    """Sums over slots of the products of two rows each, all taken in one go."""

    def __init__(self, layout: Layout, team: Crew, threads: int, slots: int) -> None:
        self.layout, self.team, self.threads, self.slots = layout, team, threads, slots
        self.results: dict[str, HostArray] = {}
        self.jobs: list[tuple[ProductJob, Places]] = []
        self.calls: list[Call] = []
        self.scratch = Scratch(layout)
        self.apart: list[tuple[HostArray, HostArray]] = []  # gradients and what is to be added

    def add_by_units(self, name: str, left: Places, features: int, dz: HostArray) -> None:
        """Ask for the products of some rows with those of dz."""
        layout, group = self.layout, 4 * self.layout.lanes.count
        result = layout.zeros(layout.blocks, features, group)
        self._add(name, left, features, dz, result, group, features * group)

    def add_by_columns(self, name: str, left: Places, features: int, right: HostArray) -> None:
        """Ask for the products of some rows with others."""
        result = self.layout.zeros(features, right.shape[1])
        group = 4 * self.layout.lanes.count
        self._add(name, left, features, right, result, right.shape[1], group)

    def _add(
        self,
        name: str,
        left: Places,
        features: int,
        right: HostArray,
        result: HostArray,
        out_step: int,
        panel_step: int,
    ) -> None:
        size, lanes, width = self.layout.itemsize, self.layout.lanes, right.shape[1]
        self.results[name] = result
        job = ProductJob(
            slots=self.slots,
            features=features,
            right=address(right),
            right_step=width * size,
            blocks=width // lanes.count,
            out=address(result),
            out_step=out_step * size,
            panel_step=panel_step * size,
            first=0,
            last=0,
            tables=0,
            chunk=TERMS_AT_ONCE,
        )
        self.jobs.append((job, left))

    def run(self, alive: object) -> None:
        """Take all sums; `alive` is what the rows belong to."""
        lanes = self.layout.lanes
        add = kernel(add_outer_products, lanes)
        parts: list[list[Call]] = [[] for _ in range(self.threads)]
        for job, left in self.jobs:
            tiles = -(-job.blocks // 4) * -(-job.features // lanes.rows)
            for part, (first, last) in zip(parts, equal(tiles, self.threads), strict=True):
                tables = self.scratch.table(TERMS_AT_ONCE + lanes.rows)
                piece = job._replace(first=first, last=last, tables=tables)
                part.append((add, lanes, piece, left))
        self.team.run(parts, (self, alive))

    def add_to(self, name: str, gradient: HostArray) -> None:
        """Ask for a sum to be added to a gradient of any strides."""
        layout, lanes = self.layout, self.layout.lanes
        if name == "weight_ho":
            gradient += self.results[name][:, : layout.shape.P]
            return
        target = gradient
        if not (gradient.flags.c_contiguous and gradient.flags.aligned):
            target = numpy.zeros(gradient.shape, gradient.dtype)
            self.apart.append((gradient, target))
        H = layout.shape.H
        if name in ("bias_ih", "bias_hh"):
            unpack = kernel(packing.unpack_bias, lanes)
            self.calls.append((unpack, lanes, address(self.results["bias"]), H, address(target)))
            return
        result = self.results[name]
        unpack = kernel(packing.unpack_by_units, lanes)
        for first, last in equal(layout.blocks, self.threads):
            block = self.scratch.numbers(lanes.count, lanes.count)
            sizes = (result.shape[1], H, first, last, block)
            self.calls.append((unpack, lanes, address(result), *sizes, address(target)))

    def finish(self) -> None:
        """Add all sums to the gradients."""
        size = self.threads
        self.team.run([self.calls[p::size] for p in range(size)], self)
        for gradient, target in self.apart:
            gradient += target
