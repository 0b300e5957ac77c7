"""Losses: a number to make small, and its gradient.

Every loss takes a prediction and a target, and returns its mean with the gradient of that mean
for the prediction. With `weights`, one for each sample, it is the mean of each element's loss
times the weight of its sample: not divided by the sum of the weights, so that batches of few
samples remain fair shares of one sum. Nothing here synchronises: the mean stays on the device.
"""

import numpy

from cupy_lstm.backend import Array, array_module, is_array, sum_dtype
from cupy_lstm.checks import checked_array, checked_number
from cupy_lstm.interchange import array_beside


def mse_loss(prediction: Array, target: Array, weights: Array | None = None) -> tuple[Array, Array]:
    """Return the mean squared error and its gradient.

    Parameters
    ----------
    prediction : array of any shape, floating dtype
        What the model says.
    target : array like `prediction`
        What it should say.
    weights : array [B], optional
        Factor of the loss of each sample, of the first axis; of the dtype of `prediction`.

    Returns
    -------
    loss : array of shape ()
        mean((prediction - target)^2), on the device and of the dtype of `prediction`, or
        float32 where that is a half type.
    gradient : array like `prediction`
        d loss / d prediction.

    Raises
    ------
    TypeError
        If one of them is no array, or they live in different places.
    ValueError
        If dtypes or shapes differ, the dtype is not floating, or there are no elements.
    """
    difference = _difference(prediction, target)
    return _mean(prediction, difference * difference, 2 * difference, weights)


def mae_loss(prediction: Array, target: Array, weights: Array | None = None) -> tuple[Array, Array]:
    """Return the mean absolute error and its gradient, which is 0 where they are equal.

    Parameters
    ----------
    prediction : array of any shape, floating dtype
        What the model says.
    target : array like `prediction`
        What it should say.
    weights : array [B], optional
        Factor of the loss of each sample, of the first axis; of the dtype of `prediction`.

    Returns
    -------
    loss : array of shape ()
        mean(abs(prediction - target)), on the device and of the dtype of `prediction`.
    gradient : array like `prediction`
        d loss / d prediction.

    Raises
    ------
    TypeError, ValueError
        As `mse_loss`.
    """
    difference = _difference(prediction, target)
    sign = array_module(difference).sign(difference)
    return _mean(prediction, abs(difference), sign, weights)


def huber_loss(
    prediction: Array, target: Array, delta: float = 1.0, weights: Array | None = None
) -> tuple[Array, Array]:
    """Return the mean Huber loss and its gradient.

    With the error e, an element's loss is e^2 / 2 up to abs(e) = delta, and goes on from there
    as a straight line, so that outliers pull with a limited force (Huber, 1964).

    Parameters
    ----------
    prediction : array of any shape, floating dtype
        What the model says.
    target : array like `prediction`
        What it should say.
    delta : float
        Where the line begins, positive, in units of the prediction. For another one in `fit`,
        give ``functools.partial(huber_loss, delta=0.5)``.
    weights : array [B], optional
        As of `mse_loss`.

    Returns
    -------
    loss : array of shape ()
        Mean over all elements, on the device and of the dtype of `prediction`.
    gradient : array like `prediction`
        d loss / d prediction.

    Raises
    ------
    TypeError, ValueError
        As `mse_loss`, or if `delta` is not positive and finite.
    """
    delta = checked_number("delta", delta, low_included=False)
    difference = _difference(prediction, target)
    slope = array_module(difference).clip(difference, -delta, delta)
    # Inside, slope = e gives e^2 / 2; outside, slope = +-delta gives delta * (|e| - delta / 2).
    return _mean(prediction, slope * (difference - slope / 2), slope, weights)


