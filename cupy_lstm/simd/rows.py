"""Which rows take part at which time, and where they lie: padding has no place and no work.

Rows are numbered by falling length, so those that take part at a time are the first ones, and a
*slot* is one such row at one time. The slots of a time lie together, the times one after the
other, in both directions alike.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy

from cupy_lstm.backend import HostArray


@dataclass(frozen=True)
class Rows:
    """Rows and slots of one direction over a range of times.

    Attributes
    ----------
    order : array [B] of int64
        The batch row of each row.
    counts : array [T] of int64
        How many rows take part at each time.
    slots : array [T] of int64
        The first slot of each time, counted from the first time of the range.
    first_time, last_time : int
        The range.
    total : int
        Its slots.
    steps : array [B] of int64
        How many times of the range each row takes part in.
    """

    order: HostArray
    counts: HostArray
    slots: HostArray
    first_time: int
    last_time: int
    total: int
    steps: HostArray


def rows_of(lengths: HostArray | None, T: int, B: int, times: range) -> Rows:
    """Number the rows of a batch and their slots at some times.

    Parameters
    ----------
    lengths : array [B] of int64, or None
        Valid times of each row.
    T, B : int
        Steps and rows.
    times : range
        The times, in either direction.
    """
    if lengths is None:
        return _full_rows(T, B, times)
    clamped = numpy.clip(lengths, 0, T)
    order = numpy.argsort(-clamped, kind="stable")
    falling = clamped[order]
    counts = B - numpy.searchsorted(falling[::-1], numpy.arange(T), side="right")
    return _numbered(order, falling, counts, times)


@lru_cache(maxsize=64)
def _full_rows(T: int, B: int, times: range) -> Rows:
    return _numbered(numpy.arange(B), numpy.full(B, T), numpy.full(T, B), times)


def _numbered(order: HostArray, falling: HostArray, counts: HostArray, times: range) -> Rows:
    first, last = (min(times), max(times) + 1) if len(times) else (0, 0)
    slots = numpy.cumsum(counts) - counts
    total = int(counts[first:last].sum())
    if len(times):
        slots = slots - slots[first]
    order, counts, slots = (array.astype("int64") for array in (order, counts, slots))
    return Rows(order, counts, slots, first, last, total, numpy.clip(falling, first, last) - first)


def slot_places(rows: Rows) -> tuple[HostArray, HostArray]:
    """Return the time and the row of every slot."""
    counts = rows.counts[rows.first_time : rows.last_time]
    times = numpy.repeat(numpy.arange(rows.first_time, rows.last_time), counts)
    return times, numpy.arange(rows.total) - rows.slots[times]


def times_of(steps: range, T: int, backwards: bool) -> range:
    """Return the times of some steps."""
    return range(T - 1 - steps.start, T - 1 - steps.stop, -1) if backwards else steps
