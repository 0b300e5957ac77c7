"""Matrix products on CuPy: every dtype and layout, one call of cuBLAS each, and nothing copied.

The numbers are small integers, exact in every type and in any order of summation, so a product is
right or wrong to the bit.
"""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
from gpu_cases import HALF, storage
from gpu_on_cpu import record

from cupy_lstm import gemm
from cupy_lstm.gemm import matmul, matmul_add

pytestmark = pytest.mark.gpu_on_cpu

TYPES = [
    ("float32", "float32"),
    ("float64", "float64"),
    ("float16", "float16"),
    ("float16", "float32"),
    ("bfloat16", "bfloat16"),
    ("bfloat16", "float32"),
]
each_type = pytest.mark.parametrize(("operand", "result"), TYPES)
SIZES = [
    (1, 1, 1, 1),
    (1, 3, 4, 5),
    (2, 3, 4, 5),
    (3, 1, 7, 4),
    (2, 6, 1, 3),
    (2, 5, 4, 1),
    (1, 1, 9, 1),
]
each_size = pytest.mark.parametrize(("D", "M", "N", "K"), SIZES)


def integers(shape, dtype, seed=0):
    """Integers in -3..3: a sum of 9 products stays within the 8 bits of bfloat16."""
    return np.random.default_rng(seed).integers(-3, 4, shape).astype(storage(dtype))


def transposed(cupy, array):
    """The same numbers with the last two axes swapped in memory."""
    return cupy.ascontiguousarray(cupy.asarray(array).swapaxes(1, 2)).swapaxes(1, 2)


def wide_rows(cupy, array):
    """The same numbers as a part of wider rows: the leading dimension is not the width."""
    D, R, C = array.shape
    whole = cupy.full((D, R, C + 3), np.nan, array.dtype)
    whole[:, :, 2 : 2 + C] = cupy.asarray(array)
    return whole[:, :, 2 : 2 + C]


def one_of_many_steps(cupy, array):
    """The same numbers as a step of a chunk: the stride of the batch is not its size."""
    D, R, C = array.shape
    whole = cupy.full((D, 4, R, C), np.nan, array.dtype)
    whole[:, 2] = cupy.asarray(array)
    return whole[:, 2]


def strided_columns(cupy, array):
    return one_of_many_steps(cupy, array.swapaxes(1, 2)).swapaxes(1, 2)


def plain(cupy, array):
    return cupy.asarray(array)


LAYOUTS = [plain, transposed, wide_rows, one_of_many_steps, strided_columns]


def product(a, b):
    return (a.astype("f8") @ b.astype("f8")).astype("f8")


@each_type
@each_size
def test_layouts(cupy, operand, result, D, M, N, K):
    a, b = integers((D, M, K), operand), integers((D, K, N), operand, 1)
    before = integers((D, M, N), result, 2)
    outputs = (plain, one_of_many_steps, wide_rows)
    for lay_a, lay_b, lay_out in itertools.product(LAYOUTS, LAYOUTS, outputs):
        left, right = lay_a(cupy, a), lay_b(cupy, b)
        out = lay_out(cupy, np.full((D, M, N), np.nan).astype(storage(result)))
        with record() as log:
            matmul(left, right, out)
        # Without an addition what was there, NaN here, is not read.
        assert np.array_equal(out.get().astype("f8"), product(a, b))
        assert log.counts() == {"Gemm": 1}
        out[...] = cupy.asarray(before)
        with record() as log:
            matmul_add(left, right, out, None)
        assert np.array_equal(out.get().astype("f8"), before.astype("f8") + product(a, b))
        assert log.counts() == {"Gemm": 1}


@each_type
def test_what_cublas_is_asked_for(cupy, operand, result):
    D, M, N, K = 2, 3, 4, 5
    a = cupy.asarray(integers((D, M, K), operand))
    b = transposed(cupy, integers((D, K, N), operand))
    out = cupy.zeros((D, M, N), storage(result))
    with record() as log:
        matmul_add(a, b, out, None)
    (call,) = log.gemms
    # Column-major, so the product of the transposes in the other order.
    assert (call.m, call.n, call.k, call.batch) == (N, M, K, D)
    assert call.transposes == "TN"
    assert call.leading == (K, K, N)
    assert call.strides == (N * K, M * K, M * N)
    assert call.dtypes == (operand, operand, result)
    assert (call.alpha, call.beta, call.tf32) == (1, 1, False)
    assert call.stream == cupy.cuda.get_current_stream().ptr


@each_type
@pytest.mark.parametrize(
    ("D", "M", "N", "K"), [(1, 0, 2, 3), (1, 2, 0, 3), (2, 0, 0, 0), (2, 3, 4, 0), (0, 3, 4, 5)]
)
def test_zero_sizes(cupy, operand, result, D, M, N, K):
    a, b = (cupy.ones(shape, storage(operand)) for shape in ((D, M, K), (D, K, N)))
    out = cupy.full((D, M, N), 7, storage(result))
    with record() as log:
        matmul_add(a, b, out, None)
    assert not log
    assert (out.get().astype("f8") == 7).all()
    with record() as log:
        matmul(a, b, out)
    assert not log.gemms
    assert (out.get().astype("f8") == 0).all()


