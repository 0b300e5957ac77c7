"""Streams on CuPy replay one step as a CUDA graph: the same bits, few requests, no waiting."""

import gc
import weakref

import numpy as np
import pytest
from cases import Case
from face import normal, raised
from gpu_cases import HALF, assert_device_case, each_dtype, prepared
from gpu_on_cpu import order, record
from gpu_on_cpu.driver.recorder import Allocation, Copy, Free, GraphLaunch, Launch
from oracle import Result
from test_gpu_step import inference
from test_stream import CHANGED, feed, pieces

from cupy_lstm import LSTM, engine, no_grad, plan

pytestmark = pytest.mark.gpu_on_cpu

LAYERS, B, I, H = 2, 3, 5, 8  # noqa: E741
CASES = [
    inference(case)
    for case in (
        Case("graph", T=9, L=2, states=True),
        Case("graph-rows", T=5, B=9, I=8, H=16, L=3, time_major=True, states=True),
        Case("graph-projection", T=6, L=2, P=3, H=9, bias_hh=False, states=True),
    )
]
each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)


def make(cupy, dtype="float32", **options):
    """Return an LSTM, and inputs [8,B,I] for steps of its streams."""
    lstm = LSTM(I, H, LAYERS, xp="cupy", dtype=dtype, seed=0, **options)
    steps = np.random.default_rng(0).standard_normal((8, B, I))
    return lstm, cupy.asarray(steps.astype(lstm.dtype))


def replays(log):
    """Return how many graphs were launched, and how many kernels of ours outside of one."""
    outside = [e for e in log.launches if e.graph is None and e.name.startswith("step_")]
    return len(log.of(GraphLaunch)), len(outside)


def bits(streamed, *outputs):
    return [array.get().tobytes() for array in (*outputs, *streamed.state)]


# --- values --------------------------------------------------------------------------------------


@each_dtype
@each_case
def test_every_step_is_that_of_the_plain_kernels(cupy, case, dtype):
    lstm, arrays = prepared(cupy, case, dtype)
    replayed = lstm.stream(case.B)
    replayed.state = h, c = arrays.states
    with record() as log:
        y = feed(replayed, arrays.x, range(case.T))
    assert replays(log) == (case.T - 1, case.L * (1 + bool(case.P)))
    # Each step as a call of its own, which knows no graph.
    time = 0 if case.time_major else 1
    with engine("single"), no_grad(), record() as log:
        parts = []
        for t in range(case.T):
            x = arrays.x[t : t + 1] if case.time_major else arrays.x[:, t : t + 1]
            part, (h, c) = lstm(x, (h, c))
            parts.append(part)
    assert not log.of(GraphLaunch)
    plain = cupy.concatenate(parts, axis=time)
    assert bits(replayed, y) == [a.get().tobytes() for a in (plain, h, c)]
    h, c = (array.get() for array in replayed.state)
    assert c.dtype == ("float32" if dtype in HALF else dtype)
    assert_device_case(case, dtype, Result(y.get(), h, c, None))


@each_dtype
def test_in_every_order_of_threads_the_same_bits(cupy, dtype):
    lstm, x = make(cupy, dtype, proj_size=3)
    found = []
    for turn in (("forward", 0), ("reverse", 0), ("random", 1), ("random", 2)):
        with order(*turn):
            streamed = lstm.stream(B)
            found.append(bits(streamed, *[streamed(step) for step in x]))
    assert found[1:] == found[:-1]


@each_dtype
@each_case
def test_several_steps_in_between(cupy, case, dtype):
    lstm, arrays = prepared(cupy, case, dtype)
    streamed = lstm.stream(case.B)
    streamed.state = arrays.states
    y = feed(streamed, arrays.x, pieces(case.T, 1))
    h, c = (array.get() for array in streamed.state)
    assert_device_case(case, dtype, Result(y.get(), h, c, None))


