"""Losses: values by hand, gradients by central differences, extremes, errors."""

import math
from functools import partial

import numpy as np
import pytest

from cupy_lstm.loss import huber_loss, mae_loss, mse_loss, softmax_cross_entropy

DTYPES = ["float32", "float64"]
REGRESSION = {
    "mse": (mse_loss, lambda e: e * e),
    "mae": (mae_loss, abs),
    "huber": (huber_loss, lambda e: e * e / 2 if abs(e) <= 1 else abs(e) - 0.5),
    "huber 0.25": (
        partial(huber_loss, delta=0.25),
        lambda e: e * e / 2 if abs(e) <= 0.25 else 0.25 * abs(e) - 0.03125,
    ),
}
each_dtype = pytest.mark.parametrize("dtype", DTYPES)
each_regression = pytest.mark.parametrize(("loss", "term"), REGRESSION.values(), ids=REGRESSION)
each_shape = pytest.mark.parametrize("shape", [(), (1,), (7,), (4, 5), (2, 3, 4)], ids=str)

STEP = np.finfo(np.float64).eps ** (1 / 3)  # where truncation and rounding are of one size


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def assert_central_differences(loss, prediction, gradient):
    """Hold a gradient to the error of the differences: truncation, seen from two steps, rounding.

    A loss with a kink is smooth in between, and no case lies within two steps of a kink.
    """
    for index in np.ndindex(prediction.shape):
        slopes = []
        for step in (STEP, 2 * STEP):
            ahead, behind = prediction.copy(), prediction.copy()
            ahead[index] += step
            behind[index] -= step
            slopes.append((loss(ahead)[0] - loss(behind)[0]) / (2 * step))
        magnitude = max(1.0, float(loss(prediction)[0]))
        allowed = abs(slopes[1] - slopes[0]) + 8 * np.finfo(np.float64).eps * magnitude / STEP
        assert abs(gradient[index] - slopes[0]) <= allowed, index


@each_dtype
@each_shape
@each_regression
def test_regression_values(rng, loss, term, shape, dtype):
    prediction = np.array(rng.normal(0, 2, shape), dtype)
    target = np.array(rng.normal(0, 2, shape), dtype)
    kept = prediction.copy(), target.copy()
    value, gradient = loss(prediction, target)
    errors = (prediction.astype("float64") - target).ravel()
    expected = math.fsum(term(e) for e in errors) / errors.size
    assert isinstance(value, np.ndarray) and value.shape == () and value.dtype == dtype
    assert gradient.shape == shape and gradient.dtype == dtype
    # Each term is off by a few roundings of the dtype, and so is their sum.
    assert abs(value - expected) <= (8 + errors.size) * np.finfo(dtype).eps * expected
    assert np.array_equal(prediction, kept[0]) and np.array_equal(target, kept[1])


@each_shape
@each_regression
def test_regression_gradients(rng, loss, term, shape):
    prediction, target = np.array(rng.normal(0, 2, shape)), np.array(rng.normal(0, 2, shape))
    _, gradient = loss(prediction, target)
    assert_central_differences(lambda p: loss(p, target), prediction, gradient)


def test_gradients_at_the_kinks():
    prediction, target = np.array([1.0, 2.0, -2.0, 0.0]), np.array([1.0, 1.0, -1.0, 0.5])
    assert mae_loss(prediction, target)[1].tolist() == [0, 0.25, -0.25, -0.25]
    assert huber_loss(prediction, target)[1].tolist() == [0, 0.25, -0.25, -0.125]
    value, _ = huber_loss(prediction, target)
    assert value == (0.5 + 0.5 + 0.125) / 4


@each_dtype
def test_huber_does_not_square_outliers(dtype):
    far = np.finfo(dtype).max / 8
    value, gradient = huber_loss(np.array([far], dtype), np.array([-far], dtype))
    assert np.isfinite(value) and gradient.tolist() == [1]


