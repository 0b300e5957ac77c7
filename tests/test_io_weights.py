"""Weights of PyTorch, Paddle and Keras, from files that they wrote: no library is needed here."""

import sys

import numpy as np
import pytest
from cases import build, make_lstm
from face import CONFIGURATIONS, raised
from interop_files import FOLDER, Stored, same_weights

from cupy_lstm import LSTM
from cupy_lstm.io import (
    from_keras,
    from_paddle,
    from_torch,
    load_state_dict,
    to_keras,
    to_paddle,
    to_torch,
)
from cupy_lstm.io.keras_weights import keras_arrays
from cupy_lstm.io.paddle_weights import paddle_state
from cupy_lstm.io.torch_weights import torch_state

each_configuration = pytest.mark.parametrize(
    "case", CONFIGURATIONS, ids=lambda c: f"{c.L}{c.P}{c.D}{c.bias_ih}{c.bias_hh}"
)


def lstm_of(case, dtype="float32"):
    return make_lstm(case, build(case, dtype).weights, dtype)


def with_both_biases(lstm):
    """Return the same function with an absent bias as zeros, where the other one is there."""
    twin = LSTM(
        lstm.input_size, lstm.hidden_size, lstm.num_layers,
        ("forward", "bidirect")[lstm.num_directions - 1], proj_size=lstm.proj_size,
    )  # fmt: skip
    for p in twin.parameters():
        p.set_value(np.zeros(p.shape, p.dtype))
    if lstm.bias_ih_l0 is lstm.bias_hh_l0 is None:
        return lstm
    twin.set_state_dict(lstm.state_dict())
    return twin


# --- PyTorch -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["torch_bi2", "torch_projection", "torch_no_bias"])
def test_from_torch(name):
    stored = Stored(name)
    lstm = from_torch(stored.weights)
    assert not lstm.time_major  # a state dict does not know the layout
    lstm.time_major = stored.x.shape[1] == 2
    stored.assert_given_by(lstm)
    back = torch_state(lstm)
    assert list(back) == list(stored.weights)
    assert all(np.array_equal(back[key], array) for key, array in stored.weights.items())


def test_from_a_safetensors_file_of_torch():
    state = load_state_dict(FOLDER / "torch_bi2.safetensors")
    assert same_weights(from_torch(state), from_torch(Stored("torch_bi2").weights))


def test_out_of_a_larger_model():
    weights = Stored("torch_bi2").weights
    state = {f"net.rnn.{name}": w for name, w in weights.items()} | {"net.head.weight": np.ones(3)}
    assert same_weights(from_torch(state, prefix="net.rnn."), from_torch(weights))
    assert "'net.rnn.weight_ih_l0' is the name of no weight" in raised(
        ValueError, lambda: from_torch({k: w for k, w in state.items() if "rnn" in k})
    )
    text = raised(ValueError, lambda: from_torch(state, prefix="net."))
    assert text.startswith("state dict of torch, names with 'net.': ")
    assert "it holds no weight" in raised(ValueError, lambda: from_torch(state, prefix="x"))


@each_configuration
def test_torch_and_back(case):
    lstm = lstm_of(case)
    assert same_weights(from_torch(torch_state(lstm)), with_both_biases(lstm))


class Module:
    """What a module of PyTorch, with tensors on the CPU, looks like from outside."""

    batch_first, time_major, dropout, training = False, True, 0.25, True

    def __init__(self, weights, **changes):
        self.weights = weights
        vars(self).update(changes)

    def state_dict(self):
        return {name: Tensor(w) for name, w in self.weights.items()}


class Wrapper:
    """A larger module, whose own attributes have the names of those of an LSTM."""

    batch_first = time_major = 7
    training = True

    def __init__(self, inner, **changes):
        self.net = type("Net", (), {"rnn": inner})()
        vars(self).update(changes)

    def state_dict(self):
        return {f"net.rnn.{name}": w for name, w in self.net.rnn.state_dict().items()}


class Tensor:
    def __init__(self, array, steps=()):
        self.array, self.steps = array, steps
        self.dtype = array.dtype

    def detach(self):
        return Tensor(self.array, (*self.steps, "detach"))

    def cpu(self):
        return Tensor(self.array, (*self.steps, "cpu"))

    def numpy(self):
        assert self.steps == ("detach", "cpu")
        return self.array


def test_from_a_module():
    weights = Stored("torch_bi2").weights
    lstm = from_torch(Module(weights))
    assert (lstm.time_major, lstm.dropout) == (True, 0.25)
    assert same_weights(lstm, from_torch(weights))


SOURCES = pytest.mark.parametrize(
    ("source", "name"), [(from_torch, "torch_bi2"), (from_paddle, "paddle_bi2")]
)


