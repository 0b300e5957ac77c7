"""profiling/cpu_limits.py: the floor is what its parts add up to, and a run prints all of them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "profiling" / "cpu_limits.py"


@pytest.fixture
def limits_script(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    import cpu_limits

    return cpu_limits


def found(script, reading, unit=0.0):
    sizes = dict.fromkeys(script.SIZES_MB, reading)
    return script.Limits(100.0, 200.0, 0.0, unit, 150.0, sizes, 50.0, 2.0, 100.0, 30.0, 20.0)


def test_a_floor_is_the_sum_of_its_parts(limits_script):
    script = limits_script
    case = script.Case(10, 32, 64, 128)
    arithmetic = 10 * 2 * 32 * (64 + 128) * 512 / 200e9
    gates = 10 * 32 * 128 / script.LANES.count * 50e-9 / 2
    floor, most = script.floor_ms(case, found(script, reading=1e9), 2)
    assert floor == pytest.approx(1e3 * (arithmetic + gates + 30e-6))
    assert most == "arithmetic"


def test_a_layer_for_the_matrix_unit_has_its_rate(limits_script):
    script = limits_script
    case = script.Case(10, 32, 128, 128)
    floors = [script.floor_ms(case, found(script, 1e9, unit), 2)[0] for unit in (0.0, 800.0)]
    arithmetic = 10 * 2 * 32 * (128 + 128) * 512
    assert floors[0] - floors[1] == pytest.approx(1e3 * arithmetic * (1 / 200e9 - 1 / 800e9))
    case = script.Case(10, 8, 128, 128)  # too few rows
    floors = [script.floor_ms(case, found(script, 1e9, unit), 2)[0] for unit in (0.0, 800.0)]
    assert floors[0] == floors[1]


def test_a_row_waits_for_its_weights(limits_script):
    script = limits_script
    case = script.Case(10, 1, 128, 1024)
    read = 10 * 4 * 1024 * 1024 * 4 / 2 / 10e9
    floor, most = script.floor_ms(case, found(script, reading=10.0), 2)
    projection = 10 * 2 * 128 * 4096 / 200e9
    gates = 10 * 1024 / script.LANES.count * 50e-9 / 2
    assert floor == pytest.approx(1e3 * (read + projection + gates + 30e-6))
    assert most == "reading"


def test_a_run_prints_every_limit_and_the_cases():
    done = subprocess.run(
        [sys.executable, SCRIPT, "--rounds", "1", "--cases", "B1 I64"],
        env=os.environ | {"NUMBA_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    for word in ("tile", "NumPy's product", "reading", "gates", "handing over", "Python"):
        assert any(line.startswith(word) for line in done.stdout.splitlines()), word
    (row,) = [line for line in done.stdout.splitlines() if line.startswith("T100 B1 I64 H64")]
    assert float(row.split()[4]) > 0
