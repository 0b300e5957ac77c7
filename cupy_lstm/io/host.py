"""Host arrays from whatever other libraries call a tensor."""

from collections.abc import Mapping
from typing import Any

import numpy

from cupy_lstm.backend import HostArray, is_array, to_host
from cupy_lstm.io.optional import IO_EXTRA, optional_module
from cupy_lstm.lstm import LSTM


def host_array(argument: str, value: Any) -> HostArray:
    """Return the values of an array or tensor on the host, from whatever device.

    Parameters
    ----------
    argument : str
        What it is called, for the message.
    value : array or tensor
        Of NumPy, CuPy, PyTorch, Paddle, TensorFlow or Keras.

    Raises
    ------
    TypeError
        If it is none of these.
    ImportError
        If it is of bfloat16 and ml_dtypes, which defines that for NumPy, is not installed.
    """
    if is_array(value):
        return to_host(value)
    if hasattr(value, "detach") and hasattr(value, "cpu"):  # PyTorch and Paddle
        value = value.detach().cpu()
        if str(value.dtype) == "torch.bfloat16":
            ml_dtypes = optional_module("ml_dtypes", "a tensor of bfloat16", IO_EXTRA)
            return numpy.asarray(value.float().numpy().astype(ml_dtypes.bfloat16))
    if hasattr(value, "numpy"):
        value = value.numpy()
    elif hasattr(value, "__array__"):
        value = numpy.asarray(value)
    if not isinstance(value, numpy.ndarray):
        raise TypeError(f"{argument} must be an array or a tensor, received {type(value).__name__}")
    return value


def host_state(argument: str, state: Any, prefix: str = "") -> dict[str, HostArray]:
    """Return the values of a module, or of a mapping of names to tensors, on the host.

    Parameters
    ----------
    argument : str
        What it is called, for the message.
    state : mapping of str to tensor, or something with a `state_dict`
        Such as a module of PyTorch or Paddle.
    prefix : str
        Names that begin so are taken, without it; all others are passed over.

    Raises
    ------
    TypeError
        If it is neither, or a value is no tensor.
    """
    if hasattr(state, "state_dict"):
        state = state.state_dict()
    if not isinstance(state, Mapping):
        raise TypeError(
            f"{argument} must be a module or a mapping of names to tensors, received "
            f"{type(state).__name__}: read a safetensors file with load_state_dict first"
        )
    return {
        name.removeprefix(prefix): host_array(f"{argument}[{name!r}]", value)
        for name, value in state.items()
        if isinstance(name, str) and name.startswith(prefix)
    }


def module_at(source: Any, prefix: str) -> Any:
    """Return the module in `source` whose weights have names that begin with `prefix`.

    Parameters
    ----------
    source : module, or mapping of str to tensor
        As of `host_state`; a mapping knows no modules.
    prefix : str
        Names of modules with dots between them: ``"encoder.lstm."``.

    Returns
    -------
    module or None
        None if there is none of this name.
    """
    module = source if hasattr(source, "state_dict") else None
    for name in filter(None, prefix.split(".")):
        module = getattr(module, name, None)
    return module


def setting(module: Any, name: str, default: float) -> Any:
    """Return an attribute of a module that is a number; `default` if it has none, or another thing.

    Modules that are no LSTM by themselves have attributes with such names, too.
    """
    value = getattr(module, name, default)
    return value if isinstance(value, bool | int | float) else default


def require_lstm(lstm: object) -> None:
    """Raise a TypeError unless it is an LSTM of this package."""
    if not isinstance(lstm, LSTM):
        raise TypeError(f"lstm must be a cupy_lstm.LSTM, received {type(lstm).__name__}")


def require_no_half_type(lstm: LSTM, why: str) -> None:
    """Raise a ValueError if an LSTM is of a half type, which somebody else has not."""
    if lstm.dtype.itemsize == 2:
        raise ValueError(
            f"lstm has dtype {lstm.dtype}, but {why}: convert a copy of it with "
            ".to(dtype='float32')"
        )


def host_weights(lstm: LSTM) -> dict[str, HostArray]:
    """Return the weights of an LSTM by name, on the host; an absent bias is zero.

    It is zero where another one is there: what has no bias at all has none here either.
    """
    weights = {name: to_host(weight) for name, weight in lstm.state_dict().items()}
    if lstm.bias_ih_l0 is lstm.bias_hh_l0:  # both are None
        return weights
    complete: dict[str, HostArray] = {}
    for name, weight in weights.items():
        complete[name] = weight
        kind, _, place = name.partition("_l")
        if kind == "weight_hh":  # biases come next, and those that are there take these places
            for bias in ("bias_ih", "bias_hh"):
                complete[f"{bias}_l{place}"] = numpy.zeros(weight.shape[:1], weight.dtype)
    return complete
