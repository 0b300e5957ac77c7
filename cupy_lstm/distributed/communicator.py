"""What processes that train together need of each other, and a process that is alone."""

import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Protocol, TypeAlias

import numpy

from cupy_lstm.backend import Array

Wait: TypeAlias = Callable[[], object]
"""Called to wait for something that was started."""


class Communicator(Protocol):
    """Processes that run the same program, each under a number.

    All of them call the same methods in the same order. Arrays are contiguous.

    Attributes
    ----------
    rank : int
        Number of this process, from 0.
    size : int
        Number of processes.
    xp : module
        NumPy or CuPy: of arrays that it takes.
    """

    rank: int
    size: int
    xp: ModuleType

    def start_sum(self, array: Array) -> Wait:
        """Begin to put the sum over all processes into `array`.

        Until the result has been called, the array must neither be read nor written. The sum is
        the same to the last bit on every process, and in every run of as many processes.
        """

    def broadcast(self, array: Array) -> None:
        """Overwrite `array` by that of rank 0."""

    def abort(self) -> None:
        """End all processes at once; does nothing where this one is alone."""


class SingleProcess:
    """The communicator of a process that is alone."""

    rank = 0
    size = 1
    xp: ModuleType = numpy

    def start_sum(self, array: Array) -> Wait:
        """Do nothing: one array is its own sum."""
        return lambda: None

    def broadcast(self, array: Array) -> None:
        """Do nothing."""

    def abort(self) -> None:
        """Do nothing: an exception ends a single process without help."""


@contextmanager
def aborting(communicator: Communicator) -> Iterator[None]:
    """Let an exception of this process end all of them, with its traceback on stderr.

    The others would otherwise wait for this one for ever. A single process just raises.
    """
    try:
        yield
    except BaseException:
        if communicator.size > 1:
            print(
                f"cupy_lstm: rank {communicator.rank} of {communicator.size} failed, which ends "
                f"all:\n{traceback.format_exc()}",
                file=sys.stderr,
                flush=True,
            )
            communicator.abort()
        raise
