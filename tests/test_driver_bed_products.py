"""cuBLAS on the fake device: what it computes, what it refuses, and what the bed finds."""

import numpy as np
import pytest
from gpu_on_cpu import DeviceMisuseError, record

pytestmark = pytest.mark.gpu_on_cpu

COMPUTE_32F, COMPUTE_64F, COMPUTE_32F_FAST_TF32, COMPUTE_16F = 68, 70, 77, 64
TYPES = {"float32": 0, "float64": 1, "float16": 2, "bfloat16": 14}
TF32_MATH = 3


def integers(*shape, dtype="float32", seed=0):
    """Small ones: their products are exact in every dtype and in every order."""
    if dtype == "bfloat16":
        dtype = pytest.importorskip("ml_dtypes").bfloat16
    return np.random.default_rng(seed).integers(-3, 4, shape).astype(dtype)


@pytest.fixture
def cublas(cupy):
    from cupy_backends.cuda.libs import cublas

    return cublas


@pytest.fixture
def multiply(cupy, cublas):
    """Return a function for out[b] = alpha left[b] @ right[b] + beta out[b], all C-contiguous."""

    def call(left, right, out, alpha=1.0, beta=0.0, compute=COMPUTE_32F, **changed):
        (batch, m, k), n = left.shape, right.shape[2]
        scalars = np.array([alpha, beta], "f8" if compute == COMPUTE_64F else "f4")
        # Row-major matrices are the transposes of column-major ones, so left and right swap.
        values = {
            "transa": 0,
            "transb": 0,
            "m": n,
            "n": m,
            "k": k,
            "alpha_address": scalars.ctypes.data,
            "a": right.data.ptr,
            "a_type": TYPES[right.dtype.name],
            "lda": n,
            "a_stride": k * n,
            "b": left.data.ptr,
            "b_type": TYPES[left.dtype.name],
            "ldb": k,
            "b_stride": m * k,
            "beta_address": scalars.ctypes.data + scalars.itemsize,
            "c": out.data.ptr,
            "c_type": TYPES[out.dtype.name],
            "ldc": n,
            "c_stride": m * n,
            "batch": batch,
            "compute": compute,
            "algorithm": -1,
        }
        assert not set(changed) - set(values)
        handle = cupy.cuda.device.get_cublas_handle()
        cublas.gemmStridedBatchedEx(handle, *(values | changed).values())

    return call


def operands(cupy, dtype="float32", batch=2, m=3, k=5, n=4):
    left = integers(batch, m, k, dtype=dtype)
    right = integers(batch, k, n, dtype=dtype, seed=1)
    return left, right, cupy.asarray(left), cupy.asarray(right), cupy.empty((batch, m, n), dtype)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("shapes", [((7, 9), (9, 5)), ((3, 7, 9), (3, 9, 5))], ids=["2d", "3d"])
def test_matmul_of_cupy(cupy, dtype, shapes):
    a, b = (integers(*shape, dtype=dtype) for shape in shapes)
    with record() as log:
        product = cupy.matmul(cupy.asarray(a), cupy.asarray(b))
    np.testing.assert_array_equal(product.get(), np.matmul(a, b))
    (gemm,) = log.gemms
    assert gemm.batch == (3 if a.ndim == 3 else 1)
    assert gemm.operations == 2 * 7 * 9 * 5 * gemm.batch


def test_matmul_of_transposed_operands_copies_nothing(cupy):
    a, b = integers(9, 7), integers(5, 9)
    x, y = cupy.asarray(a), cupy.asarray(b)
    with record() as log:
        product = x.T @ y.T
    np.testing.assert_array_equal(product.get(), a.T @ b.T)
    assert not log.launches
    assert log.gemms[0].transposes == "TT"


