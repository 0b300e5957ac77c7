"""What the file of a forecaster says about the table it was trained on."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from math import isfinite
from typing import Any

from cupy_lstm.forecast.errors import DataError
from cupy_lstm.forecast.series import BUILT_IN


@dataclass(frozen=True)
class Notes:
    """How to read a table for a forecaster.

    Attributes
    ----------
    source : str
        What it was trained on, in words.
    built_in : str or None
        Name of the built-in series it was trained on, if it was one.
    time : str
        Name of the time column.
    targets, features : tuple of str
        Names of the columns to forecast, and of those to look at.
    spacing : str
        Time from one row to the next, in words.
    step : float
        The same as a number, see `Spacing.length`.
    """

    source: str
    built_in: str | None
    time: str
    targets: tuple[str, ...]
    features: tuple[str, ...]
    spacing: str
    step: float

    def as_dict(self) -> dict[str, Any]:
        """Return them as JSON has them."""
        return asdict(self)


def parsed_notes(values: Mapping[str, Any], path: object) -> Notes:
    """Return what `Notes.as_dict` gave.

    Raises
    ------
    DataError
        If they are not those of the command.
    """
    if not values:
        raise DataError(
            f"{path} was not written by this command: LSTMForecaster.load reads it, in Python"
        )
    if values.keys() != {field.name for field in fields(Notes)}:
        raise DataError(f"{path} is damaged: its notes lack fields or have unknown ones")
    tuples = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
    notes = Notes(**{**values, **tuples})
    columns = (notes.targets, notes.features)
    consistent = (
        all(isinstance(text, str) for text in (notes.source, notes.time, notes.spacing))
        and (notes.built_in is None or notes.built_in in BUILT_IN)
        and all(isinstance(names, tuple) for names in columns)
        and all(isinstance(name, str) for names in columns for name in names)
        and isinstance(notes.step, float)
        and isfinite(notes.step)
    )
    if not consistent:
        raise DataError(f"{path} is damaged: its notes contradict themselves")
    return notes
