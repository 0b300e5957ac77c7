"""What a call remembers, when it forgets it, and whose memory is whose."""

import dataclasses
import weakref

import numpy as np
import pytest
from cases import HOST_ENGINES, backward, build, forward, make_lstm, results, run_face
from face import (
    CHANGED,
    NO_CALL,
    RICH,
    assert_bit_equal,
    assert_gradient_of_inputs_can_be_left_out,
    flat_equal,
    flatten,
    grads,
    layers,
    normal,
    raised,
)

from cupy_lstm import LSTM, RNN, BiRNN, LSTMCell, engine, no_grad
from cupy_lstm.functional import lstm_backward, lstm_forward

each_layer = pytest.mark.parametrize("kind", ["lstm", "cell", "rnn", "birnn"])


@each_layer
@pytest.mark.parametrize("freed_by", ["backward", "next call", "no_grad call", "clear_tape", "to"])
def test_what_frees_the_tape(kind, freed_by):
    """Freed at once, by counting references: the input that the tape holds is gone."""
    layer, x = layers()[kind]
    y = layer(x)[0]
    other = x.copy()
    held = weakref.ref(x)
    del x
    assert held() is not None
    if freed_by == "backward":
        layer.backward(np.ones_like(y))
    elif freed_by == "next call":
        layer(other)
    elif freed_by == "no_grad call":
        with no_grad():
            layer(other)
    elif freed_by == "clear_tape":
        layer.clear_tape()
    else:
        layer.to(dtype="float64")
    assert held() is None
    if freed_by == "next call":
        layer.backward(np.ones_like(y))
    assert raised(RuntimeError, lambda: layer.backward(np.ones_like(y))) == NO_CALL


@each_layer
def test_no_grad_keeps_nothing(kind):
    layer, x = layers()[kind]
    assert raised(RuntimeError, lambda: layer.backward(np.ones(3))) == NO_CALL
    with no_grad():
        y = layer(x)[0]
    held = weakref.ref(x)
    del x
    assert held() is None
    assert raised(RuntimeError, lambda: layer.backward(np.ones_like(y))) == NO_CALL
    assert all(p.grad is None for p in layer.parameters())


@each_layer
@pytest.mark.parametrize(
    "change",
    [
        lambda layer, p: p.set_value(p.data.copy()),
        lambda layer, p: setattr(p, "data", p.data * 2),
        lambda layer, p: layer.set_state_dict({next(iter(layer.state_dict())): p.data + 1}),
        lambda layer, p: p.mark_changed(),
    ],
    ids=["set_value", "data", "set_state_dict", "mark_changed"],
)
def test_changed_weights_are_noticed(kind, change):
    layer, x = layers()[kind]
    y = layer(x)[0]
    change(layer, layer.parameters()[0])
    before = grads(layer)
    assert raised(RuntimeError, lambda: layer.backward(np.ones_like(y))) == CHANGED
    assert before == grads(layer) == dict.fromkeys(before)
    layer(x)
    layer.backward(np.ones_like(y))


@each_layer
def test_raw_writes_are_not_noticed(kind):
    layer, x = layers()[kind]
    y = layer(x)[0]
    layer.parameters()[0].data[...] = 0
    layer.backward(np.ones_like(y))


@each_layer
def test_a_failed_call_leaves_the_tape(kind):
    layer, x = layers()[kind]
    y = layer(x)[0]
    first = layer.backward(np.ones_like(y))
    layer(x)
    for bad in (x[:, :1].astype("float64"), x[..., :2], None):
        with pytest.raises((TypeError, ValueError)):
            layer(bad)
    assert flat_equal(layer.backward(np.ones_like(y)), first)


def test_what_the_caller_does_with_his_arrays_changes_no_gradient():
    """Outputs, states, lengths and gradients are the caller's to overwrite; x is documented."""
    arrays = build(RICH, "float32")
    expected = run_face(RICH, arrays, "float32")
    lstm = make_lstm(RICH, arrays.weights, "float32")
    passed = dataclasses.replace(
        arrays,
        states=tuple(s.copy() for s in arrays.states),
        lengths=arrays.lengths.copy(),
        upstream={n: a.copy() for n, a in arrays.upstream.items()},
    )
    outputs = forward(lstm, RICH, passed)
    returned = {n: a.copy() for n, a in results(outputs).items()}
    for array in (*passed.states, outputs.y, outputs.h, outputs.c, outputs.cells):
        array[...] = np.nan
    passed.lengths[...] = 1
    result = backward(lstm, RICH, passed, outputs)
    for array in passed.upstream.values():
        array[...] = np.nan
    for name, array in returned.items():
        setattr(result, name, array)
    assert_bit_equal(result, expected)