def logits_and_labels(rng, shape, dtype="float64"):
    return rng.normal(0, 3, shape).astype(dtype), rng.integers(0, shape[-1], shape[:-1])


@pytest.mark.parametrize("shape", [(7,), (4, 5), (2, 3, 4)], ids=str)
@each_regression
def test_weights_of_samples_in_a_regression(rng, loss, term, shape):
    prediction, target = rng.normal(0, 2, shape), rng.normal(0, 2, shape)
    weights = rng.uniform(0, 3, shape[0])
    value, gradient = loss(prediction, target, weights=weights)
    terms = [
        w * term(e) for w, row in zip(weights, prediction - target, strict=True) for e in row.flat
    ]
    assert abs(value - math.fsum(terms) / len(terms)) <= 64 * np.finfo("float64").eps * value
    assert_central_differences(lambda p: loss(p, target, weights=weights), prediction, gradient)


@pytest.mark.parametrize("shape", [(5, 4), (2, 3, 6)], ids=str)
def test_weights_of_samples_in_a_classification(rng, shape):
    logits, labels = logits_and_labels(rng, shape)
    weights = rng.uniform(0, 3, shape[0])
    value, gradient = softmax_cross_entropy(logits, labels, weights)
    rows = [softmax_cross_entropy(logits[k], np.asarray(labels[k]))[0] for k in range(len(labels))]
    assert abs(value - np.mean(weights * rows)) <= 64 * np.finfo("float64").eps * value
    assert_central_differences(
        lambda p: softmax_cross_entropy(p, labels, weights), logits, gradient
    )


@each_dtype
@each_regression
def test_weights_of_one_change_nothing(rng, loss, term, dtype):
    prediction, target = rng.normal(0, 2, (2, 4, 5)).astype(dtype)
    for plain, weighted in zip(
        loss(prediction, target), loss(prediction, target, weights=np.ones(4, dtype)), strict=True
    ):
        assert plain.dtype == weighted.dtype and np.array_equal(plain, weighted)


@pytest.mark.parametrize("weights", [np.ones(3), np.ones((4, 5)), np.ones(4, "float32"), [1.0] * 4])
@each_regression
def test_weights_that_do_not_fit(loss, term, weights):
    with pytest.raises((TypeError, ValueError), match=r"weights (has|must be)"):
        loss(np.ones((4, 5)), np.ones((4, 5)), weights=weights)


@each_dtype
@pytest.mark.parametrize("kind", ["int8", "uint8", "int32", "int64", "uint64"])
@pytest.mark.parametrize("shape", [(3,), (5, 4), (2, 3, 6), (4, 1)], ids=str)
def test_cross_entropy_values(rng, shape, dtype, kind):
    logits, labels = logits_and_labels(rng, shape, dtype)
    value, gradient = softmax_cross_entropy(logits, np.asarray(labels, kind))
    losses, magnitude = [], 0.0
    for index in np.ndindex(labels.shape):
        row = logits[index].astype("float64")
        losses.append(math.log(math.fsum(np.exp(row))) - row[labels[index]])
        magnitude = max(magnitude, abs(row).max())
    assert isinstance(value, np.ndarray) and value.shape == () and value.dtype == dtype
    assert gradient.shape == shape and gradient.dtype == dtype
    eps = np.finfo(dtype).eps
    assert abs(value - np.mean(losses)) <= 8 * eps * (1 + magnitude)
    assert (abs(gradient.sum(axis=-1)) <= 4 * eps).all()


@pytest.mark.parametrize("shape", [(3,), (5, 4), (2, 3, 6)], ids=str)
def test_cross_entropy_gradients(rng, shape):
    logits, labels = logits_and_labels(rng, shape)
    labels = np.asarray(labels)
    _, gradient = softmax_cross_entropy(logits, labels)
    assert_central_differences(lambda p: softmax_cross_entropy(p, labels), logits, gradient)


