"""Forecasts of what has come to be, beside those that a model must beat to be worth anything."""

from dataclasses import dataclass

from cupy_lstm.backend import Array, HostArray, array_module
from cupy_lstm.forecast.baselines import baselines, estimate_period
from cupy_lstm.forecast.errors import DataError
from cupy_lstm.forecast.evaluation import Score, coverage, score, truth_at

MODEL_NAME = "LSTM"


@dataclass(frozen=True)
class Backtest:
    """The forecasts of a series from successive origins, and how good they are.

    Attributes
    ----------
    origins : array of int [N]
        The row that each forecast begins at.
    forecasts, truth : array [N, horizon], float64
        What the model said at each origin from the rows before it, and what came to be.
    scores : dict of str to Score
        Errors of the model, ``"LSTM"``, and of every baseline, from the same origins; least mean
        absolute error first.
    coverage : float
        Share of the truths inside the interval.
    period : int
        Rows in a season, as the seasonal baselines took it.
    """

    origins: HostArray
    forecasts: Array
    truth: Array
    scores: dict[str, Score]
    coverage: float
    period: int


def judge(
    target: Array,
    origins: HostArray,
    forecasts: Array,
    half_widths: HostArray,
    period: int | None = None,
) -> Backtest:
    """Compare the forecasts of one series with the truth and with the baselines.

    Parameters
    ----------
    target : array [n]
        The series.
    origins : array of int [N]
        On the host.
    forecasts : array [N, horizon]
        From each of the origins.
    half_widths : array [horizon]
        Of the interval; on the host.
    period : int, optional
        Rows in a season; default: estimated on the rows before the first origin.

    Raises
    ------
    DataError
        If there are not more rows before the first origin than in a season.
    """
    xp, horizon, first = array_module(target), forecasts.shape[1], int(origins[0])
    if period is None:
        period = estimate_period(target[:first], horizon)
    if period >= first:
        raise DataError(
            f"period is {period}, but the first forecast begins at row {first}, counted from 0: "
            "there must be more rows before it"
        )
    at = xp.asarray(origins)
    truth = truth_at(target, at, horizon)
    methods = {MODEL_NAME: forecasts, **baselines(target, at, horizon, period)}
    scores = {name: score(truth, values) for name, values in methods.items()}
    return Backtest(
        origins=origins,
        forecasts=forecasts,
        truth=truth,
        scores=dict(sorted(scores.items(), key=lambda item: item[1].mae)),
        coverage=coverage(truth, forecasts, xp.asarray(half_widths)),
        period=period,
    )