def test_outputs_are_arrays_of_their_own(cupy):
    lstm, x = make(cupy)
    streamed = lstm.stream(B)
    kept = [streamed(step) for step in x]
    before = [y.get().tobytes() for y in kept]
    assert len(set(before)) == len(x)
    streamed(x[0])
    assert [y.get().tobytes() for y in kept] == before


@pytest.mark.parametrize("replayed", [False, True])
def test_out_and_inputs_of_any_strides(cupy, replayed):
    lstm, x = make(cupy)
    other, streamed = lstm.stream(B), lstm.stream(B)
    wide = cupy.zeros((B, 2 * I + 1), "float32")
    out = cupy.zeros((H, B, 2), "float32")
    for t in range(1 + replayed):
        expected = other(x[t])
        wide[:, 1::2] = x[t]
        view = out.T[1]
        assert streamed(wide[:, 1::2], out=view) is view
        assert view.get().tobytes() == expected.get().tobytes()
    assert bits(streamed) == bits(other)
    assert not out[..., 0].any()


# --- what it asks of the device ------------------------------------------------------------------


@each_dtype
def test_a_call_is_a_copy_a_graph_and_a_copy(cupy, dtype):
    lstm, x = make(cupy, dtype)
    streamed, out = lstm.stream(B), cupy.empty((B, H), lstm.dtype)
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        with record(collect=True) as first:
            streamed(x[0], out=out)
        streamed(x[1], out=out)
        with record(collect=True) as log:
            streamed(x[2], out=out)
    # The graph: a kernel a layer, and h to where the next step finds it.
    own = [GraphLaunch, *[Launch] * LAYERS, Copy]
    assert [type(entry) for entry in log] == [Copy, *own, Copy]
    assert [type(entry) for entry in first] == [Copy, *own[1:], Copy]
    assert {entry.stream for entry in [*log, *first]} == {stream.ptr}
    for found in (log, first):
        assert not found.host_copies
        assert not found.synchronisations


@each_dtype
@pytest.mark.parametrize("proj_size", [0, 3])
def test_no_call_waits_or_multiplies_with_cublas(cupy, dtype, proj_size):
    lstm, x = make(cupy, dtype, proj_size=proj_size)
    with record() as log:
        streamed = lstm.stream(B)
        for t in range(3):
            streamed(x[t])
        streamed.reset([1])
        streamed.state = streamed.state
        streamed(x[3])
        lstm.bias_hh_l0.set_value(lstm.bias_hh_l0.data.copy())
        streamed.refresh()
        for t in range(3):
            streamed(x[t])
    assert len(log.of(GraphLaunch)) == 5
    assert not log.gemms
    assert not log.synchronisations


def test_a_call_allocates_nothing_but_its_outputs(cupy):
    lstm, x = make(cupy)
    streamed = lstm.stream(B)
    streamed(x[0])
    with record() as log:
        streamed(x[1])  # records the graph
        streamed(x[2])
    sizes = {entry.bytes for entry in log.of(Allocation)}
    assert len(log.of(Allocation)) == 2
    assert sizes <= {max(512, B * H * 4)} | {B * H * 4}
    assert {type(entry) for entry in log} <= {Allocation, Free, Copy, GraphLaunch, Launch}


def test_the_kernels_are_compiled_with_the_stream(cupy, monkeypatch):
    from cupy_lstm.engines import single
    from cupy_lstm.kernels import Kernel

    single._kernel.cache_clear()
    compiled, function = [], Kernel.function

    def watched(kernel, device):
        if device not in kernel._functions:
            compiled.append(kernel.expression)
        return function(kernel, device)

    monkeypatch.setattr(Kernel, "function", watched)
    lstm, x = make(cupy, proj_size=3)
    streamed = lstm.stream(B)
    assert compiled == ["step_gates<float, 4>", "step_projection<float, 4>"]
    for t in range(3):
        streamed(x[t])
    assert len(compiled) == 2


# --- the state -----------------------------------------------------------------------------------


