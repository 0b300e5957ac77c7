"""The engine persistent under the error rule: the table of cases, every size, chunks, orders."""

from dataclasses import replace

import numpy as np
import pytest
from cases import Case
from full import in_dtypes_by_turns
from gpu_cases import arrays_of, assert_device_case, call, on_device, on_host, prepared
from gpu_on_cpu import order, profile
from persistent_cases import (
    DTYPES,
    SAMPLE,
    SERVED,
    assert_served,
    bits,
    choose_blocks,
    choose_form,
    each_dtype,
    each_form,
    each_sample,
    run,
)
from test_gradients import assert_empty_rows_keep_their_states, assert_padding_is_zero

from cupy_lstm import LSTM, engine, no_grad
from cupy_lstm.device import CARDS
from cupy_lstm.engines import persistent, stepwise
from cupy_lstm.notation import LayerWeights, PerWeight
from cupy_lstm.persistent.tiles import block_capacity

pytestmark = pytest.mark.gpu_on_cpu


@in_dtypes_by_turns(SERVED, DTYPES)
def test_table(cupy, case, dtype):
    result = assert_served(cupy, case, dtype)
    assert_padding_is_zero(case, result)
    assert_empty_rows_keep_their_states(case, arrays_of(case, dtype), result)


@each_dtype
@each_sample
def test_with_the_projection_in_a_gemm(cupy, case, dtype, monkeypatch):
    choose_form(monkeypatch, False)
    result = assert_served(cupy, case, dtype)
    assert_padding_is_zero(case, result)


@each_dtype
@each_form
@pytest.mark.parametrize("turn", [("reverse", 0), ("random", 1), ("random", 2)])
def test_in_every_order_of_threads_the_same_bits(cupy, dtype, inside, turn, monkeypatch):
    choose_form(monkeypatch, inside)
    for case in SAMPLE:
        expected = bits(run(cupy, case, dtype)[0])
        with order(turn[0], seed=turn[1]):
            assert bits(run(cupy, case, dtype)[0]) == expected, case.id


# --- sizes ---------------------------------------------------------------------------------------

# Around warps (8 units), lanes (4 and 16), groups of terms, and the tiles' numbers of registers.
WIDTHS = [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 33, 40, 63, 64, 65, 72, 96, 97, 113, 128]


def of_width(H):
    """Return a case of so many units."""
    seed = 16 if H == 1 else 0  # that of the table's case: luck must not be the measure
    return Case(f"width-{H}", T=2, H=H, states=True, seed=seed)


@in_dtypes_by_turns(map(of_width, WIDTHS), DTYPES)
def test_every_hidden_size(cupy, case, dtype, monkeypatch):
    choose_blocks(monkeypatch)
    with profile("H100"):
        assert_served(cupy, case, dtype)


CAPACITIES = [("T4", "float16"), ("A100", "float32"), ("H100", "float32"), ("H100", "bfloat16")]


@pytest.mark.parametrize(("card", "dtype"), CAPACITIES)
def test_the_largest_layers_of_a_card(cupy, card, dtype, monkeypatch):
    """The device of the bed refuses a block that asks for more than the card has."""
    choose_blocks(monkeypatch)
    shared = CARDS[card].shared_memory_per_block
    with profile(card):
        for training in (True, False):
            H = block_capacity(dtype, shared, training)
            case = Case(f"capacity-{H}", T=2, B=2, H=H, states=True)
            if training:
                assert_served(cupy, case, dtype)
                continue
            lstm, arrays = prepared(cupy, case, dtype)
            with engine("persistent"), no_grad():
                y, _ = lstm(arrays.x, arrays.states)
            with engine("stepwise"), no_grad():
                expected, _ = lstm(arrays.x, arrays.states)
            near = 4 * float(abs(expected).max()) * eps_of(dtype)
            assert abs(y - expected).astype("float32").max() <= near
        lstm = LSTM(4, block_capacity(dtype, shared) + 1, xp="cupy", dtype=dtype)
        with (
            engine("persistent"),
            pytest.raises(ValueError, match=r"hidden_size is at most \d+ in \w+ on this device"),
        ):
            lstm(cupy.zeros((1, 2, 4), dtype))


def eps_of(dtype):
    import ml_dtypes

    return float(ml_dtypes.finfo(dtype).eps)


@each_dtype
@pytest.mark.parametrize("I", [1, 9, 32, 33, 40])
@pytest.mark.parametrize("H", [8, 40])
def test_inputs_wider_and_narrower_than_the_units(cupy, dtype, I, H):  # noqa: E741
    assert_served(cupy, Case(f"input-{I}-{H}", T=3, B=5, I=I, H=H, lengths=(1, 3, 0, 2, 3)), dtype)


# --- chunks and ranges ---------------------------------------------------------------------------


