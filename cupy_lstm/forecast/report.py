"""What the forecast command reports: the scores in words, the forecasts as a table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy

from cupy_lstm.backend import HostArray
from cupy_lstm.forecast.backtest import Backtest
from cupy_lstm.forecast.evaluation import Score, Split
from cupy_lstm.forecast.series import Series

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class Outlook:
    """One column of a table and everything that was forecast of it.

    Attributes
    ----------
    series : Series
        The table.
    target : str
        Name of the column.
    split : Split or None
        The parts of the series, if the model was trained on it.
    backtest : Backtest or None
        Of the test part, on the host.
    future : array [horizon]
        After the last row, in the unit of the column.
    half_widths : array [horizon]
        Of the interval at each step.
    level : float
        Nominal coverage of the interval.
    """

    series: Series
    target: str
    split: Split | None
    backtest: Backtest | None
    future: HostArray
    half_widths: HostArray
    level: float

    @property
    def truth(self) -> HostArray:
        """The values of the column, [n]."""
        return self.series.values[:, self.series.targets.index(self.target)]


def forecast_table(outlooks: Sequence[Outlook]) -> "pandas.DataFrame":
    """Return every forecast as a row.

    Columns: ``target`` (where there are several), ``kind`` (test or future), ``origin`` (time of
    the last row the forecast knew), ``step`` (1 to horizon), ``time`` (that the forecast is for),
    ``truth`` (empty for the future), ``forecast``, ``lower`` and ``upper`` (the interval).
    """
    import pandas

    tables = []
    for outlook in outlooks:
        table = _table_of(outlook)
        if len(outlooks) > 1:
            table.insert(0, "target", outlook.target)
        tables.append(table)
    return pandas.concat(tables, ignore_index=True)


def _table_of(outlook: Outlook) -> "pandas.DataFrame":
    import pandas

    series, horizon = outlook.series, len(outlook.future)
    steps = numpy.arange(horizon)
    blocks = []
    if outlook.backtest is not None:
        origins = outlook.backtest.origins
        at = (origins[:, None] + steps).ravel()
        blocks.append(
            {
                "kind": "test",
                "origin": series.times[origins - 1].repeat(horizon),
                "step": numpy.tile(steps + 1, len(origins)),
                "time": series.times[at],
                "truth": outlook.truth[at],
                "forecast": outlook.backtest.forecasts.ravel(),
            }
        )
    blocks.append(
        {
            "kind": "future",
            "origin": series.times[-1:].repeat(horizon),
            "step": steps + 1,
            "time": series.future(horizon),
            "truth": numpy.full(horizon, numpy.nan),
            "forecast": outlook.future,
        }
    )
    table = pandas.concat([pandas.DataFrame(block) for block in blocks], ignore_index=True)
    reach = outlook.half_widths[table["step"].to_numpy() - 1]
    return table.assign(lower=table["forecast"] - reach, upper=table["forecast"] + reach)


def score_lines(scores: Mapping[str, Score], model: str) -> list[str]:
    """Return the table of errors and the verdict on `model`, one of the methods scored.

    The skill of a method is how far its mean absolute error is below that of the best baseline.
    """
    rivals = {method: score for method, score in scores.items() if method != model}
    best = min(rivals, key=lambda method: rivals[method].mae)
    reference = rivals[best].mae
    width = max(map(len, scores))
    lines = [f"{'':{width}} {'MAE':>10} {'RMSE':>10} {'skill':>9}"]
    for method, score in scores.items():
        skill = f"{1 - score.mae / reference:9.1%}" if reference else f"{'-':>9}"
        lines.append(f"{method:{width}} {score.mae:10.4g} {score.rmse:10.4g} {skill}")
    return [*lines, "", verdict(scores[model], rivals, model)]


def verdict(score: Score, rivals: Mapping[str, Score], model: str) -> str:
    """Say whether `model` beats its rivals by the mean absolute error, and by the RMSE."""
    best = min(rivals, key=lambda method: rivals[method].mae)
    least = rivals[best].mae
    if least == 0:
        return f"The {best} forecast is exact on the test part: this series needs no model."
    difference = f"{abs(1 - score.mae / least):.1%}"
    if score.mae >= least:
        return (
            f"The {model} does NOT beat the {best} forecast: its mean absolute error on the test "
            f"part is {difference} above. Use that baseline instead."
        )
    by_rmse = min(rivals, key=lambda method: rivals[method].rmse)
    but = "" if score.rmse < rivals[by_rmse].rmse else f", though by RMSE {by_rmse} is better"
    return (
        f"The {model} beats every baseline: its mean absolute error on the test part is "
        f"{difference} below that of the best one ({best}){but}."
    )
