"""The engine persistent on shapes, devices and chunks that nobody chose."""

import pytest
from cases import Case
from gpu_cases import arrays_of, assert_device_case
from gpu_on_cpu import order, profile
from hypothesis import given, settings
from hypothesis import strategies as st
from persistent_cases import DTYPES, choose_form, run
from test_gradients import assert_empty_rows_keep_their_states, assert_padding_is_zero

from cupy_lstm.engines import persistent

pytestmark = pytest.mark.gpu_on_cpu


@st.composite
def shapes(draw):
    """Draw a case. Neither B nor H is one: the rule measures by a naive loop's luck there."""
    T, B = draw(st.integers(1, 7)), draw(st.integers(2, 10))
    lengths = st.none() | st.tuples(*[st.integers(0, T)] * B)
    return Case(
        "drawn",
        T=T,
        B=B,
        I=draw(st.integers(2, 40)),
        H=draw(st.integers(4, 48)),
        bidirectional=draw(st.booleans()),
        time_major=draw(st.booleans()),
        bias_ih=draw(st.booleans()),
        bias_hh=draw(st.booleans()),
        states=draw(st.booleans()),
        lengths=draw(lengths),
        upstream=draw(st.sampled_from([("y",), ("h", "c"), ("y", "h", "c", "cells")])),
        seed=draw(st.integers(0, 9)),
    )


@settings(max_examples=60)
@given(
    shapes(),
    st.sampled_from(DTYPES),
    st.sampled_from(["T4", "A100", "LAPTOP", "L4", "H100", "B200"]),
    st.booleans(),
    st.integers(1, 8),
    st.tuples(st.sampled_from(["forward", "reverse", "random"]), st.integers(0, 99)),
)
def test_any_shape_on_any_card(cupy, case, dtype, card, inside, chunk, turn):
    with pytest.MonkeyPatch.context() as patch, profile(card), order(turn[0], seed=turn[1]):
        choose_form(patch, inside)
        patch.setattr(persistent, "LAUNCH_STEPS", chunk)
        result, _ = run(cupy, case, dtype)
    assert_device_case(case, dtype, result)
    assert_padding_is_zero(case, result)
    assert_empty_rows_keep_their_states(case, arrays_of(case, dtype), result)