def softmax_cross_entropy(
    logits: Array, labels: Array, weights: Array | None = None
) -> tuple[Array, Array]:
    """Return the mean cross entropy of softmax(logits) with integer labels, and its gradient.

    The largest logit of each row is subtracted first, so that no exponential overflows.

    Parameters
    ----------
    logits : array [..., C], floating dtype
        Unnormalised logarithms of the probabilities of C classes.
    labels : array [...], integer dtype
        The right class of each row, from 0 to C-1. On CuPy, where a check would synchronise, a
        label outside makes the loss NaN.
    weights : array [B], optional
        Factor of the loss of each sample, of the first axis; of the dtype of `logits`.

    Returns
    -------
    loss : array of shape ()
        Mean over all labels, on the device and of the dtype of `logits`.
    gradient : array like `logits`
        d loss / d logits.

    Raises
    ------
    TypeError
        If one of them is no array, or they live in different places.
    ValueError
        If a dtype or shape does not fit, there are no labels, or (NumPy) a label is no class.
    """
    _check_prediction("logits", logits)
    labels = array_beside("labels", labels, logits, "the logits")
    if labels.dtype.kind not in "iu":
        raise ValueError(f"labels must have an integer dtype, received {labels.dtype}")
    if logits.ndim == 0 or labels.shape != logits.shape[:-1]:
        raise ValueError(
            f"labels have shape {labels.shape}, but logits of shape {logits.shape} "
            f"need one label for each row, shape {logits.shape[:-1]}"
        )
    xp, classes = array_module(logits), logits.shape[-1]
    if xp is numpy and not ((labels >= 0) & (labels < classes)).all():
        raise ValueError(
            f"labels must lie in 0 to {classes - 1}, received {labels.min()} to {labels.max()}"
        )
    wide = logits.astype(sum_dtype(logits.dtype), copy=False)
    shifted = wide - wide.max(axis=-1, keepdims=True)
    exponentials = xp.exp(shifted)
    normaliser = exponentials.sum(axis=-1, keepdims=True)
    is_label = labels[..., None] == xp.arange(classes)
    picked = xp.where(is_label, shifted, 0).sum(axis=-1)
    losses = xp.where(is_label.any(axis=-1), xp.log(normaliser[..., 0]) - picked, xp.nan)
    slopes = exponentials / normaliser
    slopes -= is_label.astype(slopes.dtype)
    return _mean(logits, losses, slopes, weights)


def _mean(
    prediction: Array, losses: Array, slopes: Array, weights: Array | None
) -> tuple[Array, Array]:
    """Return the mean of losses, and its gradient like `prediction`.

    Parameters
    ----------
    prediction : array [B, ...]
        What they are losses of.
    losses : array [B, ...]
        The loss of each element, or of each row of classes.
    slopes : array like `prediction`
        Derivative of each loss.
    weights : array [B], optional
        Factor of each sample.
    """
    if weights is not None:
        weights = checked_array(
            "weights", weights, prediction, "the predictions", losses.shape[:1]
        ).astype(losses.dtype, copy=False)
        losses = losses * weights.reshape(weights.shape + (1,) * (losses.ndim - weights.ndim))
        slopes = slopes * weights.reshape(weights.shape + (1,) * (slopes.ndim - weights.ndim))
    # NumPy's mean is a scalar; an array of shape () is what CuPy returns.
    mean = array_module(losses).asarray(losses.mean())
    return mean, (slopes / losses.size).astype(prediction.dtype, copy=False)


def _difference(prediction: Array, target: Array) -> Array:
    """Return prediction - target, in float32 for half types, after a check of both."""
    _check_prediction("prediction", prediction)
    target = checked_array("target", target, prediction, "the predictions", prediction.shape)
    sums = sum_dtype(prediction.dtype)
    return prediction.astype(sums, copy=False) - target.astype(sums, copy=False)


def _check_prediction(argument: str, array: Array) -> None:
    if not is_array(array):
        raise TypeError(
            f"{argument} must be an array of numpy or cupy, received {type(array).__name__}"
        )
    if array.dtype.kind != "f" and array.dtype.name != "bfloat16":
        raise ValueError(f"{argument} must have a floating dtype, received {array.dtype}")
    if array.size == 0:
        raise ValueError(f"{argument} has shape {array.shape}: there is no mean of no elements")
