"""Streams: the LSTM fed as its steps arrive, in pieces of any size."""

import copy
import types
import weakref
from dataclasses import replace

import numpy as np
import pytest
from cases import (
    CASES,
    HOST_ENGINES,
    assert_within_rule,
    build,
    make_lstm,
    naive,
    reference,
    results,
)
from face import flat_equal, normal, raised

from cupy_lstm import LSTM, Adam, LSTMStream, engine, no_grad, plan
from cupy_lstm import snapshot as streaming
from cupy_lstm.backend import array_module
from cupy_lstm.engines import stepwise

STREAMED = [
    case
    for case in CASES
    if case.B and case.lengths is None and not (case.bidirectional or case.dropout)
]
CHANGED = (
    "the weights have changed since the snapshot of this stream: call stream.refresh() to go on "
    "with the new ones (the state is kept)"
)

each_case = pytest.mark.parametrize("case", STREAMED, ids=lambda case: case.id)
each_host_dtype = pytest.mark.parametrize("dtype", ["float32", "float64"])


def pieces(steps, seed):
    """Cut a sequence: single steps as ints, pieces of 0, 1 or several steps as slices."""
    rng, start, cut = np.random.default_rng(seed), 0, []
    while start < steps:
        n = int(rng.integers(0, 1 + min(6, steps - start)))
        if n == 1 and rng.random() < 0.5:
            cut.append(start)
        else:
            cut.append(slice(start, start + n))
        start += n
    return [*cut, slice(steps, steps)]


def feed(stream, x, cut):
    """Feed pieces of x, laid out as the stream's; return what came out, laid out so, too."""
    axis, outputs = (0 if stream.time_major else 1), []
    for piece in cut:
        y = stream(x[piece] if stream.time_major else x[:, piece])
        assert y.ndim == (2 if isinstance(piece, int) else 3)
        outputs.append(array_module(y).expand_dims(y, axis) if y.ndim == 2 else y)
    return array_module(x).concatenate(outputs, axis)


def started(case, dtype):
    """Return the LSTM of a case, a stream in the case's initial state, and the case's arrays."""
    arrays = build(case, dtype)
    lstm = make_lstm(case, arrays.weights, dtype)
    stream = lstm.stream(case.B)
    if case.states:
        stream.state = arrays.states
    return lstm, stream, arrays


def inference(lstm, x, states=None):
    with no_grad():
        y, (h, c) = lstm.eval()(x, states)
    return y, h, c


@pytest.fixture
def lstm():
    return LSTM(3, 4, 2, seed=0)


# --- values --------------------------------------------------------------------------------------


@each_host_dtype
@pytest.mark.parametrize("name", ["auto", *HOST_ENGINES])
@each_case
def test_a_whole_sequence_in_one_call_is_bit_equal_to_the_lstm(case, name, dtype):
    # The engine gets equal arrays, the same shape and so the same plan: nothing else goes in.
    lstm, stream, arrays = started(case, dtype)
    with engine(name):
        expected = inference(lstm, arrays.x, arrays.states)
        assert flat_equal((stream(arrays.x), stream.state), expected)
    assert stream.state[0].dtype == stream.state[1].dtype == dtype


@each_host_dtype
@pytest.mark.parametrize("name", HOST_ENGINES)
@each_case
def test_single_steps_are_bit_equal_to_the_lstm(monkeypatch, case, name, dtype):
    # Stepwise in chunks of one step: then every product has the same operands. In chunks of several
    # the input's product has more rows, for which a BLAS may add up in another order.
    monkeypatch.setitem(plan.CHUNK_BYTES, "numpy", 0)
    lstm, stream, arrays = started(case, dtype)
    with engine(name):
        expected = inference(lstm, arrays.x, arrays.states)
        if case.T:
            y = feed(stream, arrays.x, range(case.T))
            assert flat_equal((y, stream.state), expected)
        assert flat_equal(stream.state, expected[1:])


