"""What the model is shown at a forecast origin, and what it should say there."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy

from cupy_lstm.backend import Array, HostArray, array_module
from cupy_lstm.forecast.evaluation import truth_at
from cupy_lstm.forecast.model import ForecastModel
from cupy_lstm.forecast.norms import Norms
from cupy_lstm.forecast.panel import Panel
from cupy_lstm.modes import no_grad
from cupy_lstm.windows import Batches, Inputs, sliding_windows

BATCH = 1024
"""Windows forecast at once, which bounds the memory of a forecast over a long test part."""


@dataclass(frozen=True)
class Sight:
    """The series as a model sees them.

    An origin is the row of the panel that a forecast begins at; the window of the origin are the
    `context` rows before it, which must belong to the same series, as must the steps ahead.

    Attributes
    ----------
    panel : Panel
        The series.
    norms : Norms
        Of these series.
    context : int
        Rows of a window.
    """

    panel: Panel
    norms: Norms
    context: int

    @cached_property
    def windows(self) -> Array:
        """A view [N - context + 1, context, C] of all windows, also of those across two series."""
        return sliding_windows(self.panel.values, self.context)

    def origins(self, of_each: "list[HostArray]") -> HostArray:
        """Return as rows of the panel the origins that are counted within each series."""
        pairs = zip(self.panel.starts[:-1], of_each, strict=True)
        return numpy.concatenate([start + origins for start, origins in pairs])

    def before(self, origins: Array) -> tuple[Array, Array, Array]:
        """Return what the model is called with at origins [B], on the device of the panel."""
        series = self.panel.series[origins - 1]
        windows = self.windows[origins - self.context]
        return windows, self.norms.centre[series], self.norms.scale[series]

    def ahead(self, origins: Array, horizon: int) -> Array:
        """Return the changes [B, horizon], float32, that the model should say at origins [B]."""
        target = self.panel.values[:, 0]
        changes = truth_at(target, origins, horizon) - target[origins - 1, None]
        scale = self.norms.scale[self.panel.series[origins - 1], :1]
        return (changes / scale).astype("float32")


class OriginBatches(Batches):
    """Batches of windows with their norms, and of changes; only those of a batch are made.

    Parameters
    ----------
    sight : Sight
        The series.
    origins : array of int [N]
        On the host.
    horizon : int
        Number of steps.
    batch_size, shuffle, seed
        As of `Batches`.
    """

    def __init__(
        self,
        sight: Sight,
        origins: HostArray,
        horizon: int,
        batch_size: int,
        *,
        shuffle: bool = False,
        seed: int | None = None,
    ) -> None:
        rows = array_module(sight.panel.values).asarray(origins)
        super().__init__(rows, sight.ahead(rows, horizon), batch_size, shuffle=shuffle, seed=seed)
        self._sight = sight

    def __iter__(self) -> Iterator[tuple[Inputs, Array]]:
        """Begin the next epoch: yield ((windows, centre, scale), changes)."""
        return ((self._sight.before(batch[0]), batch[1]) for batch in super().__iter__())


def forecast_from(model: ForecastModel, sight: Sight, origins: HostArray) -> Array:
    """Return forecasts [N, horizon], float64, in the unit of each series, on its device.

    Parameters
    ----------
    model : ForecastModel
        On the device of the series.
    sight : Sight
        The series.
    origins : array of int [N]
        On the host; one may lie just after the last row of its series.
    """
    xp = array_module(sight.panel.values)
    blocks = []
    with no_grad():
        for start in range(0, len(origins), BATCH):
            windows, centre, scale = sight.before(xp.asarray(origins[start : start + BATCH]))
            change = model(windows, centre, scale).astype("float64") * scale[:, :1]
            blocks.append(windows[:, -1, :1] + change)
    return xp.concatenate(blocks)
