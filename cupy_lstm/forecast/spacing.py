"""The regular spacing of a time column, found from its values and continued into the future."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy

from cupy_lstm.backend import HostArray
from cupy_lstm.forecast.errors import DataError

TOLERANCE = 0.1
"""How far one step may be from the average step, relatively, and still count as regular.

Wide enough for months written as decimal years and for a clock that trembles, far too narrow
for a missing row, which doubles a step.
"""


@dataclass(frozen=True)
class Spacing:
    """How one time follows another.

    Attributes
    ----------
    kind : {"months", "business days", "fixed"}
        Calendar months (a year is twelve), Monday to Friday, or a constant step.
    step : int or float or numpy.timedelta64
        Number of months, 1, or the constant step.
    day : int
        For months: the day of the month, 31 meaning the last.
    """

    kind: Literal["months", "business days", "fixed"]
    step: "int | float | numpy.timedelta64"
    day: int = 0

    @property
    def length(self) -> float:
        """Average time from one row to the next: seconds for dates, else in the column's unit."""
        if self.kind == "months":
            return int(self.step) * 365.2425 * 86400 / 12
        if self.kind == "business days":
            return 86400 * 7 / 5
        if isinstance(self.step, numpy.timedelta64):
            return float(self.step / numpy.timedelta64(1, "s"))
        return float(self.step)

    def __str__(self) -> str:
        if self.kind == "months":
            months = int(self.step)
            return _plural(months // 12, "year") if months % 12 == 0 else _plural(months, "month")
        if self.kind == "business days":
            return "business day"
        if not isinstance(self.step, numpy.timedelta64):
            return f"step of {self.step:g}"
        seconds = self.length
        for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
            if seconds >= length and seconds % length == 0:
                return _plural(int(seconds // length), unit)
        return f"{seconds:g} seconds"

    def fits(self, times: HostArray) -> bool:
        """Return whether times, one or more, follow one another so."""
        dates = self.kind != "fixed" or isinstance(self.step, numpy.timedelta64)
        if times.dtype.kind not in ("M" if dates else "iuf"):
            return False
        if self.kind != "fixed":
            return numpy.array_equal(self.after(times[0], len(times) - 1), times[1:])
        off = numpy.diff(times) / self.step - 1
        return bool((numpy.abs(off) <= TOLERANCE).all())

    def after(self, last: Any, count: int) -> HostArray:
        """Return the `count` times that follow `last`, in the dtype of `last`."""
        steps = numpy.arange(1, count + 1)
        if self.kind == "fixed":
            times = last + steps * self.step
            return numpy.asarray(numpy.rint(times) if last.dtype.kind == "i" else times).astype(
                last.dtype
            )
        date = last.astype("datetime64[D]")
        clock = last - date
        if self.kind == "business days":
            return numpy.asarray(numpy.busday_offset(date, steps) + clock).astype(last.dtype)
        months = date.astype("datetime64[M]") + steps * int(self.step)
        first = months.astype("datetime64[D]")
        days = numpy.minimum(self.day, _month_lengths(months))
        return numpy.asarray(first + (days - 1) + clock).astype(last.dtype)


def infer_spacing(times: HostArray, place: str) -> Spacing:
    """Find the spacing of increasing times.

    Parameters
    ----------
    times : array [n], datetime64, integer or floating
        At least two, strictly increasing.
    place : str
        Where they are, for the message: ``"column 'date'"``.

    Raises
    ------
    DataError
        If the spacing is not regular: a step differs from the average one by more than
        `TOLERANCE`, and the times are neither monthly nor business days.
    """
    if times.dtype.kind == "M":
        calendar = _months(times) or _business_days(times)
        if calendar:
            return calendar
    steps = numpy.diff(times)
    if (steps == steps[0]).all():
        return Spacing("fixed", steps[0])
    # The median finds the odd step out; the average continues the series without a drift.
    typical = numpy.median(steps.astype("float64"))
    odd = numpy.abs(steps.astype("float64") - typical) > TOLERANCE * typical
    if odd.any():
        row = int(odd.argmax())
        raise DataError(
            f"the times in {place} are not regularly spaced: row {row + 2} "
            f"({show_time(times[row + 1])}) follows row {row + 1} ({show_time(times[row])}), "
            f"which is not the usual step; fill in the missing rows or resample the table"
        )
    return Spacing("fixed", (times[-1] - times[0]) / len(steps))


def show_time(time: Any) -> str:
    """Return a time as text, without a clock if it is midnight."""
    if numpy.asarray(time).dtype.kind != "M":
        return str(time)
    unit: Literal["D", "s"] = "D" if time == time.astype("datetime64[D]") else "s"
    return str(numpy.datetime_as_string(time, unit=unit))


def _months(times: HostArray) -> Spacing | None:
    months = times.astype("datetime64[M]")
    dates = times.astype("datetime64[D]")
    steps = numpy.diff(months.astype("int64"))
    days = (dates - months.astype("datetime64[D]")).astype("int64") + 1
    lengths = _month_lengths(months)
    day = 31 if (days == lengths).all() else int(days.max())
    same_clock = (times - dates == times[0] - dates[0]).all()
    regular = steps[0] > 0 and (steps == steps[0]).all() and same_clock
    if not (regular and (days == numpy.minimum(day, lengths)).all()):
        return None
    return Spacing("months", int(steps[0]), day)


def _business_days(times: HostArray) -> Spacing | None:
    dates = times.astype("datetime64[D]")
    if not (times - dates == times[0] - dates[0]).all() or not numpy.is_busday(dates).all():
        return None
    follows = (numpy.busday_count(dates[:-1], dates[1:]) == 1).all()
    # Without a weekend between them the days are as likely to be plain calendar days.
    weekend = (numpy.diff(dates).astype("int64") > 1).any()
    return Spacing("business days", 1) if follows and weekend else None


def _month_lengths(months: HostArray) -> HostArray:
    days = (months + 1).astype("datetime64[D]") - months.astype("datetime64[D]")
    return numpy.asarray(days.astype("int64"))


def _plural(count: int, unit: str) -> str:
    return unit if count == 1 else f"{count} {unit}s"
