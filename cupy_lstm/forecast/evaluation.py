"""How good forecasts are: parts of a series, rolling origins, errors, intervals, coverage."""

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass

import numpy

from cupy_lstm.backend import Array, HostArray, array_module
from cupy_lstm.checks import checked_integer
from cupy_lstm.forecast.errors import DataError

VALIDATION_FRACTION = 0.25
"""Share of the rows a model is given that is kept for validation, unless one asks otherwise."""


@dataclass(frozen=True)
class Split:
    """A series cut by time into training, validation and test part.

    A forecast belongs to the part that holds all the steps it forecasts; the rows it looks back
    on may lie in the part before.

    Attributes
    ----------
    validation, test, end : int
        Index of the first row of the validation and of the test part, and number of rows.
    """

    validation: int
    test: int
    end: int


def split_rows(rows: int, context: int, horizon: int) -> Split:
    """Cut rows into three fifths for training, one for validation, and the last for the test.

    Raises
    ------
    DataError
        If a part would hold no forecast; the message says how many rows would do.
    """

    def cut(rows: int) -> Split:
        test = rows * 4 // 5
        return Split(training_rows(test, VALIDATION_FRACTION), test, rows)

    def enough(rows: int) -> bool:
        split = cut(rows)
        return split.end - split.test >= horizon and _holds_forecasts(
            split.validation, split.test, context, horizon
        )

    if not enough(rows):
        raise _too_few("", rows, context, horizon, enough, "--context or --horizon")
    return cut(rows)


def training_rows(rows: int, validation_fraction: float) -> int:
    """Return how many of the rows come before the validation part, the last ones of them."""
    return rows - int(rows * validation_fraction + 0.5)


def check_rows(
    name: str, rows: int, validation_fraction: float, context: int, horizon: int
) -> None:
    """Raise unless both parts of the rows of a series hold a forecast.

    Raises
    ------
    DataError
        If one does not; the message says how many rows would do.
    """

    def enough(rows: int) -> bool:
        training = training_rows(rows, validation_fraction)
        return _holds_forecasts(training, rows, context, horizon)

    if not enough(rows):
        raise _too_few(f"{name} has ", rows, context, horizon, enough, "context or horizon")


def _holds_forecasts(validation: int, end: int, context: int, horizon: int) -> bool:
    return validation >= context + horizon and end - validation >= horizon


def _too_few(
    subject: str,
    rows: int,
    context: int,
    horizon: int,
    enough: Callable[[int], bool],
    arguments: str,
) -> DataError:
    needed = bisect_left(range(2**40), True, key=enough)
    verb = "," if subject else " are"
    return DataError(
        f"{subject}{rows} rows{verb} too few for a context of {context} and a horizon of "
        f"{horizon}: {needed} rows would do, or a smaller {arguments}"
    )


def origins_between(start: int, stop: int, horizon: int) -> HostArray:
    """Return the first step of every forecast that lies within rows `start` to `stop`."""
    return numpy.arange(start, stop - horizon + 1)


def origins_from(start: object, rows: int, context: int, horizon: int) -> HostArray:
    """Return the first step of every forecast from row `start` on, the last ones included.

    Raises
    ------
    TypeError
        If `start` is no integer.
    ValueError
        If there are not `context` rows before it and `horizon` from it on; a negative one counts
        from the end.
    """
    row = checked_integer("start", start, -rows)
    first = row + rows if row < 0 else row
    if not context <= first <= rows - horizon:
        raise DataError(
            f"start is row {start} of {rows}, but a forecast needs {context} rows before it and "
            f"{horizon} from it on"
        )
    return origins_between(first, rows, horizon)


def truth_at(series: Array, origins: Array, horizon: int) -> Array:
    """Return what came to be, [N, horizon], of a series [n] after each origin [N]."""
    return series[origins[:, None] + array_module(series).arange(horizon)]


@dataclass(frozen=True)
class Score:
    """Errors of a forecast over all origins and horizon steps, in the target's unit.

    Attributes
    ----------
    mae, rmse : float
        Mean absolute error and root of the mean squared error.
    """

    mae: float
    rmse: float


def score(truth: Array, forecast: Array) -> Score:
    """Compare a forecast with the truth, both [N, horizon]; waits for a GPU."""
    error = forecast - truth
    return Score(float(abs(error).mean()), float((error**2).mean()) ** 0.5)


def conformal_rank(count: int, level: float) -> int:
    """Return the rank among `count` errors that split conformal prediction asks for.

    More than `count` where so few errors cannot vouch for the level.
    """
    return int(numpy.ceil((count + 1) * level))


def interval_half_widths(truth: HostArray, forecast: HostArray, level: float) -> HostArray:
    """Return how far from the forecast an interval must reach, for each step of the horizon.

    The half width of a step is the smallest of its absolute errors that at least `level` of
    them do not exceed, with the correction for a finite sample of split conformal prediction
    (Vovk, Gammerman and Shafer, Algorithmic Learning in a Random World): rank
    ceil((N + 1) level), or the largest error where N is too small for that.

    Parameters
    ----------
    truth, forecast : array [N, horizon]
        Of data that the model was not fitted to, on the host.
    level : float
        Wanted share of truths inside, between 0 and 1.

    Returns
    -------
    array [horizon]
    """
    count = len(truth)
    rank = min(conformal_rank(count, level), count)
    return numpy.asarray(numpy.sort(numpy.abs(forecast - truth), axis=0)[rank - 1])


def coverage(truth: Array, forecast: Array, half_widths: Array) -> float:
    """Return the share of truths [N, horizon] inside forecast +- half width, ends included."""
    return float((abs(forecast - truth) <= half_widths).mean())


def change_scale(values: Array, horizon: int) -> Array:
    """Return the root mean square change of each column over 1 to `horizon` steps.

    Parameters
    ----------
    values : array [n, F]
        The training part, more than `horizon` rows.
    horizon : int
        Number of steps a forecast has.

    Returns
    -------
    array [F]
        0 for a constant column.
    """
    xp = array_module(values)
    with numpy.errstate(over="ignore"):
        squares = [
            ((values[lag:] - values[:-lag]) ** 2).mean(axis=0) for lag in range(1, horizon + 1)
        ]
        return xp.sqrt(xp.stack(squares).mean(axis=0))
