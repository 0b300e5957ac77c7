"""The model file: weights and configuration in one safetensors file, no pickle."""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy

from cupy_lstm.backend import HostArray
from cupy_lstm.forecast.errors import DataError
from cupy_lstm.forecast.model import Forecaster
from cupy_lstm.forecast.series import BUILT_IN
from cupy_lstm.io.tensors import read_tensors, tensors_as_bytes

FORMAT = "cupy_lstm forecast 1"
"""Key of the configuration in the metadata; a change of either makes it the next number."""


@dataclass(frozen=True)
class Configuration:
    """Everything a forecast needs beside the weights.

    Attributes
    ----------
    source : str
        What the model was trained on, in words.
    built_in : str or None
        Name of the built-in series it was trained on, if it was one.
    time : str
        Name of the time column.
    columns : tuple of str
        Names of the value columns, the target first.
    spacing : str
        Time from one row to the next, in words.
    step : float
        The same as a number, see `Spacing.length`.
    context, horizon, hidden_size, seed : int
        Rows looked back on, steps looked ahead, hidden features, seed of the training.
    scale : tuple of float
        Typical change of each column.
    centre : tuple of float or None
        Mean of each column in training, if the model sees levels; None if it sees changes.
    level : float
        Nominal coverage of the interval.
    half_widths : tuple of float
        Half width of the interval at each step, in the target's unit.
    """

    source: str
    built_in: str | None
    time: str
    columns: tuple[str, ...]
    spacing: str
    step: float
    context: int
    horizon: int
    hidden_size: int
    seed: int
    scale: tuple[float, ...]
    centre: tuple[float, ...] | None
    level: float
    half_widths: tuple[float, ...]


def save_model(path: Path, forecaster: Forecaster, configuration: Configuration) -> None:
    """Write weights and configuration."""
    contents = tensors_as_bytes(
        forecaster.state_dict(), {FORMAT: json.dumps(asdict(configuration))}
    )
    path.write_bytes(contents)


def load_model(path: Path, xp: str) -> tuple[Forecaster, Configuration]:
    """Read what `save_model` wrote.

    Parameters
    ----------
    path : Path
        The file.
    xp : str
        ``"numpy"`` or ``"cupy"``, where the weights go.

    Raises
    ------
    DataError
        If the file cannot be read, is damaged, or is no model of the forecast command.
    """
    weights, metadata = _read(path)
    if FORMAT not in metadata:
        raise DataError(f"{path} is not a model that this command has written")
    try:
        configuration = _parse(metadata[FORMAT])
        hidden_size = configuration.hidden_size
        # Before anything is allocated whose size only the configuration vouches for.
        if weights["lstm.weight_hh_l0"].shape != (4 * hidden_size, hidden_size):
            raise ValueError("its weights do not have the size that its configuration says")
        if not all(numpy.isfinite(weight).all() for weight in weights.values()):
            raise ValueError("it holds weights that are not finite")
        centre = configuration.centre
        forecaster = Forecaster(
            numpy.array(configuration.scale),
            configuration.horizon,
            hidden_size,
            centre=None if centre is None else numpy.array(centre),
            xp=xp,
            seed=0,
        )
        missing, unexpected = forecaster.set_state_dict(weights)
        if missing or unexpected:
            raise ValueError(f"weights are missing or unknown: {', '.join(missing + unexpected)}")
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} is a damaged model: {error}") from None
    return forecaster, configuration


def _read(path: Path) -> tuple[dict[str, HostArray], dict[str, str]]:
    try:
        return read_tensors(path)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from None
    except ValueError as error:
        raise DataError(str(error)) from None


def _parse(text: str) -> Configuration:
    """Return a configuration from JSON, every field of which has the right type and size."""
    values = json.loads(text)
    if not isinstance(values, dict) or values.keys() != {f.name for f in fields(Configuration)}:
        raise ValueError("its configuration lacks fields or has unknown ones")
    tuples = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
    read = Configuration(**(values | tuples))
    columns = len(read.columns)
    consistent = (
        all(isinstance(text, str) for text in (read.source, read.time, read.spacing))
        and (read.built_in is None or read.built_in in BUILT_IN)
        and all(type(n) is int and n > 0 for n in (read.context, read.horizon, read.hidden_size))
        and type(read.seed) is int
        and isinstance(read.columns, tuple)
        and all(isinstance(column, str) for column in read.columns)
        and _are_numbers(read.scale, columns)
        and min(read.scale) > 0
        and (read.centre is None or _are_numbers(read.centre, columns))
        and _are_numbers((read.step, read.level), 2)
        and _are_numbers(read.half_widths, read.horizon)
        and min(read.half_widths) >= 0
    )
    if not consistent:
        raise ValueError("its configuration contradicts itself")
    return read


def _are_numbers(values: Any, count: int) -> bool:
    return (
        isinstance(values, tuple)
        and len(values) == count > 0
        and all(isinstance(value, float) and numpy.isfinite(value) for value in values)
    )
