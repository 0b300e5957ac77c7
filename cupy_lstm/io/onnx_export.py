"""An LSTM as an ONNX file: a node for each layer, and what joins them."""

from os import PathLike
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy

from cupy_lstm.backend import HostArray
from cupy_lstm.io.configuration import FORMAT, configuration_as_json
from cupy_lstm.io.files import write_whole
from cupy_lstm.io.host import host_weights, require_lstm, require_no_half_type
from cupy_lstm.io.optional import optional_module
from cupy_lstm.io.tensors import INSTALL
from cupy_lstm.lstm import LSTM

OPSET, IR_VERSION = 17, 8
"""Old enough for every runtime in use; the operator LSTM is that of opset 14."""

LARGEST = 2**31 - 2**20
"""Bytes of weights that fit a protobuf message, with some room for the rest."""

TO_ONNX = (0, 3, 1, 2)
"""Where ONNX's gates i, o, f, c lie among the four blocks of rows here, which are i, f, g, o."""


def to_onnx(
    lstm: LSTM,
    path: str | PathLike[str],
    *,
    initial_states: bool = False,
    sequence_length: bool = False,
) -> None:
    """Write an LSTM as an ONNX model, complete or not at all.

    Any number of rows and steps may go in. The inputs and outputs are those of a call in
    evaluation mode, in the layout of `lstm`: ``inputs`` in; ``outputs``, ``h`` and ``c`` out. A row
    of length 0 keeps its initial states, for which the model has nodes of its own, and a bias that
    is absent beside one that is there becomes zero.

    Parameters
    ----------
    lstm : LSTM
        float32 or float64, without projection; a GPU is waited for. onnxruntime 1.31 computes an
        LSTM in float32 only.
    path : str or path
        The file; one that is there is replaced.
    initial_states : bool
        Whether the model has the inputs ``h0`` and ``c0``, both [L*D,B,H]; else they are zero.
    sequence_length : bool
        Whether the model has the input ``sequence_length``, int64 [B].

    Raises
    ------
    TypeError
        If `lstm` is none.
    ImportError
        If onnx is not installed.
    OSError
        If the file cannot be written; what was there stays then.
    ValueError
        If there is a projection or a half type, or the weights take more than 2 GiB.
    """
    require_lstm(lstm)
    onnx = optional_module("onnx", "to_onnx", INSTALL)
    _require_expressible(lstm)
    graph = _Graph(onnx, lstm.dtype)
    L, D, H = lstm.num_layers, lstm.num_directions, lstm.hidden_size
    rows = ("batch", "steps") if not lstm.time_major else ("steps", "batch")
    x = graph.input("inputs", (*rows, lstm.input_size))
    if not lstm.time_major:
        x = graph.node("Transpose", x, perm=[1, 0, 2])
    states, lengths = None, ""
    if initial_states:
        states = [graph.input(name, (L * D, "batch", H)) for name in ("h0", "c0")]
    if sequence_length:
        given = graph.input("sequence_length", ("batch",), onnx.TensorProto.INT64)
        lengths = graph.node("Cast", given, to=onnx.TensorProto.INT32)
    initial, zero = _split(graph, states, L, D), numpy.array(0, lstm.dtype)
    finals = []
    for k in range(L):
        weights = _onnx_weights(lstm, k)
        named = [
            "" if weight is None else graph.constant(f"{name}{k}", weight)
            for name, weight in zip("WRB", weights, strict=True)
        ]
        # Outputs Y [T,D,B,H], Y_h and Y_c [D,B,H].
        y, h, c = graph.node(
            "LSTM",
            x,
            *named,
            lengths,
            *initial[k],
            outputs=3,
            hidden_size=H,
            direction="forward" if D == 1 else "bidirectional",
        )
        finals.append((h, c))
        y = graph.node("Transpose", y, perm=[0, 2, 1, 3])
        x = graph.node("Reshape", y, graph.constant("joined", numpy.array([0, 0, -1])))
    if not lstm.time_major:
        x = graph.node("Transpose", x, perm=[1, 0, 2])
    graph.output(x, "outputs", (*rows, D * H))
    for index, name in enumerate(("h", "c")):
        final = graph.node("Concat", *(pair[index] for pair in finals), axis=0)
        if lengths:  # what a row of length 0 ends with, the operator leaves open
            initially = states[index] if states else graph.constant("none", zero)
            final = graph.node("Where", _is_empty(graph, lengths), initially, final)
        graph.output(final, name, (L * D, "batch", H))
    write_whole(Path(path), graph.as_bytes(configuration_as_json(lstm)))


