"""Every case of the table under the error rule, and central differences of every input."""

import dataclasses
import math

import numpy as np
import pytest
from cases import (
    CASES,
    TINY,
    Case,
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

from cupy_lstm import RNN, BiRNN, LSTMCell

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
def test_table(case, dtype):
    arrays = build(case, dtype)
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
