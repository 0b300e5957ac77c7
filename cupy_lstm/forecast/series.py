"""One table, read and checked: times, and a number for every column and row.

Whatever is wrong with it becomes a `DataError` whose message says where and what to do.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy

from cupy_lstm.backend import HostArray
from cupy_lstm.forecast.errors import DataError
from cupy_lstm.forecast.spacing import Spacing, infer_spacing, show_time
from cupy_lstm.ranges import stage

if TYPE_CHECKING:
    import pandas

BUILT_IN = {
    "co2": ("month", "co2_ppm", "monthly CO2 at Mauna Loa, 1958-2001"),
    "sunspots": ("year", "sunspots", "yearly sunspot numbers, 1700-2008"),
}
"""The series that statsmodels carries: time column, target column, description."""

LAST_DATE = numpy.datetime64("9000-01-01", "us")
"""Dates end here: neither NumPy's calendar nor a picture goes much further than the year 9999."""

READERS = {".csv": "CSV", ".parquet": "Parquet"}


@dataclass(frozen=True)
class Series:
    """Regular time series of one table, and features of their steps.

    Attributes
    ----------
    source : str
        What it was read from, for messages.
    time : str
        Name of the time column.
    targets, features : tuple of str
        Names of the columns to forecast, and of those to look at.
    times : array [n], datetime64[us], int64 or float64
        Strictly increasing.
    values : array [n, S + F], float64
        Those of the targets, then those of the features. Finite.
    spacing : Spacing
        How the times continue.
    """

    source: str
    time: str
    targets: tuple[str, ...]
    features: tuple[str, ...]
    times: HostArray
    values: HostArray
    spacing: Spacing

    @property
    def y(self) -> "pandas.DataFrame":
        """The columns to forecast, by time."""
        import pandas

        index = pandas.Index(self.times, name=self.time)
        return pandas.DataFrame(self.values[:, : len(self.targets)], index, list(self.targets))

    @property
    def X(self) -> "pandas.DataFrame | None":  # noqa: N802 - scikit-learn's name
        """The columns to look at, by time; None where there are none."""
        import pandas

        if not self.features:
            return None
        index = pandas.Index(self.times, name=self.time)
        return pandas.DataFrame(self.values[:, len(self.targets) :], index, list(self.features))

    def future(self, count: int) -> HostArray:
        """Return the `count` times after the last row."""
        return self.spacing.after(self.times[-1], count)


def built_in_series(name: str) -> Series:
    """Return a real series that statsmodels carries.

    Parameters
    ----------
    name : {"co2", "sunspots"}
        ``"co2"`` is the weekly record averaged by calendar month; five months without a
        measurement, all before 1965, are filled in linearly.
    """
    time, target, description = BUILT_IN[name]
    with stage("data loading"):
        if name == "co2":
            from statsmodels.datasets import co2

            monthly = co2.load_pandas().data["co2"].resample("MS").mean().interpolate()
            table = monthly.rename(target).rename_axis(time).reset_index()
        else:
            from statsmodels.datasets import sunspots

            table = sunspots.load_pandas().data.set_axis([time, target], axis="columns")
        return series_of(table, description, time, [target], [])


def read_series(path: Path, time: str, targets: Sequence[str], features: Sequence[str]) -> Series:
    """Read a CSV or Parquet file.

    Parameters
    ----------
    path : Path
        A file whose name ends in ``.csv`` or ``.parquet``.
    time : str
        Name of the time column: dates, best written as 2024-01-31, or numbers.
    targets, features : sequence of str
        Names of the columns to forecast, and of those to look at.

    Raises
    ------
    DataError
        If the file cannot be read, or as `series_of`.
    """
    with stage("data loading"):
        return series_of(_read_table(path), str(path), time, targets, features)


def series_of(
    table: "pandas.DataFrame",
    source: str,
    time: str,
    targets: Sequence[str],
    features: Sequence[str],
) -> Series:
    """Take times and values out of a table, checking both.

    Raises
    ------
    DataError
        If a column is missing or named twice; if there are fewer than two rows; if times are
        missing, not dates or numbers, repeated, unsorted or irregular; if a value is missing,
        infinite or no number.
    """
    columns = [*targets, *features]
    _check_names(table, source, time, targets, columns)
    if len(table) < 2:
        raise DataError(f"{source} has {len(table)} rows, too few to forecast from")
    times = _times(table[time])
    values = numpy.stack([_values(table[column], times) for column in columns], axis=1)
    spacing = infer_spacing(times, f"column {time!r}")
    return Series(source, time, tuple(targets), tuple(features), times, values, spacing)


def _read_table(path: Path) -> "pandas.DataFrame":
    kind = READERS.get(path.suffix.lower())
    if kind is None:
        raise DataError(f"{path} must be a file that ends in {' or '.join(READERS)}")
    import pandas

    try:
        with warnings.catch_warnings():
            # Rows longer than the header only warn, and then lose their last fields.
            warnings.simplefilter("error", pandas.errors.ParserWarning)
            if kind == "CSV":
                _check_header(pandas.read_csv(path, header=None, nrows=1, dtype=str), path)
                return pandas.read_csv(path, index_col=False, low_memory=False)
            return pandas.read_parquet(path).reset_index()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from None
    except pandas.errors.EmptyDataError:
        raise DataError(f"{path} is empty") from None
    except (ValueError, pandas.errors.ParserWarning) as error:
        reason = str(error).strip().splitlines()[-1]
        hint = ""
        if kind == "CSV":
            hint = " (wanted: UTF-8, commas between columns, points in numbers)"
        raise DataError(f"{path} cannot be read as {kind}{hint}: {reason}") from None


