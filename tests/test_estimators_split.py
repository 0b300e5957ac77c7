"""The validation part of a fit: how it is drawn, and that nothing is learnt from it."""

import numpy as np
import pytest
from sklearn.datasets import make_regression

from cupy_lstm.estimators import LSTMClassifier, LSTMRegressor
from cupy_lstm.estimators.samples import split_rows

BRIEF = {"hidden_size": 4, "epochs": 3, "random_state": 0}

X = np.random.default_rng(0).standard_normal((90, 10, 2))
MEANS = X.mean(axis=1)
LABELS = (MEANS[:, 0] > 0.3).astype(int)
FRACTION = 0.3


def test_the_validation_part_is_a_share_of_each_class():
    strata = np.repeat([0, 1, 2], [50, 30, 20])
    rows, others = split_rows(100, 0.2, 0, strata)
    assert np.bincount(strata[others]).tolist() == [10, 6, 4]
    assert np.array_equal(np.sort(np.concatenate([rows, others])), np.arange(100))
    again = split_rows(100, 0.2, 1, strata)[1]
    assert not np.array_equal(others, again)
    assert len(split_rows(9, 0.1, 0, None)[1]) == 0


@pytest.mark.parametrize("sizes", [(5, 1, 54), (1, 1, 1), (2, 2, 96)])
@pytest.mark.parametrize("fraction", [0.1, 0.9])
def test_something_of_each_class_is_learnt_from(sizes, fraction):
    strata, count = np.repeat([0, 1, 2], sizes), sum(sizes)
    for seed in range(20):
        rows, others = split_rows(count, fraction, seed, strata)
        assert np.unique(strata[rows]).tolist() == [0, 1, 2]
        assert len(others) == min(int(fraction * count), count - 3)


def test_samples_of_no_weight_are_not_drawn():
    strata, counting = np.repeat([0, 1], 50), np.arange(100) % 2 == 0
    rows, others = split_rows(100, 0.2, 0, strata, counting)
    assert len(others) == 10 and counting[others].all()
    assert np.array_equal(np.sort(np.concatenate([rows, others])), np.arange(100))
    weights = np.repeat([0.0, 1.0], [85, 5])
    history = LSTMRegressor(**BRIEF, validation_fraction=0.2).fit(X, MEANS, weights).history_
    assert min(history.validation_loss) > 0


def drawn(strata=None):
    """Return the rows to learn from and the others, of 90, as a fit of `BRIEF` draws them."""
    seed = np.random.RandomState(BRIEF["random_state"]).randint(2**31 - 1, size=3)[2]
    return split_rows(90, FRACTION, seed, strata)


@pytest.mark.parametrize("kind", [LSTMRegressor, LSTMClassifier])
def test_nothing_is_learnt_from_the_validation_part(kind):
    """Neither scales of inputs and targets, nor the mean of the weights."""
    y = MEANS if kind is LSTMRegressor else LABELS
    others = drawn(None if kind is LSTMRegressor else LABELS)[1]
    moved, weights, targets = X.copy(), np.ones(90), y.copy()
    moved[others] = 50 + 9 * moved[others]
    weights[others[:5]] = 5
    if kind is LSTMRegressor:
        targets[others] += 7
    options = BRIEF | {"validation_fraction": FRACTION, "patience": None}
    one = kind(**options).fit(X, y, np.ones(90)).history_
    other = kind(**options).fit(moved, targets, weights).history_
    assert one.loss == other.loss
    assert one.validation_loss != other.validation_loss


def test_balanced_is_what_is_learnt_from():
    counts = np.bincount(LABELS[drawn(LABELS)[0]])
    assert counts[0] / counts[1] != np.divide(*np.bincount(LABELS))
    options = BRIEF | {"validation_fraction": FRACTION, "dtype": "float64", "patience": None}
    balanced, by_hand = (
        LSTMClassifier(**options, class_weight=weight).fit(X, LABELS).history_
        for weight in ("balanced", dict(enumerate(1 / counts)))
    )
    # Losses of order one, from weights that differ in their last digits.
    rounding = 90 * np.finfo("float64").eps
    assert np.allclose(balanced.loss, by_hand.loss, rtol=rounding, atol=0)
    assert np.allclose(balanced.validation_loss, by_hand.validation_loss, rtol=rounding, atol=0)


@pytest.mark.parametrize("seed", range(3))
def test_defaults_are_patient_enough(seed):
    """For a validation loss that rests for tens of epochs, before the noise gives way."""
    table, y = make_regression(200, 10, n_informative=1, bias=5.0, noise=20, random_state=42)
    assert LSTMRegressor(random_state=seed).fit(table, y).score(table, y) > 0.7
