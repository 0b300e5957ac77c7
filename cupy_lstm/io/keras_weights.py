"""Weights from and to Keras: transposed, one bias, a layer of Keras for each layer here.

Keras holds kernel [I,4H], recurrent_kernel [H,4H] and bias [4H], with the gates in the order i, f,
c, o, where its c is what is called g here: the same order.
"""

from collections.abc import Sequence
from types import ModuleType
from typing import Any

from cupy_lstm.backend import HostArray
from cupy_lstm.io.assembly import assembled_lstm
from cupy_lstm.io.host import host_array, host_weights, require_lstm, require_no_half_type
from cupy_lstm.io.optional import optional_module
from cupy_lstm.lstm import LSTM

ENDS = ("", "_reverse")


def from_keras(source: Any, *, xp: str | ModuleType = "numpy", dtype: Any = None) -> LSTM:
    """Return an LSTM with the weights of layers of Keras, copied through the host.

    It is batch-major and has `bias_ih` only, as Keras has one bias. Dropout is not taken over:
    that of Keras drops other things.

    Parameters
    ----------
    source : keras.layers.LSTM, keras.layers.Bidirectional, keras.Sequential, or sequence
        One layer, or several that feed each other. In a sequence, a layer may also be the list
        that its ``get_weights`` gives: kernel, recurrent_kernel and bias if there is one, twice
        that for both directions.
    xp : module or str
        ``numpy`` or ``cupy``: where the weights go.
    dtype : dtype-like, optional
        What to convert the weights to; default: keep theirs.

    Raises
    ------
    TypeError
        If `source` is none of these.
    ValueError
        If a layer computes something that an LSTM here does not, or has not been built, or if
        the layers do not fit each other.
    ImportError
        If CuPy is asked for and cannot be imported.
    """
    layers = source if isinstance(source, Sequence) else getattr(source, "layers", [source])
    if not layers:
        raise ValueError("source must hold at least one layer, received none")
    weights: dict[str, HostArray] = {}
    first: list[HostArray] = []
    for k, layer in enumerate(layers):
        argument = f"source[{k}]"
        arrays = layer
        if not isinstance(layer, Sequence):
            arrays = _checked_layer(argument, layer, last=k == len(layers) - 1).get_weights()
        if len(arrays) not in (2, 3, 4, 6):
            raise ValueError(
                f"{argument} must have 2 or 3 weights for each direction, has {len(arrays)}"
            )
        D = 1 if len(arrays) < 4 else 2
        found = [host_array(f"{argument}[{n}]", array) for n, array in enumerate(arrays)]
        _require_lstm_shapes(argument, found, D)
        if k:
            _require_next(argument, found, first, D)
        else:
            first = found
        for end, d in zip(ENDS[:D], range(D), strict=True):
            kernel, recurrent_kernel, *bias = found[d * len(found) // D :][: len(found) // D]
            weights[f"weight_ih_l{k}{end}"] = kernel.T
            weights[f"weight_hh_l{k}{end}"] = recurrent_kernel.T
            weights |= {f"bias_ih_l{k}{end}": array for array in bias}
    return assembled_lstm(weights, "weights of keras", xp=xp, dtype=dtype)


def to_keras(lstm: LSTM) -> Any:
    """Return a `keras.Sequential` with copies of the weights, a layer of Keras for each layer.

    It is batch-major and gives the outputs of all steps. Its one bias is the sum of both. Dropout
    is not taken over: that of Keras drops other things.

    Parameters
    ----------
    lstm : LSTM
        float32 or float64, without projection; a GPU is waited for.

    Returns
    -------
    keras.Sequential
        In the dtype of `lstm`, on the backend that Keras has chosen.

    Raises
    ------
    TypeError
        If `lstm` is none.
    ImportError
        If Keras, or its backend, is not installed.
    ValueError
        If there is a projection, which Keras has not, or a half type.
    """
    require_lstm(lstm)
    if lstm.proj_size:
        raise ValueError(f"lstm has proj_size={lstm.proj_size}, but Keras has no projection")
    require_no_half_type(lstm, "Keras would keep the cell states in it, too")
    keras = optional_module("keras", "to_keras", "keras")
    model = keras.Sequential([keras.layers.Input((None, lstm.input_size), dtype=lstm.dtype.name)])
    for arrays in keras_arrays(lstm):
        layer = keras.layers.LSTM(
            lstm.hidden_size,
            use_bias=len(arrays) % 3 == 0,
            return_sequences=True,
            kernel_initializer="zeros",  # overwritten below: nothing is drawn
            recurrent_initializer="zeros",
            dtype=lstm.dtype.name,
        )
        if lstm.num_directions == 2:
            layer = keras.layers.Bidirectional(layer, dtype=lstm.dtype.name)
        model.add(layer)
        layer.set_weights(arrays)
    return model


def keras_arrays(lstm: LSTM) -> list[list[HostArray]]:
    """Return for each layer what ``set_weights`` of its namesake in Keras takes."""
    weights = host_weights(lstm)
    layers = []
    for k in range(lstm.num_layers):
        arrays = []
        for end in ENDS[: lstm.num_directions]:
            arrays += [weights[f"weight_ih_l{k}{end}"].T, weights[f"weight_hh_l{k}{end}"].T]
            if f"bias_ih_l{k}{end}" in weights:
                arrays.append(weights[f"bias_ih_l{k}{end}"] + weights[f"bias_hh_l{k}{end}"])
        layers.append(arrays)
    return layers


def _require_lstm_shapes(argument: str, arrays: list[HostArray], D: int) -> None:
    """Raise a ValueError unless arrays have the shapes of the weights of an LSTM of Keras."""
    I, columns = arrays[0].shape if arrays[0].ndim == 2 else (0, 0)  # noqa: E741
    H = columns // 4
    shapes = [(I, 4 * H), (H, 4 * H), (4 * H,)][: len(arrays) // D] * D
    if not (I and H) or [array.shape for array in arrays] != shapes:
        raise ValueError(
            f"{argument} has weights of shapes {_shapes(arrays)}, but an LSTM of Keras has, for "
            "each direction, [features, 4 * units], [units, 4 * units] and perhaps [4 * units]"
        )


def _require_next(argument: str, arrays: list[HostArray], first: list[HostArray], D: int) -> None:
    """Raise a ValueError unless a layer goes on from ones that are like the first."""
    units, features = len(first[1]), D * len(first[1])
    if (len(arrays), len(arrays[1])) != (len(first), units):
        raise ValueError(
            f"{argument} has weights of shapes {_shapes(arrays)}, source[0] of "
            f"{_shapes(first)}, but all layers of one LSTM have the same units, directions, and "
            "biases or none"
        )
    if len(arrays[0]) != features:
        raise ValueError(
            f"{argument} has weights of shapes {_shapes(arrays)}, but the layer before gives "
            f"{features} features"
        )


def _shapes(arrays: list[HostArray]) -> str:
    return ", ".join(str(list(array.shape)) for array in arrays)


def _checked_layer(argument: str, layer: Any, last: bool) -> Any:
    """Return a layer of Keras if an LSTM here computes the same."""
    both = hasattr(layer, "forward_layer")
    if both and layer.merge_mode != "concat":
        raise ValueError(
            f"{argument} has merge_mode={layer.merge_mode!r}, but the directions are joined here "
            "as with 'concat'"
        )
    for one in (layer.forward_layer, layer.backward_layer) if both else (layer,):
        cell = getattr(one, "cell", None)
        if type(cell).__name__ != "LSTMCell":
            raise TypeError(
                f"{argument} must be an LSTM of Keras, a Bidirectional one, or the list of its "
                f"weights, received {type(one).__name__}: pass the LSTM layers of a model only"
            )
        if not layer.built:
            raise ValueError(f"{argument} has no weights yet: build it, or call it once")
        for field, wanted in (("activation", "tanh"), ("recurrent_activation", "sigmoid")):
            found = getattr(getattr(cell, field), "__name__", "another function")
            if found != wanted:
                raise ValueError(
                    f"{argument} has {field}={found!r}, but an LSTM here computes {wanted!r}"
                )
        if one.go_backwards and not (both and one is layer.backward_layer):
            raise ValueError(
                f"{argument} has go_backwards=True: a direction that reads from the end goes "
                "with a forward one here, as in Bidirectional"
            )
        if not (one.return_sequences or last):
            raise ValueError(
                f"{argument} has return_sequences=False, but the next layer needs its steps"
            )
    return layer
