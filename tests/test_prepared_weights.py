"""Weights that an engine has prepared: kept between inference calls, never used when stale."""

import copy
import ctypes
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
from simd_bed import needs_fork

from cupy_lstm import LSTM, SGD, buffer, lstm_forward, no_grad
from cupy_lstm.buffer import Buffer
from cupy_lstm.engines import simd

T, B, I, H, P = 4, 3, 5, 6, 4  # noqa: E741


def make(**options):
    return LSTM(I, H, 2, "bidirect", proj_size=P, seed=1, **options)


def infer(lstm):
    x = normal(B, T, I).astype(lstm.dtype)
    with no_grad():
        y, (h, c) = lstm(x)
    return y, h, c


def fresh(lstm):
    """Return what an LSTM says that was just made, with these weights."""
    other = make(dtype=lstm.dtype)
    other.set_state_dict({name: p.numpy() for name, p in lstm.named_parameters()})
    return infer(other)


def other_values(parameter, seed=2):
    return normal(*parameter.shape, seed=seed).astype(parameter.dtype)


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


# Ways to change a weight. Each yields LSTMs whose next calls shall see the weights as they are.


def set_value(lstm):
    lstm.weight_hh_l0.set_value(other_values(lstm.weight_hh_l0))
    yield lstm


def set_from_a_parameter(lstm):
    lstm.weight_hh_l0.set_value(lstm.weight_hh_l0_reverse)
    yield lstm


def assign_data(lstm):
    lstm.bias_ih_l1_reverse.data = other_values(lstm.bias_ih_l1_reverse)
    yield lstm


def write_what_is_read_and_say_so(lstm):
    lstm.weight_ih_l0.row[...] = 1
    lstm.weight_ih_l0.mark_changed()
    yield lstm


def write_and_drop(lstm):
    lstm.weight_ih_l0.data[...] = other_values(lstm.weight_ih_l0)
    yield lstm
    lstm.weight_ih_l0.data[0] = 1
    yield lstm


def write_and_keep(lstm):
    view = lstm.weight_ih_l0.data
    yield lstm
    view[...] = other_values(lstm.weight_ih_l0)
    yield lstm
    view[0] = 1
    yield lstm
    view[1] = 1
    del view
    yield lstm


def write_two_views(lstm):
    first, second = lstm.weight_hh_l1.data, lstm.weight_hh_l1_reverse.data
    yield lstm
    del second
    first[...] = 1
    yield lstm
    third = lstm.weight_hh_l1.data
    del first
    yield lstm
    third[...] = 2
    yield lstm


def write_a_view_of_a_view(lstm):
    view = lstm.weight_ho_l0.data[1:][::2].T
    yield lstm
    view[...] = 1
    yield lstm
    view[0] = 2
    yield lstm


def write_the_base_of_a_view(lstm):
    whole = lstm.weight_hh_l0.data.base
    yield lstm
    whole[...] = 0
    yield lstm


def write_a_memoryview(lstm):
    view = memoryview(lstm.bias_hh_l0.data)
    yield lstm
    view[0] = 3.0
    yield lstm


def write_by_ctypes(lstm):
    pointer = lstm.bias_hh_l0.data.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    yield lstm
    pointer[0] = 3.0
    yield lstm


def write_through_dlpack(lstm):
    view = np.from_dlpack(lstm.weight_ih_l0.data)
    yield lstm
    view[...] = 1
    yield lstm


def write_what_asarray_returns(lstm):
    view = lstm.weight_ih_l0.__array__(copy=False)
    yield lstm
    view[...] = 1
    yield lstm


def write_a_state_dict(lstm):
    state = lstm.state_dict()
    yield lstm
    state["weight_hh_l1"][...] = 1
    yield lstm
    state["weight_ih_l0"] *= 2
    del state
    yield lstm


def set_state_dict(lstm):
    state = make().state_dict()
    lstm.set_state_dict({name: 2 * value for name, value in state.items()})
    yield lstm


def step(lstm):
    optimizer = SGD(0.1, lstm.parameters())
    for _ in range(2):
        y, _ = lstm(normal(B, T, I))
        yield lstm
        lstm(normal(B, T, I))
        lstm.backward(np.ones_like(y))
        optimizer.step()
        yield lstm


def interrupted_step(lstm):
    class Interrupted(SGD):
        def _update(self, weight, *arguments):
            super()._update(weight, *arguments)
            raise KeyboardInterrupt

    y, _ = lstm(normal(B, T, I))
    lstm.backward(np.ones_like(y))
    yield lstm
    with pytest.raises(KeyboardInterrupt):
        Interrupted(0.1, lstm.parameters()).step()
    yield lstm


def convert(lstm):
    view = lstm.weight_ih_l0.data
    yield lstm
    lstm.to(dtype="float64")
    yield lstm
    view[...] = 7  # of the memory that was left
    assert not np.any(lstm.weight_ih_l0.numpy() == 7)
    yield lstm
    lstm.weight_ih_l0.data[...] = 2
    assert np.all(lstm.weight_ih_l0.numpy() == 2)
    yield lstm
    yield lstm.to(dtype="float32")


def stay(lstm):
    view = lstm.weight_ih_l0.data
    lstm.to(dtype="float32")
    yield lstm
    view[...] = 1
    yield lstm


def change_a_deepcopy(lstm):
    view = lstm.weight_ih_l0.data
    other = copy.deepcopy(lstm)
    yield lstm
    yield other
    other.weight_ih_l0.data[...] = 1
    assert np.all(other.weight_ih_l0.numpy() == 1)
    yield lstm
    yield other
    view[...] = 2
    assert np.all(other.weight_ih_l0.numpy() == 1)
    yield lstm
    yield other


def change_a_shallow_copy(lstm):
    other = copy.copy(lstm)
    yield other
    other.weight_ih_l0.data[...] = 1
    yield lstm
    yield other
    other.weight_ih_l0.set_value(other_values(lstm.weight_ih_l0))
    yield lstm
    yield other


def change_an_unpickled_one(lstm):
    lent = lstm.weight_ih_l0.data
    other = pickle.loads(pickle.dumps(lstm))
    yield other
    lent[...] = 2
    yield lstm
    view = other.weight_ih_l0.data[1:]
    yield other
    view[...] = 1
    yield other
    yield lstm


def change_what_it_was_unpickled_of(lstm):
    found = []
    pickled = pickle.dumps(lstm, protocol=5, buffer_callback=found.append)
    assert len(found) >= 5
    memory = [bytearray(one) for one in found]
    other = pickle.loads(pickled, buffers=memory)
    yield other
    for one in memory:
        one[:] = bytes(len(one))
    assert np.any(other.weight_ih_l0.numpy())
    yield other


WAYS = [
    set_value, set_from_a_parameter, assign_data, write_what_is_read_and_say_so, write_and_drop,
    write_and_keep, write_two_views, write_a_view_of_a_view, write_the_base_of_a_view,
    write_a_memoryview, write_by_ctypes,
    write_through_dlpack, write_what_asarray_returns, write_a_state_dict, set_state_dict,
    step, interrupted_step, convert, stay, change_a_deepcopy, change_a_shallow_copy,
    change_an_unpickled_one, change_what_it_was_unpickled_of,
]  # fmt: skip


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_each_change_of_a_weight_is_seen(way, lstm):
    infer(lstm)
    for one in way(lstm):
        expected = fresh(one)
        for _ in range(2):
            assert flat_equal(infer(one), expected)


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
