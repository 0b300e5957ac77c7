"""The estimators on CuPy arrays: everything stays on the GPU but what is asked for."""

from functools import cache

import numpy as np
import pytest
from gpu_cases import eps, storage
from gpu_on_cpu import record
from gpu_on_cpu.driver.recorder import Copy
from sklearn.metrics import r2_score

from cupy_lstm.estimators import LSTMClassifier, LSTMRegressor

pytestmark = pytest.mark.gpu_on_cpu

EPOCHS = 3
OPTIONS = {"hidden_size": 8, "epochs": EPOCHS, "patience": None, "random_state": 0}
LENGTHS = np.array([5, 3, 4, 5, 1, 2] * 5)
WEIGHTS = np.arange(1.0, 31)


def problem():
    """Return sequences, two targets, and labels."""
    X = np.random.default_rng(0).standard_normal((30, 5, 2)).astype("float32")
    y = np.stack([X[:, 0, 0], 10 + X[..., 1].sum(axis=1)], axis=1)
    return X, y, (y[:, 0] > 0) * 2 + 3


def fitted(kind, xp, dtype="float32"):
    X, y, labels = problem()
    targets = y if kind is LSTMRegressor else labels
    estimator = kind(dtype=dtype, dropout=0.25, num_layers=2, **OPTIONS)
    arrays = {"sample_weight": xp.asarray(WEIGHTS), "sequence_length": xp.asarray(LENGTHS)}
    return estimator.fit(xp.asarray(X), xp.asarray(targets), **arrays)


def outputs(estimator, xp):
    """Return what the network of an estimator says of the problem, on the host."""
    X = xp.asarray(problem()[0])
    predict = estimator.predict if isinstance(estimator, LSTMRegressor) else estimator.predict_proba
    found = predict(X, sequence_length=LENGTHS)
    assert isinstance(found, xp.ndarray)
    return found if xp is np else found.get()


@cache
def on_the_host(kind, dtype):
    return outputs(fitted(kind, np, dtype), np)


each_kind = pytest.mark.parametrize("kind", [LSTMRegressor, LSTMClassifier])


@each_kind
def test_a_fit_on_the_gpu_is_one_on_the_host(cupy, kind):
    found = outputs(fitted(kind, cupy), cupy)
    truth, naive = on_the_host(kind, "float64"), on_the_host(kind, "float32")
    error, allowed = abs(found - truth).max(axis=0), 2 * abs(naive - truth).max(axis=0)
    assert (error <= allowed + 4 * eps("float32") * abs(truth).max(axis=0)).all()


def bits(array):
    return array.get().tobytes()


def reads(log):
    return [copy.bytes for copy in log.of(Copy) if copy.kind == "device 0 to host"]


@each_kind
def test_what_comes_to_the_host(cupy, kind):
    X, y, labels = (cupy.asarray(array) for array in problem())
    targets = y if kind is LSTMRegressor else labels
    lengths, weights = cupy.asarray(LENGTHS), cupy.asarray(WEIGHTS)
    fitted(kind, cupy)
    with record() as log:
        estimator = fitted(kind, cupy)
    losses = [8] * 2 * EPOCHS
    assert reads(log) == ([] if kind is LSTMRegressor else [labels.nbytes]) + losses
    with record() as log:
        predicted = estimator.predict(X, lengths)
    assert isinstance(predicted, cupy.ndarray)
    assert not reads(log)
    with record() as log:
        estimator.score(X, targets, weights, lengths)
    assert reads(log) == [8 if kind is LSTMClassifier else 2 * 8 * 2]
    if kind is LSTMClassifier:
        with record() as log:
            estimator.predict_proba(X, lengths)
        assert not reads(log)


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["alone", "weighted"])
def test_scores_are_those_of_scikit_learn(cupy, weights):
    X, y, labels = (cupy.asarray(array) for array in problem())
    regressor, classifier = fitted(LSTMRegressor, cupy), fitted(LSTMClassifier, cupy)
    predicted = regressor.predict(X).get().astype("float64")
    expected = r2_score(y.get().astype("float64"), predicted, sample_weight=weights)
    assert abs(regressor.score(X, y, weights) - expected) <= 64 * eps("float64") * abs(1 - expected)
    right = classifier.predict(X).get() == labels.get()
    expected = np.average(right, weights=weights)
    assert abs(classifier.score(X, labels, weights) - expected) <= 64 * eps("float64")


