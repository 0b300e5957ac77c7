"""The engine single under the error rule: sizes, rows, layouts, orders of threads, launches."""

from dataclasses import replace
from itertools import pairwise, product

import numpy as np
import pytest
from cases import CASES, Case, forward
from full import in_dtypes_by_turns
from gpu_cases import DTYPES, assert_device_case, each_dtype, prepared
from gpu_on_cpu import order, record
from gpu_on_cpu.driver.recorder import Allocation, Copy, Fill, Free, Launch
from oracle import Result

from cupy_lstm import LSTM, engine, no_grad
from cupy_lstm.device import CARDS
from cupy_lstm.engines import single
from cupy_lstm.notation import LayerWeights, Shape
from cupy_lstm.plan import FEW_STEPS, NO_TAPE, STEP_PRODUCTS, plan_sweep

pytestmark = pytest.mark.gpu_on_cpu

_BI2 = {"bidirectional": True, "L": 2, "states": True}
_CELLS = ("y", "h", "c", "cells")


def inference(case):
    """Return a case without gradients: the engine keeps nothing for them."""
    return replace(case, frozen=tuple(case.weight_shapes()))


# Of forward alone, and three outputs: the seed by the rule of the table, where sizes are one.
SEEDS = {"projection-one": 18}
TABLE = [
    replace(inference(case), seed=SEEDS.get(case.id, case.seed))
    for case in CASES
    if not case.dropout and case.T <= FEW_STEPS
]
SIZES = [
    # Around vectors (2 to 8 elements), warps, and the four units of a block.
    Case(f"step-{H}-{I}", T=1, B=2, I=I, H=H, states=True, seed=seed)
    for H, I, seed in [  # noqa: E741
        (1, 2, 16), (2, 1, 0), (3, 4, 0), (4, 7, 0), (7, 8, 0), (8, 33, 0), (9, 16, 0), (24, 40, 0),
        (64, 72, 0), (70, 300, 0), (264, 12, 0)
    ]
] + [
    Case(f"step-b{B}", T=1, B=B, I=5, H=16, states=True) for B in (1, 2, 3, 4, 5, 7, 8, 9, 17)
] + [
    Case(f"step-p{P}", T=2, B=B, I=8, H=40, P=P, states=True, lengths=(2, 0, 1) * (B // 3))
    for P, B in [(1, 3), (3, 6), (8, 9), (32, 3), (33, 3), (39, 12)]
]  # fmt: skip
SAMPLE = [
    inference(case)
    for case in (
        Case("rich", T=2, B=3, I=3, H=9, lengths=(1, 2, 0), upstream=_CELLS, **_BI2),
        Case("rich-rows", T=1, B=9, I=8, H=8, time_major=True, upstream=_CELLS, **_BI2),
        Case("rich-projection", T=2, B=5, P=3, H=13, lengths=(1, 2, 0, 2, 1), **_BI2),
    )
]
each_sample = pytest.mark.parametrize("case", SAMPLE, ids=lambda case: case.id)


def run(cupy, case, dtype):
    """Run a case forward with the engine; the result on the host, and the log."""
    lstm, arrays = prepared(cupy, case, dtype)
    with engine("single"), no_grad(), record() as log:
        result = forward(lstm, case, arrays)
    cells = None if result.cells is None else result.cells.get()
    return Result(result.y.get(), result.h.get(), result.c.get(), cells), log


def own(log):
    """Return the names of the kernels of a log that are the engine's own."""
    return [e.name.split("<")[0] for e in log.launches if e.name.startswith("step_")]


def bits(result):
    return [
        None if a is None else a.tobytes() for a in (result.y, result.h, result.c, result.cells)
    ]


def assert_served(cupy, case, dtype):
    """Fail unless the engine runs the case, waits for nothing, and keeps the error rule."""
    result, log = run(cupy, case, dtype)
    step = ["step_gates", "step_projection"] if case.P else ["step_gates"]
    assert own(log) == (step * case.T * case.L if case.B else [])
    assert not log.gemms
    assert not log.synchronisations
    assert not log.host_copies
    assert_device_case(case, dtype, result)


@in_dtypes_by_turns(TABLE, DTYPES)
def test_table(cupy, case, dtype):
    assert_served(cupy, case, dtype)


@in_dtypes_by_turns(SIZES, DTYPES)
def test_sizes_rows_and_projections(cupy, case, dtype):
    assert_served(cupy, inference(case), dtype)


@each_dtype
@pytest.mark.parametrize("turn", [("reverse", 0), ("random", 1), ("random", 2)])
def test_in_every_order_of_threads_the_same_bits(cupy, dtype, turn):
    for case in SAMPLE:
        expected = bits(run(cupy, case, dtype)[0])
        with order(turn[0], seed=turn[1]):
            assert bits(run(cupy, case, dtype)[0]) == expected, case.id


@each_dtype
@pytest.mark.parametrize("proj_size", [0, 5])
def test_a_row_does_not_depend_on_the_others(cupy, dtype, proj_size):
    lstm = LSTM(8, 11, 2, "bidirect", proj_size=proj_size, xp="cupy", dtype=dtype, seed=0)
    x = cupy.asarray(np.random.default_rng(0).standard_normal((9, 2, 8)).astype(lstm.dtype))
    with engine("single"), no_grad():
        whole = lstm(x)[0].get()
        for B in (1, 2, 4, 5, 8):
            assert lstm(x[:B])[0].get().tobytes() == whole[:B].tobytes()


@each_dtype
def test_where_the_input_lies_changes_no_bit(cupy, dtype):
    """Rows that vectors cannot load as they lie are copied, others are not."""
    lstm = LSTM(16, 8, xp="cupy", time_major=True, dtype=dtype, seed=0)
    rng = np.random.default_rng(0)
    x = cupy.asarray(rng.standard_normal((1, 3, 16)).astype(lstm.dtype))
    beside, wide = cupy.zeros(3 * 16 + 1, lstm.dtype), cupy.zeros((1, 3, 24), lstm.dtype)
    apart = cupy.zeros((1, 6, 32), lstm.dtype)
    views = {
        "as it is": (x, 0),
        "an element further": (beside[1:].reshape(1, 3, 16), 1),
        "rows apart": (wide[..., 8:], 0),
        "elements apart": (apart[:, ::2, ::2], 1),
        "backwards": (apart[:, 1::2, ::-2], 1),
    }
    expected = None
    for name, (view, copies) in views.items():
        view[...] = x
        with engine("single"), no_grad(), record() as log:
            y = lstm(view)[0].get().tobytes()
        expected = expected or y
        assert y == expected, name
        # Of the states of zero there is none, nor of the outputs.
        with record() as plain, engine("single"), no_grad():
            lstm(x)
        assert len(log.launches) + len(log.copies) - 1 == (
            len(plain.launches) + len(plain.copies) + copies
        ), name


@each_dtype
@each_sample
def test_ranges_of_steps(cupy, case, dtype):
    """The protocol of engines: any range of the steps, from the states the last one left."""
    lstm, arrays = prepared(cupy, case, dtype)
    weights = LayerWeights(*(
        getattr(lstm, f"{kind}_l0").buffer.data if hasattr(lstm, f"{kind}_l0") else None
        for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_ho")
    ))  # fmt: skip
    x = arrays.x if case.time_major else arrays.x.swapaxes(0, 1)
    first = tuple(state[: case.D] for state in arrays.states)
    P, found = case.P or case.H, []
    for cuts in ([0, case.T], range(case.T + 1)):
        y = cupy.full((case.T, case.B, case.D, P), cupy.nan, x.dtype)
        cells = cupy.full((case.T, case.B, case.D, case.H), cupy.nan, first[1].dtype)
        states = first
        for start, stop in pairwise(cuts):
            states, tape = single.forward(
                x, weights, states, arrays.lengths, reverse=(False, True), y=y, cells=cells,
                keep=False, steps=range(start, stop), chunk=1,
            )  # fmt: skip
            assert tape is None
            assert not any(cupy.may_share_memory(a, b) for a in states for b in first)
        found.append([a.get() for a in (y, cells, *states)])
    for whole, parts in zip(*found, strict=True):
        assert whole.tobytes() == parts.tobytes()
        assert np.isfinite(whole.astype("float32")).all()


# --- what it asks of the device ------------------------------------------------------------------


@each_dtype
@pytest.mark.parametrize("proj_size", [0, 3])
@pytest.mark.parametrize("direction", ["forward", "bidirect"])
def test_a_layer_is_one_kernel_a_step_and_another_for_a_projection(
    cupy, dtype, direction, proj_size
):
    lstm = LSTM(4, 8, 3, direction, proj_size=proj_size, xp="cupy", dtype=dtype, seed=0)
    x = cupy.ones((2, 1, 4), dtype)
    with no_grad():
        lstm(x)
        with record() as log:
            lstm(x)
    kernels = ["step_gates", "step_projection"] if proj_size else ["step_gates"]
    assert own(log) == kernels * 3
    assert not log.gemms
    assert not [e for e in log.launches if e.cooperative]
    assert {type(e) for e in log if not isinstance(e, Allocation | Free)} <= {Launch, Copy, Fill}


def test_nothing_but_the_kernels_once_everything_is_there(cupy):
    weights = layer_weights(cupy)
    layer = single.LayerStep(weights, 2)
    x, h, c = cupy.ones((1, 2, 4), "float32"), cupy.ones((1, 2, 5), "float32"), cupy.ones((1, 2, 5))
    c = c.astype("float32")
    after = cupy.empty_like(h)
    layer.run(x, (h, c), (after, c))
    stream = cupy.cuda.Stream(non_blocking=True)
    with record(collect=True) as log, stream:
        layer.run(x, (h, c), (after, c))
    assert [type(entry) for entry in log] == [Launch]
    assert {entry.stream for entry in log} == {stream.ptr}


def layer_weights(cupy):
    rng = np.random.default_rng(0)
    shapes = (1, 20, 4), (1, 20, 5), (1, 20), (1, 20)
    return LayerWeights(*(cupy.asarray(rng.standard_normal(s).astype("float32")) for s in shapes))


# --- the plan ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_the_plan_takes_it_for_one_step_and_for_few_that_fit_no_block(dtype):
    def chosen(T=1, B=2, H=64, P=None, training=False):
        shape = Shape(T=T, B=B, I=16, H=H, P=P or H, D=1)
        return plan_sweep(shape, dtype, "cupy", training, device=CARDS["H100"])

    block = "stepwise" if dtype == "float64" else "persistent"
    few = "single" if dtype == "float64" else "persistent"
    assert (chosen().engine, chosen().reason) == ("single", "one step is one launch")
    assert chosen(training=True).engine == block
    assert chosen(T=2).engine == chosen(T=FEW_STEPS).engine == few
    assert chosen(T=FEW_STEPS + 1).engine == block
    assert chosen(T=0).engine == few
    for T, H, P in product((1, 2, FEW_STEPS), (64, 4096), (None, 3)):
        fits_no_block = H == 4096 or P or dtype == "float64"
        assert chosen(T, 1, H, P).engine == ("single" if T == 1 or fits_no_block else "persistent")
        assert chosen(T, 1, H, P, True).engine == ("stepwise" if fits_no_block else "persistent")
    assert chosen(B=STEP_PRODUCTS // (4 * 64 * 80)).engine == "single"
    assert chosen(B=STEP_PRODUCTS // (4 * 64 * 80) + 1).engine == block


def test_a_tape_is_refused_with_the_reason(cupy):
    lstm = LSTM(3, 4, xp="cupy")
    x = cupy.ones((2, 1, 3), "float32")
    message = f"the engine 'single' cannot serve this call: {NO_TAPE}"
    with engine("single"), pytest.raises(ValueError) as raised:
        lstm(x)
    assert str(raised.value) == message
    y, states = x[..., None, :], (cupy.ones((1, 2, 5), "float32"),) * 2
    with pytest.raises(ValueError) as raised:
        single.forward(
            x, layer_weights(cupy), states, None, reverse=(False,), y=y, keep=True, chunk=1
        )
    assert str(raised.value) == message
    with pytest.raises(ValueError, match="it runs on CuPy arrays only"):
        plan_sweep(Shape(1, 1, 1, 1, 1, 1), "float32", "numpy", False, "single")
