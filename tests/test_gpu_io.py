"""Files and weights of LSTMs on CuPy arrays: through the host and back, in every dtype."""

import numpy as np
import pytest
from face import raised
from gpu_cases import HALF, each_dtype
from interop_files import Stored, same_weights

from cupy_lstm import LSTM
from cupy_lstm.io import from_onnx, from_torch, load, save, to_keras, to_onnx, to_paddle
from cupy_lstm.io.torch_weights import torch_state

pytestmark = pytest.mark.gpu_on_cpu


def on_host(lstm):
    return {name: w.get() for name, w in lstm.state_dict().items()}


def equal(first, second):
    return first.keys() == second.keys() and all(
        first[name].dtype == second[name].dtype and first[name].tobytes() == second[name].tobytes()
        for name in first
    )


@each_dtype
def test_a_file_comes_back(cupy, tmp_path, dtype):
    lstm = LSTM(3, 4, 2, "bidirect", proj_size=2, dtype=dtype, xp="cupy", seed=0)
    save(lstm, tmp_path / "lstm")
    twin = load(tmp_path / "lstm", xp=cupy)
    assert isinstance(twin.weight_ih_l0.data, cupy.ndarray)
    assert equal(on_host(twin), on_host(lstm))
    wide = load(tmp_path / "lstm", dtype="float64")  # every value of the others is one of these
    assert all(np.array_equal(p.data, on_host(lstm)[n]) for n, p in wide.named_parameters())
    if dtype in HALF:
        text = raised(ValueError, lambda: load(tmp_path / "lstm"))
        assert f"dtype {dtype}, but an LSTM on numpy has one of ('float32', 'float64')" in text


@each_dtype
def test_weights_of_torch(cupy, dtype):
    weights = Stored("torch_bi2").weights
    lstm = from_torch(weights, xp="cupy", dtype=dtype)
    assert isinstance(lstm.weight_hh_l1.data, cupy.ndarray)
    found = torch_state(lstm)
    assert all(np.array_equal(found[n], w.astype(found[n].dtype)) for n, w in weights.items())
    assert equal(on_host(from_torch(found, xp="cupy")), on_host(lstm))


def test_onnx(cupy, tmp_path):
    lstm = LSTM(3, 4, 2, xp="cupy", seed=0)
    to_onnx(lstm, tmp_path / "model.onnx")
    assert same_weights(from_onnx(tmp_path / "model.onnx"), LSTM(3, 4, 2, seed=0))
    assert equal(on_host(from_onnx(tmp_path / "model.onnx", xp=cupy)), on_host(lstm))


@pytest.mark.parametrize("dtype", HALF)
def test_half_types_that_others_have_not(cupy, tmp_path, dtype):
    lstm = LSTM(3, 4, dtype=dtype, xp="cupy")
    for call in (to_paddle, to_keras, lambda lstm: to_onnx(lstm, tmp_path / "model.onnx")):
        text = raised(ValueError, lambda call=call: call(lstm))
        assert text.startswith(f"lstm has dtype {dtype}, but ")
        assert text.endswith("convert a copy of it with .to(dtype='float32')")
    assert not list(tmp_path.iterdir())
