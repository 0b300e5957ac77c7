"""cuBLAS on the fake device: its handles, and its products for every dtype it has of them.

The functions have the parameters of the C functions, in their order. They return nothing; a status
other than success is raised as `StatusError`.
"""

import ctypes
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from gpu_on_cpu.driver import devices
from gpu_on_cpu.driver.entry_points import CUBLAS
from gpu_on_cpu.driver.errors import DeviceMisuseError
from gpu_on_cpu.driver.gemm import COLUMN_MAJOR_TRANSPOSES, Matrix, multiply
from gpu_on_cpu.driver.memory import SPACE
from gpu_on_cpu.driver.recorder import Gemm
from gpu_on_cpu.driver.streams import new_handle, submit

SUCCESS, NOT_INITIALIZED, INVALID_VALUE, EXECUTION_FAILED, NOT_SUPPORTED = 0, 1, 7, 13, 15


class StatusError(Exception):
    """A status of cuBLAS to answer with."""


@dataclass(eq=False)
class Handle:
    """What a cuBLAS handle remembers."""

    device: int
    stream: int = 0
    pointers_on_device: int = 0
    math_mode: int = 0


_handles: dict[int, Handle] = {}


def _handle(number: int) -> Handle:
    if number not in _handles:
        raise StatusError(NOT_INITIALIZED)
    return _handles[number]


# --- handles -------------------------------------------------------------------------------------


def _store(address: int, ctype: Any, value: int) -> None:
    ctype.from_address(address).value = value


@CUBLAS.provides("cublasCreate_v2")
def create(result: int) -> None:
    """Make a handle on the current device."""
    number = new_handle()
    _handles[number] = Handle(devices.current())
    _store(result, ctypes.c_size_t, number)


@CUBLAS.provides("cublasDestroy_v2")
def destroy(number: int) -> None:
    """Destroy a handle."""
    _handle(number)
    del _handles[number]


@CUBLAS.provides("cublasGetVersion_v2")
def version(number: int, result: int) -> None:
    """Return the version of the library."""
    _store(result, ctypes.c_int, devices.toolkit_version() * 10)


@CUBLAS.provides("cublasSetStream_v2")
def set_stream(number: int, stream: int) -> None:
    """Let the products that follow run on a stream."""
    _handle(number).stream = stream or 0


@CUBLAS.provides("cublasGetStream_v2")
def get_stream(number: int, result: int) -> None:
    """Return the stream of a handle."""
    _store(result, ctypes.c_size_t, _handle(number).stream)


@CUBLAS.provides("cublasSetPointerMode_v2")
def set_pointer_mode(number: int, mode: int) -> None:
    """Say where alpha and beta are: 0 on the host, 1 on the device."""
    _handle(number).pointers_on_device = mode


@CUBLAS.provides("cublasGetPointerMode_v2")
def get_pointer_mode(number: int, result: int) -> None:
    """Return where alpha and beta are."""
    _store(result, ctypes.c_int, _handle(number).pointers_on_device)


@CUBLAS.provides("cublasSetMathMode")
def set_math_mode(number: int, mode: int) -> None:
    """Allow TF32, or forbid it, and so on."""
    _handle(number).math_mode = mode


@CUBLAS.provides("cublasGetMathMode")
def get_math_mode(number: int, result: int) -> None:
    """Return the mode."""
    _store(result, ctypes.c_int, _handle(number).math_mode)


# --- products ------------------------------------------------------------------------------------

TF32_MATH_MODE = 3  # the low bits of a math mode
FLOAT32, FLOAT32_FAST_TF32, FLOAT64 = 68, 77, 70
COMPUTE_TYPES = {68: "f4", 69: "f4", 74: "f4", 75: "f4", 77: "f4", 70: "f8", 71: "f8"}


def dtype_of(number: int) -> np.dtype:
    """Return the dtype of a cudaDataType, or answer that it is not supported."""
    if number == 14:
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    names = {0: "f4", 1: "f8", 2: "f2"}
    if number not in names:
        raise StatusError(NOT_SUPPORTED)
    return np.dtype(names[number])


def _require_combination(a: np.dtype, b: np.dtype, c: np.dtype, compute: int) -> None:
    """Refuse what the table of cublasGemmEx does not have."""
    if a != b or compute not in COMPUTE_TYPES:
        raise StatusError(NOT_SUPPORTED)
    wide = np.dtype(COMPUTE_TYPES[compute])
    allowed = (a, wide) if wide == np.float32 and a.itemsize == 2 else (wide,)
    if c not in allowed or (a.itemsize != 2 and a != wide):
        raise StatusError(NOT_SUPPORTED)


