"""Weights that an engine has prepared: kept between inference calls, never used when stale."""

import copy
import gc
import os
import pickle
import signal
import threading
import types
import weakref

import numpy as np
import pytest
from face import flat_equal, normal
from prepared_cases import B, H, I, P, T, fresh, infer, make, other_values
from simd_bed import needs_fork

from cupy_lstm import LSTM, SGD, buffer, lstm_forward, no_grad
from cupy_lstm.buffer import Buffer
from cupy_lstm.engines import simd


@pytest.fixture
def lstm():
    return make()


@pytest.fixture
def prepared(monkeypatch):
    """Return a list that weak references to all that the engine prepares go to."""
    made, prepare = [], simd.prepare

    def counted(weights):
        packed = prepare(weights)
        made.append(weakref.ref(packed))
        return packed

    monkeypatch.setattr(simd, "prepare", counted)
    return made


def alive(prepared):
    gc.collect()
    return sum(one() is not None for one in prepared)


def test_weights_are_prepared_once(lstm, prepared):
    first = infer(lstm)
    assert len(prepared) == 2
    for _ in range(3):
        assert flat_equal(infer(lstm), first)
        lstm(normal(B, T, I))
        lstm.clear_tape()
    assert len(prepared) == 2


def test_calls_with_a_tape_prepare_nothing(lstm, prepared):
    y, _ = lstm(normal(B, T, I))
    lstm.backward(np.ones_like(y))
    assert prepared == []


@pytest.mark.parametrize(
    "read",
    [
        lambda p: p.numpy(),
        lambda p: np.asarray(p),
        lambda p: np.array(p, "float64"),
        lambda p: (p.shape, p.dtype, p.size, repr(p)),
        lambda p: p.check_value(p.numpy()),
    ],
    ids=["numpy", "asarray", "array", "properties", "check_value"],
)
def test_reading_a_weight_leaves_what_is_prepared(lstm, prepared, read):
    infer(lstm)
    read(lstm.weight_ih_l0)
    infer(lstm)
    assert len(prepared) == 2


def test_a_layer_that_did_not_change_is_not_prepared_again(lstm, prepared):
    infer(lstm)
    lstm.bias_ih_l1.set_value(other_values(lstm.bias_ih_l1))
    infer(lstm)
    infer(lstm)
    assert len(prepared) == 3


def test_nothing_is_prepared_while_a_view_is_there(lstm, prepared):
    infer(lstm)
    view = lstm.weight_ih_l0.data
    infer(lstm)
    infer(lstm)
    assert len(prepared) == 2
    assert alive(prepared) == 1  # of the layer whose weights nobody has
    del view
    infer(lstm)
    infer(lstm)
    assert len(prepared) == 3


def test_what_is_stale_is_freed_by_the_next_call_in_training(lstm, prepared):
    optimizer = SGD(0.1, lstm.parameters())
    infer(lstm)
    for _ in range(2):
        y, _ = lstm(normal(B, T, I))
        lstm.backward(np.ones_like(y))
    assert alive(prepared) == 2
    optimizer.step()
    lstm(normal(B, T, I))
    assert alive(prepared) == 0


def test_moving_frees_what_is_prepared(lstm, prepared):
    infer(lstm)
    lstm.to(dtype="float64")
    assert alive(prepared) == 0