@pytest.mark.parametrize("kind", ["list", "tuple", "array", "int32", "column", "range"])
def test_lengths_of_any_kind_are_copied(kind):
    given = {
        "list": [2, 4],
        "tuple": (2, 4),
        "array": np.array([2, 4]),
        "int32": np.array([2, 4], "int32"),
        "column": np.array([[2], [4]]),
        "range": range(2, 5, 2),
    }[kind]
    lstm, x = LSTM(3, 4, seed=0), normal(2, 5, 3)
    y, _ = lstm(x, sequence_length=np.array([2, 4]))
    expected = lstm.backward(np.ones_like(y))
    y, _ = lstm(x, sequence_length=given)
    if kind in ("list", "array", "int32", "column"):
        given[0] = 5 if kind != "column" else [5]
    assert flat_equal(lstm.backward(np.ones_like(y)), expected)


# Results and inputs: whose memory.


def all_calls():
    """Calls of everything there is, forward and backward, each with all that it was given."""
    x, x0 = normal(2, 5, 3), normal(2, 3)
    n = np.array([3, 5])
    lstm = LSTM(3, 4, 2, "bidirect", dropout=0.5, proj_size=2, seed=0)
    states = normal(4, 2, 2, seed=1), normal(4, 2, 4, seed=2)
    own = normal(2, 4, seed=3), normal(2, 4, seed=4)
    dy, dcells = normal(2, 5, 4, seed=5), normal(2, 5, 8, seed=6)
    d4, d8 = normal(2, 5, 4, seed=7), normal(2, 5, 8, seed=8)
    cell = LSTMCell(3, 4, seed=0)
    birnn = BiRNN(LSTMCell(3, 4, seed=0), LSTMCell(3, 4, seed=1))
    weights = [layer.arrays() for layer in lstm._layers]
    for T in (5, 0):
        yield (
            lstm,
            (x[:, :T], states, np.minimum(n, T)),
            {"return_cells": True},
            (dy[:, :T], states, dcells[:, :T]),
        )
        yield RNN(cell), (x[:, :T], own, np.minimum(n, T)), {}, (d4[:, :T], own)
        yield birnn, (x[:, :T], (own, own), np.minimum(n, T)), {}, (d8[:, :T], (own, own))
        yield (
            functional(weights),
            (x[:, :T], states, np.minimum(n, T)),
            {"return_cells": True},
            (dy[:, :T], states, dcells[:, :T]),
        )
    yield LSTM(3, 4, seed=2), (x,), {}, (d4,)
    yield cell, (x0, own), {}, (normal(2, 4, seed=9), own)


class functional:  # noqa: N801
    """The functional core in the shape of a layer."""

    def __init__(self, weights):
        self.weights = weights

    def __call__(self, *arguments, **options):
        x, *others = arguments
        *outputs, self.tape = lstm_forward(
            x, self.weights, *others, reverse=(False, True), **options
        )
        return tuple(outputs)

    def backward(self, *arguments):
        return lstm_backward(self.tape, *arguments)

    def parameters(self):
        return []


def test_results_are_new_memory():
    for layer, given, options, upstream in all_calls():
        outputs = flatten(layer(*given, **options))
        if isinstance(layer, LSTMCell):
            assert outputs[0] is outputs[1]  # h, as in Paddle
            del outputs[0]
        gradients = flatten(layer.backward(*upstream))
        fixed = flatten((given, upstream)) + [p.buffer.data for p in layer.parameters()]
        fixed += [p.buffer.gradient for p in layer.parameters()]
        new = outputs + gradients
        for k, array in enumerate(new):
            assert array.flags.writeable
            for other in fixed + new[:k]:
                assert not np.shares_memory(array, other)


def test_inputs_are_never_written():
    for layer, given, options, upstream in all_calls():
        arrays = flatten((given, upstream))
        before = [a.copy() for a in arrays]
        for array in arrays:
            array.flags.writeable = False
        layer(*given, **options)
        layer.backward(*upstream)
        assert all(map(np.array_equal, arrays, before))


@pytest.mark.parametrize("name", HOST_ENGINES)
def test_the_gradient_of_the_inputs_can_be_left_out(name):
    for direction in ("forward", "bidirect"):
        with engine(name):
            assert_gradient_of_inputs_can_be_left_out(
                LSTM(3, 4, 3, direction, seed=0), normal(2, 5, 3), [5, 2]
            )
