"""Every form in which sequences come, as one padded array and the valid lengths of its rows."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy
from sklearn.utils import check_array

from cupy_lstm.backend import Array, HostArray, array_module, is_array, require_same_place
from cupy_lstm.interchange import adopted
from cupy_lstm.lengths import checked_lengths

FLOATS = ("float64", "float32")
"""What values are kept in; others become the first."""


@dataclass(frozen=True)
class Sequences:
    """Sequences of one number of features, padded to the longest.

    Attributes
    ----------
    values : array [N,T,I], float32 or float64
        What it holds beyond a length is never used.
    lengths : int64 array [N] or None
        Valid steps of each sequence, where `values` are; None: all.
    columns : int or None
        k, where they came as X[N,k], k steps of one value; None elsewhere.
    """

    values: Array
    lengths: Array | None
    columns: int | None

    def __len__(self) -> int:
        """Number of sequences."""
        return len(self.values)

    def rows(self, start: int, stop: int) -> "Sequences":
        """Return some of the sequences, as views."""
        lengths = None if self.lengths is None else self.lengths[start:stop]
        return Sequences(self.values[start:stop], lengths, self.columns)

    def take(self, numbers: HostArray) -> "Sequences":
        """Return copies of the sequences with these numbers."""
        there = array_module(self.values).asarray(numbers)
        lengths = None if self.lengths is None else self.lengths[there]
        return Sequences(self.values[there], lengths, self.columns)

    def valid(self) -> Array:
        """Return whether each step is one of its sequence, bool [N,T]."""
        xp, (count, steps, _) = array_module(self.values), self.values.shape
        if self.lengths is None:
            return xp.ones((count, steps), bool)
        return xp.arange(steps) < self.lengths[:, None]


def as_sequences(X: Any, sequence_length: Any = None) -> Sequences:
    """Return sequences in any of their forms as one array, without a copy where there can be.

    Parameters
    ----------
    X : array [N,T,I] or [N,k], or list of arrays [T_n,I] or [T_n]
        [N,k] are k steps of one value, and so is [T_n] in a list. On the host or on a GPU; real
        numbers. Other array-likes, such as tables of pandas and tensors of PyTorch, are taken in.
    sequence_length : array-like of int [N], optional
        Valid steps of each row of an array.

    Raises
    ------
    TypeError
        If it is no array of numbers, or not all on one device.
    ValueError
        If shapes or lengths do not fit, or a value is infinite or not a number; on a GPU values
        are not looked at.
    """
    if _is_list_of_arrays(X):
        if sequence_length is not None:
            raise ValueError(
                "sequence_length is for sequences that are padded to one array, but X is a list "
                "of arrays, each of its own length"
            )
        return _padded(X)
    X = adopted("X", X)
    is_padded = sequence_length is not None
    if not is_array(X) or isinstance(X, numpy.ndarray):
        X = check_array(
            X,
            dtype=FLOATS,
            allow_nd=True,
            ensure_all_finite=not is_padded,
            estimator="the estimator",
            input_name="X",
        )
    values = as_floats("X", X)
    if values.ndim not in (2, 3):
        raise ValueError(
            f"X has shape {list(X.shape)}, but must have shape [samples, steps, features], or "
            "[samples, steps] for steps of one value. Reshape your data"
        )
    columns = values.shape[1] if values.ndim == 2 else None
    values = values[..., None] if values.ndim == 2 else values
    if not values.size:
        raise ValueError(f"X has shape {list(X.shape)}: there is nothing to learn from, or to say")
    batch, steps, _ = values.shape
    lengths = checked_lengths(sequence_length, batch, steps, values, check=False)
    sequences = Sequences(values, lengths, columns)
    if is_padded and isinstance(values, numpy.ndarray):
        _check_finite(sequences)
    return sequences


def _is_list_of_arrays(X: Any) -> bool:
    if isinstance(X, numpy.ndarray):
        is_list = X.dtype == object and X.ndim == 1
    else:
        is_list = isinstance(X, list | tuple)
    return is_list and len(X) > 0 and all(getattr(item, "ndim", 0) > 0 for item in X)


def _padded(X: Sequence[Any]) -> Sequences:
    """Copy sequences into one array, where the first one is."""
    arrays: list[Array] = []
    for index, item in enumerate(X):
        name = f"X[{index}]"
        array = as_floats(name, adopted(name, item))
        array = array[:, None] if array.ndim == 1 else array
        first = arrays[0] if arrays else array
        require_same_place(name, array, first, "the sequences before")
        if array.ndim != 2 or array.shape[1] != first.shape[1]:
            raise ValueError(
                f"{name} has shape {list(item.shape)}, but must have shape [steps, "
                f"{first.shape[1] if first.ndim == 2 else 'features'}]"
            )
        arrays.append(array)
    lengths = [len(array) for array in arrays]
    count, steps, features = len(arrays), max(lengths), arrays[0].shape[1]
    if not steps * features:
        raise ValueError(f"X is a list of {count} sequences without a single value")
    xp = array_module(arrays[0])
    dtype = numpy.result_type(*{array.dtype for array in arrays})
    values = xp.zeros((count, steps, features), dtype)
    for row, array in zip(values, arrays, strict=True):
        row[: len(array)] = array
    same = min(lengths) == steps
    sequences = Sequences(values, None if same else xp.asarray(lengths, "int64"), None)
    if xp is numpy:
        _check_finite(sequences)
    return sequences


def as_floats(name: str, array: Any) -> Array:
    """Return an array of real numbers in one of `FLOATS`, or raise a TypeError."""
    halves = ("float16", "bfloat16")
    if not is_array(array):
        raise TypeError(f"{name} must be an array of numbers, received {type(array).__name__}")
    if array.dtype.name in FLOATS:
        return array
    if array.dtype.kind not in "biuf" and array.dtype.name not in halves:
        raise TypeError(f"{name} must be an array of real numbers, received dtype {array.dtype}")
    return array.astype("float32" if array.dtype.name in halves else "float64")


def _check_finite(sequences: Sequences) -> None:
    wrong = ~numpy.isfinite(sequences.values).all(axis=-1) & sequences.valid()
    if wrong.any():
        row, step = (int(index) for index in numpy.argwhere(wrong)[0])
        raise ValueError(f"X[{row}] holds infinity or NaN at step {step}")
