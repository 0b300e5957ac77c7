"""Gradients of weights and input: sums over the slots that a backward sweep has left.

Every number is summed by one thread in an order that does not depend on how many threads there
are, nor on how a sequence is cut into ranges of steps.
"""

from collections.abc import Mapping, Sequence
from math import prod

import numpy

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
from cupy_lstm.simd.input_gradient import PANEL, InputGradientJob, add_input_gradient
from cupy_lstm.simd.layout import Layout
from cupy_lstm.simd.matrix import ProjectionJob, project_steps
from cupy_lstm.simd.outer_products import ProductJob, SumJob, add_outer_products
from cupy_lstm.simd.places import BEFORE, BY_ROW, BY_SLOT, Places
from cupy_lstm.simd.rows import Rows
from cupy_lstm.simd.scratch import Given, Memory, Shared, address
from cupy_lstm.simd.sharing import equal
from cupy_lstm.simd.stages import Stages
from cupy_lstm.simd.targets import Target, sum_of
from cupy_lstm.simd.threads import Call
from cupy_lstm.simd.weights import Packing

SLOTS_AT_ONCE = 48
"""Slots whose product with a panel of weights is taken while it is in the cache."""

TERMS_AT_ONCE = 96
"""Slots whose outer products are summed while what they have in a group of blocks is cached."""

NEAR = 2**19
"""Bytes of split left rows up to which sums take their right rows together, in the matrix unit: the
second cache has to hold the sums that they are added to, too."""


