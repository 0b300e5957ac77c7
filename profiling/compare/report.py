"""What is printed and written of the figures: tables, a CSV file, a picture."""

import csv
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING

import numpy as np

from compare.case import Case
from compare.figures import Figures, Goal, mean_ratio
from compare.processes import OURS, Measurement

if TYPE_CHECKING:
    from matplotlib.axes import Axes

UNKNOWN = "n/a"
FASTER, SLOWER = "#2a6f97", "#c8553d"


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Return rows of words as columns, the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip()
        for row in rows
    )


def number(value: float | None, pattern: str = "{:.2f}") -> str:
    """Return a number as text, or that there is none."""
    return UNKNOWN if value is None else pattern.format(value)


def table(figures: Sequence[Figures], mode: str, libraries: Sequence[str]) -> str:
    """Return the figures of a mode, a case a line, and the geometric means below."""
    chosen = [entry for entry in figures if entry.mode == mode]
    rows = [
        [
            f"{mode}, ms a {'step' if mode == 'stream' else 'call'}",
            *libraries,
            "ratio",
            "quartiles",
            "of sgemm",
            *(f"{library} MB" for library in libraries),
        ]
    ]
    for entry in chosen:
        times = [number(entry.ms.get(library), "{:.4g}") for library in libraries]
        memory = [number(entry.memory_mb.get(library), "{:.1f}") for library in libraries]
        spread = entry.quartiles
        quartiles = f"{spread[0]:.2f}-{spread[1]:.2f}" if spread else UNKNOWN
        share = number(entry.share, "{:.0%}")
        rows.append([entry.case.name, *times, number(entry.ratio), quartiles, share, *memory])
    blank = [""] * (len(libraries) + 2)
    for dtype in dict.fromkeys(entry.case.dtype for entry in chosen):
        mean = number(mean_ratio(figures, mode, dtype))
        rows.append([f"geometric mean, {dtype}", *blank[:-2], mean, *blank])
    return aligned(rows)


def goal_lines(figures: Sequence[Figures], goals: Iterable[Goal]) -> str:
    """Return for each goal what was reached, and which cases are below it."""
    rows, remarks = [["goal", "at least", "reached", ""]], []
    for goal in goals:
        name = f"{goal.mode}: {goal.text}"
        reached = goal.reached(figures)
        if reached is None:
            verdict = "not measured"
        elif reached >= goal.at_least:
            verdict = "met"
        else:
            verdict = "missed"
            if goal.combine is min:
                remarks.append(f"{name}, below {goal.at_least}: {'; '.join(goal.below(figures))}")
        rows.append([name, f"{goal.at_least:.2f}", number(reached), verdict])
    return "\n".join([aligned(rows), *remarks])


def gemm_line(measurements: Sequence[Measurement]) -> str:
    """Return the rate of NumPy's matrix product by dtype, its median and quartiles."""
    words = []
    for dtype in dict.fromkeys(entry.case.dtype for entry in measurements):
        rates = [
            entry.gemm_gflops
            for entry in measurements
            if (entry.library, entry.case.dtype) == (OURS, dtype)
        ]
        low, middle, high = np.percentile(rates, (25, 50, 75))
        words.append(f"{dtype} {middle:.0f} GFLOP/s (quartiles {low:.0f}-{high:.0f})")
    return f"NumPy's matrix product in the process of ours: {', '.join(words)}"


def write_csv(
    measurements: Iterable[Measurement], versions: dict[str, str], run: str, path: Path
) -> None:
    """Write one line for each case, mode, library and round; `run` says when, where and how."""
    rows = [
        {
            "case": entry.case.name,
            **asdict(entry.case),
            **{name: value for name, value in vars(entry).items() if name != "case"},
            "version": versions[entry.library],
            "run": run,
        }
        for entry in measurements
    ]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def read_csv(path: Path) -> tuple[list[Measurement], dict[str, str], str]:
    """Return the measurements, the versions, and what `run` says, as `write_csv` wrote them."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if not rows or "run" not in rows[0]:
        raise SystemExit(f"{path} has no column 'run': this script has not written it")
    measurements = [
        Measurement(
            Case(
                *(int(row[size]) for size in ("T", "B", "I", "H", "L", "D")),
                lengths=row["lengths"] == "True",
                time_major=row["time_major"] == "True",
                dtype=row["dtype"],
            ),
            row["mode"],
            row["library"],
            row["variant"],
            int(row["round"]),
            *(float(row[name]) for name in ("ms", "gemm_gflops")),
            *(float(row[name]) if row[name] else None for name in ("memory_mb", "error")),
        )
        for row in rows
    ]
    return measurements, {row["library"]: row["version"] for row in rows}, rows[0]["run"]


def draw(figures: Sequence[Figures], title: str, path: Path) -> None:
    """Draw the ratio of each case as a bar that begins at 1, a column a mode; needs matplotlib."""
    from matplotlib.figure import Figure

    compared = [entry for entry in figures if entry.ratios]
    modes = list(dict.fromkeys(entry.mode for entry in compared))
    names = list(dict.fromkeys(entry.case.name for entry in compared))
    picture = Figure(figsize=(3.4 + 3.6 * len(modes), 1.7 + 0.3 * len(names)), layout="constrained")
    axes = picture.subplots(1, len(modes), sharex=True, sharey=True, squeeze=False)[0]
    for axis, mode in zip(axes, modes, strict=True):
        axis.axvline(1, color="black", linewidth=0.8)
        for entry in compared:
            if entry.mode == mode:
                _bar(axis, names.index(entry.case.name), entry)
        axis.set_title(mode, fontsize=10)
        axis.grid(axis="x", linewidth=0.4)
        axis.set_axisbelow(True)
    ends = [ratio for entry in compared for ratio in (*entry.quartiles, 1.0)]
    axes[0].set_xscale("log", base=2)
    axes[0].set_xlim(min(ends) / 1.15, max(ends) * 3)  # room for the names
    axes[0].xaxis.set_major_formatter("{x:g}")
    axes[0].set_yticks(range(len(names)), names, fontsize=8)
    axes[0].set_ylim(len(names) - 0.4, -0.6)
    picture.supxlabel(
        "time of the fastest other library / ours: right of 1 ours is faster "
        "(line: quartiles over the rounds)",
        fontsize=9,
    )
    picture.suptitle(fill(title, 34 + 48 * len(modes)), fontsize=8)
    picture.savefig(path, dpi=150)


def _bar(axis: "Axes", row: int, entry: Figures) -> None:
    low, high = entry.quartiles
    color = FASTER if entry.ratio >= 1 else SLOWER
    axis.barh(row, entry.ratio - 1, left=1, height=0.7, color=color)
    axis.plot([low, high], [row, row], color="black", linewidth=1)
    axis.annotate(
        f"{entry.ratio:.2f}  {entry.best_peer}",
        (max(high, 1), row),
        xytext=(4, 0),
        textcoords="offset points",
        va="center",
        fontsize=8,
    )
