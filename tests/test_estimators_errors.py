"""What an estimator refuses: with the argument, what came, what would do; and unchanged."""

import copy

import numpy as np
import pytest

from cupy_lstm.estimators import LSTMClassifier, LSTMRegressor

V, T = ValueError, TypeError
BRIEF = {"hidden_size": 3, "epochs": 1, "random_state": 0}

X = np.random.default_rng(0).standard_normal((20, 6, 2))
Y = X.sum(axis=1)
LABELS = np.where(Y[:, 0] > 0, "up", "down")
TABLE = X[..., 0]


def changed(array, index, value):
    array = array.copy()
    array[index] = value
    return array


FITS = [
    ((X[0, :, 0], Y), {}, V, "Expected 2D array, got 1D array|X has shape"),
    ((X[None], Y), {}, V, r"X has shape \[1, 20, 6, 2\], but must have shape \[samples, steps,"),
    ((X[:, :0], Y), {}, V, r"X has shape \[20, 0, 2\]: there is nothing to learn from"),
    ((changed(X, (3, 2, 1), np.nan), Y), {}, V, "Input X contains NaN"),
    ((changed(X, (3, 2, 1), np.inf), Y), {"sequence_length": [6] * 20}, V, r"X\[3\] holds inf"),
    ((X.astype("complex64"), Y), {}, V, "Complex data not supported"),
    ((np.full(X.shape, "a"), Y), {}, V, "could not convert string|Unable to convert"),
    (([X[0], X[1][:, :1]], Y), {}, V, r"X\[1\] has shape \[6, 1\], but must have shape \[steps, 2"),
    (([X[0], X[1][0, 0]], Y), {}, V, "inhomogeneous|X has shape"),
    (([X[0], X[:2]], Y), {}, V, r"X\[1\] has shape \[2, 6, 2\], but must have shape \[steps, 2\]"),
    (([X[0], X[1].astype(str)], Y), {}, T, r"X\[1\] must be an array of real numbers, received"),
    (([X[0][:0]] * 3, Y[:3]), {}, V, "X is a list of 3 sequences without a single value"),
    (([*X[:19], np.full((6, 2), np.inf)], Y), {}, V, r"X\[19\] holds infinity or NaN at step 0"),
    ((list(X), Y), {"sequence_length": [6] * 20}, V, "sequence_length is for sequences that are"),
    ((X, Y), {"sequence_length": [6] * 19}, V, r"sequence_length has shape \[19\], but must have"),
    ((X, Y), {"sequence_length": [7] * 20}, V, r"sequence_length\[0\] is 7, but inputs have 6"),
    ((X, None), {}, V, "LSTMRegressor requires y to be passed, but the target y is None"),
    ((X, Y[:19]), {}, V, "y has 19 samples, but X has 20"),
    ((X, X), {}, V, "Found array with dim 3|y has shape"),
    ((X, changed(Y, 0, np.nan)), {}, V, "Input y contains NaN"),
    ((X, LABELS), {}, V, "could not convert string to float"),
    ((X, Y), {"sample_weight": np.ones(19)}, V, r"sample_weight has shape \[19\], but must have"),
    ((X, Y), {"sample_weight": -np.ones(20)}, V, "sample_weight must hold finite weights that are"),
    ((X, Y), {"sample_weight": np.zeros(20)}, V, "sample_weight must hold finite weights .* zero"),
    ((X, Y), {"sample_weight": ["a"] * 20}, T, "sample_weight must hold numbers, received dtype"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "options", "error", "message"), FITS)
def test_bad_data(arguments, options, error, message):
    regressor = LSTMRegressor(**BRIEF).fit(TABLE, Y)
    kept = dict(vars(regressor))
    for method in (regressor.fit, LSTMRegressor(**BRIEF).partial_fit):
        with pytest.raises(error, match=message):
            method(*arguments, **options)
    assert vars(regressor) == kept


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"hidden_size": 0}, V, "hidden_size must be at least 1, received 0"),
        ({"num_layers": 1.5}, T, "num_layers must be an integer, received 1.5"),
        ({"direction": "backward"}, V, "direction must be one of"),
        ({"dropout": 2}, V, r"dropout must be in \[0, 1\], received 2"),
        ({"loss": "rmse"}, V, r"loss must be one of \('mse', 'mae', 'huber'\), received 'rmse'"),
        ({"learning_rate": -1}, V, "learning_rate must lie in"),
        ({"weight_decay": "a"}, T, "weight_decay must be a number"),
        ({"clip_norm": 0}, V, "clip_norm must lie in"),
        ({"batch_size": 0}, V, "batch_size must be at least 1, received 0"),
        ({"epochs": 0}, V, "epochs must be at least 1, received 0"),
        ({"patience": 0}, V, "patience must be at least 1, received 0"),
        ({"validation_fraction": 1}, V, r"validation_fraction must lie in \[0, 1\), received 1"),
        ({"standardize": "yes"}, V, "standardize must be True or False, received 'yes'"),
        ({"dtype": "int32"}, V, "dtype must be one of"),
        ({"random_state": "a"}, V, "'a' cannot be used to seed"),
        ({"callbacks": [3]}, T, r"callbacks\[0\] must be callable, received 3"),
    ],
)
def test_bad_parameters(options, error, message):
    regressor = LSTMRegressor(**BRIEF).fit(X, Y).set_params(**options)
    kept, before = dict(vars(regressor)), regressor.predict(X)
    with pytest.raises(error, match=message):
        regressor.fit(X, Y)
    assert vars(regressor) == kept
    assert np.array_equal(regressor.predict(X), before)