@each_host_dtype
@each_case
def test_random_pieces_keep_the_error_rule(case, dtype):
    truth, yardstick = results(reference(case, dtype)), results(naive(case, dtype))
    for seed in range(3):
        _, stream, arrays = started(case, dtype)
        y = feed(stream, arrays.x, pieces(case.T, seed))
        for name, actual in zip("yhc", (y, *stream.state), strict=True):
            assert_within_rule(name, actual, truth[name], yardstick[name])


def test_there_are_cases_and_pieces_of_every_kind():
    assert len(STREAMED) > 25
    assert {(c.L > 1, c.P > 0, c.time_major) for c in STREAMED} >= {(True, True, True)}
    cut = [piece for seed in range(3) for piece in pieces(150, seed)]
    sizes = {1 if isinstance(p, int) else p.stop - p.start for p in cut}
    assert sizes == set(range(7))
    assert {type(p) for p in cut} == {int, slice}


def test_dropout_is_never_applied():
    lstm = LSTM(3, 4, 3, dropout=0.5, seed=0)
    x = normal(2, 5, 3)
    streamed = lstm.stream(2)
    y = streamed(x)
    assert lstm.training
    assert lstm.dropout_calls == 0
    assert flat_equal((y, streamed.state), inference(lstm, x))


def test_two_calls_are_bit_equal_and_give_arrays_of_their_own(lstm):
    first, second = lstm.stream(2), lstm.stream(2)
    for seed in range(3):
        x = normal(2, 3, seed=seed)
        assert np.array_equal(first(x), second(x))
        assert flat_equal(first.state, second.state)
    kept = [first(x) for _ in range(3)]
    before = [y.copy() for y in kept]
    first(x)
    assert flat_equal(kept, before)
    kept[0][...] = np.nan
    assert np.isfinite(first(x)).all()


def test_strides_of_the_inputs_do_not_matter_and_they_are_not_written(lstm):
    x = normal(2, 5, 3)
    views = {
        "as it is": x,
        "every other": np.repeat(np.repeat(x, 2, 2), 2, 0)[::2, :, ::2],
        "reversed": x[::-1, ::-1, ::-1].copy()[::-1, ::-1, ::-1],
        "by columns": np.asfortranarray(x),
        "unaligned": np.frombuffer(b"x" + x.tobytes(), "float32", offset=1).reshape(x.shape),
    }
    expected = lstm.stream(2)(x)
    for name, view in views.items():
        view.flags.writeable = False
        streamed = lstm.stream(2)
        assert np.array_equal(streamed(view), expected), name
        streamed.reset()
        steps = [streamed(view[:, t]) for t in range(5)]
        other = lstm.stream(2)
        assert flat_equal(steps, [other(x[:, t].copy()) for t in range(5)]), name


def test_nan_stays_in_its_row_and_reset_removes_it(lstm):
    x = normal(3, 5, 3)
    bad = x.copy()
    bad[1, 2, 0] = np.nan
    good, hurt = lstm.stream(3), lstm.stream(3)
    y, y_bad = good(x), hurt(bad)
    assert np.array_equal(y[[0, 2]], y_bad[[0, 2]])
    assert np.isnan(y_bad[1, 2:]).all()
    for state, state_bad in zip(good.state, hurt.state, strict=True):
        assert np.array_equal(state[:, [0, 2]], state_bad[:, [0, 2]])
        assert np.isnan(state_bad[:, 1]).all()
    for one in (good, hurt):
        one.reset(1)
    assert flat_equal(good.state, hurt.state)
    assert np.array_equal(good(x), hurt(x))


# --- out -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("time_major", [False, True])
@pytest.mark.parametrize("shape", [(2, 3), (2, 2, 3)])
def test_out_receives_the_outputs_whatever_its_strides(time_major, shape):
    lstm = LSTM(3, 4, 2, time_major=time_major, proj_size=2, seed=0)
    x, expected = normal(*shape), None
    for make in (
        lambda s: np.empty(s, "float32"),
        lambda s: np.asfortranarray(np.empty(s, "float32")),
        lambda s: np.empty((*s[:-1], 2 * s[-1]), "float32")[..., ::-2],
        lambda s: np.empty(4 * np.prod(s) + 1, "uint8")[1:].view("float32").reshape(s),
    ):
        streamed, out = lstm.stream(2), make((*shape[:-1], 2))
        expected = streamed(x) if expected is None else expected
        streamed.reset()
        out[...] = np.nan
        assert streamed(x, out=out) is out
        assert np.array_equal(out, expected)


