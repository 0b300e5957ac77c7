"""Graphs over the partitions of Dask dataframes, whose columns are features."""

from typing import Any, TypeAlias

import dask.dataframe

from cupy_lstm.backend import Array
from cupy_lstm.dask.arrays import DaskArray, predict_sequences, require_fit
from cupy_lstm.dask.models import Snapshot
from cupy_lstm.layer import Layer

Frame: TypeAlias = Any
"""A dataframe of pandas or cuDF, or Dask's of those."""


def predict_frame(snapshot: Snapshot, X: Frame) -> Frame:
    """Return what a model says of each row, in the partitions and with the index of X.

    Raises
    ------
    TypeError, ValueError
        If X does not fit the model.
    """
    if isinstance(snapshot.model, Layer):
        require_fit(X._meta.values, snapshot.model)
    outputs = snapshot.predict(_inputs(snapshot, X._meta))
    if outputs.ndim > 2:
        raise ValueError(
            f"the model returns {outputs.ndim} axes, which make no dataframe: "
            "give it X.to_dask_array(lengths=True)"
        )
    meta = _framed(outputs, X._meta)
    return X.map_partitions(predict_partition, snapshot.task(), meta=meta)


def predict_partition(partition: Frame, snapshot: Snapshot) -> Frame:
    """Return what a model says of the rows of a partition, with its index."""
    return _framed(snapshot.predict(_inputs(snapshot, partition)), partition)


def predict_series(
    snapshot: Snapshot, X: Frame, initial_states: object
) -> tuple[Frame, tuple[DaskArray, DaskArray]]:
    """Return outputs and final states of an LSTM that reads X as one long series.

    Raises
    ------
    TypeError, ValueError
        If X does not fit the LSTM.
    """
    features = len(X.columns)
    if features != snapshot.model.input_size:
        raise ValueError(f"X has {features} columns, the LSTM reads {snapshot.model.input_size}")
    steps = X.to_dask_array()
    batch = 1 if snapshot.model.time_major else 0
    sequence = steps[:, None] if batch else steps[None]
    outputs, states = predict_sequences(snapshot, sequence, initial_states, None)
    y = outputs[:, 0] if batch else outputs[0]
    frame = dask.dataframe.from_dask_array(y, columns=_names(y.shape[1]), index=X.index)
    return frame, states


def _inputs(snapshot: Snapshot, partition: Frame) -> Frame | Array:
    """Return what a model is given: an array for a layer, the columns by name for an estimator."""
    return partition.values if isinstance(snapshot.model, Layer) else partition


def _framed(outputs: Array, partition: Frame) -> Frame:
    """Return outputs as a series y, or as columns y0, y1, ..., of the library of a partition."""
    if outputs.ndim == 1:
        return partition.iloc[:, 0]._constructor(outputs, index=partition.index, name="y")
    return type(partition)(outputs, index=partition.index, columns=_names(outputs.shape[1]))


def _names(columns: int) -> list[str]:
    return [f"y{column}" for column in range(columns)]
