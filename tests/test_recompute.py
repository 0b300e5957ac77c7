"""`checkpoint_every`: less memory, the same results to the last bit."""

import copy
import dataclasses
import weakref

import numpy as np
import pytest
from cases import CASES, HOST_ENGINES, Case, Result, backward, build, forward, make_lstm, results
from gpu_cases import call, on_host, prepared
from test_memory import OBJECTS, SLACK, arrays_in, owned, peak_of, traced  # noqa: F401 a fixture

from cupy_lstm import LSTM, Dropout, engine, explain_plan, network, no_grad, plan
from cupy_lstm.functional import lstm_backward, lstm_forward
from cupy_lstm.notation import LayerGradients, LayerWeights, Shape
from cupy_lstm.plan import plan_sweep
from cupy_lstm.simd import gradients
from cupy_lstm.workspace import checkpoint_bytes, tape_bytes

ALL = ("y", "h", "c", "cells")
PART = 2
"""Steps of a part of the sums that weight gradients are, in these tests."""

EVERY = (1, 3, 4, 1000)
"""Asked for: one part, two (rounded up), two, and all steps at once."""

RICH = [
    Case("recompute", T=7, states=True, upstream=ALL),
    Case("recompute-lengths", T=9, B=5, L=3, P=4, bidirectional=True, states=True,
         lengths=(3, 9, 0, 5, 1), dropout=0.4, upstream=ALL),
    Case("recompute-time-major", T=8, L=2, H=17, time_major=True, lengths=(8, 2, 3), dropout=0.5),
    Case("recompute-short", T=9, B=3, bidirectional=True, lengths=(1, 2, 1), upstream=("y", "c")),
]  # fmt: skip
NAMES = (
    "b1-bidirectional", "h33-b17", "lengths-zero", "projection-2-layers", "no-bias-ih",
    "frozen-weight-hh", "frozen-all", "t0", "b0", "t1", "only-c", "dropout-one",
    "saturated-bidirectional-lengths",
)  # fmt: skip
TABLE = RICH + [case for case in CASES if case.id in NAMES]

each_engine = pytest.mark.parametrize("name", HOST_ENGINES)
each_case = pytest.mark.parametrize("case", TABLE, ids=lambda case: case.id)


@pytest.fixture
def parts(monkeypatch):
    """Sums of a few steps, so that a short sequence has several."""

    def planned(*arguments):
        return dataclasses.replace(plan_sweep(*arguments), steps_per_chunk=PART)

    monkeypatch.setattr(network, "remembered_plan", planned)
    monkeypatch.setattr(plan, "SUMMED_STEPS", PART)
    monkeypatch.setattr(gradients, "SUMMED_STEPS", PART)


def run(case, arrays, dtype, every) -> Result:
    """Two calls whose gradients add up, the states kept every so many steps."""
    lstm = make_lstm(case, arrays.weights, dtype, checkpoint_every=every)
    backward(lstm, case, arrays, forward(lstm, case, arrays))
    return backward(lstm, case, arrays, forward(lstm, case, arrays))


def assert_bit_equal(found: Result, plain: Result) -> None:
    found, plain = results(found), results(plain)
    assert found.keys() == plain.keys()
    for key, array in plain.items():
        assert found[key].dtype == array.dtype, key
        assert np.array_equal(found[key], array), key


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@each_case
@each_engine
def test_every_result_is_bit_equal(name, case, dtype, parts):
    arrays = build(case, dtype)
    with engine(name):
        plain = run(case, arrays, dtype, None)
        for every in EVERY:
            assert_bit_equal(run(case, arrays, dtype, every), plain)


@each_engine
def test_bit_equal_with_the_parts_of_the_plan(name):
    """Nothing is set smaller: several chunks, and several parts of the sums of the engine simd."""
    case = Case("recompute-long", T=300, B=51, I=17, H=33, bidirectional=True, states=True,
                lengths=(300, *range(0, 300, 6)))  # fmt: skip
    chosen = plan_sweep(Shape(300, 51, 17, 33, 33, 2), "float32", forced=name)
    assert chosen.steps_per_segment(1) < 150
    arrays = build(case, "float32")
    with engine(name):
        plain = run(case, arrays, "float32", None)
        for every in (1, 100):
            assert_bit_equal(run(case, arrays, "float32", every), plain)


