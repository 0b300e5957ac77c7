"""Where rows lie that belong to slots, compiled: found for a chunk of slots at a time.

So nothing grows with the number of steps.
"""

from typing import Any, NamedTuple

from numba import njit

from cupy_lstm.simd.memory import read, write
from cupy_lstm.simd.rows import active_rows

BY_ROW, BY_SLOT, BEFORE = 0, 1, 2
"""Kinds of `Places`."""


class Places(NamedTuple):
    """Where rows that belong to slots lie.

    Attributes
    ----------
    kind
        BY_ROW: in an array over times and batch rows. BY_SLOT: in the order of slots. BEFORE: in
        the order of slots, that of the same row one step earlier, or where there is none, in the
        order of rows.
    base, time_step, row_step
        Address of the first one; bytes from time to time, and from row to row.
    initial
        Address of the first of those in the order of rows.
    time, last_time, direction
        First time of the range and the one behind it; 1 or -1 from step to step.
    order, lengths, batch
        Tables of the batch row and the length of each of B rows.
    """

    kind: int
    base: int
    time_step: int
    row_step: int
    initial: int
    time: int
    last_time: int
    direction: int
    order: int
    lengths: int
    batch: int


@njit(nogil=True)
def begin(places: Any) -> Any:
    """Return the position of slot 0: its time, the first slot of that, and how many rows it has."""
    return places.time, 0, active_rows(places.lengths, places.batch, places.time)


@njit(nogil=True)
def begin_at(places: Any, time: int) -> Any:
    """Return the position of the first slot of a time of the range, or of the one behind it."""
    first = 0
    for row in range(places.batch):
        first += max(0, min(read(places.lengths + 8 * row), time) - places.time)
    return time, first, active_rows(places.lengths, places.batch, time)


@njit(nogil=True)
def find_slot(places: Any, slot: int, position: Any) -> Any:
    """Return the position of a slot, from that of one before."""
    time, first, active = position
    while slot >= first + active and time + 1 < places.last_time:
        first += active
        time += 1
        active = active_rows(places.lengths, places.batch, time)
    return time, first, active


@njit(nogil=True)
def write_places(places: Any, slot: int, count: int, position: Any, table: int) -> Any:
    """Write the addresses of what belongs to `count` slots from `slot` to a table.

    Parameters
    ----------
    position : tuple of int
        Of this slot.

    Returns
    -------
    tuple of int
        Position of the slot behind the last one.
    """
    time, first, active = position
    for k in range(count):
        while slot + k >= first + active:
            first += active
            time += 1
            active = active_rows(places.lengths, places.batch, time)
        row = slot + k - first
        if places.kind == BY_ROW:
            batch_row = read(places.order + 8 * row)
            place = places.base + time * places.time_step + batch_row * places.row_step
        elif places.kind == BY_SLOT:
            place = places.base + (slot + k) * places.row_step
        else:
            place = places.initial + row * places.row_step
            before = time - places.direction
            if places.time <= before and before < places.last_time:
                there = active_rows(places.lengths, places.batch, before)
                if row < there:
                    start = first - there if places.direction > 0 else first + active
                    place = places.base + (start + row) * places.row_step
        write(table + 8 * k, place)
    return time, first, active


@njit(nogil=True)
def slots_of_part(left: Any, part: int, steps: int) -> Any:
    """Return the position of the first slot of a part of so many steps, and the one behind it."""
    if left.direction > 0:
        time = left.time + part * steps
        behind = min(time + steps, left.last_time)
    else:
        behind = left.last_time - part * steps
        time = max(behind - steps, left.time)
    _, last, _ = begin_at(left, behind)
    return begin_at(left, time), last
