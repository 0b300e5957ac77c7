"""The index of a pandas object: checked, and continued into the future."""

import warnings
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy

from cupy_lstm.backend import HostArray
from cupy_lstm.forecast.errors import DataError
from cupy_lstm.forecast.spacing import Spacing, infer_spacing, show_time

if TYPE_CHECKING:
    import pandas

Rhythm: TypeAlias = Any
"""How one label of an index follows another: a frequency of pandas, or a `Spacing`."""


def rhythm_of(index: "pandas.Index[Any]", owner: str, known: Rhythm | None = None) -> Rhythm:
    """Return how one label of an index follows another.

    A frequency that the index carries is taken at its word, then one that is known and fits; else
    the spacing is found from the labels: months, business days, or a constant step of dates or
    numbers.

    Parameters
    ----------
    index : pandas.Index
        Dates, periods or numbers.
    owner : str
        Whose index it is, for the message.
    known : optional
        What this function has said of older rows.

    Raises
    ------
    DataError
        If it does not increase, is not regular, or is of another kind.
    """
    import pandas

    if not (index.is_monotonic_increasing and index.is_unique):
        raise DataError(
            f"the index of {owner} does not increase from row to row: sort the rows by time, and "
            "leave out those that are there twice"
        )
    if isinstance(index, pandas.PeriodIndex):
        assert index.freq is not None
        if (numpy.diff(index.asi8) != index.freq.n).any():
            raise DataError(f"the index of {owner} leaves out periods: fill the missing rows in")
        return index.freq
    if isinstance(index, pandas.DatetimeIndex) and index.freq is not None:
        return index.freq
    if known is not None and _fits(known, index):
        return known
    if isinstance(index, pandas.DatetimeIndex) and (frequency := _frequency_in_zone(index)):
        return frequency
    times = _times(index)
    if times.dtype.kind not in "Miuf" or len(times) < 2:
        raise DataError(
            f"the index of {owner} cannot be continued: it must be two or more dates, periods or "
            "numbers; .to_numpy() leaves the index out"
        )
    return infer_spacing(times, f"the index of {owner}")


def continued(index: "pandas.Index[Any]", count: int, rhythm: Rhythm) -> "pandas.Index[Any]":
    """Return the `count` labels that follow an index in its rhythm, in its own kind and name."""
    import pandas

    if isinstance(index, pandas.PeriodIndex):
        return pandas.period_range(index[-1], periods=count + 1, name=index.name)[1:]
    if not isinstance(rhythm, Spacing):
        return pandas.date_range(index[-1], periods=count + 1, freq=rhythm, name=index.name)[1:]
    future = rhythm.after(_times(index)[-1], count)
    found: pandas.Index[Any] = pandas.Index(future, name=index.name)
    if isinstance(index, pandas.DatetimeIndex) and index.tz is not None:
        assert isinstance(found, pandas.DatetimeIndex)
        return found.tz_localize("UTC").tz_convert(index.tz)
    return found


def _fits(rhythm: Rhythm, index: "pandas.Index[Any]") -> bool:
    """Return whether the labels of an index follow one another so."""
    import pandas

    if isinstance(rhythm, Spacing):
        return rhythm.fits(_times(index))
    if not isinstance(index, pandas.DatetimeIndex):
        return False
    return pandas.date_range(index[0], periods=len(index), freq=rhythm).equals(index)


def _times(index: "pandas.Index[Any]") -> HostArray:
    """Return the labels as NumPy has them, dates in UTC."""
    import pandas

    if isinstance(index, pandas.DatetimeIndex) and index.tz is not None:
        index = index.tz_convert(None)
    return index.to_numpy()


def _frequency_in_zone(index: "pandas.DatetimeIndex") -> Any:
    """Return the frequency of dates in a time zone, None where there is none.

    Only pandas knows the days on which its clocks change.
    """
    import pandas

    if index.tz is None or len(index) < 3:
        return None
    with warnings.catch_warnings():
        # Whether it will be a text or an object: date_range takes either.
        warnings.simplefilter("ignore")
        return pandas.infer_freq(index)


def label(index: "pandas.Index[Any] | None", row: int) -> str:
    """Return words for a row: its number, counted from 1, and what the index calls it."""
    if index is None:
        return f"row {row + 1}"
    name = index.to_numpy()[row]
    return f"row {row + 1} ({show_time(name) if isinstance(name, numpy.generic) else name})"
