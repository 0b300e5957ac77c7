"""The index of a pandas object: checked, and continued into the future."""

import warnings
from typing import TYPE_CHECKING, Any

import numpy

from cupy_lstm.forecast.errors import DataError
from cupy_lstm.forecast.spacing import infer_spacing, show_time

if TYPE_CHECKING:
    import pandas


def continued(index: "pandas.Index[Any]", count: int, owner: str) -> "pandas.Index[Any]":
    """Return the `count` labels that follow an index, in its own kind and name.

    A frequency that the index carries is taken at its word; else the spacing is found from the
    labels: months, business days, or a constant step of dates or numbers.

    Parameters
    ----------
    index : pandas.Index
        Dates, periods or numbers.
    count : int
        How many.
    owner : str
        Whose index it is, for the message.

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
        return pandas.period_range(index[-1], periods=count + 1, name=index.name)[1:]
    zone = None
    if isinstance(index, pandas.DatetimeIndex):
        if frequency := index.freq or _frequency_in_zone(index):
            start = index[-1]
            return pandas.date_range(start, periods=count + 1, freq=frequency, name=index.name)[1:]
        zone, index = index.tz, index.tz_convert(None) if index.tz else index
    times = index.to_numpy()
    if times.dtype.kind not in "Miuf" or len(times) < 2:
        raise DataError(
            f"the index of {owner} cannot be continued: it must be two or more dates, periods or "
            "numbers; .to_numpy() leaves the index out"
        )
    future = infer_spacing(times, f"the index of {owner}").after(times[-1], count)
    found: pandas.Index[Any] = pandas.Index(future, name=index.name)
    if isinstance(found, pandas.DatetimeIndex) and zone is not None:
        return found.tz_localize("UTC").tz_convert(zone)
    return found


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
