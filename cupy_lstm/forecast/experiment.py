"""One honest run: train on the past, choose on the validation part, judge on the test part."""

from dataclasses import dataclass
from types import ModuleType

import numpy

from cupy_lstm.backend import Array, HostArray
from cupy_lstm.forecast.baselines import baselines, estimate_period
from cupy_lstm.forecast.errors import DataError
from cupy_lstm.forecast.evaluation import (
    Score,
    Split,
    change_scale,
    coverage,
    interval_half_widths,
    score,
    split_rows,
    truth_at,
)
from cupy_lstm.forecast.model import Forecaster
from cupy_lstm.forecast.series import Series
from cupy_lstm.forecast.spacing import show_time
from cupy_lstm.history import History
from cupy_lstm.loss import huber_loss
from cupy_lstm.optimizer import Adam
from cupy_lstm.training import fit
from cupy_lstm.windows import Batches, sliding_windows

MODEL_NAME = "LSTM"
LEVEL = 0.9
"""Nominal coverage of the interval."""

SCALES = (1e-100, 1e100)
"""Between these the squares of values are numbers."""

REACH = 1e15
"""Typical changes that a value may be away from zero: beyond, float64 does not resolve them."""

# Chosen once, by the error on the validation part of the built-in CO2 series.
LEARNING_RATE = 5e-3
PATIENCE = 30
BATCH_SIZES = (32, 512)
"""Smallest and largest; between them, an epoch has at least `STEPS` steps."""
STEPS = 64
VALIDATION_BATCH_SIZE = 1024


@dataclass(frozen=True)
class Settings:
    """What a user may choose about a run.

    Attributes
    ----------
    context, horizon : int
        Rows a forecast looks back on, and steps it looks ahead.
    hidden_size : int
        Hidden features of the LSTM.
    epochs : int
        Most passes over the training part.
    seed : int
        Seed of the initial weights and of the order of the windows.
    period : int or None
        Rows in a season, for the baselines; None: estimated on the training part.
    """

    context: int
    horizon: int
    hidden_size: int
    epochs: int
    seed: int
    period: int | None


@dataclass(frozen=True)
class Setup:
    """What is known before training.

    Attributes
    ----------
    split : Split
        Parts of the series.
    scale : array [F]
        Typical change of each column over the training part.
    period : int
        Rows in a season.
    """

    split: Split
    scale: HostArray
    period: int


@dataclass(frozen=True)
class Findings:
    """What a run has found out.

    Attributes
    ----------
    scores : dict of str to Score
        Of the model and every baseline on the test part, over the same windows, best first.
    test : array [N, horizon]
        The model's forecasts from each test origin.
    future : array [horizon]
        The model's forecast after the last row.
    half_widths : array [horizon]
        Of the interval, from the validation part.
    coverage : float
        Share of the truths of the test part inside the interval.
    """

    scores: dict[str, Score]
    test: HostArray
    future: HostArray
    half_widths: HostArray
    coverage: float


def prepare(series: Series, settings: Settings) -> Setup:
    """Split a series and learn scale and season from its training part alone.

    Raises
    ------
    DataError
        If there are too few rows, the period is too long, or a column is constant or too
        extreme to be scaled over the training part.
    """
    split = split_rows(len(series.times), settings.context, settings.horizon)
    training = series.values[: split.validation]
    constant = (training == training[0]).all(axis=0)
    if constant.any():
        raise DataError(
            f"column {series.columns[int(constant.argmax())]!r} is constant over the training "
            f"part, the first {split.validation} rows; there is nothing to learn from it"
        )
    scale = change_scale(training, settings.horizon)
    check_reach(series, scale)
    if settings.period is None:
        period = estimate_period(training[:, 0], settings.horizon)
    else:
        period = settings.period
    if period >= split.validation:
        raise DataError(
            f"--period is {period}, but the training part has {split.validation} rows; "
            "it must be shorter"
        )
    return Setup(split, scale, period)


