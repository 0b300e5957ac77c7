"""The script that compares with other libraries: its arithmetic, its processes, its cases."""

# ruff: noqa: E402 - the modules of the scripts are on no path

import contextvars
import csv
import json
import sys
import warnings
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "profiling"))

from compare.case import Case
from compare.figures import Goal, mean_ratio, summarize
from compare.libraries import LIBRARIES, Bridge
from compare.processes import TOLERANCE, Measurement, Process, prepare, take_turns
from compare.report import aligned, draw, gemm_line, goal_lines, read_csv, table, write_csv
from compare.worker import difference
from compare_cpu import GOALS, JOBS, main

CASE = Case(10, 2, 3, 4)
WIDE = Case(10, 32, 256, 256)
TINY = (
    Case(5, 3, 4, 6),
    Case(5, 3, 4, 6, time_major=False),
    Case(5, 3, 4, 6, L=2, D=2),
    Case(5, 3, 4, 6, L=2, D=2, time_major=False),
    Case(5, 3, 4, 6, L=2, D=2, lengths=True),
    Case(5, 3, 4, 6, L=2, lengths=True, time_major=False),
    Case(5, 3, 4, 6, dtype="float64"),
)


def measured(case, mode, times, gflops=100.0, memory=None):
    """Return measurements from {library: times of the rounds}."""
    memory = memory or {}
    return [
        Measurement(case, mode, library, "LSTM", number, ms, gflops, memory.get(library), 0.0)
        for library, column in times.items()
        for number, ms in enumerate(column)
    ]


def test_flops_count_two_products_of_every_valid_row():
    assert CASE.flops("inference") == 10 * 2 * 2 * (4 * 4) * (3 + 4)
    assert CASE.flops("training") == 3 * CASE.flops("inference")
    layers = replace(CASE, L=2, D=2)
    assert layers.flops("inference") == 2 * 10 * 2 * 8 * 4 * ((3 + 4) + (8 + 4))
    lengths = replace(CASE, lengths=True)
    valid = lengths.draw_lengths()
    assert 1 <= valid.min() <= valid.max() <= 10
    assert lengths.flops("inference") == valid.sum() * 8 * 4 * 7


def test_ratio_is_of_the_peer_with_the_least_median_round_by_round():
    times = {"ours": [1.0, 2.0, 4.0], "torch": [3.0, 3.0, 3.0], "paddle": [1.0, 9.0, 9.0]}
    (figures,) = summarize(measured(CASE, "inference", times))
    assert figures.best_peer == "torch"
    assert figures.ratios == (3.0, 1.5, 0.75)
    assert figures.ratio == 1.5
    assert figures.quartiles == (1.125, 2.25)
    assert figures.ms == {"ours": 2.0, "torch": 3.0, "paddle": 9.0}
    assert figures.share == pytest.approx(CASE.flops("inference") / 2e-3 / 100e9)


def test_a_stream_is_counted_by_the_step():
    (figures,) = summarize(measured(CASE, "stream", {"ours": [2.0]}))
    assert figures.share == pytest.approx(CASE.flops("stream") / 10 / 2e-3 / 100e9)


def test_share_is_taken_round_by_round():
    rounds = [
        Measurement(CASE, "inference", "ours", "LSTM", number, ms, gflops, None, 0.0)
        for number, (ms, gflops) in enumerate([(1.0, 10.0), (2.0, 5.0), (10.0, 10.0)])
    ]
    (figures,) = summarize(rounds)
    assert figures.share == pytest.approx(CASE.flops("inference") / 1e-3 / 10e9)
    line = gemm_line([*rounds, replace(rounds[0], library="torch", gemm_gflops=99.0)])
    assert line.endswith("float32 10 GFLOP/s (quartiles 8-10)")


