"""Training of a forecast: learn on the first rows, choose on the validation part, keep its errors.

`_train` is the one place that calls `cupy_lstm.training.fit`.
"""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from types import ModuleType

import numpy

from cupy_lstm.backend import Array, HostArray, array_module, require_same_place, to_host
from cupy_lstm.distributed.launcher import launched
from cupy_lstm.forecast.errors import DataError
from cupy_lstm.forecast.evaluation import (
    check_rows,
    conformal_rank,
    interval_half_widths,
    origins_between,
    training_rows,
    truth_at,
)
from cupy_lstm.forecast.model import ForecastModel, View
from cupy_lstm.forecast.norms import Norms, check_reach, learn_norms
from cupy_lstm.forecast.panel import Panel
from cupy_lstm.forecast.settings import Settings
from cupy_lstm.forecast.sight import OriginBatches, Sight, forecast_from
from cupy_lstm.history import History
from cupy_lstm.loss import huber_loss
from cupy_lstm.optimizer import Adam
from cupy_lstm.training import fit

BATCH_SIZES = (32, 512)
"""Smallest and largest; between them, an epoch has at least `STEPS` steps."""
STEPS = 64
VALIDATION_BATCH_SIZE = 1024


@dataclass(frozen=True)
class Learned:
    """What a training has found out: all that a forecast needs.

    Attributes
    ----------
    model : ForecastModel
        With the weights of its best epoch.
    norms : Norms
        Of each series.
    context : int
        Rows the model looks back on.
    training_rows : tuple of int
        For each series how many rows, the first ones, model and norms were learned from.
    half_widths : array [S, horizon]
        Of the interval of each series at each step; on the host.
    history : History
        Of the training of the model.
    last : Panel
        The last `context` rows of each series.
    """

    model: ForecastModel
    norms: Norms
    context: int
    training_rows: tuple[int, ...]
    half_widths: HostArray
    history: History
    last: Panel

    def to(self, xp: ModuleType) -> "Learned":
        """Move the model, and return all of this where arrays of `xp` are."""
        norms, last = self.norms.to(xp), self.last.to(xp)
        return replace(self, model=self.model.to(xp), norms=norms, last=last)

    def check(self, panel: Panel) -> None:
        """Raise unless the series are like those that all of this was learned from.

        Raises
        ------
        TypeError
            If they live elsewhere.
        DataError
            If they differ in their number or in that of their features, in the names or the order
            of columns that pandas names, one is too short, or a value is out of all proportion.
        """
        scale = self.norms.scale
        require_same_place("y", panel.values, scale, "the weights")
        series, columns = scale.shape
        if len(panel.lengths) != series:
            raise DataError(f"y holds {len(panel.lengths)} series, but fit was given {series}")
        found = panel.values.shape[1]
        if found != columns:
            raise DataError(f"X has {found - 1} features, but fit was given {columns - 1}")
        for ours, theirs in zip(self.last.labels, panel.labels, strict=True):
            for known, came in zip(ours, theirs, strict=True):
                if None not in (known, came) and known != came:
                    raise DataError(
                        f"column {came!r} is where fit was given {known!r}: the columns of y and X "
                        "must have the names and the order that they had there"
                    )
        for names, rows in zip(panel.names, panel.lengths, strict=True):
            if rows < self.context:
                raise DataError(
                    f"{names[0]} has {rows} rows, but the model looks back on {self.context}"
                )
        check_reach(panel, self.norms)

    def ahead(self, panel: Panel) -> Array:
        """Return the forecasts [S, horizon] of what comes after the last row of each series."""
        return forecast_from(self.model, Sight(panel, self.norms, self.context), panel.starts[1:])

    def rolled(self, panel: Panel, origins: list[HostArray]) -> Iterator[tuple[Array, Array]]:
        """Yield truth and forecasts, [N, horizon], from the origins counted within each series."""
        return rolled(self.model, Sight(panel, self.norms, self.context), origins)


