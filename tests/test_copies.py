"""Copies and pickles of layers go on apart."""

import copy
import pickle

import numpy as np
import pytest
from face import (
    NO_CALL,
    Model,
    grads,
    layers,
    normal,
    raised,
)

from cupy_lstm import LSTM, BiRNN, LSTMCell, ParamAttr

COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda layer: pickle.loads(pickle.dumps(layer))}


@pytest.mark.parametrize("duplicate", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("kind", ["lstm", "cell", "rnn", "birnn", "shared", "model"])
def test_copies_go_on_apart(kind, duplicate):
    shared = LSTMCell(3, 4, seed=0)
    known = layers() | {
        "shared": (BiRNN(shared, shared), normal(2, 5, 3)),
        "model": (Model(), normal(2, 6, 3)),
    }
    layer, x = known[kind]

    def call(layer):
        y = layer(x)
        return y[0] if isinstance(y, tuple) else y

    layer.eval()
    y = call(layer)
    layer.backward(np.ones_like(y))
    call(layer)  # a tape, which the copy must not carry
    other = duplicate(layer)
    assert raised(RuntimeError, lambda: other.backward(np.ones_like(y))) == NO_CALL
    assert not other.training
    assert [n for n, _ in other.named_parameters()] == [n for n, _ in layer.named_parameters()]
    weights, gradients = {n: p.numpy() for n, p in layer.named_parameters()}, grads(layer)
    for p, q in zip(layer.parameters(), other.parameters(), strict=True):
        assert np.array_equal(p.data, q.data)
        assert np.array_equal(p.grad, q.grad)
        assert np.shares_memory(q.data, q.buffer.data)
        assert not np.shares_memory(p.buffer.data, q.buffer.data)
        assert (p.index, p.name, p.trainable) == (q.index, q.name, q.trainable)
    # What shared memory still does, and what the copy shows is what it computes with.
    assert count_buffers(other) == count_buffers(layer)
    assert np.array_equal(call(other), y)
    for q in other.parameters():
        q.set_value(np.zeros_like(q.data))
    assert not call(other).any()
    other.backward(np.ones_like(y))
    other.clear_gradients()
    other.to(dtype="float64")
    for name, p in layer.named_parameters():
        assert np.array_equal(p.data, weights[name])
        assert np.array_equal(p.grad, gradients[name])
    layer.backward(np.ones_like(y))  # the original's tape is still there


def count_buffers(layer):
    return len({id(p.buffer) for p in layer.parameters()})


@pytest.mark.parametrize("duplicate", COPIES.values(), ids=COPIES)
def test_copies_keep_every_setting(duplicate):
    lstm = LSTM(3, 4, 2, "bidirect", True, 0.5, ParamAttr(need_clip=False), seed=7)
    lstm.bias_ih_l1.trainable = False
    lstm(normal(5, 2, 3))
    other = duplicate(lstm)
    assert repr(other) == repr(lstm)
    assert (other.dropout_seed, other.dropout_calls) == (lstm.dropout_seed, 1)
    assert not other.bias_ih_l1.trainable
    assert not other.weight_ih_l0.need_clip
    x = normal(5, 2, 3)
    assert np.array_equal(lstm(x)[0], other(x)[0])  # with the same mask