def _check_header(header: "pandas.DataFrame", path: Path) -> None:
    """Raise if two columns of a CSV have one name: pandas would give one of them another."""
    names = header.iloc[0].dropna().tolist()
    for name in names:
        if names.count(name) > 1:
            raise DataError(f"{path} has {names.count(name)} columns called {name!r}")


def _check_names(
    table: "pandas.DataFrame",
    source: str,
    time: str,
    targets: Sequence[str],
    columns: Sequence[str],
) -> None:
    wanted = [time, *columns]
    for name in wanted:
        if name not in table.columns:
            found = ", ".join(repr(str(column)) for column in table.columns)
            raise DataError(f"{source} has no column {name!r}; its columns are {found}")
    if time in targets:
        raise DataError(f"the target and the time are the same column, {time!r}")
    for name in wanted:
        if wanted.count(name) > 1:
            raise DataError(f"column {name!r} is named twice among time, target and features")


def _times(column: "pandas.Series[Any]") -> HostArray:
    """Return a time column as datetime64[us], int64 or float64, strictly increasing."""
    import pandas

    name = str(column.name)
    missing = column.isna().to_numpy()
    if missing.any():
        raise DataError(f"column {name!r} has no time in row {int(missing.argmax()) + 1}")
    if pandas.api.types.is_bool_dtype(column.dtype):
        raise DataError(f"column {name!r} holds true and false, not dates or numbers")
    if pandas.api.types.is_integer_dtype(column.dtype):
        # As they are: beyond 2^53 a float64 would make neighbours equal.
        times = column.to_numpy(dtype="int64")
    elif pandas.api.types.is_numeric_dtype(column.dtype):
        times = column.to_numpy(dtype="float64")
        if not numpy.isfinite(times).all():
            raise DataError(f"column {name!r} holds an infinite time")
        if (times == numpy.round(times)).all() and numpy.abs(times).max() < 2**53:
            times = times.astype("int64")
    else:
        dates = _dates(column)
        # The clock on the wall is what repeats, so a fixed zone is dropped, not converted.
        times = dates.dt.tz_localize(None).to_numpy().astype("datetime64[us]")
        if (dates.dt.nanosecond != 0).any():
            raise DataError(f"column {name!r} counts nanoseconds; times may go to microseconds")
        if times.max() >= LAST_DATE:
            raise DataError(
                f"column {name!r} goes to {show_time(times.max())}; times must lie before "
                f"{show_time(LAST_DATE)}, so that there is a future to forecast"
            )
    steps = numpy.diff(times)
    zero = steps.dtype.type(0)
    if (steps == zero).any():
        row = int((steps == zero).argmax())
        raise DataError(
            f"column {name!r} holds {show_time(times[row])} twice, in rows {row + 1} and {row + 2}"
        )
    if (steps < zero).any():
        row = int((steps < zero).argmax())
        raise DataError(
            f"column {name!r} is not sorted: row {row + 2} ({show_time(times[row + 1])}) comes "
            f"after row {row + 1} ({show_time(times[row])}); sort the table by time"
        )
    return times


def _dates(column: "pandas.Series[Any]") -> "pandas.Series[pandas.Timestamp]":
    import pandas

    for format in ("ISO8601", None):
        try:
            with warnings.catch_warnings():
                # A format that pandas cannot infer only warns, and every cell is then guessed.
                warnings.simplefilter("error")
                return pandas.to_datetime(column, format=format)
        except (ValueError, TypeError, Warning):
            continue
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        parsed = pandas.to_datetime(column, format="ISO8601", errors="coerce", utc=True)
    row = int(parsed.isna().to_numpy().argmax())
    what = (
        f"row {row + 1} is {column.iloc[row]!r}"
        if parsed.isna().any()
        else "the rows differ in their form or time zone"
    )
    raise DataError(
        f"column {column.name!r} cannot be read as dates: {what}; "
        "write all dates as 2024-01-31 or all as 2024-01-31 18:00"
    )


def _values(column: "pandas.Series[Any]", times: HostArray) -> HostArray:
    """Return a value column as finite float64."""
    import pandas

    name = str(column.name)
    missing = column.isna().to_numpy()
    if missing.any():
        row = int(missing.argmax())
        raise DataError(
            f"column {name!r} has {int(missing.sum())} missing values, the first in row "
            f"{row + 1} ({show_time(times[row])}); fill them in or leave those rows out"
        )
    if pandas.api.types.is_datetime64_any_dtype(column.dtype):
        raise DataError(f"column {name!r} holds dates, not numbers")
    if pandas.api.types.is_bool_dtype(column.dtype):
        raise DataError(f"column {name!r} holds true and false, not numbers")
    numbers = pandas.to_numeric(column, errors="coerce").to_numpy(
        dtype="float64", na_value=numpy.nan
    )
    for wrong, what in ((numpy.isnan(numbers), "not a number"), (numpy.isinf(numbers), "infinite")):
        if wrong.any():
            row = int(wrong.argmax())
            raise DataError(
                f"column {name!r} is {what} in row {row + 1} ({show_time(times[row])}): "
                f"{str(column.iloc[row])!r}"
            )
    return numbers
