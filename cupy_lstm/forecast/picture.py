"""The picture of a series and its forecasts."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy

from cupy_lstm.backend import HostArray
from cupy_lstm.forecast.backtest import Backtest
from cupy_lstm.forecast.evaluation import Split
from cupy_lstm.forecast.report import Outlook

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# From the palette of Okabe and Ito, which readers with any kind of colour vision tell apart.
TRUTH, TEST, FUTURE = "#000000", "#0072B2", "#D55E00"
PART_COLOURS = {"training": "#ffffff", "validation": "#eeeeee", "test": "#e1eef6"}

SHOWN = 10
"""Most horizons of the series in the lower panel, so that single forecasts can be told apart."""

MOST = 8
"""Most series in one picture."""

NARROW = 0.1
"""Share of a panel below which a part of the series has no room for its name."""


def draw(path: Path, outlooks: Sequence[Outlook]) -> None:
    """Draw series and forecasts as a png file.

    One series is drawn whole above, and its end with the forecasts below; of several, the ends of
    the first `MOST` alone, one below the other. Of the test forecasts, those that follow one
    another without overlap are drawn.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    several, count = len(outlooks) > 1, len(outlooks)
    outlooks, series = outlooks[:MOST], outlooks[0].series
    backtested = outlooks[0].backtest is not None
    heights = [3] * len(outlooks) if several else [2, 3]
    figure = Figure(figsize=(10, 1.5 * sum(heights) + 0.75 * several), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(heights), 1, height_ratios=heights)
    if not several:
        _draw_series(panels[0], outlooks[0], 0)
    for axes, outlook in zip(panels if several else panels[1:], outlooks, strict=True):
        _draw_end(axes, outlook)
    handles = [
        Line2D([], [], color=colour, label=label)
        for label, colour, drawn in (
            ("truth", TRUTH, True),
            ("forecast of the test part", TEST, backtested),
            ("forecast of the future", FUTURE, True),
        )
        if drawn
    ]
    interval = Patch(color="#999999", alpha=0.5, label=f"{outlooks[0].level:.0%} interval")
    figure.legend(handles=[*handles, interval], loc="outside lower center", ncols=4, frameon=False)
    # Names of columns are the user's: a dollar sign in them begins no formula.
    panels[-1].set_xlabel(series.time, parse_math=False)
    title = series.source if several else f"{series.targets[0]}: {series.source}"
    if count > MOST:
        title += f", the first {MOST} of {count} series"
    figure.suptitle(title, parse_math=False)
    with warnings.catch_warnings():
        # A letter that matplotlib's font lacks is drawn as a box, which is no reason to worry.
        warnings.simplefilter("ignore", UserWarning)
        figure.savefig(path, dpi=150)


def _draw_end(axes: "Axes", outlook: Outlook) -> None:
    """Draw the last rows of a series with the forecasts."""
    rows, horizon = len(outlook.truth), len(outlook.future)
    shown = SHOWN * horizon
    if outlook.split is not None:
        shown = min(shown, rows - outlook.split.test + 2 * horizon)
    start = max(0, rows - shown)
    _draw_series(axes, outlook, start)
    if outlook.backtest is not None:
        _draw_backtest(axes, outlook.backtest, outlook, start)


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
    if outlook.split is not None:
        _shade_parts(axes, outlook.split, times, start)
    axes.plot(times[start:], outlook.truth[start:], color=TRUTH, linewidth=1.1)
    _draw_forecast(axes, outlook, len(times), future, outlook.future, FUTURE)
    axes.set_xlim(times[start], future[-1])
    axes.set_ylabel(outlook.target, parse_math=False)
    axes.grid(alpha=0.3, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_backtest(axes: "Axes", backtest: Backtest, outlook: Outlook, start: int) -> None:
    """Draw forecasts of the test part that begin at row `start` or later."""
    times: Any = outlook.series.times
    horizon = len(outlook.future)
    # Backwards, so that the newest forecast reaches the last row.
    newest_first = slice(None, None, -horizon)
    for origin, values in zip(
        backtest.origins[newest_first], backtest.forecasts[newest_first], strict=True
    ):
        if origin > start:
            at = times[origin : origin + horizon]
            _draw_forecast(axes, outlook, int(origin), at, values, TEST)


def _draw_forecast(
    axes: "Axes", outlook: Outlook, origin: int, times: Any, values: HostArray, colour: str
) -> None:
    """Draw one forecast and its interval, beginning at the last row that it knew."""
    series = outlook.series
    known, last = series.times[origin - 1 : origin], outlook.truth[origin - 1]
    at: Any = numpy.concatenate([known, times])
    line = numpy.concatenate([[last], values])
    reach = numpy.concatenate([[0.0], outlook.half_widths])
    axes.plot(at, line, color=colour, linewidth=1.5)
    axes.fill_between(at, line - reach, line + reach, color=colour, alpha=0.25, linewidth=0)


def _shade_parts(axes: "Axes", split: Split, times: Any, start: int) -> None:
    """Shade training, validation and test part, and name them above the axes."""
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
