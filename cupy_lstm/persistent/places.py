"""Where the steps of a chunk lie in arrays that are in time order, for all directions at once.

The engine persistent never brings arrays into step order. Its own arrays [n,B,D,F] hold the times
of some steps in ascending order, of each direction those that it reads, in memory in the order of
the input: times first, or batch rows first. So an input of either order is the operand of a GEMM
as it lies there.
"""

from collections.abc import Iterator
from math import prod
from types import ModuleType
from typing import NamedTuple

from cupy_lstm.backend import Array, array_module
from cupy_lstm.steps import Directions


def window(steps: range, T: int, reverse: bool) -> slice:
    """Return the times, ascending, of a range of steps."""
    return slice(T - steps.stop, T - steps.start) if reverse else slice(steps.start, steps.stop)


class Group(NamedTuple):
    """Directions that read the same times of the same part of an array.

    Attributes
    ----------
    directions : slice
        Of the axis D.
    times : slice
        Of the sequence.
    kept : slice
        Of the times in an array of the engine's own.
    """

    directions: slice
    times: slice
    kept: slice


def groups(part: range, covered: range, T: int, reverse: Directions) -> Iterator[Group]:
    """Yield the directions and where they find `part` of the steps `covered`: together if they can.

    Both directions read the same times where a part is as far from the start as from the end.
    """
    D = len(reverse)
    together = part.start + part.stop == covered.start + covered.stop == T
    for d in range(0, D, D if together else 1):
        times, first = window(part, T, reverse[d]), window(covered, T, reverse[d]).start
        kept = slice(times.start - first, times.stop - first)
        yield Group(slice(d, D if together else d + 1), times, kept)


class Layout(NamedTuple):
    """The order in memory of the engine's own arrays over time."""

    batch_major: bool

    @classmethod
    def like(cls, x: Array) -> "Layout":
        """Return the order of x [T,B,I]."""
        return cls(x.shape[0] > 1 and x.shape[1] > 1 and x.strides[0] < x.strides[1])

    def empty(self, xp: ModuleType, n: int, B: int, *rest: int, dtype: object) -> Array:
        """Return an array [n,B,...] in this order."""
        return self.within(xp.empty(n * B * prod(rest), dtype), n, B, *rest)

    def within(self, memory: Array, n: int, B: int, *rest: int) -> Array:
        """Return an array [n,B,...] in this order at the beginning of memory that is flat."""
        flat = memory[: n * B * prod(rest)]
        if self.batch_major:
            return flat.reshape(B, n, *rest).swapaxes(0, 1)
        return flat.reshape(n, B, *rest)

    def places(self, n: int, B: int) -> tuple[int, int]:
        """Return how many places lead to the next time and row in an array [n,B,...]."""
        return (1, n) if self.batch_major else (B, 1)

    def matrices(self, *arrays: Array) -> list[Array]:
        """Return arrays [n,B,F] as matrices [G,M,F] of the same rows; G is 1 if that needs no copy.

        Features must be contiguous.
        """
        arrays = tuple(a.swapaxes(0, 1) for a in arrays) if self.batch_major else arrays
        outer, inner = arrays[0].shape[:2]
        if all(outer == 1 or inner == 1 or _one_stride(a) for a in arrays):
            return [a.reshape(1, outer * inner, a.shape[2]) for a in arrays]
        return list(arrays)

    def as_rows(self, array: Array, *, whole: bool = False) -> Array:
        """Return an array [n,B,F] that `matrices` can take: itself, or a copy in this order.

        `whole`: as one matrix, not as one for each time or row.
        """
        n, B, F = array.shape
        step, row, feature = array.strides
        lies = (
            (feature == array.itemsize or F == 1)
            and (row if self.batch_major else step) >= 0
            and (step if self.batch_major else row) >= F * array.itemsize
        )
        if lies and (not whole or self.matrices(array)[0].shape[0] == 1):
            return array
        copy = self.empty(array_module(array), n, B, F, dtype=array.dtype)
        copy[...] = array
        return copy


def _one_stride(array: Array) -> bool:
    """Say whether the rows of an array [outer,inner,F] are at equal distances."""
    return bool(array.strides[0] == array.shape[1] * array.strides[1])