def test_without_peers_there_is_no_ratio():
    (figures,) = summarize(measured(CASE, "training", {"ours": [2.0]}))
    assert (figures.best_peer, figures.ratio, figures.quartiles) == (None, None, None)
    assert mean_ratio([figures], "training", "float32") is None
    assert figures.torch_memory_ratio is None


@pytest.fixture
def figures():
    """Two float32 cases with the ratios 2 and 0.5, and one in float64 with 0.25."""
    return summarize(
        measured(CASE, "inference", {"ours": [1.0], "torch": [2.0]}, 0.01, {"ours": 1, "torch": 3})
        + measured(WIDE, "inference", {"ours": [2.0], "torch": [1.0]})
        + measured(replace(CASE, dtype="float64"), "inference", {"ours": [4.0], "torch": [1.0]})
    )


def test_geometric_mean_over_the_cases_of_a_mode_and_dtype(figures):
    assert mean_ratio(figures, "inference", "float32") == pytest.approx(1.0)
    assert mean_ratio(figures, "inference", "float64") == pytest.approx(0.25)
    assert mean_ratio(figures, "training", "float32") is None


def test_a_goal_takes_the_least_of_its_float32_cases(figures):
    every = Goal("every", "inference", "ratio", 0.75)
    assert every.reached(figures) == 0.5
    assert every.below(figures) == [WIDE.name]
    narrow = replace(every, shapes=lambda case: case != WIDE)
    assert (narrow.reached(figures), narrow.below(figures)) == (2.0, [])
    assert replace(every, mode="training").reached(figures) is None
    assert replace(every, figure="torch_memory_ratio").reached(figures) == 3.0
    lines = goal_lines(figures, [every, narrow, replace(every, mode="training")]).splitlines()
    assert [line.split()[-1] for line in lines[1:4]] == ["missed", "met", "measured"]
    assert lines[4:] == [f"inference: every, below 0.75: {WIDE.name}"]


def test_every_goal_can_be_met_by_some_case():
    """Each names a figure that exists, and a shape that is measured."""
    for goal in GOALS:
        times = {"ours": [1.0], "torch": [4.0]}
        memory = {"ours": 1, "torch": 2}
        rows = [
            row for case in JOBS[goal.mode] for row in measured(case, goal.mode, times, 1, memory)
        ]
        assert goal.reached(summarize(rows)) is not None, goal


def test_columns_are_aligned():
    assert aligned([["a", "bb", "c"], ["long", "1", ""]]) == "a     bb  c\nlong   1"


def test_table_has_a_line_a_case_and_says_what_is_missing(figures):
    lines = table(figures, "inference", ["ours", "torch", "paddle"]).splitlines()
    assert [line.split("  ")[0] for line in lines[1:]] == [
        CASE.name,
        WIDE.name,
        f"{CASE.name}, float64",
        "geometric mean, float32",
        "geometric mean, float64",
    ]
    assert " ".join(lines[1].split()[4:]) == "1 2 n/a 2.00 2.00-2.00 45% 1.0 3.0 n/a"
    assert lines[4].split()[-1] == "1.00"