def in_chunks(monkeypatch, steps):
    """Have the engine take so many steps at once."""
    monkeypatch.setattr(persistent, "LAUNCH_STEPS", steps)


@each_dtype
@each_form
@each_sample
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_chunks(cupy, case, dtype, inside, steps, monkeypatch):
    """The steps of a launch bound its workspace, never the result."""
    choose_form(monkeypatch, inside)
    in_chunks(monkeypatch, steps)
    result, _ = run(cupy, case, dtype)
    assert_device_case(case, dtype, result)
    assert_padding_is_zero(case, result)


@each_form
@pytest.mark.parametrize("batch_major", [False, True])
@pytest.mark.parametrize("keep", [False, True])
def test_chunks_and_tapes_change_no_bit_of_a_forward(cupy, inside, batch_major, keep, monkeypatch):
    choose_form(monkeypatch, inside)
    layer = Layer(cupy, T=7, B=5, I=6, H=9, D=2, lengths=(3, 7, 0, 1, 4), batch_major=batch_major)
    expected = layer.forward(persistent, keep=True)
    for chunk in (1, 2, 3, 5):
        found = layer.forward(persistent, keep=keep, chunk=chunk)
        assert [a.tobytes() for a in found[0]] == [a.tobytes() for a in expected[0]]


class Layer:
    """A layer called through the functions of an engine, for what the face does not offer."""

    def __init__(self, cupy, T, B, I, H, D, lengths=None, batch_major=False, reverse=None):  # noqa: E741
        rng = np.random.default_rng([T, B, I, H, D])
        self.cupy, self.sizes, self.reverse = cupy, (T, B, I, H, D), reverse or (False, True)[:D]
        self.batch_major = batch_major

        def normal(*shape, scale=1.0):
            return cupy.asarray((scale * rng.standard_normal(shape)).astype("float32"))

        self.weights = LayerWeights(
            normal(D, 4 * H, I, scale=H**-0.5), normal(D, 4 * H, H, scale=H**-0.5),
            normal(D, 4 * H), normal(D, 4 * H),
        )  # fmt: skip
        self.states = normal(D, B, H), normal(D, B, H)
        self.x, self.dy = self.over_time(normal(B, T, I)), self.over_time(normal(B, T, D, H))
        self.dcells, self.dstates = normal(T, B, D, H), (normal(D, B, H), normal(D, B, H))
        self.lengths = None if lengths is None else cupy.asarray(np.array(lengths))

    def over_time(self, array):
        """Return an array [B,T,...] as [T,B,...] in the layer's order."""
        swapped = array.swapaxes(0, 1)
        return swapped if self.batch_major else self.cupy.ascontiguousarray(swapped)

    def forward(self, runner, *, keep, chunk=99, steps=None, states=None):
        T, B, _, H, D = self.sizes
        y = self.over_time(self.cupy.full((B, T, D, H), np.nan, "float32"))
        cells = self.cupy.full((T, B, D, H), np.nan, "float32")
        (h, c), tape = runner.forward(
            self.x, self.weights, states or self.states, self.lengths, reverse=self.reverse,
            y=y, cells=cells, keep=keep, steps=steps, chunk=chunk,
        )  # fmt: skip
        return [array.get() for array in (y, cells, h, c)], tape

    def backward(self, runner, tape):
        gradients = PerWeight(*map(self.cupy.zeros_like, self.weights[:4]))
        wanted = PerWeight(*[slice(0, self.sizes[-1])] * 4)
        dx = self.cupy.zeros_like(self.x)
        dh, dc = runner.backward(
            [tape], self.dy, self.dstates, self.dcells, wanted=wanted, gradients=gradients, dx=dx
        )
        return [array.get() for array in (dx, dh, dc, *gradients[:4])]


@each_form
@pytest.mark.parametrize("batch_major", [False, True])
@pytest.mark.parametrize("reverse", [(False,), (True,), (False, True), (True, False)])
@pytest.mark.parametrize("steps", [range(0, 4), range(2, 7), range(3, 6), range(4, 4)])
def test_a_range_of_steps_is_that_of_stepwise(
    cupy, inside, batch_major, reverse, steps, monkeypatch
):
    choose_form(monkeypatch, inside)
    D = len(reverse)
    layer = Layer(cupy, 7, 5, 6, 9, D, (3, 7, 0, 1, 4), batch_major, reverse)
    for chunk in (2, 99):
        both = []
        for runner in (persistent, stepwise):
            outputs, tape = layer.forward(runner, keep=True, chunk=chunk, steps=steps)
            both.append(outputs + layer.backward(runner, tape))
        for found, expected in zip(*both, strict=True):
            assert np.array_equal(np.isnan(found), np.isnan(expected))  # what no step touches
            error = np.nanmax(abs(found - expected), initial=0)
            assert error <= 32 * 2**-23 * np.nanmax(abs(expected), initial=1)


