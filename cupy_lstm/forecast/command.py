"""``python -m cupy_lstm forecast``: the flow of a run and what it says."""

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cupy_lstm.backend import import_module, is_array, to_host
from cupy_lstm.distributed.launcher import launched
from cupy_lstm.forecast.backtest import MODEL_NAME, Backtest
from cupy_lstm.forecast.baselines import estimate_period
from cupy_lstm.forecast.device import choose_module
from cupy_lstm.forecast.errors import DataError
from cupy_lstm.forecast.evaluation import Split, split_rows
from cupy_lstm.forecast.files import check_folder
from cupy_lstm.forecast.norms import learn_norms
from cupy_lstm.forecast.notes import Notes, parsed_notes
from cupy_lstm.forecast.options import (
    built_in_name,
    parameters_of,
    require_packages,
    series_for_model,
    training_series,
)
from cupy_lstm.forecast.panel import read_panel
from cupy_lstm.forecast.picture import draw
from cupy_lstm.forecast.report import Outlook, forecast_table, score_lines
from cupy_lstm.forecast.series import Series
from cupy_lstm.forecast.spacing import show_time
from cupy_lstm.io.files import Writer, write_together

if TYPE_CHECKING:
    import pandas

    from cupy_lstm.estimators import LSTMForecaster

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
        an interrupt. Unless it is 0, no file was written or changed. As one of several processes
        it does not return then, but ends all of them: mpiexec's exit code is 1 whatever it was.
    """
    try:
        communicator = launched()
    except (ImportError, RuntimeError) as error:
        print(f"cupy_lstm forecast: {error}", file=sys.stderr)
        return FAILURE
    code = _run(arguments, communicator.rank == 0)
    if code:
        communicator.abort()  # the others would wait for this one
    return code


def _run(arguments: argparse.Namespace, is_first: bool) -> int:
    """Do what the options say, as one of several processes; the first one speaks and writes."""
    quiet = arguments.quiet or not is_first
    say: Say = (lambda text: None) if quiet else (lambda text: print(text, flush=True))
    try:
        require_packages(arguments)
        forecast = _train_and_forecast if arguments.predict is None else _predict
        writers = forecast(arguments, say)
        if is_first:
            _write(arguments.out, writers, say)
    except (DataError, FloatingPointError) as error:
        print(f"cupy_lstm forecast: {error}", file=sys.stderr, flush=True)
        return FAILURE
    except MemoryError as error:
        print(f"cupy_lstm forecast: not enough memory: {error}", file=sys.stderr, flush=True)
        return FAILURE
    except KeyboardInterrupt:
        print("cupy_lstm forecast: interrupted, nothing was written", file=sys.stderr, flush=True)
        return INTERRUPTED
    return 0


def _train_and_forecast(arguments: argparse.Namespace, say: Say) -> dict[str, Writer]:
    from cupy_lstm.estimators import LSTMForecaster

    check_folder(arguments.out, (TABLE, PICTURE, MODEL))
    series, parameters = training_series(arguments), parameters_of(arguments)
    horizon, context = parameters["horizon"], parameters["context"]
    split = split_rows(len(series.times), context, horizon)
    periods = _periods(series, split, horizon, arguments.period)
    module, place = choose_module(arguments.xp)
    say(
        f"{_describe(series)}\n"
        f"training on {split.validation} rows, validation on {split.test - split.validation}, "
        f"test on {split.end - split.test}, on {place}\n"
        f"horizon {horizon}, context {context}, season {', '.join(map(str, periods))}"
        f"{' (estimated)' if arguments.period is None else ''}, seed {parameters['random_state']}\n"
        "training two models, one that sees changes since the last row, one that sees levels"
    )
    launched(module)  # on several GPUs, takes one before arrays are made
    began = time.perf_counter()
    forecaster = LSTMForecaster(**parameters, progress=not arguments.quiet)
    y, X = _placed(series.y, module), _placed(series.X, module)
    forecaster.fit(y[: split.test], None if X is None else X[: split.test])
    say(
        f"trained in {time.perf_counter() - began:.1f} s; best on the validation part: the model "
        f"that sees {forecaster.view_}, epoch {forecaster.history_.best_epoch + 1}\n"
    )
    backtests = forecaster.backtest(y, X, start=split.test, period=periods)
    for target, backtest in zip(series.targets, backtests, strict=True):
        if len(backtests) > 1:
            say(target)
        say("\n".join(score_lines(backtest.scores, MODEL_NAME)))
        say(
            f"The {forecaster.level:.0%} interval of the {MODEL_NAME}, from its validation errors, "
            f"holds {backtest.coverage:.1%} of the true values of the test part.\n"
        )
    notes = Notes(
        source=series.source,
        built_in=built_in_name(arguments),
        time=series.time,
        targets=series.targets,
        features=series.features,
        spacing=str(series.spacing),
        step=series.spacing.length,
    )
    outlooks = _outlooks(series, forecaster, forecaster.predict(y, X), split, backtests)
    return _writers(outlooks) | {MODEL: lambda path: forecaster.save(path, notes=notes.as_dict())}


def _periods(series: Series, split: Split, horizon: int, given: int | None) -> list[int]:
    """Return the season of each target, after everything is checked that training would refuse."""
    panel, _ = read_panel(series.y, series.X, horizon)
    learn_norms(panel, [split.validation] * len(series.targets), horizon)
    if given is not None and given >= split.validation:
        raise DataError(
            f"--period is {given}, but the training part has {split.validation} rows; "
            "it must be shorter"
        )
    return [
        estimate_period(rows[: split.validation, 0], horizon) if given is None else given
        for rows in panel.rows()
    ]


def _predict(arguments: argparse.Namespace, say: Say) -> dict[str, Writer]:
    from cupy_lstm.estimators import LSTMForecaster

    check_folder(arguments.out, (TABLE, PICTURE))
    module, place = choose_module(arguments.xp)
    try:
        forecaster = LSTMForecaster.load(arguments.predict, xp=module)
    except OSError as error:
        raise DataError(f"cannot read {arguments.predict}: {error.strerror or error}") from None
    except ValueError as error:
        raise DataError(str(error)) from None
    context = forecaster.context_
    notes = parsed_notes(forecaster.notes_, arguments.predict)
    known = (len(forecaster.half_widths_), forecaster.n_features_in_)
    if (len(notes.targets), len(notes.features)) != known:
        raise DataError(f"{arguments.predict} is damaged: its notes contradict what it has learned")
    series = series_for_model(arguments, notes, context)
    say(
        f"{_describe(series)}\nforecasting {forecaster.half_widths_.shape[1]} steps from the last "
        f"{context} rows with {arguments.predict}, on {place}\n"
    )
    future = forecaster.predict(_placed(series.y, module), _placed(series.X, module))
    return _writers(_outlooks(series, forecaster, future))


def _placed(table: "pandas.DataFrame | None", module: str) -> Any:
    """Return a table where the run computes; on the host its names stay with it, for messages."""
    if table is None or module == "numpy":
        return table
    return import_module(module).asarray(table.to_numpy())


def _outlooks(
    series: Series,
    forecaster: "LSTMForecaster",
    future: Any,
    split: Split | None = None,
    backtests: "list[Backtest] | None" = None,
) -> list[Outlook]:
    """Return what is forecast of each target, the future of them all being [horizon, S]."""
    columns = to_host(future) if is_array(future) else future.to_numpy()
    return [
        Outlook(
            series,
            target,
            split,
            None if backtests is None else _on_host(backtests[number]),
            columns[:, number],
            forecaster.half_widths_[number],
            forecaster.level,
        )
        for number, target in enumerate(series.targets)
    ]


def _on_host(backtest: Backtest) -> Backtest:
    return replace(backtest, forecasts=to_host(backtest.forecasts), truth=to_host(backtest.truth))


def _describe(series: Series) -> str:
    first, last = show_time(series.times[0]), show_time(series.times[-1])
    columns = ", ".join([*series.targets, *series.features])
    return (
        f"{series.source}: {columns}, {len(series.times)} rows from {first} to {last}, "
        f"one every {series.spacing}"
    )


def _writers(outlooks: list[Outlook]) -> dict[str, Writer]:
    return {
        TABLE: lambda path: forecast_table(outlooks).to_csv(path, index=False),
        PICTURE: lambda path: draw(path, outlooks),
    }


def _write(folder: Path, writers: dict[str, Writer], say: Say) -> None:
    try:
        write_together(folder, writers)
    except OSError as error:
        raise DataError(f"cannot write into {folder}: {error.strerror or error}") from None
    say(f"wrote {', '.join(str(folder / name) for name in writers)}")
