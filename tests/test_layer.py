"""The base of all layers: members, reading and guarding parameters, where they live."""

import sys
import types

import numpy as np
import pytest

from cupy_lstm import LSTM, Layer, Linear, no_grad
from cupy_lstm.backend import require_device


class Stack(Layer):
    """Layers in every kind of place."""

    def __init__(self):
        super().__init__()
        self.rnns = [LSTM(2, 3, seed=0), LSTM(3, 3, seed=1)]
        self.heads = {"mean": Linear(3, 1, seed=2), "spread": (Linear(3, 1, seed=3),)}
        self._private = Linear(1, 1, seed=4)


def test_layers_in_lists_tuples_and_dicts_belong_to_the_layer():
    stack = Stack()
    names = [name for name, _ in stack.named_parameters()]
    assert names == [
        *(
            f"rnns.{index}.{kind}_l0"
            for index in (0, 1)
            for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        ),
        "heads.mean.weight",
        "heads.mean.bias",
        "heads.spread.0.weight",
        "heads.spread.0.bias",
    ]
    stack.eval()
    assert not any(layer.training for layer in (*stack.rnns, stack.heads["mean"]))
    stack.to(dtype="float64")
    assert stack.heads["spread"][0].weight.dtype == np.float64 == stack.rnns[1].dtype
    missing, unexpected = stack.set_state_dict({"rnns.1.0.cell.bias_hh": np.ones(12)})
    assert stack.rnns[1].bias_hh_l0.data.min() == 1 and not unexpected
    assert "rnns.1.bias_hh_l0" not in missing


def test_a_layer_without_its_base_s_constructor_has_the_defaults():
    class Forgetful(Layer):
        def __init__(self):
            self.head = Linear(1, 1, dtype="float64")

    layer = Forgetful().train().to(dtype="float64")
    assert layer.training and layer.head.dtype == np.float64


def test_parameters_cannot_be_deleted():
    lstm = LSTM(2, 3)
    with pytest.raises(TypeError, match=r"^weight_ih_l0 is a parameter and cannot be deleted$"):
        del lstm.weight_ih_l0
    assert lstm.weight_ih_l0 in lstm.parameters()


def test_numpy_reads_a_parameter():
    weight = LSTM(2, 3).weight_ih_l0
    copy = np.asarray(weight)
    assert np.array_equal(copy, weight.data)
    copy[...] = 0
    assert weight.data.any()
    assert np.asarray(weight, "float64").dtype == np.float64


class Tensor:
    """What another library's array looks like to NumPy."""

    def __init__(self, values):
        self.values = values

    def __array__(self, dtype=None, copy=None):
        return self.values


def test_weights_come_from_anything_that_numpy_reads():
    source, target = LSTM(2, 3, seed=0), LSTM(2, 3, seed=1)
    target.set_state_dict({name: Tensor(value) for name, value in source.state_dict().items()})
    for name, value in source.state_dict().items():
        assert np.array_equal(target.state_dict()[name], value)
    with pytest.raises(ValueError, match=r"weight_ih_l0 has shape \[12, 2\], received shape \[3\]"):
        target.set_state_dict({"weight_ih_l0": Tensor(np.ones(3, "float32"))})


@pytest.mark.parametrize("kind", [np.ma.masked_array, np.matrix])
@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")
def test_arrays_with_another_arithmetic_are_refused(kind):
    inputs = kind(np.zeros((2, 2), "float32"))
    with pytest.raises(
        TypeError, match=rf"x must be an array of numpy, received {type(inputs).__name__}"
    ):
        Linear(2, 3)(inputs)


def module_with(count):
    cupy = types.ModuleType("cupy")
    cupy.cuda = types.SimpleNamespace(runtime=types.SimpleNamespace(getDeviceCount=count))
    return cupy


def no_driver():
    raise OSError("CUDA driver version is insufficient")


@pytest.mark.parametrize(
    ("count", "message"),
    [
        (no_driver, "needs a GPU and its driver: CUDA driver version is insufficient"),
        (lambda: 0, "needs a GPU, but the driver finds none"),
    ],
)
def test_cupy_without_a_gpu(monkeypatch, count, message):
    monkeypatch.setitem(sys.modules, "cupy", module_with(count))
    with pytest.raises(RuntimeError, match=message):
        require_device("cupy")


def test_cupy_that_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    linear = Linear(2, 3)
    with pytest.raises(
        ImportError, match=r"^xp='cupy' needs CuPy: pip install 'cupy_lstm\[cuda12x\]'"
    ):
        linear.to("cupy")
    assert linear.xp is np


@pytest.mark.parametrize("record", [True, False])
def test_a_weight_that_moved_alone_is_an_error(record):
    """Two layers share it, and one of them was moved."""
    lstm, x = LSTM(2, 3), np.zeros((1, 4, 2), "float32")

    def call():
        if record:
            return lstm(x)
        with no_grad():
            return lstm(x)

    call()
    tied = Layer()
    tied.weight = lstm.weight_hh_l0
    tied.to(dtype="float64")
    for _ in range(2):
        with pytest.raises(ValueError, match=r"weights\[0\]\.weight_hh has dtype float64, "):
            call()
    tied.to(dtype="float32")
    call()
