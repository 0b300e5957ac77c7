"""Matrix products, one for each direction in a single call.

On CuPy this is the only module that touches its private cuBLAS binding: `cupy.matmul` copies
transposed operands, widens float16, and cannot add to its output.
"""

from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import Any, NoReturn

import numpy

from cupy_lstm.backend import Array, HostArray, array_module

# From cublas_api.h and library_types.h.
_NO_TRANSPOSE, _TRANSPOSE = 0, 1
_FLOAT32 = 0
_CUDA_TYPE = {"float32": _FLOAT32, "float64": 1, "float16": 2, "bfloat16": 14}
_COMPUTE_32F, _COMPUTE_64F, _COMPUTE_32F_FAST_TF32 = 68, 70, 77
_DEFAULT_ALGORITHM = -1
_WIDE_PARTIAL_SUMS = 16  # CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION
_NOT_SUPPORTED, _ARCH_MISMATCH = 15, 8


def matmul(a: Array, b: Array, out: Array) -> None:
    """Write ``out[d] = a[d] @ b[d]`` for a [D,M,K], b [D,K,N], out [D,M,N].

    The operands may be transposed views of contiguous matrices. On CuPy a and b have one dtype,
    out the same or float32, and sums are in float32 at least, those of the parts of a split K too.

    Raises
    ------
    ImportError
        If the arrays are CuPy's and cuBLAS is not installed.
    RuntimeError
        If the card has no such product.
    """
    xp = array_module(out)
    if xp is numpy:
        numpy.matmul(a, b, out=out)
    else:
        _cublas_gemm(a, b, out, add=False)


def matmul_add(a: Array, b: Array, out: Array, product: Array) -> None:
    """Add ``a[d] @ b[d]`` to out [D,M,N]; `product` is scratch like `out`, used on the host."""
    if array_module(out) is numpy:
        numpy.matmul(a, b, out=product)
        numpy.add(out, product, out=out)
    else:
        _cublas_gemm(a, b, out, add=True)


def rounds_to_tf32() -> bool:
    """Say whether float32 products on a GPU round their operands to TF32: CUPY_TF32=1 asks it."""
    try:
        _, _, wants_tf32 = _binding()
    except ImportError:  # then nothing is multiplied
        return False
    return wants_tf32(numpy.dtype("float32"))


def _cublas_gemm(a: Array, b: Array, out: Array, add: bool) -> None:
    D, M, N = out.shape
    K = a.shape[2]
    if out.size == 0:
        return
    if K == 0:
        if not add:
            out.fill(0)
        return
    cublas, device, wants_tf32 = _binding()
    operand, result, compute, factors = _types(a.dtype, out.dtype)
    if operand == result == _FLOAT32 and wants_tf32(out.dtype):
        compute = _COMPUTE_32F_FAST_TF32
    zero, one = factors.ctypes.data, factors.ctypes.data + factors.itemsize
    # cuBLAS reads matrices by columns, so a row-major product is the product of the transposes
    # in the other order.
    b_op, ldb, b_stride = _by_columns(b)
    a_op, lda, a_stride = _by_columns(a)
    out_op, ldc, out_stride = _by_columns(out)
    if out_op != _NO_TRANSPOSE:
        raise ValueError("out must hold its rows contiguously")
    handle = device.get_cublas_handle()
    arguments = (
        handle,
        b_op,
        a_op,
        N,
        M,
        K,
        one,
        b.data.ptr,
        operand,
        ldb,
        b_stride,
        a.data.ptr,
        operand,
        lda,
        a_stride,
        one if add else zero,
        out.data.ptr,
        result,
        ldc,
        out_stride,
        D,
        compute,
        _DEFAULT_ALGORITHM,
    )
    try:
        if out.itemsize == 2:
            _with_wide_partial_sums(cublas, handle, arguments)
        else:
            cublas.gemmStridedBatchedEx(*arguments)
    except RuntimeError as error:
        if getattr(error, "status", None) in (_NOT_SUPPORTED, _ARCH_MISMATCH):
            _raise_not_supported(a, out, error)
        raise


def _with_wide_partial_sums(cublas: ModuleType, handle: int, arguments: tuple[Any, ...]) -> None:
    """Multiply with all sums in float32.

    Where cuBLAS splits K, its default is to add the parts in the type of the result.
    """
    mode = cublas.getMathMode(handle)
    cublas.setMathMode(handle, mode | _WIDE_PARTIAL_SUMS)
    try:
        cublas.gemmStridedBatchedEx(*arguments)
    finally:
        cublas.setMathMode(handle, mode)


def _raise_not_supported(operand: Array, out: Array, error: Exception) -> NoReturn:
    from cupy.cuda import runtime

    card = runtime.getDeviceProperties(out.device.id)
    remedy = ": use dtype='float32'" if operand.itemsize == 2 else ""
    raise RuntimeError(
        f"cuBLAS does not multiply {operand.dtype} into {out.dtype} on this card "
        f"({card['name'].decode()}, compute capability {card['major']}.{card['minor']}){remedy}"
    ) from error


def _by_columns(array: Array) -> tuple[int, int, int]:
    """Return operation, leading dimension and batch stride of an array [D,R,C], for cuBLAS.

    Without a transpose cuBLAS reads row-major memory as the transpose, which is what a row-major
    product wants.
    """
    D, R, C = array.shape
    size = array.itemsize
    batch, row, column = (stride // size for stride in array.strides)
    batch = batch if D > 1 else 0
    # The stride of an axis of one element says nothing.
    if (column == 1 or C == 1) and (row >= C or R == 1):
        return _NO_TRANSPOSE, max(row if R > 1 else C, C), batch
    if (row == 1 or R == 1) and (column >= R or C == 1):
        return _TRANSPOSE, max(column if C > 1 else R, R), batch
    raise ValueError(
        f"a GEMM needs rows or columns that are contiguous, received strides {array.strides}"
    )


@cache
def _types(
    operand: "numpy.dtype[Any]", result: "numpy.dtype[Any]"
) -> tuple[int, int, int, HostArray]:
    """Return cuBLAS's names of both dtypes and of the sums, and [0, 1] in the type of the sums."""
    wide = result == "float64"
    compute = _COMPUTE_64F if wide else _COMPUTE_32F
    factors = numpy.array([0, 1], "float64" if wide else "float32")
    return _CUDA_TYPE[operand.name], _CUDA_TYPE[result.name], compute, factors


@cache
def _binding() -> tuple[ModuleType, ModuleType, Callable[["numpy.dtype[Any]"], bool]]:
    """Import what CuPy keeps private: cuBLAS, its handles, and the choice of TF32."""
    try:
        from cupy.cuda import device
        from cupy_backends.cuda.libs import cublas
    except ImportError as error:
        raise ImportError(
            "matrix products on a GPU need cuBLAS: pip install 'cupy_lstm[cuda12x]' "
            f"(or cuda13x for CUDA 13); importing it failed with: {error}"
        ) from error
    return cublas, device, _tf32_switch()


def _tf32_switch() -> Callable[["numpy.dtype[Any]"], bool]:
    """Return a function that says whether the user asks for TF32 with CuPy's own switch.

    The switch is CUPY_TF32=1. A CuPy that keeps it elsewhere multiplies without TF32.
    """
    from cupy import _core

    linalg = getattr(_core, "_routines_linalg", None)
    chosen = getattr(linalg, "get_compute_type", None)
    tf32 = getattr(linalg, "COMPUTE_TYPE_TF32", None)
    if chosen is None or tf32 is None:
        return lambda dtype: False
    return lambda dtype: bool(chosen(dtype) == tf32)
