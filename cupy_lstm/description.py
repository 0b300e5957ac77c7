"""What a training is made of, in words that are the same whenever the same program runs."""

from collections.abc import Iterator, Mapping, Sized
from dataclasses import fields, is_dataclass
from functools import partial
from typing import Any

from cupy_lstm.training_state import TrainingState, named_layers


def description(state: TrainingState, loss: object) -> dict[str, Any]:
    """Return what two trainings must agree in if one is to go on where the other stopped.

    Functions go by their names, arrays by their shapes and dtypes: two data sets of the same sizes
    are described alike.

    Returns
    -------
    dict of str to bool, int, float, str, list or None
        Names with dots, in the order in which a reader would look.
    """
    nested = {
        "model": {name or "itself": _layer(layer) for name, layer in named_layers(state.model)},
        "loss": _described(loss),
        "optimizer": _part(state.optimizer),
        "batches": _part(state.batches),
        "validation": _part(state.validation),
        "min_delta": state.min_delta,
        "patience": "some" if state.keep_best else "none",
    }
    return dict(_flat("", nested))


def difference(there: Mapping[str, Any], here: Mapping[str, Any]) -> str | None:
    """Return the first thing in which two descriptions differ, as words; None if in none."""
    for name in {**here, **there}:
        if there.get(name) != here.get(name):
            return f"{name} was {there.get(name)!r} there, and is {here.get(name)!r} here"
    return None


def _layer(layer: object) -> dict[str, Any]:
    named = {key: getattr(layer, key, None) for key in ("dropout", "time_major")}
    return {"type": _name(layer), **{key: v for key, v in named.items() if v is not None}}


def _part(part: Any) -> Any:
    """Describe an optimiser or batches: the type, what it says of itself, and its length."""
    if part is None:
        return None
    described: dict[str, Any] = {"type": _name(part)}
    if hasattr(part, "settings"):
        described |= {name: _described(value) for name, value in part.settings().items()}
    if isinstance(part, Sized):
        described["len"] = len(part)
    return described


def _described(value: object) -> Any:
    """Return a value if JSON has it; of other things the name, of dataclasses their fields, too."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [_described(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _described(item) for key, item in value.items()}
    if isinstance(value, partial):
        given = {"arguments": value.args, **value.keywords}
        return {"function": _described(value.func), **_described(given)}
    if is_dataclass(value) and not isinstance(value, type):
        named = {f.name: _described(getattr(value, f.name)) for f in fields(value)}
        return {"type": _name(value), **named}
    return _name(value)


def _name(value: object) -> str:
    return str(getattr(value, "__qualname__", type(value).__qualname__))


def _flat(name: str, described: Any) -> Iterator[tuple[str, Any]]:
    """Yield what a dict of dicts holds, each under a name with dots."""
    if not isinstance(described, dict):
        yield name, described
        return
    for key, value in described.items():
        yield from _flat(f"{name}.{key}" if name else key, value)