def check_reach(series: Series, scale: HostArray) -> None:
    """Raise where a value is so far out that the arithmetic would lose or overflow it.

    Parameters
    ----------
    series : Series
        The series.
    scale : array [F]
        Typical change of each column.

    Raises
    ------
    DataError
        If a scale is beyond `SCALES`, or a value more than `REACH` scales from zero.
    """
    smallest, largest = SCALES
    for name, values, step in zip(series.columns, series.values.T, scale, strict=True):
        if not smallest < step < largest:
            raise DataError(
                f"the values of column {name!r} are too large or too small: change their unit"
            )
        far = numpy.abs(values) > REACH * step
        if far.any():
            row = int(far.argmax())
            raise DataError(
                f"column {name!r} is {values[row]:g} in row {row + 1} "
                f"({show_time(series.times[row])}), which is out of all proportion to its usual "
                f"change of {step:g}"
            )


def train(
    series: Series, setup: Setup, settings: Settings, xp: ModuleType, progress: bool
) -> tuple[Forecaster, History]:
    """Train a model of either view on the training part; keep the better on validation.

    Parameters
    ----------
    series : Series
        The series.
    setup : Setup
        As `prepare` made it.
    settings : Settings
        The user's choices.
    xp : module
        NumPy or CuPy.
    progress : bool
        Whether to show progress bars.

    Returns
    -------
    model : Forecaster
        With the weights of its best epoch.
    history : History
        Of its training.
    """
    split = setup.split
    model_seed, order_seed = numpy.random.SeedSequence(settings.seed).generate_state(2).tolist()
    windows = context_windows(series, split.context, xp)

    def batches(origins: HostArray, batch_size: int, shuffle: bool) -> Batches:
        last = series.target[origins - 1, None]
        changes = (truth_at(series.target, origins, split.horizon) - last) / setup.scale[0]
        return Batches(
            _windows_before(windows, origins, split.context),
            xp.asarray(changes, dtype="float32"),
            batch_size,
            shuffle=shuffle,
            seed=order_seed,
        )

    smallest, largest = BATCH_SIZES
    batch_size = min(max(smallest, len(split.training_origins) // STEPS), largest)
    trained = []
    for centre in (None, series.values[: split.validation].mean(axis=0)):
        model = Forecaster(
            setup.scale, split.horizon, settings.hidden_size, centre=centre, xp=xp, seed=model_seed
        )
        history = fit(
            model,
            huber_loss,
            Adam(LEARNING_RATE, parameters=model.parameters()),
            batches(split.training_origins, batch_size, shuffle=True),
            batches(split.validation_origins, VALIDATION_BATCH_SIZE, shuffle=False),
            epochs=settings.epochs,
            patience=PATIENCE,
            progress=progress,
        )
        trained.append((model, history))
    return min(trained, key=lambda pair: min(pair[1].validation_loss))


def judge(series: Series, setup: Setup, model: Forecaster) -> Findings:
    """Forecast the test part and the future, next to the baselines."""
    split = setup.split
    windows = context_windows(series, split.context, model.xp)

    def forecast(origins: HostArray) -> HostArray:
        return model.forecast(_windows_before(windows, origins, split.context))

    def truth(origins: HostArray) -> HostArray:
        return truth_at(series.target, origins, split.horizon)

    half_widths = interval_half_widths(
        truth(split.validation_origins), forecast(split.validation_origins), LEVEL
    )
    origins = split.test_origins
    test = forecast(origins)
    rivals = baselines(series.target, origins, split.horizon, setup.period)
    scores = {
        name: score(truth(origins), values) for name, values in {MODEL_NAME: test, **rivals}.items()
    }
    return Findings(
        scores=dict(sorted(scores.items(), key=lambda item: item[1].mae)),
        test=test,
        future=forecast_future(series, split.context, model),
        half_widths=half_widths,
        coverage=coverage(truth(origins), test, half_widths),
    )


def forecast_future(series: Series, context: int, model: Forecaster) -> HostArray:
    """Return the model's forecast [horizon] of what comes after the last row.

    Raises
    ------
    DataError
        As `check_reach`, by the scale of the model.
    """
    check_reach(series, model.scale)
    return numpy.asarray(model.forecast(context_windows(series, context, model.xp)[-1:])[0])


def context_windows(series: Series, context: int, xp: ModuleType) -> Array:
    """Return a view [n - context + 1, context, F] of all the rows a forecast can look back on."""
    return sliding_windows(xp.asarray(series.values), context)


def _windows_before(windows: Array, origins: HostArray, context: int) -> Array:
    """Return a view of the windows that end just before each of some successive origins."""
    first = int(origins[0]) - context
    return windows[first : first + len(origins)]
