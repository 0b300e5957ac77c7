"""The plan: pure arithmetic, so thousands of shapes are planned and none is run."""

import random

import numpy as np
import pytest
from cases import HOST_ENGINES

from cupy_lstm import LSTM, engine, engines, explain_plan, no_grad, plan
from cupy_lstm.device import CARDS
from cupy_lstm.notation import Shape
from cupy_lstm.plan import (
    CHUNK_BYTES,
    ENGINES,
    NO_DEVICE,
    SERVES,
    SIMD_CHUNK_BYTES,
    SIMD_FAR_BYTES,
    WORKSPACE_LIMIT,
    plan_sweep,
)
from cupy_lstm.workspace import (
    fixed_bytes,
    simd_fixed_bytes,
    simd_output_bytes,
    simd_split_bytes,
    simd_step_bytes,
    step_bytes,
)

MIB = 2**20
ITEMSIZE = {"float16": 4, "bfloat16": 4, "float32": 4, "float64": 8}  # of sums


def any_shapes(count):
    """Draw shapes whose sizes spread evenly over orders of magnitude; T and B may be zero."""
    rng = random.Random(0)

    def size(largest, smallest=1):
        return round(smallest * (largest / smallest) ** rng.random())

    for _ in range(count):
        H = size(8192)
        projected = H > 1 and rng.random() < 0.3
        yield (
            Shape(
                T=0 if rng.random() < 0.05 else size(10**7),
                B=0 if rng.random() < 0.05 else size(4096),
                I=size(16384),
                H=H,
                P=rng.randrange(1, H) if projected else H,
                D=rng.choice([1, 2]),
            ),
            rng.choice([*ITEMSIZE]),
            rng.random() < 0.5,
        )


# What the engine persistent needs depends on a device: test_plan_blocks.py has its shapes.
SERVED = [(name, module) for name in HOST_ENGINES for module in SERVES[name]]
each_served = pytest.mark.parametrize(("name", "module"), SERVED)


def aim_of(name, module, fixed):
    if name == "simd":
        return SIMD_CHUNK_BYTES * (4 if fixed > SIMD_FAR_BYTES else 1)
    return CHUNK_BYTES[module]


def needs(name, shape, dtype, training):
    """Bytes of a step of a chunk, of what a call needs beside them, of what no chunk changes."""
    sizes = shape, ITEMSIZE[dtype], training
    if name == "simd":
        beside = simd_output_bytes(*sizes) + simd_split_bytes(*sizes)
        return simd_step_bytes(*sizes), simd_fixed_bytes(*sizes), beside
    return step_bytes(*sizes), fixed_bytes(*sizes), 0