@SOURCES
@pytest.mark.parametrize("changes", [{"dropout": [0.5]}, {}], ids=["a dropout of its own", ""])
def test_from_a_module_inside_another_one(source, name, changes):
    """Layout, dropout and mode are those of the LSTM, whatever is around it has."""
    weights = Stored(name).weights
    inner = Module(weights, training=False)
    lstm = source(Wrapper(inner, **changes), prefix="net.rnn.")
    assert (lstm.time_major, lstm.dropout, lstm.training) == (True, 0.25, False)
    assert same_weights(lstm, source(weights))
    text = raised(ValueError, lambda: source(Wrapper(inner), prefix="net.gone."))
    assert "it holds no weight of an LSTM" in text
    lstm = source(Module(weights, dropout=[0.5], batch_first=None, time_major=None))
    assert (lstm.time_major, lstm.dropout) == (False, 0.0)  # no LSTM as it is known


@SOURCES
def test_the_mode_goes_over(source, name):
    weights = Stored(name).weights
    for training in (True, False):
        assert source(Module(weights, training=training)).training is training
    assert source(weights).training


# --- Paddle --------------------------------------------------------------------------------------


def is_by_cell(name):
    return "." in name


@pytest.mark.parametrize("name", ["paddle_bi2", "paddle_projection"])
def test_from_paddle(name):
    stored = Stored(name)
    lstm = from_paddle(stored.weights)
    stored.assert_given_by(lstm)
    assert not lstm.time_major
    by_cell = {key: w for key, w in stored.weights.items() if is_by_cell(key)}
    back = paddle_state(lstm)
    assert back.keys() == by_cell.keys()
    assert all(np.array_equal(back[key], array) for key, array in by_cell.items())
    assert same_weights(from_paddle(by_cell), lstm)


def test_flat_names_of_paddle():
    weights = Stored("paddle_bi2").weights
    flat = {key: w for key, w in weights.items() if not is_by_cell(key)}
    assert same_weights(from_paddle(flat), from_paddle(weights))


def test_shifted_names_of_a_projection():
    """As `named_parameters` gives them: each weight once, under the first name it got."""
    stored = Stored("paddle_projection")
    flat = {key: w for key, w in stored.weights.items() if not is_by_cell(key)}
    assert flat["weight_ih_l0_reverse"].shape == (4, 2)  # the projection of the cell before
    rest = ("weight_hh", "bias_ih", "bias_hh", "weight_ho")  # the last of twenty; flat are sixteen
    named = flat | {f"1.cell_bw.{kind}": stored.weights[f"1.cell_bw.{kind}"] for kind in rest}
    lstm = from_paddle(named)
    stored.assert_given_by(lstm)
    assert "weight_hh_l1_reverse is missing" in raised(ValueError, lambda: from_paddle(flat))


