"""`profiling/record.py`: ranges of a real process, read back, as a table, a picture and a trace."""

# ruff: noqa: E402 - the modules of the scripts are on no path

import csv
import json
import math
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "profiling"))

import record as script
from traces import machine, tools
from traces.log import read_log
from traces.perfetto import trace_events, write_trace
from traces.spans import Kernel, Recording, Span, forest
from traces.stages import stage_rows
from traces.timeline import draw_timeline

PROGRAM = """
import numpy as np
from cupy_lstm import LSTM, Adam, engine, no_grad, ranges

lstm = LSTM(3, 4, num_layers=2, dropout=0.5, seed=0)
x = np.ones((2, 5, 3), "float32")
optimizer = Adam(0.01, lstm.parameters())
with engine("stepwise"):
    for _ in range(3):
        y, _ = lstm(x)
        lstm.backward(y)
        optimizer.step()
    with no_grad():
        lstm(x)
    lstm.stream(batch=2)(x)
    try:
        with ranges.stage("backward"), ranges.stage("layer", number=7):
            for step in ranges.each_step(range(3)):
                raise KeyError(step)
    except KeyError:
        pass
assert ranges._tool.layers() == 0
"""

FORWARD = ("input projection", "recurrence")
BACKWARD = (
    "recomputation", "recurrence", "weight gradients", "input gradient", "weight gradients",
)  # fmt: skip
SIZES = {"T": 5, "B": 2, "I": 3, "H": 4, "P": 4, "D": 1, "bytes": 4}


def layers(numbers, stages):
    tree = [(f"layer {number}", [(stage, []) for stage in stages]) for number in numbers]
    return [tree[0], ("dropout", []), tree[1]]


STEP = [
    ("forward", layers((0, 1), FORWARD)),
    ("backward", layers((1, 0), BACKWARD)),
    ("optimizer step", []),
]
EXPECTED = [
    *(STEP * 3),
    ("inference", layers((0, 1), FORWARD)),
    ("backward", [("layer 7", [])]),
]


def tree(nodes):
    return [(node.span.name, tree(node.children)) for node in nodes]


def available(tool):
    return pytest.param(
        tool, marks=pytest.mark.skipif(bool(tools.why_not(tool)), reason=tools.why_not(tool))
    )


@pytest.fixture(scope="module", params=[available("injection"), available("python")])
def recorded(request, tmp_path_factory):
    """What each of our recorders makes of the program."""
    folder = tmp_path_factory.mktemp("recorded")
    (folder / "program.py").write_text(PROGRAM)
    command = [sys.executable, str(folder / "program.py")]
    status, path = tools.record(request.param, command, folder / "record")
    assert status == 0
    return read_log(path)


def test_names_nesting_and_counts(recorded):
    assert tree(forest(recorded)) == EXPECTED
    assert (recorded.unclosed, recorded.unopened) == (0, 0)


def test_domain_category_colour_and_payload(recorded):
    assert {span.domain for span in recorded.spans} == {"cupy_lstm"}
    first = {}
    for span in recorded.spans:
        first.setdefault(span.name, span)
    assert first["layer 0"].payload == SIZES
    assert first["layer 1"].payload == SIZES | {"I": 4}
    assert first["recurrence"].payload == SIZES
    assert first["dropout"].payload == SIZES | {"I": 4}, "of the layer above"
    assert first["forward"].payload is first["optimizer step"].payload is None
    from cupy_lstm.ranges import STAGES

    for name, span in first.items():
        kind = STAGES[name.rstrip("0123456789 ")]
        assert (span.category, span.colour) == (kind.category, 0xFF000000 | kind.colour), name


def test_ranges_lie_inside_each_other_in_time(recorded):
    def check(node):
        assert node.span.start < node.span.end
        reached = node.span.start
        for child in node.children:
            assert reached <= child.span.start
            reached = child.span.end
            check(child)
        assert reached <= node.span.end

    nodes = forest(recorded)
    for node in nodes:
        check(node)
    assert all(a.span.end <= b.span.start for a, b in pairwise(nodes))


OTHERS = """
import os, sys, threading
import nvtx

@nvtx.annotate("decorated", color="red", category="mine", payload=3)
def decorated():
    with nvtx.annotate('quo"ted \\\\ \\n', domain="other", payload=2.5):
        pass

decorated()
nvtx.push_range("pushed", category=4)
thread = threading.Thread(target=decorated)
thread.start()
thread.join()
nvtx.pop_range()
nvtx.mark("marked")
both = nvtx.start_range("one"), nvtx.start_range("other")
nvtx.end_range(both[0])
nvtx.end_range(both[1])
if os.fork() == 0:
    decorated()
    os._exit(0)
os.wait()
nvtx.push_range("x" * 5000)
nvtx.push_range("left open")
"""


