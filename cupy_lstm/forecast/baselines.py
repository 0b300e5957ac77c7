"""The forecasts that a model must beat to be worth anything.

Every one of them repeats a season of the past: the naive forecast a season of one step. With
drift, the average growth from one season to the next is added for every season gone by. See
Hyndman and Athanasopoulos, Forecasting: Principles and Practice, section "Some simple
forecasting methods".
"""

import numpy

from cupy_lstm.backend import Array, array_module, to_host

MAX_PERIOD = 400
"""Longest period that is looked for, in rows: a year of days."""

CLEARLY = 0.9
"""An error below this share of another is clearly smaller."""

NEARLY_ALL = 0.8
"""Share of the best gain that is enough for a shorter period: of the seasons of one year, two years
and four, the last ones average over fewer changes, and do better by chance."""


def seasonal_naive(
    series: Array, origins: Array, horizon: int, period: int, drift: bool = False
) -> Array:
    """Repeat the last season, from every origin.

    Parameters
    ----------
    series : array [n]
        The values; a forecast reads only those before its origin.
    origins : array of int [N]
        Index of the first step to forecast; greater than `period`. On the device of `series`.
    horizon : int
        Number of steps.
    period : int
        Rows in a season; 1 gives the naive forecast, with drift the drift forecast.
    drift : bool
        Add the average growth over one season, as of the origin, for each season.

    Returns
    -------
    array [N, horizon]
    """
    xp = array_module(series)
    steps = xp.arange(1, horizon + 1)
    seasons = -(-steps // period)
    forecast = series[origins[:, None] - 1 + steps - period * seasons]
    if not drift:
        return forecast
    growth = xp.cumsum(series[period:] - series[:-period])
    counts = origins - period
    growth_per_season = (growth[counts - 1] / counts)[:, None]
    return forecast + growth_per_season * seasons


def baselines(series: Array, origins: Array, horizon: int, period: int) -> dict[str, Array]:
    """Return the forecasts [N, horizon] of every baseline by name, as `seasonal_naive`."""
    return {
        "naive": seasonal_naive(series, origins, horizon, 1),
        "drift": seasonal_naive(series, origins, horizon, 1, drift=True),
        "seasonal naive": seasonal_naive(series, origins, horizon, period),
        "seasonal naive + drift": seasonal_naive(series, origins, horizon, period, drift=True),
    }


def estimate_period(series: Array, horizon: int) -> int:
    """Return the number of rows in a season: the period that makes the best baseline.

    The seasonal-naive forecast with drift is scored with every period up to a third of the
    series (and `MAX_PERIOD`). If none has an error clearly below that of period 1, there is no
    season and 1 is returned. Else it is the shortest that does better than its neighbours and
    has nearly all of the best one's gain, so that a year is not taken for four years.

    Parameters
    ----------
    series : array [n]
        The training part, at least 2 values.
    horizon : int
        Number of steps a forecast has.
    """
    longest = max(1, min(len(series) // 3, MAX_PERIOD))
    lags = min(longest + horizon, len(series) - 1)
    error_at_lag = array_module(series).zeros(lags + 1)
    for lag in range(1, lags + 1):
        change = series[lag:] - series[:-lag]
        error_at_lag[lag] = abs(change - change.mean()).mean()
    periods = numpy.arange(1, longest + 1)
    steps = numpy.arange(1, horizon + 1)[:, None]
    lag_at_step = numpy.minimum(periods * -(-steps // periods), lags)
    errors = to_host(error_at_lag)[lag_at_step].mean(axis=0)
    naive, best = errors[0], errors.min()
    if best > CLEARLY * naive:
        return 1
    beside = numpy.concatenate([[numpy.inf], errors, [numpy.inf]])
    dip = (errors <= beside[:-2]) & (errors <= beside[2:])
    return int(periods[(dip & (naive - errors >= NEARLY_ALL * (naive - best))).argmax()])
