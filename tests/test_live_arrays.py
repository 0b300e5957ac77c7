"""Arrays of PyTorch and JAX on the CPU, live where these are installed."""

import warnings

import numpy as np
import pytest
from face import flat_equal, normal, raised

from cupy_lstm import LSTM, mse_loss
from cupy_lstm.interchange import adopted

X = normal(2, 5, 3)
TO_FLOAT32 = "convert it with .astype('float32')"


@pytest.fixture(params=["torch", "jax"])
def library(request):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(
            request.param, reason=f"{request.param} is not installed: its arrays are not tried"
        )


def make(library, array):
    return library.tensor(array) if library.__name__ == "torch" else library.numpy.asarray(array)


def test_in_and_out_without_a_copy(library):
    x = make(library, X)
    array = adopted("x", x)
    assert array.ctypes.data == np.asarray(x).ctypes.data
    lstm = LSTM(3, 4, seed=0)
    y, (h, c) = lstm(x)
    expected, final = lstm(X)
    assert flat_equal((y, h, c), (expected, *final))
    if library.__name__ == "torch":
        assert library.from_dlpack(y).data_ptr() == y.ctypes.data
    else:  # JAX copies memory that does not begin at a multiple of 64 bytes
        assert np.array_equal(library.numpy.from_dlpack(y), y)


def test_every_argument(library):
    lstm = LSTM(3, 4, seed=0)
    states, n = (normal(1, 2, 4), normal(1, 2, 4, seed=1)), np.array([5, 2])
    y, final = lstm(X, states, n)
    loss, dy = mse_loss(y, 2 * y)
    expected = (y, final, loss, lstm.backward(dy, final))
    y, final = lstm(
        make(library, X), tuple(make(library, s) for s in states), make(library, n.astype("int32"))
    )
    loss, dy = mse_loss(y, make(library, 2 * y))
    back = lstm.backward(make(library, dy), tuple(make(library, s) for s in final))
    assert flat_equal((y, final, loss, back), expected)


@pytest.mark.parametrize("dtype", ["bool", "int32", "complex64", "float16"])
def test_other_dtypes(library, dtype):
    x = make(library, X.astype(dtype))
    assert raised(ValueError, lambda: LSTM(3, 4)(x)) == (
        f"inputs has dtype {dtype}, but the weights have float32: {TO_FLOAT32}"
    )


def test_half_precision_on_the_host(library):
    x = make(library, X)
    if library.__name__ == "torch":
        error, x = TypeError, x.to(library.bfloat16)
        message = (
            "inputs is a Tensor of torch that cannot be read as an array: Got unsupported "
            "ScalarType BFloat16"
        )
    else:
        error, x = ValueError, x.astype("bfloat16")
        message = f"inputs has dtype bfloat16, but the weights have float32: {TO_FLOAT32}"
    assert raised(error, lambda: LSTM(3, 4)(x)) == message


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="torch is not installed: its tensors are not tried")


def test_tensors_of_a_graph(torch):
    lstm, x = LSTM(3, 4), torch.tensor(X, requires_grad=True)
    message = (
        "inputs requires a gradient, and the graph of torch does not go through this call: pass it "
        "detached (.detach()); cupy_lstm.torch.LSTM is the module for PyTorch's autograd"
    )
    with torch.no_grad():
        assert raised(TypeError, lambda: lstm(x)) == message
    assert raised(TypeError, lambda: lstm(2 * x)) == message
    lstm(x.detach())


def test_tensors_that_are_no_plain_memory(torch):
    z = torch.tensor(X, dtype=torch.complex64)
    for x, reason in (
        (z.conj(), "Use tensor.resolve_conj().numpy() instead."),
        (torch.tensor(X).to_sparse(), "Use Tensor.to_dense() first."),
        (torch.tensor(X, device="meta"), "meta"),
    ):
        assert reason in raised(TypeError, lambda x=x: LSTM(3, 4)(x))


def test_traced_arrays_of_jax():
    jax = pytest.importorskip("jax", reason="jax is not installed: its tracers are not tried")
    text = raised(TypeError, lambda: jax.jit(LSTM(3, 4))(X))
    assert text.startswith("inputs is a DynamicJaxprTracer of jax that cannot be read as an array")
