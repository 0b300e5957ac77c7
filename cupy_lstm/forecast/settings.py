"""How a forecast is learned: the parameters of `LSTMForecaster`, checked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy

from cupy_lstm.checks import checked_boolean, checked_choice, checked_integer, checked_number
from cupy_lstm.forecast.model import View
from cupy_lstm.history import Callback

VIEWS: dict[str, tuple[View, ...]] = {
    "best": ("changes", "levels"),
    "changes": ("changes",),
    "levels": ("levels",),
}


@dataclass(frozen=True)
class Settings:
    """The parameters of `LSTMForecaster`, checked, defaults filled in.

    Attributes
    ----------
    views : tuple of {"changes", "levels"}
        Those to train.
    model_seed, order_seed : int
        Of the initial weights, and of the order of the windows.
    horizon, context, hidden_size, num_layers, dropout, epochs, patience, batch_size, \
    learning_rate, validation_fraction, level, callbacks, progress
        As of `LSTMForecaster`.
    """

    horizon: int
    context: int
    hidden_size: int
    num_layers: int
    dropout: float
    views: tuple[View, ...]
    epochs: int
    patience: int
    batch_size: int | None
    learning_rate: float
    validation_fraction: float
    level: float
    model_seed: int
    order_seed: int
    callbacks: Sequence[Callback]
    progress: bool


def checked_settings(parameters: Mapping[str, Any], seed: int) -> Settings:
    """Return the parameters of an `LSTMForecaster`, checked.

    Parameters
    ----------
    parameters : mapping
        By name.
    seed : int
        Of initial weights and order of the windows.

    Raises
    ------
    TypeError, ValueError
        If one is unfit; the message names it.
    """

    def size(name: str) -> int:
        return checked_integer(name, parameters[name])

    def share(name: str) -> float:
        return checked_number(name, parameters[name], 0.0, 1.0, low_included=False)

    horizon = size("horizon")
    model_seed, order_seed = numpy.random.SeedSequence(seed).generate_state(2).tolist()
    return Settings(
        horizon=horizon,
        context=3 * horizon if parameters["context"] is None else size("context"),
        hidden_size=size("hidden_size"),
        num_layers=size("num_layers"),
        dropout=checked_number("dropout", parameters["dropout"], 0.0, 1.0),
        views=VIEWS[checked_choice("view", parameters["view"], tuple(VIEWS))],
        epochs=size("epochs"),
        patience=size("patience"),
        batch_size=None if parameters["batch_size"] is None else size("batch_size"),
        learning_rate=checked_number(
            "learning_rate", parameters["learning_rate"], low_included=False
        ),
        validation_fraction=share("validation_fraction"),
        level=share("level"),
        model_seed=model_seed,
        order_seed=order_seed,
        callbacks=tuple(parameters["callbacks"]),
        progress=checked_boolean("progress", parameters["progress"]),
    )
