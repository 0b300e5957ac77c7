"""What must hold for every shape and option, searched by Hypothesis."""

import dataclasses

import numpy as np
import pytest
from cases import (
    HOST_ENGINES,
    UPSTREAM,
    Case,
    assert_case,
    assert_within_rule,
    backward,
    build,
    forward,
    make_lstm,
    naive,
    reference,
    results,
    run_face,
)
from hypothesis import given
from hypothesis import strategies as st

from cupy_lstm import engine, no_grad

WIDE_REFERENCE = np.finfo(np.longdouble).eps < np.finfo(np.float64).eps
DTYPES = ["float32", "float64"] if WIDE_REFERENCE else ["float32"]
dtypes = st.sampled_from(DTYPES)


@pytest.fixture(autouse=True, params=HOST_ENGINES)
def forced(request):
    """Every property of every engine."""
    with engine(request.param):
        yield


@st.composite
def cases(draw, lengths=True, **fixed):
    """Draw a case of at least three rows and outputs: in fewer numbers the error of a naive loop
    is too often next to nothing by luck, and the rule measures against it."""
    T, B, H = draw(st.integers(0, 6)), draw(st.integers(3, 5)), draw(st.integers(3, 9))
    upstream = st.sets(st.sampled_from([*UPSTREAM, "cells"]), min_size=1)
    drawn = {
        "T": T,
        "B": B,
        "H": H,
        "I": draw(st.integers(2, 6)),
        "L": draw(st.integers(1, 3)),
        "P": draw(st.sampled_from([0, 0, *range(3, H)])),
        "bidirectional": draw(st.booleans()),
        "time_major": draw(st.booleans()),
        "bias_ih": draw(st.booleans()),
        "bias_hh": draw(st.booleans()),
        "states": draw(st.booleans()),
        "upstream": tuple(sorted(draw(upstream))),
    }
    if lengths and draw(st.booleans()):
        drawn["lengths"] = draw(st.tuples(*[st.integers(0, T)] * B))
    case = Case("property", seed=draw(st.integers(0, 9999)), **(drawn | fixed))
    frozen = st.sets(st.sampled_from(sorted(case.weight_shapes())), max_size=3)
    return dataclasses.replace(case, frozen=tuple(sorted(draw(frozen))))


def assert_bit_equal(first, second):
    first, second = results(first), results(second)
    assert first.keys() == second.keys()
    for name in first:
        assert first[name].dtype == second[name].dtype
        assert np.array_equal(first[name], second[name]), name


def rearrange(array, how):
    """Return an equal array with other strides."""
    if how == "transposed":
        return array.T.copy().T
    if how == "strided":
        between = np.nan if array.dtype.kind == "f" else -1  # neither may be read
        wide = np.full((*array.shape[:-1], 2 * array.shape[-1]), between, array.dtype)
        wide[..., ::2] = array
        return wide[..., ::2]
    if how == "negative":
        return array[..., ::-1].copy()[..., ::-1]
    if how == "unaligned":
        raw = np.zeros(array.nbytes + 1, np.uint8)
        shifted = raw[1:].view(array.dtype).reshape(array.shape)
        shifted[...] = array
        return shifted
    copied = array.copy()
    copied.flags.writeable = how != "read-only"
    return copied


def each_input(arrays, change):
    """Apply `change` to every array that the caller hands in."""
    return dataclasses.replace(
        arrays,
        x=change(arrays.x),
        states=arrays.states and tuple(map(change, arrays.states)),
        lengths=None if arrays.lengths is None else change(arrays.lengths),
        weights={name: change(a) for name, a in arrays.weights.items()},
        upstream={name: change(a) for name, a in arrays.upstream.items()},
    )


def all_inputs(arrays):
    found = []
    each_input(arrays, lambda a: found.append(a) or a)
    return found


@given(cases(), dtypes)
def test_any_case_keeps_the_rule(case, dtype):
    assert_case(case, dtype, run_face(case, build(case, dtype), dtype))


@given(
    cases(),
    dtypes,
    st.sampled_from(["transposed", "strided", "negative", "unaligned", "read-only"]),
)
def test_memory_layout_of_the_inputs_does_not_matter(case, dtype, how):
    arrays = each_input(build(case, dtype), lambda a: rearrange(a, how))
    before = [a.tobytes() for a in all_inputs(arrays)]
    assert_case(case, dtype, run_face(case, arrays, dtype))
    assert [a.tobytes() for a in all_inputs(arrays)] == before


