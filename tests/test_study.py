"""`profiling/study.py`: its grid, its figures and its pictures; times themselves are not judged."""

# ruff: noqa: E402 - the modules of the scripts are on no path

import csv
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "profiling"))

import range_cost
import study
from studies.grid import BASE, SWEEPS, Point, engines_of, points
from studies.measure import (
    DOMAIN,
    OTHER,
    RECORDED_CALLS,
    call_of,
    clock_of,
    memory_bytes,
    stages_of,
)
from studies.pictures import Pictures
from studies.results import Result, exponent, result_of, write_results
from traces import machine as machines
from traces.machine import Machine
from traces.spans import Kernel, Recording, Span

from cupy_lstm.device import CARDS
from cupy_lstm.plan import simd_missing, why_not

POINT = Point(64, 16, 32, 1, "float32", "numpy", "stepwise", "inference")
MACHINE = Machine("a machine", {"float32": 1e11, "float64": 5e10}, 1e10, "made up")


@pytest.fixture(autouse=True)
def quick_rates(monkeypatch):
    monkeypatch.setattr(machines, "SIZES", (64,))
    monkeypatch.setattr(machines, "COPIED_BYTES", 2**16)
    monkeypatch.setattr(machines, "BUDGET", 0.0)


def test_the_grid_has_each_point_once_and_all_of_each_sweep():
    engines = engines_of("numpy")
    assert set(engines) == {"stepwise", *([] if simd_missing() else ["simd"])}
    found, left_out = points(BASE, SWEEPS, "numpy", engines, None)
    assert left_out == []
    assert len(set(found)) == len(found)
    for name, values in SWEEPS.items():
        for engine in engines:
            chosen = [p for p in found if p.engine == engine and p.varies(name, BASE)]
            assert {getattr(p, name) for p in chosen if p.training} == set(values)
            assert BASE[name] in values, "the base is part of every sweep"


def test_an_engine_that_cannot_serve_is_left_out_with_the_reason():
    found, left_out = points(
        BASE, {"H": (64, 4096)}, "cupy", ["persistent", "stepwise"], CARDS["A100"]
    )
    assert {(p.engine, p.H) for p in found} == {
        ("persistent", 64), ("stepwise", 64), ("stepwise", 4096),
    }  # fmt: skip
    assert len(left_out) == 2
    assert left_out[0].startswith("H = 4096, float32, inference: the engine 'persistent' cannot")


def test_a_gpu_has_the_model_s_prediction_and_floor():
    point = replace(POINT, module="cupy", engine="persistent", passes="training", L=2)
    card = CARDS["A100"]
    result = result_of(point, 1.0, 0, {}, machines.gpu_machine(card), card)
    costs = [plan.cost(backward) for plan in point.plans(card) for backward in (False, True)]
    assert result.floor == pytest.approx(64 * sum(cost.floor_us for cost in costs) / 1e3)
    assert result.predicted == pytest.approx(64 * sum(cost.predicted_us for cost in costs) / 1e3)
    assert result.flops == 64 * sum(cost.flops for cost in costs)
    assert result.ran == "persistent"


def test_the_floor_is_the_larger_of_arithmetic_and_memory():
    result = result_of(POINT, 2.0, 0, {}, MACHINE, None)
    assert result.predicted is None
    assert result.flops == 64 * 2 * 16 * 4 * 32 * (32 + 32)
    assert result.moved == 64 * 16 * (32 + 32) * 4
    assert result.floor == pytest.approx(1e3 * max(result.flops / 1e11, result.moved / 1e10))
    slow = Machine("slow memory", {"float32": 1e15}, 1e9, "made up")
    bound = result_of(POINT, 2.0, 0, {}, slow, None)
    assert bound.floor == pytest.approx(1e3 * result.moved / 1e9)
    assert result.us_a_step == pytest.approx(2000 / 64)
    assert result.gflops == pytest.approx(result.flops / 2e-3 / 1e9)


def timed(name, size, ms):
    return Result(replace(POINT, **{name: size}), "stepwise", ms, None, None, 1, 1, 0, {})


def test_exponents_are_those_of_power_laws():
    for power in (0.0, 0.5, 1.0, 2.0):
        results = [timed("T", size, 3 * size**power) for size in (8, 32, 64, 500)]
        assert exponent(results, "T") == pytest.approx(power)


def span(name, start, end, domain="cupy_lstm"):
    return Span(name, domain, "", 0, None, 1, 1, start, end)


