"""The grid and cluster tiers of the engine persistent under the error rule, in every form."""

from dataclasses import replace
from unittest import mock

import numpy as np
import oracle
import pytest
from cases import CASES, Case, results, run_oracle
from full import FULL
from gpu_cases import arrays_of, assert_device_case, call, on_device, on_host, prepared
from gpu_on_cpu import order, profile, record
from gpu_on_cpu.driver.errors import Status, driver_error
from persistent_cases import DTYPES, assert_served, bits, kernels_of, run
from team_cases import (
    FORMS,
    SAMPLE,
    card_of,
    choose_teams,
    each_form,
    each_sample,
    facts_of,
    serves,
)
from test_gpu_persistent import Layer
from test_gradients import assert_empty_rows_keep_their_states, assert_padding_is_zero

from cupy_lstm import LSTM, device, engine, gemm, no_grad
from cupy_lstm.engines import persistent, stepwise
from cupy_lstm.persistent import launches, teams
from cupy_lstm.plan import plan_sweep

pytestmark = pytest.mark.gpu_on_cpu

NATURAL = {"lanes": "float32", "tensor": "float16", "cluster-lanes": "float32",
           "cluster-tensor": "bfloat16"}  # fmt: skip
"""The dtype that stands for each form where one is enough."""

each_pair = pytest.mark.parametrize(
    ("form", "dtype"), [(form, dtype) for form in FORMS for dtype in DTYPES if serves(form, dtype)]
)
each_natural = pytest.mark.parametrize(("form", "dtype"), list(NATURAL.items()))


def table():
    """Yield the table: all of it for tensor cores, a part for lanes, which take long here."""
    served = [case for case in CASES if not case.P]
    for form, dtype in NATURAL.items():
        few = form.endswith("lanes")
        for number, case in enumerate(served):
            marks = ()
            if few and number % 16 and not FULL:
                marks = pytest.mark.skip(reason="runs in .ci/full")
            yield pytest.param(form, case, dtype, id=f"{form}-{case.id}-{dtype}", marks=marks)


@pytest.mark.parametrize(("form", "case", "dtype"), list(table()))
def test_table(cupy, form, case, dtype, monkeypatch):
    choose_teams(monkeypatch, form)
    with card_of(form):
        result = assert_served(cupy, case, dtype)
    assert_padding_is_zero(case, result)
    assert_empty_rows_keep_their_states(case, arrays_of(case, dtype), result)


@each_pair
@each_sample
def test_sample(cupy, form, case, dtype, monkeypatch):
    if form.endswith("lanes") and dtype != "float32" and not FULL:
        pytest.skip("runs in .ci/full")
    chosen = choose_teams(monkeypatch, form)
    with card_of(form):
        result = assert_served(cupy, case, dtype)
    assert_padding_is_zero(case, result)
    assert {one.tier for one in chosen} == {"cluster" if "cluster" in form else "grid"}
    assert all(one.blocks > 1 for one in chosen)


@each_natural
@pytest.mark.parametrize("turn", [("reverse", 0), ("random", 1), ("random", 2)])
def test_in_every_order_of_threads_the_same_bits(cupy, form, dtype, turn, monkeypatch):
    choose_teams(monkeypatch, form)
    with card_of(form):
        expected = bits(run(cupy, SAMPLE[0], dtype)[0])
        with order(turn[0], seed=turn[1]):
            assert bits(run(cupy, SAMPLE[0], dtype)[0]) == expected


@each_natural
def test_two_runs_are_bit_equal(cupy, form, dtype, monkeypatch):
    choose_teams(monkeypatch, form)
    with card_of(form):
        assert bits(run(cupy, SAMPLE[1], dtype)[0]) == bits(run(cupy, SAMPLE[1], dtype)[0])


# --- sizes ---------------------------------------------------------------------------------------


def sizes():
    """Yield every number of units, and numbers of blocks, some of them without any."""
    for form, (kind, _) in FORMS.items():
        numbers = teams.CLUSTERS if form.startswith("cluster") else (2, 3, 5)
        for units in teams.UNITS:
            if units % kind.outputs == 0 and units * kind.rows <= teams.THREADS:
                yield form, units, numbers[0]
        for blocks in numbers[1:]:
            yield form, kind.outputs, blocks


@pytest.mark.parametrize(("form", "units", "blocks"), list(sizes()))
def test_units_and_blocks(cupy, form, units, blocks, monkeypatch):
    H = min(units * blocks, 40) - 3  # idle units, and idle blocks where units are many
    choose_teams(monkeypatch, form, units, blocks)
    case = Case(f"units-{H}", T=2, B=2, H=H, states=True, upstream=("y", "h", "c"))
    with card_of(form):
        assert_served(cupy, case, NATURAL[form])


