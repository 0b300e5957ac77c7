"""Series and their features, in whatever form a user has them, as one array of rows."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy

from cupy_lstm.backend import Array, HostArray, array_module, is_array, require_same_place, to_host
from cupy_lstm.forecast.axis import Rhythm, continued, label, rhythm_of
from cupy_lstm.forecast.errors import DataError
from cupy_lstm.interchange import adopted

if TYPE_CHECKING:
    import pandas

Index: TypeAlias = "pandas.Index[Any] | None"


@dataclass(frozen=True)
class Panel:
    """Some series, each with its features; rows of one array, one series after the other.

    Attributes
    ----------
    values : array [N, C], float64
        A row a step of a series: its value, then those of its features. Finite.
    lengths : tuple of int
        Rows of each series.
    names : tuple of tuple of str
        For each series words for its C columns, for messages.
    labels : tuple of tuple of (str or None)
        For each series what pandas calls its C columns, as far as these are words; a series that
        comes alone has no label.
    indexes : tuple of (pandas.Index or None)
        For each series what pandas calls its rows.
    """

    values: Array
    lengths: tuple[int, ...]
    names: tuple[tuple[str, ...], ...]
    labels: "tuple[tuple[str | None, ...], ...]"
    indexes: tuple[Index, ...]

    @cached_property
    def starts(self) -> HostArray:
        """The first row of every series, and the number of all rows."""
        return numpy.cumsum([0, *self.lengths])

    @cached_property
    def series(self) -> Array:
        """The number of the series that each row belongs to, [N]."""
        xp = array_module(self.values)
        return xp.asarray(numpy.repeat(numpy.arange(len(self.lengths)), self.lengths))

    def rows(self) -> list[Array]:
        """Return a view [n, C] of the rows of each series."""
        edges = zip(self.starts[:-1].tolist(), self.starts[1:].tolist(), strict=True)
        return [self.values[start:stop] for start, stop in edges]

    def tail(self, count: int) -> "Panel":
        """Return the last `count` rows of each series, which has as many."""
        rows = [rows[-count:] for rows in self.rows()]
        indexes = tuple(None if index is None else index[-count:] for index in self.indexes)
        values = array_module(self.values).concatenate(rows)
        return replace(self, values=values, lengths=(count,) * len(rows), indexes=indexes)

    def to(self, xp: ModuleType) -> "Panel":
        """Return the panel where arrays of `xp` are."""
        values = to_host(self.values) if xp is numpy else xp.asarray(self.values)
        return replace(self, values=values)

    def place(self, series: int, column: int, row: int) -> str:
        """Return words for a place, for messages: ``column 'load' is 3 in row 7 (2001-07-01)``."""
        value = float(self.rows()[series][row, column])
        name = self.names[series][column]
        return f"{name} is {value:g} in {label(self.indexes[series], row)}"

    def first(self, wrong: Array) -> str:
        """Return words for the first true value of `wrong`, [N, C]."""
        number, column = (int(found[0]) for found in numpy.nonzero(to_host(wrong)))
        series = int(numpy.searchsorted(self.starts, number, side="right")) - 1
        return self.place(series, column, number - int(self.starts[series]))


@dataclass(frozen=True)
class Form:
    """In which form a user gave the series, and so gets their forecasts.

    Attributes
    ----------
    kind : {"one", "columns", "list"}
        One series, the columns of an array, or a list of series.
    futures : tuple of pandas.Index
        For pandas objects: of each the labels of the steps to forecast; empty for arrays.
    names : tuple
        For pandas objects: the names of the series.
    rhythms : tuple
        For pandas objects: of each how one label of its index follows another.
    """

    kind: Literal["one", "columns", "list"]
    futures: "tuple[pandas.Index[Any], ...]" = ()
    names: tuple[Any, ...] = ()
    rhythms: tuple[Rhythm, ...] = ()

    def shaped(self, values: Array) -> Any:
        """Return forecasts [S, horizon] of all series in the form of the series.

        Returns
        -------
        array [horizon], array [horizon, S], or list of arrays [horizon]
            Or pandas objects, whose index goes on where that of the series ended.
        """
        if not self.futures:
            return {"one": values[0], "columns": values.T, "list": list(values)}[self.kind]
        import pandas

        host = to_host(values)
        if self.kind == "columns":
            return pandas.DataFrame(host.T, self.futures[0], list(self.names))
        series = [
            pandas.Series(row, future, name=name)
            for row, future, name in zip(host, self.futures, self.names, strict=True)
        ]
        return series[0] if self.kind == "one" else series


def form_of_arrays(kind: Any, series: int) -> Form:
    """Return the form of so many series that came as arrays.

    Raises
    ------
    ValueError
        If there is no such form, or it is not for so many.
    """
    if kind not in ("one", "columns", "list") or (kind == "one" and series > 1):
        raise ValueError(f"{series} series cannot have the form {kind!r}")
    return Form(kind)


def read_panel(
    y: Any, X: Any, horizon: int, rhythms: tuple[Rhythm, ...] = ()
) -> tuple[Panel, Form]:
    """Take series and features in.

    Parameters
    ----------
    y : array-like [n] or [n, S], or list of array-like [n_s]
        One series, several over the same steps, or several of any lengths; pandas objects too.
    X : array-like [n, F], or list of array-like [n_s, F], or None
        Features of the steps; a list where `y` is one.
    horizon : int
        Number of steps to forecast.
    rhythms : tuple
        Of `Form`, if such series were read before: a few newer rows may not show theirs.

    Raises
    ------
    TypeError
        If something is no array, or `y` and `X` live in different places.
    DataError
        If shapes do not fit each other, a value is missing, infinite or no number, or an index
        of pandas cannot be continued.
    """
    if _is_list_of_series(y):
        kind: Literal["one", "columns", "list"] = "list"
        columns = [_read(f"y[{number}]", series, axes=(1,)) for number, series in enumerate(y)]
        features = _read_each(X, columns)
    else:
        read = _read("y", y, axes=(1, 2))
        kind = "one" if read.values.ndim == 1 else "columns"
        columns = [read] if kind == "one" else read.columns()
        features = [None if X is None else _read("X", X, axes=(2,))] * len(columns)
    parts = [_joined(series, beside) for series, beside in zip(columns, features, strict=True)]
    if len({part.shape[1] for part in parts}) > 1:
        raise DataError("X must have the same number of columns for each series")
    panel = Panel(
        array_module(parts[0]).concatenate(parts) if len(parts) > 1 else parts[0],
        tuple(len(part) for part in parts),
        tuple(
            (series.names[0], *(beside.names if beside else ()))
            for series, beside in zip(columns, features, strict=True)
        ),
        tuple(
            (None if kind == "one" else series.words[0], *(beside.words if beside else ()))
            for series, beside in zip(columns, features, strict=True)
        ),
        tuple(series.index for series in columns),
    )
    finite = array_module(panel.values).isfinite(panel.values)
    if not finite.all():
        raise DataError(f"{panel.first(~finite)}: fill in what is missing or leave those rows out")
    owners = columns if kind == "list" else columns[:1]
    known = rhythms if len(rhythms) == len(owners) else (None,) * len(owners)
    found = [
        (owner.index, rhythm_of(owner.index, owner.names[0], rhythm))
        for owner, rhythm in zip(owners, known, strict=True)
        if owner.index is not None
    ]
    if len(found) < len(owners):
        return panel, Form(kind)
    return panel, Form(
        kind,
        futures=tuple(continued(index, horizon, rhythm) for index, rhythm in found),
        names=tuple(series.label for series in columns),
        rhythms=tuple(rhythm for _, rhythm in found),
    )


@dataclass(frozen=True)
class _Read:
    """An array that came in: its values, words for its columns, and what pandas calls them."""

    values: Array
    names: tuple[str, ...]
    labels: tuple[Any, ...]
    index: Index

    @property
    def label(self) -> Any:
        return self.labels[0]

    @property
    def words(self) -> "tuple[str | None, ...]":
        """The labels that are words."""
        return tuple(label if isinstance(label, str) else None for label in self.labels)

    def columns(self) -> "list[_Read]":
        """Return every column on its own."""
        return [
            _Read(self.values[:, number], (name,), (label,), self.index)
            for number, (name, label) in enumerate(zip(self.names, self.labels, strict=True))
        ]


def _is_list_of_series(y: Any) -> bool:
    return isinstance(y, list | tuple) and not all(numpy.ndim(part) == 0 for part in y)


def _read(argument: str, value: Any, axes: tuple[int, ...]) -> _Read:
    """Return `value` as an array of float64 of as many axes as `axes` allows."""
    pandas = sys.modules.get("pandas")
    index: Index = None
    labels: tuple[Any, ...] | None = None
    if pandas and isinstance(value, pandas.Series | pandas.DataFrame):
        frame = isinstance(value, pandas.DataFrame)
        index, labels = value.index, tuple(value.columns) if frame else (value.name,)
        try:
            array: Any = value.to_numpy(dtype="float64", na_value=numpy.nan)
        except (TypeError, ValueError) as error:
            raise DataError(f"{argument} must hold numbers: {error}") from None
    else:
        array = adopted(argument, value)
        array = numpy.asarray(array) if isinstance(array, list | tuple) else array
        if not is_array(array):
            raise TypeError(
                f"{argument} must be an array of numpy or cupy or of pandas, "
                f"received {type(value).__name__}"
            )
        if array.dtype.kind not in "biuf":
            raise DataError(f"{argument} must hold numbers, its dtype is {array.dtype}")
    if array.ndim not in axes:
        wanted = " or ".join(map(str, axes))
        raise DataError(f"{argument} must have {wanted} axes, its shape is {array.shape}")
    if 0 in array.shape:
        raise DataError(f"{argument} is empty, its shape is {array.shape}")
    array = array.astype("float64", copy=False)
    count = 1 if array.ndim == 1 else array.shape[1]
    if labels is not None and any(label is not None for label in labels):
        names = tuple(f"column {label!r}" for label in labels)
    else:
        labels = (None,) * count
        names = (
            (argument,) if array.ndim == 1 else tuple(f"{argument}[:, {n}]" for n in range(count))
        )
    return _Read(array, names, labels, index)


def _read_each(X: Any, columns: Sequence[_Read]) -> list[_Read | None]:
    """Return the features of each series of a list."""
    if X is None:
        return [None] * len(columns)
    if not isinstance(X, list | tuple) or len(X) != len(columns):
        raise DataError(f"X must be a list of {len(columns)} arrays as y is, one for each series")
    return [_read(f"X[{number}]", part, axes=(2,)) for number, part in enumerate(X)]


def _joined(series: _Read, features: _Read | None) -> Array:
    """Return a series and its features side by side, [n, C]."""
    column = series.values[:, None]
    if features is None:
        return column
    require_same_place(features.names[0], features.values, column, "the series")
    if len(features.values) != len(column):
        raise DataError(
            f"{features.names[0]} has {len(features.values)} rows, "
            f"but {series.names[0]} has {len(column)}"
        )
    ours, theirs = series.index, features.index
    if ours is not None and theirs is not None and not ours.equals(theirs):
        raise DataError(f"the index of X is not that of {series.names[0]}")
    return array_module(column).concatenate([column, features.values], axis=1)