def test_out_may_interleave_with_the_inputs(lstm):
    both = normal(2, 7)
    expected = lstm.stream(2)(both[:, :3].copy())
    lstm.stream(2)(both[:, :3], out=both[:, 3:])
    assert np.array_equal(both[:, 3:], expected)


# --- state ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("L", [1, 2])
def test_a_state_is_a_copy_both_ways(L):
    lstm = LSTM(3, 4, L, proj_size=2, seed=0)
    x, given = normal(2, 5, 3), (normal(L, 2, 2, seed=1), normal(L, 2, 4, seed=2))
    streamed = lstm.stream(2)
    assert [a.shape for a in streamed.state] == [(L, 2, 2), (L, 2, 4)]
    assert not any(a.any() for a in streamed.state)
    streamed.state = given
    assert flat_equal(streamed.state, given)
    expected = inference(lstm, x, given)
    for array in (*given, *streamed.state):
        array[...] = np.nan
    assert flat_equal((streamed(x), streamed.state), expected)


def test_a_saved_state_goes_on(lstm):
    x, streamed, other = normal(2, 6, 3), lstm.stream(2), lstm.stream(2)
    streamed(x[:, :3])
    other.state = list(streamed.state)
    assert np.array_equal(streamed(x[:, 3:]), other(x[:, 3:]))


ROWS = {
    "None": (None, [0, 1, 2, 3]),
    "int": (2, [2]),
    "NumPy int": (np.uint8(3), [3]),
    "list": ([3, 0], [0, 3]),
    "twice": ((1, 1), [1]),
    "range": (range(1, 3), [1, 2]),
    "array": (np.array([1, 3], "uint64"), [1, 3]),
    "scalar array": (np.array(0), [0]),
    "none of them": ([], []),
    "no row": (np.array([], int), []),
    "mask": (np.array([True, False, False, True]), [0, 3]),
    "list of bool": ([False, True, False, False], [1]),
    "all": ([True] * 4, [0, 1, 2, 3]),
}


@pytest.mark.parametrize("name", ROWS)
def test_reset(lstm, name):
    rows, chosen = ROWS[name]
    x, streamed, other = normal(4, 5, 3), lstm.stream(4), lstm.stream(4)
    streamed(x)
    expected = streamed.state
    for array in expected:
        assert array.all()
        array[:, chosen] = 0
    streamed.reset(rows)
    assert flat_equal(streamed.state, expected)
    other.state = expected
    assert np.array_equal(streamed(x), other(x))


# --- versions ------------------------------------------------------------------------------------


CHANGES = {
    "set_value": lambda lstm: lstm.bias_hh_l1.set_value(np.ones_like(lstm.bias_hh_l1.data)),
    "data": lambda lstm: setattr(lstm.weight_ih_l0, "data", np.ones_like(lstm.weight_ih_l0.data)),
    "state dict": lambda lstm: lstm.set_state_dict({"weight_hh_l1": normal(16, 4, seed=5)}),
    "optimiser": lambda lstm: Adam(0.1, lstm.parameters()).step(),
}


@pytest.mark.parametrize("how", CHANGES)
def test_a_changed_weight_raises_until_refresh(lstm, how):
    x = normal(2, 5, 3)
    y, _ = lstm(x)
    lstm.backward(np.ones_like(y))
    streamed, other = lstm.stream(2), lstm.stream(2)
    for one in (streamed, other):
        one(x)
    state = streamed.state
    CHANGES[how](lstm)
    for _ in range(2):
        assert raised(RuntimeError, lambda: streamed(x)) == CHANGED
        assert flat_equal(streamed.state, state)
    streamed.refresh()
    assert flat_equal(streamed.state, state)
    expected = inference(lstm, x, state)
    assert not np.array_equal(expected[0], inference(LSTM(3, 4, 2, seed=0), x, state)[0])
    assert flat_equal((streamed(x), streamed.state), expected)
    assert raised(RuntimeError, lambda: other(x)) == CHANGED