def learn(panel: Panel, settings: Settings) -> Learned:
    """Train a model of each view on the first rows of all series; keep the better one.

    Parameters
    ----------
    panel : Panel
        The series.
    settings : Settings
        How.

    Raises
    ------
    DataError
        If a series is too short, constant, or too extreme to be scaled.
    FloatingPointError
        As of `fit`.

    Warns
    -----
    UserWarning
        If the validation part of a series holds too few forecasts for intervals of the level.
    """
    horizon, context, fraction = settings.horizon, settings.context, settings.validation_fraction
    for names, rows in zip(panel.names, panel.lengths, strict=True):
        check_rows(names[0], rows, fraction, context, horizon)
    training = [training_rows(rows, fraction) for rows in panel.lengths]
    norms = learn_norms(panel, training, horizon)
    _warn_of_few_errors(panel, training, settings)
    sight = Sight(panel, norms, context)
    learned = [origins_between(context, rows, horizon) for rows in training]
    validated = [
        origins_between(first, rows, horizon)
        for first, rows in zip(training, panel.lengths, strict=True)
    ]
    trained = [
        _train(view, sight, sight.origins(learned), sight.origins(validated), settings)
        for view in settings.views
    ]
    model, history = min(trained, key=lambda pair: min(pair[1].validation_loss))
    half_widths = [
        interval_half_widths(to_host(truth), to_host(forecasts), settings.level)
        for truth, forecasts in rolled(model, sight, validated)
    ]
    return Learned(
        model=model,
        norms=norms,
        context=context,
        training_rows=tuple(training),
        half_widths=numpy.stack(half_widths),
        history=history,
        last=panel.tail(context),
    )


def rolled(
    model: ForecastModel, sight: Sight, origins: list[HostArray]
) -> Iterator[tuple[Array, Array]]:
    """Yield truth and forecasts, [N, horizon], from the origins counted within each series."""
    rows = sight.origins(origins)
    forecasts = forecast_from(model, sight, rows)
    at = array_module(forecasts).asarray(rows)
    truth = truth_at(sight.panel.values[:, 0], at, forecasts.shape[1])
    stop = 0
    for of_each in origins:
        start, stop = stop, stop + len(of_each)
        yield truth[start:stop], forecasts[start:stop]


def _warn_of_few_errors(panel: Panel, training: list[int], settings: Settings) -> None:
    """Warn, once, if the errors of a series will be too few for the level of the intervals."""
    for names, first, rows in zip(panel.names, training, panel.lengths, strict=True):
        count = len(origins_between(first, rows, settings.horizon))
        if conformal_rank(count, settings.level) > count:
            warnings.warn(
                f"the validation part of {names[0]} holds {count} forecasts, too few for intervals "
                f"of level {settings.level:g}: they reach as far as the largest error there, and "
                f"are of level {count / (count + 1):.2g} at best",
                UserWarning,
                stacklevel=4,
            )
            return


def _train(
    view: View, sight: Sight, learned: HostArray, validated: HostArray, settings: Settings
) -> tuple[ForecastModel, History]:
    """Train a model that sees one view; it comes back in evaluation mode."""
    horizon, batch_size = settings.horizon, settings.batch_size
    if batch_size is None:
        smallest, largest = BATCH_SIZES
        batch_size = min(max(smallest, len(learned) // STEPS), largest)
    model = ForecastModel(
        sight.panel.values.shape[1],
        horizon,
        settings.hidden_size,
        num_layers=settings.num_layers,
        dropout=settings.dropout,
        view=view,
        xp=array_module(sight.panel.values),
        seed=settings.model_seed,
    ).eval()
    history = fit(
        model,
        huber_loss,
        Adam(settings.learning_rate, parameters=model.parameters()),
        OriginBatches(sight, learned, horizon, batch_size, shuffle=True, seed=settings.order_seed),
        OriginBatches(sight, validated, horizon, VALIDATION_BATCH_SIZE),
        epochs=settings.epochs,
        patience=settings.patience,
        callbacks=settings.callbacks,
        progress=settings.progress,
        communicator=launched(model.xp),
    )
    return model, history