@pytest.mark.parametrize("tool", [available("injection"), available("python")])
def test_what_other_programs_do_with_nvtx(tmp_path, tool):
    (tmp_path / "others.py").write_text(OTHERS)
    command = [sys.executable, str(tmp_path / "others.py")]
    status, path = tools.record(tool, command, tmp_path / "record")
    assert status == 0
    found = read_log(path)
    decorated = [span for span in found.spans if span.name == "decorated"]
    assert len(decorated) == 3
    assert len({span.thread for span in decorated}) == 3, "main, thread, and the forked child"
    assert len({span.process for span in decorated}) == 2
    assert {(span.category, span.payload, span.colour) for span in decorated} == {
        ("mine", 3, 0xFF0000)
    }
    quoted = {(span.name, span.domain, span.payload) for span in found.spans if span.domain}
    assert ('quo"ted \\ \n', "other", 2.5) in quoted
    assert [span.name for span in found.spans if span.name in ("one", "other")] == ["one", "other"]
    assert found.unclosed == 2
    assert found.unopened == 0


WIDE = r"""
#include <nvtx3/nvToolsExt.h>

int main(void) {
  nvtxDomainHandle_t domain = nvtxDomainCreateW(L"gr\u00f6\u00dfe");
  nvtxEventAttributes_t event = {0};
  event.version = NVTX_VERSION;
  event.size = NVTX_EVENT_ATTRIB_STRUCT_SIZE;
  event.messageType = NVTX_MESSAGE_TYPE_REGISTERED;
  event.message.registered = nvtxDomainRegisterStringW(domain, L"registered \u20ac");
  event.category = 3;
  nvtxDomainNameCategoryW(domain, 3, L"of the domain");
  nvtxDomainRangePushEx(domain, &event);
  nvtxDomainRangePop(domain);
  nvtxRangePushW(L"pushed \U0001F600");
  nvtxRangePop();
  nvtxRangeEnd(nvtxRangeStartW(L"started"));
  nvtxMarkW(L"marked");
  nvtxNameCategoryW(5, L"without one");
  event.messageType = NVTX_MESSAGE_TYPE_UNICODE;
  event.message.unicode = L"given";
  event.category = 5;
  nvtxRangePushEx(&event);
  nvtxRangePop();
  return 0;
}
"""


def built(source, folder):
    """Return a C program that uses NVTX."""
    (folder / "program.c").write_text(source)
    program = folder / "program"
    command = [tools.compiler(), "-isystem", tools.headers(), folder / "program.c", "-o", program]
    subprocess.run([*map(str, command), "-ldl"], check=True)
    return str(program)


@pytest.mark.skipif(bool(tools.why_not("injection")), reason=tools.why_not("injection"))
def test_texts_of_wide_characters(tmp_path):
    # The program sets no locale, so nothing may depend on one.
    status, path = tools.record("injection", [built(WIDE, tmp_path)], tmp_path / "record")
    assert status == 0
    found = read_log(path)
    assert (found.unclosed, found.unopened) == (0, 0)
    assert [(span.name, span.domain, span.category) for span in found.spans] == [
        ("registered \u20ac", "größe", "of the domain"),
        ("pushed \U0001f600", "", ""),
        ("started", "", ""),
        ("given", "", "without one"),
    ]
    events = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [event["message"] for event in events if event["kind"] == "mark"] == ["marked"]


NOT_FINITE = """
import nvtx, numpy

fields = numpy.dtype([("one", "float32"), ("other", "float64"), ("whole", "int64")])
for name, payload in {
    "nan": float("nan"),
    "inf": float("inf"),
    "fields": numpy.array((numpy.nan, -numpy.inf, 7), fields),
    "finite": 0.5,
}.items():
    domain = nvtx.get_domain("cupy_lstm")
    domain.push_range(domain.get_event_attributes(message=name, payload=payload))
    domain.pop_range()
"""


@pytest.mark.parametrize("tool", [available("injection"), available("python")])
def test_a_payload_that_is_not_finite_is_null(tmp_path, tool):
    (tmp_path / "program.py").write_text(NOT_FINITE)
    command = [sys.executable, str(tmp_path / "program.py")]
    status, path = tools.record(tool, command, tmp_path / "record")
    assert status == 0
    assert {span.name: span.payload for span in read_log(path).spans} == {
        "nan": None,
        "inf": None,
        "fields": {"one": None, "other": None, "whole": 7},
        "finite": 0.5,
    }


