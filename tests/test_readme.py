"""What the README and the page of the forecast promise, beyond that their examples run."""

import re
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
FORECAST = (ROOT / "docs/forecast-command.md").read_text(encoding="utf-8")
(EXAMPLE,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def run(example):
    names = {}
    exec(example, names)
    return names


def test_the_example():
    names = run(EXAMPLE)
    assert names["y"].shape == (4, 23, 32)
    assert names["dx"].shape == names["x"].shape
    assert names["lstm"].weight_ih_l0.grad.any()


@pytest.mark.gpu_on_cpu
def test_the_example_on_cupy(cupy, monkeypatch):
    """As its first comment says. CuPy's generators come compiled for GPUs: the host draws here."""

    class Drawn:
        def __init__(self, seed):
            self.generator = np.random.default_rng(seed)

        def standard_normal(self, shape):
            return cupy.asarray(self.generator.standard_normal(shape))

    monkeypatch.setattr(cupy.random, "default_rng", Drawn)
    line = "import numpy as xp  # or: import cupy as xp\n"
    assert EXAMPLE.count(line) == 1
    seeded = EXAMPLE.replace("xp=xp)", "xp=xp, seed=0)")
    found, expected = run(seeded.replace(line, "import cupy as xp\n")), run(seeded)
    assert found["lstm"].weight_ih_l0.data.device == cupy.cuda.Device()
    for name in ("x", "y", "h", "c", "dx", "dh0", "dc0"):
        assert isinstance(found[name], cupy.ndarray), name
        assert found[name].shape == expected[name].shape
        near = 64 * 2**-23 * abs(expected[name]).max()
        assert abs(found[name].get() - expected[name]).max() <= near, name


def test_figures_of_the_forecast_are_those_of_a_run(tmp_path, capsys):
    pytest.importorskip("statsmodels", reason="statsmodels is not installed: no built-in series")
    from cupy_lstm.__main__ import main

    assert main(["forecast", "--out", str(tmp_path), "--xp", "numpy"]) == 0
    printed = {
        line.rsplit(None, 3)[0].strip(): line.rsplit(None, 3)[1:]
        for line in capsys.readouterr().out.splitlines()
        if line.endswith("%")
    }
    claimed = re.search(r"```text\n +MAE +RMSE +skill\n(.*?)```", FORECAST, re.DOTALL)[1]
    rows = {line[:22].strip(): line[22:].split() for line in claimed.splitlines()}
    assert rows.keys() == printed.keys()
    for name, (mae, rmse, _) in rows.items():
        if name != "LSTM":
            assert [mae, rmse] == printed[name][:2]
    # Training amplifies the last bits, in which machines differ: what holds is who is better.
    assert float(printed["LSTM"][0]) < min(
        float(printed[name][0]) for name in rows if name != "LSTM"
    )
