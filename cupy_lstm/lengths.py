"""Valid lengths of padded sequences: checked on the host, or on the GPU without waiting for it."""

import threading
from functools import cache
from typing import Any, NamedTuple

import numpy

from cupy_lstm.backend import Array, HostArray, array_module, is_array, require_same_place
from cupy_lstm.interchange import adopted
from cupy_lstm.kernels import BLOCK, Kernel


class CheckedLengths(NamedTuple):
    """What `checked_lengths` has returned, for a call that uses it more than once."""

    array: Array | None


def checked_lengths(
    value: object, batch: int, steps: int, reference: Array, check: bool
) -> Array | None:
    """Return valid lengths as an int64 array [B] where `reference` is.

    Parameters
    ----------
    value : array-like of int [B] or [B,1], CheckedLengths, or None
        On the host, or where `reference` is.
    batch, steps : int
        B and T.
    reference : array
        An input of the same call.
    check : bool
        Whether to read back and check lengths that are on a GPU, which synchronises. Lengths on
        the host are always checked; unchecked ones act as if clamped to [0, T].

    Raises
    ------
    TypeError
        If it is no array-like of numbers, or an array on another GPU.
    ValueError
        If it holds no integers, its size is not B, or a length is outside [0, T]; or if the GPU
        has found a bad length in an earlier call.
    """
    if isinstance(value, CheckedLengths):
        return value.array
    if not isinstance(reference, numpy.ndarray):
        raise_reported(reference.device.id)
    if value is None:
        return None
    argument, xp = "sequence_length", array_module(reference)
    array: Array = adopted(argument, value, reference, "the inputs")
    if not is_array(array):
        try:
            array = numpy.asarray(value)
        except ValueError:
            raise ValueError(
                f"{argument} must be one integer for each row, received {value!r}"
            ) from None
        if array.size == 0:
            array = array.astype("int64")
    elif not isinstance(array, numpy.ndarray):
        require_same_place(argument, array, reference, "the inputs")
    if array.dtype.kind not in "iufb":
        raise TypeError(
            f"{argument} must hold integers, received {type(value).__name__} of dtype {array.dtype}"
        )
    if array.dtype.kind not in "iu":
        raise ValueError(f"{argument} must hold integers, received dtype {array.dtype}")
    if array.shape not in ((batch,), (batch, 1)):
        raise ValueError(
            f"{argument} has shape {list(array.shape)}, but must have shape [{batch}], "
            "one length for each row"
        )
    array = array.reshape(batch)
    if isinstance(array, numpy.ndarray) or check:
        host = array if isinstance(array, numpy.ndarray) else array.get()
        wrong = numpy.flatnonzero((host < 0) | (host > steps))
        if wrong.size:
            row = int(wrong[0])
            limit = "a length cannot be negative" if host[row] < 0 else f"inputs have {steps} steps"
            raise ValueError(f"{argument}[{row}] is {host[row]}, but {limit}")
    # Always a copy: the caller may fill his array anew before a backward pass.
    lengths: Array = xp.array(array, dtype="int64")
    if not isinstance(array, numpy.ndarray) and not check:
        _check_later(lengths, steps)
    return lengths


@cache
def _kernel() -> Kernel:
    return Kernel("lengths.cu", "check_lengths", "long long")


_reports: dict[int, HostArray] = {}
_reports_lock = threading.Lock()


def _report(device: int) -> HostArray:
    """Return three words of pinned host memory that kernels of a device can write.

    Under unified addressing memory from cudaHostAlloc is mapped, at the same address for all.
    It is allocated once and never freed: a kernel may be about to write there.

    Kernels on two streams at once may both find it empty, and their words may mix: the row of one
    bad call, the length or the steps of another. That something was wrong is told all the same.
    """
    with _reports_lock:
        if device not in _reports:
            import cupy

            memory: Any = cupy.cuda.alloc_pinned_memory(3 * 8)
            report: HostArray = numpy.frombuffer(memory, numpy.int64, 3)
            report[:] = 0
            _reports[device] = report
        return _reports[device]


def _check_later(lengths: Array, steps: int) -> None:
    """Have the GPU look at lengths [B] of int64; `raise_reported` tells what it found."""
    report = _report(lengths.device.id)
    _kernel().launch(BLOCK, lengths, numpy.uintp(report.ctypes.data), len(lengths), steps)


def raise_reported(device: int) -> None:
    """Raise if the GPU has found a bad length in an earlier call; waits for nothing.

    Raises
    ------
    ValueError
        With the row, its length and the steps of that call. The next call is a fresh start.
    """
    report = _report(device)
    row, length, steps = (int(word) for word in report)
    if row:
        report[0] = 0  # the row alone: a kernel may be writing the others for the next report
        limit = "a length cannot be negative" if length < 0 else f"its inputs had {steps} steps"
        raise ValueError(
            f"sequence_length[{row - 1}] of an earlier call was {length}, but {limit}; that row "
            "was run as if clamped to [0, steps] (check_lengths=True finds it at once, and waits)"
        )
