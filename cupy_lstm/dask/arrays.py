"""Graphs over the chunks of Dask arrays: one task that computes for each chunk."""

from collections.abc import Iterable, Mapping
from itertools import accumulate
from math import isnan
from operator import itemgetter
from typing import Any, TypeAlias

import dask.array
import numpy
from dask.array.utils import meta_from_array
from dask.base import tokenize
from dask.highlevelgraph import HighLevelGraph

from cupy_lstm.backend import Array, array_module, is_array, sum_dtype
from cupy_lstm.checks import checked_pair
from cupy_lstm.dask.models import Snapshot
from cupy_lstm.layer import Layer
from cupy_lstm.lengths import checked_lengths
from cupy_lstm.lstm import LSTM

DaskArray: TypeAlias = Any
"""A ``dask.array.Array`` (Dask ships types for a part of itself only)."""


def predict_rows(snapshot: Snapshot, X: DaskArray) -> DaskArray:
    """Return what a model says of each row: rows lie along the first axis, in chunks of any size.

    Raises
    ------
    TypeError, ValueError
        If X does not fit the model.
    """
    if not X.ndim:
        raise ValueError("X has no axes, the first one must be that of rows")
    _require_whole(X, range(1, X.ndim))
    if isinstance(snapshot.model, Layer):
        require_fit(X._meta, snapshot.model)
    none = snapshot.predict(array_module(X._meta).zeros((0, *X.shape[1:]), X.dtype))
    model = snapshot.task()
    name = f"predict-{tokenize(X.name, model.key)}"
    tasks = {
        (name, number, *(0,) * (none.ndim - 1)): (
            Snapshot.predict,
            model.key,
            (X.name, number, *(0,) * (X.ndim - 1)),
        )
        for number in range(X.numblocks[0])
    }
    graph = HighLevelGraph.from_collections(name, tasks, dependencies=[X, model])
    return _array(graph, name, (X.chunks[0], *none.shape[1:]), none, none.dtype)


def predict_sequences(
    snapshot: Snapshot, X: DaskArray, initial_states: object, sequence_length: object
) -> tuple[DaskArray, tuple[DaskArray, DaskArray]]:
    """Return the outputs and the final states of an LSTM.

    Rows and steps may be in chunks of any size. The chunks of the same rows are swept in the order
    of time, each from the states with which the one before it ended.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit the LSTM.
    """
    lstm: LSTM = snapshot.model
    time, batch = (0, 1) if lstm.time_major else (1, 0)
    if X.ndim != 3 or X.shape[2] != lstm.input_size:
        axes = "any, any" if X.ndim == 3 else "steps, batch" if lstm.time_major else "batch, steps"
        raise ValueError(
            f"X has shape {list(X.shape)}, but must have shape [{axes}, {lstm.input_size}]"
        )
    require_fit(X._meta, lstm)
    _require_whole(X, [2])
    if lstm.num_directions == 2 and X.numblocks[time] > 1:
        raise ValueError(
            f"X has {X.numblocks[time]} chunks along time, but the LSTM is bidirectional and "
            "begins at both ends: put all steps of a row into one chunk"
        )
    rows, steps = X.chunks[batch], X.chunks[time]
    starts = [0, *accumulate(steps)]
    states = _states(initial_states, lstm, X, rows)
    lengths = _lengths(sequence_length, starts[-1], rows)

    model = snapshot.task()
    given = [*states, *lengths]
    token = tokenize(X.name, model.key, [array.name for array in given], len(states))
    sweep, y, h, c = (f"lstm-{part}-{token}" for part in ("sweep", "y", "h", "c"))
    sweeps: dict[Any, Any] = {}
    outputs: dict[Any, Any] = {}
    final: dict[str, dict[Any, Any]] = {h: {}, c: {}}
    for row in range(len(rows)):
        state: Any = [(array.name, 0, row, 0) for array in states] or None
        length = [(array.name, row) for array in lengths]
        for step in range(len(steps)):
            place = (step, row, 0) if lstm.time_major else (row, step, 0)
            window = [*length, starts[step], step == len(steps) - 1] if length else []
            done = (sweep, *place)
            sweeps[done] = (Snapshot.sweep, model.key, (X.name, *place), state, *window)
            outputs[(y, *place)] = (itemgetter(0), done)
            # The next chunk needs the states alone: outputs do not travel to where it is swept.
            state = (f"{sweep}-states", *place)
            sweeps[state] = (itemgetter(1), done)
        for index, name in enumerate(final):
            final[name][(name, 0, row, 0)] = (itemgetter(index), state)
    graph = HighLevelGraph.from_collections(sweep, sweeps, dependencies=[X, model, *given])

    (layers, P, dtype), (_, H, cell_dtype) = _state_kinds(lstm)
    sizes: list[Any] = [rows, rows, lstm.num_directions * P]
    sizes[time] = steps
    return _above(graph, sweep, y, outputs, sizes, X._meta, dtype), (
        _above(graph, sweep, h, final[h], (layers, rows, P), X._meta, dtype),
        _above(graph, sweep, c, final[c], (layers, rows, H), X._meta, cell_dtype),
    )


