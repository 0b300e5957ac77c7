"""What a call needs beside its results: bounded by the plan, and without effect on the results.

Memory is counted by tracemalloc, which sees every array of NumPy.
"""

import dataclasses
import itertools
import tracemalloc

import numpy as np
import pytest
from cases import (
    HOST_ENGINES,
    Case,
    aim_at_steps,
    assert_case,
    assert_within_rule,
    build,
    results,
    run_face,
)

from cupy_lstm import LSTM, engine, engines, network, no_grad, warmup
from cupy_lstm.backend import is_array
from cupy_lstm.engines import stepwise
from cupy_lstm.functional import lstm_backward, lstm_forward
from cupy_lstm.gates import HostGates
from cupy_lstm.notation import LayerGradients, LayerWeights, Shape, Wanted
from cupy_lstm.plan import plan_sweep
from cupy_lstm.simd import ready, reserve

NUMPY_BUFFERS = 3 * 8192 * 8
"""NumPy's element-wise functions may pass through a buffer of 8192 elements an operand."""

OBJECTS = 16 * 2**10
"""Python's own objects: array headers, tuples, plans."""

SLACK = NUMPY_BUFFERS + OBJECTS

each_engine = pytest.mark.parametrize("name", HOST_ENGINES)


@pytest.fixture
def traced(monkeypatch):
    # What an earlier call has left is no need of this one, and may be larger than what it asks for.
    monkeypatch.setattr(reserve, "LARGEST", 0)
    # A rehearsal: what is imported or compiled at the first call is not of its workspace.
    warmup()
    for name in HOST_ENGINES:
        lstm = LSTM(3, 4)
        with engine(name):
            y, _ = lstm(np.zeros((2, 5, 3), "float32"), sequence_length=[5, 3])
            lstm.backward(y)
    tracemalloc.start()
    yield
    tracemalloc.stop()


def peak_of(call):
    """Run `call`; return its result and how far memory rose above what there was before it."""
    tracemalloc.reset_peak()
    before, _ = tracemalloc.get_traced_memory()
    result = call()
    return result, tracemalloc.get_traced_memory()[1] - before


def owned(*arrays):
    """Bytes of the memory behind the arrays, each memory once."""
    whole = {}
    for array in arrays:
        while array.base is not None:
            array = array.base
        whole[id(array)] = array.nbytes
    return sum(whole.values())


def tape_bytes(tape):
    """Bytes a tape owns, whatever its engine has noted there.

    Inputs and weights are held by reference; inputs of the upper layers are the tape's own.
    """
    layers = tape.network.layers
    return owned(*arrays_in(layers), *(layer.x for layer in layers[1:]))


def arrays_in(value):
    """Return every array in lists, tuples and records, but for what is held by reference."""
    if is_array(value):
        return [value]
    if dataclasses.is_dataclass(value):
        names = {field.name for field in dataclasses.fields(value)} - {"x", "weights"}
        value = [getattr(value, name) for name in names]
    if isinstance(value, list | tuple):
        return [array for part in value for array in arrays_in(part)]
    return []


SHAPES = [
    # More steps than a chunk: the plan's aim is the bound, however long the sequence is.
    pytest.param(20000, 2, Shape(0, 0, 3, 4, 4, 1), {"lengths": True}, id="long-lengths"),
    pytest.param(8000, 1, Shape(0, 0, 8, 32, 32, 1), {}, id="long"),
    pytest.param(400, 16, Shape(0, 0, 32, 64, 64, 2), {"lengths": True}, id="bidirectional"),
    pytest.param(
        300, 16, Shape(0, 0, 32, 64, 16, 2), {"lengths": True, "cells": True}, id="projection"
    ),
    pytest.param(300, 16, Shape(0, 0, 32, 64, 63, 1), {"cells": True}, id="projection-h-minus-1"),
    pytest.param(120, 32, Shape(0, 0, 200, 40, 40, 1), {"states": False}, id="wide-input"),
    pytest.param(60, 16, Shape(0, 0, 40, 64, 64, 2), {"layers": 3}, id="3-layers-bidirectional"),
    pytest.param(30, 16, Shape(0, 0, 40, 64, 64, 1), {"layers": 5}, id="5-layers"),
    # One chunk, or less than one.
    pytest.param(20, 1, Shape(0, 0, 300, 256, 256, 1), {}, id="one-chunk"),
    pytest.param(3, 64, Shape(0, 0, 300, 256, 256, 1), {"lengths": True}, id="few-steps"),
    pytest.param(0, 3, Shape(0, 0, 4, 5, 5, 1), {}, id="no-steps"),
    pytest.param(5, 0, Shape(0, 0, 4, 5, 5, 2), {"lengths": True}, id="no-rows"),
]