@each_dtype
def test_a_state_is_set_reset_and_read_between_replays(cupy, dtype):
    """What a plain loop of calls does with states of its own."""
    lstm, x = make(cupy, dtype)
    streamed = lstm.stream(B)
    h, c = (cupy.zeros_like(a) for a in streamed.state)

    def step(t):
        nonlocal h, c
        with engine("single"), no_grad():
            y, (h, c) = lstm(x[t][:, None], (h, c))
        assert bits(streamed, streamed(x[t])) == [a.get().tobytes() for a in (y[:, 0], h, c)]

    def check():
        assert bits(streamed) == [a.get().tobytes() for a in (h, c)]

    for t in range(3):
        step(t)
    for rows in ([1], cupy.array([True, False, True]), None):
        streamed.reset(rows)
        chosen = slice(None) if rows is None else rows
        h[:, chosen], c[:, chosen] = 0, 0
        check()
        step(3)
        step(4)
    h, c = (cupy.asarray(normal(*a.shape, seed=7).astype(a.dtype)) for a in (h, c))
    given = h.copy(), c.copy()
    streamed.state = given
    for array in given:
        array.fill(cupy.nan)  # it was copied
    check()
    step(5)
    before = streamed.state
    for array in streamed.state:
        array.fill(cupy.nan)  # so is what is read
    step(6)
    assert not any(cupy.isnan(a).any() for a in before)


def test_a_failed_call_leaves_the_state_alone(cupy):
    lstm, x = make(cupy)
    streamed, other = lstm.stream(B), lstm.stream(B)
    for one in (streamed, other):
        one(x[0])
        one(x[1])
    state = bits(streamed)
    out = cupy.zeros((B, H), "float32")
    for wrong in (x[0, :2], x[0].astype("float64"), x[0].get()):
        with pytest.raises((TypeError, ValueError)):
            streamed(wrong)
    for wrong in (out[:2], out.astype("float64"), out.get()):
        with pytest.raises((TypeError, ValueError)):
            streamed(x[2], out=wrong)
    assert bits(streamed) == state
    assert bits(streamed, streamed(x[2])) == bits(other, other(x[2]))


def test_a_failed_record_is_tried_again(cupy, monkeypatch):
    from cupy_lstm.engines.single import LayerStep

    lstm, x = make(cupy)
    streamed, other = lstm.stream(B), lstm.stream(B)
    for one in (streamed, other):
        one(x[0])
    state, run = bits(streamed), LayerStep.run

    def fails(layer, *arguments, **options):
        run(layer, *arguments, **options)
        raise RuntimeError("on purpose")

    monkeypatch.setattr(LayerStep, "run", fails)
    assert raised(RuntimeError, lambda: streamed(x[1])) == "on purpose"
    monkeypatch.undo()
    assert bits(streamed) == state
    with record() as log:
        y = streamed(x[1])
    assert replays(log) == (1, 0)
    assert bits(streamed, y) == bits(other, other(x[1]))


def test_streams_are_independent(cupy):
    lstm, x = make(cupy)
    alone = lstm.stream(B)
    expected = [alone(step).get().tobytes() for step in x]
    first, second, single_row = lstm.stream(B), lstm.stream(B), lstm.stream(1)
    for t, step in enumerate(x):
        assert first(step).get().tobytes() == expected[t]
        second(x[-1 - t])
        single_row(step[:1])
        second.reset([0])


# --- weights, engines, devices, lifetime ---------------------------------------------------------


def test_refresh_records_anew(cupy):
    lstm, x = make(cupy)
    streamed, old = lstm.stream(B), lstm.stream(B)
    for t in range(3):
        streamed(x[t])
        old(x[t])
    lstm.weight_hh_l1.set_value(lstm.weight_hh_l1.data * 2)
    state = streamed.state
    for one in (streamed, old):
        assert raised(RuntimeError, lambda one=one: one(x[3])) == CHANGED
    streamed.refresh()
    with record() as log, no_grad():
        ys = [streamed(x[3]), streamed(x[4])]
    assert replays(log) == (1, LAYERS)
    with engine("single"), no_grad():
        y, (h, c) = lstm(x[3:5].swapaxes(0, 1), state)
    assert bits(streamed, *ys) == [a.get().tobytes() for a in (y[:, 0], y[:, 1], h, c)]


