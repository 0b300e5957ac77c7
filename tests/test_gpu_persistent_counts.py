"""What the engine persistent asks of the device: launches, products, captured graphs."""

from collections import Counter
from contextlib import nullcontext

import numpy as np
import pytest
from gpu_on_cpu import record
from gpu_on_cpu.driver.recorder import Allocation, Copy, Fill, Free, Gemm, GraphLaunch, Launch
from persistent_cases import choose_form, each_dtype, each_form, kernels_of

from cupy_lstm import LSTM, engine, no_grad
from cupy_lstm.engines import persistent
from cupy_lstm.notation import LayerWeights

pytestmark = pytest.mark.gpu_on_cpu

T, B, I, H = 6, 3, 4, 8  # noqa: E741
EACH = [("forward", True), ("forward", False), ("bidirect", True), ("bidirect", False)]
each_layer = pytest.mark.parametrize(("direction", "time_major"), EACH)


def recorded(cupy, monkeypatch, *, steps=T, chunk=T, lengths=False, passes="forward", **options):
    """Record one forward or backward pass of a layer; the kernels have been compiled before."""
    monkeypatch.setattr(persistent, "LAUNCH_STEPS", chunk)
    lstm = LSTM(I, H, xp="cupy", seed=0, **options)
    x = cupy.ones((steps, B, I) if lstm.time_major else (B, steps, I), lstm.dtype)
    n = cupy.array([steps, 2, 0]) if lengths else None
    with engine("persistent"):
        with record() as log, no_grad() if passes == "forward" else nullcontext():
            y, _ = lstm(x, None, n)
        if passes == "backward":
            with record() as log:
                lstm.backward(y)
    return log


def work(log):
    """Count what is done on the device; memory is another matter."""
    counts = Counter()
    for entry in log:
        if isinstance(entry, Launch) and entry.name.startswith("recurrence_"):
            counts["kernel"] += 1
        elif isinstance(entry, Gemm):
            counts["gemm"] += 1
        elif isinstance(entry, Launch | Copy | Fill):
            counts["other"] += 1
        else:
            assert isinstance(entry, Allocation | Free), entry
    return counts


def sums(log):
    """Count reductions over steps and rows."""
    return sum("sum" in launch.name for launch in log.launches)


@each_dtype
@each_form
@each_layer
def test_forward_is_one_kernel_and_at_most_one_gemm_a_chunk(
    cupy, monkeypatch, dtype, inside, direction, time_major
):
    choose_form(monkeypatch, inside)
    options = {"dtype": dtype, "direction": direction, "time_major": time_major}
    for chunk, chunks in ((6, 1), (3, 2), (1, 6)):
        counts = work(recorded(cupy, monkeypatch, chunk=chunk, **options))
        assert counts["kernel"] == chunks
        # In chunks the directions are at different times: a product for each, but where both are
        # in the middle.
        apart = 2 * chunks - chunks % 2 if direction == "bidirect" else chunks
        assert counts["gemm"] == (0 if inside else apart)


@each_dtype
@each_form
@each_layer
def test_backward_is_one_kernel_three_gemms_and_one_reduction_a_chunk(
    cupy, monkeypatch, dtype, inside, direction, time_major
):
    choose_form(monkeypatch, inside)
    options = {"dtype": dtype, "direction": direction, "time_major": time_major}
    for chunk, chunks in ((6, 1), (3, 2)):
        log = recorded(cupy, monkeypatch, chunk=chunk, passes="backward", **options)
        counts = work(log)
        assert counts["kernel"] == sums(log) == chunks
        apart = 2 if direction == "bidirect" and chunks > 1 else 1
        assert counts["gemm"] == (2 * apart + 1) * chunks


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("lengths", [False, True])
@each_form
@each_layer
def test_what_else_a_pass_asks_for(
    cupy, monkeypatch, dtype, inside, direction, time_major, lengths
):
    choose_form(monkeypatch, inside)
    options = {"dtype": dtype, "direction": direction, "time_major": time_major}
    for chunk, chunks in ((6, 1), (3, 2)):
        options |= {"chunk": chunk, "lengths": lengths}
        apart = chunks * (2 if direction == "bidirect" and chunks > 1 else 1)
        # Zeros as the first state, the last one to where it is returned; lengths are taken as
        # int64 and checked, and y is zero in padding.
        expected = 4 + lengths * (2 + apart)
        assert work(recorded(cupy, monkeypatch, **options))["other"] == expected
        # Zeros in new gradients of four weights, the input and the state; the state's to where it
        # is returned, and rounded. Each chunk: the sum for the biases, added to both.
        expected = 9 + (dtype == "float16") + 3 * chunks
        if lengths:  # zeros in dz and h, x with zeros in padding
            expected += 2 * chunks + 4 * apart
        elif not time_major and chunks > 1:  # x of the chunk as one matrix
            expected += apart
        log = recorded(cupy, monkeypatch, passes="backward", **options)
        assert work(log)["other"] == expected


def test_both_directions_are_one_product_of_all_gates(cupy, monkeypatch):
    choose_form(monkeypatch, False)
    log = recorded(cupy, monkeypatch, direction="bidirect")
    assert [(e.m, e.n, e.k, e.batch) for e in log.gemms] == [(2 * 4 * H, T * B, I, 1)]
    log = recorded(cupy, monkeypatch, direction="bidirect", passes="backward")
    shapes = {(e.m, e.n, e.k, e.batch) for e in log.gemms}
    assert (I, T * B, 2 * 4 * H, 1) in shapes  # the input's gradient adds over both directions
    assert (H, 4 * H, T * B, 2) in shapes


