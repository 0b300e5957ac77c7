"""How good forecasts are: parts of a series, rolling origins, errors, intervals, coverage."""

from dataclasses import dataclass

import numpy

from cupy_lstm.backend import HostArray
from cupy_lstm.forecast.errors import DataError


@dataclass(frozen=True)
class Split:
    """A series cut by time into training, validation and test part.

    A forecast belongs to the part that holds all the steps it forecasts; the rows it looks back
    on may lie in the part before.

    Attributes
    ----------
    context, horizon : int
        Rows a forecast looks back on, and steps it looks ahead.
    validation, test, end : int
        Index of the first row of the validation and of the test part, and number of rows.
    """

    context: int
    horizon: int
    validation: int
    test: int
    end: int

    @property
    def training_origins(self) -> HostArray:
        """Index of the first step of every training forecast."""
        return self._origins(self.context, self.validation)

    @property
    def validation_origins(self) -> HostArray:
        """Index of the first step of every validation forecast."""
        return self._origins(self.validation, self.test)

    @property
    def test_origins(self) -> HostArray:
        """Index of the first step of every test forecast."""
        return self._origins(self.test, self.end)

    def _origins(self, start: int, stop: int) -> HostArray:
        return numpy.arange(start, stop - self.horizon + 1)


def split_rows(rows: int, context: int, horizon: int) -> Split:
    """Cut rows into three fifths for training, one for validation, and the last for the test.

    Raises
    ------
    DataError
        If a part would hold no forecast; the message says how many rows would do.
    """
    split = _cut(rows, context, horizon)
    if not _holds_forecasts(split):
        needed = max(rows + 1, (context + horizon) * 5 // 3 - 5, horizon * 5 - 5)
        while not _holds_forecasts(_cut(needed, context, horizon)):
            needed += 1
        raise DataError(
            f"{rows} rows are too few for a context of {context} and a horizon of {horizon}: "
            f"{needed} rows would do, or a smaller --context or --horizon"
        )
    return split


def _cut(rows: int, context: int, horizon: int) -> Split:
    return Split(context, horizon, rows * 3 // 5, rows * 4 // 5, rows)


def _holds_forecasts(split: Split) -> bool:
    return (
        split.validation >= split.context + split.horizon
        and split.test - split.validation >= split.horizon
        and split.end - split.test >= split.horizon
    )


def truth_at(series: HostArray, origins: HostArray, horizon: int) -> HostArray:
    """Return what came to be, [N, horizon], of a series [n] after each origin [N]."""
    return numpy.asarray(series[origins[:, None] + numpy.arange(horizon)])


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


def score(truth: HostArray, forecast: HostArray) -> Score:
    """Compare a forecast with the truth, both [N, horizon]."""
    error = forecast - truth
    return Score(float(numpy.abs(error).mean()), float(numpy.sqrt((error**2).mean())))


def interval_half_widths(truth: HostArray, forecast: HostArray, level: float) -> HostArray:
    """Return how far from the forecast an interval must reach, for each step of the horizon.

    The half width of a step is the smallest of its absolute errors that at least `level` of
    them do not exceed, with the correction for a finite sample of split conformal prediction
    (Vovk, Gammerman and Shafer, Algorithmic Learning in a Random World): rank
    ceil((N + 1) level), or the largest error where N is too small for that.

    Parameters
    ----------
    truth, forecast : array [N, horizon]
        Of data that the model was not fitted to.
    level : float
        Wanted share of truths inside, between 0 and 1.

    Returns
    -------
    array [horizon]
    """
    count = len(truth)
    rank = min(int(numpy.ceil((count + 1) * level)), count)
    return numpy.asarray(numpy.sort(numpy.abs(forecast - truth), axis=0)[rank - 1])


def coverage(truth: HostArray, forecast: HostArray, half_widths: HostArray) -> float:
    """Return the share of truths [N, horizon] inside forecast +- half width, ends included."""
    return float((numpy.abs(forecast - truth) <= half_widths).mean())


def change_scale(values: HostArray, horizon: int) -> HostArray:
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
    with numpy.errstate(over="ignore"):
        squares = [
            ((values[lag:] - values[:-lag]) ** 2).mean(axis=0) for lag in range(1, horizon + 1)
        ]
        return numpy.asarray(numpy.sqrt(numpy.mean(squares, axis=0)))