@given(cases(), dtypes)
def test_results_are_not_memory_of_the_caller(case, dtype):
    arrays = build(case, dtype)
    result = run_face(case, arrays, dtype)
    for name, array in results(result).items():
        for given_array in all_inputs(arrays):
            assert not np.may_share_memory(array, given_array), name


@given(cases(), dtypes)
def test_two_runs_are_bit_equal(case, dtype):
    arrays = build(case, dtype)
    lstm = make_lstm(case, arrays.weights, dtype)
    runs = []
    for _ in range(2):
        lstm.clear_gradients()
        runs.append(backward(lstm, case, arrays, forward(lstm, case, arrays)))
        runs[-1].grads = {name: grad.copy() for name, grad in runs[-1].grads.items()}
    assert_bit_equal(*runs)
    assert_bit_equal(runs[0], run_face(case, arrays, dtype))


def test_two_large_runs_are_bit_equal():
    """Large enough that a BLAS uses all its threads."""
    case = Case("large", T=20, B=64, I=100, H=256, bidirectional=True)
    arrays = build(case, "float32")
    assert_bit_equal(run_face(case, arrays, "float32"), run_face(case, arrays, "float32"))


@given(cases(), dtypes)
def test_inference_and_evaluation_compute_the_same_outputs(case, dtype):
    arrays = build(case, dtype)
    lstm = make_lstm(case, arrays.weights, dtype)
    recorded = forward(lstm, case, arrays)
    with no_grad():
        assert_bit_equal(recorded, forward(lstm, case, arrays))
    lstm.eval()
    evaluated = forward(lstm, case, arrays)
    assert_bit_equal(recorded, evaluated)
    assert_case(case, dtype, backward(lstm, case, arrays, evaluated))


@given(cases(), dtypes, st.data())
def test_nan_in_padding_does_not_spread(case, dtype, data):
    lengths = tuple(data.draw(st.integers(0, case.T)) for _ in range(case.B))
    case = dataclasses.replace(case, lengths=lengths)
    arrays = build(case, dtype)
    padding = np.arange(case.T) >= np.array(lengths)[:, None]
    if case.time_major:
        padding = padding.T

    def poisoned(array):
        array = array.copy()
        array[padding] = data.draw(st.sampled_from([np.nan, np.inf, -np.inf]))
        return array

    dirty = dataclasses.replace(
        arrays,
        x=poisoned(arrays.x),
        upstream={n: poisoned(a) if n in ("y", "cells") else a for n, a in arrays.upstream.items()},
    )
    assert_bit_equal(run_face(case, arrays, dtype), run_face(case, dirty, dtype))


@given(cases(), dtypes, st.data())
def test_a_frozen_parameter_changes_no_other_gradient(case, dtype, data):
    case = dataclasses.replace(case, frozen=())
    arrays = build(case, dtype)
    names = sorted(case.weight_shapes())
    frozen = data.draw(st.sets(st.sampled_from(names), min_size=1))
    some = dataclasses.replace(case, frozen=tuple(sorted(frozen)))
    every, part = run_face(case, arrays, dtype), run_face(some, arrays, dtype)
    assert set(part.grads) == set(names) - frozen
    assert_case(case, dtype, every)
    for name in frozen:
        part.grads[name] = every.grads[name]
    part.grads = {name: part.grads[name] for name in case.weight_shapes()}
    assert_case(case, dtype, part)


@given(cases(lengths=False), dtypes)
def test_full_lengths_equal_no_lengths(case, dtype):
    full = dataclasses.replace(case, lengths=(case.T,) * case.B)
    arrays = build(case, dtype)
    assert_bit_equal(run_face(case, arrays, dtype), run_face(full, build(full, dtype), dtype))


@given(cases(), dtypes)
def test_lengths_of_any_integer_kind(case, dtype):
    arrays = build(case, dtype)
    if arrays.lengths is None:
        return
    expected = run_face(case, arrays, dtype)
    for lengths in (list(case.lengths), case.lengths, arrays.lengths.astype(np.int32)):
        same = dataclasses.replace(arrays, lengths=lengths)
        assert_bit_equal(expected, run_face(case, same, dtype))


