"""Weights of a layer as the sweeps want them, packed by the threads of a call."""

from dataclasses import dataclass
from typing import Any

import numpy

from cupy_lstm.backend import HostArray
from cupy_lstm.notation import LayerWeights
from cupy_lstm.simd import packing
from cupy_lstm.simd.amx.packing import SplitJob, split_by_columns, split_by_units
from cupy_lstm.simd.compiled import kernel
from cupy_lstm.simd.layout import Scratch, address, contiguous, layout_of, uses_tiles
from cupy_lstm.simd.products import PANEL
from cupy_lstm.simd.sharing import block_ranges
from cupy_lstm.simd.stages import Stages
from cupy_lstm.simd.threads import Call, Crew

PACKING_WORK = 20
"""Multiply-adds that take as long as packing a number."""


class ReadySweeps(dict[Any, Any]):
    """Sweeps by what they are for. A copy is empty: they hold addresses of their own memory."""

    def __reduce__(self) -> tuple[type["ReadySweeps"], tuple[()]]:
        return ReadySweeps, ()


@dataclass
class Packed:
    """Weights of a layer, packed for the forward sweep; lists have an entry a direction.

    Attributes
    ----------
    weights : LayerWeights
        The weights as they were given.
    odd : array [1] of int64
        Whether weights that are split for the matrix unit have infinite numbers or NaN.
    weight_ho : list of array
        Empty without a projection.
    """

    weights: LayerWeights
    odd: HostArray
    weight_ih: list[HostArray]
    weight_hh: list[HostArray]
    weight_ho: list[HostArray]
    bias: list[HostArray]

    @property
    def products(self) -> int:
        """Multiply-adds of a row and step."""
        size: int = self.weights.weight_ih.size + self.weights.weight_hh.size
        return size


