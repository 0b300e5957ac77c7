"""An LSTM as an ONNX file: its layers, and what joins them."""

from collections.abc import Mapping
from os import PathLike
from pathlib import Path

import numpy

from cupy_lstm.backend import HostArray
from cupy_lstm.io.configuration import FORMAT, configuration_as_json
from cupy_lstm.io.files import write_whole
from cupy_lstm.io.host import host_weights, require_lstm, require_no_half_type
from cupy_lstm.io.onnx_builder import Builder
from cupy_lstm.io.onnx_gates import TO_ONNX, reordered
from cupy_lstm.io.onnx_scan import scanned_direction, valid_steps
from cupy_lstm.io.optional import IO_EXTRA, optional_module
from cupy_lstm.lstm import LSTM

LARGEST = 2**31 - 2**20
"""Bytes of weights that fit a protobuf message, with some room for the rest."""


def to_onnx(
    lstm: LSTM,
    path: str | PathLike[str],
    *,
    initial_states: bool = False,
    sequence_length: bool = False,
) -> None:
    """Write an LSTM as an ONNX model, complete or not at all.

    Any number of rows and steps may go in, though onnxruntime 1.31 fails on none. The inputs and
    outputs are those of a call in evaluation mode, in the layout of `lstm`: ``inputs`` in;
    ``outputs``, ``h`` and ``c`` out. A row of length 0 keeps its initial states, for which the
    model has nodes of its own, and a bias that is absent beside one that is there becomes zero. The
    operator LSTM has no projection: a layer with one is written as its equations, in the operator
    Scan.

    Parameters
    ----------
    lstm : LSTM
        float32 or float64; a GPU is waited for. onnxruntime 1.31 computes the operator LSTM in
        float32 only.
    path : str or path
        The file; one that is there is replaced.
    initial_states : bool
        Whether the model has the inputs ``h0`` [L*D,B,P] and ``c0`` [L*D,B,H]; else they are
        zero.
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
        If it is of a half type, or the weights take more than 2 GiB.
    """
    require_lstm(lstm)
    onnx = optional_module("onnx", "to_onnx", IO_EXTRA)
    _require_expressible(lstm)
    graph = Builder(onnx, lstm.dtype)
    L, D, H = lstm.num_layers, lstm.num_directions, lstm.hidden_size
    P = lstm.proj_size or H
    rows = ("batch", "steps") if not lstm.time_major else ("steps", "batch")
    x = graph.input("inputs", (*rows, lstm.input_size))
    if not lstm.time_major:
        x = graph.node("Transpose", x, perm=[1, 0, 2])
    states, lengths = None, ""
    if initial_states:
        states = (
            graph.input("h0", (L * D, "batch", P)),
            graph.input("c0", (L * D, "batch", H)),
        )
    if sequence_length:
        lengths = graph.input("sequence_length", ("batch",), onnx.TensorProto.INT64)
    add_layers = _scans if lstm.proj_size else _lstm_nodes
    y, *finals = add_layers(graph, lstm, x, states, lengths)
    if not lstm.time_major:
        y = graph.node("Transpose", y, perm=[1, 0, 2])
    graph.output(y, "outputs", (*rows, D * P))
    for place, (name, size) in enumerate((("h", P), ("c", H))):
        final = finals[place]
        if lengths:  # what a row of length 0 ends with, the operator LSTM leaves open
            zero = numpy.array(0, lstm.dtype)
            initially = states[place] if states else graph.constant("none", zero)
            final = graph.node("Where", _is_empty(graph, lengths), initially, final)
        graph.output(final, name, (L * D, "batch", size))
    write_whole(Path(path), graph.as_bytes({FORMAT: configuration_as_json(lstm)}))


def _require_expressible(lstm: LSTM) -> None:
    require_no_half_type(lstm, "is written as ONNX in float32 and float64 only")
    size = sum(parameter.size * parameter.dtype.itemsize for parameter in lstm.parameters())
    if size > LARGEST:
        raise ValueError(f"lstm has {size} bytes of weights, but an ONNX file holds {LARGEST}")