@pytest.mark.parametrize("absent", ["bias_ih", "bias_hh"])
def test_shifted_names_of_an_absent_bias(absent):
    """Three names a cell are given out, over four weights: the absent bias stays, as zeros."""
    lstm = with_both_biases(LSTM(3, 4, 2, **{f"{absent}_attr": False}))
    state = paddle_state(lstm)
    kinds = [kind for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh") if kind != absent]
    names = [f"{kind}_l{layer}" for layer in range(2) for kind in kinds]
    named = dict(zip(names, state.values(), strict=False))
    named |= {name: state[name] for name in ("1.cell.bias_ih", "1.cell.bias_hh")}
    assert named["weight_ih_l1"].shape == (16,)
    assert same_weights(from_paddle(named), lstm)


@each_configuration
def test_paddle_and_back(case):
    lstm = lstm_of(case)
    assert same_weights(from_paddle(paddle_state(lstm)), with_both_biases(lstm))


def test_names_by_cell_win():
    weights = Stored("paddle_bi2").weights
    wrong = {key: w if is_by_cell(key) else w + 1 for key, w in weights.items()}
    assert same_weights(from_paddle(wrong), from_paddle(weights))


# --- Keras ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["keras_bi2", "keras_no_bias"])
def test_from_keras(name):
    stored = Stored(name)
    lstm = from_keras(stored.layers())
    stored.assert_given_by(lstm)
    assert lstm.bias_hh_l0 is None
    assert (lstm.bias_ih_l0 is None) is (name == "keras_no_bias")
    for found, expected in zip(keras_arrays(lstm), stored.layers(), strict=True):
        assert all(map(np.array_equal, found, expected))


@pytest.mark.parametrize("case", [case for case in CONFIGURATIONS if not case.P], ids=str)
def test_keras_and_back(case):
    lstm = lstm_of(case)
    back = from_keras(keras_arrays(lstm))
    biases = {k.replace("ih", "hh"): a for k, a in back.state_dict().items() if "bias" in k}
    for name, array in lstm.state_dict().items():
        if name in biases and case.bias_ih:
            array = array + lstm.state_dict()[name.replace("hh", "ih")]
        assert "bias_ih" in name or np.array_equal(array, (back.state_dict() | biases)[name])


# --- both ways in common -------------------------------------------------------------------------


def test_the_source_is_copied():
    weights = {name: w.copy() for name, w in Stored("torch_bi2").weights.items()}
    lstm = from_torch(weights)
    for array in weights.values():
        array[...] = 7
    assert same_weights(lstm, from_torch(Stored("torch_bi2").weights))


def test_weights_are_converted_if_asked():
    weights = Stored("torch_bi2").weights
    assert from_torch(weights, dtype="float64").dtype == np.float64
    assert from_torch({k: w.astype("f8") for k, w in weights.items()}).dtype == np.float64
    half = {name: w.astype("f2") for name, w in weights.items()}
    assert from_torch(half, dtype="float32").weight_ih_l0.dtype == np.float32
    text = raised(ValueError, lambda: from_torch(half))
    assert "dtype float16, but an LSTM on numpy has one of" in text
    assert text.endswith("convert them, for example with dtype='float32'")
    mixed = weights | {"bias_ih_l0": weights["bias_ih_l0"].astype("f8")}
    assert "dtype float32 and float64" in raised(ValueError, lambda: from_torch(mixed))
    assert from_torch(mixed, dtype="float64").dtype == np.float64


WEIGHTS = {
    "weight_ih_l0": np.zeros((16, 3), "f4"),
    "weight_hh_l0": np.zeros((16, 4), "f4"),
    "weight_ih_l1": np.zeros((16, 4), "f4"),
    "weight_hh_l1": np.zeros((16, 4), "f4"),
}
WRONG = {
    "nothing": ({}, "it holds no weight of an LSTM"),
    "missing": ({"weight_hh_l1": None}, "weight_hh_l1 is missing beside weight_ih_l0"),
    "a layer missing": ({"weight_hh_l5": np.zeros((16, 4), "f4")}, "weight_ih_l2 is missing"),
    "layers without end": (
        {"weight_hh_l999999999": np.zeros((16, 4), "f4")}, "weight_ih_l2 is missing",
    ),
    "one direction": (
        {"weight_ih_l0_reverse": np.zeros((16, 3), "f4")}, "weight_hh_l0_reverse is missing",
    ),
    "one bias": ({"bias_ih_l1": np.zeros(16, "f4")}, "bias_ih_l0 is missing"),
    "unknown": ({"scale_l0": np.zeros(16, "f4")}, "'scale_l0' is the name of no weight"),
    "wrong shape": (
        {"weight_hh_l1": np.zeros((16, 5), "f4")},
        "weight_hh_l1 has shape [16, 5], but must have shape [16, 4]",
    ),
    "no rows": ({"weight_ih_l0": np.zeros((0, 3), "f4")}, "has shape [0, 3], but must have two"),
    "rows no gates": ({"weight_ih_l0": np.zeros((15, 3), "f4")}, "weight_ih_l0 has shape [15, 3]"),
    "a vector": ({"weight_ih_l0": np.zeros(16, "f4")}, "weight_ih_l0 has shape [16]"),
    "a scalar": ({"weight_hh_l0": np.zeros((), "f4")}, "weight_hh_l0 has shape []"),
    "integers": ({"weight_hh_l1": np.zeros((16, 4), "i4")}, "weight_hh_l1 has dtype int32"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("source", [from_torch, from_paddle])
def test_wrong_weights(source, name):
    changes, words = WRONG[name]
    weights = {k: w for k, w in (WEIGHTS | changes).items() if w is not None} if changes else {}
    assert words in raised(ValueError, lambda: source(weights))


def test_what_is_no_source():
    for source in ("model.pt", 3, None, [1]):
        text = raised(TypeError, lambda source=source: from_torch(source))
        assert text.startswith("source must be a module or a mapping of names to tensors, received")
        raised(TypeError, lambda source=source: from_paddle(source))
    text = raised(TypeError, lambda: from_torch(WEIGHTS | {"weight_hh_l0": [1.0]}))
    assert text == "source['weight_hh_l0'] must be an array or a tensor, received list"
    text = raised(ValueError, lambda: from_torch({"weight": np.ones(3)}))
    assert text == "state dict of torch: 'weight' is the name of no weight of an LSTM"
    assert "at least one layer" in raised(ValueError, lambda: from_keras([]))
    assert "source[0] must have 2 or 3 weights" in raised(ValueError, lambda: from_keras([[1]]))
    assert "must be an LSTM of Keras" in raised(TypeError, lambda: from_keras(3))


class LSTMCell:
    """What the cell of a layer of Keras looks like from outside."""

    class Function:
        def __init__(self, name):
            self.__name__ = name

    def __init__(self, activation, recurrent):
        self.activation = self.Function(activation)
        self.recurrent_activation = self.Function(recurrent)


class KerasLayer:
    """What a layer of Keras looks like from outside."""

    def __init__(self, activation="tanh", recurrent="sigmoid", **changes):
        self.cell = LSTMCell(activation, recurrent)
        self.built = self.return_sequences = True
        self.go_backwards = False
        vars(self).update(changes)

    def get_weights(self):
        return [np.ones((3, 16), "f4"), np.ones((4, 16), "f4"), np.ones(16, "f4")]


class KerasPair(KerasLayer):
    def __init__(self, **changes):
        self.forward_layer, self.backward_layer = KerasLayer(), KerasLayer(go_backwards=True)
        self.merge_mode, self.built = "concat", True
        vars(self).update(changes)

    def get_weights(self):
        return 2 * super().get_weights()


def test_layers_of_keras():
    assert from_keras(KerasLayer()).num_directions == 1
    assert from_keras(KerasPair()).num_directions == 2
    assert from_keras([KerasLayer(return_sequences=False)]).input_size == 3


KERAS = {
    "another function": (KerasLayer("relu"), "activation='relu', but an LSTM here computes 'tanh'"),
    "another gate": (KerasLayer(recurrent="hard_sigmoid"), "recurrent_activation='hard_sigmoid'"),
    "no weights": (KerasLayer(built=False), "has no weights yet"),
    "backwards": (KerasLayer(go_backwards=True), "has go_backwards=True"),
    "last step": (KerasLayer(return_sequences=False), "has return_sequences=False"),
    "sum": (KerasPair(merge_mode="sum"), "merge_mode='sum'"),
    "half": (KerasPair(forward_layer=KerasLayer("elu")), "activation='elu'"),
}


@pytest.mark.parametrize("name", KERAS)
def test_layers_of_keras_that_compute_something_else(name):
    layer, words = KERAS[name]
    text = raised(ValueError, lambda: from_keras([layer, KerasLayer()]))
    assert text.startswith("source[0] has ")
    assert words in text


def arrays_of(I=3, H=4, gates=4, bias=(), D=1):  # noqa: E741
    """Weights as a layer of Keras gives them, perhaps of another number of gates."""
    rest = [np.ones((*bias, gates * H), "f4")] if bias is not None else []
    return D * [np.ones((I, gates * H), "f4"), np.ones((H, gates * H), "f4"), *rest]


ALIKE = "all layers of one LSTM have the same units, directions, and biases or none"
KERAS_ARRAYS = {
    "a GRU": (arrays_of(gates=3, bias=(2,)), 0, "shapes [3, 12], [4, 12], [2, 12]"),
    "a SimpleRNN": (arrays_of(gates=1), 0, "shapes [3, 4], [4, 4], [4]"),
    "a Dense": ([*arrays_of(gates=1)[:1], np.ones(4, "f4")], 0, "shapes [3, 4], [4]"),
    "no axes": ([np.ones((), "f4")] * 3, 0, "shapes [], [], []"),
    "another size of the second direction": (
        arrays_of() + arrays_of(I=5), 0, "shapes [3, 16], [4, 16], [16], [5, 16], [4, 16], [16]",
    ),
    "nothing": ([np.ones((3, 0), "f4"), np.ones((0, 0), "f4")], 0, "shapes [3, 0], [0, 0]"),
    "other features": (
        arrays_of(I=5), 1, "shapes [5, 16], [4, 16], [16], but the layer before gives 4 f",
    ),
    "two directions": (arrays_of(I=4, D=2), 1, ALIKE),
    "other units": (arrays_of(I=4, H=6), 1, ALIKE),
    "no bias": (arrays_of(I=4, bias=None), 1, ALIKE),
}  # fmt: skip


@pytest.mark.parametrize("name", KERAS_ARRAYS)
def test_arrays_of_keras_that_are_no_lstm(name):
    arrays, place, words = KERAS_ARRAYS[name]
    text = raised(ValueError, lambda: from_keras([*[arrays_of()] * place, arrays]))
    assert text.startswith(f"source[{place}] ")
    assert words in text


def test_what_others_have_not():
    projected = LSTM(3, 4, proj_size=2)
    assert "Keras has no projection" in raised(ValueError, lambda: to_keras(projected))


@pytest.mark.parametrize("write", [to_torch, to_paddle, to_keras])
def test_what_is_no_lstm(write):
    text = raised(TypeError, lambda: write(LSTMCell))
    assert text == "lstm must be a cupy_lstm.LSTM, received type"


@pytest.mark.parametrize(
    ("write", "package"), [(to_torch, "torch"), (to_paddle, "paddlepaddle"), (to_keras, "keras")]
)
def test_a_library_that_is_not_installed(write, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package.removesuffix("paddle"), None)
    text = raised(ImportError, lambda: write(LSTM(3, 4)))
    assert f"pip install {package}" in text
