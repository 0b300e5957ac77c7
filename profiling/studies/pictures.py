"""The pictures of a study: roofline, time over H, scaling, shares of the stages; matplotlib."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from traces.machine import Machine

from cupy_lstm.ranges import STAGES
from studies.grid import PASSES
from studies.measure import OTHER
from studies.results import Result, exponent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# From the palette of Okabe and Ito, which readers with any kind of colour vision tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = "osD^vP"
DASHES = ("-", "--", "-.", ":")
OTHER_COLOUR = "#bbbbbb"
SCALED = {"T": "steps T", "B": "rows B", "L": "layers L"}
TITLES = {"inference": "inference: forward", "training": "training: forward and backward"}


class Pictures:
    """All pictures of some results.

    Parameters
    ----------
    base : mapping
        What the sweeps vary, one size at a time.
    heading : str
        Machine, date and versions, for the titles.
    """

    def __init__(
        self,
        results: Sequence[Result],
        base: Mapping[str, Any],
        machine: Machine | None,
        heading: str,
    ) -> None:
        self.results, self.base, self.machine, self.heading = results, base, machine, heading
        self.engines = list(dict.fromkeys(result.point.engine for result in results))

    def draw_all(self, folder: Path) -> list[Path]:
        """Write every picture; return their paths."""
        pictures = {
            "roofline.png": self.roofline,
            "time_over_H.png": self.time_over_size,
            "scaling.png": self.scaling,
            "stages.png": self.stages,
        }
        for name, draw in pictures.items():
            draw().savefig(folder / name, dpi=120)
        return [folder / name for name in pictures]

    def roofline(self) -> "Figure":
        """Draw arithmetic a second over arithmetic a byte, below the roofs of the machine."""
        figure = _figure(8.5, 5.8)
        axes = figure.add_subplot()
        dtypes = list(dict.fromkeys(result.point.dtype for result in self.results))
        low = min(result.intensity for result in self.results) / 2
        high = max(result.intensity for result in self.results) * 2
        if self.machine is not None:
            high = max(high, 4 * max(self.machine.flops.values()) / self.machine.bandwidth)
            for dtype, dashes in zip(dtypes, DASHES, strict=False):
                _draw_roof(axes, self.machine, dtype, dashes, low, high)
        for result in self.results:
            point = result.point
            axes.plot(
                result.intensity, result.gflops, MARKERS[dtypes.index(point.dtype)],
                color=self._colour(point.engine), markersize=3 + 1.3 * _log2(point.H / 8),
                markerfacecolor=self._colour(point.engine) if point.training else "white",
            )  # fmt: skip
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xlim(low, high)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.set_xlabel("FLOPs a byte that must pass through the memory")
        axes.set_ylabel("GFLOP/s of the matrix products")
        axes.grid(linewidth=0.4)
        handles = [_patch(self._colour(name), name) for name in self.engines]
        handles += [
            _key(marker="o", color="black", label="training"),
            _key(marker="o", color="black", markerfacecolor="white", label="inference"),
            *(
                _key(marker=marker, linestyle=dashes, color="black", label=dtype)
                for dtype, marker, dashes in zip(dtypes, MARKERS, DASHES, strict=False)
            ),
        ]
        axes.legend(handles=handles, fontsize=8, loc="lower right")
        self._title(figure, "Roofline; a larger mark is a larger H")
        return figure

    def time_over_size(self) -> "Figure":
        """Draw microseconds a step over H, with the floor, and the model where there is one."""
        figure = _figure(11, 4.8)
        panels = figure.subplots(1, 2, sharey=True)
        for axes, passes in zip(panels, PASSES, strict=True):
            for engine in self.engines:
                chosen = self._sweep("H", engine, passes)
                sizes = [result.point.H for result in chosen]
                colour = self._colour(engine)
                axes.plot(sizes, [r.us_a_step for r in chosen], "o-", color=colour, label=engine)
                predicted = [(r.point.H, 1e3 * r.predicted / r.point.T)
                             for r in chosen if r.predicted is not None]  # fmt: skip
                if predicted:
                    axes.plot(
                        *zip(*predicted, strict=True), "--", color=colour,
                        label=f"{engine}: the model",
                    )  # fmt: skip
            floors = {
                r.point.H: 1e3 * r.floor / r.point.T
                for engine in self.engines
                for r in self._sweep("H", engine, passes)
                if r.floor is not None
            }
            if floors:
                axes.plot(
                    *zip(*sorted(floors.items()), strict=True), ":", color="black",
                    label="floor of the machine",
                )  # fmt: skip
            _log_axes(axes, "hidden size H (input size the same)")
            axes.set_title(TITLES[passes], loc="left", fontsize=10)
            axes.legend(fontsize=8)
        panels[0].set_ylabel("microseconds a step")
        self._title(figure, f"Time of a step, {self._fixed('H')}")
        return figure

    def scaling(self) -> "Figure":
        """Draw milliseconds a call over T, B and L, with the exponent that fits."""
        names = [name for name in SCALED if self._is_swept(name)]
        figure = _figure(1 + 4.4 * len(names), 4.8)
        panels = figure.subplots(1, max(1, len(names)), sharey=True, squeeze=False)[0]
        for axes, name in zip(panels, names, strict=False):
            for engine in self.engines:
                for passes, style in zip(PASSES, ("o--", "o-"), strict=True):
                    chosen = self._sweep(name, engine, passes)
                    if len(chosen) < 2:
                        continue
                    axes.plot(
                        [getattr(result.point, name) for result in chosen],
                        [result.ms for result in chosen], style, color=self._colour(engine),
                        markerfacecolor="white" if passes == "inference" else None,
                        label=f"{engine}, {passes}: ~ {name}^{exponent(chosen, name):.2f}",
                    )  # fmt: skip
            _log_axes(axes, SCALED[name])
            axes.set_title(self._fixed(name), loc="left", fontsize=9)
            axes.legend(fontsize=7.5, loc="upper left")
        panels[0].set_ylabel("milliseconds a call")
        self._title(figure, "Scaling, with the exponent of the power law that fits best")
        return figure

    def stages(self) -> "Figure":
        """Draw the shares of the stages as stacked bars, over H."""
        bars = [
            result
            for passes in PASSES
            for engine in self.engines
            for result in self._sweep("H", engine, passes)
            if result.stages
        ]
        figure = _figure(10, 1.9 + 0.29 * len(bars))
        axes = figure.add_subplot()
        names = [name for name in (*STAGES, OTHER) if any(name in r.stages for r in bars)]
        for row, result in enumerate(bars):
            shares, left = result.shares(), 0.0
            for name in names:
                share = shares.get(name, 0.0)
                axes.barh(row, share, left=left, height=0.8, color=_stage_colour(name))
                if share > 0.06:
                    axes.text(
                        left + share / 2, row, f"{share:.0%}", ha="center", va="center", fontsize=7
                    )
                left += share
        labels = [f"{r.point.passes}, {r.point.engine}, H = {r.point.H}" for r in bars]
        axes.set_yticks(range(len(bars)), labels, fontsize=8)
        axes.set_ylim(len(bars) - 0.4, -0.6)
        axes.set_xlim(0, 1)
        axes.xaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
        axes.set_xlabel(_share_label(bars))
        handles = [_patch(_stage_colour(name), name) for name in names]
        figure.legend(
            handles=handles, loc="outside lower center", ncols=5, frameon=False, fontsize=8
        )
        self._title(figure, f"Where the time goes, {self._fixed('H')}")
        return figure

    def _sweep(self, name: str, engine: str, passes: str) -> list[Result]:
        """Return the points of an engine that differ from the base in one size, by that size."""
        chosen = [
            result
            for result in self.results
            if (result.point.engine, result.point.passes) == (engine, passes)
            and result.point.varies(name, self.base)
        ]
        return sorted(chosen, key=lambda result: getattr(result.point, name))

    def _is_swept(self, name: str) -> bool:
        return len({getattr(r.point, name) for r in self.results}) > 1

    def _colour(self, engine: str) -> str:
        return COLOURS[self.engines.index(engine) % len(COLOURS)]

    def _fixed(self, varied: str) -> str:
        """Return the sizes that a sweep leaves as they are."""
        return ", ".join(
            str(value) if name == "dtype" else f"{name} = {value}"
            for name, value in self.base.items()
            if name != varied
        )

    def _title(self, figure: "Figure", text: str) -> None:
        figure.suptitle(f"{text}\n{self.heading}", fontsize=9.5, x=0.01, ha="left")


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _draw_roof(
    axes: "Axes", machine: Machine, dtype: str, dashes: str, low: float, high: float
) -> None:
    rate = machine.flops.get(dtype)
    if rate is None:
        return
    ridge = rate / machine.bandwidth
    corners = [low, ridge, high] if low < ridge < high else [low, high]
    heights = [min(x * machine.bandwidth, rate) / 1e9 for x in corners]
    axes.plot(corners, heights, dashes, color="black", linewidth=1.2)


def _log_axes(axes: "Axes", label: str) -> None:
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xlabel(label)
    axes.grid(linewidth=0.4)


def _log2(value: float) -> float:
    from math import log2

    return max(0.0, log2(value))


def _share_label(results: Sequence[Result]) -> str:
    """Return what shares of stages are of; all points of a study have one clock."""
    if any(result.clock == "GPU" for result in results):
        return "share of the GPU's time of a call"
    if any(result.point.module == "cupy" for result in results):
        return "share of the host's time of a call (launches; the GPU was not recorded)"
    return "share of the time of a call"


def _stage_colour(name: str) -> str:
    return f"#{STAGES[name].colour:06x}" if name in STAGES else OTHER_COLOUR


def _key(**style: Any) -> object:
    from matplotlib.lines import Line2D

    return Line2D([], [], **{"linestyle": "", **style})


def _patch(colour: str, label: str) -> object:
    from matplotlib.patches import Patch

    return Patch(color=colour, label=label)