def test_another_engine_for_some_calls(cupy, monkeypatch):
    case = CASES[0]
    lstm, arrays = prepared(cupy, case, "float32")
    streamed, ys = lstm.stream(case.B), []
    streamed.state = arrays.states
    for t in range(case.T):
        with engine("stepwise" if t % 3 == 2 else "auto"), record() as log:
            ys.append(streamed(arrays.x[:, t]))
        assert bool(log.gemms) == (t % 3 == 2)
        assert len(log.of(GraphLaunch)) == (t % 3 != 2 and t > 0)
    y, (h, c) = cupy.stack(ys, axis=1), streamed.state
    assert_device_case(case, "float32", Result(y.get(), h.get(), c.get(), None))
    # A layer that is too large for it is not captured, whoever made the stream.
    monkeypatch.setattr(plan, "STEP_PRODUCTS", 0)
    large = lstm.stream(case.B)
    with record() as log:
        for t in range(3):
            large(arrays.x[:, t])
    assert replays(log) == (0, 0)


def test_on_the_second_device(cupy):
    lstm, x = make(cupy)
    expected = lstm.stream(B)
    with cupy.cuda.Device(1):
        there = LSTM(I, H, LAYERS, xp="cupy", seed=0)
        x_there = cupy.asarray(x.get())
    streamed = there.stream(B)  # made from anywhere
    for t in range(4):
        with cupy.cuda.Device(1), record() as log:
            y = streamed(x_there[t])
        assert {entry.device for entry in log.launches} == {1}
        assert y.get().tobytes() == expected(x[t]).get().tobytes()
    with record() as log:
        streamed.refresh()
        streamed.reset()
    assert {entry.device for entry in [*log.launches, *log.of(Allocation)]} <= {1}


def test_a_stream_frees_what_it_held(cupy):
    lstm, x = make(cupy)
    streamed = lstm.stream(B)
    for t in range(3):
        streamed(x[t])
    gone = weakref.ref(streamed._snapshot.step(streamed._memory))
    gc.disable()
    try:
        del streamed
        assert gone() is None  # at once: there is no cycle
    finally:
        gc.enable()


# --- the caller's own capture --------------------------------------------------------------------


@each_dtype
def test_a_caller_may_capture_a_call(cupy, dtype):
    """Each replay goes on from the state it finds, also between calls of the stream's own."""
    lstm, x = make(cupy, dtype, proj_size=3)
    streamed, other = lstm.stream(B), lstm.stream(B)
    given, out = cupy.empty((B, I), lstm.dtype), cupy.empty((B, 3), lstm.dtype)
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        for t in range(2):
            streamed(x[t])
            other(x[t])
        state = bits(streamed)
        stream.begin_capture()
        streamed(given, out=out)
        graph = stream.end_capture()
        assert bits(streamed) == state, "a capture runs nothing"
        for t in range(2, 7):
            if t == 4:
                y = streamed(x[t])
            else:
                given[...] = x[t]
                with record() as log:
                    graph.launch(stream)
                assert len(log.of(GraphLaunch)) == 1, "its kernels, and no graph within the graph"
                y = out
            if t == 5:
                for one in (streamed, other):
                    one.reset([0])
                other.state = streamed.state
                continue
            assert bits(streamed, y) == bits(other, other(x[t]))


def test_a_caller_may_capture_the_first_call(cupy):
    """If it is given all memory, and the kernels have been loaded before."""
    lstm, x = make(cupy)
    streamed, other = lstm.stream(B), lstm.stream(B)
    expected = other(x[0])
    out, stream = cupy.empty((B, H), "float32"), cupy.cuda.Stream(non_blocking=True)
    with stream:
        stream.begin_capture()
        streamed(x[0], out=out)
        graph = stream.end_capture()
        graph.launch(stream)
        assert bits(streamed, out) == bits(other, expected)
    with record() as log:
        y = streamed(x[1])
    assert bits(streamed, y) == bits(other, other(x[1]))
    assert not log.synchronisations
