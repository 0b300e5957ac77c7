"""``python -m cupy_lstm forecast``: the flow of a run and what it says."""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy

from cupy_lstm.backend import import_module
from cupy_lstm.forecast.device import choose_module
from cupy_lstm.forecast.errors import DataError
from cupy_lstm.forecast.experiment import (
    LEVEL,
    MODEL_NAME,
    forecast_future,
    judge,
    prepare,
    train,
)
from cupy_lstm.forecast.files import check_folder
from cupy_lstm.forecast.options import (
    built_in_name,
    require_packages,
    series_for_model,
    settings_of,
    training_series,
)
from cupy_lstm.forecast.picture import draw
from cupy_lstm.forecast.report import Backtest, Outlook, forecast_table, score_lines
from cupy_lstm.forecast.series import Series
from cupy_lstm.forecast.spacing import show_time
from cupy_lstm.forecast.storage import Configuration, load_model, save_model
from cupy_lstm.io.files import Writer, write_together

DESCRIPTION = """Train an LSTM on a time series, judge it on the last fifth of the rows against
the naive, seasonal-naive and drift forecasts, forecast what comes after the last row, and write
forecast.csv, forecast.png and model.safetensors. Without --data, a real series that statsmodels
carries is used. The rows must be complete, in order of time and regularly spaced."""

TABLE, PICTURE, MODEL = "forecast.csv", "forecast.png", "model.safetensors"
FAILURE, INTERRUPTED = 2, 130

Say = Callable[[str], None]


def run(arguments: argparse.Namespace) -> int:
    """Do what the options say.

    Returns
    -------
    int
        0; 2 after an error that the user can put right, said in a sentence on stderr; 130 after
        an interrupt. Unless it is 0, no file was written or changed.
    """
    say: Say = (lambda text: None) if arguments.quiet else (lambda text: print(text, flush=True))
    try:
        require_packages(arguments)
        if arguments.predict is None:
            _train_and_forecast(arguments, say)
        else:
            _predict(arguments, say)
    except (DataError, FloatingPointError) as error:
        print(f"cupy_lstm forecast: {error}", file=sys.stderr)
        return FAILURE
    except MemoryError as error:
        print(f"cupy_lstm forecast: not enough memory: {error}", file=sys.stderr)
        return FAILURE
    except KeyboardInterrupt:
        print("cupy_lstm forecast: interrupted, nothing was written", file=sys.stderr)
        return INTERRUPTED
    return 0


def _train_and_forecast(arguments: argparse.Namespace, say: Say) -> None:
    check_folder(arguments.out, (TABLE, PICTURE, MODEL))
    series, settings = training_series(arguments), settings_of(arguments)
    setup = prepare(series, settings)
    module, place = choose_module(arguments.xp)
    split = setup.split
    estimated = " (estimated)" if settings.period is None else ""
    say(
        f"{_describe(series)}\n"
        f"training on {split.validation} rows, validation on {split.test - split.validation}, "
        f"test on {split.end - split.test}, on {place}\n"
        f"horizon {settings.horizon}, context {settings.context}, "
        f"season {setup.period}{estimated}, seed {settings.seed}\n"
        "training two models, one that sees changes since the last row, one that sees levels"
    )
    began = time.perf_counter()
    xp = import_module(module)
    model, history = train(series, setup, settings, xp, progress=not arguments.quiet)
    view = "changes" if model.centre is None else "levels"
    say(
        f"trained in {time.perf_counter() - began:.1f} s; best on the validation part: "
        f"the model that sees {view}, epoch {history.best_epoch + 1}\n"
    )
    findings = judge(series, setup, model)
    say("\n".join(score_lines(findings.scores, MODEL_NAME)))
    say(
        f"The {LEVEL:.0%} interval of the {MODEL_NAME}, from its validation errors, holds "
        f"{findings.coverage:.1%} of the true values of the test part.\n"
    )
    configuration = Configuration(
        source=series.source,
        built_in=built_in_name(arguments),
        time=series.time,
        columns=series.columns,
        spacing=str(series.spacing),
        step=series.spacing.length,
        context=settings.context,
        horizon=settings.horizon,
        hidden_size=settings.hidden_size,
        seed=settings.seed,
        scale=tuple(setup.scale.tolist()),
        centre=None if model.centre is None else tuple(model.centre.tolist()),
        level=LEVEL,
        half_widths=tuple(findings.half_widths.tolist()),
    )
    backtest = Backtest(split, findings.test)
    outlook = Outlook(series, backtest, findings.future, findings.half_widths, LEVEL)
    writers = _writers(outlook) | {MODEL: lambda path: save_model(path, model, configuration)}
    _write(arguments.out, writers, say)


def _predict(arguments: argparse.Namespace, say: Say) -> None:
    check_folder(arguments.out, (TABLE, PICTURE))
    module, place = choose_module(arguments.xp)
    model, configuration = load_model(arguments.predict, module)
    series = series_for_model(arguments, configuration)
    say(
        f"{_describe(series)}\nforecasting {configuration.horizon} steps from the last "
        f"{configuration.context} rows with {arguments.predict}, on {place}\n"
    )
    future = forecast_future(series, configuration.context, model)
    half_widths = numpy.array(configuration.half_widths)
    outlook = Outlook(series, None, future, half_widths, configuration.level)
    _write(arguments.out, _writers(outlook), say)


def _describe(series: Series) -> str:
    first, last = show_time(series.times[0]), show_time(series.times[-1])
    return (
        f"{series.source}: {', '.join(series.columns)}, {len(series.times)} rows "
        f"from {first} to {last}, one every {series.spacing}"
    )


def _writers(outlook: Outlook) -> dict[str, Writer]:
    return {
        TABLE: lambda path: forecast_table(outlook).to_csv(path, index=False),
        PICTURE: lambda path: draw(path, outlook),
    }


def _write(folder: Path, writers: dict[str, Writer], say: Say) -> None:
    try:
        write_together(folder, writers)
    except OSError as error:
        raise DataError(f"cannot write into {folder}: {error.strerror or error}") from None
    say(f"wrote {', '.join(str(folder / name) for name in writers)}")
