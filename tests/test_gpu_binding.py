"""What products need of CuPy and cuBLAS: a sentence where it is missing, no more than is needed.

What cuBLAS is asked for, and what comes of it, is in test_gpu_gemm.py.
"""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
from gpu_cases import HALF, each_dtype, storage
from gpu_on_cpu import profile, record
from gpu_on_cpu.driver import cublas as fake_cublas

from cupy_lstm import LSTM, gemm
from cupy_lstm.gemm import matmul

pytestmark = pytest.mark.gpu_on_cpu


@pytest.fixture
def binding():
    """The function that finds the parts of CuPy, as if nobody had called it, for one test."""
    gemm._binding.cache_clear()
    yield gemm._binding
    gemm._binding.cache_clear()


def without(monkeypatch, package, name):
    """Let `from package import name` fail as it does where a shared library is missing."""
    monkeypatch.delattr(package, name)
    monkeypatch.setitem(sys.modules, f"{package.__name__}.{name}", None)


@pytest.mark.usefixtures("stepwise")
def test_without_cublas_it_says_what_to_install(cupy, monkeypatch, binding):
    from cupy_backends.cuda import libs

    lstm, x = LSTM(2, 3, xp="cupy", seed=0), cupy.ones((1, 2, 2), "float32")
    expected = lstm(x)[0].get()
    binding.cache_clear()
    with monkeypatch.context() as patch:
        without(patch, libs, "cublas")
        with pytest.raises(ImportError) as caught:
            lstm(x)
    assert str(caught.value).startswith(
        "matrix products on a GPU need cuBLAS: pip install 'cupy_lstm[cuda12x]' "
        "(or cuda13x for CUDA 13); importing it failed with: "
    )
    assert isinstance(caught.value.__cause__, ImportError)
    assert np.array_equal(lstm(x)[0].get(), expected)  # the failure is not remembered


@each_dtype
@pytest.mark.parametrize("status", [fake_cublas.NOT_SUPPORTED, 8])
def test_a_product_that_the_card_lacks_is_named(cupy, monkeypatch, dtype, status):
    def refuse(*_):
        raise fake_cublas.StatusError(status)

    monkeypatch.setattr(fake_cublas, "_require_combination", refuse)
    with profile("T4"):
        a = cupy.ones((1, 2, 2), storage(dtype))
        out = cupy.empty((1, 2, 2), "float64" if dtype == "float64" else "float32")
        with pytest.raises(RuntimeError) as caught:
            matmul(a, a, out)
    assert str(caught.value) == (
        f"cuBLAS does not multiply {dtype} into {out.dtype} on this card "
        "(T4 on a CPU, compute capability 7.5)" + ": use dtype='float32'" * (dtype in HALF)
    )


@each_dtype
def test_another_failure_of_cublas_is_cupys_and_leaves_the_math_mode(cupy, monkeypatch, dtype):
    def fail(*_):
        raise fake_cublas.StatusError(fake_cublas.INVALID_VALUE)

    cublas, device, _ = gemm._binding()
    handle = device.get_cublas_handle()
    before = cublas.getMathMode(handle)
    monkeypatch.setattr(fake_cublas, "_require_combination", fail)
    a, out = (cupy.ones((1, 2, 2), storage(dtype)) for _ in range(2))
    with pytest.raises(cublas.CUBLASError, match="INVALID_VALUE"):
        matmul(a, a, out)
    assert cublas.getMathMode(handle) == before


@each_dtype
@pytest.mark.parametrize("to_half", [True, False])
def test_cublas_is_asked_once_where_the_result_is_no_half_type(cupy, monkeypatch, dtype, to_half):
    cublas, *rest = gemm._binding()
    called = []

    def spied(name):
        def call(*arguments):
            called.append(name)
            return getattr(cublas, name)(*arguments)

        return call

    names = ("gemmStridedBatchedEx", "getMathMode", "setMathMode")
    spy = SimpleNamespace(**{name: spied(name) for name in names})
    monkeypatch.setattr(gemm, "_binding", lambda: (spy, *rest))
    half = dtype in HALF and to_half
    result = dtype if half or dtype == "float64" else "float32"
    matmul(*(cupy.ones((1, 2, 2), storage(kind)) for kind in (dtype, dtype, result)))
    product, get, set_ = names
    assert called == ([get, set_, product, set_] if half else [product])


@pytest.mark.parametrize("missing", ["_routines_linalg", "get_compute_type", "COMPUTE_TYPE_TF32"])
def test_a_cupy_that_keeps_its_switch_elsewhere_multiplies_without_tf32(
    cupy, monkeypatch, binding, missing
):
    from cupy import _core
    from cupy._core import _routines_linalg as linalg

    x = 1 + 2**-11  # TF32 would round it to 1 or to 1 + 2**-10
    a, out = cupy.full((1, 1, 1), x, "float32"), cupy.empty((1, 1, 1), "float32")
    monkeypatch.setattr(linalg, "get_compute_type", lambda dtype: linalg.COMPUTE_TYPE_TF32)
    with record() as log:
        matmul(a, a, out)
    assert log.gemms[0].tf32
    binding.cache_clear()
    monkeypatch.delattr(_core if missing == "_routines_linalg" else linalg, missing)
    with record() as log:
        matmul(a, a, out)
    assert not log.gemms[0].tf32
    assert out.item() == x**2