@each_natural
@pytest.mark.parametrize("tiles", [1, 3])
def test_tiles_of_a_slice(cupy, form, dtype, tiles, monkeypatch):
    """As many teams as tiles, and one team with all of them."""
    rows = FORMS[form][0].rows
    case = Case("tiles", T=2, B=2 * rows + 1, H=9, states=True, upstream=("y", "h", "c"))
    chosen = choose_teams(monkeypatch, form, blocks=2, most=2 if tiles == 3 else 6)
    with card_of(form):
        assert_served(cupy, case, dtype)
    assert {(one.tiles, one.teams) for one in chosen} == {(tiles, 4 - tiles)}


@each_natural
def test_directions_one_after_the_other(cupy, form, dtype, monkeypatch):
    chosen = choose_teams(monkeypatch, form, blocks=2, most=2)
    case = replace(SAMPLE[0], id="two-launches", H=7, L=1)
    with card_of(form):
        result, log = run(cupy, case, dtype)
    assert {one.directions for one in chosen} == {1}
    assert kernels_of(log) == ["recurrence_forward"] * 2 + ["recurrence_backward"] * 2
    assert_device_case(case, dtype, result)


BEYOND = [("lanes", 128, 57), ("cluster-lanes", 128, 57), ("tensor", 64, 260)]
"""Units and hidden sizes whose weights do not all lie in registers."""


@pytest.mark.parametrize(("form", "units", "H"), BEYOND)
def test_weights_beyond_the_registers(cupy, form, units, H, monkeypatch):
    chosen = choose_teams(monkeypatch, form, units)
    with card_of(form):
        assert_served(cupy, Case(f"beyond-{H}", T=2, B=2, H=H, states=True), NATURAL[form])
    assert all(one.forward.shared_terms and one.backward.shared_terms for one in chosen)


@pytest.mark.parametrize(
    ("card", "dtype", "H", "tier"),
    [
        ("A100", "float32", 150, "grid"),
        ("H100", "float16", 200, "cluster"),
        ("T4", "float16", 130, "grid"),
        ("L4", "bfloat16", 300, "grid"),
        ("H100", "float32", 150, "cluster"),
    ],
)
def test_what_the_plan_chooses_runs(cupy, card, dtype, H, tier):
    if (card, dtype) not in (("A100", "float32"), ("H100", "float16")) and not FULL:
        pytest.skip("runs in .ci/full")
    case = Case(f"chosen-{H}", T=2, B=3, H=H, states=True, lengths=(2, 0, 1))
    with profile(card):
        lstm, arrays = prepared(cupy, case, dtype)
        text = lstm.explain_plan(case.T, case.B)
        assert text.startswith("layer 0: persistent on cupy"), text
        assert f"\n  {tier} tier, teams of " in text
        with record() as log:
            result = on_host(call(lstm, case, arrays))
        assert kernels_of(log) == ["recurrence_forward", "recurrence_backward"]
        assert_device_case(case, dtype, result)


# --- chunks and ranges ---------------------------------------------------------------------------


@each_natural
@pytest.mark.parametrize("steps", [1, 3])
def test_chunks(cupy, form, dtype, steps, monkeypatch):
    if form.endswith("lanes") and steps == 1 and not FULL:
        pytest.skip("runs in .ci/full")
    choose_teams(monkeypatch, form)
    monkeypatch.setattr(persistent, "LAUNCH_STEPS", steps)
    with card_of(form):
        result, _ = run(cupy, SAMPLE[0], dtype)
    assert_device_case(SAMPLE[0], dtype, result)
    assert_padding_is_zero(SAMPLE[0], result)


@pytest.mark.parametrize("form", ["lanes", "cluster-lanes"])
@pytest.mark.parametrize("batch_major", [False, True])
@pytest.mark.parametrize("steps", [range(2, 5), range(0, 4), range(4, 4)])
def test_a_range_of_steps_is_that_of_stepwise(cupy, form, batch_major, steps, monkeypatch):
    if (form == "lanes") == batch_major and len(steps) != 3 and not FULL:
        pytest.skip("runs in .ci/full")
    choose_teams(monkeypatch, form)
    with card_of(form):
        layer = Layer(cupy, 5, 5, 6, 9, 2, (3, 5, 0, 1, 4), batch_major, (False, True))
        for chunk in (2, 99) if FULL else (2,):
            both = []
            for runner in (persistent, stepwise):
                outputs, tape = layer.forward(runner, keep=True, chunk=chunk, steps=steps)
                both.append(outputs + layer.backward(runner, tape))
            for found, expected in zip(*both, strict=True):
                assert np.array_equal(np.isnan(found), np.isnan(expected))  # what no step touches
                error = np.nanmax(abs(found - expected), initial=0)
                assert error <= 32 * 2**-23 * np.nanmax(abs(expected), initial=1)