def random_weights(sizes, layers, dtype):
    """Weights of layers upon layers, the directions in front."""
    _, _, I, H, P, D = sizes  # noqa: E741
    rng = np.random.default_rng(0)
    for layer in range(layers):
        features = D * P if layer else I
        shapes = (4 * H, features), (4 * H, P), (4 * H,), (4 * H,), *([(H, P)] * (P != H))
        yield LayerWeights(*(rng.uniform(-0.1, 0.1, (D, *shape)).astype(dtype) for shape in shapes))


def options_of(sizes, T, B, dtype, lengths=False, cells=False, states=True, layers=1):
    """Arguments of `lstm_forward` beside inputs and weights."""
    rng = np.random.default_rng(1)
    initial = None
    if states:
        shapes = ((layers * sizes.D, B, size) for size in (sizes.P, sizes.H))
        initial = tuple(np.zeros(shape, dtype) for shape in shapes)
    return {
        "initial_states": initial,
        "sequence_length": rng.integers(0, T + 1, B) if lengths else None,
        "reverse": (False, True)[: sizes.D],
        "return_cells": cells,
    }


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("T", "B", "sizes", "options"), SHAPES)
@each_engine
def test_peak_is_within_the_plan(name, T, B, sizes, options, dtype, traced):
    _, _, I, H, P, D = sizes  # noqa: E741
    T = min(T, 8000) if dtype == "float64" else T  # still several chunks
    rng = np.random.default_rng(2)
    x, dy, dcells = (
        rng.standard_normal((B, T, size), "float32").astype(dtype) for size in (I, D * P, D * H)
    )
    layers, cells = options.get("layers", 1), options.get("cells", False)
    weights = list(random_weights(sizes, layers, dtype))
    gradients = [LayerGradients(*map(np.zeros_like, layer)) for layer in weights]
    arguments = options_of(sizes, T, B, dtype, **options)
    shapes = [Shape(T, B, layer.weight_ih.shape[2], H, P, D) for layer in weights]
    # Beside a sweep's own: initial states that were not given, and what goes from layer to layer.
    states = layers * D * B * (P + H) * x.itemsize if arguments["initial_states"] is None else 0
    between = min(layers - 1, 2) * dy.nbytes

    def limit(training):
        plans = (plan_sweep(shape, dtype, "numpy", training, name) for shape in shapes)
        # The engine simd keeps passes for the next call.
        kept = ready.SHARED.waiting.values()
        assert all(one.nbytes <= ready.SHARED.largest for one in kept)
        waiting = sum(one.nbytes for one in kept)
        return max(plan.workspace_bytes for plan in plans) + states + waiting + SLACK

    with no_grad(), engine(name):
        (y, final, *rest, _), peak = peak_of(lambda: lstm_forward(x, weights, **arguments))
    outputs = owned(y, *final, *rest)
    assert peak <= outputs + between + limit(training=False)

    del y, final, rest
    with engine(name):
        (*_, tape), peak = peak_of(lambda: lstm_forward(x, weights, **arguments))
    kept = tape_bytes(tape)
    assert peak <= outputs + kept + limit(training=True)

    (dx, dstates, _), peak = peak_of(
        lambda: lstm_backward(tape, dy, None, dcells if cells else None, gradients=gradients)
    )
    assert peak <= owned(dx, *dstates) + between + limit(training=True)


