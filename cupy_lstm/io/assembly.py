"""From named weights to an LSTM: their names and shapes say what it is."""

import re
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy

from cupy_lstm.backend import DTYPES, HostArray, checked_dtype, module_name
from cupy_lstm.initializer import Constant
from cupy_lstm.lstm import LSTM
from cupy_lstm.weights import KINDS

FLAT_NAME = re.compile(rf"({'|'.join(KINDS)})_l(0|[1-9]\d{{0,8}})(_reverse)?")
FLOATS = DTYPES["cupy"]


def assembled_lstm(
    weights: Mapping[str, HostArray],
    origin: str,
    *,
    time_major: bool = False,
    dropout: float = 0.0,
    xp: str | ModuleType = "numpy",
    dtype: Any = None,
) -> LSTM:
    """Return an LSTM with copies of these weights.

    Parameters
    ----------
    weights : mapping of str to array
        On the host, by the names of `LSTM`, in its shapes.
    origin : str
        Where they come from, for the messages.
    time_major, dropout, xp
        As of `LSTM`.
    dtype : dtype-like, optional
        What to convert the weights to; default: keep theirs, which must be one.

    Raises
    ------
    ValueError
        If a weight is missing or unknown, or a shape or dtype does not fit.
    TypeError, ImportError
        As `LSTM` for `xp` and `dtype`.
    """
    L, D, biases = _structure(weights, origin)
    H, I = _sizes("weight_ih_l0", weights["weight_ih_l0"], origin)  # noqa: E741
    _, P = _sizes("weight_hh_l0", weights["weight_hh_l0"], origin)
    projected = "weight_ho_l0" in weights
    outputs = P if projected else H
    for name, weight in weights.items():
        kind, layer, _ = _parts(name, origin)
        wanted = {
            "weight_ih": (4 * H, D * outputs if layer else I),
            "weight_hh": (4 * H, outputs),
            "bias_ih": (4 * H,),
            "bias_hh": (4 * H,),
            "weight_ho": (H, outputs),
        }[kind]
        if weight.shape != wanted:
            raise ValueError(
                f"{origin}: {name} has shape {list(weight.shape)}, but must have shape "
                f"{list(wanted)} beside the weights of layer 0"
            )
    module = module_name(xp)
    kept = _common_dtype(weights, origin, module, convert=dtype is not None)
    wanted_dtype = checked_dtype(kept if dtype is None else dtype, module)
    zero = Constant(0.0)  # overwritten below: nothing is drawn
    lstm = LSTM(
        I,
        H,
        L,
        "forward" if D == 1 else "bidirectional",
        time_major,
        dropout,
        zero,
        zero,
        zero if "bias_ih" in biases else False,
        zero if "bias_hh" in biases else False,
        proj_size=P if projected else 0,
        dtype=wanted_dtype,
        xp=xp,
    )
    lstm.set_state_dict({n: w.astype(wanted_dtype, copy=False) for n, w in weights.items()})
    return lstm


def _parts(name: str, origin: str) -> tuple[str, int, str]:
    """Return the kind, the layer and the end of a weight's name."""
    match = FLAT_NAME.fullmatch(name)
    if match is None:
        raise ValueError(f"{origin}: {name!r} is the name of no weight of an LSTM")
    return match[1], int(match[2]), match[3] or ""


def _structure(weights: Mapping[str, HostArray], origin: str) -> tuple[int, int, set[str]]:
    """Return L, D and the kinds of biases; every cell must have the same kinds of weights."""
    cells: dict[tuple[int, str], set[str]] = {}
    for name in weights:
        kind, layer, end = _parts(name, origin)
        cells.setdefault((layer, end), set()).add(kind)
    if not cells:
        raise ValueError(f"{origin}: it holds no weight of an LSTM")
    L = 1 + max(layer for layer, _ in cells)
    ends = ("", "_reverse") if any(end for _, end in cells) else ("",)
    kinds = set.union({"weight_ih", "weight_hh"}, *cells.values())
    if len(cells) < L * len(ends) or any(found != kinds for found in cells.values()):
        missing = next(
            f"{kind}_l{layer}{end}"
            for layer in range(L)
            for end in ends
            for kind in KINDS
            if kind in kinds - cells.get((layer, end), set())
        )
        raise ValueError(f"{origin}: {missing} is missing beside {', '.join(list(weights)[:4])}")
    return L, len(ends), kinds & {"bias_ih", "bias_hh"}


def _sizes(name: str, weight: HostArray, origin: str) -> tuple[int, int]:
    """Return H and the number of columns of a weight with 4H rows."""
    if weight.ndim != 2 or weight.shape[0] % 4 or not weight.size:
        raise ValueError(
            f"{origin}: {name} has shape {list(weight.shape)}, but must have two sizes, the first "
            "4 * hidden_size"
        )
    return weight.shape[0] // 4, weight.shape[1]


def _common_dtype(
    weights: Mapping[str, HostArray], origin: str, module: str, convert: bool
) -> "numpy.dtype[Any]":
    """Return the dtype of the weights, which is one that weights may have in this module."""
    for name, weight in weights.items():
        if weight.dtype.name not in FLOATS:
            raise ValueError(
                f"{origin}: {name} has dtype {weight.dtype}, but weights have one of {FLOATS}"
            )
    dtypes = {weight.dtype.name: weight.dtype for weight in weights.values()}
    if not convert and (len(dtypes) > 1 or not dtypes.keys() <= set(DTYPES[module])):
        raise ValueError(
            f"{origin}: its weights have dtype {' and '.join(dtypes)}, but an LSTM on {module} has "
            f"one of {DTYPES[module]}: convert them, for example with dtype='float32'"
        )
    return next(iter(dtypes.values()))
