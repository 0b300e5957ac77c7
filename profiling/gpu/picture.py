"""The picture: microseconds a step over H, predicted, measured and published side by side."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpu.published import POINTS, Published
from gpu.rows import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# From the palette of Okabe and Ito, which readers with any kind of colour vision tell apart.
COLOURS = ("#0072B2", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#D55E00")
PUBLISHED = "#444444"
MARKERS = "sD^vP*X"
MEASURED_MARKERS = "ohp8"
TIERS = {"block": "-", "cluster": (0, (1, 0.8)), "grid": (0, (5, 1.5))}
"""Lines of the tiers of the engine persistent."""
TITLES = {"forward": "inference: forward", "both": "training: forward and backward"}
LOWEST, HIGHEST = 0.02, 100.0  # microseconds
NARROWEST, WIDEST = 14, 2600  # H


def draw(rows: Sequence[Row], path: Path, heading: str) -> None:
    """Draw a panel for each dtype and each pass, as a png file; needs matplotlib."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    dtypes = list(dict.fromkeys(row.dtype for row in rows))
    figure = Figure(figsize=(13, 1.9 + 4.6 * len(dtypes)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(dtypes), 2, sharex=True, sharey=True, squeeze=False)
    batches = sorted({row.B for row in rows})
    for line, dtype in zip(panels, dtypes, strict=True):
        for axes, passes in zip(line, TITLES, strict=True):
            shown = [row for row in rows if (row.dtype, row.passes) == (dtype, passes)]
            _draw_panel(axes, shown, batches, passes, dtype)
    for axes in panels[-1]:
        axes.set_xlabel("hidden size H (input size the same)")
    for axes in panels[:, 0]:
        axes.set_ylabel("microseconds a step")
    figure.legend(
        handles=_legend(rows, batches, dtypes),
        loc="outside lower center",
        ncols=3,
        frameon=False,
        fontsize=8.5,
    )
    figure.suptitle(heading, fontsize=11)
    figure.savefig(path, dpi=150)


def _draw_panel(
    axes: "Axes", rows: Sequence[Row], batches: Sequence[int], passes: str, dtype: str
) -> None:
    for B in batches:
        colour = COLOURS[batches.index(B) % len(COLOURS)]
        mine = sorted((row for row in rows if row.B == B), key=lambda row: row.H)
        shown = [row for row in mine if row.kind == "predicted" and row.us]
        for tier, run in _runs(shown):
            axes.plot(
                [row.H for row in run], [row.us for row in run], color=colour, linewidth=2,
                linestyle=TIERS[tier],
            )  # fmt: skip
        for what, style in measured_styles(rows).items():
            points = [
                (row.H, row.us)
                for row in mine
                if (row.kind, row.what) == ("measured", what) and row.us
            ]
            if points:
                axes.plot(
                    *zip(*points, strict=True), style["marker"], color=colour,
                    markerfacecolor=colour if style["filled"] else "white",
                )  # fmt: skip
        floor = [(r.H, r.floor_us) for r in mine if r.kind == "predicted" and r.floor_us]
        if floor:
            axes.plot(*zip(*floor, strict=True), color=colour, linestyle=":", linewidth=1)
    largest = max((row.H for row in rows if row.engine == "persistent"), default=None)
    if largest is not None:
        axes.axvspan(largest, 2 * WIDEST, color="#000000", alpha=0.045, linewidth=0)
        axes.text(
            WIDEST / 1.03, LOWEST * 1.2, "stepwise:\nno model", fontsize=8, ha="right",
        )  # fmt: skip
    for points, marker in zip(_by_name(POINTS), MARKERS, strict=False):
        places = [
            (one.H, us)
            for one in points
            if _beside(one, dtype)
            and (us := one.forward_us if passes == "forward" else one.both_us) is not None
        ]
        if places:
            axes.plot(
                *zip(*places, strict=True), marker, color=PUBLISHED, markersize=7,
                markerfacecolor="white",
            )  # fmt: skip
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlim(NARROWEST, WIDEST)
    axes.set_ylim(LOWEST, HIGHEST)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.grid(linewidth=0.4)
    axes.set_title(f"{dtype}, {TITLES[passes]}", loc="left", fontsize=10)


def _runs(rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    """Return neighbouring rows of one tier together, each with the row before it."""
    found: list[tuple[str, list[Row]]] = []
    for before, row in zip([*rows[:1], *rows], rows, strict=False):
        if not found or found[-1][0] != row.tier:
            found.append((row.tier, [before]))
        found[-1][1].append(row)
    return found


def measured_styles(rows: Iterable[Row]) -> dict[str, dict[str, Any]]:
    """Return the marker of each implementation that was measured; ours are filled."""
    names = sorted({row.what for row in rows if row.kind == "measured"})
    return {
        what: {
            "marker": MEASURED_MARKERS[k % len(MEASURED_MARKERS)],
            "filled": what.startswith("cupy_lstm"),
        }
        for k, what in enumerate(names)
    }


def _beside(point: Published, dtype: str) -> bool:
    """Say whether a published point belongs to the panels of a dtype: half types share theirs."""
    return ("16" in point.dtype) == ("16" in dtype)


def _by_name(points: Iterable[Published]) -> list[list[Published]]:
    """Return the points of each implementation."""
    names = dict.fromkeys(point.what for point in points)
    return [[point for point in points if point.what == name] for name in names]


def _legend(rows: Sequence[Row], batches: Sequence[int], dtypes: Sequence[str]) -> list[object]:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=COLOURS[k % len(COLOURS)], linewidth=2, label=f"predicted, B = {B}")
        for k, B in enumerate(batches)
    ]
    for tier, style in TIERS.items():
        if any(row.tier == tier and row.kind == "predicted" for row in rows):
            handles.append(
                Line2D([], [], color="black", linestyle=style, linewidth=2, label=f"{tier} tier")
            )
    handles.append(
        Line2D([], [], color="black", linestyle=":", linewidth=1, label="floor of the device")
    )
    for what, style in measured_styles(rows).items():
        handles.append(
            Line2D(
                [], [], color="black", marker=style["marker"], linestyle="",
                markerfacecolor="black" if style["filled"] else "white", label=f"measured: {what}",
            )
        )  # fmt: skip
    for points, marker in zip(_by_name(POINTS), MARKERS, strict=False):
        one = points[0]
        if any(_beside(one, dtype) for dtype in dtypes):
            handles.append(
                Line2D(
                    [], [], color=PUBLISHED, marker=marker, linestyle="", markerfacecolor="white",
                    label=f"published: {one.what}, {one.dtype}, B = {one.B}, {one.card}",
                )
            )  # fmt: skip
    return handles
