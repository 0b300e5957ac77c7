"""Bad inputs of a stream: each has its message and changes nothing."""

import numpy as np
import pytest
from face import flat_equal, normal, raised

from cupy_lstm import LSTM, engine
from cupy_lstm import snapshot as streaming
from cupy_lstm.engines import stepwise

V, T = ValueError, TypeError

X, SEVERAL = normal(2, 3), normal(2, 5, 3)
SHARED = normal(2, 8)
READ_ONLY = np.zeros((2, 4), "float32")
READ_ONLY.flags.writeable = False
NO_ROWS = "rows must be an integer, a sequence of integers or a mask [2] of bool, received "
FOR_SEVERAL = ", but must have shape [2, 3] for one step, or [2, steps, 3] for several"
H0, C0 = normal(2, 2, 4), normal(2, 2, 4)
ERRORS = [
    (lambda s: s(None), T, "inputs must be an array of numpy, received NoneType"),
    (lambda s: s(X.tolist()), T, "inputs must be an array of numpy, received list"),
    (
        lambda s: s(np.ma.masked_less(X, 0)),
        T,
        "inputs must be an array of numpy, received MaskedArray",
    ),
    (
        lambda s: s(X.astype("float64")),
        V,
        "inputs has dtype float64, but the weights have float32: convert it with "
        ".astype('float32')",
    ),
    (lambda s: s(X[0]), V, "inputs has shape [3]" + FOR_SEVERAL),
    (lambda s: s(X[:, :2]), V, "inputs has shape [2, 2]" + FOR_SEVERAL),
    (lambda s: s(X[:1]), V, "inputs has shape [1, 3]" + FOR_SEVERAL),
    (lambda s: s(SEVERAL[:1]), V, "inputs has shape [1, 5, 3]" + FOR_SEVERAL),
    (lambda s: s(SEVERAL.swapaxes(0, 1)), V, "inputs has shape [5, 2, 3]" + FOR_SEVERAL),
    (lambda s: s(SEVERAL[None]), V, "inputs has shape [1, 2, 5, 3]" + FOR_SEVERAL),
    (
        lambda s: LSTM(3, 4, time_major=True).stream(2)(SEVERAL),
        V,
        "inputs has shape [2, 5, 3], but must have shape [2, 3] for one step, or [steps, 2, 3] "
        "for several",
    ),
    (lambda s: s(X, out=[]), T, "out must be an array of numpy, received list"),
    (
        lambda s: s(X, out=np.empty((2, 4))),
        V,
        "out has dtype float64, but the weights have float32: convert it with .astype('float32')",
    ),
    (
        lambda s: s(X, out=np.empty((2, 1, 4), "float32")),
        V,
        "out has shape [2, 1, 4], but must have shape [2, 4]",
    ),
    (
        lambda s: s(SEVERAL, out=np.empty((5, 2, 4), "float32")),
        V,
        "out has shape [5, 2, 4], but must have shape [2, 5, 4]",
    ),
    (lambda s: s(X, out=READ_ONLY), V, "out is read-only: pass an array that can be written"),
    (
        lambda s: s(SHARED[:, :3], out=SHARED[:, 2:6]),
        V,
        "out overlaps inputs in memory: pass an array of its own",
    ),
    (lambda s: setattr(s, "state", H0), T, "state must be a tuple (h, c), received ndarray"),
    (lambda s: setattr(s, "state", (H0,)), V, "state must be a tuple (h, c), received 1 elements"),
    (
        lambda s: setattr(s, "state", (H0, None)),
        T,
        "state[1] (c) must be an array of numpy, received NoneType",
    ),
    (
        lambda s: setattr(s, "state", (H0[:1], C0)),
        V,
        "state[0] (h) has shape [1, 2, 4], but must have shape [2, 2, 4]",
    ),
    (
        lambda s: setattr(s, "state", (H0, C0[..., :2])),
        V,
        "state[1] (c) has shape [2, 2, 2], but must have shape [2, 2, 4]",
    ),
    (
        lambda s: setattr(s, "state", (H0, C0.astype("float64"))),
        V,
        "state[1] (c) has dtype float64, but the weights have float32: convert it with "
        ".astype('float32')",
    ),
    (lambda s: s.reset(2), V, "rows is 2, but rows go from 0 to 1"),
    (lambda s: s.reset(-1), V, "rows is -1, but rows go from 0 to 1"),
    (lambda s: s.reset([0, 1, 5, 7]), V, "rows[2] is 5, but rows go from 0 to 1"),
    (lambda s: s.reset(np.array([-2])), V, "rows[0] is -2, but rows go from 0 to 1"),
    (lambda s: s.reset(True), T, NO_ROWS + "True"),
    (lambda s: s.reset(1.0), T, NO_ROWS + "1.0"),
    (lambda s: s.reset("0"), T, NO_ROWS + "'0'"),
    (lambda s: s.reset({0, 1}), T, NO_ROWS + "{0, 1}"),
    (lambda s: s.reset([[0], [1]]), T, NO_ROWS + "[[0], [1]]"),
    (lambda s: s.reset([[0], 1]), T, NO_ROWS + "[[0], 1]"),
    (lambda s: s.reset([None]), T, NO_ROWS + "[None]"),
    (lambda s: s.reset([True]), V, "rows has shape [1], but a mask must have shape [2]"),
    (
        lambda s: s.reset(np.zeros((2, 1), bool)),
        V,
        "rows has shape [2, 1], but a mask must have shape [2]",
    ),
]