def _require_expressible(lstm: LSTM) -> None:
    if lstm.proj_size:
        raise ValueError(
            f"lstm has proj_size={lstm.proj_size}, but the ONNX operator LSTM has no projection"
        )
    require_no_half_type(lstm, "is written as ONNX in float32 and float64 only")
    size = sum(parameter.size * parameter.dtype.itemsize for parameter in lstm.parameters())
    if size > LARGEST:
        raise ValueError(f"lstm has {size} bytes of weights, but an ONNX file holds {LARGEST}")


def _onnx_weights(lstm: LSTM, layer: int) -> tuple[HostArray, HostArray, HostArray | None]:
    """Return W [D,4H,I], R [D,4H,H] and B [D,8H] of a layer, the gates in ONNX's order."""
    weights = host_weights(lstm)
    ends = [f"_l{layer}", f"_l{layer}_reverse"][: lstm.num_directions]

    def ordered(kind: str) -> HostArray:
        stacked = numpy.stack([weights[kind + end] for end in ends])
        D, _, *columns = stacked.shape
        gates = stacked.reshape(D, 4, lstm.hidden_size, *columns)
        return gates[:, list(TO_ONNX)].reshape(stacked.shape)

    W, R = ordered("weight_ih"), ordered("weight_hh")
    if f"bias_ih{ends[0]}" not in weights:
        return W, R, None
    return W, R, numpy.concatenate([ordered("bias_ih"), ordered("bias_hh")], axis=1)


def _split(graph: "_Graph", states: list[str] | None, L: int, D: int) -> list[list[str]]:
    """Return for each layer its initial h and c, [D,B,H]; two empty names where there are none."""
    if states is None:
        return [["", ""] for _ in range(L)]
    sizes = graph.constant("directions", numpy.full(L, D))
    pieces = [graph.node("Split", state, sizes, outputs=L, axis=0) for state in states]
    return [list(pair) for pair in zip(*pieces, strict=True)]


def _is_empty(graph: "_Graph", lengths: str) -> str:
    """Return the name of a mask [B,1] of the rows of length 0."""
    zero = graph.constant("zero", numpy.array(0, "int32"))
    empty: str = graph.node("Equal", lengths, zero)
    column: str = graph.node("Unsqueeze", empty, graph.constant("last", numpy.array([-1])))
    return column


class _Graph:
    """A graph of ONNX that grows node by node."""

    def __init__(self, onnx: ModuleType, dtype: "numpy.dtype[Any]") -> None:
        self._onnx = onnx
        self._type = onnx.helper.np_dtype_to_tensor_dtype(dtype)
        self._nodes: list[Any] = []
        self._inputs: list[Any] = []
        self._outputs: list[Any] = []
        self._constants: dict[str, Any] = {}

    def input(self, name: str, shape: tuple[int | str, ...], kind: int | None = None) -> str:
        """Add an input of the model and return its name."""
        self._inputs.append(self._described(name, shape, kind))
        return name

    def output(self, source: str, name: str, shape: tuple[int | str, ...]) -> None:
        """Make a value an output of the model, under this name."""
        self._nodes.append(self._onnx.helper.make_node("Identity", [source], [name]))
        self._outputs.append(self._described(name, shape))

    def constant(self, name: str, value: HostArray) -> str:
        """Add a constant, once for each name, and return the name."""
        self._constants[name] = self._onnx.numpy_helper.from_array(
            numpy.ascontiguousarray(value).reshape(value.shape), name
        )
        return name

    def node(self, operator: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        """Add a node and return the name of its output, or a list of them."""
        stem = f"{operator}_{len(self._nodes)}"
        names = [f"{stem}_{n}" for n in range(outputs)]
        self._nodes.append(self._onnx.helper.make_node(operator, inputs, names, stem, **attributes))
        return names if outputs > 1 or operator == "Split" else names[0]

    def as_bytes(self, configuration: str) -> bytes:
        """Return the model as the bytes of a file."""
        from cupy_lstm import __version__

        helper = self._onnx.helper
        graph = helper.make_graph(
            self._nodes, "LSTM", self._inputs, self._outputs, [*self._constants.values()]
        )
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="cupy_lstm",
            producer_version=__version__,
        )
        helper.set_model_props(model, {FORMAT: configuration})
        contents: bytes = model.SerializeToString(deterministic=True)
        return contents

    def _described(self, name: str, shape: tuple[int | str, ...], kind: int | None = None) -> Any:
        return self._onnx.helper.make_tensor_value_info(name, kind or self._type, shape)
