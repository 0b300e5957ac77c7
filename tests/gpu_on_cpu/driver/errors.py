"""How a call fails: with CuPy's own exceptions where CUDA would fail, else as a misuse."""

from enum import IntEnum


class DeviceMisuseError(AssertionError):
    """A use of the device that hardware may let pass and answer with a wrong result.

    Not an error of CUDA, so that no code that falls back on such an error hides the finding.
    """


class Status(IntEnum):
    """Codes of CUDA's errors, the same in the runtime and in the driver."""

    INVALID_VALUE = 1
    OUT_OF_MEMORY = 2
    INVALID_DEVICE = 101
    PEER_ACCESS_UNSUPPORTED = 217
    INVALID_HANDLE = 400
    NOT_FOUND = 500
    LAUNCH_OUT_OF_RESOURCES = 701
    COOPERATIVE_LAUNCH_TOO_LARGE = 720
    STREAM_CAPTURE_UNSUPPORTED = 900
    STREAM_CAPTURE_INVALIDATED = 901
    STREAM_CAPTURE_UNMATCHED = 903
    STREAM_CAPTURE_UNJOINED = 904
    STREAM_CAPTURE_ISOLATION = 905
    STREAM_CAPTURE_IMPLICIT = 906
    CAPTURED_EVENT = 907
    INVALID_CLUSTER_SIZE = 912


def runtime_error(status: Status, detail: str) -> RuntimeError:
    """Return CuPy's ``CUDARuntimeError`` with what led to it added to the message."""
    from cupy_backends.cuda.api import runtime

    error = runtime.CUDARuntimeError(int(status))
    error.args = (f"{error}: {detail}",)
    return error


def driver_error(status: Status, detail: str) -> RuntimeError:
    """Return CuPy's ``CUDADriverError``.

    It is filled by hand: its own initialiser asks libcuda for the text, and there is none.
    """
    from cupy_backends.cuda.api import driver

    error = driver.CUDADriverError.__new__(driver.CUDADriverError)
    error.status = int(status)
    error.args = (f"CUDA_ERROR_{status.name}: {detail}",)
    return error
