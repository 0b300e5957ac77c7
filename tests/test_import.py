"""Importing the package is cheap and complete: nothing optional is loaded, every name is there."""

import importlib
import json
import subprocess
import sys
from types import ModuleType

import pytest

import cupy_lstm

OPTIONAL = [
    "cupy",
    "dask",
    "jax",
    "matplotlib",
    "numba",
    "nvtx",
    "onnx",
    "pandas",
    "pyarrow",
    "safetensors",
    "scipy",
    "sklearn",
    "statsmodels",
    "torch",
    "tqdm",
    "zarr",
]


def test_import_loads_nothing_optional():
    code = "import json, sys, cupy_lstm; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    loaded = {name.split(".")[0] for name in json.loads(done.stdout)}
    assert {"cupy_lstm", "numpy"} <= loaded
    assert not loaded & set(OPTIONAL)


def test_the_bridge_without_pytorch_is_a_sentence():
    code = "import sys; sys.modules['torch'] = None; import cupy_lstm; import cupy_lstm.torch"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(
        "ImportError: cupy_lstm.torch needs PyTorch 2.4 or later (https://pytorch.org): importing "
        "it failed with: "
    )


def test_the_estimators_without_scikit_learn_are_a_sentence():
    code = "import sys; sys.modules['sklearn'] = None; import cupy_lstm.estimators"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(
        "ImportError: cupy_lstm.estimators needs sklearn: pip install 'cupy_lstm[sklearn]'; "
    )


def test_the_bridge_with_an_old_pytorch_is_a_sentence(monkeypatch):
    old = ModuleType("torch")
    old.__version__ = "2.3.1"
    monkeypatch.setitem(sys.modules, "torch", old)
    for name in [name for name in sys.modules if name.startswith("cupy_lstm.torch")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ImportError) as caught:
        importlib.import_module("cupy_lstm.torch")
    assert str(caught.value) == (
        "cupy_lstm.torch needs PyTorch 2.4 or later (https://pytorch.org), found 2.3.1"
    )


def test_public_names_are_unique_and_there():
    assert cupy_lstm.__all__
    assert len(set(cupy_lstm.__all__)) == len(cupy_lstm.__all__)
    for name in cupy_lstm.__all__:
        assert getattr(cupy_lstm, name) is not None, name


@pytest.mark.parametrize("name", ["LSTM", "LSTMCell", "RNN", "BiRNN", "no_grad", "engine"])
def test_the_face_is_public(name):
    assert name in cupy_lstm.__all__


def test_star_import_brings_exactly_the_public_names():
    names = {}
    exec("from cupy_lstm import *", names)
    assert set(names) - {"__builtins__"} == set(cupy_lstm.__all__)