@each_natural
def test_without_a_tape_the_same_numbers(cupy, form, dtype, monkeypatch):
    choose_teams(monkeypatch, form)
    with card_of(form), engine("persistent"):
        lstm, given = prepared(cupy, SAMPLE[0], dtype)
        y, states = lstm(given.x, given.states, given.lengths)
        with no_grad():
            y_lean, lean = lstm(given.x, given.states, given.lengths)
        for one, other in zip((y, *states), (y_lean, *lean), strict=True):
            assert one.get().tobytes() == other.get().tobytes()


@each_natural
def test_padding_may_hold_anything(cupy, form, dtype, monkeypatch):
    choose_teams(monkeypatch, form)
    case = SAMPLE[0]
    arrays = arrays_of(case, dtype)
    padding = np.arange(case.T) >= np.array(case.lengths)[:, None]
    x, upstream = arrays.x.copy(), {n: a.copy() for n, a in arrays.upstream.items()}
    x[padding] = np.nan
    for name in ("y", "cells"):
        upstream[name][padding] = np.nan
    with card_of(form), engine("persistent"):
        expected = bits(run(cupy, case, dtype)[0])
        lstm, _ = prepared(cupy, case, dtype)
        given = on_device(cupy, replace(arrays, x=x, upstream=upstream))
        assert bits(on_host(call(lstm, case, given))) == expected


def test_a_nan_stays_in_its_row(cupy, monkeypatch):
    for form in ("lanes", "tensor"):
        choose_teams(monkeypatch, form)
        with card_of(form), engine("persistent"), no_grad():
            lstm = LSTM(3, 20, xp="cupy", dtype=NATURAL[form], seed=0)
            x = cupy.ones((4, 3, 3), lstm.dtype)
            x[2, 1] = np.nan
            y = lstm(x)[0].get().astype("float32")
        assert np.isfinite(y[[0, 1, 3]]).all()
        assert np.isfinite(y[2, 0]).all()
        assert np.isnan(y[2, 1:]).all()


# --- TF32 ----------------------------------------------------------------------------------------


def as_tf32(array):
    """Return floats rounded to the ten bits after the point of a TF32, ties away from zero."""
    bits_ = array.astype("float32").view("uint32")
    return ((bits_ + np.uint32(0x1000)) & np.uint32(0xFFFFE000)).view("float32")


def naive_tf32(case):
    """The naive loop whose products round their operands to TF32."""
    step_forward = oracle.step_forward

    def step(x, h_prev, c_prev, w):
        rounded = {n: as_tf32(a) if n.startswith("weight") else a for n, a in w.items()}
        return step_forward(as_tf32(x), as_tf32(h_prev), c_prev, rounded)

    with mock.patch.object(oracle, "step_forward", step):
        return run_oracle(case, arrays_of(case, "float32"), np.float32)


@pytest.fixture
def tf32(cupy, monkeypatch):
    """Have CuPy ask for TF32, and forget it afterwards: what reads its switch keeps it."""
    from cupy._core import _routines_linalg as linalg

    with monkeypatch.context() as switched:
        switched.setattr(linalg, "get_compute_type", lambda dtype: linalg.COMPUTE_TYPE_TF32)
        gemm._binding.cache_clear()
        yield
    gemm._binding.cache_clear()


@pytest.mark.parametrize("form", ["tensor", "cluster-tensor"])
@each_sample
def test_tf32_where_it_is_asked_for(cupy, tf32, form, case, monkeypatch):
    monkeypatch.setitem(FORMS, form, (teams.TENSOR_TF32, FORMS[form][1]))
    choose_teams(monkeypatch, form)
    with card_of(form):
        result, log = run(cupy, case, "float32")
    assert all(product.tf32 for product in log.gemms)
    own = [e.name for e in log.launches if e.name.startswith("recurrence_")]
    assert all("TensorProduct<float" in name for name in own)
    assert kernels_of(log) == ["recurrence_forward"] * case.L + ["recurrence_backward"] * case.L
    truth = results(run_oracle(case, arrays_of(case, "float32"), np.float64))
    yardstick = results(naive_tf32(case))
    for name, actual in results(result).items():
        allowed = 2 * abs(yardstick[name] - truth[name]).max() + 4 * 2**-10 * abs(truth[name]).max()
        assert abs(actual - truth[name]).max() <= allowed, name