class TestOnAGpu:
    """The same on CuPy arrays, both engines that keep a tape."""

    pytestmark = pytest.mark.gpu_on_cpu

    @pytest.mark.parametrize(
        ("name", "case", "dtype"),
        [
            ("stepwise", RICH[0], "float64"),
            ("stepwise", RICH[1], "float32"),
            ("stepwise", RICH[1], "float16"),
            ("stepwise", RICH[2], "bfloat16"),
            ("persistent", RICH[0], "float16"),
            ("persistent", RICH[2], "float32"),
            ("persistent", RICH[3], "bfloat16"),
        ],
        ids=lambda value: getattr(value, "id", value),
    )
    def test_every_result_is_bit_equal(self, cupy, name, case, dtype, parts):
        found = []
        for every in (None, 1, 3):
            lstm, arrays = prepared(cupy, case, dtype)
            lstm.checkpoint_every = every
            with engine(name):
                found.append(on_host(call(lstm, case, arrays)))
        for one in found[1:]:
            assert_bit_equal(one, found[0])


# What is kept.


def kept_of(case, every):
    lstm = make_lstm(case, build(case, "float32").weights, "float32")
    weights = [layer.arrays() for layer in lstm._layers]
    arrays = build(case, "float32")
    *_, tape = lstm_forward(
        arrays.x,
        weights,
        arrays.states,
        reverse=(False, True)[: case.D],
        checkpoint_every=every,
    )
    return tape