@pytest.mark.parametrize("limit", [WORKSPACE_LIMIT, WORKSPACE_LIMIT // 32])
@each_served
def test_thousands_of_shapes(name, module, limit, monkeypatch):
    monkeypatch.setattr(plan, "WORKSPACE_LIMIT", limit)
    limited = aimed = whole = 0
    for shape, dtype, training in any_shapes(10000):
        found = plan_sweep(shape, dtype, module, training, name)
        steps = found.steps_per_chunk
        assert found.engine == name
        assert 1 <= steps <= max(shape.T, 1)  # so chunks of it cover every T
        # The workspace is that of the steps, and something fixed beside them.
        step, fixed, outputs = needs(name, shape, dtype, training)
        assert min(step, fixed, outputs) >= 0
        aim = aim_of(name, module, fixed)
        chunked = fixed + steps * step
        assert found.workspace_bytes == chunked + outputs
        if fixed + step <= limit:
            assert chunked <= limit
        if step <= aim:
            assert steps * step <= aim
        if steps == shape.T:
            whole += 1
        elif shape.T > 0 and step > 0:
            # One step more would go beyond what a chunk aims at, or beyond the limit.
            reached = (steps + 1) * step > aim
            assert reached or chunked + step > limit
            aimed += reached
            limited += not reached
    assert min(aimed, whole) > 100
    assert limited > 100 or limit > CHUNK_BYTES["cupy"], "each bound should be met"


def test_what_training_needs_is_taken_from_the_chunk(monkeypatch):
    """The scratch for a weight gradient leaves a chunk what the limit has left."""
    monkeypatch.setattr(plan, "WORKSPACE_LIMIT", 64 * MIB)
    shape = Shape(T=1000, B=64, I=3000, H=3000, P=3000, D=1)
    inference, training = (plan_sweep(shape, "float32", "cupy", keep) for keep in (False, True))
    assert inference.steps_per_chunk > training.steps_per_chunk > 1
    for found in (inference, training):
        assert 0 <= 64 * MIB - found.workspace_bytes < step_bytes(shape, 4, True)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("T", "B", "steps"), [(0, 3, 1), (5, 0, 5), (0, 0, 1)])
def test_nothing_to_do(T, B, steps, training):
    found = plan_sweep(Shape(T, B, 4, 6, 6, 1), "float32", training=training)
    assert found.steps_per_chunk == steps


@each_served
@pytest.mark.parametrize("training", [False, True])
def test_workspace_does_not_grow_with_the_sequence(name, module, training):
    shapes = [Shape(T, 8, 16, 32, 32, 2) for T in (10**5, 10**6, 10**9)]
    plans = [plan_sweep(s, "float32", module, training, name) for s in shapes]
    assert len({found.workspace_bytes for found in plans}) == 1


def test_workspace_of_a_projection_grows_less_than_the_tape():
    """The engine simd takes what it projects anew for all steps at once."""
    short, long = (Shape(T, 8, 16, 32, 31, 2) for T in (10**4, 10**5))
    workspaces = [plan_sweep(s, "float32", forced="simd").workspace_bytes for s in (short, long)]
    gates_and_c = 5 * 32 * 4
    assert workspaces[1] - workspaces[0] <= (long.T - short.T) * 8 * 2 * gates_and_c / 2


@each_served
def test_forced_engine(name, module):
    shape = Shape(5, 3, 4, 6, 6, 1)
    free = plan_sweep(shape, "float32", module)
    forced = plan_sweep(shape, "float32", module, forced=name)
    assert forced.engine == name
    assert forced.reason == "forced by cupy_lstm.engine(...)"
    assert free.reason != forced.reason


NO_NUMBA = "Numba is not installed: ..."


@pytest.mark.parametrize(
    ("module", "missing", "name", "reason"),
    [
        ("numpy", NO_NUMBA, "simd", NO_NUMBA),
        ("cupy", "", "persistent", NO_DEVICE),
        ("cupy", NO_NUMBA, "persistent", NO_DEVICE),
    ],
)
def test_where_the_best_engine_cannot_run_stepwise_serves(module, missing, name, reason):
    shape = Shape(5, 3, 4, 6, 6, 1)
    found = plan_sweep(shape, "float32", module, missing=missing)
    assert (found.engine, found.reason) == ("stepwise", f"not {name}, {reason}")
    with pytest.raises(ValueError) as raised:
        plan_sweep(shape, "float32", module, forced=name, missing=missing)
    assert str(raised.value) == f"the engine {name!r} cannot serve this call: {reason}"
    forced = plan_sweep(shape, "float32", module, forced="stepwise", missing=missing)
    assert forced.engine == "stepwise"


@pytest.mark.parametrize(
    ("name", "module", "reason"),
    [
        ("simd", "cupy", "it runs on NumPy arrays only"),
        ("persistent", "numpy", "it runs on CuPy arrays only"),
    ],
)
def test_an_engine_for_other_arrays_cannot_be_forced(name, module, reason):
    with pytest.raises(ValueError) as raised:
        plan_sweep(Shape(5, 3, 4, 6, 6, 1), "float32", module, forced=name, device=CARDS["H100"])
    assert str(raised.value) == f"the engine {name!r} cannot serve this call: {reason}"


def test_simd_is_chosen_where_it_can_run():
    found = plan_sweep(Shape(5, 3, 4, 6, 6, 1), "float32", "numpy", missing="")
    assert (found.engine, found.reason) == ("simd", "the fastest on a CPU")


@pytest.mark.parametrize("name", HOST_ENGINES)
def test_the_engine_that_was_planned_runs(name, monkeypatch):
    loaded, load = [], engines.load
    monkeypatch.setattr(engines, "load", lambda name: loaded.append(name) or load(name))
    lstm = LSTM(3, 4, 2)
    x = np.zeros((2, 5, 3), "float32")
    with engine(name):
        lstm(x)
    assert loaded == [name] * 2
    lstm(x)
    assert loaded[2:] == [plan_sweep(Shape(5, 2, 3, 4, 4, 1), "float32").engine] * 2


def test_explanation_is_the_plan_of_each_layer():
    text = explain_plan(
        10**6, 32, 7, 64, 2, "bidirect", proj_size=16, dtype="float64", module="cupy",
        training=False,
    )  # fmt: skip
    lines = text.split("\n")
    assert len(lines) == 2
    for layer, features in enumerate([7, 32]):
        found = plan_sweep(Shape(10**6, 32, features, 64, 16, 2), "float64", "cupy", False)
        assert lines[layer] == (
            f"layer {layer}: {found.engine} on cupy, {found.steps_per_chunk} of 1000000 steps a "
            f"chunk, workspace {found.workspace_bytes / MIB:.1f} MiB: {found.reason} "
            f"({ENGINES[found.engine]})"
        )


@pytest.mark.parametrize("forced", ["auto", *HOST_ENGINES])
@pytest.mark.parametrize("recording", [True, False])
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_layer_explains_what_a_call_here_would_do(forced, recording, mode, monkeypatch):
    """Whether a tape is kept decides, not the mode: evaluation can be gone back through."""
    monkeypatch.setattr(plan, "WORKSPACE_LIMIT", 2 * MIB)  # where training makes a difference
    lstm = getattr(LSTM(300, 500, 3, "bidirect", proj_size=10, dtype="float64"), mode)()
    with engine(forced):
        if recording:
            text = lstm.explain_plan(1000, 8)
        else:
            with no_grad():
                text = lstm.explain_plan(1000, 8)
    expected = {
        training: explain_plan(
            1000,
            8,
            300,
            500,
            3,
            "bidirectional",
            proj_size=10,
            dtype="float64",
            training=training,
            forced=forced,
        )
        for training in (True, False)
    }
    assert text == expected[recording] != expected[not recording]


def test_one_direction_is_explained_as_one():
    assert LSTM(3, 4).explain_plan(10**6, 2) == explain_plan(10**6, 2, 3, 4)
    assert LSTM(3, 4).explain_plan(10**6, 2) != explain_plan(10**6, 2, 3, 4, direction="bidirect")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"steps": -1}, ValueError, "steps must be at least 0, received -1"),
        ({"steps": 5.5}, TypeError, "steps must be an integer, received 5.5"),
        ({"batch": "2"}, TypeError, "batch must be an integer, received '2'"),
        ({"batch": -2}, ValueError, "batch must be at least 0, received -2"),
        ({"input_size": 0}, ValueError, "input_size must be at least 1, received 0"),
        ({"hidden_size": True}, TypeError, "hidden_size must be an integer, received True"),
        ({"num_layers": 0}, ValueError, "num_layers must be at least 1, received 0"),
        (
            {"proj_size": 4},
            ValueError,
            "proj_size must be smaller than hidden_size 4, received 4",
        ),
        (
            {"direction": "backward"},
            ValueError,
            "direction must be one of ('forward', 'bidirect', 'bidirectional'), "
            "received 'backward'",
        ),
        (
            {"module": "torch"},
            ValueError,
            "module must be one of ('numpy', 'cupy'), received 'torch'",
        ),
        (
            {"dtype": "float16"},
            ValueError,
            "dtype must be one of ('float32', 'float64'), received 'float16'",
        ),
        (
            {"device": "GTX 480"},
            ValueError,
            f"device must be one of {tuple(CARDS)}, received 'GTX 480'",
        ),
        (
            {"device": 0},
            TypeError,
            f"device must be a DeviceFacts or one of {tuple(CARDS)}, received 0",
        ),
        (
            {"device": "T4", "module": "numpy"},
            ValueError,
            "device is a GPU, but module is 'numpy': leave one of them out",
        ),
        (
            {"forced": "fastest"},
            ValueError,
            f"forced must be one of {('auto', *ENGINES)}, received 'fastest'",
        ),
    ],
)
def test_bad_explanations(change, error, message):
    arguments = {"steps": 5, "batch": 2, "input_size": 3, "hidden_size": 4}
    with pytest.raises(error) as raised:
        explain_plan(**(arguments | change))
    assert str(raised.value) == message
