"""`profiling/bench_gpu.py` on the test bed: everything but the time itself."""

# ruff: noqa: E402 - the modules of the scripts are on no path

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from gpu_on_cpu import profile, record

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "profiling"))

import bench_gpu
from gpu.check import Check, made_arrays, naive, truth
from gpu.rows import read_csv

DTYPES = ("float32", "float16", "bfloat16")


def test_without_a_gpu_it_says_so_and_ends():
    hidden = "import sys; sys.modules['cupy'] = None; sys.argv = ['bench_gpu.py']; "
    path = ROOT / "profiling" / "bench_gpu.py"
    run = f"import runpy; sys.path.insert(0, {str(path.parent)!r}); "
    run += f"runpy.run_path({str(path)!r}, run_name='__main__')"
    found = subprocess.run(
        [sys.executable, "-c", hidden + run], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert found.returncode == 1
    assert found.stderr.startswith("There is no GPU to measure (")
    assert found.stderr.endswith("; the model needs none: python profiling/model.py\n")


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_check_lets_its_own_loop_pass_and_no_worse(dtype):
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes")
    arrays = made_arrays(9, 5, 4, 6, dtype)
    check = Check(arrays, dtype)
    right = naive({**arrays, "dy": check.dy}, dtype)
    assert check.found_wrong(right) == []
    for name, result in right.items():
        wrong = result.copy()
        wrong[0] += 0.2 * abs(result).max()
        found = check.found_wrong({name: wrong})
        assert found[-1].startswith(f"{name}: error ")
        assert len(found) == 1 + (name == "dx")  # zero in rows that are not checked
        assert check.found_wrong({name: result * np.nan})


def test_the_loop_is_the_truth_up_to_rounding():
    arrays = made_arrays(9, 5, 4, 6, "float32")
    expected, found = truth(arrays), naive(arrays, "float32")
    assert found.keys() == expected.keys()
    for name, result in found.items():
        assert abs(result - expected[name]).max() < 1e-5 * abs(expected[name]).max(), name


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_pytorch_gets_the_same_weights_and_keeps_the_rule(dtype):
    torch = pytest.importorskip("torch")
    arrays = made_arrays(9, 5, 4, 6, dtype)
    calls, results = bench_gpu.peer(torch, arrays, dtype, place="cpu")
    check = Check(arrays, dtype)
    assert calls.keys() == set(bench_gpu.PASSES)
    assert calls["forward"]().shape == (9, 5, 6)
    if dtype == "float32":  # what a CPU rounds for bfloat16 is its own affair
        assert check.found_wrong(results(check.dy)) == []


@pytest.fixture(autouse=True)
def few_steps(monkeypatch):
    """The layer on which tiers are checked, as small as fills more than one tile."""
    monkeypatch.setattr(bench_gpu, "CHECKED", (3, 9, 8, 24))


@pytest.fixture
def timed(monkeypatch):
    """The calls that were made, and no clock: a millisecond each."""
    calls = []

    def seconds(cupy, call, options):
        calls.append(call())
        return 1e-3

    monkeypatch.setattr(bench_gpu, "seconds", seconds)
    monkeypatch.setenv("CUPY_TF32", "0")  # the script sets it, and it shall not stay
    return calls


SMALL = ["--batch", "3", "--hidden", "8", "560", "--steps", "10"]


@pytest.mark.gpu_on_cpu
def test_it_checks_measures_and_draws(cupy, timed, tmp_path, capsys):
    dtypes = "float32", "bfloat16"
    options = [*SMALL, "--dtype", *dtypes, "--out", str(tmp_path)]
    with profile("LAPTOP"):
        assert bench_gpu.main(options) == 0
    text = capsys.readouterr().out
    assert text.startswith("RTX 3050 Laptop on a CPU, compute capability 8.6, ")
    for dtype in dtypes:
        assert f"checked in {dtype}: block, grid tier" in text
    assert "TF32 off" in text
    rows = read_csv(tmp_path / "bench_gpu.csv")
    assert len(rows) == len(timed) == 2 * 2 * 2
    assert {row.kind for row in rows} == {"measured"}
    assert {row.us for row in rows} == {100.0}  # a millisecond over ten steps
    assert {(row.H, row.engine) for row in rows} == {(8, "persistent"), (560, "stepwise")}
    assert (tmp_path / "bench_gpu.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.gpu_on_cpu
def test_an_engine_that_cannot_serve_is_left_out(cupy, timed, tmp_path, capsys):
    options = ["--dtype", "float32", "--engines", "persistent", "stepwise", "--out", str(tmp_path)]
    with profile("LAPTOP"):
        assert bench_gpu.main(SMALL + options) == 0
    assert "left out: the engine 'persistent' cannot serve this call" in capsys.readouterr().out
    rows = read_csv(tmp_path / "bench_gpu.csv")
    found = {(row.H, row.what, row.engine) for row in rows}
    assert found == {
        (8, "cupy_lstm, persistent", "persistent"),
        (8, "cupy_lstm, stepwise", "stepwise"),
        (560, "cupy_lstm, stepwise", "stepwise"),
    }


@pytest.mark.gpu_on_cpu
def test_what_is_wrong_is_not_timed(cupy, timed, tmp_path, capsys, monkeypatch):
    ours = bench_gpu.ours

    def broken(*arguments):
        calls, results = ours(*arguments)
        return calls, lambda dy: {name: 1.5 * array for name, array in results(dy).items()}

    monkeypatch.setattr(bench_gpu, "ours", broken)
    options = ["--batch", "3", "--hidden", "8", "--dtype", "float32", "--out", str(tmp_path)]
    assert bench_gpu.main(options) == 1
    text = capsys.readouterr().out
    assert "WRONG, not timed: float32, B = 3, H = 8, cupy_lstm: y: error" in text
    assert "WRONG: float32, block tier: y: error" in text
    assert "WRONG: float32, grid tier: y: error" in text
    assert timed == []
    assert not list(tmp_path.iterdir())


@pytest.mark.gpu_on_cpu
def test_every_tier_of_a_card_is_checked(cupy, monkeypatch, capsys):
    names = []
    ours = bench_gpu.ours

    def seen(*arguments):
        calls, results = ours(*arguments)

        def recorded(dy):
            with record() as log:
                found = results(dy)
            names.append({one.name for one in log.launches if "recurrence" in one.name})
            return found

        return calls, recorded

    monkeypatch.setattr(bench_gpu, "ours", seen)
    options = bench_gpu.parsed_options(["--dtype", "float16"])
    with profile("H100"):
        assert list(bench_gpu.wrong_tiers(cupy, options)) == []
    assert "checked in float16: block, cluster, grid tier" in capsys.readouterr().out
    assert ["TensorProduct" in str(one) for one in names] == [False, True, True]


@pytest.mark.gpu_on_cpu
@pytest.mark.parametrize("tf32", [False, True])
def test_tf32_is_the_same_for_all(cupy, timed, tmp_path, monkeypatch, tf32):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    found = bench_gpu.found_torch(tf32)
    assert found is torch
    assert torch.backends.cudnn.allow_tf32 == torch.backends.cuda.matmul.allow_tf32 == tf32
    monkeypatch.setattr(bench_gpu, "found_torch", lambda tf32: None)
    options = ["--batch", "1", "--hidden", "4", "--steps", "2", "--dtype", "float16"]
    bench_gpu.main([*options, "--out", str(tmp_path), *(["--tf32"] if tf32 else [])])
    assert bench_gpu.os.environ["CUPY_TF32"] == ("1" if tf32 else "0")
