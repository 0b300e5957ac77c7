"""Arrays of other libraries on the host: taken in everywhere, nothing copied, nothing written."""

import warnings

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from bench import TO_FLOAT32, Bench, right_gradients
from exchange import HOST_STAND_INS, ArrayMethod, DLPack, RefusingDLPack
from face import flat_equal, normal, raised

from cupy_lstm import LSTM, Batches, Linear, LSTMCell, mse_loss, sliding_windows
from cupy_lstm import softmax_cross_entropy as cross_entropy
from cupy_lstm.functional import lstm_backward, lstm_forward
from cupy_lstm.interchange import adopted
from cupy_lstm.notation import LayerGradients

X = normal(2, 5, 3)
each_stand_in = pytest.mark.parametrize("wrap", HOST_STAND_INS)


def addresses(array):
    return np.lib.array_utils.byte_bounds(array)


def foreign(value, wrap):
    """Wrap the arrays of nested tuples."""
    if isinstance(value, tuple):
        return tuple(foreign(part, wrap) for part in value)
    return wrap(value)


@each_stand_in
def test_every_call_takes_them_bit_for_bit(wrap):
    bench = Bench()
    bench.lstm.dropout_calls -= 1  # that of the call which this one repeats
    for name in ("x", "x0", "y", "cells", "states", "own", "small", "lengths"):
        setattr(bench, name, foreign(getattr(bench, name), wrap))
    bench.call()
    assert flat_equal(bench.go_back(), right_gradients())


@each_stand_in
def test_nothing_is_copied(wrap):
    lstm = LSTM(3, 4, seed=0)
    weights = [layer.arrays() for layer in lstm._layers]
    *_, tape = lstm_forward(wrap(X), weights)
    assert addresses(tape.x) == addresses(X)


@each_stand_in
def test_a_stream_takes_them(wrap):
    lstm = LSTM(3, 4, seed=0)
    plain, other = lstm.stream(2), lstm.stream(2)
    plain.state, other.state = ((h, h) for h in (normal(1, 2, 4), wrap(normal(1, 2, 4))))
    assert np.array_equal(other(wrap(X)), plain(X))
    out = np.empty((2, 4), "float32")
    given = wrap(out)
    assert other(wrap(X[:, 0]), out=given) is given
    assert np.array_equal(out, plain(X[:, 0]))
    for rows in (np.array([1]), np.array([True, False])):
        other.reset(wrap(rows))
        plain.reset(rows)
        assert flat_equal(other.state, plain.state)


@each_stand_in
def test_layers_and_losses_around_take_them(wrap):
    linear, labels = Linear(3, 4, seed=0), np.array([[0, 1, 2, 3, 0]] * 2)
    y = linear(X)
    dx = linear.backward(y)
    assert np.array_equal(linear(wrap(X)), y)
    assert np.array_equal(linear.backward(wrap(y)), dx)
    assert flat_equal(mse_loss(y, wrap(2 * y)), mse_loss(y, 2 * y))
    assert flat_equal(cross_entropy(y, wrap(labels)), cross_entropy(y, labels))


@each_stand_in
def test_windows_and_batches_are_views_of_them(wrap):
    windows = sliding_windows(wrap(X[0]), 2)
    assert np.shares_memory(windows, X)
    (x, y), *_ = Batches((wrap(X), X), wrap(X[:, 0]), 2)
    assert np.array_equal(x[0], X)
    assert np.array_equal(y, X[:, 0])


@each_stand_in
def test_values_that_cannot_be_written_and_any_strides(wrap):
    lstm = LSTM(3, 4, seed=0)
    expected, _ = lstm(X)
    fixed = X.copy()
    fixed.flags.writeable = False
    reversed_ = np.ascontiguousarray(X[::-1, :, ::-1])[::-1, :, ::-1]
    for x in (fixed, reversed_, np.asfortranarray(X)):
        assert np.array_equal(lstm(wrap(x))[0], expected)


def test_results_go_out_without_a_copy():
    y, (h, c) = LSTM(3, 4, seed=0)(DLPack(X))
    for array in (y, h, c):
        assert type(array) is np.ndarray
        assert addresses(np.from_dlpack(array)) == addresses(array)


# --- pandas and PyArrow --------------------------------------------------------------------------


def test_pandas():
    frame = pd.DataFrame(X[0], columns=["a", "b", "c"])  # of one dtype: one block of memory
    cell, lstm = LSTMCell(3, 4, seed=0), LSTM(3, 4, seed=0)
    assert np.array_equal(cell(frame)[0], cell(X[0])[0])
    assert np.array_equal(lstm.stream(5)(frame), lstm.stream(5)(X[0]))
    windows = sliding_windows(frame, 2)
    assert np.shares_memory(windows, frame.to_numpy())
    assert np.array_equal(windows, sliding_windows(X[0], 2))
    y, _ = lstm(X, sequence_length=pd.Series([5, 2], index=["first", "second"]))
    assert np.array_equal(y, lstm(X, sequence_length=[5, 2])[0])
    mixed = frame.assign(b=["x", "y", "z", "x", "y"])
    for bad, dtype in ((mixed, "object"), (frame.astype("float64"), "float64")):
        assert raised(ValueError, lambda bad=bad: cell(bad)) == (
            f"inputs has dtype {dtype}, but the weights have float32: {TO_FLOAT32}"
        )
    missing = pd.Series([5, None], dtype="Int64")
    assert raised(ValueError, lambda: lstm(X, sequence_length=missing)) == (
        "sequence_length must hold integers, received dtype float64"
    )