@pytest.mark.parametrize("lengths", [False, True], ids=["full", "lengths"])
@pytest.mark.parametrize("sizes", [Shape(0, 0, 3, 16, 16, 1), Shape(0, 0, 3, 16, 5, 2)], ids=str)
@each_engine
def test_peak_does_not_depend_on_the_number_of_chunks(name, sizes, lengths, traced, monkeypatch):
    """Chunks and steps leave nothing behind: 27 times as many need no byte that is not planned."""
    B, steps = 4, 10
    _, _, _, H, P, D = sizes
    weights = list(random_weights(sizes, 1, "float32"))
    gradients = [LayerGradients(*map(np.zeros_like, layer)) for layer in weights]
    aim_at_steps(monkeypatch, name, sizes._replace(B=B), steps)
    above = {}
    for T in (2 * steps, 3 * steps, 80 * steps):  # the first is a rehearsal
        ready.SHARED.waiting.clear()  # passes of the last T, which no call will want again
        planned = plan_sweep(sizes._replace(T=T, B=B), "float32", forced=name)
        assert planned.steps_per_chunk == steps
        x, dy, dcells = (np.ones((B, T, size), "float32") for size in (3, D * P, D * H))
        arguments = options_of(sizes, T, B, "float32", lengths=lengths, cells=True)
        with no_grad(), engine(name):
            (y, final, cells, _), inference = peak_of(
                lambda x=x, arguments=arguments: lstm_forward(x, weights, **arguments)
            )
        outputs = owned(y, *final, cells)
        with engine(name):
            (*_, tape), forward = peak_of(
                lambda x=x, arguments=arguments: lstm_forward(x, weights, **arguments)
            )
        kept = tape_bytes(tape)
        (dx, dstates, _), backward = peak_of(
            lambda tape=tape, dy=dy, dcells=dcells: lstm_backward(
                tape, dy, None, dcells, gradients=gradients
            )
        )
        above[T] = (
            inference - outputs,
            forward - outputs - kept,
            backward - owned(dx, *dstates),
        )
    few, many = (sizes._replace(T=T, B=B) for T in (3 * steps, 80 * steps))
    for training, before, after in zip(
        (False, True, True), above[3 * steps], above[80 * steps], strict=True
    ):
        planned = (plan_sweep(shape, "float32", "numpy", training, name) for shape in (few, many))
        grown = [plan.workspace_bytes for plan in planned]
        # An int above 256 is an object of its own, and so on.
        assert after - before <= grown[1] - grown[0] + 1024


@pytest.mark.parametrize("lengths", [False, True], ids=["full", "lengths"])
@pytest.mark.parametrize("P", [512, 256])
def test_nothing_is_allocated_inside_the_loop(P, lengths, traced, monkeypatch):
    """From one step's gates to the next: no more than NumPy's buffers, whatever a step's size."""
    T, B, sizes = 5, 256, Shape(0, 0, 8, 512, P, 2)
    assert 2 * B * P * 4 > 2 * SLACK, "the smallest array of a step would be seen"
    risen = []

    def watched(function):
        def watch(*arguments):
            now, peak = tracemalloc.get_traced_memory()
            risen.append(peak - now)
            tracemalloc.reset_peak()
            return function(*arguments)

        return watch

    weights = list(random_weights(sizes, 1, "float32"))
    arguments = options_of(sizes, T, B, "float32", lengths=lengths)
    x, dy = (np.ones((B, T, size), "float32") for size in (8, 2 * P))
    for name in ("forward", "backward"):
        monkeypatch.setattr(HostGates, name, watched(getattr(HostGates, name)))
    aim_at_steps(monkeypatch, "stepwise", sizes._replace(B=B), T)
    with engine("stepwise"):
        *_, tape = lstm_forward(x, weights, **arguments)
    lstm_backward(tape, dy)
    forward, backward = risen[:T], risen[T:]
    assert len(backward) == T
    assert max(forward[1:] + backward[1:]) <= SLACK


# The chunks of a sweep bound its memory and nothing else.

