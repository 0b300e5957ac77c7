"""Weights of a layer as the sweeps want them, packed by the threads of a call."""

from dataclasses import dataclass
from typing import Any

from cupy_lstm.backend import HostArray
from cupy_lstm.notation import LayerWeights
from cupy_lstm.simd import packing
from cupy_lstm.simd.compiled import kernel
from cupy_lstm.simd.layout import address, contiguous
from cupy_lstm.simd.sharing import block_ranges
from cupy_lstm.simd.stages import Stages
from cupy_lstm.simd.threads import Call

PACKING_WORK = 20
"""Multiply-adds that take as long as packing a number."""


@dataclass
class Packed:
    """Weights of a layer, packed for the forward sweep; lists have an entry a direction.

    Attributes
    ----------
    weights : LayerWeights
        The weights as they were given.
    weight_ho : list of array
        Empty without a projection.
    """

    weights: LayerWeights
    weight_ih: list[HostArray]
    weight_hh: list[HostArray]
    weight_ho: list[HostArray]
    bias: list[HostArray]


class Packing:
    """A stage that packs weights, large ones divided among threads."""

    def __init__(self, stages: Stages) -> None:
        self._layout, self._stages = stages.layout, stages
        self._parts: list[list[Call]] = [[] for _ in range(stages.crew.size)]
        self._arrays: list[HostArray | None] = []  # alive until they are packed

    def forward(self, weights: LayerWeights) -> Packed:
        """Ask for all weights for products with inputs and outputs."""
        layout = self._layout
        _, _, I, H, P, D = layout.shape  # noqa: E741
        packed = Packed(weights, [], [], [], [])
        for d in range(D):
            for target, weight, terms in (
                (packed.weight_ih, weights.weight_ih, I),
                (packed.weight_hh, weights.weight_hh, P),
            ):
                target.append(layout.empty(terms, layout.gate_width))
                self._divide(packing.pack_by_units, weight[d], terms, H, target[d], layout.blocks)
            biases = [None if b is None else b[d] for b in (weights.bias_ih, weights.bias_hh)]
            packed.bias.append(layout.empty(layout.gate_width))
            self._add(packing.pack_bias, biases, H, into=packed.bias[d])
        packed.weight_ho = self.columns(weights.weight_ho, H, P)
        return packed

    def gate_rows(self, weight: HostArray, columns: int) -> list[HostArray]:
        """Ask for [D,4H,N] for products of gates with it."""
        layout, width = self._layout, self._layout.in_vectors(columns)
        blocks, targets = width // layout.lanes.count, []
        for piece in weight:
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
            self._add(packing.pack_columns, [piece], terms, columns, into=targets[-1])
        return targets

    def transposed(self, weight: HostArray | None, columns: int, terms: int) -> list[HostArray]:
        """Ask for [D,N,K] for products with its transpose; [] where there is none."""
        targets = []
        for piece in () if weight is None else weight:
            targets.append(self._layout.empty(terms, self._layout.in_vectors(columns)))
            self._add(packing.pack_columns_transposed, [piece], columns, terms, into=targets[-1])
        return targets

    def finish(self) -> None:
        """Make what was asked for a stage."""
        self._stages.add("packing", self._parts, *self._arrays)

    def _divide(
        self,
        function: Any,
        weight: HostArray,
        rows: int,
        columns: int,
        into: HostArray,
        blocks: int,
    ) -> None:
        """Divide a matrix as the threads will use it where they divide the units."""
        weight = contiguous(weight)
        threads = self._stages.crew.threads(PACKING_WORK * into.size)
        for part, (first, last) in enumerate(block_ranges(blocks, threads)):
            self._add(function, [weight], rows, columns, first, last, into=into, part=part)

    def _add(
        self,
        function: Any,
        pieces: list[HostArray | None],
        *sizes: int,
        into: HostArray,
        part: int = 0,
    ) -> None:
        sources = [None if piece is None else contiguous(piece) for piece in pieces]
        self._arrays += [*sources, into]
        places, lanes = [address(source) for source in sources], self._layout.lanes
        call = kernel(function, lanes), lanes, *places, *sizes, address(into)
        self._parts[part].append(call)
