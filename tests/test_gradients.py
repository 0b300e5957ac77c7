"""Every case of the table under the error rule, and central differences of every input."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
from cases import (
    CASES,
    DROPOUT_KEY,
    HOST_ENGINES,
    TINY,
    Case,
    aim_at_steps,
    assert_case,
    assert_within_rule,
    backward,
    build,
    forward,
    make_lstm,
    naive,
    reference,
    run_face,
    run_oracle,
    wider,
)
from oracle import Result, lstm_oracle

from cupy_lstm import RNN, BiRNN, LSTMCell, engine, engines, plan
from cupy_lstm.dropout import Dropout
from cupy_lstm.functional import lstm_backward, lstm_forward
from cupy_lstm.notation import LayerWeights, Shape, Wanted

DTYPES = [
    "float32",
    pytest.param(
        "float64",
        marks=pytest.mark.skipif(
            np.finfo(np.longdouble).eps >= np.finfo(np.float64).eps,
            reason="long double is no wider than double here: nothing to measure float64 against",
        ),
    ),
]

each_dtype = pytest.mark.parametrize("dtype", DTYPES)
each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
each_tiny = pytest.mark.parametrize("case", TINY, ids=lambda case: case.id)


@each_dtype
@each_case
@pytest.mark.parametrize("name", HOST_ENGINES)
def test_table(case, dtype, name):
    arrays = build(case, dtype)
    with engine(name):
        result = run_face(case, arrays, dtype)
    assert_case(case, dtype, result)
    assert_padding_is_zero(case, result)
    assert_empty_rows_keep_their_states(case, arrays, result)


def assert_padding_is_zero(case, result):
    """Exactly zero, whatever the rule allows."""
    if case.lengths is None:
        return
    padding = np.arange(case.T) >= np.array(case.lengths, int)[:, None]
    if case.time_major:
        padding = padding.T
    for array in (result.y, result.dx, *([result.cells] if case.return_cells else [])):
        assert not array[padding].any()


def assert_empty_rows_keep_their_states(case, arrays, result):
    """A row of no steps passes its states, and their gradients, through bit by bit."""
    lengths = [case.T] * case.B if case.lengths is None else case.lengths
    for row in np.flatnonzero(np.equal(lengths, 0)):
        for final, initial in zip((result.h, result.c), arrays.states or (0, 0), strict=True):
            assert np.array_equal(
                final[:, row], initial[:, row] if case.states else 0 * final[:, row]
            )
        for name, gradient in (("h", result.dh0), ("c", result.dc0)):
            passed = arrays.upstream.get(name, np.zeros_like(gradient))
            assert np.array_equal(gradient[:, row], passed[:, row])


@each_dtype
@each_case
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("name", HOST_ENGINES)
def test_table_in_chunks(case, dtype, name, steps, monkeypatch):
    """The workspace of a chunk bounds its steps, never the result."""
    shape, itemsize = layer_shapes(case)[-1], np.dtype(dtype).itemsize
    aim_at_steps(monkeypatch, name, shape, steps, itemsize)
    if shape.B:  # no rows, no workspace: then there is no reason for chunks
        assert plan.plan_sweep(shape, dtype, forced=name).steps_per_chunk <= steps
    with engine(name):
        assert_case(case, dtype, run_face(case, build(case, dtype), dtype))


def layer_shapes(case):
    P = case.P or case.H
    widths = [case.I, *[case.D * P] * (case.L - 1)]
    return [Shape(case.T, case.B, width, case.H, P, case.D) for width in widths]


@each_dtype
def test_gradients_accumulate_until_cleared(dtype):
    case = Case("accumulate", lengths=(3, 5, 0), bidirectional=True, L=2, states=True, P=2)
    arrays = build(case, dtype)
    lstm = make_lstm(case, arrays.weights, dtype)
    for _ in range(2):
        result = backward(lstm, case, arrays, forward(lstm, case, arrays))
    truth, yardstick = reference(case, dtype), naive(case, dtype)
    assert_within_rule("dx", result.dx, truth.dx, yardstick.dx)
    for name, grad in result.grads.items():
        assert_within_rule(name, grad, 2 * truth.grads[name], 2 * yardstick.grads[name])
    lstm.clear_gradients()
    assert_case(case, dtype, backward(lstm, case, arrays, forward(lstm, case, arrays)))


# Below the face: the functional core, and an engine over ranges of steps.


def stacked(case, weights):
    """Return the weights of every layer with the directions in front, [D, ...]."""
    suffixes = ("", "_reverse")[: case.D]
    return [
        LayerWeights(
            *(
                np.stack([weights[f"{kind}_l{layer}{suffix}"] for suffix in suffixes])
                if f"{kind}_l{layer}" in weights
                else None
                for kind in LayerWeights._fields
            )
        )
        for layer in range(case.L)
    ]


def unstacked(case, layers):
    """Return the weights by name, without those that are None."""
    named = {
        f"{kind}_l{layer}{suffix}": arrays[d]
        for layer, kinds in enumerate(layers)
        for d, suffix in enumerate(("", "_reverse")[: case.D])
        for kind, arrays in zip(kinds._fields, kinds, strict=True)
        if arrays is not None
    }
    return {name: named[name] for name in case.weight_shapes() if name in named}


def core_forward(case, arrays, weights, dropout=None):
    return lstm_forward(
        arrays.x,
        weights,
        arrays.states,
        arrays.lengths,
        reverse=(False, True)[: case.D],
        time_major=case.time_major,
        dropout=dropout,
        return_cells=True,
    )


def upstream_arguments(case, arrays):
    up = arrays.upstream
    return up.get("y"), (up.get("h"), up.get("c")), up.get("cells")


@each_dtype
@each_case
def test_functional_core(case, dtype):
    case = dataclasses.replace(case, frozen=())
    arrays = build(case, dtype)
    dropout = None
    if case.dropout:
        dropout = Dropout(case.dropout, DROPOUT_KEY["seed"], DROPOUT_KEY["call"])
    weights = stacked(case, arrays.weights)
    y, (h, c), cells, tape = core_forward(case, arrays, weights, dropout)
    dx, (dh0, dc0), grads = lstm_backward(tape, *upstream_arguments(case, arrays))
    result = Result(y, h, c, cells, dx, dh0, dc0, unstacked(case, grads))
    assert_case(case, dtype, result)


@each_dtype
def test_functional_core_computes_the_wanted_gradients_only(dtype):
    case = Case("wanted", L=2, bidirectional=True, states=True, P=3, lengths=(5, 2, 0))
    arrays = build(case, dtype)
    both, reverse = slice(None), slice(1, 2)
    wanted = [Wanted(None, both, None, reverse, None), Wanted(reverse, None, both, None, both)]
    weights = stacked(case, arrays.weights)
    tape = core_forward(case, arrays, weights)[-1]
    done = []
    *_, grads = lstm_backward(
        tape, *upstream_arguments(case, arrays), wanted=wanted, layer_done=done.append
    )
    assert done == [1, 0]
    truth, yardstick = reference(case, dtype).grads, naive(case, dtype).grads
    for layer, kinds in enumerate(wanted):
        for kind, some in zip(kinds._fields, kinds, strict=True):
            for d, suffix in enumerate(("", "_reverse")):
                name = f"{kind}_l{layer}{suffix}"
                gradient = getattr(grads[layer], kind)[d]
                if some is not None and d in range(2)[some]:
                    assert_within_rule(name, gradient, truth[name], yardstick[name])
                else:
                    assert not gradient.any(), name


@each_dtype
def test_dropout_of_a_part_of_the_batch_is_that_of_the_whole(dtype):
    case = Case("dropout-parts", B=5, L=3, H=9, dropout=0.4, time_major=True)
    arrays = build(case, dtype)
    weights = stacked(case, arrays.weights)
    parts = []
    for rows in (slice(0, 2), slice(2, 5)):
        part = dataclasses.replace(arrays, x=arrays.x[:, rows])
        dropout = Dropout(case.dropout, DROPOUT_KEY["seed"], DROPOUT_KEY["call"], rows.start)
        parts.append(core_forward(case, part, weights, dropout)[0])
    whole = np.concatenate(parts, axis=1)
    assert_within_rule("y", whole, reference(case, dtype).y, naive(case, dtype).y)


@each_dtype
@pytest.mark.parametrize("name", HOST_ENGINES)
@pytest.mark.parametrize("bounds", [(0, 2, 7), (0, 1, 4, 6, 7), (0, 0, 7, 7)], ids=str)
def test_engine_over_ranges_of_steps(dtype, name, bounds):
    """A sweep in parts, states handed on, forward and backward: the protocol's `steps`."""
    case = Case(
        "ranges",
        T=7,
        P=4,
        lengths=(3, 7, 0),
        bidirectional=True,
        time_major=True,
        states=True,
        upstream=("y", "h", "c", "cells"),
    )
    arrays = build(case, dtype)
    runner, (weights,) = engines.load(name), stacked(case, arrays.weights)

    def apart(array):
        return array.reshape(case.T, case.B, case.D, -1)

    shapes = case.shapes()
    y, cells = (np.full(shapes[n], np.nan, dtype) for n in ("y", "cells"))
    tapes, states = [], arrays.states
    for start, stop in itertools.pairwise(bounds):
        states, tape = runner.forward(
            arrays.x,
            weights,
            states,
            arrays.lengths,
            reverse=(False, True),
            y=apart(y),
            cells=apart(cells),
            keep=True,
            steps=range(start, stop),
            chunk=2,
        )
        tapes.append(tape)
    up = arrays.upstream
    dstates = up["h"], up["c"]
    dx = np.zeros_like(arrays.x)
    grads = LayerWeights(*map(np.zeros_like, weights))
    for tape in reversed(tapes):
        dstates = runner.backward(
            [tape],
            apart(up["y"]),
            dstates,
            apart(up["cells"]),
            wanted=Wanted(*[slice(None)] * 5),
            gradients=grads,
            dx=dx,
        )
    assert_case(case, dtype, Result(y, *states, cells, dx, *dstates, unstacked(case, [grads])))


