"""Reading exports of Nsight Systems: the same table as from a log, and the work of the GPU."""

# ruff: noqa: E402 - the modules of the scripts are on no path

import os
import sqlite3
import stat
import sys
from dataclasses import replace
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "profiling"))

import record as script
from nsys_export import FILLS, START_END, Export
from traces import tools
from traces.machine import gpu_machine
from traces.nsys import read_export
from traces.payloads import read_payload
from traces.spans import Span, forest
from traces.stages import stage_rows, text_table
from traces.timeline import draw_timeline

from cupy_lstm.cost import floor_us
from cupy_lstm.device import CARDS
from cupy_lstm.notation import Shape

PROGRAM = """
import numpy as np
from cupy_lstm import LSTM, engine

lstm = LSTM(3, 4, num_layers=2, dropout=0.5, seed=0)
with engine("stepwise"):
    for _ in range(2):
        y, _ = lstm(np.ones((2, 5, 3), "float32"))
        lstm.backward(y)
"""
PROCESS, THREAD = 4242, 4243
SIZES = {"T": 10, "B": 4, "I": 8, "H": 16, "P": 16, "D": 1, "bytes": 4}


def span(name, start, end, category="", payload=None, thread=THREAD):
    return Span(name, "cupy_lstm", category, 0xFF009E73, payload, PROCESS, thread, start, end)