def require_fit(meta: Array, layer: Layer) -> None:
    """Raise unless chunks like `meta` are of the module and the dtype of a layer.

    Raises
    ------
    TypeError
        If they are of the other module.
    ValueError
        If they have another dtype.
    """
    found, wanted = array_module(meta).__name__, layer.xp.__name__
    if found != wanted:
        move = "cupy.asarray" if wanted == "cupy" else "cupy.asnumpy"
        raise TypeError(
            f"X has chunks of {found}, but the weights are on {wanted}: move one of them, for "
            f"example with model.to({found!r}) or X.map_blocks({move})"
        )
    if meta.dtype != layer.dtype:
        raise ValueError(
            f"X has dtype {meta.dtype}, but the weights have {layer.dtype}: "
            f"convert it with .astype({str(layer.dtype)!r})"
        )


def _require_whole(X: DaskArray, axes: Iterable[int]) -> None:
    for axis in axes:
        if X.numblocks[axis] > 1:
            raise ValueError(
                f"X has {X.numblocks[axis]} chunks along axis {axis}, which the model needs "
                f"whole: X.rechunk({{{axis}: -1}})"
            )


def _state_kinds(lstm: LSTM) -> list[tuple[int, int, "numpy.dtype[Any]"]]:
    """Return L*D, features and dtype of h and of c."""
    layers, H = lstm.num_layers * lstm.num_directions, lstm.hidden_size
    return [(layers, lstm.proj_size or H, lstm.dtype), (layers, H, sum_dtype(lstm.dtype))]


def _states(
    initial_states: object, lstm: LSTM, X: DaskArray, rows: tuple[int, ...]
) -> list[DaskArray]:
    """Return (h, c) in chunks that fit those of X; an empty list for None."""
    if initial_states is None:
        return []
    _require_known("initial_states", *rows)
    pair = checked_pair("initial_states", initial_states)
    states = []
    for index, (layers, size, dtype) in enumerate(_state_kinds(lstm)):
        argument = f"initial_states[{index}] ({'hc'[index]})"
        array = _as_dask(argument, pair[index])
        if type(array._meta) is not type(X._meta):
            raise TypeError(f"{argument} is not on {lstm.xp.__name__}, where X and the weights are")
        if array.dtype != dtype:
            raise ValueError(
                f"{argument} has dtype {array.dtype}, but must have {dtype}: "
                f"convert it with .astype({str(dtype)!r})"
            )
        if array.shape != (layers, sum(rows), size):
            raise ValueError(
                f"{argument} has shape {list(array.shape)}, "
                f"but must have shape [{layers}, {sum(rows)}, {size}]"
            )
        states.append(array.rechunk((layers, rows, size)))
    return states


def _lengths(sequence_length: object, steps: int, rows: tuple[int, ...]) -> list[DaskArray]:
    """Return lengths in chunks that fit those of X, in a list; an empty one for None."""
    if sequence_length is None:
        return []
    _require_known("sequence_length", steps, *rows)
    if not isinstance(sequence_length, dask.array.Array):
        host = numpy.empty(0)  # lengths may be on the host whatever X is
        lengths = checked_lengths(sequence_length, sum(rows), steps, host, check=False)
        sequence_length = dask.array.from_array(lengths, chunks=-1)
    array: DaskArray = sequence_length
    if array.dtype.kind not in "iu" or array.shape != (sum(rows),):
        raise ValueError(
            f"sequence_length must hold integers [{sum(rows)}], received "
            f"{array.dtype} {list(array.shape)}"
        )
    return [array.rechunk((rows,))]


def _require_known(argument: str, *sizes: float) -> None:
    """Raise if chunks have unknown sizes, NaN to Dask, to which an argument should be cut."""
    if isnan(sum(sizes)):
        raise ValueError(
            f"X has chunks of unknown sizes, to which {argument} cannot be cut: call "
            "X.compute_chunk_sizes() first"
        )


def _as_dask(argument: str, value: object) -> DaskArray:
    if isinstance(value, dask.array.Array):
        return value
    if not is_array(value):
        raise TypeError(
            f"{argument} must be an array or a dask array, received {type(value).__name__}"
        )
    return dask.array.from_array(value, chunks=-1, asarray=False)


def _above(
    graph: HighLevelGraph,
    below: str,
    name: str,
    tasks: Mapping[Any, Any],
    sizes: Iterable[Any],
    meta: Array,
    dtype: Any,
) -> DaskArray:
    """Return the array of tasks that depend on the layer `below` of a graph alone."""
    layers, dependencies = {**graph.layers, name: tasks}, {**graph.dependencies, name: {below}}
    return _array(HighLevelGraph(layers, dependencies), name, sizes, meta, dtype)


def _array(
    graph: HighLevelGraph, name: str, sizes: Iterable[Any], meta: Array, dtype: Any
) -> DaskArray:
    """Return the array that the layer `name` computes; a size is that of one chunk, or several."""
    chunks = tuple(size if isinstance(size, tuple) else (size,) for size in sizes)
    return dask.array.Array(graph, name, chunks, meta=meta_from_array(meta, len(chunks), dtype))
