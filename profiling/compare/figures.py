"""From measurements to figures, and from figures to which goals are met: pure functions."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import geometric_mean, median

import numpy as np

from compare.case import Case
from compare.processes import OURS, Measurement


@dataclass(frozen=True)
class Figures:
    """What the rounds of a case in a mode say.

    Attributes
    ----------
    case, mode
        What was timed.
    ms : dict of float
        Median over the rounds, by library.
    memory_mb : dict of (float or None)
        By library; None where it could not be measured.
    best_peer : str or None
        The fastest of the others; None if there was none.
    ratios : tuple of float
        Time of the best peer over ours, in each round.
    share : float
        Our arithmetic (`Case.flops`) per time over the rate of NumPy's matrix product, the median
        over the rounds.
    """

    case: Case
    mode: str
    ms: dict[str, float]
    memory_mb: dict[str, float | None]
    best_peer: str | None
    ratios: tuple[float, ...]
    share: float

    @property
    def ratio(self) -> float | None:
        """Median of the ratios."""
        return median(self.ratios) if self.ratios else None

    @property
    def quartiles(self) -> tuple[float, float] | None:
        """First and third quartile of the ratios."""
        if not self.ratios:
            return None
        low, high = np.percentile(self.ratios, (25, 75))
        return float(low), float(high)

    @property
    def torch_memory_ratio(self) -> float | None:
        """Memory of PyTorch over ours."""
        ours, torchs = self.memory_mb[OURS], self.memory_mb.get("torch")
        return None if ours is None or torchs is None else torchs / ours


@dataclass(frozen=True)
class Goal:
    """A bound on a figure of the float32 cases of a mode.

    Attributes
    ----------
    text : str
        What is bounded.
    mode : str
        The mode.
    figure : str
        The attribute of `Figures`.
    at_least : float
        The bound.
    shapes : callable
        Says which cases count; default all.
    combine : callable
        What the figures of all cases come to; default the least.
    """

    text: str
    mode: str
    figure: str
    at_least: float
    shapes: Callable[[Case], bool] = lambda case: True
    combine: Callable[[Iterable[float]], float] = min

    def measured(self, figures: Iterable[Figures]) -> dict[str, float]:
        """Return the figure of each case that counts, by its name."""
        values = {
            entry.case.name: getattr(entry, self.figure)
            for entry in figures
            if entry.mode == self.mode and entry.case.dtype == "float32" and self.shapes(entry.case)
        }
        return {name: value for name, value in values.items() if value is not None}

    def reached(self, figures: Iterable[Figures]) -> float | None:
        """Return what the figures come to, or None where nothing was measured."""
        measured = self.measured(figures)
        return self.combine(measured.values()) if measured else None

    def below(self, figures: Iterable[Figures]) -> list[str]:
        """Return the names of the cases below the bound."""
        measured = self.measured(figures)
        return [name for name, value in measured.items() if value < self.at_least]


def summarize(measurements: Iterable[Measurement]) -> list[Figures]:
    """Return the figures of each case and mode, in the order in which they were measured."""
    groups: dict[tuple[Case, str], list[Measurement]] = defaultdict(list)
    for measurement in measurements:
        groups[measurement.case, measurement.mode].append(measurement)
    return [_figures(case, mode, group) for (case, mode), group in groups.items()]


def _figures(case: Case, mode: str, group: list[Measurement]) -> Figures:
    times: dict[str, dict[int, float]] = defaultdict(dict)
    for entry in group:
        times[entry.library][entry.round] = entry.ms
    ms = {library: median(by_round.values()) for library, by_round in times.items()}
    best = min(ms.keys() - {OURS}, key=ms.__getitem__, default=None)
    ours = times[OURS]
    flops = case.flops(mode) / (case.T if mode == "stream" else 1)
    return Figures(
        case,
        mode,
        ms,
        {entry.library: entry.memory_mb for entry in group},
        best,
        tuple(times[best][number] / ours[number] for number in ours) if best else (),
        median(flops / e.ms / e.gemm_gflops / 1e6 for e in group if e.library == OURS),
    )


def mean_ratio(figures: Iterable[Figures], mode: str, dtype: str) -> float | None:
    """Return the geometric mean of the ratios of a mode and dtype, or None without any."""
    ratios = [
        entry.ratio
        for entry in figures
        if (entry.mode, entry.case.dtype) == (mode, dtype) and entry.ratio is not None
    ]
    return geometric_mean(ratios) if ratios else None