def test_the_table_of_an_export_is_that_of_a_log(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    tool = tools.chosen_tool("python" if tools.why_not("injection") else "injection")
    command = [sys.executable, str(tmp_path / "program.py")]
    _, path = tools.record(tool, command, tmp_path / "record")
    log = tools.read_recording(path)
    export = Export()
    for one in log.spans:
        export.span(one)
    export.write(tmp_path / "export.sqlite")
    found = tools.read_recording(tmp_path / "export.sqlite")
    assert found.spans == log.spans
    assert len(found.spans) > 20
    rows = [stage_rows(forest(one), None) for one in (log, found)]
    assert rows[0] == rows[1]
    assert text_table(rows[0]) == text_table(rows[1])


@pytest.fixture
def gpu_export(tmp_path):
    """A forward and a backward pass of one layer on an A100, host times in nanoseconds.

    The GPU runs late: what the host asked for in a range is done after its end.
    """
    export = Export()
    export.gpu(CARDS["A100"])
    for one in (
        span("forward", 0, 1000, "pass"),
        span("layer 0", 100, 900, "layer", SIZES),
        span("input projection", 200, 400, "GEMM", SIZES),
        span("recurrence", 400, 800, "recurrence", SIZES),
        span("inference", 2000, 3000, "pass"),
        span("layer 0", 2100, 2900, "layer", SIZES),
    ):
        export.span(one)
    export.work("ampere_sgemm_128x64_tn", 1000, 1300, 250, PROCESS, THREAD)
    export.work("recurrence_forward<float>", 1400, 2400, 500, PROCESS, THREAD)
    export.work("", 1350, 1380, 150, PROCESS, THREAD, table=FILLS)
    # Two streams at once count once; one was asked for outside of any range, one on another thread.
    export.work("elementwise", 3000, 3400, 2200, PROCESS, THREAD, stream=7)
    export.work("elementwise", 3200, 3600, 2300, PROCESS, THREAD, stream=8)
    export.work("outside", 5000, 6000, 1500, PROCESS, THREAD)
    export.work("elsewhere", 5000, 6000, 500, PROCESS, THREAD + 1)
    export.work("no call of it was recorded", 5000, 6000, 500, PROCESS, THREAD, call=False)
    export.write(tmp_path / "gpu.sqlite")
    return tmp_path / "gpu.sqlite"


def test_work_of_the_gpu_is_projected_onto_ranges(gpu_export):
    recording = read_export(gpu_export)
    rows = {"/".join(row.path): row for row in stage_rows(forest(recording), None)}
    gpu = {path: (row.gpu, row.gaps, row.kernels, row.gemms) for path, row in rows.items()}
    assert gpu == {
        "forward": (1330, 70, 2, 1),
        "forward/layer 0": (1330, 70, 2, 1),
        "forward/layer 0/input projection": (300, 0, 1, 1),
        "forward/layer 0/recurrence": (1000, 0, 1, 0),
        "inference": (600, 0, 2, 0),
        "inference/layer 0": (600, 0, 2, 0),
    }
    assert len(recording.kernels) == 7, "all but the one without a call"


def test_the_floor_is_the_model_s(gpu_export):
    recording = read_export(gpu_export)
    card = CARDS["A100"]
    assert recording.device.name == "A100"
    assert recording.device.clock_hz == card.clock_hz
    machine = gpu_machine(recording.device)
    rows = {"/".join(row.path): row for row in stage_rows(forest(recording), machine)}
    shape = Shape(10, 4, 8, 16, 16, 1)
    with_tape, lean = (10 * 1e3 * floor_us(shape, "float32", card, t, False) for t in (True, False))
    assert rows["forward"].floor == pytest.approx(with_tape)
    assert rows["inference/layer 0"].floor == pytest.approx(lean)
    assert rows["forward"].of_floor == pytest.approx(with_tape / 1330)
    assert rows["forward/layer 0/recurrence"].floor is None
    text = text_table([*rows.values()])
    assert text.splitlines()[0].endswith("GPU ms  gaps ms  kernels  GEMMs  floor ms  of floor")


def test_backward_has_the_floor_of_backward(tmp_path):
    export = Export()
    export.gpu(CARDS["H100"])
    export.span(span("backward", 0, 100, "pass"))
    export.span(span("layer 0", 10, 90, "layer", SIZES | {"bytes": 2}))
    export.span(span("layer 1", 95, 99, "layer", SIZES | {"bytes": 3}))
    export.span(span("layer 2", 99, 100, "layer", {"T": 5}), binaryData=None, jsonText='{"T": 5}')
    export.write(tmp_path / "x.sqlite")
    recording = read_export(tmp_path / "x.sqlite")
    rows = stage_rows(forest(recording), gpu_machine(recording.device))
    expected = 10 * 1e3 * floor_us(Shape(10, 4, 8, 16, 16, 1), "float16", CARDS["H100"], True, True)
    assert [row.floor for row in rows] == [*[pytest.approx(expected)] * 2, None, None]


def test_what_may_be_missing_or_different(tmp_path):
    export = Export()
    export.span(span("registered", 0, 10, payload=5))
    export.span(span("", 20, 30), textId=None, text="plain", domainId=None, category=None)
    export.span(span("open", 40, None))
    export.span(span("across", 5, 25), kind=START_END, jsonText='{"T": 3}')
    export.span(span("odd", 50, 60), jsonText="no json")
    export.write(tmp_path / "x.sqlite")
    recording = read_export(tmp_path / "x.sqlite")
    assert [(one.name, one.domain, one.payload) for one in recording.spans] == [
        ("registered", "cupy_lstm", 5),
        ("across", "cupy_lstm", {"T": 3}),
        ("plain", "", None),
        ("odd", "cupy_lstm", "no json"),
    ]
    assert recording.unclosed == 1
    assert (recording.kernels, recording.device) == ([], None)
    with sqlite3.connect(tmp_path / "x.sqlite") as database:
        database.execute("ALTER TABLE NVTX_EVENTS DROP COLUMN jsonText")
        database.execute("ALTER TABLE NVTX_EVENTS DROP COLUMN jsonTextId")
    database.close()
    older = read_export(tmp_path / "x.sqlite")
    assert [one.payload for one in older.spans] == [5, None, None, None]


@pytest.mark.parametrize("missing", ["multiprocessors", "clock_hz", "memory_bandwidth"])
def test_a_gpu_whose_rates_are_not_known_has_no_floor(tmp_path, missing):
    export = Export()
    export.gpu(replace(CARDS["A100"], **{missing: 0}))
    export.span(span("inference", 0, 1000, "pass"))
    export.span(span("layer 0", 100, 900, "layer", SIZES))
    export.work("k", 200, 300, 150, PROCESS, THREAD)
    export.write(tmp_path / "x.sqlite")
    recording = read_export(tmp_path / "x.sqlite")
    assert recording.kernels
    assert script.machine_of(recording) is None
    assert "floor" not in text_table(stage_rows(forest(recording), None))


def test_payloads_that_cannot_be_read_are_none():
    export, schemas = Export(), {(1, 7): [("T", 18, 0), ("x", 10**6, 8)]}
    data = export.binary({"T": 5, "x": 6}, 1, schema=7)
    assert read_payload(data, schemas) == {"T": 5, "x": None}
    assert read_payload(data.hex(), schemas) == {"T": 5, "x": None}
    upper = export.binary({"T": 5, "x": 6}, 1 + 2**40, schema=7 + 2**40)
    assert read_payload(upper, schemas) == {"T": 5, "x": None}
    assert read_payload(data, {}) is None
    assert read_payload(data[:20], schemas) is None
    assert read_payload("no digits", schemas) is None
    circle = {(1, 7): [("T", 7, 0)]}
    assert read_payload(data, circle) == {"T": None}


def test_domains_of_two_processes_do_not_mix(tmp_path):
    export = Export()
    for process in (10, 11):
        export.span(Span(f"in {process}", f"domain {process}", "", 0, None, process, 1, 0, 5))
    export.write(tmp_path / "x.sqlite")
    found = {
        one.name: (one.domain, one.process) for one in read_export(tmp_path / "x.sqlite").spans
    }
    assert found == {"in 10": ("domain 10", 10), "in 11": ("domain 11", 11)}


def test_another_file_is_a_sentence(tmp_path):
    with pytest.raises(SystemExit, match="missing is no file"):
        read_export(tmp_path / "missing")
    (tmp_path / "text").write_text("something else, and long enough to be no database" * 20)
    with pytest.raises(SystemExit, match="text is no SQLite export of Nsight Systems: file is not"):
        read_export(tmp_path / "text")
    with sqlite3.connect(tmp_path / "empty.sqlite") as database:
        database.execute("CREATE TABLE other (id INTEGER)")
    database.close()
    with pytest.raises(SystemExit, match="is no export of Nsight Systems: it has no StringIds"):
        read_export(tmp_path / "empty.sqlite")


def test_the_picture_has_the_streams_of_the_gpu(gpu_export, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    from matplotlib.figure import Figure

    seen = {}
    real = Figure.savefig

    def saved(figure, path, **options):
        (axes,) = figure.axes
        seen["rows"] = [label.get_text() for label in axes.get_yticklabels()]
        (legend,) = figure.legends
        seen["legend"] = [text.get_text() for text in legend.get_texts()]
        real(figure, path, **options)

    monkeypatch.setattr(Figure, "savefig", saved)
    draw_timeline(forest(read_export(gpu_export)), tmp_path / "x.png", "title")
    assert seen["rows"] == [
        "depth 0", "depth 1", "depth 2", "GPU 0, stream 7", "GPU 0, stream 8",
    ]  # fmt: skip
    assert seen["legend"][-2:] == ["GPU: kernel", "GPU: fill"]
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


NSYS = """#!{python}
import pathlib, shutil, subprocess, sys
options = [word for word in sys.argv[1:] if word.startswith("--")]
command = sys.argv[2 + len(options):]
assert sys.argv[1] == "profile", sys.argv
assert "--trace=cuda,nvtx" in options and "--export=sqlite" in options, options
(output,) = [word.partition("=")[2] for word in options if word.startswith("--output=")]
status = subprocess.run(command).returncode
shutil.copy({export!r}, pathlib.Path(output).with_suffix(".sqlite"))
sys.exit(status)
"""


def test_nsys_is_used_where_it_is_on_the_path(gpu_export, tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    folder = tmp_path / "bin"
    folder.mkdir()
    fake = folder / "nsys"
    fake.write_text(NSYS.format(python=sys.executable, export=str(gpu_export)))
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    out = tmp_path / "out"
    code = f"open({str(tmp_path / 'ran')!r}, 'w'); raise SystemExit(5)"
    assert script.main(["--out", str(out), "--", sys.executable, "-c", code]) == 5
    assert (tmp_path / "ran").exists()
    text = capsys.readouterr().out
    assert "recorded by Nsight Systems" in text
    assert "floor of A100: highest clock" in text
    assert {path.name for path in out.iterdir()} == {
        "record.sqlite", "record.csv", "record.png", "record.json",
    }  # fmt: skip