# --- repetition ----------------------------------------------------------------------------------


@each_dtype
@each_form
@each_sample
def test_two_runs_are_bit_equal(cupy, case, dtype, inside, monkeypatch):
    choose_form(monkeypatch, inside)
    assert bits(run(cupy, case, dtype)[0]) == bits(run(cupy, case, dtype)[0])


def test_a_thousand_launches_back_to_back(cupy):
    lstm = LSTM(2, 3, xp="cupy", seed=0)
    x = cupy.ones((2, 3, 2), "float32")
    with engine("persistent"), no_grad():
        first = lstm(x)[0].get().tobytes()
        outputs = [lstm(x)[0] for _ in range(1000)]
    assert {y.get().tobytes() for y in outputs} == {first}


# --- the caller's arrays -------------------------------------------------------------------------


@each_dtype
@each_form
@pytest.mark.parametrize("layout", ["transposed", "every other", "reversed", "offset"])
def test_arrays_of_any_strides(cupy, dtype, inside, layout, monkeypatch):
    choose_form(monkeypatch, inside)
    case = Case("strided", T=4, B=5, I=6, states=True, lengths=(4, 2, 0, 3, 1), bidirectional=True)
    lay = {
        "transposed": lambda a: cupy.ascontiguousarray(a.T).T,
        "every other": lambda a: cupy.repeat(a, 2, axis=-1)[..., ::2],
        "reversed": lambda a: cupy.ascontiguousarray(a[..., ::-1])[..., ::-1],
        "offset": lambda a: cupy.concatenate([a.ravel()[:1], a.ravel()])[1:].reshape(a.shape),
    }[layout]
    expected = bits(run(cupy, case, dtype)[0])
    lstm, given = prepared(cupy, case, dtype)
    strided = replace(
        given,
        x=lay(given.x),
        states=tuple(map(lay, given.states)),
        lengths=lay(given.lengths),
        upstream={name: lay(array) for name, array in given.upstream.items()},
    )
    with engine("persistent"):
        result = on_host(call(lstm, case, strided))
    # The order in memory is that of the sums over steps and rows.
    assert_device_case(case, dtype, result)
    found = bits(result)
    for name in expected.keys() - result.grads.keys():
        if layout != "transposed" or not name.startswith("d"):
            assert found[name] == expected[name], name


@each_dtype
@each_form
def test_padding_may_hold_anything(cupy, dtype, inside, monkeypatch):
    choose_form(monkeypatch, inside)
    for case in SAMPLE[:2]:
        arrays = arrays_of(case, dtype)
        padding = np.arange(case.T)[:, None] >= np.array(case.lengths)
        padding = padding if case.time_major else padding.T
        assert padding.any()
        expected = bits(run(cupy, case, dtype)[0])
        x, upstream = arrays.x.copy(), {n: a.copy() for n, a in arrays.upstream.items()}
        x[padding] = np.nan
        for name in ("y", "cells"):
            upstream[name][padding] = np.nan
        lstm, _ = prepared(cupy, case, dtype)
        given = on_device(cupy, replace(arrays, x=x, upstream=upstream))
        with engine("persistent"):
            assert bits(on_host(call(lstm, case, given))) == expected, case.id


@each_dtype
def test_gradients_accumulate(cupy, dtype):
    case = SAMPLE[2]
    lstm, given = prepared(cupy, case, dtype)
    with engine("persistent"):
        once = on_host(call(lstm, case, given)).grads
        for repeats in (2, 3):
            total = on_host(call(lstm, case, given)).grads
            for name, grad in once.items():
                # A product is added to what is there before it is rounded, by one GEMM.
                near = 4 * repeats * 2**-24 * abs(repeats * grad).max()
                assert abs(total[name] - repeats * grad).max() <= near, name


@each_dtype
def test_without_a_tape_the_same_numbers(cupy, dtype):
    for case in SAMPLE:
        lstm, given = prepared(cupy, case, dtype)
        with engine("persistent"):
            y, states = lstm(given.x, given.states, given.lengths)
            with no_grad():
                y_lean, lean = lstm(given.x, given.states, given.lengths)
        for one, other in zip((y, *states), (y_lean, *lean), strict=True):
            assert one.get().tobytes() == other.get().tobytes()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"dtype": "float64"}, "it serves float32, float16, bfloat16, not float64"),
        ({"proj_size": 3}, "it serves no projection"),
        ({"hidden_size": 1000}, "hidden_size is at most"),
    ],
)
def test_what_it_does_not_serve_has_a_reason(cupy, options, reason):
    lstm = LSTM(**{"input_size": 4, "hidden_size": 6, "xp": "cupy"} | options)
    x = cupy.zeros((1, 2, 4), lstm.dtype)
    with engine("persistent"), pytest.raises(ValueError, match=reason):
        lstm(x)
    lstm(x)  # the plan takes another