def _lstm_nodes(
    graph: Builder, lstm: LSTM, x: str, states: tuple[str, str] | None, lengths: str
) -> tuple[str, str, str]:
    """Add a node LSTM for each layer; return the names of outputs and final states."""
    L, D, H = lstm.num_layers, lstm.num_directions, lstm.hidden_size
    host = host_weights(lstm)
    if lengths:
        lengths = graph.node("Cast", lengths, to=graph.onnx.TensorProto.INT32)
    initial = [["", ""] for _ in range(L)]
    if states:
        sizes = graph.constant("directions", numpy.full(L, D))
        pieces = [graph.nodes("Split", state, sizes, outputs=L, axis=0) for state in states]
        initial = [list(pair) for pair in zip(*pieces, strict=True)]
    finals = []
    for k in range(L):
        weights = [
            "" if weight is None else graph.constant(f"{letter}{k}", weight)
            for letter, weight in zip("WRB", _onnx_weights(lstm, host, k), strict=True)
        ]
        # Outputs Y [T,D,B,H], Y_h and Y_c [D,B,H].
        y, *final = graph.nodes(
            "LSTM",
            x,
            *weights,
            lengths,
            *initial[k],
            outputs=3,
            hidden_size=H,
            direction="forward" if D == 1 else "bidirectional",
        )
        finals.append(final)
        y = graph.node("Transpose", y, perm=[0, 2, 1, 3])
        x = graph.node("Reshape", y, graph.constant("joined", numpy.array([0, 0, -1])))
    h, c = (graph.node("Concat", *names, axis=0) for names in zip(*finals, strict=True))
    return x, h, c


def _scans(
    graph: Builder, lstm: LSTM, x: str, states: tuple[str, str] | None, lengths: str
) -> tuple[str, str, str]:
    """Add a Scan for each layer and direction; return the names of outputs and final states."""
    L, D = lstm.num_layers, lstm.num_directions
    weights = host_weights(lstm)
    valid = valid_steps(graph, x, lengths) if lengths else ""
    front = graph.constant("front", numpy.array([0]))
    finals = []
    for k in range(L):
        outputs = []
        for d, end in enumerate([f"_l{k}", f"_l{k}_reverse"][:D]):
            initial = None
            if states:
                index = graph.constant(f"index{end}", numpy.array(k * D + d))
                h, c = (graph.node("Gather", state, index, axis=0) for state in states)
                initial = h, c
            y, *final = scanned_direction(graph, weights, end, x, initial, valid)
            outputs.append(y)
            finals.append([graph.node("Unsqueeze", name, front) for name in final])
        x = graph.node("Concat", *outputs, axis=2)
    h, c = (graph.node("Concat", *names, axis=0) for names in zip(*finals, strict=True))
    return x, h, c


def _onnx_weights(
    lstm: LSTM, weights: Mapping[str, HostArray], layer: int
) -> tuple[HostArray, HostArray, HostArray | None]:
    """Return W [D,4H,I], R [D,4H,H] and B [D,8H] of a layer, the gates in ONNX's order."""
    ends = [f"_l{layer}", f"_l{layer}_reverse"][: lstm.num_directions]

    def ordered(kind: str) -> HostArray:
        return numpy.stack([reordered(weights[kind + end], TO_ONNX) for end in ends])

    W, R = ordered("weight_ih"), ordered("weight_hh")
    if f"bias_ih{ends[0]}" not in weights:
        return W, R, None
    return W, R, numpy.concatenate([ordered("bias_ih"), ordered("bias_hh")], axis=1)


def _is_empty(graph: Builder, lengths: str) -> str:
    """Return the name of a mask [B,1] of the rows of length 0."""
    empty = graph.node("Equal", lengths, graph.constant("no_steps", numpy.array(0)))
    return graph.node("Unsqueeze", empty, graph.constant("last", numpy.array([-1])))