@given(cases(lengths=False, bidirectional=False, states=True), dtypes, st.data())
def test_a_split_sequence_equals_the_whole(case, dtype, data):
    """States carried forward, and their gradients back, over two calls of two equal LSTMs."""
    split = data.draw(st.integers(0, case.T))
    axis = 0 if case.time_major else 1
    arrays = build(case, dtype)

    def part(array, index):
        return np.split(array, [split], axis)[index]

    parts, lstms, outputs = [], [], []
    states = arrays.states
    for index in range(2):
        upstream = {n: part(a, index) for n, a in arrays.upstream.items() if n in ("y", "cells")}
        parts.append(
            dataclasses.replace(arrays, x=part(arrays.x, index), states=states, upstream=upstream)
        )
        lstms.append(make_lstm(case, arrays.weights, dtype))
        outputs.append(forward(lstms[index], case, parts[index]))
        states = (outputs[index].h, outputs[index].c)
    gradients = {n: arrays.upstream[n] for n in ("h", "c") if n in arrays.upstream}
    for index in (1, 0):
        parts[index].upstream.update(gradients)
        backward(lstms[index], case, parts[index], outputs[index])
        gradients = {"h": outputs[index].dh0, "c": outputs[index].dc0}
    first, second = outputs
    joined = dataclasses.replace(
        first,
        y=np.concatenate([first.y, second.y], axis),
        h=second.h,
        c=second.c,
        dx=np.concatenate([first.dx, second.dx], axis),
        grads={name: first.grads[name] + second.grads[name] for name in first.grads},
    )
    if case.return_cells:
        joined.cells = np.concatenate([first.cells, second.cells], axis)
    assert_case(case, dtype, joined)


@given(cases(), dtypes)
def test_a_row_does_not_depend_on_the_others(case, dtype):
    arrays = build(case, dtype)
    axis = 1 if case.time_major else 0
    truth, yardstick = results(reference(case, dtype)), results(naive(case, dtype))
    rows = []
    for row in range(case.B):

        def only(array, row=row, axis=axis):
            return np.take(array, [row], axis)

        alone = dataclasses.replace(
            case, B=1, lengths=None if case.lengths is None else case.lengths[row : row + 1]
        )
        own = dataclasses.replace(
            arrays,
            x=only(arrays.x),
            states=arrays.states and tuple(only(s, axis=1) for s in arrays.states),
            lengths=None if arrays.lengths is None else arrays.lengths[row : row + 1],
            upstream={
                n: only(a, axis=1 if n in ("h", "c") else axis) for n, a in arrays.upstream.items()
            },
        )
        rows.append(results(run_face(alone, own, dtype)))
    row_axes = {"y": axis, "cells": axis, "dx": axis, "h": 1, "c": 1, "dh0": 1, "dc0": 1}
    for name in rows[0]:
        parts = [row[name] for row in rows]
        whole = np.concatenate(parts, row_axes[name]) if name in row_axes else sum(parts)
        assert_within_rule(name, whole, truth[name], yardstick[name])


@given(cases(), dtypes)
def test_nan_in_one_row_stays_in_it(case, dtype):
    arrays = build(case, dtype)
    dirty = dataclasses.replace(arrays, x=arrays.x.copy())
    np.moveaxis(dirty.x, 1 if case.time_major else 0, 0)[0] = np.nan
    clean = results(run_face(case, arrays, dtype))
    poisoned = results(run_face(case, dirty, dtype))
    rows = 1 if case.time_major else 0
    axes = {"y": rows, "cells": rows, "dx": rows, "h": 1, "c": 1, "dh0": 1, "dc0": 1}
    for name in axes.keys() & clean.keys():
        kept, expected = (np.moveaxis(a[name], axes[name], 0)[1:] for a in (poisoned, clean))
        assert np.array_equal(kept, expected), name


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_huge_inputs_saturate_without_overflow(dtype):
    """Warnings are errors here, so an overflowing exponential fails the test."""
    case = Case("huge", scale=1e4, bidirectional=True, L=2, states=True, P=3)
    for name, array in results(run_face(case, build(case, dtype), dtype)).items():
        assert np.isfinite(array).all(), name


@given(cases(lengths=False), dtypes)
def test_changing_the_outputs_does_not_change_the_gradients(case, dtype):
    """A caller owns what the call returned and may work in it before backward."""
    arrays = build(case, dtype)
    expected = run_face(case, arrays, dtype)
    lstm = make_lstm(case, arrays.weights, dtype)
    outputs = forward(lstm, case, arrays)
    for name in ("y", "h", "c", "cells"):
        if getattr(outputs, name) is not None:
            getattr(outputs, name)[...] = np.nan
            setattr(outputs, name, getattr(expected, name))
    assert_bit_equal(expected, backward(lstm, case, arrays, outputs))
