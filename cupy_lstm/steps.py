"""Time order and step order: what a range of steps reads and writes in arrays over time.

Engines compute in step order, the directions stacked in front. Callers' arrays are in time order.
"""

from collections.abc import Iterator
from typing import Protocol, TypeVar

from cupy_lstm.backend import Array, array_module

Tape = TypeVar("Tape", covariant=True)


class Tapes(Protocol[Tape]):
    """Tapes of consecutive ranges of steps, the last one first: a list, or made when asked for."""

    def __len__(self) -> int:
        """Return how many there are."""

    def __iter__(self) -> Iterator[Tape]:
        """Yield each of them; it is used up before the next is asked for."""


Directions = tuple[bool, ...]
"""For each direction whether it reads its sequence from the end: ``(False, True)`` for both."""


def times(steps: range, T: int, reverse: bool) -> slice:
    """Return the slice of a time axis that lists the times of a non-empty range of steps."""
    if not reverse:
        return slice(steps.start, steps.stop)
    last = T - 1 - steps.stop
    return slice(T - 1 - steps.start, None if last < 0 else last, -1)


def gather(
    array: Array, steps: range, reverse: Directions, padding: Array | None, out: Array
) -> Array:
    """Return what each direction reads in these steps, with zeros in place of padding.

    Parameters
    ----------
    array : array [T,B,F] or [T,B,D,F]
        In time order, any strides; every direction reads all of it, or its own part.
    steps : range
        Non-empty range of steps.
    reverse : Directions
        Which directions run backwards.
    padding : array [D,n,B,1] of bool, or None
        As `padding_mask` returns it.
    out : array [D,n,B,F]
        Where copies go.

    Returns
    -------
    array [D,n,B,F]
        `out`, or a view of `array` where nothing had to be copied.
    """
    T = array.shape[0]
    if reverse == (False,) and padding is None and array.ndim == 3:
        view = array[times(steps, T, False)]
        if view.flags.c_contiguous:
            return view[None]
    for d, backwards in enumerate(reverse):
        source = array if array.ndim == 3 else array[:, :, d]
        out[d] = source[times(steps, T, backwards)]
    if padding is not None:
        # Assigned, never multiplied: what lies in the padding may be NaN.
        array_module(out).copyto(out, 0, where=padding)
    return out


def scatter(
    values: Array, steps: range, reverse: Directions, padding: Array | None, out: Array
) -> None:
    """Write values [D,n,B,F] of these steps into out [T,B,D,F], zeros where there is padding."""
    T = out.shape[0]
    for d, backwards in enumerate(reverse):
        part = out[times(steps, T, backwards), :, d]
        part[...] = values[d]
        if padding is not None:
            array_module(out).copyto(part, 0, where=padding[d])


def scatter_add(values: Array, steps: range, reverse: Directions, out: Array) -> None:
    """Add values [D,n,B,F] of these steps to out [T,B,F], over all directions."""
    T = out.shape[0]
    for d, backwards in enumerate(reverse):
        out[times(steps, T, backwards)] += values[d]


def copy_where(mask: Array, values: Array, out: Array) -> None:
    """Copy values [D,B,F] into out where mask [D,B,1] says so.

    Direction by direction: two views of one chunk interleave in memory, and NumPy would make a
    temporary copy before it dares to copy between them.
    """
    xp = array_module(out)
    for d in range(len(out)):
        xp.copyto(out[d], values[d], where=mask[d])


def padding_mask(lengths: Array | None, steps: range, T: int, reverse: Directions) -> Array | None:
    """Return where the steps lie in padding, bool [D,n,B,1]; None without lengths [B]."""
    if lengths is None:
        return None
    xp = array_module(lengths)
    mask = xp.empty((len(reverse), len(steps), len(lengths), 1), bool)
    step = xp.arange(steps.start, steps.stop)[:, None, None]
    for d, backwards in enumerate(reverse):
        xp.greater_equal(T - 1 - step if backwards else step, lengths[:, None], out=mask[d])
    return mask
