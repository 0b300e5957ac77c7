"""An LSTM from an ONNX file: its LSTM nodes, stacked where one's output is the next one's input."""

from collections.abc import Callable
from functools import partial
from os import PathLike
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy

from cupy_lstm.backend import HostArray
from cupy_lstm.cell import LSTMCell
from cupy_lstm.io.assembly import FLAT_NAME, assembled_lstm
from cupy_lstm.io.configuration import FORMAT, parsed_configuration, restored_lstm
from cupy_lstm.io.onnx_graph import Graph, Known
from cupy_lstm.io.onnx_nodes import LSTMNode, lstm_nodes
from cupy_lstm.io.optional import IO_EXTRA, optional_module
from cupy_lstm.lstm import LSTM
from cupy_lstm.rnn import RNN

STEPS, ROWS = 3, 5
"""Sizes of the numbered elements that are followed from one layer to the next."""


def from_onnx(
    path: str | PathLike[str],
    *,
    stack: int | None = None,
    xp: str | ModuleType = "numpy",
    dtype: Any = None,
) -> LSTM | RNN:
    """Return the LSTM that an ONNX file holds, as PyTorch, Keras and others export one.

    Nodes whose input is the whole output of the one before, and nothing but rearranged on the way,
    are the layers of one LSTM; a forward and a reverse node on the same input are its directions.
    What else the model computes is not read; initial states and lengths that it takes as inputs are
    given with each call here. A file of `to_onnx` gives layout, dropout and absent biases back,
    too, and a projection.

    Parameters
    ----------
    path : str or path
        The file. External data is read from its folder only, and through no link.
    stack : int, optional
        Which LSTM to take, counted from 0, where a file holds several.
    xp : module or str
        ``numpy`` or ``cupy``: where the weights go.
    dtype : dtype-like, optional
        What to convert the weights to; default: keep theirs.

    Returns
    -------
    LSTM or RNN
        Batch-major. An RNN over an LSTMCell, with ``is_reverse``, for a lone reverse direction.

    Raises
    ------
    ImportError
        If onnx is not installed, or CuPy where it is asked for.
    OSError
        If the file cannot be read.
    ValueError
        If it is no ONNX file, is damaged, holds no LSTM node, several stacks and no `stack`, or a
        node that computes what an LSTM here does not: peepholes, other activations, clipping,
        coupled gates, fixed initial states or lengths.
    """
    onnx = optional_module("onnx", "from_onnx", IO_EXTRA)
    protobuf = optional_module("google.protobuf.message", "from_onnx", IO_EXTRA)
    origin = str(path)
    try:
        # The format by name, else the end of the file's name chooses it.
        model = onnx.load(path, format="protobuf", load_external_data=False)
    except protobuf.DecodeError as error:
        raise ValueError(f"{origin} is no ONNX file, or a damaged one ({error})") from None
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    read = parsed_configuration(metadata[FORMAT], origin) if FORMAT in metadata else None
    try:
        graph = Graph(onnx, model.graph, Path(path).parent)
        layers = lstm_nodes(graph)
        if read and not layers:  # `to_onnx` writes a projection as equations
            weights = _parameters(graph)
        else:
            layers = _chosen(_stacks(graph, layers), stack)
            weights = _named(graph, layers)
    except ValueError as error:
        raise ValueError(f"{origin}: {error}; nothing was loaded") from None
    if layers and layers[0].reverse == (True,):
        return _reading_from_the_end(assembled_lstm(weights, origin, xp=xp, dtype=dtype))
    if read:
        return restored_lstm(read, _with_biases(weights, read), origin, xp, dtype)
    return assembled_lstm(weights, origin, xp=xp, dtype=dtype)