@pytest.fixture
def lstm():
    return LSTM(3, 4, 2, seed=0)


@pytest.mark.parametrize(
    ("call", "error", "message"), ERRORS, ids=[message[:60] for _, _, message in ERRORS]
)
def test_a_failed_call_says_why_and_changes_nothing(lstm, call, error, message):
    streamed, other = lstm.stream(2), lstm.stream(2)
    for one in (streamed, other):
        one(SEVERAL)
    shared = SHARED.copy()
    assert raised(error, lambda: call(streamed)) == message
    assert flat_equal(streamed.state, other.state)
    assert np.array_equal(SHARED, shared)
    assert np.array_equal(streamed(X), other(X))


@pytest.mark.parametrize("layer", [0, 1])
def test_a_failure_in_a_layer_leaves_the_state(lstm, monkeypatch, layer):
    forward, calls = stepwise.forward, []

    def failing(*arguments, **options):
        calls.append(arguments)
        if len(calls) == layer + 1:
            raise MemoryError
        return forward(*arguments, **options)

    with engine("stepwise"):
        streamed, other = lstm.stream(2), lstm.stream(2)
        for one in (streamed, other):
            one(SEVERAL)
        monkeypatch.setattr(stepwise, "forward", failing)
        with pytest.raises(MemoryError):
            streamed(X)
        assert flat_equal(streamed.state, other.state)
        assert np.array_equal(streamed(X), other(X))


def test_a_failed_refresh_leaves_the_stream(lstm, monkeypatch):
    streamed = lstm.stream(2)
    snapshot = streamed._snapshot

    def refused(*_):
        raise ValueError("no engine")

    with monkeypatch.context() as patch:
        patch.setattr(streaming, "plan_sweep", refused)
        assert raised(ValueError, streamed.refresh) == "no engine"
        assert raised(ValueError, lambda: streamed(SEVERAL)) == "no engine"
    assert streamed._snapshot is snapshot
    assert not any(array.any() for array in streamed.state)
    assert np.array_equal(streamed(SEVERAL), lstm.stream(2)(SEVERAL))


@pytest.mark.parametrize(
    ("batch", "error", "message"),
    [
        (0, V, "batch must be at least 1, received 0"),
        (-3, V, "batch must be at least 1, received -3"),
        (2.0, T, "batch must be an integer, received 2.0"),
        (True, T, "batch must be an integer, received True"),
        (None, T, "batch must be an integer, received None"),
    ],
)
def test_a_batch_that_is_none(lstm, batch, error, message):
    assert raised(error, lambda: lstm.stream(batch)) == message


def test_a_reverse_direction_cannot_be_streamed():
    assert raised(ValueError, lambda: LSTM(3, 4, direction="bidirect").stream(2)) == (
        "a stream needs an LSTM with direction='forward', this one is bidirectional: its reverse "
        "direction begins at the end of the sequence"
    )