def test_pyarrow():
    lstm = LSTM(3, 4, seed=0)
    expected, _ = lstm(X, sequence_length=[5, 2])
    for lengths in (pa.array([5, 2]), pa.chunked_array([[5], [2]])):
        assert np.array_equal(lstm(X, sequence_length=lengths)[0], expected)
    column = pa.array(X[0, :, 0])
    assert adopted("column", column).ctypes.data == column.buffers()[1].address
    table = pa.table({"a": X[0, :, 0], "b": X[0, :, 1], "c": X[0, :, 2]})
    assert np.array_equal(lstm.stream(5)(table), lstm.stream(5)(X[0]))


# --- errors --------------------------------------------------------------------------------------


class OnGpu(DLPack):
    """On a GPU; who asks for the memory all the same has moved it."""

    def __dlpack_device__(self):
        return 2, 1

    def __dlpack__(self, **options):
        raise AssertionError("asked for")

    __array__ = __dlpack__


class OnAnyGpu:
    __cuda_array_interface__ = {"data": (0, False)}  # noqa: RUF012


class OnMetal(OnGpu):
    def __dlpack_device__(self):
        return 8, 0


class Spilled:
    """Its interface is a property that fails."""

    @property
    def __cuda_array_interface__(self):
        raise NotImplementedError("strings")


class Broken(RefusingDLPack):
    def __array__(self, dtype=None, copy=None):
        raise RuntimeError("call .to_dense() first")


class Attached(ArrayMethod):
    requires_grad = True


class PaddleLike(ArrayMethod):
    stop_gradient = False


UNREADABLE = "inputs is a {} of {} that cannot be read as an array: {}"
NO_GRAPH = (
    "inputs requires a gradient, and the graph of test_interchange does not go through this call: "
    "pass it detached (.detach()); cupy_lstm.torch.LSTM is the module for PyTorch's autograd"
)
MOVE = ", but the weights are on numpy: move one of them, for example with .to('cupy')"
HERE = "test_interchange"
BAD = {
    "gpu": (OnGpu(X), TypeError, f"inputs is on GPU 1{MOVE}"),
    "some-gpu": (OnAnyGpu(), TypeError, f"inputs is on a GPU{MOVE}"),
    "metal": (
        OnMetal(X),
        TypeError,
        "inputs is on a device of kind 8 of DLPack, which is neither the host nor a GPU of CUDA: "
        "copy it to the host first",
    ),
    "spilled": (Spilled(), TypeError, UNREADABLE.format("Spilled", HERE, "strings")),
    "broken": (Broken(X), TypeError, UNREADABLE.format("Broken", HERE, "call .to_dense() first")),
    "torch": (Attached(X), TypeError, NO_GRAPH),
    "paddle": (PaddleLike(X), TypeError, NO_GRAPH),
    "shape": (
        DLPack(X[0]),
        ValueError,
        "inputs has shape [5, 3], but must have shape [batch, steps, 3]",
    ),
    "bytes": (
        ArrayMethod(X.astype(">f4")),
        ValueError,
        f"inputs has dtype >f4, but the weights have float32: {TO_FLOAT32}",
    ),
}
for wrong in ("bool", "complex64", "object", "float16", "int32", "datetime64[ns]"):
    BAD[wrong] = (
        ArrayMethod(X.astype(wrong)),
        ValueError,
        f"inputs has dtype {wrong}, but the weights have float32: {TO_FLOAT32}",
    )


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_come_in(name):
    value, error, message = BAD[name]
    bench = Bench()
    before = bench.state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert raised(error, lambda: bench.lstm(value)) == message
    assert bench.state() == before
    assert flat_equal(bench.go_back(), right_gradients())


@pytest.mark.parametrize("wrap", [*HOST_STAND_INS, OnGpu])
def test_weights_and_their_gradients_are_plain_arrays(wrap):
    """They say where everything else must be, and gradients are written."""
    bench = Bench()
    for kind, weight in zip(bench.first._fields, bench.first, strict=True):
        if weight is None:
            continue
        message = "must be an array of numpy or cupy, received " + wrap.__name__
        given = raised(TypeError, lambda: bench.one(**{kind: wrap(weight)}))  # noqa: B023
        assert given == f"weights[0].{kind} {message}"
        target = bench.gradients[0]._replace(**{kind: wrap(np.zeros_like(weight))})
        gradients = [LayerGradients(*target), bench.gradients[1]]
        text = raised(
            TypeError,
            lambda: lstm_backward(bench.tape, bench.y, gradients=gradients),  # noqa: B023
        )
        assert text == f"gradients[0].{kind} {message}"


def test_numbers_and_lists_are_no_arrays_of_other_libraries():
    for value in (np.float32(3), 3.0, [[1.0]], None, np.ma.masked_less(X, 0)):
        assert adopted("value", value) is value