def call_spans(start, lengths, name="recurrence"):
    """Return the ranges of calls one after another, each 1000 apart."""
    spans = []
    for number, length in enumerate(lengths):
        begin = start + 1000 * number
        spans.append(span("forward", begin, begin + 100 + length))
        spans.append(span(name, begin + 50, begin + 50 + length))
    return spans


def test_stages_are_counted_alone_by_the_point_they_lie_in():
    assert RECORDED_CALLS == 3
    spans = [
        span("0", 0, 2900, DOMAIN), *call_spans(0, (300, 250, 280)),
        span("step", 60, 100), span("step", 100, 140),
        span("before any point", 2950, 2990),
        span("1", 3000, 6000, DOMAIN), *call_spans(3000, (20, 30, 40), "dropout"),
    ]  # fmt: skip
    spans.append(span("backward", 200 + 300, 900))  # one more pass of the first call
    spans += [span("backward", start, start + 7) for start in (1900, 2900 - 50)]
    recording = Recording(spans)
    found = stages_of(recording, 2)
    assert found == [{OTHER: 107, "recurrence": 250}, {OTHER: 100, "dropout": 20}]
    assert clock_of(recording) == "host"


def test_with_a_gpu_its_own_time_counts():
    spans = [span("0", 0, 3000, DOMAIN), *call_spans(0, (300, 300, 300))]
    work = [
        Kernel("k", "kernel", 0, 7, 1, 1, launched, 5000 + launched, 5600 + launched - skipped)
        for launched, skipped in ((100, 0), (1100, 10), (2100, 20))
    ]
    recording = Recording(spans, work)
    assert stages_of(recording, 1) == [{OTHER: 0, "recurrence": 580}]
    assert clock_of(recording) == "GPU"