# The modules around one cell.

AROUND = [
    Case("around-plain"),
    Case("around-states-lengths", states=True, lengths=(3, 5, 0)),
    Case("around-time-major-lengths", states=True, lengths=(3, 5, 0), time_major=True),
    Case("around-projection", states=True, P=4, lengths=(1, 5, 4)),
    Case("around-no-bias", states=True, bias_ih=False, bias_hh=False),
    Case("around-some-upstream", states=True, upstream=("c",)),
]
each_around = pytest.mark.parametrize("case", AROUND, ids=lambda case: case.id)


def make_cell(case, weights, dtype, suffix="_l0"):
    cell = LSTMCell(
        case.I,
        case.H,
        bias_ih_attr=None if case.bias_ih else False,
        bias_hh_attr=None if case.bias_hh else False,
        proj_size=case.P,
        dtype=dtype,
    )
    own = {name.removesuffix(suffix): w for name, w in weights.items() if name.endswith(suffix)}
    assert cell.set_state_dict(own) == ([], [])
    return cell


def grads_of(cell, suffix="_l0"):
    return {name + suffix: p.grad for name, p in cell.named_parameters() if p.grad is not None}


@each_dtype
@each_around
@pytest.mark.parametrize("is_reverse", [False, True], ids=["forward", "reverse"])
def test_rnn(case, dtype, is_reverse):
    arrays = build(case, dtype)
    cell = make_cell(case, arrays.weights, dtype)
    rnn = RNN(cell, is_reverse, case.time_major)
    states = arrays.states and tuple(s[0] for s in arrays.states)
    y, (h, c) = rnn(arrays.x, states, sequence_length=arrays.lengths)
    up = arrays.upstream
    dstates = tuple(up[name][0] if name in up else None for name in "hc")
    dx, (dh0, dc0) = rnn.backward(up.get("y"), dstates)
    layered = [a[None] for a in (h, c, dh0, dc0)]
    actual = {"y": y, "dx": dx} | dict(zip(("h", "c", "dh0", "dc0"), layered, strict=True))

    def run(precision):
        return lstm_oracle(
            arrays.x,
            arrays.weights,
            is_reverse=is_reverse,
            time_major=case.time_major,
            states=arrays.states,
            lengths=arrays.lengths,
            upstream=up,
            dtype=precision,
        )

    truth, yardstick = run(wider(dtype)), run(np.dtype(dtype))
    for name, array in actual.items():
        assert_within_rule(name, array, getattr(truth, name), getattr(yardstick, name))
    grads = grads_of(cell)
    assert list(grads) == list(case.weight_shapes())
    for name, grad in grads.items():
        assert_within_rule(name, grad, truth.grads[name], yardstick.grads[name])


