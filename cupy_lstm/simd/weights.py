"""Weights of a layer as the sweeps want them, packed by the threads of a call."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy

from cupy_lstm.backend import Array, HostArray
from cupy_lstm.notation import LayerWeights
from cupy_lstm.simd import packing
from cupy_lstm.simd.amx.packing import SplitJob, split_by_columns, split_by_units
from cupy_lstm.simd.compiled import kernel
from cupy_lstm.simd.input_gradient import PANEL
from cupy_lstm.simd.layout import Layout, in_order, layout_of, uses_tiles
from cupy_lstm.simd.ready import Passes
from cupy_lstm.simd.scratch import Memory, address
from cupy_lstm.simd.sharing import block_ranges
from cupy_lstm.simd.stages import Stages
from cupy_lstm.simd.threads import Call, Crew

PACKING_WORK = 20
"""Multiply-adds that take as long as packing a number."""


LARGEST = 2**21
"""Bytes of the memory of a pass that is kept with the weights."""


class Packed(NamedTuple):
    """Weights of a layer, packed for the forward sweep, the directions stacked in front.

    Attributes
    ----------
    weight_ih, weight_hh, weight_ho, bias : array [D,...]
        `weight_ho` is None without a projection.
    odd : array [1] of int64
        Whether weights that are split for the matrix unit have infinite numbers or NaN.
    """

    weight_ih: Array
    weight_hh: Array
    weight_ho: Array | None
    bias: Array
    odd: Array


def room_for_packed(
    layout: Layout, projected: bool, room: Callable[..., Memory], odd: Memory
) -> Packed:
    """Return where the weights of a layer are packed to, in memory that `room` makes by sizes."""
    _, _, I, H, P, D = layout.shape  # noqa: E741

    def columns(terms: int) -> Memory:
        if layout.tiles:
            return room(D, *layout.split_columns(4 * layout.blocks, terms))
        return room(D, terms, layout.gate_width)

    return Packed(
        weight_ih=columns(I),
        weight_hh=columns(P),
        weight_ho=None if not projected else room(D, H, layout.h_width),
        bias=room(D, layout.gate_width),
        odd=odd,
    )


class Packing:
    """A stage that packs weights, large ones divided among threads.

    Attributes
    ----------
    odd : array [1] of int64
        Is set where weights that are split for the matrix unit have infinite numbers or NaN.
    """

    def __init__(self, stages: Stages, layout: Layout, odd: Memory | None = None) -> None:
        self._layout, self._stages, self._scratch = layout, stages, stages.scratch
        self._parts: list[list[Call]] = [[] for _ in range(stages.team)]
        self.odd = self._scratch.counters(1) if odd is None else odd
        stages.add("packing", self._parts)

    def forward(self, weights: LayerWeights, packed: Packed) -> None:
        """Pack all weights for products with inputs and outputs."""
        layout = self._layout
        _, _, I, H, P, D = layout.shape  # noqa: E741
        for d in range(D):
            for target, weight, terms in (
                (packed.weight_ih[d], weights.weight_ih[d], I),
                (packed.weight_hh[d], weights.weight_hh[d], P),
            ):
                if layout.tiles:
                    self._split(split_by_units, weight, target, layout.blocks)
                else:
                    self._divide(packing.pack_by_units, weight, H, terms, target, layout.blocks)
            first, second = (
                None if bias is None else bias[d] for bias in (weights.bias_ih, weights.bias_hh)
            )
            self._add(packing.pack_bias, first, H, 4, packed.bias[d], other=second)
        if weights.weight_ho is not None and packed.weight_ho is not None:
            self._columns(weights.weight_ho, H, P, packed.weight_ho)

    def gate_rows(self, weight: Memory, columns: int, tiles: bool) -> Memory:
        """Pack [D,4H,N] for products of gates with it, in the matrix unit or not."""
        layout, width = self._layout, self._layout.in_vectors(columns)
        blocks, D = width // layout.lanes.count, layout.shape.D
        sizes: tuple[int, ...] = (layout.gate_width, width)
        if tiles:
            sizes = layout.split_columns(blocks, layout.gate_width)
        targets = self._scratch.memory(D, *sizes)
        for d in range(D):
            if tiles:
                self._split(split_by_columns, weight[d], targets[d], blocks)
            else:
                function, H = packing.pack_gate_rows, layout.shape.H
                self._divide(function, weight[d], H, columns, targets[d], blocks)
        return targets

    def columns(self, weight: Memory, terms: int, columns: int) -> Memory:
        """Pack [D,K,N] for products with it."""
        D = self._layout.shape.D
        targets = self._scratch.memory(D, terms, self._layout.in_vectors(columns))
        self._columns(weight, terms, columns, targets)
        return targets

    def transposed(self, weight: Memory, columns: int, terms: int) -> Memory:
        """Pack [D,N,K] for products with its transpose."""
        D = self._layout.shape.D
        targets = self._scratch.memory(D, terms, self._layout.in_vectors(columns))
        for d in range(D):
            self._add(packing.pack_columns_transposed, weight[d], columns, terms, targets[d])
        return targets

    def _columns(self, weight: Memory, terms: int, columns: int, targets: Memory) -> None:
        for d in range(self._layout.shape.D):
            self._add(packing.pack_columns, weight[d], terms, columns, targets[d])

    def _divide(
        self, function: Any, weight: Memory, rows: int, columns: int, into: Memory, blocks: int
    ) -> None:
        """Divide a matrix about as the threads will use it where they divide the units."""
        threads = self._stages.threads(PACKING_WORK * into.size)
        for part, (first, last) in enumerate(block_ranges(blocks, threads, PANEL)):
            self._add(function, weight, rows, columns, into, first=first, last=last, part=part)

    def _split(self, function: Any, weight: Memory, into: Memory, blocks: int) -> None:
        """Divide a matrix [4H,N] to be split for the matrix unit."""
        lanes, scratch = self._layout.lanes, self._scratch
        threads = self._stages.threads(PACKING_WORK * into.size)
        for part, (first, last) in enumerate(block_ranges(blocks, threads, PANEL)):
            job = SplitJob(
                weight=address(weight),
                units=self._layout.shape.H,
                columns=weight.shape[1],
                first=first,
                last=last,
                packed=address(into),
                odd=address(self.odd),
                scratch=scratch.numbers(32, lanes.count),
            )
            self._parts[part].append((kernel(function, lanes), scratch.job(job)))

    def _add(
        self,
        function: Any,
        weight: Memory | None,
        rows: int,
        columns: int,
        into: Memory,
        *,
        other: Memory | None = None,
        first: int = 0,
        last: int = 0,
        part: int = 0,
    ) -> None:
        job = packing.PackingJob(
            weight=address(weight),
            other=address(other),
            rows=rows,
            columns=columns,
            first=first,
            last=last,
            packed=address(into),
            terms=columns,
            begins=0,
        )
        self._parts[part].append((kernel(function, self._layout.lanes), self._scratch.job(job)))


class Prepared:
    """The weights of a layer, and what was packed of them: for vectors, and for the matrix unit.

    Parameters
    ----------
    weights : LayerWeights
        They must not change.

    Attributes
    ----------
    passes : Passes
        Those that have these weights.
    """

    def __init__(self, weights: LayerWeights) -> None:
        self.weights = weights
        self.passes = Passes(most=8, largest=LARGEST)
        self._packed: dict[bool, Packed] = {}

    def packed(self, batch: int, crew: Crew, team: int) -> Packed:
        """Return them for calls of so many rows, packed now if they are not, by so many threads."""
        tiles = uses_tiles(batch, self.weights)
        if tiles not in self._packed:
            layout = layout_of(0, batch, self.weights)
            weights = numbers_in_order(self.weights)
            stages = Stages(layout, team)
            projected = weights.weight_ho is not None
            packed = room_for_packed(layout, projected, layout.empty, numpy.zeros(1, "int64"))
            Packing(stages, layout, packed.odd).forward(weights, packed)
            stages.run(crew, {}, (weights, packed))
            self._packed[tiles] = packed
        return self._packed[tiles]


def numbers_in_order(weights: LayerWeights) -> LayerWeights:
    """Return the weights, copied where they are not one aligned piece of memory."""
    return LayerWeights(*[None if weight is None else in_order(weight) for weight in weights])


def named(weights: LayerWeights) -> dict[str, HostArray]:
    """Return weights by the names they have in passes."""
    pairs = zip(weights._fields, weights, strict=True)
    return {name: array for name, array in pairs if array is not None}
