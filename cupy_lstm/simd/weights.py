"""Weights of a layer as the sweeps want them, packed by the threads of a call."""

from dataclasses import dataclass
from typing import Any

from cupy_lstm.backend import HostArray
from cupy_lstm.notation import LayerWeights
from cupy_lstm.simd import packing
from cupy_lstm.simd.compiled import kernel
from cupy_lstm.simd.layout import Layout, address, contiguous
from cupy_lstm.simd.threads import Crew

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
    """Packs weights, the pieces divided among threads."""

    def __init__(self, layout: Layout, crew: Crew) -> None:
        self._layout, self._crew = layout, crew
        self._calls: list[tuple[Any, ...]] = []
        self._arrays: list[HostArray | None] = []  # alive until they are packed
        self._numbers = 0

    def forward(self, weights: LayerWeights) -> Packed:
        """Pack all weights for products with inputs and outputs."""
        layout = self._layout
        _, _, I, H, P, D = layout.shape  # noqa: E741
        packed = Packed(weights, [], [], [], [])
        for d in range(D):
            for target, weight, terms in (
                (packed.weight_ih, weights.weight_ih, I),
                (packed.weight_hh, weights.weight_hh, P),
            ):
                target.append(layout.empty(terms, layout.gate_width))
                self._add(packing.pack_by_units, [weight[d]], terms, H, into=target[d])
            biases = [None if b is None else b[d] for b in (weights.bias_ih, weights.bias_hh)]
            packed.bias.append(layout.empty(layout.gate_width))
            self._add(packing.pack_bias, biases, H, into=packed.bias[d])
        packed.weight_ho = self.columns(weights.weight_ho, H, P)
        self.finish()
        return packed

    def gate_rows(self, weight: HostArray, columns: int) -> list[HostArray]:
        """Pack [D,4H,N] for products of gates with it."""
        layout = self._layout
        targets = []
        for piece in weight:
            targets.append(layout.empty(layout.gate_width, layout.in_vectors(columns)))
            self._add(packing.pack_gate_rows, [piece], layout.shape.H, columns, into=targets[-1])
        return targets

    def columns(self, weight: HostArray | None, terms: int, columns: int) -> list[HostArray]:
        """Pack [D,K,N] for products with it; [] where there is none."""
        targets = []
        for piece in () if weight is None else weight:
            targets.append(self._layout.empty(terms, self._layout.in_vectors(columns)))
            self._add(packing.pack_columns, [piece], terms, columns, into=targets[-1])
        return targets

    def transposed(self, weight: HostArray | None, columns: int, terms: int) -> list[HostArray]:
        """Pack [D,N,K] for products with its transpose; [] where there is none."""
        targets = []
        for piece in () if weight is None else weight:
            targets.append(self._layout.empty(terms, self._layout.in_vectors(columns)))
            self._add(packing.pack_columns_transposed, [piece], columns, terms, into=targets[-1])
        return targets

    def finish(self) -> None:
        """Pack everything that was asked for."""
        size = self._crew.threads(PACKING_WORK * self._numbers)
        self._crew.run([self._calls[p::size] for p in range(size)], self._arrays)
        self._calls, self._arrays, self._numbers = [], [], 0

    def _add(
        self, function: Any, pieces: list[HostArray | None], *sizes: int, into: HostArray
    ) -> None:
        sources = [None if piece is None else contiguous(piece) for piece in pieces]
        self._arrays += [*sources, into]
        self._numbers += into.size
        lanes = self._layout.lanes
        places = [address(source) for source in sources]
        self._calls.append((kernel(function, lanes), lanes, *places, *sizes, address(into)))
