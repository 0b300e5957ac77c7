"""A layer with a projection as a graph of ONNX: the equations, in the operator Scan.

The operator LSTM has no projection. Here the products with the input are made for all steps at
once, and a Scan runs the equations of `cupy_lstm.notation` over them, a direction at a time. What
lengths leave out changes no state, so a row of length 0 keeps its initial ones. The weights are
constants with the names of their parameters.
"""

from collections.abc import Mapping

import numpy

from cupy_lstm.backend import HostArray
from cupy_lstm.io.onnx_builder import Builder


def valid_steps(graph: Builder, x: str, lengths: str) -> str:
    """Return the name of a mask [T,B,1] of the steps that count; `x` is [T,B,...].

    Parameters
    ----------
    graph : Builder
        Where to add it.
    x : str
        Name of the input.
    lengths : str
        Name of int64 [B].
    """
    zero, one, first = (
        graph.constant(name, numpy.array(value))
        for name, value in (("start", 0), ("step", 1), ("axis_0", [0]))
    )
    steps = graph.node("Squeeze", graph.node("Shape", x, start=0, end=1))
    times = graph.node("Range", zero, steps, one)
    column = graph.node("Unsqueeze", times, graph.constant("axis_1", numpy.array([1])))
    valid = graph.node("Less", column, graph.node("Unsqueeze", lengths, first))
    return graph.node("Unsqueeze", valid, graph.constant("last", numpy.array([-1])))


def scanned_direction(
    graph: Builder,
    weights: Mapping[str, HostArray],
    end: str,
    x: str,
    states: tuple[str, str] | None,
    valid: str,
) -> tuple[str, str, str]:
    """Add one direction of a layer.

    Parameters
    ----------
    graph : Builder
        Where to add it.
    weights : mapping of str to array
        Of the whole LSTM, by name.
    end : str
        How the names of this direction end: ``"_l0_reverse"``.
    x : str
        Name of the input [T,B,I].
    states : tuple of str (h, c), optional
        Names of the initial states [B,P] and [B,H].
    valid : str
        Name of the mask of `valid_steps`, or nothing where all steps count.

    Returns
    -------
    tuple of str (y, h, c)
        Names of the outputs of all steps [T,B,P], and of the final states [B,P] and [B,H].
    """
    H, P = weights[f"weight_ho{end}"].shape
    kinds = [kind for kind in ("bias_ih", "bias_hh") if kind + end in weights]
    for kind in ("weight_ih", "weight_hh", "weight_ho", *kinds):
        graph.constant(kind + end, weights[kind + end])
    z = graph.node("MatMul", x, graph.node("Transpose", f"weight_ih{end}", perm=[1, 0]))
    for kind in kinds:
        z = graph.node("Add", z, kind + end)
    reverse = end.endswith("_reverse")
    scanned = [_from_the_end(graph, name) if reverse else name for name in (z, valid) if name]
    initial = states or (_zeros(graph, x, P), _zeros(graph, x, H))
    step = _step(graph, end, H, P, masked=bool(valid))
    body = step.as_graph(f"step{end}")
    h, c, y = graph.nodes(
        "Scan", *initial, *scanned, outputs=3, body=body, num_scan_inputs=len(scanned)
    )
    return _from_the_end(graph, y) if reverse else y, h, c


def _step(graph: Builder, end: str, H: int, P: int, masked: bool) -> Builder:
    """Return the body of the Scan: from h, c and a step's input to h, c and a step's output."""
    body = graph.body()
    h, c = body.input(f"h{end}", ("batch", P)), body.input(f"c{end}", ("batch", H))
    z = body.input(f"z{end}", ("batch", 4 * H))
    weight_hh = body.node("Transpose", f"weight_hh{end}", perm=[1, 0])
    z = body.node("Add", z, body.node("MatMul", h, weight_hh))
    gates = body.nodes("Split", z, outputs=4, axis=1)
    i, f, o = (body.node("Sigmoid", gates[n]) for n in (0, 1, 3))
    g = body.node("Tanh", gates[2])
    next_c = body.node("Add", body.node("Mul", f, c), body.node("Mul", i, g))
    m = body.node("Mul", o, body.node("Tanh", next_c))
    y = next_h = body.node("MatMul", m, f"weight_ho{end}")
    if masked:
        valid = body.input(f"valid{end}", ("batch", 1), body.onnx.TensorProto.BOOL)
        none = body.constant("none", numpy.array(0, body.dtype))
        y = body.node("Where", valid, next_h, none)
        next_h, next_c = body.node("Where", valid, next_h, h), body.node("Where", valid, next_c, c)
    body.output(next_h, f"next_h{end}", ("batch", P))
    body.output(next_c, f"next_c{end}", ("batch", H))
    body.output(y, f"y{end}", ("batch", P))
    return body


def _zeros(graph: Builder, x: str, features: int) -> str:
    """Return the name of zeros [B,features], for as many rows as `x` [T,B,...] has."""
    rows = graph.node("Shape", x, start=1, end=2)
    size = graph.constant(f"features_{features}", numpy.array([features]))
    shape = graph.node("Concat", rows, size, axis=0)
    return graph.node(
        "ConstantOfShape", shape, value=graph.tensor("zero", numpy.zeros(1, graph.dtype))
    )


def _from_the_end(graph: Builder, name: str) -> str:
    """Return the name of a value with its first axis turned around."""
    bounds = [
        graph.constant(f"turn_{part}", numpy.array([value]))
        for part, value in (("start", -1), ("end", -(2**62)), ("axis", 0), ("step", -1))
    ]
    return graph.node("Slice", name, *bounds)
