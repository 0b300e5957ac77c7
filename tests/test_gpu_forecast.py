"""The forecast command on CuPy arrays, from end to end."""

import pandas
import pytest
from forecasting import FILES, SMALL, Bench, Outcome, table
from gpu_on_cpu import record

from cupy_lstm.__main__ import main
from cupy_lstm.forecast import device

pytestmark = pytest.mark.gpu_on_cpu


@pytest.fixture
def bench(tmp_path, capsys):
    return Bench(tmp_path, capsys)


def run(bench, xp, *options, out=None):
    """Run the command on a module; return its folder and its outcome."""
    data, out = bench.write(table()), bench.folder / (out or xp)
    bench.capsys.readouterr()
    chosen = ["--xp", xp, "--out", out, "--data", data, "--time", "date", "--target", "load"]
    code = main(["forecast", *map(str, [*options, *chosen])])
    return out, Outcome(code, *bench.capsys.readouterr())


def assert_same_forecast(first, second):
    """Both sides differ by rounding: far less than anybody can see beside the interval."""
    first, second = (pandas.read_csv(folder / "forecast.csv") for folder in (first, second))
    numbers = ["forecast", "lower", "upper"]
    assert first.drop(columns=numbers).equals(second.drop(columns=numbers))
    width = (first["upper"] - first["lower"]).max()
    assert width > 0
    assert (first[numbers].isna() == second[numbers].isna()).all(axis=None)
    assert (first[numbers] - second[numbers]).abs().max(axis=None) <= 1e-3 * width


def test_a_run_on_the_gpu_is_a_run_on_the_host(cupy, bench):
    with record() as log:
        ours, outcome = run(bench, "cupy", *SMALL)
    assert outcome.code == 0, outcome.err
    assert "on CuPy on A100 on a CPU, compute capability 8.0" in outcome.out
    assert [e for e in log.launches if e.name.startswith("gates_backward")]
    assert {path.name for path in ours.iterdir()} == FILES
    theirs, outcome = run(bench, "numpy", *SMALL)
    assert outcome.code == 0
    assert_same_forecast(ours, theirs)


def test_a_saved_model_loads_on_either_side(cupy, bench):
    trained, outcome = run(bench, "cupy", *SMALL, "--quiet")
    assert outcome == Outcome(0, "", "")
    folders = [
        run(bench, xp, "--predict", trained / "model.safetensors", "--quiet", out=f"{xp} again")[0]
        for xp in ("cupy", "numpy")
    ]
    assert_same_forecast(*folders)


def test_the_gpu_is_chosen_where_there_is_one(cupy):
    module, place = device.choose_module("auto")
    assert module == "cupy"
    assert place.startswith("CuPy on A100 on a CPU, compute capability 8.0")