class Products:
    """The products of a backward pass over a range of steps, as stages.

    Parameters
    ----------
    stages : Stages
        Of the pass, those of the sweep added.
    layout : Layout
        Of the layer.
    rows : sequence of Rows
        Which rows take part, for each direction.
    given : mapping of str to Given
        What the pass is given; see `BackwardPass`. The gates have become the gradients of the
        pre-activations, the cell states outputs before the projection.
    sums : mapping of Target to Given
        Where the sums are that are wanted.
    dh_steps : sequence of array [slots,P]
        Gradient of h after each step, where there is a projection.
    targets : sequence of Target
        The weights to whose gradients the sums are added.
    unset : frozenset of str
        The weights whose gradients are set to them instead; and ``dx`` if that is set.
    first : bool
        Whether the sums begin here.
    """

    def __init__(
        self,
        stages: Stages,
        layout: Layout,
        rows: Sequence[Rows],
        given: Mapping[str, Given],
        sums: Mapping[Target, Given],
        dh_steps: Sequence[Memory],
        targets: Sequence[Target],
        unset: frozenset[str],
        *,
        first: bool,
    ) -> None:
        self.stages, self.layout, self.rows, self.given = stages, layout, rows, given
        self.scratch, self.dh_steps, self.first = stages.scratch, dh_steps, first
        _, B, I, H, P, D = layout.shape  # noqa: E741
        # One row has few slots: a part of its sums in one go, which else would end in a few.
        self.terms = SUMMED_STEPS if B == 1 else TERMS_AT_ONCE
        self.shared = Shared(stages.scratch)
        slots = sum(some.total for some in rows) // D
        self.threads = stages.threads(slots * 4 * H * min(I, P))
        self.zeros = layout.zeros(max(layout.h_width, layout.x_width, 4 * layout.lanes.count))
        self.one = numpy.ones(1, layout.dtype)
        for owned in (self.zeros, self.one):
            self.scratch.keep(owned)
        self.sums = sums
        self.h_steps = self.outputs()
        weight_ih, odd = None, None
        if "dx" in given:
            packing = Packing(stages, layout)
            weight_ih = packing.gate_rows(given["weight_ih"], I, layout.product_tiles)
            odd = packing.odd
        parts = self.sum_parts()
        calls = []
        if weight_ih is not None:
            calls = self.input_gradient(given["dx"], weight_ih, odd, begins="dx" in unset)
        for number, one in enumerate(calls):
            # The first behind the sums, whose parts are fixed: it evens out what they left uneven.
            if number:
                stages.add("gradients", parts)
                parts = [[] for _ in parts]
            for part, call in zip(parts, one, strict=True):
                part.append(call)
        stages.add("gradients", parts)
        additions = self.additions(targets, unset)
        stages.add("gradients", [additions[k :: self.threads] for k in range(self.threads)])

    def outputs(self) -> Sequence[Memory]:
        """Return h after each step [slots,P], there when the stages so far have run."""
        layout, scratch, (_, _, _, H, P, D) = self.layout, self.scratch, self.layout.shape
        m = [self.given[f"cells {d}"] for d in range(D)]
        if "weight_ho" not in self.given:
            return m
        weight_ho = Packing(self.stages, layout).columns(self.given["weight_ho"], H, P)
        outputs = [scratch.memory(rows.total, layout.h_width) for rows in self.rows]
        project = kernel(project_steps, layout.lanes)
        parts: list[list[Call]] = [[] for _ in range(self.threads)]
        for d, rows in enumerate(self.rows):
            for part, (first, last) in zip(parts, equal(rows.total, self.threads), strict=True):
                job = ProjectionJob(
                    first=first,
                    last=last,
                    terms=H,
                    columns=P,
                    m=address(m[d]),
                    m_bytes=layout.c_width * layout.itemsize,
                    out=address(outputs[d]),
                    out_bytes=layout.h_width * layout.itemsize,
                    weight_ho=address(weight_ho[d]),
                    zeros=address(self.zeros),
                    tables=scratch.table(3 * SLOTS_AT_ONCE),
                    chunk=SLOTS_AT_ONCE,
                )
                part.append((project, scratch.job(job)))
        self.stages.add("recomputation", parts)
        return outputs

    def places(
        self,
        d: int,
        kind: int,
        array: Memory,
        time_step: int,
        row_step: int,
        initial: Memory | None = None,
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
        self, dx: Given, weight_ih: Memory, odd: Memory | None, *, begins: bool
    ) -> list[list[Call]]:
        """Return the calls that add the gradient of the input to dx [T,B,I], one a thread.

        `odd` is that of `Packing`. With `begins` they set it, which needs all rows at all times.
        Where both directions are at the same times they have the same slots, and add together; if
        not, they add one after the other, for they may add to the same numbers.
        """
        layout, scratch = self.layout, self.scratch
        ranges = {(min(some.times), max(some.times)) for some in self.rows}
        directions = list(range(layout.shape.D))
        groups = [directions] if len(ranges) == 1 else [[d] for d in directions]
        add = kernel(
            add_tile_input_gradient if layout.product_tiles else add_input_gradient, layout.lanes
        )
        dz = [self.given[f"gates {d}"] for d in directions]
        counters = scratch.counters(len(groups))
        found: list[list[Call]] = []
        for number, group in enumerate(groups):
            d, last = group[0], group[-1]
            places = self.places(d, BY_ROW, dx, dx.strides[0], dx.strides[1])
            job = InputGradientJob(
                counter=address(counters) + number * counters.itemsize,
                chunk=SLOTS_AT_ONCE,
                slots=self.rows[d].total,
                gates=address(dz[d]),
                gates_beside=address(dz[last]) if last > d else 0,
                gate_bytes=layout.gate_width * layout.itemsize,
                weight_ih=address(weight_ih[d]),
                weight_ih_beside=address(weight_ih[last]) if last > d else 0,
                terms=layout.gate_width,
                columns=layout.shape.I,
                zeros=address(self.zeros),
                tables=0,
                scratch=0,
                targets=scratch.job(places),
                begins=begins,
                tiles=0,
            )
            found.append([])
            for thread in range(self.threads):
                tables = scratch.table(4 * SLOTS_AT_ONCE)
                products = self.rows_of_panels(thread)
                tiles = self.tile_job(len(group), odd) if layout.product_tiles else 0
                own = job._replace(tables=tables, scratch=products, tiles=tiles)
                found[-1].append((add, scratch.job(own)))
        return found

    def tile_job(self, sides: int, odd: Memory | None) -> int:
        """Return the address of what a thread needs beside, in the matrix unit."""
        layout, scratch = self.layout, self.scratch
        job = TileInputJob(
            dz=scratch.numbers(sides, *layout.split_rows(SLOTS_AT_ONCE, layout.gate_width)),
            odd=scratch.table(SLOTS_AT_ONCE),
            odd_weights=address(odd),
            sums=scratch.numbers(2, SIDE, layout.x_width),
            configuration=scratch.numbers(16),
        )
        return scratch.job(job)

    def sum_parts(self) -> list[list[Call]]:
        """Return each thread's part of the sums."""
        layout = self.layout
        parts: list[list[Call]] = [[] for _ in range(self.threads)]
        for d in range(layout.shape.D):
            names = [name for direction, name in self.sums if direction == d]
            projection = [name for name in names if name == "weight_ho"]
            gates = [name for name in names if name != "weight_ho"]
            unit = [name for name in gates if layout.product_tiles and self.features(name) > 1]
            split = prod(layout.split_rows(sum(map(self.features, unit)), self.terms))
            for some in [unit] if split * layout.itemsize <= NEAR else [[name] for name in unit]:
                self.add_sums(parts, d, some, unit=True)
            for some in projection, [name for name in gates if name not in unit]:
                self.add_sums(parts, d, some, unit=False)
        return parts

    def features(self, name: str) -> int:
        """Return how many numbers there are in the left row of a sum."""
        _, _, I, H, P, _ = self.layout.shape  # noqa: E741
        return {"weight_ih": I, "weight_hh": P, "bias": 1, "weight_ho": H}[name]

    def rows_of_panels(self, thread: int) -> int:
        """Return scratch of a thread for a panel of the slots that any product takes at once."""
        slots = max(self.terms, SLOTS_AT_ONCE)
        return self.shared.numbers(thread, slots, PANEL * self.layout.lanes.count)

    def add_sums(
        self, parts: Sequence[list[Call]], d: int, names: Sequence[str], *, unit: bool
    ) -> None:
        """Add to each thread's part what it does of some sums that share their right rows."""
        if not names:
            return
        scratch, lanes = self.scratch, self.layout.lanes
        right: Memory = self.given[f"gates {d}"]
        if "weight_ho" in names:
            right = self.dh_steps[d]
        job = ProductJob(
            steps=SUMMED_STEPS,
            right=address(right),
            right_step=right.strides[0],
            blocks=right.shape[1] // lanes.count,
            first=0,
            last=0,
            tiles=sum(-(-self.features(name) // lanes.rows) for name in names),
            chunk=self.terms,
            rows=0,
            copy=0,
            sums=0,
            begin=address(self.zeros) if self.first else 0,
            unit=0,
        )
        groups = -(-job.blocks // 4)
        add = kernel(add_tile_products if unit else add_outer_products, lanes)
        count = groups if unit else groups * job.tiles
        for thread, (first, last) in enumerate(equal(count, self.threads)):
            if first == last:
                continue
            own = job._replace(first=first, last=last)
            if unit:
                own = own._replace(unit=self.sum_tile_job(thread))
            else:
                copy = self.rows_of_panels(thread)
                own = own._replace(rows=scratch.table(2 * lanes.rows), copy=copy)
            following = 0
            for name in reversed(names):
                following = scratch.job(self.sum_job(d, name, unit, following))
            parts[thread].append((add, scratch.job(own._replace(sums=following))))

    def sum_job(self, d: int, name: str, unit: bool, following: int) -> SumJob:
        """Return what a thread does of one sum, and then of the following one."""
        layout, given, scratch = self.layout, self.given, self.scratch
        size, features, out = layout.itemsize, self.features(name), self.sums[d, name]
        if name == "weight_ih":
            x = given["x"]
            left = self.places(d, BY_ROW, x, x.strides[0], x.strides[1])
        elif name == "weight_hh":
            h_bytes = layout.h_width * size
            left = self.places(d, BEFORE, self.h_steps[d], 0, h_bytes, initial=given["h0"][d])
        elif name == "bias":
            left = self.places(d, BY_ROW, self.one, 0, 0)
        else:
            left = self.places(d, BY_SLOT, given[f"cells {d}"], 0, layout.c_width * size)
        by_columns = name == "weight_ho"
        return SumJob(
            features=features,
            left=scratch.job(left),
            table=scratch.table(self.terms),
            out=address(out),
            out_step=out.strides[-2],
            group_step=4 * layout.lanes.count * size if by_columns else out.strides[0],
            split=scratch.numbers(*layout.split_rows(features, self.terms)) if unit else 0,
            following=following,
        )

    def sum_tile_job(self, thread: int) -> int:
        """Return the address of what a thread needs beside for sums in the matrix unit."""
        layout, scratch = self.layout, self.scratch
        sizes = layout.split_rows(4 * SIDE, self.terms)
        job = TileProductJob(
            right=self.shared.numbers(("unit", thread), *sizes),
            blocks=scratch.numbers(48, layout.lanes.count),
            configuration=scratch.numbers(16),
        )
        return scratch.job(job)

    def additions(self, targets: Sequence[Target], unset: frozenset[str]) -> list[Call]:
        """Return what adds the sums to the gradients, but for weight_ho, which is not packed."""
        calls: list[Call] = []
        lanes, H, scratch = self.layout.lanes, self.layout.shape.H, self.scratch
        unpack = kernel(packing.unpack_by_units, lanes)
        for d, name in targets:
            if name == "weight_ho":
                continue
            gradient = self.given[f"gradient {name}"][d]
            total = self.sums[sum_of((d, name))]
            if name.startswith("bias"):
                job = packing.PackingJob(
                    weight=address(gradient),
                    other=0,
                    rows=H,
                    columns=4,
                    first=0,
                    last=0,
                    packed=address(total),
                    terms=1,
                    begins=name in unset,
                )
                calls.append((kernel(packing.unpack_bias, lanes), scratch.job(job)))
                continue
            for first, last in equal(self.layout.blocks, self.threads):
                job = packing.PackingJob(
                    weight=address(gradient),
                    other=scratch.numbers(lanes.count, lanes.count),
                    rows=H,
                    columns=gradient.shape[1],
                    first=first,
                    last=last,
                    packed=address(total),
                    terms=total.shape[1],
                    begins=name in unset,
                )
                calls.append((unpack, scratch.job(job)))
        return calls