@each_dtype
def test_cross_entropy_of_huge_logits(dtype):
    huge = np.finfo(dtype).max / 4
    logits = np.array([[huge, -huge], [1000, 999], [-np.inf, 0]], dtype)
    value, gradient = softmax_cross_entropy(logits, np.array([0, 1, 1]))
    expected = (0 + math.log1p(math.e) + 0) / 3
    assert abs(value - expected) <= 4 * np.finfo(dtype).eps
    assert gradient[[0, 2]].tolist() == [[0, 0], [0, 0]]


P = np.ones((4, 3))
L = np.array([0, 1, 2, 0])


@pytest.mark.parametrize("loss", [mse_loss, mae_loss, huber_loss])
@pytest.mark.parametrize(
    ("prediction", "target", "error", "message"),
    [
        ([1.0], P, TypeError, "prediction must be an array of numpy or cupy, received list"),
        (1.0, P, TypeError, "prediction must be an array of numpy or cupy, received float"),
        (P, [1.0], TypeError, "target must be an array of numpy, received list"),
        (P, None, TypeError, "target must be an array of numpy, received NoneType"),
        (P.astype(int), P, ValueError, "prediction must have a floating dtype, received int64"),
        (P, P.astype("f"), ValueError, "target has dtype float32, but the predictions have float6"),
        (P, P.astype(int), ValueError, "target has dtype int64, but the predictions have float64"),
        (P, P[:, :1], ValueError, r"target has shape \[4, 1\], but must have shape \[4, 3\]"),
        (P, P[0], ValueError, r"target has shape \[3\], but must have shape \[4, 3\]"),
        (P[:0], P[:0], ValueError, r"prediction has shape \(0, 3\): there is no mean of no"),
    ],
)
def test_bad_regressions(loss, prediction, target, error, message):
    with pytest.raises(error, match=message):
        loss(prediction, target)


@pytest.mark.parametrize(
    ("delta", "error", "message"),
    [
        (0, ValueError, r"delta must lie in \(0, inf\), received 0"),
        (-1.0, ValueError, r"delta must lie in \(0, inf\), received -1.0"),
        (math.nan, ValueError, r"delta must lie in \(0, inf\), received nan"),
        (math.inf, ValueError, r"delta must lie in \(0, inf\), received inf"),
        ("1", TypeError, "delta must be a number, received '1'"),
        (True, TypeError, "delta must be a number, received True"),
    ],
)
def test_bad_deltas(delta, error, message):
    with pytest.raises(error, match=message):
        huber_loss(P, P, delta)


@pytest.mark.parametrize(
    ("logits", "labels", "error", "message"),
    [
        ([[1.0]], L, TypeError, "logits must be an array of numpy or cupy, received list"),
        (P, [0, 1, 2, 0], TypeError, "labels must be an array of numpy, received list"),
        (P.astype(int), L, ValueError, "logits must have a floating dtype, received int64"),
        (P, L.astype(float), ValueError, "labels must have an integer dtype, received float64"),
        (P, L > 0, ValueError, "labels must have an integer dtype, received bool"),
        (P, L[:3], ValueError, r"labels have shape \(3,\), but logits of shape \(4, 3\) need"),
        (P, L[:, None], ValueError, r"labels have shape \(4, 1\), but logits of shape \(4, 3\)"),
        (np.array(1.0), L, ValueError, r"labels have shape \(4,\), but logits of shape \(\)"),
        (P, L - 1, ValueError, "labels must lie in 0 to 2, received -1 to 1"),
        (P, L + 1, ValueError, "labels must lie in 0 to 2, received 1 to 3"),
        (P[:0], L[:0], ValueError, r"logits has shape \(0, 3\): there is no mean of no"),
        (P[:, :0], L, ValueError, r"logits has shape \(4, 0\): there is no mean of no"),
    ],
)
def test_bad_cross_entropies(logits, labels, error, message):
    with pytest.raises(error, match=message):
        softmax_cross_entropy(logits, labels)