def test_steps_of_one_value(cupy):
    """With labels on the host: of numbers and of words, which CuPy has not."""
    X, _, labels = problem()
    table, words = cupy.asarray(X[..., 0]), np.where(labels == 5, "b", "a")
    options = OPTIONS | {"direction": "bidirectional", "standardize": False}
    numbers = LSTMClassifier(**options).fit(table, list(labels))
    assert numbers.n_features_in_ == 5
    assert isinstance(numbers.predict(table), cupy.ndarray)
    named = LSTMClassifier(**options).fit(table, words)
    assert isinstance(named.predict(table), np.ndarray)
    score = named.score(table, words)
    assert score == numbers.score(table, list(labels)) == numbers.score(table, cupy.asarray(labels))


def test_lists(cupy):
    X, y, _ = problem()
    parts = [cupy.asarray(x[:n]) for x, n in zip(X, LENGTHS, strict=True)]
    padded, y = cupy.asarray(X), cupy.asarray(y)
    one = LSTMRegressor(**OPTIONS).fit(parts, y).predict(parts)
    other = LSTMRegressor(**OPTIONS).fit(padded, y, sequence_length=LENGTHS)
    assert bits(one) == bits(other.predict(padded, LENGTHS))


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_other_dtypes(cupy, dtype):
    estimator = fitted(LSTMRegressor, cupy, dtype)
    assert estimator.network_.dtype.name == dtype
    rough = cupy.asarray(problem()[0]).astype(storage("bfloat16"))
    predicted = estimator.predict(rough)
    assert bits(predicted) == bits(estimator.predict(rough.astype("float32")))
    assert predicted.dtype == "float32" and cupy.isfinite(predicted).all()


@each_kind
def test_moved_and_loaded(cupy, kind, tmp_path):
    estimator = fitted(kind, cupy)
    estimator.save(tmp_path / "estimator.safetensors")
    loaded = [kind.load(tmp_path / "estimator.safetensors", xp=xp) for xp in ("cupy", np)]
    here = outputs(estimator, cupy)
    assert here.tobytes() == outputs(loaded[0], cupy).tobytes()
    assert outputs(estimator.to("numpy"), np).tobytes() == outputs(loaded[1], np).tobytes()
    assert here.tobytes() == outputs(estimator.to(cupy), cupy).tobytes()


@each_kind
def test_going_on_after_a_move(cupy, kind):
    X, y, labels = problem()
    targets = y if kind is LSTMRegressor else labels
    estimator = fitted(kind, np).to("cupy")
    before = outputs(estimator, cupy)
    estimator.partial_fit(cupy.asarray(X), cupy.asarray(targets))
    assert len(estimator.history_.loss) == EPOCHS + 1
    assert (outputs(estimator, cupy) != before).any()


def test_arrays_that_are_elsewhere(cupy):
    X, y, _ = problem()
    there = cupy.asarray(X)
    regressor, classifier = fitted(LSTMRegressor, np), fitted(LSTMClassifier, cupy)
    with pytest.raises(TypeError, match="X is on cupy, device 0, but the weights are on numpy: "):
        regressor.predict(there)
    with pytest.raises(TypeError, match="X is on numpy, but the weights are on cupy, device 0: "):
        classifier.predict(X)
    with pytest.raises(TypeError, match="y is on numpy, but the sequences are on cupy, device 0"):
        LSTMRegressor(**OPTIONS).fit(there, y)
    with pytest.raises(TypeError, match="y is on cupy, device 0, but the sequences are on numpy"):
        LSTMRegressor(**OPTIONS).fit(X, cupy.asarray(y))
    with pytest.raises(
        TypeError, match="sample_weight is on cupy, device 0, but the sequences are on numpy"
    ):
        LSTMRegressor(**OPTIONS).fit(X, y, cupy.asarray(WEIGHTS))


def test_what_a_gpu_does_not_look_at_shows_in_the_loss(cupy):
    X, y, _ = problem()
    X[3, 2, 1] = np.nan
    with pytest.raises(FloatingPointError, match="look for infinities and NaN in the data"):
        LSTMRegressor(**OPTIONS).fit(cupy.asarray(X), cupy.asarray(y))