def _stacks(graph: Graph, layers: list[LSTMNode]) -> list[list[LSTMNode]]:
    """Return the layers, those that feed each other together."""
    stacks: list[list[LSTMNode]] = []
    known: dict[str, Callable[[], HostArray]] = {}
    for index, layer in enumerate(layers):
        try:
            x = graph.value(layer.x, known)
        except ValueError:  # what is made of it is no input of a layer, whatever it is
            x = None
        for stack in stacks:
            if x is not None and _feeds(stack[-1], layer, x, known):
                stack.append(layer)
                break
        else:
            stacks.append([layer])
        for number, name in enumerate(filter(None, layer.outputs)):
            known[name] = partial(_numbered, layer, 2 * index + number)
    return stacks


def _numbered(layer: LSTMNode, start: int) -> HostArray:
    """Return an output Y of a node of a layer with numbers that no other output has."""
    D, H = len(layer.reverse) // len(layer.outputs), layer.hidden_size
    shape = (ROWS, STEPS, D, H) if layer.batch_major else (STEPS, D, ROWS, H)
    numbers = numpy.arange(STEPS * ROWS * D * H, dtype="int64").reshape(shape)
    return numbers + (start << 40)


def _feeds(before: LSTMNode, layer: LSTMNode, x: HostArray, known: Known) -> bool:
    """Say whether `x` has each element of the output of `before` where a stack has it."""
    if (
        (True,) in (before.reverse, layer.reverse)
        or before.reverse != layer.reverse
        or before.hidden_size != layer.hidden_size
        or not all(before.outputs)
    ):
        return False
    axes = (1, 0, 2, 3) if before.batch_major else (0, 2, 1, 3)
    outputs = [known[name]().transpose(axes).reshape(STEPS, ROWS, -1) for name in before.outputs]
    expected = numpy.concatenate(outputs, axis=2)
    return numpy.array_equal(x, expected.swapaxes(0, 1) if layer.batch_major else expected)


def _chosen(stacks: list[list[LSTMNode]], stack: int | None) -> list[LSTMNode]:
    """Return the stack that is asked for, or the only one."""
    if not stacks:
        raise ValueError("it holds no LSTM node in its main graph")
    if stack is None and len(stacks) == 1:
        return stacks[0]
    if isinstance(stack, int) and 0 <= stack < len(stacks):
        return stacks[stack]
    held = ", ".join(f"{k} from {layers[0].name}" for k, layers in enumerate(stacks))
    raise ValueError(
        f"it holds {len(stacks)} stacks of LSTM nodes ({held}): choose one with stack=, "
        f"received {stack!r}"
    )


def _named(graph: Graph, layers: list[LSTMNode]) -> dict[str, HostArray]:
    """Return copies of the weights of layers by the names they have here."""
    arrays = [array for layer in layers for array in layer.weight_ih + layer.weight_hh]
    graph.charge(sum(array.size for array in arrays))
    biased = any(layer.biases for layer in layers)
    weights: dict[str, HostArray] = {}
    for k, layer in enumerate(layers):
        weights |= layer.named(k, biased)
    return weights


def _parameters(graph: Graph) -> dict[str, HostArray]:
    """Return the constants that have the names of weights."""
    found = {name: graph.constant(name) for name in graph.constants if FLAT_NAME.fullmatch(name)}
    return {name: weight for name, weight in found.items() if weight is not None}


def _with_biases(weights: dict[str, HostArray], read: dict[str, Any]) -> dict[str, HostArray]:
    """Return the weights without biases that a configuration has not, if they are zero."""
    absent = [kind for kind in ("bias_ih", "bias_hh") if read.get(kind) is False]
    return {
        name: weight
        for name, weight in weights.items()
        if name.partition("_l")[0] not in absent or weight.any()
    }


def _reading_from_the_end(lstm: LSTM) -> RNN:
    """Return an RNN with the weights of an LSTM of one layer, which reads from the end."""
    state = {name.removesuffix("_l0"): weight for name, weight in lstm.state_dict().items()}
    cell = LSTMCell(
        lstm.input_size,
        lstm.hidden_size,
        bias_ih_attr=None if "bias_ih" in state else False,
        bias_hh_attr=None if "bias_hh" in state else False,
        dtype=lstm.dtype,
        xp=lstm.xp,
    )
    cell.set_state_dict(state)
    return RNN(cell, is_reverse=True)