def test_bfloat16_goes_through_gemm_ex(cupy):
    a, b = integers(6, 30, dtype="bfloat16"), integers(30, 4, dtype="bfloat16")
    with record() as log:
        product = cupy.asarray(a) @ cupy.asarray(b)
    assert log.gemms[0].dtypes == ("bfloat16",) * 3
    np.testing.assert_array_equal(product.get(), (a.astype("f4") @ b.astype("f4")).astype(a.dtype))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_batches_of_every_dtype_with_alpha_and_beta(cupy, multiply, dtype):
    compute = COMPUTE_64F if dtype == "float64" else COMPUTE_32F
    left, right, x, y, out = operands(cupy, dtype)
    expected = left.astype("f4") @ right.astype("f4")
    multiply(x, y, out, compute=compute)  # NaN was there: with beta 0 it is not read
    np.testing.assert_array_equal(out.get().astype("f4"), expected)
    with record() as log:
        multiply(x, y, out, alpha=2, beta=0.5, compute=compute)
    np.testing.assert_array_equal(out.get().astype("f4"), (2.5 * expected).astype(out.dtype))
    (gemm,) = log.gemms
    assert (gemm.m, gemm.n, gemm.k, gemm.batch, gemm.transposes) == (4, 3, 5, 2, "NN")
    assert (gemm.alpha, gemm.beta, gemm.dtypes) == (2, 0.5, (dtype,) * 3)
    assert (gemm.leading, gemm.strides) == ((4, 5, 4), (20, 15, 12))


@pytest.mark.parametrize(("dtype", "digits"), [("float16", 11), ("bfloat16", 8)])
def test_half_types_are_added_in_float32(cupy, multiply, dtype, digits):
    x, y = cupy.ones((1, 1, 4096), dtype), cupy.ones((1, 4096, 1), dtype)
    narrow, wide = cupy.empty((1, 1, 1), dtype), cupy.empty((1, 1, 1), "f4")
    multiply(x, y, narrow)
    multiply(x, y, wide)
    assert float(narrow.astype("f4")[0, 0, 0]) == float(wide[0, 0, 0]) == 4096
    # beta C is added before the sum is rounded: to the type, 2^digits + 1 is 2^digits.
    k = 2**digits + 1
    narrow.fill(1 - k)
    multiply(x[:, :, :k], y[:, :k], narrow, beta=1)
    assert float(narrow.astype("f4")[0, 0, 0]) == 1


def test_transposes_and_leading_dimensions(cupy, multiply):
    wide = cupy.asarray(integers(1, 3, 9))  # the left operand is its columns 2 to 6
    right, out = integers(1, 4, 5), cupy.full((1, 3, 6), 7, "f4")
    multiply(
        wide[:, :, 2:7],
        cupy.asarray(right).swapaxes(1, 2),  # [5,4], stored as [4,5]
        out,
        transa=1,
        lda=5,
        ldb=9,
        ldc=6,
    )
    expected = np.full((1, 3, 6), 7, "f4")
    expected[:, :, :4] = wide.get()[:, :, 2:7] @ right.swapaxes(1, 2)
    np.testing.assert_array_equal(out.get(), expected)


def test_products_run_on_the_current_stream(cupy, multiply):
    *_, x, y, out = operands(cupy)
    with cupy.cuda.Stream(non_blocking=True) as stream, record() as log:
        multiply(x, y, out)
    assert log.gemms[0].stream == stream.ptr


@pytest.mark.parametrize(
    ("math_mode", "compute", "expected"),
    [(0, COMPUTE_32F, False), (TF32_MATH, COMPUTE_32F, True), (0, COMPUTE_32F_FAST_TF32, True)],
)
def test_tf32_is_rounded_and_recorded_only_where_asked_for(
    cupy, cublas, multiply, math_mode, compute, expected
):
    x = cupy.full((1, 1, 1), 1 + 2.0**-12, "f4")  # TF32 has 10 bits after the point
    one, out = cupy.ones((1, 1, 1), "f4"), cupy.empty((1, 1, 1), "f4")
    handle = cupy.cuda.device.get_cublas_handle()
    cublas.setMathMode(handle, math_mode)
    try:
        with record() as log:
            multiply(x, one, out, compute=compute)
        assert cublas.getMathMode(handle) == log.gemms[0].math_mode == math_mode
    finally:
        cublas.setMathMode(handle, 0)
    assert log.gemms[0].tf32 is expected
    assert float(out[0, 0, 0]) == (1 if expected else 1 + 2.0**-12)


