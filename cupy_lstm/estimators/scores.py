"""Scores of predictions on a GPU, as scikit-learn's: only sums come to the host."""

from typing import Any

import numpy

from cupy_lstm.backend import Array, array_module
from cupy_lstm.interchange import adopted, array_beside


def accuracy_on_device(y: Any, predicted: Array, sample_weight: Any) -> float:
    """Return the share of labels that are predicted, as `sklearn.metrics.accuracy_score`."""
    y = array_module(predicted).asarray(adopted("y", y))  # labels may be on the host, as in a fit
    return float(_average(y == predicted, sample_weight))


def r2_on_device(y: Any, predicted: Array, sample_weight: Any) -> float:
    """Return the mean R^2 of the outputs, as `sklearn.metrics.r2_score`."""
    y, xp = array_beside("y", y, predicted, "the predictions"), array_module(predicted)
    y, predicted = (a.reshape(len(a), -1).astype("float64") for a in (y, predicted))
    mean = _average(y, sample_weight)
    squares = (_average((y - by) ** 2, sample_weight) for by in (predicted, mean))
    residual, total = xp.stack(list(squares)).get()
    # Of a constant output: 1 if it is met, else 0.
    ratio = numpy.where(total > 0, residual / numpy.where(total > 0, total, 1), residual > 0)
    return float((1 - ratio).mean())


def _average(values: Array, weights: Any) -> Array:
    """Return the mean of values [N, ...] over the first axis, weighted by weights [N] or alike."""
    xp = array_module(values)
    weights = xp.ones(len(values)) if weights is None else xp.asarray(weights, dtype="float64")
    return xp.tensordot(weights / weights.sum(), values.astype("float64"), axes=1)