@each_dtype
@each_around
def test_birnn(case, dtype):
    case = dataclasses.replace(case, id=case.id + "-both", bidirectional=True)
    arrays = build(case, dtype)
    cells = [make_cell(case, arrays.weights, dtype, suffix) for suffix in ("_l0", "_l0_reverse")]
    rnn = BiRNN(*cells, case.time_major)
    states = arrays.states and tuple(zip(*arrays.states, strict=True))
    y, (forward_states, reverse_states) = rnn(arrays.x, states, sequence_length=arrays.lengths)
    up = arrays.upstream
    dstates = tuple(tuple(up[n][d] if n in up else None for n in "hc") for d in range(2))
    dx, dstates0 = rnn.backward(up.get("y"), dstates)
    h, c = map(np.stack, zip(forward_states, reverse_states, strict=True))
    dh0, dc0 = map(np.stack, zip(*dstates0, strict=True))
    grads = grads_of(cells[0]) | grads_of(cells[1], "_l0_reverse")
    assert_case(case, dtype, Result(y, h, c, None, dx, dh0, dc0, grads))


@each_dtype
@each_around
def test_cell(case, dtype):
    case = dataclasses.replace(case, id=case.id + "-once", T=1, lengths=None, time_major=True)
    arrays = build(case, dtype)
    cell = make_cell(case, arrays.weights, dtype)
    states = arrays.states and tuple(s[0] for s in arrays.states)
    out, (h, c) = cell(arrays.x[0], states)
    assert np.array_equal(out, h)
    up = arrays.upstream
    dstates = tuple(up[name][0] if name in up else None for name in "hc")
    dx, (dh0, dc0) = cell.backward(up["y"][0] if "y" in up else None, dstates)
    layered = [a[None] for a in (out, h, c, dx, dh0, dc0)]
    y, h, c, dx, dh0, dc0 = layered
    assert_case(case, dtype, Result(y, h, c, None, dx, dh0, dc0, grads_of(cell)))


