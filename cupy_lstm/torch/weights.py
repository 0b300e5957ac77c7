"""The weights of all cells in PyTorch's order, and as the layers that the functional core takes.

PyTorch keeps each weight of each direction as a parameter of its own. The functional core takes
both directions of a kind as one array: no copy where the two lie side by side in memory. That its
projections are transposed is known here, for tensors, and in `cupy_lstm.io.torch_weights`, for a
state dict without PyTorch.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cupy_lstm.backend import Array
from cupy_lstm.notation import LayerGradients, LayerWeights, Wanted
from cupy_lstm.torch.tensors import ARRAY_MODULES, array_of


@dataclass(frozen=True)
class Order:
    """The order of PyTorch: layer by layer, direction by direction, the kinds of each cell.

    Attributes
    ----------
    kinds : tuple of str
        The kinds, by the names of `LayerWeights`.
    directions : int
        D.
    """

    kinds: tuple[str, ...]
    directions: int

    def layers(self, weights: Sequence[Tensor]) -> list[LayerWeights]:
        """Return the weights of all cells as those of layers."""
        return [
            LayerWeights(
                **{kind: _turned(kind, array_of(stacked(pair))) for kind, pair in layer.items()}
            )
            for layer in self._by_kind(weights)
        ]

    def wanted(self, needed: Sequence[bool]) -> list[Wanted]:
        """Return whose gradients are wanted, given one by one whether they are needed."""
        return [
            Wanted(**{"weight_ih": None, "weight_hh": None} | {k: _spanned(f) for k, f in layer})
            for layer in map(dict.items, self._by_kind(needed))
        ]

    def pieces(self, layers: Iterable[LayerGradients]) -> Iterator[Array | None]:
        """Yield the gradients of layers one by one, None where there is none."""
        for layer in layers:
            for d in range(self.directions):
                for kind in self.kinds:
                    gradient = getattr(layer, kind)
                    yield None if gradient is None else _turned(kind, gradient)[d]

    def _by_kind(self, values: Sequence[Any]) -> Iterator[dict[str, tuple[Any, ...]]]:
        """Yield for each layer what belongs to each kind, in a tuple of the directions."""
        n = len(self.kinds)
        for start in range(0, len(values), n * self.directions):
            layer = values[start : start + n * self.directions]
            yield {kind: tuple(layer[index::n]) for index, kind in enumerate(self.kinds)}


def stacked(tensors: Sequence[Tensor]) -> Tensor:
    """Return one tensor, or two of one shape, as one [D,...]: a view of them where that can be."""
    first, last = tensors[0].detach(), tensors[-1].detach()
    if len(tensors) == 1:
        return first[None]
    if side_by_side(first, last):
        return first.as_strided((2, *first.shape), (first.numel(), *first.stride()))
    return torch.stack([first, last])


def lay_side_by_side(first: Tensor, second: Tensor) -> None:
    """Move two parameters of one shape into memory of their own, one behind the other.

    They stay the objects they are. Those are left alone that are side by side already, whose
    memory belongs to other processes, too, or that are something else than plain memory here.
    """
    plain = all(
        type(parameter.data) is Tensor
        and parameter.device.type in ARRAY_MODULES
        and not (parameter.device.type == "cpu" and parameter.is_shared())
        for parameter in (first, second)
    )
    alike = (first.dtype, first.device, first.shape) == (second.dtype, second.device, second.shape)
    if plain and alike and not side_by_side(first, second):
        first.data, second.data = torch.stack([first.detach(), second.detach()])


def side_by_side(first: Tensor, second: Tensor) -> bool:
    """Say whether the second of two tensors of one shape follows the first in the same memory."""
    if not (first.is_contiguous() and second.is_contiguous()):
        return False
    here, there = first.untyped_storage().data_ptr(), second.untyped_storage().data_ptr()
    return (here, first.storage_offset() + first.numel()) == (there, second.storage_offset())


def _turned(kind: str, stack: Array) -> Array:
    """Return a stack of weights as the other side has it: a projection is transposed there."""
    return stack.swapaxes(1, 2) if kind == "weight_ho" else stack


def _spanned(flags: Sequence[bool]) -> slice | None:
    """Return a slice from the first direction whose flag is set to the last; None for none."""
    chosen = [d for d, flag in enumerate(flags) if flag]
    return slice(chosen[0], chosen[-1] + 1) if chosen else None
