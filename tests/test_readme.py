"""The README is true: its examples run."""

import re
from pathlib import Path

import numpy as np
import pytest

README = (Path(__file__).resolve().parent.parent / "README.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def run(example):
    names = {}
    exec(example, names)
    return names


def test_the_first_example():
    names = run(EXAMPLES[0])
    assert names["y"].shape == (4, 23, 32)
    assert names["dx"].shape == names["x"].shape
    assert names["lstm"].weight_ih_l0.grad.any()


@pytest.mark.gpu_on_cpu
def test_the_first_example_on_cupy(cupy, monkeypatch):
    """As its first comment says. CuPy's generators come compiled for GPUs: the host draws here."""

    class Drawn:
        def __init__(self, seed):
            self.generator = np.random.default_rng(seed)

        def standard_normal(self, shape):
            return cupy.asarray(self.generator.standard_normal(shape))

    monkeypatch.setattr(cupy.random, "default_rng", Drawn)
    line = "import numpy as xp  # or: import cupy as xp\n"
    assert EXAMPLES[0].count(line) == 1
    seeded = EXAMPLES[0].replace("xp=xp)", "xp=xp, seed=0)")
    found, expected = run(seeded.replace(line, "import cupy as xp\n")), run(seeded)
    assert found["lstm"].weight_ih_l0.data.device == cupy.cuda.Device()
    for name in ("x", "y", "h", "c", "dx", "dh0", "dc0"):
        assert isinstance(found[name], cupy.ndarray), name
        assert found[name].shape == expected[name].shape
        near = 64 * 2**-23 * abs(expected[name]).max()
        assert abs(found[name].get() - expected[name]).max() <= near, name


def test_the_training_example_learns():
    names = run(EXAMPLES[1])
    assert names["history"].loss[-1] < 1e-3 < names["history"].loss[0]


def test_the_streaming_example_goes_on_where_it_stopped():
    names = run(EXAMPLES[2])
    x, y, other = names["x"], names["y"], names["lstm"].stream(4)
    assert y.shape == (4, 22, 32)
    assert not (other(x[:, 1:]) == y).all()
    other.reset()
    other(x[:, 0])
    assert (other(x[:, 1:]) == y).all()
    assert (names["h"] == other.state[0]).all()
    assert [bool(row.any()) for row in names["stream"].state[1][0]] == [True, True, False, True]


def test_the_examples_of_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = run(EXAMPLES[3])
    assert {path.name for path in tmp_path.iterdir()} == {"lstm.safetensors", "lstm.onnx"}
    assert repr(names["lstm"]) == "LSTM(16, 32, direction='bidirectional', num_layers=2)"


def test_the_example_of_torch():
    pytest.importorskip("torch", reason="torch is not installed: its example is not run")
    names = run(EXAMPLES[4])
    assert (names["lstm"].num_directions, names["lstm"].time_major) == (2, False)
    assert names["module"].bidirectional


@pytest.mark.filterwarnings("ignore")  # PyTorch's are not ours to fix
def test_the_example_of_the_bridge():
    pytest.importorskip("torch", reason="torch is not installed: the bridge is not tried")
    names = run(next(example for example in EXAMPLES if "cupy_lstm.torch" in example))
    assert names["y"].shape == (4, 23, 32)
    assert names["lstm"].weight_hh_l1.grad.any()


def test_there_is_no_example_that_nobody_runs():
    assert len(EXAMPLES) == 6  # each has a test above


@pytest.mark.parametrize("name", re.findall(r"`cupy_lstm\.(\w+)`", README))
def test_names_exist(name):
    import importlib

    assert importlib.import_module(f"cupy_lstm.{name}")


def test_figures_of_the_forecast_are_those_of_a_run(tmp_path, capsys):
    pytest.importorskip("statsmodels", reason="statsmodels is not installed: no built-in series")
    from cupy_lstm.__main__ import main

    assert main(["forecast", "--out", str(tmp_path), "--xp", "numpy"]) == 0
    printed = {
        line.rsplit(None, 3)[0].strip(): line.rsplit(None, 3)[1:]
        for line in capsys.readouterr().out.splitlines()
        if line.endswith("%")
    }
    claimed = re.search(r"```text\n +MAE +RMSE +skill\n(.*?)```", README, re.DOTALL)[1]
    rows = {line[:22].strip(): line[22:].split() for line in claimed.splitlines()}
    assert rows.keys() == printed.keys()
    for name, (mae, rmse, _) in rows.items():
        if name != "LSTM":
            assert [mae, rmse] == printed[name][:2]
    # Training amplifies the last bits, in which machines differ: what holds is who is better.
    assert float(printed["LSTM"][0]) < min(
        float(printed[name][0]) for name in rows if name != "LSTM"
    )