@each_engine
@pytest.mark.parametrize("every", EVERY)
def test_a_tape_keeps_states_and_inputs_alone(name, every, parts):
    case = Case("kept", T=9, B=3, L=2, P=4, bidirectional=True, states=True)
    with engine(name):
        tape = kept_of(case, every)
    number = -(-case.T // (-(-every // PART) * PART))
    shape = Shape(case.T, case.B, case.I, case.H, case.P, case.D)
    for layer in tape.network.layers:
        assert owned(*arrays_in(layer)) == number * checkpoint_bytes(shape, 4)


@each_engine
def test_the_peak_is_that_of_a_segment(name, traced):  # noqa: F811
    T, B, sizes, every = 800, 32, Shape(800, 32, 3, 24, 24, 2), 100
    rng, dtype = np.random.default_rng(0), np.dtype("float32")
    weights = [
        LayerWeights(*(
            rng.uniform(-0.1, 0.1, (2, *shape)).astype(dtype)
            for shape in ((96, features), (96, 24), (96,), (96,))
        ))
        for features in (3, 48)
    ]  # fmt: skip
    targets = [LayerGradients(*map(np.zeros_like, layer[:4])) for layer in weights]
    x, dy = np.ones((B, T, 3), dtype), np.ones((B, T, 48), dtype)
    options = {"reverse": (False, True), "dropout": Dropout(0.5, 1, 2)}
    chosen = plan_sweep(sizes, "float32", forced=name)
    steps = chosen.steps_per_segment(every)
    segment = tape_bytes(sizes._replace(T=steps), 4, in_simd=True)
    kept = 2 * -(-T // steps) * checkpoint_bytes(sizes, 4)
    room = segment + chosen.workspace_bytes + 3 * checkpoint_bytes(sizes, 4) + SLACK + OBJECTS
    with engine(name):
        (y, _, tape), peak = peak_of(
            lambda: lstm_forward(x, weights, checkpoint_every=every, **options)
        )
        assert peak <= 2 * y.nbytes + kept + room  # y of both layers
        _, peak = peak_of(lambda: lstm_backward(tape, dy, gradients=targets))
        assert peak <= y.nbytes + x.nbytes + room  # gradients of both inputs
    assert 2 * tape_bytes(sizes, 4) > 3 * (kept + room)


@each_engine
def test_a_caller_s_arrays_may_change_before_backward(name, parts):
    case = Case("changed", T=7, L=2, states=True, lengths=(7, 3, 5))
    arrays, found = build(case, "float32"), []
    for changed in (False, True):
        given = copy.deepcopy(arrays)
        lstm = make_lstm(case, arrays.weights, "float32", checkpoint_every=3)
        with engine(name):
            result = forward(lstm, case, given)
            if changed:
                for array in (result.y, result.h, result.c, *given.states, given.lengths):
                    array[...] = 0
            found.append(backward(lstm, case, given, result).grads)
    for key, array in found[0].items():
        assert np.array_equal(array, found[1][key]), key


def test_tapes_are_freed_one_by_one(parts, monkeypatch):
    """While a segment is made anew, the one after it is gone."""
    from cupy_lstm.engines import stepwise

    made, alive, run_forward = [], [], stepwise.forward

    def watched(*arguments, **options):
        alive.append(sum(one() is not None for one in made))
        states, tape = run_forward(*arguments, **options)
        made.append(weakref.ref(tape))
        return states, tape

    monkeypatch.setattr(stepwise, "forward", watched)
    lstm = LSTM(3, 4, checkpoint_every=2)
    with engine("stepwise"):
        y, _ = lstm(np.ones((2, 8, 3), "float32"))
        lstm.backward(y)
    assert alive == [0] * 8


# The face.


def test_inference_keeps_nothing():
    lstm = LSTM(3, 4, checkpoint_every=2)
    with no_grad():
        lstm(np.ones((2, 8, 3), "float32"))
    with pytest.raises(RuntimeError, match="no call to go back through"):
        lstm.backward(np.ones((2, 8, 4), "float32"))


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (0, ValueError, "checkpoint_every must be at least 1, received 0"),
        (2.0, TypeError, "checkpoint_every must be an integer, received 2.0"),
        (True, TypeError, "checkpoint_every must be an integer, received True"),
    ],
)
def test_a_wrong_number_is_refused(value, error, message):
    lstm = LSTM(3, 4, checkpoint_every=5)
    weights = [layer.arrays() for layer in lstm._layers]
    for wrong in (
        lambda: LSTM(3, 4, checkpoint_every=value),
        lambda: setattr(lstm, "checkpoint_every", value),
        lambda: lstm_forward(np.ones((2, 8, 3), "float32"), weights, checkpoint_every=value),
        lambda: explain_plan(8, 2, 3, 4, checkpoint_every=value),
    ):
        with pytest.raises(error) as raised:
            wrong()
        assert str(raised.value) == message
    assert lstm.checkpoint_every == 5


def test_it_is_told_and_copied():
    lstm = LSTM(3, 4, checkpoint_every=5)
    assert repr(copy.deepcopy(lstm)) == "LSTM(3, 4, checkpoint_every=5)"
    lstm.checkpoint_every = None
    assert repr(lstm) == "LSTM(3, 4)"


@each_engine
def test_a_plan_tells_the_memory(name):
    text = explain_plan(20000, 16, 64, 128, 2, forced=name, checkpoint_every=500)
    told = [line for line in text.splitlines() if "checkpoints" in line]
    chosen = plan_sweep(Shape(20000, 16, 64, 128, 128, 1), "float32", forced=name)
    steps = chosen.steps_per_segment(500)
    assert steps % (plan.SUMMED_STEPS if name == "simd" else chosen.steps_per_chunk) == 0
    assert told[0] == (
        f"  checkpoints: h and c before every {steps} steps, "
        f"{-(-20000 // steps) * 16 * 256 * 4 / 2**20:.1f} MiB; a tape of "
        f"{steps * 16 * 640 * 4 / 2**20:.1f} MiB is made at a time, "
        "instead of one of 781.2 MiB kept"
    )
    assert len(told) == 2
    assert "checkpoints" not in explain_plan(8, 2, 3, 4, training=False, checkpoint_every=5)
    with engine(name):
        assert text == LSTM(64, 128, 2, checkpoint_every=500).explain_plan(20000, 16)