@pytest.mark.parametrize("take_over", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_copies_and_pickles_begin_with_nothing(lstm, prepared, take_over):
    size = len(pickle.dumps(lstm))
    infer(lstm)
    assert len(pickle.dumps(lstm)) == size
    other = take_over(lstm)
    assert len(prepared) == alive(prepared) == 2
    infer(other)
    assert len(prepared) == 4
    infer(lstm)
    assert len(prepared) == 4


def test_an_unpickled_lstm_can_be_set_whatever_memory_it_came_in(lstm):
    pickled = pickle.dumps(lstm, protocol=5, buffer_callback=(found := []).append)
    other = pickle.loads(pickled, buffers=[bytes(one) for one in found])
    other.weight_ih_l0.set_value(other_values(lstm.weight_ih_l0))
    assert flat_equal(infer(other), fresh(other))


@pytest.mark.parametrize(
    "change",
    [
        lambda p: p.set_value(other_values(p)),
        lambda p: p.data.__setitem__(..., other_values(p)),
    ],
    ids=["set", "written"],
)
def test_a_change_while_weights_are_prepared_is_seen(lstm, monkeypatch, change):
    prepare, changed = simd.prepare, []

    def late(weights):
        packed = prepare(weights)
        if not changed:
            changed.append(True)
            change(lstm.weight_ih_l0)
        return packed

    monkeypatch.setattr(simd, "prepare", late)
    infer(lstm)
    assert flat_equal(infer(lstm), fresh(lstm))


def test_a_loan_just_after_it_was_seen_that_there_is_none_counts(lstm, monkeypatch):
    is_lent, views = Buffer.is_lent, []

    def late(weights):
        found = is_lent(weights)
        if not views:
            views.append(weights.lend())
        return found

    monkeypatch.setattr(Buffer, "is_lent", late)
    infer(lstm)
    views[0][...] = 1
    assert flat_equal(infer(lstm), fresh(lstm))


def test_a_loan_is_there_before_its_number():
    """Else a call might see the number, and not yet the loan."""
    seen = []

    class Watched(Buffer):
        def __setattr__(self, name, value):
            if name == "loans":
                seen.append((value, self.is_lent() if value else None))
            super().__setattr__(name, value)

    view = Watched(np.zeros((1, 2, 3), "float32")).lend()
    assert view.shape == (1, 2, 3)
    assert seen == [(0, None), (1, True)]


def test_threads_prepare_at_once_and_see_every_change(lstm):
    errors, rounds, workers = [], 12, 4
    values = [other_values(lstm.weight_hh_l0, seed) for seed in range(3)]
    expected = []
    for value in values:
        lstm.weight_hh_l0.set_value(value)
        expected.append(fresh(lstm))
    barrier = threading.Barrier(workers + 1)

    def work():
        try:
            for number in range(rounds):
                barrier.wait()
                for _ in range(2):
                    assert flat_equal(infer(lstm), expected[number % 3])
                barrier.wait()
        except BaseException as error:
            errors.append(error)
            barrier.abort()

    threads = [threading.Thread(target=work) for _ in range(workers)]
    for thread in threads:
        thread.start()
    try:
        for number in range(rounds):
            if number % 2:
                lstm.weight_hh_l0.set_value(values[number % 3])
            else:
                lstm.weight_hh_l0.data[...] = values[number % 3]
            barrier.wait()
            barrier.wait()
    except threading.BrokenBarrierError:
        pass
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def test_threads_that_borrow_at_once_have_one_loan(monkeypatch):
    borrower = Buffer(np.zeros((1, 2, 3), "float32"))
    views = []
    other = threading.Thread(target=lambda: views.append(borrower.lend()))

    def slow_reference(array):
        if not other.ident:
            other.start()
            other.join(0.2)  # it has to wait
        return weakref.ref(array)

    monkeypatch.setattr(buffer, "weakref", types.SimpleNamespace(ref=slow_reference))
    views.append(borrower.lend())
    other.join()
    assert views[0] is views[1]
    assert borrower.loans == 1
    views.clear()
    assert not borrower.is_lent()


CALLS = {
    "lengths": {"sequence_length": [T, 0, 2]},
    "cells": {"return_cells": True},
    "states": {"initial_states": (normal(4, B, P, seed=3), normal(4, B, H, seed=4))},
    "no-steps": {"T": 0},
    "no-rows": {"B": 0},
    "one-step": {"T": 1},
    "all": {
        "sequence_length": [1, T, 2],
        "return_cells": True,
        "initial_states": (normal(4, B, P, seed=3), normal(4, B, H, seed=4)),
    },
}


@pytest.mark.parametrize("checkpoint_every", [None, 2])
@pytest.mark.parametrize("time_major", [False, True])
@pytest.mark.parametrize("call", CALLS)
def test_every_kind_of_call_takes_prepared_weights(call, time_major, checkpoint_every, prepared):
    lstm = make(time_major=time_major, checkpoint_every=checkpoint_every)
    sizes = {"T": T, "B": B} | {k: v for k, v in CALLS[call].items() if k in ("T", "B")}
    options = {k: v for k, v in CALLS[call].items() if k not in sizes}
    steps, batch = sizes["T"], sizes["B"]
    x = normal(*((steps, batch) if time_major else (batch, steps)), I)
    weights = [layer.arrays() for layer in lstm._layers]
    with no_grad():
        *expected, _ = lstm_forward(
            x, weights, reverse=(False, True), time_major=time_major, **options
        )
        for _ in range(3):
            assert flat_equal(lstm(x, **options), expected)
    assert len(prepared) == 2


def test_an_unpickled_gradient_is_not_in_memory_of_others():
    """As where a pickle's buffers travel beside it: they may be such that nobody may write."""
    lstm = LSTM(3, 4, seed=0)
    x = np.ones((2, 5, 3), "float32")
    y, _ = lstm(x)
    lstm.backward(y)
    buffers = []
    pickled = pickle.dumps(lstm, protocol=5, buffer_callback=buffers.append)
    kept = [bytes(buffer) for buffer in buffers]
    assert kept
    before = [bytes(bytearray(one)) for one in kept]
    other = pickle.loads(pickled, buffers=kept)
    y, _ = other(x)
    other.backward(y)
    assert kept == before
    for ours, first in zip(other.parameters(), lstm.parameters(), strict=True):
        assert np.array_equal(ours.grad, 2 * first.grad)


@needs_fork
def test_a_forked_child_can_borrow_while_a_thread_of_its_parent_does():
    lstm, held, done = LSTM(3, 4, seed=0), threading.Event(), threading.Event()

    def borrow():
        with buffer._lending:
            held.set()
            done.wait(30)

    thread = threading.Thread(target=borrow)
    thread.start()
    held.wait(30)
    child = os.fork()
    if not child:
        signal.alarm(30)
        os._exit(0 if lstm.weight_ih_l0.data.size == 48 else 1)
    _, status = os.waitpid(child, 0)
    done.set()
    thread.join()
    assert status == 0
