"""Where bad inputs are tried: each has its exact error and its whole message.

Every failure is made beside layers that have gradients and a recorded call. Afterwards their
weights, gradients, versions, modes and counters are as they were, and the right backward pass
gives bit by bit what it gives without the failure.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest
from face import flatten, normal

from cupy_lstm import LSTM, RNN, BiRNN, LSTMCell
from cupy_lstm.functional import lstm_backward, lstm_forward
from cupy_lstm.modes import forced_engine, is_recording
from cupy_lstm.notation import LayerGradients, LayerWeights

DIRECTIONS = "('forward', 'bidirect', 'bidirectional')"
DTYPES = "('float32', 'float64')"
MODULES = "('numpy', 'cupy')"
TO_FLOAT32 = "convert it with .astype('float32')"
NO_GRADIENT = "backward needs the gradient of some output, received None for all"


def read_only(value):
    for array in flatten(value):
        array.flags.writeable = False
    return value


class Bench:
    """Layers with gradients and a recorded call, and the arrays of right calls.

    T = 5, B = 2, I = 3, H = 4; the LSTM has two layers and two directions, the cell P = 2.
    """

    def __init__(self):
        self.x, self.x0 = read_only((normal(2, 5, 3), normal(2, 3)))
        self.y, self.cells = read_only((normal(2, 5, 8, seed=1), normal(2, 5, 8, seed=2)))
        self.states = read_only((normal(4, 2, 4, seed=3), normal(4, 2, 4, seed=4)))
        self.h, self.c = self.states
        self.own = read_only((normal(2, 4, seed=5), normal(2, 4, seed=6)))
        self.small = read_only((normal(2, 2, seed=7), normal(2, 4, seed=8)))
        self.lengths = read_only(np.array([5, 3]))
        self.lstm = LSTM(3, 4, 2, "bidirect", dropout=0.5, seed=0)
        self.without_bias = LSTM(3, 4, bias_hh_attr=False, seed=1)
        self.cell = LSTMCell(3, 4, proj_size=2, seed=2)
        self.rnn = RNN(LSTMCell(3, 4, seed=3))
        self.birnn = BiRNN(LSTMCell(3, 4, seed=4), LSTMCell(3, 4, seed=5))
        self.layers = [self.lstm, self.without_bias, self.cell, self.rnn, self.birnn]
        shapes = (2, 16, 3), (2, 16, 4), (2, 16), (2, 16)
        first = LayerWeights(*(0.1 * normal(*s, seed=k) for k, s in enumerate(shapes)))
        second = first._replace(weight_ih=0.1 * normal(2, 16, 8, seed=9))
        self.weights = read_only([first, second])[:]
        self.first, self.second = self.weights
        self.gradients = [LayerGradients(*map(np.zeros_like, layer)) for layer in self.weights]
        for _ in range(2):
            self.call()
            self.go_back()
        self.call()

    def call(self):
        self.lstm(self.x, self.states, self.lengths)
        self.without_bias(self.x)
        self.cell(self.x0, self.small)
        self.rnn(self.x, self.own)
        self.birnn(self.x, (self.own, self.own), self.lengths)
        *_, self.tape = self.core()

    def core(self, x=None, weights=None, **options):
        """Forward of the functional core."""
        x, weights = (self.x if x is None else x), (self.weights if weights is None else weights)
        return lstm_forward(x, weights, **({"reverse": (False, True)} | options))

    def one(self, **change):
        """Forward of the functional core with some weights of its first layer replaced."""
        return self.core(weights=[self.first._replace(**change), self.second])

    def go_back(self):
        """The right backward pass of everything: the arrays it returns and adds to."""
        d = read_only(normal(2, 5, 4, seed=10))
        found = [
            self.lstm.backward(self.y, self.states, self.cells),
            self.without_bias.backward(d),
            self.cell.backward(self.small[0], self.small),
            self.rnn.backward(d, self.own),
            self.birnn.backward(self.y, (self.own, None)),
            lstm_backward(self.tape, self.y, gradients=self.gradients)[:2],
            [tuple(layer) for layer in self.gradients],
            [p.grad for layer in self.layers for p in layer.parameters()],
        ]
        return [array.copy() for array in flatten(found)]

    def state(self):
        """Everything that a failed call must leave alone."""
        return {
            "parameters": [
                (name, p.data.tobytes(), p.grad.tobytes(), p.buffer.version, p.trainable)
                for layer in self.layers
                for name, p in layer.named_parameters()
            ],
            "modes": [(repr(layer), layer.training, layer.dtype) for layer in self.layers],
            "dropout": (self.lstm.dropout_seed, self.lstm.dropout_calls),
            "gradients": [a.tobytes() for a in flatten([tuple(g) for g in self.gradients])],
            "tape": self.tape.used,
            "switches": (is_recording(), forced_engine()),
        }


@dataclass(frozen=True)
class Bad:
    """Something that fails, with the error and the message it has to fail with."""

    call: Callable[[Bench], object]
    error: type[Exception]
    message: str


@cache
def right_gradients():
    """Gradients of the right backward pass without any failure."""
    return Bench().go_back()


def assert_same_gradients(bench):
    found = bench.go_back()
    assert len(found) == len(right_gradients())
    assert all(map(np.array_equal, found, right_gradients()))


def assert_fails(bad):
    """Fail unless `bad` fails as it should and leaves a bench as it was."""
    bench = Bench()
    before = bench.state()
    with pytest.raises(Exception) as raised:
        bad.call(bench)
    assert (type(raised.value), str(raised.value)) == (bad.error, bad.message)
    assert bench.state() == before
    assert_same_gradients(bench)


def assert_survives(table):
    """Fail unless one bench has all of these failures in a row without effect."""
    bench = Bench()
    for bad in table:
        with pytest.raises(bad.error):
            bad.call(bench)
    assert_same_gradients(bench)
