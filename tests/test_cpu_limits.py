"""profiling/cpu_limits.py: the floor is what its parts add up to, and a run prints all of them."""

import dataclasses
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
    rates, calls = (100.0, 200.0, 0.0, unit, 150.0), (2.0, 100.0, 30.0, 90.0, 20.0)
    return script.Limits(*rates, sizes, 50.0, 1.5, *calls)


def floor(script, case, unit, mode="inference"):
    return script.floor_ms(case, found(script, 1e9, unit), 2, mode)[0]


def test_a_floor_is_the_sum_of_its_parts(limits_script):
    script = limits_script
    case = script.Case(10, 32, 64, 128)
    arithmetic = 10 * 2 * 32 * (64 + 128) * 512 / 200e9
    gates = 10 * 32 * 128 / script.LANES.count * 50e-9 / 2
    floor, most = script.floor_ms(case, found(script, reading=1e9), 2, "inference")
    assert floor == pytest.approx(1e3 * (arithmetic + gates + 30e-6))
    assert most == "arithmetic"


def test_a_layer_for_the_matrix_unit_has_its_rate(limits_script):
    script = limits_script
    case = script.Case(10, 32, 128, 128)
    floors = [floor(script, case, unit) for unit in (0.0, 800.0)]
    arithmetic = 10 * 2 * 32 * (128 + 128) * 512
    assert floors[0] - floors[1] == pytest.approx(1e3 * arithmetic * (1 / 200e9 - 1 / 800e9))
    case = script.Case(10, 8, 128, 128)  # too few rows
    floors = [floor(script, case, unit) for unit in (0.0, 800.0)]
    assert floors[0] == floors[1]


def test_a_row_waits_for_its_weights(limits_script):
    script = limits_script
    case = script.Case(10, 1, 128, 1024)
    read = 10 * 4 * 1024 * 1024 * 4 / 2 / 10e9
    floor, most = script.floor_ms(case, found(script, reading=10.0), 2, "inference")
    projection = 10 * 2 * 128 * 4096 / 200e9
    gates = 10 * 1024 / script.LANES.count * 50e-9 / 2
    assert floor == pytest.approx(1e3 * (read + projection + gates + 30e-6))
    assert most == "reading"


def test_training_has_thrice_the_products_and_packs(limits_script):
    script = limits_script
    case = script.Case(10, 4, 64, 128)
    arithmetic = 3 * 10 * 2 * 4 * (64 + 128) * 512 / 200e9
    gates = 1.2 * 10 * 4 * 128 / script.LANES.count * 50e-9 / 2
    packing = 3 * (64 + 128) * 512 * 1.5e-9 / 2
    assert floor(script, case, 0.0, "training") == pytest.approx(
        1e3 * (arithmetic + gates + packing + 90e-6)
    )
    # In the unit the sums and the gradient of the input; from 16 rows on the sweeps, too.
    for B, share in ((4, 0.0), (8, (2 * 64 + 128) / 3 / (64 + 128)), (16, 1.0)):
        floors = [
            floor(script, dataclasses.replace(case, B=B), unit, "training") for unit in (0.0, 800.0)
        ]
        in_unit = share * 3 * 10 * 2 * B * (64 + 128) * 512
        saved = 1e3 * in_unit * (1 / 200e9 - 1 / 800e9)
        assert floors[0] - floors[1] == pytest.approx(saved, abs=1e-12)


def test_a_step_of_a_stream_reads_all_weights(limits_script):
    script = limits_script
    case = script.Case(10, 1, 128, 1024)
    read = 4 * 1024 * (128 + 1024) * 4 / 2 / 10e9
    gates = 1024 / script.LANES.count * 50e-9 / 2
    found_floor, most = script.floor_ms(case, found(script, reading=10.0), 2, "stream")
    assert found_floor == pytest.approx(1e3 * (read + gates + 2e-6 + 20e-6))
    assert most == "reading"


def test_a_run_prints_every_limit_and_the_cases():
    done = subprocess.run(
        [sys.executable, SCRIPT, "--rounds", "1", "--cases", "B1 I64", "B1 I256"],
        env=os.environ | {"NUMBA_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    for word in (
        "tile",
        "NumPy's product",
        "reading",
        "gates",
        "packing",
        "handing over",
        "Python",
    ):
        assert any(line.startswith(word) for line in done.stdout.splitlines()), word
    rows = [line.split() for line in done.stdout.splitlines() if line.startswith("T100 ")]
    assert [row[2] for row in rows] == ["I64", "I256", "I64", "I256", "I256"]
    assert all(float(row[4]) > 0 and float(row[5]) > 0 for row in rows)