def test_scalars_are_where_the_pointer_mode_says(cupy, cublas, multiply):
    *_, x, y, out = operands(cupy)
    expected = x.get() @ y.get()
    scalars = cupy.asarray([2, 0], "f4")
    on_device = {"alpha_address": scalars.data.ptr, "beta_address": scalars.data.ptr + 4}
    with pytest.raises(DeviceMisuseError, match="on the device, not on the host"):
        multiply(x, y, out, **on_device)
    handle = cupy.cuda.device.get_cublas_handle()
    cublas.setPointerMode(handle, 1)
    try:
        assert cublas.getPointerMode(handle) == 1
        multiply(x, y, out, **on_device)
        with pytest.raises(DeviceMisuseError, match=r"alpha of a product: .* no memory of"):
            multiply(x, y, out)
    finally:
        cublas.setPointerMode(handle, 0)
    np.testing.assert_array_equal(out.get(), 2 * expected)


@pytest.mark.parametrize(
    ("changed", "status"),
    [
        ({"lda": 3}, "INVALID_VALUE"),
        ({"transa": 1}, "INVALID_VALUE"),  # then it has 5 rows and a leading dimension of 4
        ({"k": -1}, "INVALID_VALUE"),
        ({"transb": 9}, "INVALID_VALUE"),
        ({"compute": COMPUTE_64F}, "NOT_SUPPORTED"),
        ({"compute": COMPUTE_16F}, "NOT_SUPPORTED"),
        ({"b_type": TYPES["float16"]}, "NOT_SUPPORTED"),
        ({"c_type": TYPES["float16"]}, "NOT_SUPPORTED"),
        ({"a_type": 99}, "NOT_SUPPORTED"),
    ],
)
def test_what_cublas_refuses(cupy, cublas, multiply, changed, status):
    *_, x, y, out = operands(cupy)
    with pytest.raises(cublas.CUBLASError, match=status):
        multiply(x, y, out, **changed)
    multiply(x, y, out)


@pytest.mark.parametrize(
    ("changed", "finding"),
    [
        ({"a_stride": 21}, "matrix A of a product: 164 bytes at .* are not inside of 160 bytes"),
        ({"ldb": 6}, "matrix B of a product"),
        ({"m": 5, "lda": 5, "ldc": 5}, "matrix A of a product"),
        ({"c": 0}, "matrix C of a product: 0x0 is no memory of any device"),
        ({"c_stride": 0}, "written to the same place"),
    ],
)
def test_operands_outside_of_their_memory_are_found(cupy, multiply, changed, finding):
    *_, x, y, out = operands(cupy)
    with pytest.raises(DeviceMisuseError, match=finding):
        multiply(x, y, out, **changed)


def test_other_operands_that_are_found(cupy, multiply):
    *_, x, y, out = operands(cupy, m=4, k=4, n=4)
    with pytest.raises(DeviceMisuseError, match=r"matrix B .*shares elements with its result"):
        multiply(x, y, x)
    with pytest.raises(DeviceMisuseError, match=r"matrix A .* is not aligned"):
        multiply(x, y, out, a=y.data.ptr + 2)
    address = y.data.ptr
    with cupy.cuda.Device(1):
        there = cupy.zeros((2, 4, 4), "f4")
    with pytest.raises(DeviceMisuseError, match="matrix C of a product: device 0 was given"):
        multiply(x, y, there)
    del y
    with pytest.raises(DeviceMisuseError, match="matrix A of a product: use after free"):
        multiply(x, x, out, a=address)


def test_nothing_to_multiply(cupy, multiply):
    *_, x, y, out = operands(cupy)
    out.fill(3)
    multiply(x[:0], y[:0], out[:0])
    multiply(x, y, out, k=0, beta=2)
    np.testing.assert_array_equal(out.get(), np.full((2, 3, 4), 6))
    y.fill(np.nan)
    multiply(x, y, out, alpha=0, beta=1)  # no product is computed, so no NaN arrives
    np.testing.assert_array_equal(out.get(), np.full((2, 3, 4), 6))
