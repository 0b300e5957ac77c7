"""The picture of `scale.py`: efficiency over the number of processes, and of cards on paper."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# From the palette of Okabe and Ito, which readers with any kind of colour vision tell apart.
COLOURS = {"strong": "#0072B2", "weak": "#E69F00"}


def draw_scaling(
    rows: Sequence[Any], efficiencies: Sequence[float], here: str, cards: str, path: Path
) -> None:
    """Draw a panel for what was measured, if anything was, and one for the model, as a png file."""
    titles = {
        "measured": ("measured here, over processes", here),
        "model": ("a model, not measured, over GPUs", cards),
    }
    kinds = [kind for kind in titles if any(row.kind == kind for row in rows)]
    figure = Figure(figsize=(5.6 * len(kinds), 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
    for axes, kind in zip(panels, kinds, strict=True):
        shown = [pair for pair in zip(rows, efficiencies, strict=True) if pair[0].kind == kind]
        _draw_panel(axes, shown, kind == "measured")
        axes.set_title("\n".join(titles[kind]), fontsize=9)
    panels[0].set_ylabel("efficiency: rows a second and process, 1 = that of one")
    figure.savefig(path, dpi=150)


def _draw_panel(axes: "Axes", shown: Sequence[tuple[Any, float]], measured: bool) -> None:
    for scaling, colour in COLOURS.items():
        for overlap in (True, False):
            points = [
                (row.number, value)
                for row, value in shown
                if (row.scaling, row.overlap) == (scaling, overlap)
            ]
            if not points:
                continue
            words = {"strong": "strong: one batch, divided", "weak": "weak: a batch each"}[scaling]
            axes.plot(
                *zip(*points, strict=True), color=colour, marker="o" if measured else None,
                linestyle="-" if overlap else ":", linewidth=2,
                label=words if overlap else f"{scaling}, sums after the backward pass",
            )  # fmt: skip
    axes.axhline(1, color="#999999", linewidth=0.8)
    axes.set_xscale("log", base=2)
    numbers = sorted({row.number for row, _ in shown})
    axes.set_xticks(numbers, [str(number) for number in numbers])
    axes.minorticks_off()
    axes.set_ylim(0, 1.15)
    axes.grid(axis="y", alpha=0.3)
    axes.set_xlabel("processes" if measured else "GPUs")
    axes.legend(fontsize=8, loc="lower left")