def _scalar(handle: Handle, address: int, dtype: str, name: str) -> float:
    on_device = SPACE.find(address)
    if handle.pointers_on_device:
        SPACE.check(address, np.dtype(dtype).itemsize, f"{name} of a product", handle.device)
    elif on_device is not None and on_device.device is not None:
        raise DeviceMisuseError(f"{name} of a product is on the device, not on the host")
    raw = ctypes.string_at(address, np.dtype(dtype).itemsize)
    return float(np.frombuffer(raw, dtype)[0])


def gemm_strided_batched_ex(
    number: int,
    transpose_a: int,
    transpose_b: int,
    m: int,
    n: int,
    k: int,
    alpha: int,
    a: int,
    a_type: int,
    a_leading: int,
    a_stride: int,
    b: int,
    b_type: int,
    b_leading: int,
    b_stride: int,
    beta: int,
    c: int,
    c_type: int,
    c_leading: int,
    c_stride: int,
    batch: int,
    compute: int,
    algorithm: int,
) -> None:
    """Compute a batch of products; every other product is this one with some values fixed."""
    handle = _handle(number)
    dtypes = [dtype_of(kind) for kind in (a_type, b_type, c_type)]
    _require_combination(*dtypes, compute)
    try:
        letters = "".join(COLUMN_MAJOR_TRANSPOSES[t] for t in (transpose_a, transpose_b))
    except KeyError:
        raise StatusError(INVALID_VALUE) from None
    shapes = ((m, k) if letters[0] == "N" else (k, m), (k, n) if letters[1] == "N" else (n, k))
    leading = (a_leading, b_leading, c_leading)
    rows = (shapes[0][0], shapes[1][0], m)
    if min(m, n, k, batch) < 0 or any(ld < max(1, r) for ld, r in zip(leading, rows, strict=True)):
        raise StatusError(INVALID_VALUE)
    strides = (a_stride, b_stride, c_stride)
    addresses = (a or 0, b or 0, c or 0)
    matrices = [
        Matrix(name, address, dtype, *shape, ld, stride, batch)
        for name, address, dtype, shape, ld, stride in zip(
            "ABC", addresses, dtypes, (*shapes, (m, n)), leading, strides, strict=True
        )
    ]
    if batch > 1 and c_stride == 0:
        raise DeviceMisuseError("all products of a batch are written to the same place")
    tf32 = dtypes[0] == np.float32 and (
        compute == FLOAT32_FAST_TF32
        or (compute == FLOAT32 and handle.math_mode & 0xF == TF32_MATH_MODE)
    )
    scalars = [
        _scalar(handle, address, COMPUTE_TYPES[compute], name)
        for address, name in ((alpha, "alpha"), (beta, "beta"))
    ]
    entry = Gemm(
        m,
        n,
        k,
        batch,
        letters,
        tuple(dtype.name for dtype in dtypes),
        *scalars,
        leading,
        strides,
        tf32,
        handle.math_mode,
        handle.stream,
        handle.device,
    )

    def run() -> None:
        for matrix in matrices if matrices[2].elements else ():
            matrix.require_memory(handle.device)
        multiply(letters, scalars[0], matrices[0], matrices[1], scalars[1], matrices[2], tf32)

    submit(handle.stream, entry, run)


def _gemm_ex(*v: int) -> None:
    """cublasGemmEx: no batch."""
    gemm_strided_batched_ex(*v[:10], 0, *v[10:13], 0, *v[13:17], 0, 1, *v[17:])


def _gemm(kind: int, compute: int, *v: int) -> None:
    """Handle cublasSgemm and cublasDgemm: one type, no batch."""
    _gemm_ex(*v[:8], kind, *v[8:10], kind, *v[10:13], kind, v[13], compute, -1)


def _gemm_strided_batched(kind: int, compute: int, *v: int) -> None:
    """Handle cublasSgemmStridedBatched and cublasDgemmStridedBatched: one type."""
    gemm_strided_batched_ex(*v[:8], kind, *v[8:11], kind, *v[11:15], kind, *v[15:18], compute, -1)


def _sgemm_ex(*v: int) -> None:
    """cublasSgemmEx: computes in float32."""
    _gemm_ex(*v, FLOAT32, -1)


CUBLAS.provides("cublasGemmStridedBatchedEx")(gemm_strided_batched_ex)
CUBLAS.provides("cublasGemmEx")(_gemm_ex)
CUBLAS.provides("cublasSgemmEx")(_sgemm_ex)
CUBLAS.provides("cublasSgemm_v2")(partial(_gemm, 0, FLOAT32))
CUBLAS.provides("cublasDgemm_v2")(partial(_gemm, 1, FLOAT64))
CUBLAS.provides("cublasSgemmStridedBatched")(partial(_gemm_strided_batched, 0, FLOAT32))
CUBLAS.provides("cublasDgemmStridedBatched")(partial(_gemm_strided_batched, 1, FLOAT64))
