"""The engine persistent on shapes, devices and chunks that nobody chose."""

from dataclasses import replace

import pytest
from cases import Case
from full import FULL
from gpu_cases import arrays_of, assert_device_case
from gpu_on_cpu import order, profile
from hypothesis import given, settings
from hypothesis import strategies as st
from persistent_cases import DTYPES, choose_form, run
from test_gradients import assert_empty_rows_keep_their_states, assert_padding_is_zero

from cupy_lstm.device import current_device
from cupy_lstm.engines import persistent
from cupy_lstm.persistent.tiles import block_capacity

pytestmark = pytest.mark.gpu_on_cpu


@st.composite
def shapes(draw, most_steps, most_rows, units):
    """Draw a case. Neither B nor H is one: the rule measures by a naive loop's luck there."""
    T, B = draw(st.integers(1, most_steps)), draw(st.integers(2, most_rows))
    lengths = st.none() | st.tuples(*[st.integers(0, T)] * B)
    return Case(
        "drawn",
        T=T,
        B=B,
        I=draw(st.integers(2, 40)),
        H=draw(units),
        bidirectional=draw(st.booleans()),
        time_major=draw(st.booleans()),
        bias_ih=draw(st.booleans()),
        bias_hh=draw(st.booleans()),
        states=draw(st.booleans()),
        lengths=draw(lengths),
        upstream=draw(st.sampled_from([("y",), ("h", "c"), ("y", "h", "c", "cells")])),
        seed=draw(st.integers(0, 9)),
    )


PLACES = (
    st.sampled_from(DTYPES),
    st.sampled_from(["T4", "A100", "LAPTOP", "L4", "H100", "B200"]),
    st.booleans(),
    st.integers(1, 8),
    st.tuples(st.sampled_from(["forward", "reverse", "random"]), st.integers(0, 99)),
)


@settings(max_examples=60 if FULL else 25)
@given(shapes(7, 10, st.integers(4, 48)), *PLACES)
def test_any_shape_on_any_card(cupy, case, dtype, card, inside, chunk, turn):
    assert_right(cupy, case, dtype, card, inside, chunk, turn)


@settings(max_examples=60 if FULL else 5)
@given(shapes(3, 5, st.integers(49, 164)), *PLACES)
def test_any_size_up_to_the_largest(cupy, case, dtype, card, inside, chunk, turn):
    with profile(card):
        most = block_capacity(dtype, current_device().shared_memory_per_block)
    assert_right(cupy, replace(case, H=min(case.H, most)), dtype, card, inside, chunk, turn)


def assert_right(cupy, case, dtype, card, inside, chunk, turn):
    with pytest.MonkeyPatch.context() as patch, profile(card), order(turn[0], seed=turn[1]):
        choose_form(patch, inside)
        patch.setattr(persistent, "LAUNCH_STEPS", chunk)
        result, _ = run(cupy, case, dtype)
    assert_device_case(case, dtype, result)
    assert_padding_is_zero(case, result)
    assert_empty_rows_keep_their_states(case, arrays_of(case, dtype), result)