@pytest.mark.parametrize(
    ("module", "clock", "label"),
    [
        ("numpy", "host", "share of the time of a call"),
        ("cupy", "GPU", "share of the GPU's time of a call"),
        (
            "cupy",
            "host",
            "share of the host's time of a call (launches; the GPU was not recorded)",
        ),
    ],
)
def test_the_shares_say_whose_time_they_are_of(tmp_path, module, clock, label):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    point = replace(POINT, module=module, engine="stepwise")
    result = Result(point, "stepwise", 1.0, None, None, 1, 1, 0, {"recurrence": 5}, clock)
    base = BASE | {"T": point.T, "B": point.B}
    (axes,) = Pictures([result], base, None, "heading").stages().axes
    assert axes.get_xlabel() == label
    write_results([result], None, tmp_path / "x.csv")
    with (tmp_path / "x.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["stage_clock"] == clock


def test_memory_is_what_a_call_holds_at_once():
    point = replace(POINT, T=200, B=8, H=64, passes="training")
    call = call_of(point)
    found = memory_bytes(point, call)
    tape = 200 * 8 * 64 * 4 * (4 + 1)  # gates and cell states
    outputs = 200 * 8 * 64 * 4 * 2  # y and dx
    assert tape + outputs < found < 3 * (tape + outputs)


@pytest.mark.gpu_on_cpu
def test_memory_on_a_gpu(cupy):
    point = Point(20, 4, 8, 1, "float32", "cupy", "persistent", "training")
    call = call_of(point)
    assert memory_bytes(point, call) > 20 * 4 * 8 * 4 * 7


SMALL = ["--module", "numpy", "--steps", "4", "8", "--batch", "2", "4", "--hidden", "4", "8"]
SMALL += ["--layers", "1", "--seconds", "0"]
SMALL_BASE = {"T": 8, "B": 2, "H": 8, "L": 1}


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(study, "BASE", BASE | SMALL_BASE)


def test_a_small_study_from_end_to_end(small, tmp_path, capsys, monkeypatch):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    from matplotlib.figure import Figure

    texts = []
    real = Figure.savefig

    def saved(figure, path, **options):
        legends = [*figure.legends, *(axes.get_legend() for axes in figure.axes)]
        texts.append([t.get_text() for one in legends if one for t in one.get_texts()])
        real(figure, path, **options)

    monkeypatch.setattr(Figure, "savefig", saved)
    assert study.main([*SMALL, "--out", str(tmp_path)]) == 0
    with (tmp_path / "study.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    engines = engines_of("numpy")
    assert {(row["engine"], row["passes"]) for row in rows} == {
        (engine, passes) for engine in engines for passes in ("inference", "training")
    }
    # The base, one more of each size that is swept, and the other dtype.
    assert len(rows) == 2 * len(engines) * (1 + 3 + 1)
    for row in rows:
        assert float(row["ms"]) > 0
        assert float(row["floor_ms"]) > 0
        assert row["predicted_ms"] == ""
        assert int(row["memory_bytes"]) > 0
        shares = [float(value) for name, value in row.items() if name.startswith("share of ")]
        assert sum(shares) == pytest.approx(1)
        assert float(row["share of recurrence"]) > 0
    for name in ("roofline", "time_over_H", "scaling", "stages"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    roofline, time_over_size, scaling, stages = texts
    assert {*engines, "training", "inference", "float32", "float64"} <= set(roofline)
    assert set(time_over_size) == {*engines, "floor of the machine"}
    assert sum(text.startswith("stepwise, training: ~ T^") for text in scaling) == 1
    assert sum("~ L^" in text for text in scaling) == 0, "L was not swept"
    assert {"recurrence", "weight gradients", OTHER} <= set(stages)
    assert "stages recorded by" in capsys.readouterr().out


def test_wrong_options_are_sentences(small, tmp_path):
    with pytest.raises(SystemExit, match="no engine can serve any point"):
        study.main([*SMALL, "--engines", "persistent", "--out", str(tmp_path)])
    if why_not("persistent", "numpy"):  # and no GPU here
        with pytest.raises(SystemExit, match="--module cupy needs CuPy and a GPU"):
            study.found_device("cupy")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--engines", "stepwize"], "--engines: invalid choice: 'stepwize'"),
        (["--steps", "8", "0"], "--steps must be at least 1, received 0"),
        (["--batch", "0"], "--batch must be at least 1, received 0"),
        (["--hidden", "-3"], "--hidden must be at least 1, received -3"),
        (["--layers", "0"], "--layers must be at least 1, received 0"),
        (["--seconds", "nan"], "--seconds must be a finite number from 0 on, received nan"),
        (["--seconds", "-1"], "--seconds must be a finite number from 0 on, received -1.0"),
    ],
)
def test_options_that_cannot_be_run(capsys, arguments, message):
    with pytest.raises(SystemExit):
        study.parsed_options(arguments)
    assert message in capsys.readouterr().err


def test_a_dtype_that_the_module_has_not(tmp_path):
    arguments = [*SMALL, "--dtype", "float32", "float16", "--out", str(tmp_path)]
    with pytest.raises(SystemExit, match=r"--dtype: .*'float32', 'float64'.*received 'float16'"):
        study.main(arguments)


def test_nvtx_is_asked_for_before_anything_runs(monkeypatch, tmp_path):
    monkeypatch.setattr(study, "chosen_tool", lambda wanted: "nsys")
    monkeypatch.setattr(study, "find_spec", lambda name: None)
    with pytest.raises(
        SystemExit, match=r"by nsys need nvtx: pip install .*\[nvtx\]'.* --tool python"
    ):
        study.main([*SMALL, "--out", str(tmp_path)])


def test_the_ranges_can_be_taken_out_of_the_source():
    code = (
        "import sys; sys.path.insert(0, 'profiling'); import range_cost; "
        "bare = range_cost.imported(False); from cupy_lstm.engines import stepwise; "
        "names = set(stepwise.forward.__code__.co_names) | set(stepwise._Backward.recur.__code__"
        ".co_names); assert not names & {'stage', 'each_step'}, names; "
        "full = range_cost.imported(True); from cupy_lstm.engines import stepwise; "
        "assert 'stage' in stepwise.forward.__code__.co_names; assert bare is not full; "
        "import numpy; x = numpy.ones((1, 2, 3), 'float32'); "
        "a, b = (p.LSTM(3, 4, seed=0)(x)[0] for p in (bare, full)); assert (a == b).all()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_cost_is_a_ratio_of_both(monkeypatch):
    class Package:
        def __init__(self, name):
            self.name = name

    monkeypatch.setattr(range_cost, "imported", lambda ranged: Package("with" if ranged else "no"))
    monkeypatch.setattr(range_cost, "call_of", lambda package, engine, training: package.name)
    monkeypatch.setattr(range_cost, "block", lambda calls: [100.0, 101.0])
    found = range_cost.measured(5)
    assert set(found) == set(range_cost.CASES)
    for values in found.values():
        assert values["us"] == 100.0
        assert values["cost"] == pytest.approx(0.01)
    assert np.isclose(found["stepwise, training"]["low"], 0.01)
