"""Files of estimators: what comes back, and what is refused."""

import json
import pickle

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file
from sklearn.base import clone

from cupy_lstm import LSTM, CosineAnnealingDecay, LinearWarmup, StepDecay, io, mse_loss
from cupy_lstm.estimators import LSTMClassifier, LSTMRegressor
from cupy_lstm.estimators.storage import FORMAT

BRIEF = {"hidden_size": 4, "epochs": 2, "random_state": 0}

X = np.random.default_rng(0).standard_normal((40, 6, 2))
Y = X.sum(axis=1)
LABELS = np.where(Y[:, 0] > 0, "up", "down")

CASES = {
    "values": (LSTMRegressor(**BRIEF), Y),
    "one value": (LSTMRegressor(**BRIEF, loss="huber", patience=None), Y[:, 0].astype("float32")),
    "layers": (LSTMRegressor(**BRIEF, num_layers=2, direction="bidirectional", dropout=0.2), Y),
    "float64": (LSTMRegressor(**BRIEF, dtype=np.float64, standardize=False), Y),
    "words": (LSTMClassifier(**BRIEF, class_weight={"up": np.float64(2)}), LABELS),
    "objects": (LSTMClassifier(**BRIEF), LABELS.astype(object)),
    "numbers": (LSTMClassifier(**BRIEF, class_weight={1: 2, 0: np.int64(3)}), (Y[:, 0] > 0) * 1),
    "truths": (LSTMClassifier(**BRIEF, class_weight="balanced"), Y[:, 0] > 0),
    "generator": (LSTMRegressor(4, epochs=np.int64(2), random_state=np.random.RandomState(0)), Y),
    "callbacks": (LSTMRegressor(**BRIEF, callbacks=[print]), Y),
}  # fmt: skip


def outputs(estimator):
    return getattr(estimator, "predict_proba", estimator.predict)(X)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "estimator.safetensors"


@pytest.mark.parametrize(("made", "y"), CASES.values(), ids=CASES)
def test_what_is_saved_comes_back(path, made, y):
    estimator = clone(made).fit(X, y)
    estimator.save(path)
    loaded = type(made).load(path)
    assert np.array_equal(outputs(loaded), outputs(estimator))
    predicted = loaded.predict(X)
    assert predicted.dtype == estimator.predict(X).dtype
    assert np.array_equal(predicted, estimator.predict(X))
    assert loaded.history_ == estimator.history_
    assert loaded.n_features_in_ == 2
    params, found = estimator.get_params(), loaded.get_params()
    changed = {name for name in params if str(params[name]) != str(found[name])}
    assert changed <= {"callbacks", "dtype", "class_weight", "random_state"}
    assert found.get("class_weight") == params.get("class_weight")
    assert np.dtype(found["dtype"]) == np.dtype(params["dtype"])
    # As good as new: it goes on, begins anew, and can be saved again.
    loaded.save(path)
    assert np.array_equal(outputs(type(made).load(path)), outputs(loaded))
    if made.random_state == 0:
        assert np.array_equal(outputs(loaded.fit(X, y)), outputs(estimator))


def test_a_loaded_estimator_goes_on(path):
    estimator = LSTMClassifier(**BRIEF).fit(X, LABELS)
    estimator.save(path)
    loaded = LSTMClassifier.load(path).partial_fit(X, LABELS)
    assert loaded.history_.loss[:2] == estimator.history_.loss and len(loaded.history_.loss) == 3
    assert not np.array_equal(outputs(loaded), outputs(estimator))


def test_steps_of_one_value_and_their_names(path):
    import pandas

    frame = pandas.DataFrame(X[..., 0]).rename(columns="t{}".format)
    estimator = LSTMRegressor(**BRIEF).fit(frame, Y)
    estimator.save(path)
    loaded = LSTMRegressor.load(path)
    assert loaded.feature_names_in_.tolist() == list(frame.columns)
    assert np.array_equal(loaded.predict(frame), estimator.predict(frame))
    with pytest.raises(ValueError, match="feature names should match"):
        loaded.predict(frame.rename(columns=str.upper))


def test_copies_and_pickles():
    estimator = LSTMRegressor(**BRIEF).fit(X, Y)
    twin = pickle.loads(pickle.dumps(estimator))
    assert np.array_equal(twin.predict(X), estimator.predict(X))
    twin.partial_fit(X, Y), estimator.partial_fit(X, Y)
    assert np.array_equal(twin.predict(X), estimator.predict(X))
    assert not hasattr(clone(estimator), "network_")


