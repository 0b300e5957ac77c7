"""Passes that were made and wait to be run again: to make one takes longer than many a pass runs.

A pass remembers neither arrays nor their numbers, so it serves whoever has arrays of the same
shapes and strides; but only one at a time.
"""

from collections.abc import Hashable
from typing import Any, Protocol


class Pass(Protocol):
    """Something with memory of its own.

    Attributes
    ----------
    nbytes : int
        Bytes of that memory.
    """

    nbytes: int


class Passes:
    """Passes that wait, by what they are for. A copy is empty: they hold addresses.

    Each change is a single step of the interpreter, so threads that share it need no lock.

    Parameters
    ----------
    most, largest : int
        How many are kept, and bytes of the memory of a pass up to which it is: a larger one runs
        so long that making it does not count.
    """

    def __init__(self, most: int, largest: int) -> None:
        self.most, self.largest = most, largest
        self.waiting: dict[Hashable, Any] = {}

    def take(self, key: Hashable) -> Any:
        """Return the pass for a key, which nobody else can run then; None if none waits."""
        return self.waiting.pop(key, None)

    def give_back(self, key: Hashable, one: Pass) -> None:
        """Let a pass wait, and forget the oldest ones where there are too many."""
        if one.nbytes > self.largest:
            return
        self.waiting[key] = one
        if len(self.waiting) > self.most:
            for oldest in list(self.waiting)[: -self.most]:
                self.waiting.pop(oldest, None)

    def __reduce__(self) -> "tuple[type[Passes], tuple[int, int]]":
        return Passes, (self.most, self.largest)


SHARED = Passes(most=64, largest=2**19)
"""Those that pack the weights themselves, and so serve any layer."""
