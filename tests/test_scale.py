"""`profiling/scale.py`: its model, its figures and its picture; times themselves are not judged."""

# ruff: noqa: E402 - the modules of the scripts are on no path

import csv
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from mpi_jobs import require_mpiexec

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "profiling"))

import scale
from studies.ring import Network, ring_seconds, step_seconds

from cupy_lstm.cost import floor_us
from cupy_lstm.device import CARDS
from cupy_lstm.distributed import SingleProcess
from cupy_lstm.notation import Shape

NETWORK = Network(T=50, H=512, L=3, dtype="float32")
CARD = CARDS["H100"]
ROW = scale.Row("measured", "strong", 1, 64, True, 100.0, 0.0, 1)


def test_a_ring_sends_each_byte_twice_but_for_its_own_share():
    assert ring_seconds(1e9, 1, 1e9, 1e-6) == 0
    assert ring_seconds(1e9, 2, 1e9, 0) == pytest.approx(1)
    assert ring_seconds(1e9, 1000, 1e9, 0) == pytest.approx(2 * 999 / 1000)
    assert ring_seconds(0, 5, 1e9, 1e-6) == pytest.approx(8e-6)


def test_a_card_alone_takes_its_floor_and_its_update():
    step = step_seconds(NETWORK, CARD, 64, 1, 1e9, 1e-6)
    shape = Shape(50, 64, 512, 512, 512, 1)
    for back, found in ((False, step.forward), (True, step.backward)):
        assert found == pytest.approx(3 * 50e-6 * floor_us(shape, "float32", CARD, True, back))
    assert NETWORK.layer_bytes == 4 * (4 * 512 * (512 + 512) + 2 * 4 * 512)
    assert step.update == pytest.approx(7 * 3 * NETWORK.layer_bytes / CARD.memory_bandwidth)
    assert step.waited == step.sums == 0
    assert step.total == pytest.approx(step.forward + step.backward + step.update)


def test_sums_hide_behind_the_layers_below():
    a_layer = step_seconds(NETWORK, CARD, 4096, 1, 1, 1).backward / 3
    # So fast that a sum is over before the next layer's backward: the first layer's alone is left.
    bandwidth = NETWORK.layer_bytes / (0.5 * a_layer)
    hidden = step_seconds(NETWORK, CARD, 4096, 2, bandwidth, 0)
    assert hidden.sums == pytest.approx(1.5 * a_layer)
    assert hidden.waited == pytest.approx(0.5 * a_layer)
    late = step_seconds(NETWORK, CARD, 4096, 2, bandwidth, 0, overlap=False)
    assert late.waited == pytest.approx(1.5 * a_layer)
    # So slow that the link is never idle after the last layer's backward.
    slow = step_seconds(NETWORK, CARD, 4096, 2, bandwidth / 10, 0)
    assert slow.waited == pytest.approx(3 * 5 * a_layer - 2 * a_layer)


def test_small_layers_go_together():
    small = replace(NETWORK, H=32)
    assert small.layer_bytes * 3 < 2**20
    latency = 1.0
    assert step_seconds(small, CARD, 64, 2, 1e30, latency).sums == pytest.approx(2 * latency)
    assert step_seconds(NETWORK, CARD, 64, 2, 1e30, latency).sums == pytest.approx(6 * latency)


def test_efficiency_is_rows_a_second_and_process():
    halved = replace(ROW, number=2, ms=50.0)
    doubled = replace(ROW, scaling="weak", number=2, rows=128)
    rows = [ROW, halved, replace(ROW, scaling="weak"), doubled, replace(ROW, kind="model", ms=1.0)]
    assert [scale.efficiency(row, rows) for row in rows] == [1.0] * 5
    assert scale.efficiency(replace(halved, ms=100.0), rows) == 0.5


def test_the_model_alone(tmp_path, capsys):
    assert scale.main(["--model-only", "--out", str(tmp_path)]) == 0
    assert "measured" not in capsys.readouterr().out
    with (tmp_path / "scale.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["kind"] for row in rows} == {"model"}
    assert sorted({int(row["number"]) for row in rows}) == list(scale.CARD_COUNTS)
    weak = [float(row["efficiency"]) for row in rows if row["scaling"] == "weak"][:11]
    assert weak == sorted(weak, reverse=True) and weak[0] == 1 > weak[-1] > 0


def test_a_small_measurement_from_end_to_end(tmp_path, capsys):
    require_mpiexec()
    pytest.importorskip("tqdm", reason="tqdm is not installed")
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    sizes = ["--steps", "3", "--batch", "4", "--hidden", "5", "--layers", "2", "--calls", "2"]
    sizes += ["--processes", "2"]
    assert scale.main([*sizes, "--jobs", "1", "--out", str(tmp_path)]) == 0
    with (tmp_path / "scale.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["kind"] == "measured"]
    found = [" ".join((row["scaling"], row["number"], row["rows"])) for row in rows]
    assert found == ["strong 2 4", "weak 2 8"]
    gradients = 4 * (2 * (4 * 5 * 10 + 8 * 5) + 6)
    assert {row["gradient_bytes"] for row in rows} == {str(gradients)}
    assert all(float(row["ms"]) > float(row["waited_ms"]) >= 0 for row in rows)
    assert (tmp_path / "scale.png").read_bytes().startswith(b"\x89PNG")
    assert "measured, weak" in capsys.readouterr().out


@pytest.mark.parametrize("rank", [0, 1])
def test_one_process_writes_what_it_timed(rank, tmp_path, monkeypatch):
    process = SingleProcess()
    process.rank = rank
    monkeypatch.setattr(scale, "launched", lambda: process)
    sizes = ["--steps", "3", "--batch", "4", "--hidden", "5", "--layers", "1", "--calls", "1"]
    assert scale.main([*sizes, "--worker", str(tmp_path / "steps.json")]) == 0
    assert (tmp_path / "steps.json").exists() == (rank == 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--batch", "0"], "--batch must be at least 1"),
        (["--processes", "0", "2"], "--processes must be at least 1, received 0"),
        (["--latency", "inf"], "--latency must be positive and finite"),
    ],
)
def test_options_that_make_no_sense(options, message, capsys):
    with pytest.raises(SystemExit):
        scale.main(options)
    assert message in capsys.readouterr().err


def test_without_mpiexec_it_says_what_is_missing(monkeypatch):
    monkeypatch.setattr(scale, "mpiexec", lambda: None)
    with pytest.raises(SystemExit, match=r"needs an mpiexec: pip install"):
        scale.measured_rows(scale.parsed_options([]))
