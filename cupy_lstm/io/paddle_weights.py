"""Weights from and to `paddle.nn.LSTM`, whose state dict names each one twice.

By cell (``0.cell.weight_ih``, ``1.cell_bw.bias_hh``) the names are always right. The flat ones
(``weight_ih_l0``) are given out in a row, four to each cell, or three without a bias: but a cell
with a projection has five weights, and one without a bias keeps that bias, zero, in its place. From
the second cell on they then mean other weights than they say.
"""

import re
from types import ModuleType
from typing import Any

from cupy_lstm.backend import HostArray
from cupy_lstm.io.assembly import FLAT_NAME, assembled_lstm
from cupy_lstm.io.host import (
    host_state,
    host_weights,
    module_at,
    require_lstm,
    require_no_half_type,
    setting,
)
from cupy_lstm.io.optional import optional_module
from cupy_lstm.lstm import LSTM
from cupy_lstm.weights import KINDS

CELL_NAME = re.compile(rf"(\d+)\.cell(_fw|_bw)?\.({'|'.join(KINDS)})")


def from_paddle(
    source: Any, *, prefix: str = "", xp: str | ModuleType = "numpy", dtype: Any = None
) -> LSTM:
    """Return an LSTM with the weights of one of Paddle, copied through the host.

    Parameters
    ----------
    source : paddle.nn.LSTM, or mapping of str to tensor or array
        The layer, its ``state_dict``, or one half of it: names by cell, or flat ones, which are
        put right where a projection or an absent bias shifts them. From the layer, layout, dropout
        and mode are taken, too; a state dict does not know them.
    prefix : str
        What names in `source` begin with, where it is a larger model or its state dict:
        ``"rnn."``.
    xp : module or str
        ``numpy`` or ``cupy``: where the weights go.
    dtype : dtype-like, optional
        What to convert the weights to; default: keep theirs.

    Raises
    ------
    TypeError
        If `source` is neither, or holds no tensors.
    ValueError
        If a weight is missing or unknown, or a shape or dtype does not fit.
    ImportError
        If CuPy is asked for and cannot be imported.
    """
    origin = f"state dict of paddle{f', names with {prefix!r}' if prefix else ''}"
    layer = module_at(source, prefix)
    lstm = assembled_lstm(
        _named_as_here(host_state("source", source, prefix), origin),
        origin,
        time_major=bool(setting(layer, "time_major", False)),
        dropout=setting(layer, "dropout", 0.0),
        xp=xp,
        dtype=dtype,
    )
    return lstm if setting(layer, "training", True) else lstm.eval()


def to_paddle(lstm: LSTM) -> Any:
    """Return a `paddle.nn.LSTM` with copies of the weights.

    Layout, dropout and mode go with them. A bias that is absent here is zero there: Paddle 3.3.1
    cannot run without one. Its random state is not touched.

    Parameters
    ----------
    lstm : LSTM
        float32 or float64; a GPU is waited for.

    Returns
    -------
    paddle.nn.LSTM
        In the dtype of `lstm`, on Paddle's current device.

    Raises
    ------
    TypeError
        If `lstm` is none.
    ImportError
        If Paddle is not installed.
    ValueError
        If the dtype is a half type, which Paddle's LSTM does not compute.
    """
    require_lstm(lstm)
    require_no_half_type(lstm, "Paddle's LSTM computes float32 and float64 only")
    paddle = optional_module("paddle", "to_paddle", "paddlepaddle")
    zero = paddle.nn.initializer.Constant(0.0)  # overwritten below: nothing is drawn
    default = paddle.get_default_dtype()
    paddle.set_default_dtype(lstm.dtype.name)
    try:
        layer = paddle.nn.LSTM(
            lstm.input_size,
            lstm.hidden_size,
            lstm.num_layers,
            "forward" if lstm.num_directions == 1 else "bidirectional",
            lstm.time_major,
            lstm.dropout,
            weight_ih_attr=zero,
            weight_hh_attr=zero,
            bias_ih_attr=zero,
            bias_hh_attr=zero,
            proj_size=lstm.proj_size,
        )
    finally:
        paddle.set_default_dtype(default)
    layer.set_state_dict(paddle_state(lstm))
    layer.train() if lstm.training else layer.eval()
    return layer


def paddle_state(lstm: LSTM) -> dict[str, HostArray]:
    """Return the weights on the host by Paddle's names by cell, which are always right."""
    both = lstm.num_directions == 2
    state = {}
    for name, weight in host_weights(lstm).items():
        match = FLAT_NAME.fullmatch(name)
        assert match is not None  # these are our own names
        kind, layer, end = match.groups()
        side = ("_bw" if end else "_fw") if both else ""
        state[f"{layer}.cell{side}.{kind}"] = weight
    return state


def _named_as_here(state: dict[str, HostArray], origin: str) -> dict[str, HostArray]:
    """Return the weights by the names they have here; those by cell win."""
    by_cell = {}
    for name in state:
        match = CELL_NAME.fullmatch(name)
        if match:
            layer, side, kind = match.groups()
            by_cell[f"{kind}_l{layer}{'_reverse' if side == '_bw' else ''}"] = state[name]
    flat = {name: weight for name, weight in state.items() if not CELL_NAME.fullmatch(name)}
    unknown = [name for name in flat if not FLAT_NAME.fullmatch(name)]
    if unknown:
        raise ValueError(f"{origin}: {unknown[0]!r} is the name of no weight of an LSTM")
    return _meant(flat) | by_cell


def _meant(flat: dict[str, HostArray]) -> dict[str, HostArray]:
    """Return flat names with the weights they mean, as Paddle gave them out.

    What is no such row of names is returned as it is; what is wrong with it is found later.
    """
    kinds = [kind for kind in KINDS if f"{kind}_l0" in flat]
    cells = list(dict.fromkeys(name.partition("_l")[2] for name in flat))
    cells.sort(key=lambda place: (int(place.removesuffix("_reverse")), place))
    given = [f"{kind}_l{place}" for place in cells for kind in kinds]
    weight_hh = flat.get("weight_hh_l0")  # a name that is always right, as the one before it
    if weight_hh is None or weight_hh.ndim != 2 or not flat.keys() <= set(given):
        return flat
    projection = ["weight_ho"] if len(weight_hh) != 4 * weight_hh.shape[1] else []
    biases = ["bias_ih", "bias_hh"] if len(kinds) > 2 else []  # a cell without one still holds it
    held = ["weight_ih", "weight_hh", *biases, *projection]
    meant = [f"{kind}_l{place}" for place in cells for kind in held]
    return {right: flat[name] for name, right in zip(given, meant, strict=False) if name in flat}
