"""Batches of windows over a series that is larger than memory."""

from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import accumulate
from types import ModuleType
from typing import Any, TypeAlias

import numpy

from cupy_lstm.backend import (
    HostArray,
    import_module,
    is_array,
    location,
    module_name,
    require_device,
)
from cupy_lstm.checks import checked_boolean, checked_integer
from cupy_lstm.epochs import Epochs
from cupy_lstm.read_ahead import read_ahead
from cupy_lstm.stored_series import Series
from cupy_lstm.windows import sliding_windows

Split: TypeAlias = Callable[[HostArray], tuple[Any, ...]]
"""A function of windows [B, length, ...] to (inputs, targets); inputs may be a tuple of arrays."""

BLOCKS = 16
"""Places of a series whose windows are shuffled together."""


class StreamedBatches(Epochs):
    """Windows over a stored series in batches; a thread reads them ahead.

    What `Batches` does for ``split(sliding_windows(series, length, stride))``, for a series that is
    read a part at a time. Each iteration is one epoch, whose order depends on `seed` and on the
    epoch's number alone, as it does there.

    In order, `buffer` windows after the other are read at once. Shuffled, the series is cut into
    blocks of ``buffer / 16`` windows; blocks from 16 random places are read, their windows shuffled
    together and given out, then those of the next 16. A series of no more than `buffer` windows is
    shuffled as a whole, into the very order of `Batches`.

    In memory are the steps of `buffer` windows, each once however many windows of a block share it,
    beside those of the block that is being read, and ``ahead + 1`` batches. A block begins with new
    steps: in blocks, ``1 + (length - 1) / (stride * buffer / 16)`` times as many steps as in order
    are read in an epoch, and held, at most. A buffer of ``16 * length / stride`` windows or more
    keeps that below two.

    Parameters
    ----------
    series : array-like [N, ...]
        Steps along the first axis: what `open_series` returns, or anything with ``shape``,
        ``dtype`` and slices that NumPy can read.
    length : int
        Steps of a window, at most N.
    split : callable
        Cuts windows [B, length, ...] into a tuple (inputs, targets), for example
        ``lambda windows: (windows[:, :-1], windows[:, -1])``, and converts their dtype where
        need be. Called in the thread, on windows of its own.
    batch_size : int
        Windows of a batch.
    stride : int
        Steps from the beginning of a window to that of the next.
    shuffle : bool
        Whether to draw a new order for every epoch.
    seed : int, optional
        Seed of the orders; default: a fresh one from the operating system.
    drop_last : bool
        Whether to leave out a last batch of fewer windows.
    buffer : int
        Windows that are read, and shuffled, together.
    ahead : int
        Batches that are made ahead; 0 for none, and no thread.
    xp : module or str
        ``numpy`` or ``cupy``: where the batches go. With CuPy each is copied to the current device,
        on the current stream, when it is taken.

    Attributes
    ----------
    seed : int
        The seed in use.

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong type or an impossible value, or `split` fails on the first
        window, which is read to try it.
    ImportError, RuntimeError
        If `xp` is CuPy and cannot be imported, or finds no GPU.

    Examples
    --------
    >>> import numpy
    >>> from cupy_lstm import StreamedBatches
    >>> series = numpy.arange(6.0)  # or open_series("series.npy")
    >>> batches = StreamedBatches(series, 3, lambda windows: (windows[:, :2], windows[:, 2]), 2)
    >>> [targets for inputs, targets in batches]
    [array([2., 3.]), array([4., 5.])]
    """

    def __init__(
        self,
        series: Series,
        length: int,
        split: Split,
        batch_size: int,
        *,
        stride: int = 1,
        shuffle: bool = False,
        seed: int | None = None,
        drop_last: bool = False,
        buffer: int = 16384,
        ahead: int = 2,
        xp: str | ModuleType = "numpy",
    ) -> None:
        self._series = _checked_series(series)
        self._length = checked_integer("length", length)
        self._stride = checked_integer("stride", stride)
        self._buffer = checked_integer("buffer", buffer)
        self._ahead = checked_integer("ahead", ahead, 0)
        self._module = module_name(xp)
        require_device(self._module)
        steps = series.shape[0]
        if steps < self._length:
            raise ValueError(f"series has {steps} steps, a window of length {length} needs more")
        super().__init__(
            (steps - self._length) // self._stride + 1,
            batch_size,
            checked_boolean("shuffle", shuffle),
            seed,
            checked_boolean("drop_last", drop_last),
        )
        if not callable(split):
            raise TypeError(f"split must be callable, received {split!r}")
        self._split = split
        windows, firsts = self._read([range(1)])
        self._dtype = windows.dtype
        self._made([windows[firsts]])  # what fails shall fail here, and not in a thread

    def settings(self) -> dict[str, object]:
        """Return what was chosen when it was made, by name; the order depends on it."""
        return {
            "series": f"{self._series.dtype} {list(self._series.shape)}",
            "length": self._length,
            "split": self._split,
            "stride": self._stride,
            "batch_size": self.batch_size,
            "shuffle": self._shuffle,
            "drop_last": self._drop_last,
            "buffer": self._buffer,
        }

    def _batches(self, epoch: int) -> Iterator[tuple[Any, ...]]:
        """Yield batches where they are wanted; this alone runs in the thread of the caller."""
        xp = import_module(self._module)
        with closing(read_ahead(self._read_batches(epoch), self._ahead)) as batches:
            for batch in batches:
                yield _each(xp.asarray, batch)

    def _read_batches(self, epoch: int) -> Iterator[tuple[Any, ...]]:
        parts: list[HostArray] = []
        missing = self.batch_size
        for blocks, order in self._reads(epoch):
            windows, firsts = self._read(blocks)
            chosen = firsts[order]
            while chosen.size:
                parts.append(windows[chosen[:missing]])
                chosen = chosen[missing:]
                missing -= len(parts[-1])
                if not missing:
                    yield self._made(parts)
                    parts, missing = [], self.batch_size
            del windows  # before the next ones are read
        if parts and not self._drop_last:
            yield self._made(parts)

    def _reads(self, epoch: int) -> Iterator[tuple[list[range], HostArray]]:
        """Yield what is read together: blocks of windows, and the order of all in them."""
        samples, shuffled = self._samples, self._shuffle and self._samples > self._buffer
        size = max(1, self._buffer // BLOCKS) if shuffled else self._buffer
        blocks = [range(first, min(first + size, samples)) for first in range(0, samples, size)]
        together = 1
        generator = numpy.random.default_rng((self.seed, epoch))
        if shuffled:
            blocks = [blocks[index] for index in generator.permutation(len(blocks))]
            together = BLOCKS
        for group in range(0, len(blocks), together):
            read = blocks[group : group + together]
            windows = sum(map(len, read))
            yield read, generator.permutation(windows) if self._shuffle else numpy.arange(windows)

    def _read(self, blocks: list[range]) -> tuple[HostArray, HostArray]:
        """Read blocks; return a view of all windows over what was read, and which ones are meant.

        Between two blocks there are windows that no series has.
        """
        firsts = [self._stride * numpy.arange(len(block)) for block in blocks]
        if len(blocks) == 1:
            return sliding_windows(self._steps(blocks[0]), self._length), firsts[0]
        ends = [*accumulate(int(first[-1]) + self._length for first in firsts)]
        # Filled part by part: all of them and what is joined of them would be twice the memory.
        read = numpy.empty((ends[-1], *self._series.shape[1:]), self._dtype)
        for block, first, start, end in zip(blocks, firsts, [0, *ends], ends, strict=False):
            read[start:end] = self._steps(block)
            first += start
        return sliding_windows(read, self._length), numpy.concatenate(firsts)

    def _steps(self, block: range) -> HostArray:
        start, stop = block[0] * self._stride, block[-1] * self._stride + self._length
        return numpy.asarray(self._series[start:stop])

    def _made(self, parts: list[HostArray]) -> tuple[Any, ...]:
        """Return the batch of some windows."""
        windows = parts[0] if len(parts) == 1 else numpy.concatenate(parts)
        batch = self._split(windows)
        if not isinstance(batch, tuple) or len(batch) < 2:
            raise TypeError(
                f"split must return a tuple (inputs, targets), received {type(batch).__name__}"
            )
        contiguous: tuple[Any, ...] = _each(_contiguous, batch)
        return contiguous


def _each(function: Callable[[Any], Any], value: Any) -> Any:
    """Apply a function to each array of nested tuples."""
    if isinstance(value, tuple):
        return tuple(_each(function, part) for part in value)
    return function(value)


def _contiguous(array: object) -> HostArray:
    if not isinstance(array, numpy.ndarray):
        raise TypeError(f"split must return arrays of numpy, received {type(array).__name__}")
    return numpy.ascontiguousarray(array)


def _checked_series(series: Any) -> Any:
    missing = [name for name in ("shape", "dtype", "__getitem__") if not hasattr(series, name)]
    if missing:
        raise TypeError(
            f"series must have shape, dtype and slices, received {type(series).__name__} "
            f"without {', '.join(missing)}"
        )
    if is_array(series) and location(series) != "numpy":
        raise TypeError(f"series is on {location(series)}: Batches serves arrays that are there")
    if not len(series.shape):
        raise ValueError("series has no axes, the first one must be that of steps")
    return series
