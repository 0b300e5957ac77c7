"""The picture of a series and its forecasts."""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy

from cupy_lstm.backend import HostArray
from cupy_lstm.forecast.report import Outlook

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# From the palette of Okabe and Ito, which readers with any kind of colour vision tell apart.
TRUTH, TEST, FUTURE = "#000000", "#0072B2", "#D55E00"
PART_COLOURS = {"training": "#ffffff", "validation": "#eeeeee", "test": "#e1eef6"}

SHOWN = 10
"""Most horizons of the series in the lower panel, so that single forecasts can be told apart."""

NARROW = 0.1
"""Share of a panel below which a part of the series has no room for its name."""


def draw(path: Path, outlook: Outlook) -> None:
    """Draw the whole series above, and its end with the forecasts below, as a png file.

    Of the test forecasts, those that follow one another without overlap are drawn.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    series, backtest, horizon = outlook.series, outlook.backtest, len(outlook.future)
    figure = Figure(figsize=(10, 7.5), layout="constrained")
    FigureCanvasAgg(figure)
    whole, recent = figure.subplots(2, 1, height_ratios=(2, 3))
    _draw_series(whole, outlook, 0)
    rows, shown = len(series.times), SHOWN * horizon
    if backtest is not None:
        shown = min(shown, rows - backtest.split.test + 2 * horizon)
    start = max(0, rows - shown)
    _draw_series(recent, outlook, start)
    if backtest is not None:
        _draw_backtest(recent, outlook, start)
    handles = [
        Line2D([], [], color=colour, label=label)
        for label, colour, drawn in (
            ("truth", TRUTH, True),
            ("forecast of the test part", TEST, backtest is not None),
            ("forecast of the future", FUTURE, True),
        )
        if drawn
    ]
    interval = Patch(color="#999999", alpha=0.5, label=f"{outlook.level:.0%} interval")
    figure.legend(handles=[*handles, interval], loc="outside lower center", ncols=4, frameon=False)
    # Names of columns are the user's: a dollar sign in them begins no formula.
    recent.set_xlabel(series.time, parse_math=False)
    figure.suptitle(f"{series.columns[0]}: {series.source}", parse_math=False)
    with warnings.catch_warnings():
        # A letter that matplotlib's font lacks is drawn as a box, which is no reason to worry.
        warnings.simplefilter("ignore", UserWarning)
        figure.savefig(path, dpi=150)


def _draw_series(axes: "Axes", outlook: Outlook, start: int) -> None:
    """Draw the rows from `start` on, the parts they belong to, and the future."""
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    series = outlook.series
    times: Any = series.times  # matplotlib's types know no dates
    future: Any = series.future(len(outlook.future))
    if times.dtype.kind == "M":
        locator = AutoDateLocator()  # type: ignore[no-untyped-call]
        axes.xaxis.set_major_locator(locator)
        formatter = ConciseDateFormatter(locator)  # type: ignore[no-untyped-call]
        axes.xaxis.set_major_formatter(formatter)
    if outlook.backtest is not None:
        _shade_parts(axes, outlook, start)
    axes.plot(times[start:], series.target[start:], color=TRUTH, linewidth=1.1)
    _draw_forecast(axes, outlook, len(times), future, outlook.future, FUTURE)
    axes.set_xlim(times[start], future[-1])
    axes.set_ylabel(series.columns[0], parse_math=False)
    axes.grid(alpha=0.3, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_backtest(axes: "Axes", outlook: Outlook, start: int) -> None:
    """Draw forecasts of the test part that begin at row `start` or later."""
    assert outlook.backtest is not None
    times: Any = outlook.series.times
    horizon = len(outlook.future)
    # Backwards, so that the newest forecast reaches the last row.
    origins = outlook.backtest.split.test_origins[::-horizon]
    for origin, values in zip(origins, outlook.backtest.values[::-horizon], strict=True):
        if origin > start:
            at = times[origin : origin + horizon]
            _draw_forecast(axes, outlook, int(origin), at, values, TEST)


def _draw_forecast(
    axes: "Axes", outlook: Outlook, origin: int, times: Any, values: HostArray, colour: str
) -> None:
    """Draw one forecast and its interval, beginning at the last row that it knew."""
    series = outlook.series
    known, last = series.times[origin - 1 : origin], series.target[origin - 1]
    at: Any = numpy.concatenate([known, times])
    line = numpy.concatenate([[last], values])
    reach = numpy.concatenate([[0.0], outlook.half_widths])
    axes.plot(at, line, color=colour, linewidth=1.5)
    axes.fill_between(at, line - reach, line + reach, color=colour, alpha=0.25, linewidth=0)


def _shade_parts(axes: "Axes", outlook: Outlook, start: int) -> None:
    """Shade training, validation and test part, and name them above the axes."""
    assert outlook.backtest is not None
    times: Any = outlook.series.times
    split = outlook.backtest.split
    edges = (0, split.validation, split.test, split.end - 1)
    for (part, colour), left, right in zip(
        PART_COLOURS.items(), edges[:-1], edges[1:], strict=True
    ):
        first = max(left, start)
        if right <= first:
            continue
        axes.axvspan(times[first], times[right], color=colour, linewidth=0, zorder=0)
        if right - first >= NARROW * (split.end - start):
            axes.annotate(
                part,
                (times[first], 1),
                xycoords=("data", "axes fraction"),
                xytext=(2, 3),
                textcoords="offset points",
                color="#555555",
            )
