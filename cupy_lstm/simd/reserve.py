"""Large pieces of memory, kept for the next call once nobody needs them any more.

The system clears every page of fresh memory at its first touch, which can take longer than what is
then computed there. A training loop asks for the same pieces in every step; they come from here.
"""

import weakref

import numpy

from cupy_lstm.backend import HostArray

LARGE = 2**17
"""Bytes from which the C library may return memory to the system as soon as it is free."""

LARGEST = 2**27
"""Bytes of the largest piece that is kept."""

MOST, MOST_PIECES = 2**28, 64
"""Bytes that are kept in all, and in how many pieces."""

_free: dict[int, HostArray] = {}
"""What is kept, by identity, the oldest first. Finalizers run in any thread and at any time, in the
middle of these functions, too: so each change, and each look at all of it, is a single step of the
interpreter, in which no garbage can be collected."""


def piece(size: int) -> HostArray:
    """Return an array of at least `size` bytes, of any content, to be viewed as what it is for.

    When the array and all views of it are gone, its memory is kept.
    """
    memory = take(size)
    if not LARGE <= size <= LARGEST:
        return memory
    # NumPy ties a view of a view to the memory itself, but does not look behind a memoryview.
    window: HostArray = numpy.asarray(memory.data)
    weakref.finalize(window, keep, memory).atexit = False
    return window


def take(size: int) -> HostArray:
    """Return such an array that is kept only if it is given to `keep`, when nobody needs it."""
    memory = _fitting(size) if LARGE <= size <= LARGEST else None
    return numpy.empty(size, "uint8") if memory is None else memory


def keep(memory: HostArray) -> None:
    """Keep a large piece, and forget the oldest ones where all of them are too much."""
    if not LARGE <= memory.size <= LARGEST:
        return
    _free[id(memory)] = memory
    kept = list(_free.values())
    total = sum(other.size for other in kept)
    for number, other in enumerate(kept):
        if total <= MOST and len(kept) - number <= MOST_PIECES:
            break
        _free.pop(id(other), None)
        total -= other.size


def release() -> None:
    """Give back to the C library what is kept."""
    _free.clear()


def _fitting(size: int) -> HostArray | None:
    """Take a piece of that size, or of little more, out of what is kept."""
    for memory in reversed(list(_free.values())):
        if size <= memory.size <= size + size // 4 and _free.pop(id(memory), None) is not None:
            return memory
    return None
