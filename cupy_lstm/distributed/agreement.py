"""What processes agree on: numbers they add up, and what rank 0 says."""

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy

from cupy_lstm.backend import to_host
from cupy_lstm.distributed.communicator import Communicator


def summed(communicator: Communicator, numbers: Sequence[float]) -> list[float]:
    """Return the sum of each number over all processes; synchronises where it takes CuPy arrays."""
    sums = communicator.xp.asarray(numpy.array(numbers, "float64"))
    communicator.start_sum(sums)()
    return [float(value) for value in to_host(sums)]


def on_first(communicator: Communicator, function: Callable[[], Any]) -> Any:
    """Call a function on rank 0 alone, and return everywhere what it returns there.

    Parameters
    ----------
    communicator : Communicator
        The processes.
    function : callable
        Returns None, a bool, a number or a string, or lists and dicts of them.

    Raises
    ------
    BaseException
        On rank 0, what `function` raised; a TypeError if it returned something else.
    RuntimeError
        That it did, on the others.
    """
    if communicator.size == 1:
        return function()
    text, raised = "", None
    if communicator.rank == 0:
        try:
            text = json.dumps([function(), None])
        except BaseException as error:
            raised = error
            text = json.dumps([None, f"{type(error).__name__}: {error}"])
    value, words = json.loads(_broadcast(communicator, text))
    if raised is not None:
        raise raised
    if words is not None:
        raise RuntimeError(f"rank 0 raised {words}")
    return value


def _broadcast(communicator: Communicator, text: str) -> str:
    """Return the text of rank 0: its length is sent, then its bytes."""
    xp = communicator.xp
    sent = numpy.frombuffer(text.encode(), "uint8")
    length = xp.asarray(numpy.array([sent.size], "int64"))
    communicator.broadcast(length)
    data = xp.zeros(int(length[0]), "uint8")
    if communicator.rank == 0:
        data[:] = xp.asarray(sent)
    communicator.broadcast(data)
    return to_host(data).tobytes().decode()
