"""Gradients that were cleared to None are set by the next backward pass, whatever their memory
holds: the same numbers as from zeros, to the last bit."""

import copy
import pickle

import numpy as np
import pytest

from cupy_lstm import LSTM, engine
from cupy_lstm.parameter import unique_buffers

each_engine = pytest.mark.parametrize("name", ["stepwise", "simd"])
KINDS = {
    "plain": {},
    "bidirectional": {"direction": "bidirect", "num_layers": 2},
    "projection": {"proj_size": 5},
    "no-bias": {"bias_hh_attr": False},
    "segments": {"checkpoint_every": 50},
}
each_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


def made(**kind):
    return LSTM(6, 20, seed=0, **kind)


def inputs(T=120, B=3):
    return np.random.default_rng(1).standard_normal((B, T, 6)).astype("float32")


def spoil(lstm):
    """Fill the memory of all gradients with NaN, as if it were anything."""
    for buffer in unique_buffers(lstm.parameters()):
        buffer.gradient[...] = np.nan


def train(lstm, x, lengths=None):
    y, _ = lstm(x, None, lengths)
    lstm.backward(np.cos(y))
    return {p.name: None if p.grad is None else p.grad.copy() for p in lstm.parameters()}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert (found[name] is None) == (gradient is None), name
        assert gradient is None or found[name].tobytes() == gradient.tobytes(), name


@each_engine
@each_kind
def test_they_are_set(kind, name):
    lstm, x = made(**kind), inputs()
    with engine(name):
        expected = train(lstm, x)
        for _ in range(2):
            lstm.clear_gradients(set_to_zero=False)
            spoil(lstm)
            assert all(p.grad is None for p in lstm.parameters())
            assert_same(train(lstm, x), expected)


@each_engine
@each_kind
def test_the_next_pass_adds_to_them(kind, name):
    lstm, x = made(**kind), inputs()
    with engine(name):
        first = train(lstm, x)
        second = train(lstm, x)
        assert any((second[n] != first[n]).any() for n in first)
        lstm.clear_gradients(set_to_zero=False)
        spoil(lstm)
        train(lstm, x)
        assert_same(train(lstm, x), second)


@each_engine
@pytest.mark.parametrize("frozen", ["weight_hh_l0", "weight_hh_l0_reverse", "bias_ih_l1"])
def test_frozen_ones_stay_none(name, frozen):
    lstm, x = made(direction="bidirect", num_layers=2), inputs()
    with engine(name):
        train(lstm, x)
        getattr(lstm, frozen).trainable = False
        lstm.clear_gradients()
        expected = train(lstm, x)
        assert expected[frozen] is None
        lstm.clear_gradients(set_to_zero=False)
        spoil(lstm)
        assert_same(train(lstm, x), expected)
        # Thawed, it is set as well, while the others are added to.
        getattr(lstm, frozen).trainable = True
        found = train(lstm, x)
        lstm.clear_gradients()
        single = train(lstm, x)
        assert found[frozen].tobytes() == single[frozen].tobytes()


@each_engine
@pytest.mark.parametrize("clear_one", [False, True])
def test_one_of_two_directions(name, clear_one):
    """Of the memory that they share one row is set, the other added to."""
    lstm, x = made(direction="bidirect"), inputs()
    with engine(name):
        once = train(lstm, x)
        twice = train(lstm, x)
        lstm.clear_gradients()
        train(lstm, x)
        one = lstm.weight_hh_l0_reverse
        one.clear_gradient(set_to_zero=False)
        one.buffer.gradient[1] = np.nan
        if clear_one:
            one.clear_gradient()
        found = train(lstm, x)
        assert found[one.name].tobytes() == once[one.name].tobytes()
        assert found["weight_hh_l0"].tobytes() == twice["weight_hh_l0"].tobytes()


@each_engine
@pytest.mark.parametrize(("T", "B", "lengths"), [(0, 3, None), (5, 0, None), (5, 3, [0, 0, 0])])
def test_they_are_zero_where_nothing_is_summed(T, B, lengths, name):
    for kind in ({}, {"proj_size": 5}):
        lstm = made(**kind)
        with engine(name):
            train(lstm, inputs())
            lstm.clear_gradients(set_to_zero=False)
            spoil(lstm)
            found = train(lstm, inputs(T, B), lengths)
        assert all(not gradient.any() for gradient in found.values())


def test_whoever_else_adds_begins_at_zero():
    lstm = made()
    train(lstm, inputs())
    lstm.clear_gradients(set_to_zero=False)
    spoil(lstm)
    lstm.weight_hh_l0.add_gradient(np.ones((80, 20), "float32"))
    assert (lstm.weight_hh_l0.grad == 1).all()
    lstm.bias_hh_l0.clear_gradient()
    lstm.bias_hh_l0.has_gradient = True
    assert not lstm.bias_hh_l0.grad.any()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_copies_are_set_too(copied):
    lstm, x = made(), inputs()
    expected = train(lstm, x)
    lstm.clear_gradients(set_to_zero=False)
    spoil(lstm)
    other = copied(lstm)
    assert_same(train(other, x), expected)
    assert_same(train(lstm, x), expected)
    lstm.clear_gradients(set_to_zero=False)
    spoil(lstm)
    lstm.to(dtype="float64")
    found = train(lstm, x.astype("float64"))
    assert all(np.isfinite(gradient).all() for gradient in found.values())


def test_a_pass_that_fails_leaves_them_none(monkeypatch):
    from cupy_lstm.simd.backward_pass import BackwardPass

    lstm, x = made(), inputs()
    expected = train(lstm, x)
    lstm.clear_gradients(set_to_zero=False)
    spoil(lstm)
    y, _ = lstm(x)
    with monkeypatch.context() as patch, engine("simd"), pytest.raises(ZeroDivisionError):
        patch.setattr(BackwardPass, "run", lambda *arguments: 1 / 0)
        lstm.backward(np.cos(y))
    assert all(p.grad is None for p in lstm.parameters())
    assert_same(train(lstm, x), expected)


@pytest.mark.gpu_on_cpu
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_engines_that_add_begin_at_zero_on_a_gpu_too(cupy, dtype):
    lstm = LSTM(6, 20, 2, "bidirect", seed=0, xp=cupy, dtype=dtype)
    x = cupy.asarray(inputs(5).astype(dtype))

    def gradients():
        y, _ = lstm(x)
        lstm.backward(y)
        return {p.name: cupy.asnumpy(p.grad) for p in lstm.parameters()}

    expected = gradients()
    lstm.clear_gradients(set_to_zero=False)
    spoil(lstm)
    assert all(p.grad is None for p in lstm.parameters())
    assert_same(gradients(), expected)