@each_type
def test_layouts_that_cublas_cannot_read(cupy, operand, result):
    every_other = cupy.zeros((2, 6, 8), storage(operand))[:, ::2, ::2]
    square = cupy.zeros((2, 4, 4), storage(operand))
    out = cupy.zeros((2, 3, 4), storage(result))
    with pytest.raises(ValueError, match="a GEMM needs rows or columns that are contiguous"):
        matmul(every_other, square, out)
    with pytest.raises(ValueError, match="out must hold its rows contiguously"):
        matmul(cupy.zeros((2, 3, 4), storage(operand)), square, transposed(cupy, out.get()))
    assert not out.any()


def test_half_sums_are_float32(cupy):
    """1000 halves: a sum in float16 would stop at 2048 times the smallest term."""
    a, b = cupy.full((1, 1, 4096), 1, "float16"), cupy.full((1, 4096, 1), 1, "float16")
    out = cupy.empty((1, 1, 1), "float32")
    matmul(a, b, out)
    assert out.item() == 4096


COMPUTE_32F, COMPUTE_64F, COMPUTE_32F_FAST_TF32 = 68, 70, 77  # of cublas_api.h


@pytest.fixture
def asked(monkeypatch):
    """What cuBLAS was asked to compute in: the bed takes FAST_16F for float32."""
    cublas, *rest = gemm._binding()
    types = []

    def product(*arguments):
        types.append(arguments[-2])
        return cublas.gemmStridedBatchedEx(*arguments)

    spy = SimpleNamespace(**vars(cublas) | {"gemmStridedBatchedEx": product})
    monkeypatch.setattr(gemm, "_binding", lambda: (spy, *rest))
    return types


@each_type
def test_no_operand_is_rounded_any_further(cupy, asked, operand, result):
    a, out = cupy.ones((1, 1, 1), storage(operand)), cupy.empty((1, 1, 1), storage(result))
    matmul(a, a, out)
    assert asked == [COMPUTE_64F if result == "float64" else COMPUTE_32F]


@pytest.mark.parametrize("mode", [0, 3])  # CUBLAS_DEFAULT_MATH, CUBLAS_TF32_TENSOR_OP_MATH
@each_type
def test_parts_of_a_sum_are_never_added_in_a_half_type(cupy, operand, result, mode):
    cublas, device, _ = gemm._binding()
    handle = device.get_cublas_handle()
    before = cublas.getMathMode(handle)
    cublas.setMathMode(handle, mode)
    try:
        a, out = cupy.ones((1, 1, 1), storage(operand)), cupy.empty((1, 1, 1), storage(result))
        with record() as log:
            matmul(a, a, out)
            matmul_add(a, a, out, None)
        assert cublas.getMathMode(handle) == mode
    finally:
        cublas.setMathMode(handle, before)
    # CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION, where the result is narrower than the sums.
    asked = mode | 16 if result in HALF else mode
    assert [call.math_mode for call in log.gemms] == [asked, asked]


@pytest.fixture
def tf32(cupy):
    """CuPy's own switch, which the environment sets with CUPY_TF32=1."""
    from cupy._core import _routines_linalg

    before = _routines_linalg.get_compute_type(np.dtype("float32"))
    _routines_linalg.set_compute_type(np.dtype("float32"), _routines_linalg.COMPUTE_TYPE_TF32)
    yield
    _routines_linalg.set_compute_type(np.dtype("float32"), before)


def test_tf32_only_with_cupys_switch(cupy, tf32, asked):
    x = 1 + 2**-11 + 2**-12  # rounded to 10 bits it is 1 + 2**-10
    for operand, result in TYPES:
        a = cupy.full((1, 1, 1), x, storage(operand))
        out = cupy.empty((1, 1, 1), storage(result))
        with record() as log:
            matmul(a, a, out)
        single = operand == result == "float32"
        assert log.gemms[0].tf32 == single
        exact = COMPUTE_64F if result == "float64" else COMPUTE_32F
        assert asked.pop() == (COMPUTE_32F_FAST_TF32 if single else exact)
    assert cupy.asarray(out, "f8").item() == 1
    a = cupy.full((1, 1, 1), x, "float32")
    out = cupy.empty((1, 1, 1), "float32")
    matmul(a, a, out)
    assert out.item() == np.float32((1 + 2**-10) ** 2)


def test_without_it_float32_is_float32(cupy):
    x = 1 + 2**-11  # its square needs 22 bits behind the point, and float32 has 23
    a, out = cupy.full((1, 1, 1), x, "float32"), cupy.empty((1, 1, 1), "float32")
    matmul(a, a, out)
    assert out.item() == x**2
