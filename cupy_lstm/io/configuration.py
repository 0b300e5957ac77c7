"""What an LSTM is beside its weights, as JSON that a file carries."""

import json
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from cupy_lstm.backend import HostArray
from cupy_lstm.io.assembly import assembled_lstm
from cupy_lstm.lstm import LSTM

FORMAT = "cupy_lstm LSTM 1"
"""Key of the configuration in a file's metadata; a change of fields makes it the next number."""


def configuration(lstm: LSTM) -> dict[str, Any]:
    """Return arguments of the constructor, the key of the next dropout mask, and what is frozen."""
    return {
        "input_size": lstm.input_size,
        "hidden_size": lstm.hidden_size,
        "num_layers": lstm.num_layers,
        "direction": "forward" if lstm.num_directions == 1 else "bidirectional",
        "time_major": lstm.time_major,
        "dropout": lstm.dropout,
        "bias_ih": lstm.bias_ih_l0 is not None,
        "bias_hh": lstm.bias_hh_l0 is not None,
        "proj_size": lstm.proj_size,
        "dropout_seed": lstm.dropout_seed,
        "dropout_calls": lstm.dropout_calls,
        "frozen": [name for name, p in lstm.named_parameters() if not p.trainable],
    }


def configuration_as_json(lstm: LSTM) -> str:
    """Return the configuration as one line."""
    return json.dumps(configuration(lstm))


def parsed_configuration(text: str, origin: str) -> dict[str, Any]:
    """Return what `configuration_as_json` was made of; `restored_lstm` checks the fields.

    Raises
    ------
    ValueError
        If it is no object of JSON.
    """
    try:
        read = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{origin}: its configuration is damaged: {error}") from None
    if not isinstance(read, dict):
        raise ValueError(f"{origin}: its configuration is damaged: it is no object")
    return read


def restored_lstm(
    read: dict[str, Any],
    weights: Mapping[str, HostArray],
    origin: str,
    xp: str | ModuleType,
    dtype: Any,
) -> LSTM:
    """Return the LSTM that a configuration and weights describe.

    Parameters
    ----------
    read : dict
        Of `parsed_configuration`.
    weights, origin, xp, dtype
        As of `assembled_lstm`.

    Raises
    ------
    ValueError
        If the configuration is damaged, or the weights are not those it describes.
    TypeError, ImportError
        As `LSTM` for `xp` and `dtype`.
    """
    # The weights alone say what is allocated; the configuration must then agree with them.
    lstm = assembled_lstm(weights, origin, xp=xp, dtype=dtype)
    try:
        for field in ("time_major", "dropout", "dropout_seed", "dropout_calls"):
            setattr(lstm, field, read[field])
        parameters = dict(lstm.named_parameters())
        for name in read["frozen"]:
            parameters[name].trainable = False
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{origin}: its configuration is damaged: {error}") from None
    found = configuration(lstm)
    for field in {**found, **read}:
        if found.get(field) != read.get(field):
            raise ValueError(
                f"{origin}: its configuration says {field} {read.get(field)!r}, "
                f"but its weights {found.get(field)!r}"
            )
    return lstm