@pytest.mark.parametrize("payload", [math.nan, {"x": -math.inf}, {"x": {"y": [math.nan, 1.0]}}])
def test_the_trace_has_no_number_that_json_has_not(tmp_path, payload):
    # As an export of Nsight Systems may hold it.
    write_trace(Recording([span("a", 0, 1, payload=payload)]), tmp_path / "x.json")
    text = (tmp_path / "x.json").read_text()
    assert "null" in text
    json.loads(text, parse_constant=pytest.fail)


def test_a_line_that_is_cut_off_is_a_sentence(tmp_path):
    path = tmp_path / "x.jsonl"
    with pytest.raises(SystemExit, match=r"x\.jsonl is no file"):
        read_log(path)
    path.write_text('{"time": 1, "pi')
    with pytest.raises(SystemExit, match=r"x\.jsonl, line 1 is no JSON"):
        read_log(path)
    path.write_text('{"time": 1, "pid": 2, "kind": "pop"}\n')
    with pytest.raises(SystemExit, match=r"x\.jsonl, line 1: the event has no 'domain'"):
        read_log(path)
    path.write_text("[1, 2]\n")
    with pytest.raises(SystemExit, match=r"x\.jsonl, line 1 is no event: is the file a log of"):
        read_log(path)


def test_a_tool_that_is_not_there_is_a_sentence(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(SystemExit, match="--tool nsys cannot be used here: there is no nsys on"):
        tools.chosen_tool("nsys")
    monkeypatch.setattr(tools, "headers", lambda: None)
    if sys.platform.startswith("linux"):
        with pytest.raises(SystemExit, match=r"needs nvtx and its headers: pip install"):
            tools.chosen_tool("injection")
    assert tools.chosen_tool("auto") == "python"


@pytest.mark.skipif(bool(tools.why_not("injection")), reason=tools.why_not("injection"))
def test_the_library_is_built_once(monkeypatch, tmp_path):
    monkeypatch.setattr(tools.tempfile, "gettempdir", lambda: str(tmp_path))
    library = tools.built_injection()
    before = library.stat().st_mtime_ns
    assert tools.built_injection() == library
    assert library.stat().st_mtime_ns == before
    source = tmp_path / "broken.c"
    source.write_text("int broken(")
    monkeypatch.setattr(tools, "SOURCE", source)
    with pytest.raises(SystemExit, match=r"broken\.c does not compile with"):
        tools.built_injection()


@pytest.fixture(autouse=True)
def quick_rates(monkeypatch):
    monkeypatch.setattr(machine, "SIZES", (64,))
    monkeypatch.setattr(machine, "COPIED_BYTES", 2**16)
    monkeypatch.setattr(machine, "BUDGET", 0.0)


def test_the_command_line(tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    (tmp_path / "program.py").write_text(PROGRAM)
    status = script.main(
        ["--out", str(tmp_path), "--skip", "3", "--", sys.executable, str(tmp_path / "program.py")]
    )
    assert status == 0
    lines = capsys.readouterr().out.splitlines()
    table = {line.split("  ")[0]: line for line in lines if line}
    assert [line.split()[0] for line in lines if line.startswith("stage ")] == ["stage"]
    assert table["forward"].split()[1] == "2", "three without the first"
    assert any(line.startswith("floor of CPU: ") for line in lines)
    with (tmp_path / "record.csv").open(newline="") as file:
        rows = {row["path"]: row for row in csv.DictReader(file)}
    assert rows["backward/layer 1/weight gradients"]["calls"] == "4"
    assert float(rows["forward"]["floor"]) > 0
    assert sum(float(row["share"]) for row in rows.values()) == pytest.approx(1)
    assert (tmp_path / "record.png").read_bytes().startswith(b"\x89PNG")
    trace = json.loads((tmp_path / "record.json").read_text())["traceEvents"]
    complete = [event for event in trace if event["ph"] == "X"]
    assert len(complete) == sum(1 for _ in read_log(tmp_path / "record.jsonl").spans)
    assert min(event["ts"] for event in complete) == 0
    # What has been recorded can be read again.
    log = tmp_path / "record.jsonl"
    assert script.main(["--out", str(tmp_path), "--read", str(log), "--last", "2"]) == 0


def test_the_status_is_that_of_the_command(tmp_path):
    code = "import nvtx, sys; nvtx.push_range('x', domain='cupy_lstm'); "
    code += "nvtx.pop_range(domain='cupy_lstm'); sys.exit(3)"
    arguments = ["--tool", "python", "--out", str(tmp_path), "--", sys.executable, "-c", code]
    assert script.main(arguments) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give a command behind --, or --read and a file"),
        (["--read", "x.sqlite", "--", "ls"], "and not both"),
        (["--last", "0", "--", "ls"], "--last must be at least 1, received 0"),
        (["--skip", "-1", "--", "ls"], "--skip must be at least 0, received -1"),
    ],
)
def test_wrong_options(capsys, arguments, message):
    with pytest.raises(SystemExit):
        script.main(arguments)
    assert message in capsys.readouterr().err


