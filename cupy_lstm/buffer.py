"""Contiguous memory for the weights of both directions of a layer, and who else can write it.

A `Buffer` is one contiguous array per kind of weight and layer, for example all input-hidden
weights [D,4H,I] of a layer with D directions, with its gradient beside it. A `Parameter` is one
row of it, the weight a user sees and sets. So both directions go into one GEMM, and an optimiser
or an all-reduce sees flat memory.
"""

import os
import threading
import weakref
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy

from cupy_lstm.backend import (
    Array,
    HostArray,
    array_module,
    on_device_of,
    sum_dtype,
    to_host,
)

_lending = threading.RLock()
"""Held while it is seen to that a buffer has one loan at a time."""


def _lend_afresh() -> None:
    """Make a new lock in a forked child, where nobody may be left to give the old one back."""
    global _lending
    _lending = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_lend_afresh)


class Buffer:
    """One contiguous array holding the same kind of weight of every direction of a layer.

    Attributes
    ----------
    data : array [D, ...]
        The weights, for those who only read them, or call `Parameter.mark_changed`. Everybody else
        is given them by `lend`.
    gradient : array [D, ...] or None
        Where backward adds, float32 for weights of a half type; None until the first backward.
        Zero wherever nothing was added, but in the rows that are `unset`.
    unset : frozenset of int
        Rows of it that hold anything, and are to be set before anybody sees them.
    version : int
        Counts the changes made through `Parameter`, so that a tape can tell that its weights
        are no longer those of its forward.
    moves : int
        Counts the changes of place or dtype.
    loans : int
        Counts how often `lend` has given the weights away while nobody had them.
    """

    def __init__(self, data: Array) -> None:
        self.data = data
        self.gradient: Array | None = None
        self.unset: frozenset[int] = frozenset()
        self.version = 0
        self.moves = 0
        self.loans = 0
        self._lent: weakref.ref[HostArray] | None = None

    @classmethod
    def from_host(
        cls, rows: Sequence[HostArray], xp: ModuleType, dtype: "numpy.dtype[Any]"
    ) -> "Buffer":
        """Return a buffer of rows that were drawn on the host, one for each direction."""
        return cls(xp.asarray(numpy.stack(rows).astype(dtype)))

    def lend(self) -> Array:
        """Return the weights for others to read and to write, unnoticed, as long as they like.

        On the host all views of it, and what holds on to them, keep the returned array alive, so
        `is_lent` can tell. NumPy would tie a view of a view to the memory itself; it does not look
        behind a memoryview.
        """
        if not isinstance(self.data, numpy.ndarray):
            return self.data
        window = numpy.asarray(self.data.data)
        with _lending:
            lent = None if self._lent is None else self._lent()
            if lent is None:
                lent = window
                self._lent = weakref.ref(lent)
                self.loans += 1  # last: whoever sees the new number finds it lent
        return lent

    def is_lent(self) -> bool:
        """Say whether others may write the weights now; on a GPU nobody knows."""
        if not isinstance(self.data, numpy.ndarray):
            return True
        return self._lent is not None and self._lent() is not None

    def make_gradient(self) -> Array:
        """Return the gradient array to be added to, allocated as zeros on first use."""
        gradient = self.gradient_as_it_is()
        if self.unset:
            with on_device_of(gradient):
                for index in self.unset:
                    gradient[index] = 0
            self.unset = frozenset()
        return gradient

    def gradient_as_it_is(self) -> Array:
        """Return the gradient array, of which the rows in `unset` are to be set, not added to."""
        if self.gradient is None:
            with on_device_of(self.data):
                self.gradient = array_module(self.data).zeros(
                    self.data.shape, sum_dtype(self.data.dtype)
                )
        return self.gradient

    def forget_gradient(self, index: int) -> None:
        """Leave the gradient of a row as it is, to be set before anybody sees it again."""
        if self.gradient is not None:
            self.unset |= {index}

    def drop_gradient(self) -> None:
        """Free the gradient array."""
        self.gradient, self.unset = None, frozenset()

    def moved(self, xp: ModuleType, dtype: "numpy.dtype[Any]") -> "Buffer":
        """Return a buffer with this one's contents in another array module and dtype."""
        buffer = Buffer(_moved(self.data, xp, dtype))
        if self.gradient is not None:
            buffer.gradient = _moved(self.gradient, xp, sum_dtype(dtype))
            buffer.unset = self.unset
        return buffer

    def take(self, other: "Buffer") -> None:
        """Take over the arrays of another buffer."""
        if self.data is not other.data:
            self.data, self._lent = other.data, None
            self.moves += 1
        self.gradient, self.unset = other.gradient, other.unset
        self.version += 1

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy or a pickle has: nobody has borrowed from it."""
        return vars(self) | {"loans": 0, "_lent": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        # Unpickled arrays may lie in memory of others, even such that cannot be written.
        self.data, self.gradient = _own(self.data), _own(self.gradient)


def _own(array: Any) -> Any:
    """Return an array, copied if its memory belongs to somebody else."""
    others = isinstance(array, numpy.ndarray) and not array.flags.owndata
    return numpy.array(array) if others else array


def _moved(array: Array, xp: ModuleType, dtype: "numpy.dtype[Any]") -> Array:
    if xp is numpy:
        return to_host(array).astype(dtype, copy=False)
    return xp.asarray(array).astype(dtype, copy=False)
