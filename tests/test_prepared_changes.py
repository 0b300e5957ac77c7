"""Every way to change a weight that an engine has prepared is seen by the next call."""

import copy
import ctypes
import pickle

import numpy as np
import pytest
from face import flat_equal, normal
from prepared_cases import B, I, T, fresh, infer, make, other_values

from cupy_lstm import SGD

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
def test_each_change_of_a_weight_is_seen(way):
    lstm = make()
    infer(lstm)
    for one in way(lstm):
        expected = fresh(one)
        for _ in range(2):
            assert flat_equal(infer(one), expected)