CHUNKED = [
    Case("chunks", T=7, B=3, states=True, upstream=("y", "h", "c", "cells")),
    Case(
        "chunks-bidirectional-lengths",
        T=7,
        B=4,
        L=2,
        P=4,
        bidirectional=True,
        states=True,
        lengths=(3, 7, 0, 5),
        upstream=("y", "h", "c", "cells"),
    ),
    Case("chunks-time-major-dropout", T=7, L=3, time_major=True, dropout=0.4, lengths=(7, 1, 6)),
]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("steps", [1, 2, 3, 5, 6])
@pytest.mark.parametrize("case", CHUNKED, ids=lambda case: case.id)
@each_engine
def test_chunks_change_no_result(name, case, steps, dtype, monkeypatch):
    """T = 7 leaves a remainder with each of these, and no chunk is the whole."""
    found, plan_it = [], plan_sweep

    def planned(*arguments):
        plan = dataclasses.replace(plan_it(*arguments), steps_per_chunk=steps)
        found.append(plan)
        return plan

    monkeypatch.setattr(network, "remembered_plan", planned)
    with engine(name):
        assert_case(case, dtype, run_face(case, build(case, dtype), dtype))
    assert len(found) == case.L


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_chunks_have_as_many_steps_as_their_bytes_allow(steps, monkeypatch):
    lengths_seen, gather = [], stepwise.gather
    monkeypatch.setattr(
        stepwise, "gather", lambda *a, **k: lengths_seen.append(len(a[1])) or gather(*a, **k)
    )
    aim_at_steps(monkeypatch, "stepwise", Shape(7, 2, 3, 4, 4, 1), steps)
    with engine("stepwise"):
        LSTM(3, 4)(np.zeros((2, 7, 3), "float32"))
    assert lengths_seen == [steps] * (7 // steps) + [7 % steps] * (7 % steps > 0)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("split", range(6))
@pytest.mark.parametrize("reverse", [(False,), (True,), (False, True)], ids=str)
@each_engine
def test_two_ranges_are_the_whole(name, reverse, split, dtype):
    """A sweep over steps [0, split) and one over [split, T) give what one over all gives."""
    T, B, I, H, P, D = Shape(5, 4, 3, 6, 4, len(reverse))  # noqa: E741
    rng = np.random.default_rng(split)

    def normal(*shape):
        return rng.standard_normal(shape)

    weights = LayerWeights(
        *(0.4 * normal(D, *s) for s in ((4 * H, I), (4 * H, P), (4 * H,), (4 * H,), (H, P)))
    )
    x, h0, c0 = normal(T, B, I), normal(D, B, P), normal(D, B, H)
    dy, dh, dc, dcells = normal(T, B, D, P), normal(D, B, P), normal(D, B, H), normal(T, B, D, H)
    lengths = np.array([3, 5, 0, 1])
    runner = engines.load(name)

    def run(bounds, dtype):
        def cast(array):
            return array.astype(dtype)

        layer = LayerWeights(*map(cast, weights))
        y, cells = (np.full(a.shape, np.nan, dtype) for a in (dy, dcells))
        states, tapes = (cast(h0), cast(c0)), []
        for start, stop in itertools.pairwise(bounds):
            states, tape = runner.forward(
                cast(x),
                layer,
                states,
                lengths,
                reverse=reverse,
                y=y,
                cells=cells,
                keep=True,
                steps=range(start, stop),
                chunk=2,
            )
            tapes.append(tape)
        gradients, dx = LayerGradients(*map(np.zeros_like, layer)), np.zeros((T, B, I), dtype)
        dstates = cast(dh), cast(dc)
        for tape in reversed(tapes):
            dstates = runner.backward(
                [tape],
                cast(dy),
                dstates,
                cast(dcells),
                wanted=Wanted(*[slice(None)] * 5),
                gradients=gradients,
                dx=dx,
            )
        names = ("y", "cells", "h", "c", "dx", "dh0", "dc0", *gradients._fields)
        return dict(zip(names, (y, cells, *states, dx, *dstates, *gradients), strict=True))

    parts, whole = run((0, split, T), dtype), run((0, T), dtype)
    truth = run((0, T), "float64")
    for key, array in parts.items():
        assert_within_rule(key, array, truth[key], whole[key])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", CHUNKED, ids=lambda case: case.id)
@each_engine
def test_two_runs_are_bit_equal(name, case, dtype):
    """In chunks, and with a mask drawn anew from the same key."""
    arrays = build(case, dtype)
    with engine(name):
        first, second = (results(run_face(case, arrays, dtype)) for _ in range(2))
    assert first.keys() == second.keys()
    for key, array in first.items():
        assert np.array_equal(array, second[key]), key
