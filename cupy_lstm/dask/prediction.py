"""The face: what `predict` takes, and which graph serves it."""

from typing import Any

import dask.array
from dask.base import is_dask_collection
from dask.utils import is_dataframe_like

from cupy_lstm.dask.arrays import predict_rows, predict_sequences
from cupy_lstm.dask.models import Snapshot
from cupy_lstm.lstm import LSTM


def predict(
    model: Any,
    X: Any,
    *,
    initial_states: Any = None,
    sequence_length: Any = None,
    return_states: bool = False,
    method: str = "predict",
) -> Any:
    """Apply a model to a dask array or dataframe, lazily, chunk by chunk.

    Nothing is computed here but, for a `Layer` or an estimator, one call with a made-up row or two
    to learn what the model returns. The result belongs to the model as it is now: a copy of it
    travels, in eval mode. That is one task of the graph, so each worker is sent the model once;
    Dask pickles tasks, and the workers need this package, too. The threads of a worker share the
    copy, so a model of your own must not write to itself when it is called under `no_grad`.

    Parameters
    ----------
    model : LSTM, Layer or estimator
        An LSTM; a `Layer` that returns one array with a row for each row of its input; or anything
        fitted that has the method `method`, given the same.
    X : dask array or dataframe
        NumPy or CuPy chunks, where the weights are and in their dtype.

        - array [B,T,I], or [T,B,I] if ``model.time_major``, for an LSTM: chunks of any size along
          rows and steps. Chunks of the same rows are swept one after the other in the order of
          time, each from the states with which the one before it ended.
        - array [N, ...] for other models: chunks of any size along the first axis, one along
          others.
        - dataframe: columns are features. An LSTM reads the rows as the steps of one long series,
          in order; for other models each row is a sample. A layer is given the values of a
          partition, an estimator the partition itself.
    initial_states : tuple (h, c), optional
        For an LSTM: h [L*D,B,P] and c [L*D,B,H], arrays or dask arrays. Default zeros. B is 1 for
        a dataframe.
    sequence_length : array-like of int [B], or dask array, optional
        For an LSTM and an array: valid steps of each row.
    return_states : bool
        For an LSTM: whether to return the final states, too.
    method : str
        What to call of an estimator, such as ``"predict_proba"``.

    Returns
    -------
    y : dask array or dataframe
        In the chunks of X, or in its partitions and with its index: columns ``y0``, ``y1``, ..., or
        a series ``y`` where the model returns one number a row.
    states : tuple (h, c)
        Only with `return_states`: dask arrays [L*D,B,P] and [L*D,B,H].

    Raises
    ------
    TypeError
        If X is no dask collection, the model none of these, or they live in different places.
    ValueError
        If shapes, dtypes or chunks do not fit; a bidirectional LSTM begins at both ends of a
        sequence and needs all steps of a row in one chunk.

    Examples
    --------
    >>> import dask.array
    >>> from cupy_lstm import LSTM
    >>> from cupy_lstm.dask import predict
    >>> x = dask.array.zeros((6, 100, 3), chunks=(2, 25, 3), dtype="float32")
    >>> y, (h, c) = predict(LSTM(3, 8), x, return_states=True)
    >>> y.shape, y.chunksize, h.shape
    ((6, 100, 8), (2, 25, 8), (1, 6, 8))
    """
    is_frame = is_dask_collection(X) and is_dataframe_like(X)
    if not is_frame and not isinstance(X, dask.array.Array):
        raise TypeError(
            f"X must be a dask array or dataframe, received {type(X).__name__}: for arrays in "
            "memory there is dask.array.from_array(X, chunks=...)"
        )
    snapshot = Snapshot.of(model, method)
    if not isinstance(model, LSTM):
        _refuse(model, initial_states, sequence_length, return_states)
        return _frames().predict_frame(snapshot, X) if is_frame else predict_rows(snapshot, X)
    if not is_frame:
        y, states = predict_sequences(snapshot, X, initial_states, sequence_length)
    elif sequence_length is None:
        y, states = _frames().predict_series(snapshot, X, initial_states)
    else:
        raise ValueError("sequence_length is for arrays: a dataframe is one series")
    return (y, states) if return_states else y


def _refuse(
    model: object, initial_states: object, sequence_length: object, return_states: bool
) -> None:
    """Raise if something is asked for that only an LSTM has."""
    if initial_states is not None or sequence_length is not None or return_states:
        raise TypeError(
            "initial_states, sequence_length and return_states are for an LSTM, "
            f"the model is {type(model).__name__}"
        )


def _frames() -> Any:
    from cupy_lstm.dask import frames  # there is no dataframe without Dask's module for them

    return frames
