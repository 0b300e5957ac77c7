"""The file of an estimator: weights, scalings and parameters in one safetensors file, no pickle."""

import json
from collections.abc import Mapping
from dataclasses import fields
from os import PathLike
from pathlib import Path
from typing import Any

import numpy

from cupy_lstm.backend import Array, HostArray
from cupy_lstm.io.files import write_whole
from cupy_lstm.io.tensors import read_tensors, tensors_as_bytes
from cupy_lstm.schedule import CosineAnnealingDecay, LinearWarmup, StepDecay

FORMAT = "cupy_lstm estimator 1"
"""Key of the description in the metadata; a change of its fields makes it the next number."""

SCHEDULES = {kind.__name__: kind for kind in (StepDecay, CosineAnnealingDecay, LinearWarmup)}
"""Learning rates that a file can hold beside numbers."""

LABELS = "biufUO"
"""Kinds of dtypes that labels in a file may have."""


def write_estimator(
    path: str | PathLike[str], tensors: Mapping[str, Array], description: Mapping[str, Any]
) -> None:
    """Write arrays by name and their description, complete or not at all."""
    contents = tensors_as_bytes(tensors, {FORMAT: json.dumps(description)})
    write_whole(Path(path), contents)


def read_estimator(
    path: str | PathLike[str], kind: str
) -> tuple[dict[str, HostArray], dict[str, Any]]:
    """Read what `write_estimator` wrote of the class called `kind`.

    Raises
    ------
    ImportError
        If safetensors is not installed.
    OSError
        If the file cannot be read.
    ValueError
        If it is none of these files, is damaged, or holds another class.
    """
    tensors, metadata = read_tensors(Path(path))
    if FORMAT not in metadata:
        raise ValueError(f"{path} holds no estimator that this version of cupy_lstm has written")
    try:
        description = json.loads(metadata[FORMAT])
        found = description["class"]
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    if found != kind:
        raise ValueError(f"{path} holds the estimator {found}, not {kind}: load it by {found}.load")
    for name, tensor in tensors.items():
        if not numpy.isfinite(tensor).all():
            raise ValueError(f"{path} is damaged: {name} holds infinity or NaN")
    return tensors, description


def parameters_as_json(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters of an estimator without what is code or a state: callbacks, generators.

    Raises
    ------
    ValueError
        If another parameter is code, other than one of `SCHEDULES`.
    """
    found = {name: value for name, value in parameters.items() if name != "callbacks"}
    if isinstance(found["random_state"], numpy.random.RandomState):
        found["random_state"] = None
    return {name: _as_json(name, value) for name, value in found.items()}


def _as_json(name: str, value: Any) -> Any:
    if isinstance(value, numpy.generic):
        return value.item()
    if isinstance(value, Mapping):
        keys, weights = numpy.array(list(value)), list(value.values())
        return {"labels": labels_as_json(keys), "weights": [float(w) for w in weights]}
    kind = type(value).__name__
    if type(value) is SCHEDULES.get(kind):
        arguments = {field.name: getattr(value, field.name) for field in fields(value)}
        return {"schedule": kind, "arguments": {a: _as_json(name, v) for a, v in arguments.items()}}
    if not isinstance(value, str | int | float | None):
        raise ValueError(
            f"{name} is {value!r}, which a file without code cannot hold: set it to a plain "
            f"value by set_params({name}=...) before saving"
        )
    return value


def parameters_from_json(found: Any) -> dict[str, Any]:
    """Return parameters as `parameters_as_json` was given them.

    Raises
    ------
    KeyError, TypeError, ValueError
        If they are not.
    """
    if not isinstance(found, dict):
        raise TypeError(f"parameters are {found!r}")
    return {name: _from_json(value) for name, value in found.items()}


def _from_json(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    if "schedule" in value:
        if not isinstance(value["arguments"], dict):
            raise TypeError(f"a schedule cannot have the arguments {value['arguments']!r}")
        arguments = {name: _from_json(given) for name, given in value["arguments"].items()}
        return SCHEDULES[value["schedule"]](**arguments)
    labels = labels_from_json(value["labels"]).tolist()
    return dict(zip(labels, value["weights"], strict=True))


def labels_as_json(labels: HostArray) -> dict[str, Any]:
    """Return labels, with their dtype.

    Raises
    ------
    ValueError
        If they are neither numbers nor words.
    """
    values = labels.tolist()
    plain = all(isinstance(value, str | int | float) for value in values)
    if labels.dtype.kind not in LABELS or not plain:
        raise ValueError(
            f"labels of dtype {labels.dtype} cannot be saved: use numbers or strings as labels"
        )
    return {"dtype": labels.dtype.str, "values": values}


def labels_from_json(found: Mapping[str, Any]) -> HostArray:
    """Return the labels that `labels_as_json` was given."""
    dtype = numpy.dtype(found["dtype"])
    if dtype.kind not in LABELS:
        raise ValueError(f"labels cannot have dtype {dtype}")
    return numpy.array(found["values"], dtype)