def test_the_same_estimator_makes_the_same_file(path, tmp_path):
    other = tmp_path / "other.safetensors"
    for place in (path, other):
        LSTMClassifier(**BRIEF).fit(X, LABELS).save(place)
    assert path.read_bytes() == other.read_bytes()


@pytest.mark.parametrize(
    "later", [{"num_layers": 1}, {"num_layers": 3, "direction": "forward"}, {"hidden_size": 9}]
)
def test_the_network_is_saved_as_it_was_built(path, later):
    """Also where parameters were set for a next fit."""
    options = {"num_layers": 2, "direction": "bidirectional", "dropout": 0.25}
    estimator = LSTMRegressor(**BRIEF, **options).fit(X, Y)
    expected = outputs(estimator)
    estimator.set_params(**later, epochs=7).save(path)
    loaded = LSTMRegressor.load(path)
    assert np.array_equal(outputs(loaded), expected)
    found = loaded.get_params()
    assert {name: found[name] for name in options} == options
    assert found["hidden_size"] == 4 and found["epochs"] == 7


@pytest.mark.parametrize(
    "schedule",
    [StepDecay(0.01, 5), LinearWarmup(CosineAnnealingDecay(np.float64(0.01), 20), 3, end_lr=0.02)],
    ids=str,
)
def test_schedules_are_saved(path, schedule):
    LSTMRegressor(**BRIEF, learning_rate=schedule).fit(X, Y).save(path)
    assert LSTMRegressor.load(path).learning_rate == schedule


def test_what_cannot_be_saved(path):
    for options, name in (({"loss": mse_loss}, "loss"), ({"learning_rate": lambda k: 0.1}, "lear")):
        with pytest.raises(ValueError, match=rf"{name}.* is <function .*set_params\({name}"):
            LSTMRegressor(**BRIEF, **options).fit(X, Y).save(path)
    mixed = LSTMClassifier(**BRIEF).fit(X, LABELS)
    mixed.classes_ = np.array([(1,), None], object)
    with pytest.raises(ValueError, match="labels of dtype object cannot be saved"):
        mixed.save(path)
    assert not path.exists()


def tampered(path, description=None, **tensors):
    """Write the file anew with other contents."""
    with safe_open(path, framework="numpy") as file:
        found = {name: file.get_tensor(name) for name in file.keys()} | tensors  # noqa: SIM118
        metadata = json.loads(file.metadata()[FORMAT]) | (description or {})
    save_file(
        {n: a for n, a in found.items() if a is not None}, path, {FORMAT: json.dumps(metadata)}
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"network.head.weight": None}, "is damaged: KeyError"),
        ({"network.head.bias": None}, "is damaged: .*lacks head.bias"),
        ({"network.tail": np.ones(2)}, "is damaged: .*holds tail, which its parameters do not say"),
        ({"network.head.bias": np.full(2, np.nan, "float32")}, "head.bias holds infinity or NaN"),
        ({"network.lstm.weight_hh_l0": np.zeros((4, 1), "float32")}, "do not have the size"),
        ({"inputs.mean": None}, "is damaged: KeyError"),
        ({"description": {"class": "LSTMClassifier"}}, "holds the estimator LSTMClassifier, not"),
        ({"description": {"parameters": {"hidden_size": 10**9}}}, "do not have the size"),
        ({"description": {"parameters": {"hidden": 4}}}, "is damaged: TypeError"),
        ({"description": {"parameters": {"hidden_size": 4, "num_layers": 9}}}, "lacks layers"),
        ({"description": {"history": {"losses": []}}}, "is damaged: TypeError"),
        ({"description": {"targets": {}}}, "is damaged: KeyError"),
    ],
)
def test_damaged_files(path, change, message):
    LSTMRegressor(**BRIEF).fit(X, Y).save(path)
    tampered(path, **change)
    with pytest.raises(ValueError, match=rf"estimator\.safetensors.*{message}"):
        LSTMRegressor.load(path)


def test_other_files(path):
    io.save(LSTM(2, 3), path)
    with pytest.raises(ValueError, match="holds no estimator that this version"):
        LSTMRegressor.load(path)
    path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="no safetensors file"):
        LSTMRegressor.load(path)
    with pytest.raises(FileNotFoundError):
        LSTMRegressor.load(path.parent / "none")
