"""Importing the package is cheap and complete: nothing optional is loaded, every name is there."""

import json
import subprocess
import sys

import pytest

import cupy_lstm

OPTIONAL = [
    "cupy",
    "jax",
    "matplotlib",
    "numba",
    "nvtx",
    "onnx",
    "pandas",
    "pyarrow",
    "safetensors",
    "scipy",
    "statsmodels",
    "torch",
    "tqdm",
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
        "ImportError: cupy_lstm.torch needs PyTorch (https://pytorch.org): importing it failed "
        "with: "
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