def test_csv_has_a_line_a_turn(tmp_path):
    measurements = measured(CASE, "inference", {"ours": [1.5, 2.5], "torch": [3.5, 4.5]})
    versions = {"ours": "o 1", "torch": "t 2"}
    write_csv(measurements, versions, "a day, a machine", tmp_path / "a.csv")
    with (tmp_path / "a.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["ms"]) for row in rows] == [1.5, 2.5, 3.5, 4.5]
    assert [row["version"] for row in rows] == ["o 1", "o 1", "t 2", "t 2"]
    assert {(row["case"], row["H"], row["dtype"]) for row in rows} == {(CASE.name, "4", "float32")}
    assert read_csv(tmp_path / "a.csv") == (measurements, versions, "a day, a machine")


def test_csv_gives_back_every_case(tmp_path):
    cases = {case for cases in JOBS.values() for case in cases}
    measurements = [
        replace(entry, memory_mb=2.5)
        for case in cases
        for entry in measured(case, "training", {"ours": [1 / 3]})
    ]
    write_csv(measurements, {"ours": "o 1"}, "", tmp_path / "a.csv")
    assert read_csv(tmp_path / "a.csv")[0] == measurements


def test_another_csv_is_refused(tmp_path):
    (tmp_path / "a.csv").write_text("case,ms\nT1,2.0\n")
    with pytest.raises(SystemExit, match="no column 'run'"):
        read_csv(tmp_path / "a.csv")


def test_what_is_committed_can_be_redrawn(tmp_path, monkeypatch, capsys):
    committed = ROOT / "profiling/pictures/compare_cpu.csv"
    arguments = ["--redraw", str(committed), "--modes", "inference", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["compare_cpu.py", *arguments])
    main()
    printed = capsys.readouterr().out
    assert all(f"\n{case.name}  " in printed for case in JOBS["inference"])
    assert "training, ms" not in printed
    assert [path.name for path in tmp_path.iterdir()] == ["compare_cpu.png"]


def test_picture_has_a_column_a_mode_and_a_row_a_case(tmp_path, figures):
    from matplotlib.image import imread

    draw(figures, "one", tmp_path / "one.png")
    stream = summarize(measured(CASE, "stream", {"ours": [1.0], "torch": [2.0]}))
    draw(figures + stream, "two", tmp_path / "two.png")
    draw(figures[:1], "low", tmp_path / "low.png")
    height, width, _ = imread(tmp_path / "one.png").shape
    assert imread(tmp_path / "two.png").shape[1] > width
    assert imread(tmp_path / "low.png").shape[0] < height


class Answers:
    """A process with answers that are given."""

    def __init__(self, name, said, **answers):
        self.name, self.said, self.answers = name, said, answers

    def ask(self, do, **arguments):
        self.said.append((self.name, do))
        return self.answers[do]


def processes(said, **prepared):
    return {
        name: Answers(name, said, prepare=answer, turn={"ms": 20.0}, gemm={"gflops": 5.0})
        for name, answer in prepared.items()
    }


READY = {"variant": "LSTM", "error": 0.0, "memory_mb": 1.0}


def test_each_round_another_one_is_first():
    said = []
    rows = take_turns(
        processes(said, ours=READY, torch=READY, paddle=READY),
        {"ours": READY, "torch": READY},
        CASE,
        "stream",
        2,
        0.0,
        lambda: said.append("done"),
    )
    turns = [("ours", "turn"), ("torch", "turn")]
    gemm = ("ours", "gemm")
    assert said == [gemm, *turns, "done", gemm, *turns[::-1], "done"]
    assert [(row.library, row.round, row.ms) for row in rows] == [
        ("ours", 0, 2.0),
        ("torch", 0, 2.0),
        ("torch", 1, 2.0),
        ("ours", 1, 2.0),
    ]


def test_a_peer_that_cannot_is_left_out_and_ours_must():
    failed = {"failed": "no double"}
    ready, reasons = prepare(
        processes([], ours=READY, onnxruntime=failed, torch=READY), CASE, "inference", Path("x")
    )
    assert [*ready] == ["ours", "torch"]
    assert reasons == ["onnxruntime is left out of inference in float32: no double"]
    with pytest.raises(SystemExit, match="no double"):
        prepare(processes([], ours=failed), CASE, "inference", Path("x"))


@pytest.mark.parametrize("error", [2e-4, float("nan")])
def test_other_outputs_stop_the_comparison(error):
    wrong = READY | {"error": error}
    with pytest.raises(SystemExit, match="outputs of torch differ from ours by"):
        prepare(processes([], ours=READY, torch=wrong), CASE, "inference", Path("x"))


def test_a_process_answers_fails_and_goes_on(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    command = [sys.executable, str(ROOT / "profiling/compare_cpu.py"), "--worker", "ours"]
    with Process(
        [*command, "--engine", "stepwise", "--clock", "cpu"], 1, tmp_path / "log"
    ) as process:
        assert process.hello["version"].startswith("cupy_lstm ")
        for mode in JOBS:
            answer = process.ask("prepare", case=asdict(CASE), mode=mode)
            assert answer["error"] == 0.0, answer
            assert process.ask("turn", seconds=0.0)["ms"] > 0
        assert process.ask("prepare", case=asdict(replace(CASE, I=0)), mode="training") == {
            "failed": "ValueError: input_size must be at least 1, received 0"
        }
        assert "no pruning" in process.ask("prepare", case=asdict(CASE), mode="pruning")["failed"]
        assert process.ask("gemm", dtype="float64")["gflops"] > 0
    assert process.process.returncode == 0


def test_a_process_that_ends_says_its_last_words(tmp_path):
    command = [sys.executable, "-c", "raise RuntimeError('my last words')"]
    with pytest.raises(SystemExit, match="my last words"):
        Process(command, 1, tmp_path / "log")


def test_a_library_that_is_missing_is_named(tmp_path):
    (tmp_path / "torch.py").write_text("print('noise')\nraise ImportError('no torch here')")
    script = ROOT / "profiling/compare_cpu.py"
    code = f"import runpy, sys; sys.path[:0] = {[str(tmp_path), str(script.parent)]}; "
    code += (
        f"sys.argv = ['x', '--worker', 'torch']; runpy.run_path({str(script)!r}, None, '__main__')"
    )
    with Process([sys.executable, "-c", code], 1, tmp_path / "log") as process:
        assert process.hello == {"missing": "no torch here"}


@pytest.mark.filterwarnings("ignore")  # theirs are not ours to fix
@pytest.mark.parametrize("library", ["torch", "bridge", "onnxruntime", "paddle"])
def test_every_library_computes_the_same(library, tmp_path):
    needed = {"bridge": ["torch"], "onnxruntime": ["onnxruntime", "onnx"]}
    for name in needed.get(library, [library]):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pytest.importorskip(name, reason=f"{name} is not installed: no comparison")
    # In a context of its own, since the engine is set for good.
    ours = contextvars.copy_context().run(LIBRARIES["ours"], 2, "stepwise")
    kind = Bridge if library == "bridge" else LIBRARIES[library]
    theirs = contextvars.copy_context().run(kind, 2, "auto")
    jobs = [(case, mode) for case in TINY for mode in ("inference", "training")]
    jobs.append((Case(5, 1, 4, 6), "stream"))
    compared = 0
    for case, mode in jobs:
        if library == "onnxruntime" and (mode == "training" or case.dtype == "float64"):
            continue  # it has neither
        expected = str(tmp_path / f"{compared}.npz")
        for one in (ours, theirs):  # the first writes what is expected
            for variant, run in getattr(one, mode)(case).items():
                for _ in range(2):  # the second call begins as the first did
                    error = difference(run(), expected)
                    assert error <= TOLERANCE[case.dtype], (case, mode, variant)
        compared += 1
    assert compared >= 7


def test_difference_is_relative_to_each_array(tmp_path):
    path = str(tmp_path / "expected.npz")
    expected = [np.array([[1.0, 2.0]]), np.array([100.0])]
    assert difference(expected, path) == 0
    assert difference([np.array([1.0, 2.5]), np.array([101.0])], path) == 0.25
    assert np.isnan(difference([np.array([np.nan, 2.0]), np.array([100.0])], path))
    assert np.isnan(difference([np.array([1.0, 2.0]), np.array([np.nan])], path))
    with pytest.raises(ValueError):
        difference(expected[:1], path)


def test_cases_survive_the_way_to_a_process():
    for case in {case for cases in JOBS.values() for case in cases}:
        assert Case(**json.loads(json.dumps(asdict(case)))) == case
