"""Windows over a series, and batches of samples."""

from collections.abc import Iterator
from typing import TypeAlias

import numpy

from cupy_lstm.backend import Array, array_module, is_array, require_same_place
from cupy_lstm.checks import checked_integer
from cupy_lstm.epochs import Epochs
from cupy_lstm.interchange import adopted, array_beside

Inputs: TypeAlias = Array | tuple[Array, ...]
"""What a model is called with: one array, or one for each of its arguments."""


def sliding_windows(series: Array, length: int, stride: int = 1) -> Array:
    """Return all windows of a series as a view: nothing is copied.

    Parameters
    ----------
    series : array [N, ...]
        Steps along the first axis.
    length : int
        Steps of a window, at most N.
    stride : int
        Steps from the beginning of a window to that of the next.

    Returns
    -------
    array [n, length, ...]
        n = (N - length) // stride + 1 windows, oldest first. Windows share memory with `series`
        and with each other: the view is read-only on NumPy; on CuPy, which has no read-only
        arrays, do not write into it.

    Raises
    ------
    TypeError
        If `series` is no array, or a number is no integer.
    ValueError
        If the series is shorter than a window, or a number is not positive.

    Examples
    --------
    >>> import numpy
    >>> windows = sliding_windows(numpy.arange(6), 4)
    >>> windows[:, :3], windows[:, 3:]  # three steps to see, one to forecast
    (array([[0, 1, 2],
           [1, 2, 3],
           [2, 3, 4]]), array([[3],
           [4],
           [5]]))
    """
    series = _checked_array("series", series)
    length = checked_integer("length", length)
    stride = checked_integer("stride", stride)
    steps = series.shape[0]
    if steps < length:
        raise ValueError(f"series has {steps} steps, a window of length {length} needs more")
    shape = ((steps - length) // stride + 1, length, *series.shape[1:])
    strides = (series.strides[0] * stride, *series.strides)
    xp = array_module(series)
    # CuPy's own sliding_window_view reads a device array back, as_strided does not.
    read_only = {"writeable": False} if xp is numpy else {}
    windows: Array = xp.lib.stride_tricks.as_strided(series, shape, strides, **read_only)
    return windows


class Batches(Epochs):
    """Samples in batches, in another order every epoch if wanted; iterate as often as you like.

    Only the rows of a batch are copied, so inputs may be a view as large as `sliding_windows`
    makes. Each iteration is one epoch. Its order depends on `seed` and on the epoch's number
    alone, so it is the same on NumPy and CuPy, and after `epoch` was set. On CuPy the order
    goes to the device once an epoch; nothing is read back.

    Parameters
    ----------
    inputs : array [N, ...], or tuple of arrays [N, ...]
        Samples along the first axis; a tuple for a model of several arguments.
    targets : array [N, ...]
        What the model should say.
    batch_size : int
        Samples of a batch.
    shuffle : bool
        Whether to draw a new order for every epoch.
    seed : int, optional
        Seed of the orders; default: a fresh one from the operating system.
    drop_last : bool
        Whether to leave out a last batch of fewer samples.
    weights : array [N], optional
        Factor of each sample's loss; batches are (inputs, targets, weights) then.

    Attributes
    ----------
    seed : int
        The seed in use.

    Raises
    ------
    TypeError
        If an argument has the wrong type, or the arrays live in different places.
    ValueError
        If they differ in their number of samples, or a number is out of its range.
    """

    def __init__(
        self,
        inputs: Inputs,
        targets: Array,
        batch_size: int,
        *,
        shuffle: bool = False,
        seed: int | None = None,
        drop_last: bool = False,
        weights: Array | None = None,
    ) -> None:
        named = {"inputs": inputs}
        if isinstance(inputs, tuple):
            named = {f"inputs[{index}]": array for index, array in enumerate(inputs)}
        if not named:
            raise ValueError("inputs is an empty tuple")
        several = tuple(_checked_array(name, array) for name, array in named.items())
        for name, array in zip(named, several, strict=True):
            require_same_place(name, array, several[0], "the first inputs")
            _check_samples(name, array, several[0])
        targets = array_beside("targets", targets, several[0], "the inputs")
        _check_axes("targets", targets)
        _check_samples("targets", targets, several[0])
        if weights is not None:
            weights = array_beside("weights", weights, several[0], "the inputs")
            _check_axes("weights", weights)
            _check_samples("weights", weights, several[0])
        super().__init__(targets.shape[0], batch_size, shuffle, seed, drop_last)
        self._inputs: Inputs = several if isinstance(inputs, tuple) else several[0]
        self._targets = targets
        self._weights = weights

    def settings(self) -> dict[str, object]:
        """Return what was chosen when it was made, by name, and the kinds of its arrays."""
        inputs = self._inputs if isinstance(self._inputs, tuple) else (self._inputs,)
        return {
            "inputs": [kind_of(array) for array in inputs],
            "targets": kind_of(self._targets),
            "weights": None if self._weights is None else kind_of(self._weights),
            "batch_size": self.batch_size,
            "shuffle": self._shuffle,
            "drop_last": self._drop_last,
        }

    def _batches(self, epoch: int) -> Iterator[tuple[Inputs, Array] | tuple[Inputs, Array, Array]]:
        """Yield (inputs, targets), inputs as a tuple if given as one; then weights, if any."""
        xp, samples = array_module(self._targets), self._samples
        order = None
        if self._shuffle:
            generator = numpy.random.default_rng((self.seed, epoch))
            order = xp.asarray(generator.permutation(samples))
        for index in range(len(self)):
            start = index * self.batch_size
            stop = min(start + self.batch_size, samples)
            rows = xp.arange(start, stop) if order is None else order[start:stop]
            batch = _chosen(self._inputs, rows), _chosen(self._targets, rows)
            yield batch if self._weights is None else (*batch, _chosen(self._weights, rows))


def _chosen(arrays: Inputs, rows: Array) -> Inputs:
    """Return a contiguous copy of the rows of an array, or of each array of a tuple."""
    if isinstance(arrays, tuple):
        return tuple(_chosen(array, rows) for array in arrays)
    # Indexing copies, but may keep the order in which the axes of `arrays` lie in memory.
    return array_module(rows).ascontiguousarray(arrays[rows])


def kind_of(array: Array) -> str:
    """Return dtype and shape of an array in words."""
    return f"{array.dtype} {list(array.shape)}"


def _checked_array(name: str, value: object) -> Array:
    array = adopted(name, value)
    if not is_array(array):
        raise TypeError(
            f"{name} must be an array of numpy or cupy, received {type(value).__name__}"
        )
    _check_axes(name, array)
    return array


def _check_axes(name: str, array: Array) -> None:
    if not array.ndim:
        raise ValueError(f"{name} has no axes, the first one must be that of steps or samples")


def _check_samples(name: str, array: Array, first: Array) -> None:
    if array.shape[0] != first.shape[0]:
        raise ValueError(f"{name} has {array.shape[0]} samples, but inputs have {first.shape[0]}")