def test_the_plan_asks_for_tf32_as_cupy_does(cupy, tf32):
    with profile("A100"):
        facts = device.current_device()
    assert facts.tf32
    assert teams.forms_for("float32", facts) == (teams.TENSOR_TF32, teams.LANES)
    old = replace(facts, compute_capability=(7, 5))
    assert teams.forms_for("float32", old) == (teams.LANES,)


def test_without_the_switch_float32_stays_exact(cupy):
    with profile("A100"):
        facts = device.current_device()
    assert not facts.tf32
    assert teams.forms_for("float32", facts) == (teams.LANES,)


# --- launches ------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["tensor", "cluster-tensor"])
def test_launches_back_to_back_on_streams_and_of_shapes_in_turn(cupy, form, monkeypatch):
    choose_teams(monkeypatch, form)
    with card_of(form), engine("persistent"), no_grad():
        layers = [LSTM(2, H, xp="cupy", dtype=NATURAL[form], seed=0) for H in (3, 17)]
        x = cupy.ones((3, 2, 2), layers[0].dtype)
        first = [lstm(x)[0].get().tobytes() for lstm in layers]
        streams = [cupy.cuda.Stream(non_blocking=True) for _ in range(2)]
        outputs = []
        for turn in range(1000 if FULL else 60):
            with streams[turn % 2]:
                outputs.append(layers[turn // 2 % 2](x)[0])
        for turn, y in enumerate(outputs):
            assert y.get().tobytes() == first[turn // 2 % 2]


@pytest.mark.parametrize("form", ["tensor", "cluster-tensor"])
@pytest.mark.skipif(not FULL, reason="runs in .ci/full")
def test_ten_thousand_steps(cupy, form, monkeypatch):
    choose_teams(monkeypatch, form)
    steps = 10_000
    with card_of(form), engine("persistent"), no_grad():
        lstm = LSTM(1, 17, xp="cupy", dtype=NATURAL[form], seed=0)
        x = cupy.asarray(np.random.default_rng(0).standard_normal((1, steps, 1)), lstm.dtype)
        y = lstm(x)[0]
        _, states = lstm(x[:, :-1])
        last = lstm(x[:, -1:], states)[0]
    assert y[:, -1].get().tobytes() == last[:, 0].get().tobytes()


@each_form
def test_one_launch_and_one_gemm_a_layer(cupy, form, monkeypatch):
    """Forward; backward has a launch, three GEMMs and a sum."""
    choose_teams(monkeypatch, form)
    for direction in ("forward", "bidirect"):
        with card_of(form), engine("persistent"):
            lstm = LSTM(6, 17, direction=direction, xp="cupy", dtype=NATURAL[form], seed=0)
            x = cupy.ones((3, 4, 6), lstm.dtype)
            lstm(x)
            with record() as log:
                y, _ = lstm(x)
            assert kernels_of(log) == ["recurrence_forward"]
            assert len(log.gemms) == 1
            with record() as log:
                lstm.backward(y)
            assert kernels_of(log) == ["recurrence_backward"]
            assert len(log.gemms) == 3
        assert not log.synchronisations


@each_natural
def test_a_graph_replays_with_what_is_in_the_input_then(cupy, form, dtype, monkeypatch):
    """Flags are cleared in the graph, too: a second replay finds none of the first."""
    choose_teams(monkeypatch, form)
    T, B, H = 3, 3, 17
    rng = np.random.default_rng(0)
    with card_of(form):
        z = cupy.asarray(rng.standard_normal((T, B, 1, 4 * H)).astype("float32"))
        weight = cupy.asarray((rng.standard_normal((1, 4 * H, H)) * H**-0.5).astype(dtype))
        h, c = cupy.zeros((1, B, H), dtype), cupy.zeros((1, B, H), "float32")
        y, stream = cupy.empty((T, B, 1, H), dtype), cupy.cuda.Stream(non_blocking=True)
        after = cupy.empty_like(h), cupy.empty_like(c)
        shape = launches.Shape(T, B, 1, H, H, 1)
        values = {
            **{"weight_hh": weight, "bias_ih": None, "bias_hh": None, "lengths": None},
            **persistent._strided("z", z),
            **persistent._strided("y", y, persistent.OVER_TIME),
            **persistent._strided("c_steps", None),
            **persistent._strides("c", None, persistent.OVER_TIME),
            **{"h_before": h, "c_before": c, "h_after": after[0], "c_after": after[1]},
            **{"z_time": B, "z_row": 1, "z_start": 0, "z_stop": T, "start": 0, "stop": T},
            **{"reverse": 0, "keep": 0, "T": T, "B": B, "I": 1, "H": H, "D": 1},
        }
        run_ = launches.Pass("forward", shape, h, False)
        pool, seen = cupy.cuda.MemoryPool(), set()
        with cupy.cuda.using_allocator(pool.malloc), stream:
            run_.launch(values)
            stream.begin_capture()
            run_.launch(values)
            graph = stream.end_capture()
            for _ in range(3):
                z.set(rng.standard_normal(z.shape).astype("float32"))
                graph.launch(stream)
                found = y.get().tobytes()
                run_.launch(values)
                assert y.get().tobytes() == found
                seen.add(found)
    assert len(seen) == 3


def test_a_device_that_refuses_clusters_exchanges_through_memory(cupy, monkeypatch):
    """An error of the first launch is remembered; the call itself goes on with the other tier."""
    launch_teams, tried = launches.Pass._launch_teams, []

    def refusing(self, found, values):
        tried.append(found.tier)
        if found.tier == "cluster":
            raise driver_error(Status.INVALID_CLUSTER_SIZE, "clusters of 8")
        launch_teams(self, found, values)

    monkeypatch.setattr(launches.Pass, "_launch_teams", refusing)
    monkeypatch.setattr(launches, "_proven", set())
    case = Case("refused", T=2, B=2, H=150)
    with profile("H100"):
        number = cupy.cuda.device.get_device_id()
        try:
            result, log = run(cupy, case, "float32")
            assert tried == ["cluster", "grid", "grid"]
            assert kernels_of(log) == ["recurrence_forward", "recurrence_backward"]
            assert_device_case(case, "float32", result)
            why = {number: "CUDA_ERROR_INVALID_CLUSTER_SIZE: clusters of 8"}
            assert device.refused_clusters() == why
            facts = device.current_device()
            assert not facts.cluster_launch
            assert "grid tier" in LSTM(4, 150, xp="cupy").explain_plan(2, 2)
        finally:
            device._without_clusters.clear()
            device._read_facts.cache_clear()


def test_an_error_of_a_later_launch_is_the_caller_s(cupy, monkeypatch):
    failure = driver_error(Status.LAUNCH_OUT_OF_RESOURCES, "of another kind")
    fail = mock.Mock(side_effect=failure)
    with profile("H100"), engine("persistent"):
        lstm, x = LSTM(4, 150, xp="cupy"), cupy.ones((2, 2, 4), "float32")
        lstm(x)  # the first of its kind
        monkeypatch.setattr(launches.Pass, "_launch_teams", fail)
        with pytest.raises(type(failure)):
            lstm(x)
        assert fail.call_count == 1
        assert not device.refused_clusters()


def test_clusters_are_not_blamed_where_nothing_can_be_launched(cupy, monkeypatch):
    failure = driver_error(Status.LAUNCH_OUT_OF_RESOURCES, "of another kind")
    fail = mock.Mock(side_effect=failure)
    monkeypatch.setattr(launches, "_proven", set())
    monkeypatch.setattr(launches.Pass, "_launch_teams", fail)
    with profile("H100"), engine("persistent"):
        with pytest.raises(type(failure)):
            LSTM(4, 150, xp="cupy")(cupy.ones((2, 2, 4), "float32"))
        assert fail.call_count == 2
        assert not device.refused_clusters()


def test_blocks_that_are_not_resident_are_never_launched(cupy, monkeypatch):
    """CuPy would launch fewer of them, and those would wait forever."""
    choose_teams(monkeypatch, "lanes", blocks=8, most=8 * 120)
    with card_of("lanes"), engine("persistent"), no_grad(), record() as log:
        lstm = LSTM(2, 9, xp="cupy")
        with pytest.raises(RuntimeError, match=r"needs 960 blocks at the same time, but device"):
            lstm(cupy.ones((4 * 120, 1, 2), "float32"))
    assert not kernels_of(log)


@pytest.mark.parametrize("form", ["lanes", "cluster-lanes"])
def test_facts_of_the_cards_and_of_the_bed_agree(cupy, form):
    with card_of(form):
        facts = device.current_device()
        assert facts.cluster_launch == facts_of(form).cluster_launch
        assert facts.cooperative_launch
        shape = launches.Shape(3, 5, 4, 200, 200, 1)
        assert (
            plan_sweep(shape, "float32", "cupy", device=facts).tier
            == plan_sweep(shape, "float32", "cupy", device=facts_of(form)).tier
        )
