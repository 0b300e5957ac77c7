"""Streams on CuPy arrays: the values, the place, and no waiting for the GPU."""

from dataclasses import replace

import numpy as np
import pytest
from cases import Case
from face import normal, raised
from gpu_cases import HALF, assert_device_case, each_dtype, prepared
from gpu_on_cpu import record
from oracle import Result
from test_stream import CHANGED, feed, inference, pieces

from cupy_lstm import LSTM, engine

pytestmark = pytest.mark.gpu_on_cpu

X = normal(2, 3)
V, T = ValueError, TypeError
ON_DEVICE = [
    Case("stream-2-layers", T=9, L=2, states=True),
    Case("stream-projection", T=7, L=2, P=3, H=9, bias_hh=False, time_major=True, states=True),
]


@each_dtype
@pytest.mark.parametrize("case", ON_DEVICE, ids=lambda case: case.id)
def test_pieces_on_a_gpu(cupy, case, dtype):
    case = replace(case, frozen=tuple(case.weight_shapes()))  # a stream has no gradients
    lstm, arrays = prepared(cupy, case, dtype)
    with engine("stepwise"):
        expected = inference(lstm, arrays.x, arrays.states)
        streamed = lstm.stream(case.B)
        streamed.state = arrays.states
        whole = streamed(arrays.x), *streamed.state
        for found, wanted in zip(whole, expected, strict=True):
            assert found.dtype == wanted.dtype
            assert found.get().tobytes() == wanted.get().tobytes()
        streamed.state = arrays.states
        y = feed(streamed, arrays.x, pieces(case.T, 0))
    h, c = (array.get() for array in streamed.state)
    assert c.dtype == ("float32" if dtype in HALF else dtype)
    assert_device_case(case, dtype, Result(y.get(), h, c, None))


@each_dtype
def test_nothing_waits_for_the_gpu(cupy, dtype):
    lstm = LSTM(3, 4, 2, xp="cupy", dtype=dtype, seed=0)
    x = cupy.ones((2, 3), dtype)
    out, own = cupy.empty((2, 4), dtype), cupy.cuda.Stream(non_blocking=True)
    done = cupy.array([True, False])
    with record() as log, own:
        streamed = lstm.stream(2)
        streamed(x)
        streamed(x[:, None])
        streamed(x, out=out)
        streamed.reset(done)
        streamed.reset([1])
        streamed.reset()
        streamed.state = streamed.state
        lstm.weight_ih_l0.set_value(lstm.weight_ih_l0.data.copy())
        streamed.refresh()
    assert not log.synchronisations
    assert not log.gemms  # one step is one kernel a layer
    assert {entry.stream for entry in [*log.launches, *log.gemms]} == {own.ptr}


@each_dtype
def test_rows_on_a_gpu(cupy, dtype):
    lstm = LSTM(3, 4, 2, xp="cupy", dtype=dtype, seed=0)
    x = cupy.asarray(normal(4, 3).astype(lstm.dtype))
    x[1] = cupy.nan
    for rows in (cupy.array([False, True, False, True]), [1, 3], np.array([1, 3])):
        streamed = lstm.stream(4)
        streamed(x)
        before = [array.get().astype("float64") for array in streamed.state]
        streamed.reset(rows)
        for array, kept in zip(streamed.state, before, strict=True):
            found = array.get().astype("float64")
            assert np.isnan(kept[:, 1]).all()
            assert not found[:, [1, 3]].any()
            assert np.array_equal(found[:, [0, 2]], kept[:, [0, 2]])
            assert kept[:, [0, 2]].all()


def test_where_arrays_must_be(cupy):
    lstm, host = LSTM(3, 4, xp="cupy", seed=0), LSTM(3, 4, seed=0)
    streamed, on_host = lstm.stream(2), host.stream(2)
    x = cupy.asarray(X)
    expected = streamed(x).get().tobytes()
    streamed.reset()
    both = cupy.ones((2, 7), "float32")
    there = "is on numpy, but the weights are on cupy, device 0: move one of them, for example "
    here = "is on cupy, device 0, but the weights are on numpy: move one of them, for example "
    mask = cupy.zeros(2, bool)
    overlaps = "out overlaps inputs in memory: pass an array of its own"
    for call, error, message in (
        (lambda: streamed(X), T, f"inputs {there}with .to('numpy')"),
        (lambda: on_host(x), T, f"inputs {here}with .to('cupy')"),
        (lambda: streamed(x, out=np.empty((2, 4), "float32")), T, f"out {there}with .to('numpy')"),
        (lambda: on_host.reset(mask), T, f"rows {here}with .to('cupy')"),
        (lambda: streamed(both[:, :3], out=both[:, 3:]), V, overlaps),
        (
            lambda: streamed.reset(cupy.array([0])),
            T,
            "rows is on cupy, device 0, but numbers of rows must be on the host, where they are "
            "checked: pass those, or a mask [2] of bool",
        ),
    ):
        with record() as log:
            assert raised(error, call) == message
        assert not log.synchronisations
        assert not log.launches
    assert streamed(x).get().tobytes() == expected


def test_a_stream_on_the_second_device(cupy):
    second = cupy.cuda.Device(1)
    with second:
        lstm, x = LSTM(3, 4, 2, xp="cupy", seed=0), cupy.asarray(X)
        expected = inference(lstm, x[:, None])[0].get().tobytes()
    # Made, set and reset from anywhere, called where the weights are.
    with record() as log:
        streamed = lstm.stream(2)
        streamed.state = streamed.state
        streamed.reset([0])
        streamed.refresh()
    assert {entry.device for entry in log.launches} <= {1}
    assert raised(ValueError, lambda: streamed(x)) == (
        "the weights are on cupy, device 1, but the current device is 0: call inside "
        "`with cupy.cuda.Device(1):`"
    )
    with second:
        assert streamed(x).get().tobytes() == expected


def test_a_moved_lstm_needs_another_stream(cupy):
    lstm = LSTM(3, 4, seed=0)
    streamed = lstm.stream(2)
    lstm.to("cupy")
    assert raised(RuntimeError, lambda: streamed(X)) == CHANGED
    assert raised(RuntimeError, streamed.refresh) == (
        "the LSTM is float32 on cupy, device 0, but was float32 on numpy when this stream was "
        "made: make a new one with lstm.stream(...)"
    )