def test_a_command_that_cannot_be_started(tmp_path):
    arguments = ["--tool", "python", "--out", str(tmp_path), "--", str(tmp_path / "missing")]
    with pytest.raises(SystemExit, match=r"cannot start .*missing: No such file"):
        script.main(arguments)


def test_a_program_without_ranges(tmp_path):
    arguments = ["--tool", "python", "--out", str(tmp_path), "--", sys.executable, "-c", ""]
    with pytest.raises(SystemExit, match=r"no range of the domain cupy_lstm was recorded$"):
        script.main(arguments)


@pytest.mark.skipif(bool(tools.why_not("injection")), reason=tools.why_not("injection"))
def test_a_program_without_nvtx_is_told_what_it_lacks(tmp_path):
    arguments = ["--tool", "injection", "--out", str(tmp_path), "--", sys.executable, "-c", ""]
    with pytest.raises(SystemExit, match=r"was recorded: is nvtx installed where .* runs\? pip"):
        script.main(arguments)


def test_the_script_runs_on_its_own(tmp_path):
    done = subprocess.run(
        [sys.executable, str(ROOT / "profiling" / "record.py"), "--help"],
        capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "COLUMNS": "100"},
    )  # fmt: skip
    assert done.returncode == 0
    assert "-- COMMAND | --read FILE" in done.stdout


def span(name, start, end, thread=1, payload=None, category="", domain="d"):
    return Span(name, domain, category, 0xFF336699, payload, 1, thread, start, end)


def test_ranges_that_only_overlap_are_not_nested():
    spans = [span("a", 0, 10), span("b", 5, 15), span("c", 6, 9), span("d", 20, 30, thread=2)]
    nodes = forest(Recording(spans))
    assert tree(nodes) == [("a", []), ("b", [("c", [])]), ("d", [])]


def test_shares_are_of_the_outermost_ranges():
    spans = [span("a", 0, 60), span("b", 10, 40), span("b", 40, 50), span("a", 60, 100)]
    rows = stage_rows(forest(Recording(spans)), None)
    found = {row.path: (row.calls, row.total, row.alone, row.share) for row in rows}
    assert found == {("a",): (2, 100, 60, 0.6), ("a", "b"): (2, 40, 40, 0.4)}


def test_the_trace_is_as_perfetto_wants_it():
    kernel = Kernel("k", "kernel", 0, 7, 1, 1, 1500, 4000, 6000)
    recording = Recording([span("a", 1000, 3500, payload={"T": 5})], [kernel])
    events = trace_events(recording)["traceEvents"]
    assert events[0] == {
        "name": "a", "cat": "d", "ph": "X", "ts": 0.0, "dur": 2.5, "pid": 1, "tid": 1,
        "args": {"domain": "d", "T": 5},
    }  # fmt: skip
    assert (events[1]["ts"], events[1]["dur"], events[1]["tid"]) == (3.0, 2.0, 7)
    assert {event["args"]["name"] for event in events[2:]} == {"process 1", "GPU 0"}


def test_the_legend_has_every_name_of_a_colour(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    from matplotlib.figure import Figure

    seen = []
    real = Figure.savefig

    def saved(figure, path, **options):
        (legend,) = figure.legends
        seen.extend(text.get_text() for text in legend.get_texts())
        real(figure, path, **options)

    monkeypatch.setattr(Figure, "savefig", saved)
    spans = [
        span("forward", 0, 10), span("layer 0", 1, 4), span("layer 1", 4, 9),
        span("inference", 20, 30),
    ]  # fmt: skip
    draw_timeline(forest(Recording(spans)), tmp_path / "x.png", "title")
    assert seen == ["forward", "layer", "inference"]
