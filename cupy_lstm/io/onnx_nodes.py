"""The nodes LSTM of an ONNX graph: checked, and in the order of weights that is ours."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy

from cupy_lstm.backend import HostArray
from cupy_lstm.io.onnx_gates import FROM_ONNX, reordered
from cupy_lstm.io.onnx_graph import Graph, describe, is_standard
from cupy_lstm.io.onnx_origins import origins

DIRECTIONS = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}


@dataclass(frozen=True)
class LSTMNode:
    """One layer as a file has it.

    Attributes
    ----------
    name : str
        For messages.
    x : str
        Name of its input.
    outputs : tuple of str
        Name of the outputs of all steps, for each node that it was made of.
    reverse : tuple of bool
        For each direction, whether it reads from the end.
    batch_major : bool
        Whether the rows come before the steps in its input.
    weight_ih, weight_hh : tuple of array [4H,I], [4H,H]
        For each direction, with the gates in the order of ONNX.
    biases : tuple of array [8H]
        For each direction bias_ih and bias_hh; empty where there are none.
    """

    name: str
    x: str
    outputs: tuple[str, ...]
    reverse: tuple[bool, ...]
    batch_major: bool
    weight_ih: tuple[HostArray, ...]
    weight_hh: tuple[HostArray, ...]
    biases: tuple[HostArray, ...]

    @property
    def hidden_size(self) -> int:
        """H."""
        return int(self.weight_hh[0].shape[1])

    def named(self, k: int, biased: bool) -> dict[str, HostArray]:
        """Return copies of the weights, in our order of the gates, named as those of layer k.

        Biases are zero where there are none, but `biased` says that other layers have some.
        """
        weights = {}
        for d, (weight_ih, weight_hh) in enumerate(
            zip(self.weight_ih, self.weight_hh, strict=True)
        ):
            both = numpy.zeros((2, len(weight_ih)), weight_ih.dtype)
            bias_ih, bias_hh = self.biases[d].reshape(2, -1) if self.biases else both
            end = f"_l{k}{'_reverse' if d else ''}"
            weights[f"weight_ih{end}"] = reordered(weight_ih, FROM_ONNX)
            weights[f"weight_hh{end}"] = reordered(weight_hh, FROM_ONNX)
            if biased:
                weights[f"bias_ih{end}"] = reordered(bias_ih, FROM_ONNX)
                weights[f"bias_hh{end}"] = reordered(bias_hh, FROM_ONNX)
        return weights


def lstm_nodes(graph: Graph) -> list[LSTMNode]:
    """Return the layers of a graph in its order, a forward and a reverse node joined to one.

    Raises
    ------
    ValueError
        If a node is malformed, or computes what an LSTM here does not.
    """
    layers: list[LSTMNode] = []
    for node in graph.nodes:
        if node.op_type == "LSTM" and is_standard(node):
            layer = _read(graph, node)
            if layers and _are_halves(layers[-1], layer):
                layer = _both_directions(layers.pop(), layer)
            layers.append(layer)
    return layers


def _read(graph: Graph, node: Any) -> LSTMNode:
    """Read one node; whatever is wrong is an error with its name."""
    try:
        return _checked(graph, node)
    except (ValueError, TypeError) as error:  # attributes may be of any type
        raise ValueError(f"the LSTM {describe(node)}: {error}") from None


def _checked(graph: Graph, node: Any) -> LSTMNode:
    attributes = graph.attributes(node)
    reverse = DIRECTIONS.get(attributes.get("direction", "forward"))
    if reverse is None:
        raise ValueError(f"its direction is {attributes['direction']!r}")
    D = len(reverse)
    _require_plain(attributes, D)
    names = [*node.input, *[""] * (8 - len(node.input))]
    for name in filter(None, names):
        if not graph.knows(name):
            raise ValueError(f"its input {name!r} is missing: nothing in the file gives it")
    W, R = (_weight(graph, names[place], "WR"[place - 1], D) for place in (1, 2))
    H = R.shape[2]
    if R.shape[1] != 4 * H or W.shape[1] != 4 * H or attributes.get("hidden_size", H) != H:
        raise ValueError(
            f"W has shape {list(W.shape)} and R {list(R.shape)}, but they must have shapes "
            f"[{D}, 4H, I] and [{D}, 4H, H] with H = hidden_size {attributes.get('hidden_size')}"
        )
    biases = tuple(_weight(graph, names[3], "B", D, (D, 8 * H))) if names[3] else ()
    _require_no_constant(graph, names, H)
    return LSTMNode(
        describe(node),
        names[0],
        tuple(node.output[:1]),
        reverse,
        attributes.get("layout", 0) == 1,
        tuple(W),
        tuple(R),
        biases,
    )


def _require_plain(attributes: dict[str, Any], D: int) -> None:
    """Raise for attributes that make a node another function than ours."""
    functions = attributes.get("activations", ["Sigmoid", "Tanh", "Tanh"] * D)
    words = [f.decode(errors="replace") if isinstance(f, bytes) else str(f) for f in functions]
    if [word.lower() for word in words] != ["sigmoid", "tanh", "tanh"] * D:
        raise ValueError(f"its activations are {words}, an LSTM here has Sigmoid, Tanh, Tanh")
    if attributes.get("input_forget", 0):
        raise ValueError("its input and forget gates are coupled, those of an LSTM here are not")
    if "clip" in attributes:
        raise ValueError(f"it clips at {attributes['clip']:g}, an LSTM here does not")


def _weight(
    graph: Graph, name: str, letter: str, D: int, shape: tuple[int, ...] | None = None
) -> HostArray:
    """Return a weight of the right number of axes, or of a whole shape."""
    value = graph.value(name)
    if value is None:
        raise ValueError(f"its {letter} ({name!r}) is no constant, but is computed in the graph")
    fits = value.shape == shape if shape else value.ndim == 3 and value.shape[0] == D
    if not (fits and value.size):
        wanted = list(shape) if shape else f"[{D}, any, any], none of them 0"
        raise ValueError(f"its {letter} has shape {list(value.shape)}, but must have {wanted}")
    return value


def _require_no_constant(graph: Graph, names: Sequence[str], H: int) -> None:
    """Raise for inputs that a file may fix, but an LSTM here takes with each call, or not at all.

    Zero states are what a call without any has, and a size of what comes in as the length of each
    row is what a call without lengths has. What the model's own inputs give is for the caller to
    give.
    """
    if names[4]:
        lengths = origins(graph, names[4])
        if not (lengths.given or lengths.size):
            raise ValueError("it fixes the sequence lengths, which are given with each call here")
    for place, what in ((5, "h"), (6, "c")):
        if not names[place]:
            continue
        state = graph.value(names[place])
        if state is not None and state.shape[-1:] != (H,):
            raise ValueError(
                f"its initial {what} has shape {list(state.shape)}, which does not end with its "
                f"hidden_size {H}: PyTorch writes an LSTM with a projection so, and it is lost"
            )
        if state is None:
            made_of = origins(graph, names[place])
            fixed = not (made_of.given or made_of.zero)
        else:
            fixed = bool(state.any())
        if fixed:
            raise ValueError(f"it fixes an initial {what}, which is given with each call here")
    if names[7]:
        peepholes = graph.value(names[7])
        if peepholes is None or peepholes.any():
            raise ValueError("it has peepholes, an LSTM here has none")


def _are_halves(first: LSTMNode, second: LSTMNode) -> bool:
    """Say whether two nodes are the directions of one layer, written one after the other."""
    return (
        {first.reverse, second.reverse} == {(False,), (True,)}
        and (first.x, first.batch_major) == (second.x, second.batch_major)
        and first.weight_ih[0].shape == second.weight_ih[0].shape
        and bool(first.biases) == bool(second.biases)
    )


def _both_directions(first: LSTMNode, second: LSTMNode) -> LSTMNode:
    """Return the layer that two halves make."""
    forward, reverse = sorted((first, second), key=lambda layer: layer.reverse)
    return LSTMNode(
        f"{forward.name} and {reverse.name}",
        forward.x,
        forward.outputs + reverse.outputs,
        (False, True),
        forward.batch_major,
        forward.weight_ih + reverse.weight_ih,
        forward.weight_hh + reverse.weight_hh,
        forward.biases + reverse.biases,
    )
