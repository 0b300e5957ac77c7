"""The options of the forecast command and what they mean."""

import argparse
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from cupy_lstm.forecast.errors import DataError
from cupy_lstm.forecast.notes import Notes
from cupy_lstm.forecast.series import BUILT_IN, Series, built_in_series, read_series
from cupy_lstm.forecast.spacing import TOLERANCE
from cupy_lstm.info import remedy

DEFAULT_SERIES = "co2"
HORIZON, HIDDEN_SIZE, EPOCHS, SEED = 12, 32, 300, 0
MODULES = {"scikit-learn": "sklearn"}
"""Modules that are not called as the package that brings them."""

TRAINING_OPTIONS = ("horizon", "context", "hidden_size", "epochs", "seed", "period")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the options of the command."""
    data = parser.add_argument_group("the series")
    data.add_argument("--data", type=Path, metavar="FILE", help="a .csv or .parquet file")
    data.add_argument("--time", metavar="COLUMN", help="its column of dates or numbers")
    data.add_argument("--target", metavar="A,B", help="its column to forecast, or several: A,B")
    data.add_argument("--features", metavar="A,B", help="more of its columns to look at")
    data.add_argument(
        "--series", choices=BUILT_IN, help=f"without --data (default: {DEFAULT_SERIES})"
    )
    # The training options are None where not given, so that --predict can refuse them.
    model = parser.add_argument_group("the model")
    for option, kind, description in (
        ("--horizon", _positive, f"steps ahead (default: {HORIZON})"),
        ("--context", _positive, "rows to look back on (default: three times the horizon)"),
        ("--hidden-size", _positive, f"units of the LSTM (default: {HIDDEN_SIZE})"),
        ("--epochs", _positive, f"most passes over the training part (default: {EPOCHS})"),
        ("--seed", _seed, f"of weights and order of training (default: {SEED})"),
        ("--period", _positive, "rows in a season, for the baselines (default: estimated)"),
    ):
        model.add_argument(option, type=kind, metavar="N", help=description)
    model.add_argument(
        "--predict",
        type=Path,
        metavar="MODEL",
        help="do not train: forecast with the model.safetensors of an earlier run",
    )
    run = parser.add_argument_group("the run")
    run.add_argument(
        "--xp",
        choices=("auto", "numpy", "cupy"),
        default="auto",
        help="array module (default: cupy where a GPU works, else numpy)",
    )
    run.add_argument(
        "--out", type=Path, default=Path(), metavar="DIR", help="where to write (default: here)"
    )
    run.add_argument("--quiet", action="store_true", help="print nothing but errors")


def parameters_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the parameters of the `LSTMForecaster` of a training run, defaults filled in."""

    def given(name: str, default: int) -> int:
        value: int | None = getattr(arguments, name)
        return default if value is None else value

    horizon = given("horizon", HORIZON)
    return {
        "horizon": horizon,
        "context": given("context", 3 * horizon),
        "hidden_size": given("hidden_size", HIDDEN_SIZE),
        "epochs": given("epochs", EPOCHS),
        "random_state": given("seed", SEED),
    }


def require_packages(arguments: argparse.Namespace) -> None:
    """Raise unless the optional packages that this run needs are installed.

    Raises
    ------
    DataError
        If one is missing; the message says what to install.
    """
    packages = ["pandas", "matplotlib", "tqdm", "safetensors", "scikit-learn"]
    if arguments.data is None:
        packages.append("statsmodels")
    elif arguments.data.suffix.lower() == ".parquet":
        packages.append("pyarrow")
    missing = [package for package in packages if find_spec(MODULES.get(package, package)) is None]
    if missing:
        raise DataError(f"{', '.join(missing)} must be installed: {remedy('forecast')}")


def built_in_name(arguments: argparse.Namespace) -> str | None:
    """Return the name of the built-in series a training run uses, None for a file."""
    return None if arguments.data else arguments.series or DEFAULT_SERIES


def training_series(arguments: argparse.Namespace) -> Series:
    """Return the series to train on.

    Raises
    ------
    DataError
        If the options contradict each other or the series is unfit.
    """
    _check_source(arguments)
    name = built_in_name(arguments)
    if name:
        return built_in_series(name)
    for option in ("time", "target"):
        if getattr(arguments, option) is None:
            raise DataError(f"--data needs --{option}, the name of a column")
    targets, features = _names(arguments.target), _names(arguments.features)
    return read_series(arguments.data, arguments.time, targets, features)


def series_for_model(arguments: argparse.Namespace, notes: Notes, context: int) -> Series:
    """Return the series to forecast with a trained model, checked to be like the one it knows.

    Raises
    ------
    DataError
        If the options contradict each other or the model, or the series is unfit.
    """
    for name in TRAINING_OPTIONS:
        if getattr(arguments, name) is not None:
            option = name.replace("_", "-")
            raise DataError(f"--{option} is for training; the model of --predict has its own")
    _check_source(arguments)
    for option, given, known in (
        ("time", arguments.time, notes.time),
        (
            "target",
            arguments.target and ",".join(_names(arguments.target)),
            ",".join(notes.targets),
        ),
        ("features", arguments.features and _names(arguments.features), list(notes.features)),
    ):
        if given is not None and given != known:
            raise DataError(f"--{option} is {given!r}, but the model was trained with {known!r}")
    built_in: str | None = arguments.series or notes.built_in
    if arguments.data is not None:
        series = read_series(arguments.data, notes.time, notes.targets, notes.features)
    elif built_in is not None:
        series = built_in_series(built_in)
    else:
        raise DataError(f"--data is needed: the model was trained on {notes.source}")
    if (series.targets, series.features) != (notes.targets, notes.features):
        raise DataError(
            f"the model was trained to forecast {', '.join(map(repr, notes.targets))}, "
            f"but --series {built_in} is of {series.targets[0]!r}"
        )
    if abs(series.spacing.length - notes.step) > TOLERANCE * notes.step:
        raise DataError(
            f"the rows of {series.source} are spaced by {series.spacing}, "
            f"but the model was trained on a spacing of {notes.spacing}"
        )
    if len(series.times) < context:
        raise DataError(
            f"the model looks back on {context} rows, but {series.source} has {len(series.times)}"
        )
    return series


def _check_source(arguments: argparse.Namespace) -> None:
    if arguments.data is not None and arguments.series is not None:
        raise DataError("--data and --series exclude each other")
    for option in ("time", "target", "features"):
        if arguments.data is None and getattr(arguments, option) is not None:
            raise DataError(f"--{option} names a column of --data, which is not given")


def _names(text: str | None) -> list[str]:
    """Return the names of columns that commas separate."""
    return [] if text is None else [name.strip() for name in text.split(",")]


def _positive(text: str) -> int:
    return _whole_number(text, 1, 10**6)


def _seed(text: str) -> int:
    return _whole_number(text, 0, 2**63)


def _whole_number(text: str, least: int, most: int) -> int:
    try:
        number = int(text)
    except ValueError:
        number = least - 1
    if not least <= number <= most:
        raise argparse.ArgumentTypeError(
            f"must be a whole number from {least} to {most}, received {text!r}"
        )
    return number