class Packing:
    """A stage that packs weights, large ones divided among threads.

    Attributes
    ----------
    odd : array [1] of int64
        Whether weights that were split for the matrix unit have infinite numbers or NaN.
    """

    def __init__(self, stages: Stages) -> None:
        self._layout, self._stages = stages.layout, stages
        self._parts: list[list[Call]] = [[] for _ in range(stages.crew.size)]
        self._scratch = Scratch(stages.layout)
        self._arrays: list[HostArray | None] = []  # alive until they are packed
        self.odd = numpy.zeros(1, "int64")

    def forward(self, weights: LayerWeights) -> Packed:
        """Ask for all weights for products with inputs and outputs."""
        layout = self._layout
        _, _, I, H, P, D = layout.shape  # noqa: E741
        packed = Packed(weights, self.odd, [], [], [], [])
        for d in range(D):
            for target, weight, terms in (
                (packed.weight_ih, weights.weight_ih, I),
                (packed.weight_hh, weights.weight_hh, P),
            ):
                if layout.tiles:
                    target.append(layout.split_columns(4 * layout.blocks, terms))
                    self._split(split_by_units, weight[d], target[d], layout.blocks)
                    continue
                target.append(layout.empty(terms, layout.gate_width))
                self._divide(packing.pack_by_units, weight[d], H, terms, target[d], layout.blocks)
            first, second = (
                None if bias is None else contiguous(bias[d])
                for bias in (weights.bias_ih, weights.bias_hh)
            )
            packed.bias.append(layout.empty(layout.gate_width))
            self._add(packing.pack_bias, first, H, 4, packed.bias[d], other=second)
        packed.weight_ho = self.columns(weights.weight_ho, H, P)
        return packed

    def gate_rows(self, weight: HostArray, columns: int, tiles: bool) -> list[HostArray]:
        """Ask for [D,4H,N] for products of gates with it, in the matrix unit or not."""
        layout, width = self._layout, self._layout.in_vectors(columns)
        blocks, targets = width // layout.lanes.count, []
        for piece in weight:
            if tiles:
                targets.append(layout.split_columns(blocks, layout.gate_width))
                self._split(split_by_columns, piece, targets[-1], blocks)
                continue
            targets.append(layout.empty(layout.gate_width, width))
            self._divide(
                packing.pack_gate_rows, piece, layout.shape.H, columns, targets[-1], blocks
            )
        return targets

    def columns(self, weight: HostArray | None, terms: int, columns: int) -> list[HostArray]:
        """Ask for [D,K,N] for products with it; [] where there is none."""
        targets = []
        for piece in () if weight is None else weight:
            targets.append(self._layout.empty(terms, self._layout.in_vectors(columns)))
            self._add(packing.pack_columns, contiguous(piece), terms, columns, targets[-1])
        return targets

    def transposed(self, weight: HostArray | None, columns: int, terms: int) -> list[HostArray]:
        """Ask for [D,N,K] for products with its transpose; [] where there is none."""
        targets = []
        for piece in () if weight is None else weight:
            targets.append(self._layout.empty(terms, self._layout.in_vectors(columns)))
            source = contiguous(piece)
            self._add(packing.pack_columns_transposed, source, columns, terms, targets[-1])
        return targets

    def finish(self) -> None:
        """Make what was asked for a stage."""
        self._stages.add("packing", self._parts, self._scratch, *self._arrays)

    def _divide(
        self,
        function: Any,
        weight: HostArray,
        rows: int,
        columns: int,
        into: HostArray,
        blocks: int,
    ) -> None:
        """Divide a matrix about as the threads will use it where they divide the units."""
        weight = contiguous(weight)
        threads = self._stages.crew.threads(PACKING_WORK * into.size)
        for part, (first, last) in enumerate(block_ranges(blocks, threads, PANEL)):
            self._add(function, weight, rows, columns, into, first=first, last=last, part=part)

    def _split(self, function: Any, weight: HostArray, into: HostArray, blocks: int) -> None:
        """Divide a matrix [4H,N] to be split for the matrix unit."""
        weight, scratch = contiguous(weight), self._scratch
        threads = self._stages.crew.threads(PACKING_WORK * into.size)
        self._arrays += [weight, into, self.odd]
        for part, (first, last) in enumerate(block_ranges(blocks, threads, PANEL)):
            job = SplitJob(
                weight=address(weight),
                units=self._layout.shape.H,
                columns=weight.shape[1],
                first=first,
                last=last,
                packed=address(into),
                odd=address(self.odd),
                scratch=scratch.numbers(32, self._layout.lanes.count),
            )
            call = kernel(function, self._layout.lanes), scratch.job(job)
            self._parts[part].append(call)

    def _add(
        self,
        function: Any,
        weight: HostArray | None,
        rows: int,
        columns: int,
        into: HostArray,
        *,
        other: HostArray | None = None,
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
        )
        self._arrays += [weight, other, into]
        call = kernel(function, self._layout.lanes), self._scratch.job(job)
        self._parts[part].append(call)


def pack(weights: LayerWeights, stages: Stages) -> Packed:
    """Return the weights as they are when the stages have run."""
    packing = Packing(stages)
    packed = packing.forward(weights)
    packing.finish()
    return packed


class Prepared:
    """The weights of a layer, and what was packed of them: for vectors, and for the matrix unit.

    Parameters
    ----------
    weights : LayerWeights
        They must not change.

    Attributes
    ----------
    ready : ReadySweeps
        Those that have these weights, for `cupy_lstm.simd.ready`.
    """

    def __init__(self, weights: LayerWeights) -> None:
        self.weights = weights
        self.ready = ReadySweeps()
        self._packed: dict[bool, Packed] = {}

    def packed(self, batch: int, crew: Crew) -> Packed:
        """Return them for calls of so many rows, packed now if they are not."""
        tiles = uses_tiles(batch, self.weights)
        found = self._packed.get(tiles)
        if found is None:
            stages = Stages(layout_of(0, batch, self.weights), crew)
            found = pack(self.weights, stages)
            stages.run()
            self._packed[tiles] = found
        return found
