"""Layers, calls and comparisons that the tests of the face share."""

import itertools

import numpy as np
import pytest
from cases import Case, results

from cupy_lstm import LSTM, RNN, BiRNN, Dropout, Linear, LSTMCell
from cupy_lstm.functional import lstm_backward, lstm_forward
from cupy_lstm.layer import Layer

NO_CALL = (
    "there is no call to go back through: backward needs a call made outside no_grad(), in this "
    "thread, that no backward, clear_tape() or later call has ended"
)
CHANGED = (
    "the weights have changed since the call that backward would go back through: call the layer "
    "again first"
)
RICH = Case(
    "rich",
    L=2,
    P=4,
    bidirectional=True,
    states=True,
    lengths=(3, 5, 0),
    upstream=("y", "h", "c", "cells"),
)


def normal(*shape, dtype="float32", seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def assert_bit_equal(first, second):
    first, second = results(first), results(second)
    assert first.keys() == second.keys()
    for name, array in first.items():
        assert np.array_equal(array, second[name]), name


def raised(error, call):
    """Return the text of the error that `call` raises."""
    with pytest.raises(error) as caught:
        call()
    assert type(caught.value) is error
    return str(caught.value)


KINDS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")

CONFIGURATIONS = [
    Case("configuration", I=3, H=4, L=L, P=P, bidirectional=D, bias_ih=bias_ih, bias_hh=bias_hh)
    for L, P, D, bias_ih, bias_hh in itertools.product((1, 3), (0, 2), *[(False, True)] * 3)
]


def call_and_back(layer, seed=0):
    """One call and one backward of an LSTM(3, ...); return dx."""
    y, _ = layer(normal(2, 5, 3, seed=seed))
    dx, _ = layer.backward(np.ones_like(y))
    return dx


def grads(layer):
    return {n: None if p.grad is None else p.grad.copy() for n, p in layer.named_parameters()}


def layers():
    """One of each layer that runs an LSTM, with a right input."""
    return {
        "lstm": (LSTM(3, 4, 2, "bidirect", seed=0), normal(2, 5, 3)),
        "cell": (LSTMCell(3, 4, proj_size=2, seed=0), normal(2, 3)),
        "rnn": (RNN(LSTMCell(3, 4, seed=0), is_reverse=True), normal(2, 5, 3)),
        "birnn": (BiRNN(LSTMCell(3, 4, seed=0), LSTMCell(3, 5, seed=1)), normal(2, 5, 3)),
    }


def flatten(value):
    """List the arrays of nested tuples."""
    if isinstance(value, tuple | list):
        return [array for part in value for array in flatten(part)]
    return [] if value is None else [value]


def flat_equal(first, second):
    first, second = flatten(first), flatten(second)
    return len(first) == len(second) and all(map(np.array_equal, first, second))


class Model(Layer):
    """A composite: layers as plain attributes, one of them twice."""

    def __init__(self, seed=0):
        super().__init__()
        self.encoder = LSTM(3, 4, 2, "bidirect", False, 0.5, bias_hh_attr=False, seed=seed)
        self.decoder = BiRNN(LSTMCell(8, 5, seed=seed), LSTMCell(8, 5, seed=seed + 1))
        self.head = Linear(10, 2, seed=seed)
        self.same = self.head

    def __call__(self, x):
        y, _ = self.encoder(x)
        y, _ = self.decoder(y)
        return self.head(y)

    def backward(self, dy):
        dy = self.head.backward(dy)
        dy, _ = self.decoder.backward(dy)
        dx, _ = self.encoder.backward(dy)
        return dx


def assert_sum_of_gradients(layer, parts):
    """Fail unless the layer's gradients are the sum of `parts`, the gradients of single calls.

    Added up in any order, n terms are off by at most n eps times the largest partial sum, and
    that is at most the sum of their largest magnitudes.
    """
    for name, p in layer.named_parameters():
        terms = [part[name].astype(np.longdouble) for part in parts]
        bound = len(terms) * np.finfo(p.dtype).eps * sum(abs(term).max() for term in terms)
        assert abs(p.grad - sum(terms)).max() <= bound, name


def assert_gradient_of_inputs_can_be_left_out(lstm, x, lengths):
    """Fail unless `lstm_backward` gives the same without it, and one for the inputs only if asked.

    The LSTM has several layers: those above the first need the gradient of their inputs anyway.
    """
    weights = [layer.arrays() for layer in lstm._layers]
    options = {"reverse": lstm._reverse, "dropout": Dropout(0.5, 1, 2)}
    found = []
    for wanted in (True, False):
        y, states, tape = lstm_forward(x, weights, None, lengths, **options)
        dx, dstates, gradients = lstm_backward(tape, y, states, inputs_wanted=wanted)
        assert (dx is not None) is wanted
        found.append([dstates, *map(tuple, gradients)])
    for one, other in zip(*map(flatten, found), strict=True):
        assert bool((one == other).all())