@each_form
@pytest.mark.parametrize("passes", ["forward", "backward"])
@pytest.mark.parametrize("lengths", [False, True])
def test_nothing_depends_on_the_number_of_steps(cupy, monkeypatch, inside, passes, lengths):
    choose_form(monkeypatch, inside)
    few, many = (
        work(recorded(cupy, monkeypatch, steps=n, chunk=99, passes=passes, lengths=lengths))
        for n in (3, 40)
    )
    assert few == many


def test_frozen_weights_cost_no_product(cupy):
    counts = []
    for trainable in (True, False):
        lstm = LSTM(I, H, xp="cupy", seed=0)
        for p in lstm.parameters():
            p.trainable = trainable
        with engine("persistent"):
            y, _ = lstm(cupy.ones((B, T, I), "float32"))
            with record() as log:
                lstm.backward(y)
        counts.append((len(log.gemms), sums(log)))
    assert counts == [(3, 1), (1, 0)]


def test_everything_runs_on_the_stream_of_the_caller(cupy, monkeypatch):
    stream = cupy.cuda.Stream(non_blocking=True)
    for inside in (True, False):
        choose_form(monkeypatch, inside)
        with stream:
            log = recorded(cupy, monkeypatch, passes="backward", lengths=True)
        assert {entry.stream for entry in log if hasattr(entry, "stream")} == {stream.ptr}


@pytest.mark.parametrize("lengths", [None, (6, 0, 3)])
@pytest.mark.parametrize("direction", ["forward", "bidirect"])
@each_dtype
def test_a_graph_holds_the_whole_layer(cupy, dtype, direction, lengths):
    """The inside form is nothing but kernels; a replay reads what is in the input then."""
    lstm = LSTM(I, H, direction=direction, xp="cupy", dtype=dtype, seed=0)
    rng = np.random.default_rng(0)
    batches = [rng.standard_normal((B, T, I)).astype(dtype) for _ in range(3)]
    n = None if lengths is None else cupy.array(lengths)
    x, stream = cupy.asarray(batches[0]), cupy.cuda.Stream(non_blocking=True)
    weights = lstm_weights(lstm)
    D = lstm.num_directions
    y = cupy.empty((B, T, D, H), dtype).swapaxes(0, 1)
    states = cupy.zeros((D, B, H), dtype), cupy.zeros((D, B, H), "float32")
    pool, seen = cupy.cuda.MemoryPool(), set()

    def forward():
        return persistent.forward(
            x.swapaxes(0, 1), weights, states, n, reverse=(False, True)[:D], y=y, keep=False,
            chunk=T,
        )  # fmt: skip

    # What a capture allocates must be in a pool already: a graph keeps addresses, not memory.
    with cupy.cuda.using_allocator(pool.malloc), stream, no_grad():
        forward()
        stream.begin_capture()
        held, _ = forward()
        graph = stream.end_capture()
        for batch in batches:
            x.set(batch)
            graph.launch(stream)
            found = [array.get() for array in (y, *held)]
            again, _ = forward()
            expected = [array.get() for array in (y, *again)]
            assert [a.tobytes() for a in found] == [a.tobytes() for a in expected]
            seen.add(found[0].tobytes())
    assert len(seen) == len(batches)


@pytest.mark.parametrize("lengths", [None, (6, 0, 3)])
@pytest.mark.parametrize(
    "options", [{"num_layers": 2, "time_major": True}, {"direction": "bidirect"}]
)
@each_dtype
def test_a_caller_may_capture_a_call_of_an_lstm(cupy, dtype, options, lengths):
    """As docs/engines.md has it: called once before, lengths on the device, the pool is kept."""
    lstm = LSTM(I, H, xp="cupy", dtype=dtype, seed=0, **options)
    rng, shape = np.random.default_rng(0), (T, B, I) if lstm.time_major else (B, T, I)
    x = cupy.zeros(shape, dtype)
    n = None if lengths is None else cupy.array(lengths)
    h0, c0 = cupy.zeros((2, B, H), dtype), cupy.zeros((2, B, H), "float32")
    stream, pool, seen = cupy.cuda.Stream(non_blocking=True), cupy.cuda.MemoryPool(), set()
    with cupy.cuda.using_allocator(pool.malloc), stream, no_grad():
        lstm(x, (h0, c0), n)
        stream.begin_capture()
        y, states = lstm(x, (h0, c0), n)
        graph = stream.end_capture()
        for _ in range(3):
            for given in (x, h0, c0):
                given.set(rng.standard_normal(given.shape).astype(given.dtype))
            if n is not None:
                n.set(rng.permutation(n.get()))
            with record() as log:
                graph.launch(stream)
            assert len(log.of(GraphLaunch)) == 1
            assert kernels_of(log) == ["recurrence_forward"] * lstm.num_layers
            assert not log.gemms
            assert not log.synchronisations
            found = [array.get().tobytes() for array in (y, *states)]
            again, final = lstm(x, (h0, c0), n)
            assert found == [array.get().tobytes() for array in (again, *final)]
            seen.add(found[0])
    assert len(seen) == 3


def lstm_weights(lstm):
    """Return the weights of the only layer as an engine takes them."""
    names = [f"{kind}_l0" for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
    return LayerWeights(*(getattr(lstm, name).buffer.data for name in names))