def test_raw_writes_are_not_seen_before_refresh(lstm):
    x, streamed = normal(2, 3), lstm.stream(2)
    expected = streamed(x)
    streamed.reset()
    for parameter in lstm.parameters():
        parameter.data[...] = 0
    assert np.array_equal(streamed(x), expected)
    streamed.reset()
    streamed.refresh()
    assert not streamed(x).any()


def test_a_change_while_the_weights_are_copied_is_noticed(lstm, monkeypatch):
    copied, calls = streaming.copied, []

    def interrupted(weights):
        calls.append(weights)
        if len(calls) == 2:
            lstm.weight_ih_l0.set_value(normal(16, 3))
        return copied(weights)

    monkeypatch.setattr(streaming, "copied", interrupted)
    streamed = lstm.stream(2)
    assert raised(RuntimeError, lambda: streamed(normal(2, 3))) == CHANGED


def test_an_lstm_of_another_dtype_needs_another_stream(lstm):
    streamed = lstm.stream(2)
    streamed(normal(2, 3))
    state = streamed.state
    lstm.to(dtype="float64")
    assert raised(RuntimeError, lambda: streamed(normal(2, 3))) == CHANGED
    assert raised(RuntimeError, streamed.refresh) == (
        "the LSTM is float64 on numpy, but was float32 on numpy when this stream was made: make a "
        "new one with lstm.stream(...)"
    )
    assert flat_equal(streamed.state, state)
    lstm.to(dtype="float32")
    streamed.refresh()
    streamed(normal(2, 3))


# --- apart from everything else ------------------------------------------------------------------


def test_what_the_lstm_has_recorded_is_left_alone(lstm):
    x, other = normal(2, 5, 3), LSTM(3, 4, 2, seed=0)
    for one in (lstm, other):
        y, _ = one(x)
    streamed = lstm.stream(2)
    streamed(normal(2, 3))
    streamed(normal(2, 4, 3))
    streamed.reset()
    streamed.refresh()
    assert flat_equal(lstm.backward(y), other.backward(y))
    for p, q in zip(lstm.parameters(), other.parameters(), strict=True):
        assert np.array_equal(p.grad, q.grad)


def test_nothing_is_recorded(lstm, monkeypatch):
    forward, tapes = stepwise.forward, []

    def watched(x, *arguments, y, **options):
        assert not np.shares_memory(x, y)  # engines may count on it
        states, tape = forward(x, *arguments, y=y, **options)
        tapes.append(tape)
        return states, tape

    monkeypatch.setattr(stepwise, "forward", watched)
    with engine("stepwise"):
        lstm.stream(2)(normal(2, 3))
    assert tapes == [None, None]
    with pytest.raises(RuntimeError, match="there is no call to go back through"):
        lstm.backward(normal(2, 1, 4))


def test_streams_are_independent(lstm):
    first, second = lstm.stream(2), lstm.stream(3)
    x = normal(2, 5, 3)
    alone = lstm.stream(2)
    for t in range(5):
        y = first(x[:, t])
        second(normal(3, 3, seed=t))
        second.reset([0])
        assert np.array_equal(y, alone(x[:, t]))


def test_an_lstm_does_not_hold_its_streams(lstm):
    streamed = lstm.stream(2)
    streamed(normal(2, 3))
    twin = copy.deepcopy(lstm)
    assert list(twin.state_dict()) == list(lstm.state_dict())
    twin.weight_ih_l0.set_value(normal(16, 3))
    streamed(normal(2, 3))  # its weights have not changed
    gone = weakref.ref(streamed)
    del streamed
    assert gone() is None  # at once: there is no cycle that keeps memory until a collection