# Central differences.

STEP = np.finfo(np.float64).eps ** (1 / 3)  # where truncation and rounding are of one size


def assert_central_differences(loss, array, gradient, name):
    """Compare `gradient` with central differences of ``loss() -> (value, magnitude)``.

    The tolerance is the error of the differences themselves: truncation, estimated from two
    steps, and the rounding of the loss, whose terms add up to `magnitude`, over the step.
    """
    eps = np.finfo(np.float64).eps
    for index in np.ndindex(array.shape):
        slopes = []
        middle = array[index]
        for step in (STEP, 2 * STEP):
            values = []
            for sign in (1, -1):
                array[index] = middle + sign * step
                value, magnitude = loss()
                values.append(value)
            slopes.append((values[0] - values[1]) / (2 * step))
        array[index] = middle
        allowed = abs(slopes[1] - slopes[0]) + 4 * eps * magnitude / STEP
        error = abs(gradient[index] - slopes[0])
        assert error <= allowed, f"{name}{index}: error {error:.3g}, allowed {allowed:.3g}"


def loss_of(case, arrays, result):
    """Return sum(upstream * output) and the sum of the magnitudes of its terms."""
    terms = [a * getattr(result, name) for name, a in arrays.upstream.items()]
    terms = np.concatenate([term.ravel() for term in terms])
    return math.fsum(terms), abs(terms).sum()


def inputs_and_gradients(case, arrays, result):
    """Yield name, array and gradient of everything the loss can be differentiated by."""
    yield "x", arrays.x, result.dx
    if case.states:
        yield "h0", arrays.states[0], result.dh0
        yield "c0", arrays.states[1], result.dc0
    for name, w in arrays.weights.items():
        yield name, w, result.grads[name]


@each_tiny
def test_oracle_against_central_differences(case):
    arrays = build(case, "float64")

    def loss():
        upstream_free = dataclasses.replace(arrays, upstream=None)
        return loss_of(case, arrays, run_oracle(case, upstream_free, np.float64))

    result = run_oracle(case, arrays, np.float64)
    for name, array, gradient in inputs_and_gradients(case, arrays, result):
        assert_central_differences(loss, array, gradient, name)


@each_tiny
def test_face_against_central_differences(case):
    arrays = build(case, "float64")
    lstm = make_lstm(case, arrays.weights, "float64")

    def loss():
        lstm.set_state_dict(arrays.weights)
        return loss_of(case, arrays, forward(lstm, case, arrays))

    result = backward(lstm, case, arrays, forward(lstm, case, arrays))
    for name, array, gradient in inputs_and_gradients(case, arrays, result):
        assert_central_differences(loss, array, gradient, name)
