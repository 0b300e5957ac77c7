"""Gradients of the estimators' network that go back through the last steps alone."""

import numpy as np
import pytest

from cupy_lstm import no_grad
from cupy_lstm.estimators import LSTMClassifier, LSTMRegressor
from cupy_lstm.estimators.network import SequenceNetwork

T, LAST = 9, 3
LENGTHS = np.array([9, 2, 3, 0, 4, 7])
RNG = np.random.default_rng(0)
X = RNG.standard_normal((len(LENGTHS), T, 2))
DY = RNG.standard_normal((len(LENGTHS), 3))


def network(dtype, bptt_steps=None):
    made = SequenceNetwork(
        2, 3, hidden_size=4, num_layers=2, dtype=dtype, seed=1, bptt_steps=bptt_steps
    )
    return made.train()


def gradients(model):
    return {name: parameter.grad.copy() for name, parameter in model.named_parameters()}


def rows_alone(dtype, lengths):
    """The gradients, row by row from slices: states to where the last steps begin, and on."""
    model, outputs = network(dtype), []
    for x, dy, length in zip(X.astype(dtype), DY.astype(dtype), lengths, strict=True):
        begin = max(length - LAST, 0)
        with no_grad():
            _, states = model.lstm(x[None, :begin])
        _, (h, _) = model.lstm(x[None, begin:length], states)
        outputs.append(model.head(h[-1]))
        dh = np.zeros_like(h)
        dh[-1] = model.head.backward(dy[None])
        model.lstm.backward(None, (dh, None))
    return {"y": np.concatenate(outputs), **gradients(model)}


@pytest.mark.parametrize("lengths", [None, LENGTHS])
def test_gradients_go_back_through_the_last_steps(lengths):
    of_rows = np.full(len(X), T) if lengths is None else lengths
    truth, naive = rows_alone("float64", of_rows), rows_alone("float32", of_rows)
    model = network("float32", LAST)
    y = model(X.astype("float32"), lengths)
    model.backward(DY.astype("float32"))
    for name, found in {"y": y, **gradients(model)}.items():
        largest = abs(truth[name]).max()
        allowed = 2 * abs(naive[name] - truth[name]).max() + 4 * np.finfo("float32").eps * largest
        assert abs(found - truth[name]).max() <= allowed, name
    whole = network("float32")
    whole(X.astype("float32"), lengths)
    whole.backward(DY.astype("float32"))
    assert not np.allclose(whole.lstm.weight_hh_l0.grad, model.lstm.weight_hh_l0.grad, rtol=0.01)


@pytest.mark.parametrize("last", [T, T + 1])
def test_all_steps_are_the_plain_gradients(last):
    found, plain = network("float32", last), network("float32")
    for model in (found, plain):
        model(X.astype("float32"), LENGTHS)
        model.backward(DY.astype("float32"))
    for name, gradient in gradients(plain).items():
        assert np.array_equal(gradient, gradients(found)[name]), name


def test_every_call_has_a_mask_of_its_own():
    """Also of the call before, which only brings the states."""
    model = SequenceNetwork(2, 3, hidden_size=4, num_layers=2, dropout=0.5, seed=1, bptt_steps=LAST)
    model.train()(X.astype("float32"), LENGTHS)
    assert model.lstm.dropout_calls == 2


@pytest.mark.parametrize("kind", [LSTMRegressor, LSTMClassifier])
def test_estimators_learn_with_it(kind, tmp_path):
    y = (X[:, -1, 0] > 0).astype(int)
    options = {"hidden_size": 4, "epochs": 3, "validation_fraction": 0, "random_state": 0}
    short = kind(bptt_steps=1, **options).fit(X, y)
    assert short.network_.bptt_steps == 1
    whole = kind(**options).fit(X, y)
    assert short.history_.loss[0] == whole.history_.loss[0]  # the same outputs at first
    assert short.history_.loss[1] != whole.history_.loss[1]  # by other gradients
    short.save(tmp_path / "short.safetensors")
    assert kind.load(tmp_path / "short.safetensors").get_params()["bptt_steps"] == 1


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"bptt_steps": 0}, ValueError, "bptt_steps must be"),
        ({"bptt_steps": 2.5}, TypeError, "bptt_steps must be"),
        ({"bptt_steps": 2, "direction": "bidirectional"}, ValueError, "bptt_steps must be None"),
    ],
)
def test_wrong_arguments(options, error, message):
    with pytest.raises(error, match=message):
        LSTMRegressor(**options).fit(X, X[:, 0, 0])
