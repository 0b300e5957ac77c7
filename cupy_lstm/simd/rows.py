"""Which rows take part at which time, and where they lie: padding has no place and no work.

Rows are numbered by falling length, so those that take part at a time are the first ones, and a
*slot* is one such row at one time. The slots of a time lie together, the times one after the
other, in both directions alike. Nothing here grows with the number of steps.
"""

from dataclasses import dataclass

import numpy
from numba import njit

from cupy_lstm.backend import HostArray
from cupy_lstm.simd.memory import read


@dataclass(frozen=True)
class Rows:
    """Rows and slots of one direction over a range of times.

    Attributes
    ----------
    order : array [B] of int64
        The batch row of each row.
    lengths : array [B] of int64
        The length of each row.
    times : range
        The range, in the order of the steps.
    steps : array [B] of int64
        How many times of the range each row takes part in.
    total : int
        Slots of the range.
    batch_rows : array [B] of int64, or slice
        `order` as an index.
    """

    order: HostArray
    lengths: HostArray
    times: range
    steps: HostArray
    total: int
    batch_rows: HostArray | slice

    @property
    def are_even(self) -> bool:
        """Whether the batch has no lengths: all rows take part at all times."""
        return isinstance(self.batch_rows, slice)

    def first_slot(self, time: int) -> int:
        """Return the first slot of a time at either end of the range."""
        if time == min(self.times):
            return 0
        return self.total - int((self.lengths > time).sum())


def rows_of(lengths: HostArray | None, T: int, B: int, steps: range, backwards: bool) -> Rows:
    """Number the rows of a batch.

    Parameters
    ----------
    lengths : array [B] of int64, or None
        Valid times of each row.
    T, B : int
        Steps and rows of the whole sequence.
    steps : range
        The steps to run.
    backwards : bool
        Whether the direction runs from the end.
    """
    first, last = (T - steps.stop, T - steps.start) if backwards else (steps.start, steps.stop)
    times = range(last - 1, first - 1, -1) if backwards else steps
    if lengths is None:
        order, falling = numpy.arange(B, dtype="int64"), numpy.full(B, T, "int64")
        taken = numpy.full(B, len(times), "int64")
        return Rows(order, falling, times, taken, B * len(times), slice(None))
    clamped = numpy.clip(lengths, 0, T)
    order = numpy.argsort(-clamped, kind="stable").astype("int64")
    falling = clamped[order].astype("int64")
    taken = numpy.clip(falling, first, last) - first
    return Rows(order, falling, times, taken, int(taken.sum()), order)


@njit(nogil=True)
def active_rows(lengths: int, batch: int, time: int) -> int:
    """Return how many rows take part at a time, from the table of falling lengths."""
    low, high = 0, batch
    if batch > 0 and read(lengths + 8 * (batch - 1)) > time:
        return batch
    while low < high:
        middle = (low + high) // 2
        if read(lengths + 8 * middle) > time:
            low = middle + 1
        else:
            high = middle
    return low


@njit(nogil=True)
def slot_beside(lengths: int, batch: int, slot: int, time: int, direction: int) -> int:
    """Return the first slot of the next or the last time, from the first slot of this time."""
    if direction > 0:
        slot += active_rows(lengths, batch, time)
    else:
        slot -= active_rows(lengths, batch, time - 1)
    return slot