def test_a_callback_that_raises_leaves_what_was_learnt():
    def interrupt(record):
        raise KeyboardInterrupt

    regressor = LSTMRegressor(**BRIEF).fit(X, Y)
    before = regressor.predict(X)
    with pytest.raises(KeyboardInterrupt):
        regressor.set_params(callbacks=[interrupt]).fit(X, Y + 3)
    assert np.array_equal(regressor.predict(X), before)


def not_a_number(prediction, target):
    return np.full((), np.nan, prediction.dtype), np.full_like(prediction, np.nan)


def raising(record):
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("options", "error"),
    [({"loss": not_a_number}, FloatingPointError), ({"callbacks": [raising]}, KeyboardInterrupt)],
)
def test_a_part_that_fails_leaves_what_was_learnt(options, error):
    regressor = LSTMRegressor(**BRIEF).fit(X, Y)
    twin, kept = copy.deepcopy(regressor), dict(vars(regressor))
    before = regressor.predict(X)
    defaults = {name: getattr(regressor, name) for name in options}
    with pytest.raises(error):
        regressor.set_params(**options).partial_fit(X, Y + 3)
    assert np.array_equal(regressor.predict(X), before)
    assert vars(regressor.set_params(**defaults)) == kept
    found, expected = (one.partial_fit(X, Y).predict(X) for one in (regressor, twin))
    assert np.array_equal(found, expected)


def test_nothing_to_learn_from():
    for weights in ({"up": 0, "down": 0}, {"up": 0}):
        with pytest.raises(ValueError, match="zero"):
            LSTMClassifier(**BRIEF, class_weight=weights).fit(X, LABELS, LABELS == "up")
    message = "sequence_length leaves no valid step of a sample that is learnt from"
    regressor = LSTMRegressor(**BRIEF)
    for method in (regressor.fit, regressor.partial_fit):
        with pytest.raises(ValueError, match=message):
            method(X, Y, sequence_length=[0] * 20)
    unscaled = LSTMRegressor(**BRIEF, standardize=False).fit(X, Y, sequence_length=[0] * 20)
    assert np.isfinite(unscaled.predict(X)).all()


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")
def test_a_learning_rate_that_is_too_large():
    with pytest.raises(FloatingPointError, match="try a smaller learning rate"):
        LSTMRegressor(**BRIEF | {"learning_rate": 1e30, "epochs": 20}).fit(X, Y)


@pytest.mark.parametrize(
    ("fitted", "given", "message"),
    [
        (X, X[..., :1], "X has 1 features, but LSTMRegressor is expecting 2 features as input"),
        (TABLE, TABLE[:, :5], "X has 5 features, but LSTMRegressor is expecting 6 features"),
        (
            X,
            TABLE,
            r"was fitted on X\[samples, steps, features\], but received X\[samples, steps\]",
        ),
        (
            TABLE,
            X,
            r"was fitted on X\[samples, steps\], but received X\[samples, steps, features\]",
        ),
        (list(X), [x[:, :1] for x in X], "X has 1 features, but LSTMRegressor is expecting 2"),
    ],
)
def test_other_forms_than_in_the_fit(fitted, given, message):
    regressor = LSTMRegressor(**BRIEF).fit(fitted, Y)
    for call in (regressor.predict, lambda X: regressor.partial_fit(X, Y)):
        with pytest.raises(ValueError, match=message):
            call(given)


def test_targets_of_another_form_in_a_later_part():
    regressor = LSTMRegressor(**BRIEF).partial_fit(X, Y)
    message = r"y has shape \[20\], but must have shape \[20, 2\], as in the first fit"
    with pytest.raises(ValueError, match=message):
        regressor.partial_fit(X, Y[:, 0])


def test_bad_labels():
    with pytest.raises(ValueError, match="Unknown label type"):
        LSTMClassifier(**BRIEF).fit(X, Y[:, 0])
    classifier = LSTMClassifier(**BRIEF).partial_fit(X, LABELS)
    with pytest.raises(ValueError, match=r"y holds .*'no'.*, which is none of \['down' 'up'\]"):
        classifier.partial_fit(X, changed(LABELS, 3, "no"))
    with pytest.raises(ValueError, match="classes must be those of the first call"):
        classifier.partial_fit(X, LABELS, classes=["down"])
    with pytest.raises(ValueError, match=r"y holds .*'up'.*, which is none of \['down'\]"):
        LSTMClassifier(**BRIEF).partial_fit(X, LABELS, classes=["down"])
    balanced = LSTMClassifier(**BRIEF, class_weight="balanced")
    with pytest.raises(ValueError, match="class_weight='balanced' needs all samples at once"):
        balanced.partial_fit(X, LABELS)