def test_the_layout_is_that_of_the_lstm_when_the_stream_was_made():
    lstm = LSTM(3, 4, time_major=True, seed=0)
    streamed = lstm.stream(2)
    assert isinstance(streamed, LSTMStream)
    assert (streamed.time_major, streamed.batch) == (True, 2)
    lstm.time_major = False
    assert streamed(normal(5, 2, 3)).shape == (5, 2, 4)


# --- engines and plans ---------------------------------------------------------------------------


@pytest.fixture
def packing(monkeypatch):
    """An engine that packs weights once; return the layers it has packed."""
    packed = []

    def prepare(weights, batch):
        assert batch == 2
        packed.append(weights)
        return types.SimpleNamespace(unpacked=weights)

    def forward(x, weights, *states_and_lengths, **options):
        return stepwise.forward(x, weights.unpacked, *states_and_lengths, **options)

    module = types.ModuleType("packing")
    module.prepare, module.forward = prepare, forward
    plan_sweep, load = streaming.plan_sweep, streaming.engines.load
    monkeypatch.setattr(
        streaming,
        "plan_sweep",
        lambda *arguments: replace(plan_sweep(*arguments), engine="packing"),
    )
    monkeypatch.setattr(
        streaming.engines, "load", lambda name: module if name == "packing" else load(name)
    )
    return packed


def test_an_engine_that_prepares_weights_does_so_once_a_snapshot(lstm, packing):
    x = normal(2, 5, 3)
    streamed = lstm.stream(2)
    assert len(packing) == 2
    first = streamed(x[:, :2]), streamed(x[:, 2]), streamed(x[:, 3:]), *streamed.state
    assert len(packing) == 2
    for weights, layer in zip(packing, lstm._layers, strict=True):
        assert flat_equal(tuple(weights), tuple(layer.arrays()))
        assert not any(map(np.shares_memory, weights[:4], layer.arrays()[:4]))
    lstm.bias_ih_l0.set_value(np.ones(16, "float32"))
    streamed.refresh()
    assert len(packing) == 4
    streamed.reset()
    assert not np.array_equal(streamed(x[:, :2]), first[0])


def test_what_an_engine_has_prepared_computes_the_same(lstm, packing, monkeypatch):
    x, streamed = normal(2, 5, 3), lstm.stream(2)
    found = streamed(x), streamed(x[:, 0]), *streamed.state
    monkeypatch.undo()
    with engine("stepwise"):
        streamed = lstm.stream(2)
        assert flat_equal(found, (streamed(x), streamed(x[:, 0]), *streamed.state))


@pytest.fixture
def planned(monkeypatch):
    """The steps and the forced engine of every plan that is made."""
    plan_sweep, made = streaming.plan_sweep, []

    def watched(shape, dtype, module, training, forced, device):
        assert (shape.B, dtype, module, training, device) == (2, "float32", "numpy", False, None)
        made.append((shape.T, forced))
        return plan_sweep(shape, dtype, module, training, forced, device)

    monkeypatch.setattr(streaming, "plan_sweep", watched)
    return made


def test_a_plan_is_made_once_for_each_number_of_steps(planned):
    streamed = LSTM(3, 4, seed=0).stream(2)
    for _ in range(3):
        streamed(normal(2, 3))
        streamed(normal(2, 5, 3))
    assert planned == [(1, "auto"), (5, "auto")]


def test_plans_do_not_pile_up(planned, monkeypatch):
    monkeypatch.setattr(streaming, "PLANS_KEPT", 3)
    streamed = LSTM(3, 4, seed=0).stream(2)
    for n in range(10):
        streamed(normal(2, n, 3))
        assert len(streamed._snapshot._sweeps) <= 3
    assert [steps for steps, _ in planned] == [1, 0, 2, 3, 4, 5, 6, 7, 8, 9]


def test_a_forced_engine_applies_to_the_calls_inside(planned):
    streamed = LSTM(3, 4, seed=0).stream(2)
    with engine("stepwise"):
        streamed(normal(2, 3))
    streamed(normal(2, 3))
    assert planned == [(1, "auto"), (1, "stepwise")]
