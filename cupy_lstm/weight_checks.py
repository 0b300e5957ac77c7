"""Checks of the weights that callers of the functional core hand in."""

from collections.abc import Sequence

from cupy_lstm.backend import DTYPES, array_module, is_array, sum_dtype
from cupy_lstm.checks import checked_array
from cupy_lstm.notation import LayerGradients, LayerWeights, PerWeight, Wanted
from cupy_lstm.steps import Directions


def checked_reverse(value: object) -> Directions:
    """Return `value` if it is a non-empty tuple of bool.

    Raises
    ------
    TypeError
        If it is no tuple, or holds something else.
    ValueError
        If it is empty.
    """
    if not isinstance(value, tuple) or not all(isinstance(item, bool) for item in value):
        raise TypeError(
            f"reverse must be a tuple of bool, one for each direction, received {value!r}"
        )
    if not value:
        raise ValueError("reverse must hold at least one direction, received ()")
    return value


def checked_weights(weights: object, D: int) -> Sequence[LayerWeights]:
    """Return `weights` if they are those of layers upon layers of D directions.

    Raises
    ------
    TypeError
        If it is no sequence of LayerWeights, or a weight is no array or in another place.
    ValueError
        If there is no layer, or a shape or dtype does not fit.
    """
    if not isinstance(weights, Sequence) or isinstance(weights, str | PerWeight):
        raise TypeError(
            "weights must be a sequence of LayerWeights, one for each layer, "
            f"received {type(weights).__name__}"
        )
    if not weights:
        raise ValueError("weights must hold at least one layer, received none")
    features = None
    for k, layer in enumerate(weights):
        if not isinstance(layer, PerWeight):
            raise TypeError(f"weights[{k}] must be a LayerWeights, received {type(layer).__name__}")
        features = _check_layer(f"weights[{k}]", layer, weights[0], D, features)
    return weights


def _check_layer(
    argument: str, layer: LayerWeights, first: LayerWeights, D: int, features: int | None
) -> int:
    """Check one layer, and that it agrees with the first; return the features of its output."""
    for kind, weight in zip(layer._fields, layer, strict=True):
        if weight is not None or kind in ("weight_ih", "weight_hh"):
            _require_array(f"{argument}.{kind}", weight)
    reference = first.weight_ih
    choices = DTYPES[array_module(reference).__name__]
    if reference.dtype.name not in choices or not reference.dtype.isnative:
        raise ValueError(
            f"{argument}.weight_ih has dtype {reference.dtype}, but must have one of {choices}"
        )
    owner = "the first layer's weights"
    # The states of all layers are one array: they agree in H and P.
    rows: int | str = "4H" if layer is first else reference.shape[1]
    checked_array(f"{argument}.weight_ih", layer.weight_ih, reference, owner, (D, rows, features))
    gate_rows = layer.weight_ih.shape[1]
    H = gate_rows // 4
    if gate_rows != 4 * H or H == 0:
        raise ValueError(
            f"{argument}.weight_ih has shape {list(layer.weight_ih.shape)}, but its second size is "
            "4H and must be a positive multiple of 4"
        )
    if layer is not first and (layer.weight_ho is None) != (first.weight_ho is None):
        missing = argument if layer.weight_ho is None else "weights[0]"
        raise ValueError(f"{missing}.weight_ho is None, but another layer has one")
    P: int | str = "P" if layer.weight_ho is not None else H
    if layer is not first:
        P = first.weight_hh.shape[2]
    checked_array(f"{argument}.weight_hh", layer.weight_hh, reference, owner, (D, gate_rows, P))
    outputs: int = layer.weight_hh.shape[2]
    shapes = {"bias_ih": (D, gate_rows), "bias_hh": (D, gate_rows), "weight_ho": (D, H, outputs)}
    for kind, shape in shapes.items():
        if getattr(layer, kind) is not None:
            checked_array(f"{argument}.{kind}", getattr(layer, kind), reference, owner, shape)
    return D * outputs


def check_targets(
    weights: Sequence[LayerWeights], wanted: Sequence[Wanted], gradients: Sequence[LayerGradients]
) -> None:
    """Raise unless there is a fitting gradient array wherever one is wanted.

    Raises
    ------
    TypeError
        If something wanted is no slice, or a gradient is no array or in another place.
    ValueError
        If the number of layers, a shape or a dtype does not fit, or an array is missing.
    """
    for argument, value in (("wanted", wanted), ("gradients", gradients)):
        if not isinstance(value, Sequence) or isinstance(value, str | PerWeight):
            raise TypeError(
                f"{argument} must be a sequence with one PerWeight for each layer, "
                f"received {type(value).__name__}"
            )
        if len(value) != len(weights):
            raise ValueError(
                f"{argument} must hold one entry for each of the {len(weights)} layers, "
                f"received {len(value)}"
            )
        for k, entry in enumerate(value):
            if not isinstance(entry, PerWeight):
                raise TypeError(
                    f"{argument}[{k}] must be a PerWeight, received {type(entry).__name__}"
                )
    for k, layer in enumerate(weights):
        for kind in layer._fields:
            weight, some = getattr(layer, kind), getattr(wanted[k], kind)
            if weight is None or some is None:
                continue
            if not isinstance(some, slice):
                raise TypeError(
                    f"wanted[{k}].{kind} must be a slice or None, received {type(some).__name__}"
                )
            gradient = getattr(gradients[k], kind)
            if gradient is None:
                raise ValueError(
                    f"gradients[{k}].{kind} is None, but wanted[{k}].{kind} asks for it"
                )
            argument, sums = f"gradients[{k}].{kind}", sum_dtype(weight.dtype)
            _require_array(argument, gradient)
            checked_array(argument, gradient, weight, "the weights", weight.shape, sums)


def _require_array(argument: str, value: object) -> None:
    """Raise unless `value` is an array as it is: weights say where everything else must be."""
    if not is_array(value):
        raise TypeError(
            f"{argument} must be an array of numpy or cupy, received {type(value).__name__}"
        )
