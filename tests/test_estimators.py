"""The estimators hold to the conventions of scikit-learn: its own checks, and its own tools."""

import numpy as np
import pytest
import sklearn
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV, cross_val_score, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from cupy_lstm.estimators import LSTMClassifier, LSTMRegressor

# One batch of all samples and no validation part: then a weight of 2 is the same as two samples to
# the last digits, which one of the checks asks for. float64: predictions of one sequence alone and
# of many together agree to 1e-7, as another asks. So no check is expected to fail.
EXACT = {
    "hidden_size": 16,
    "batch_size": 512,
    "validation_fraction": 0.0,
    "learning_rate": 0.05,
    "epochs": 50,
    "dtype": "float64",
}


@parametrize_with_checks([LSTMRegressor(**EXACT), LSTMClassifier(**EXACT)])
def test_scikit_learn_s_own_checks(estimator, check):
    check(estimator)


@pytest.fixture(scope="module")
def digits():
    """Digits as sequences of 8 rows of 8 pixels, three quarters of them to learn from."""
    images, labels = load_digits(return_X_y=True)
    sequences = images.reshape(-1, 8, 8)
    return train_test_split(sequences, labels, test_size=0.25, random_state=0, stratify=labels)


def test_digits_are_read_row_by_row(digits):
    X, X_test, y, y_test = digits
    classifier = LSTMClassifier(
        48, direction="bidirectional", learning_rate=0.015, epochs=8, random_state=0
    )
    assert classifier.fit(X, y).score(X_test, y_test) >= 0.97
    probabilities = classifier.predict_proba(X_test)
    assert np.array_equal(probabilities.argmax(axis=1), classifier.predict(X_test))


@pytest.fixture(scope="module")
def means():
    """Sequences of 12 steps of 2 features, and the mean of the first one."""
    X = np.random.default_rng(0).standard_normal((120, 12, 2)).astype("float32")
    return X, X[..., 0].mean(axis=1)


SMALL = {"hidden_size": 12, "learning_rate": 0.02, "epochs": 30, "random_state": 0}


def test_a_search_over_parameters_in_two_processes(means):
    grid = {"learning_rate": [1e-5, 0.02]}
    search = GridSearchCV(LSTMRegressor(**SMALL), grid, cv=2, n_jobs=2, refit=True)
    search.fit(*means)
    assert search.best_params_["learning_rate"] == 0.02
    assert search.score(*means) > 0.8
    alone = clone(search.best_estimator_).fit(*means)
    assert np.array_equal(alone.predict(means[0]), search.predict(means[0]))


def test_cross_validation_is_the_same_in_two_processes(means):
    X, y = list(means[0]), means[1]
    scores = [cross_val_score(LSTMRegressor(**SMALL), X, y, cv=2, n_jobs=n) for n in (1, 2)]
    assert scores[0].min() > 0.5
    assert np.array_equal(*scores)


def test_a_pipeline_over_tables(means):
    X, y = means[0][..., 0], means[1]
    pipeline = make_pipeline(StandardScaler(), LSTMRegressor(**SMALL))
    assert pipeline.fit(X, y).score(X, y) > 0.8
    pipeline.set_params(lstmregressor__hidden_size=3)
    assert pipeline.fit(X, y)[-1].network_.lstm.hidden_size == 3


def half(X):
    return X / 2


def test_lengths_go_through_a_pipeline(means):
    """By metadata routing, to fit, predict and score; and through cross-validation, in parts."""
    X, lengths = means[0].copy(), np.random.default_rng(1).integers(1, 13, 120)
    y = np.array([x[:n, 0].mean() for x, n in zip(X, lengths, strict=True)])
    with sklearn.config_context(enable_metadata_routing=True):
        regressor = LSTMRegressor(**SMALL)
        regressor.set_fit_request(sequence_length=True)
        regressor.set_predict_request(sequence_length=True)
        regressor.set_score_request(sequence_length=True)
        pipeline = make_pipeline(FunctionTransformer(half), regressor)
        pipeline.fit(X, y, sequence_length=lengths)
        assert pipeline.score(X, y, sequence_length=lengths) > 0.7
        direct = LSTMRegressor(**SMALL).fit(X / 2, y, sequence_length=lengths)
        found = pipeline.predict(X, sequence_length=lengths)
        assert np.array_equal(found, direct.predict(X / 2, sequence_length=lengths))
        assert not np.array_equal(found, direct.predict(X / 2))
        params = {"sequence_length": lengths}
        assert cross_val_score(pipeline, X, y, cv=2, params=params).min() > 0.4
