"""States of weights: names in and out, in both spellings, alone and in a composite."""

import itertools

import numpy as np
import pytest
from cases import build, make_lstm
from face import CONFIGURATIONS, KINDS, Model, normal, raised

from cupy_lstm import LSTM, RNN, Linear, LSTMCell
from cupy_lstm.layer import Layer


def spellings(case):
    """Every parameter's name in the flat spelling and in Paddle's spelling by cell."""
    names = {}
    for layer, d in itertools.product(range(case.L), range(case.D)):
        cell = f"{layer}.{('cell_fw', 'cell_bw')[d] if case.D == 2 else 'cell'}"
        end = f"_l{layer}{('', '_reverse')[d]}"
        for name in case.weight_shapes():
            kind = name.removesuffix(end)
            if kind in (*KINDS, "weight_ho"):
                names[name] = f"{cell}.{kind}"
    return names


@pytest.mark.parametrize(
    "case", CONFIGURATIONS, ids=lambda c: f"{c.L}{c.P}{c.D}{c.bias_ih}{c.bias_hh}"
)
def test_both_spellings_load(case):
    weights = build(case, "float32").weights
    names = spellings(case)
    assert names.keys() == weights.keys()
    for given in (
        weights,
        {names[n]: w for n, w in weights.items()},
        {names[n] if k % 2 else n: w for k, (n, w) in enumerate(weights.items())},
    ):
        lstm = make_lstm(case, {n: 0 * w for n, w in weights.items()}, "float32")
        assert lstm.set_state_dict(given) == ([], [])
        for name, array in lstm.state_dict().items():
            assert np.array_equal(array, weights[name])


def test_missing_and_unexpected():
    lstm = LSTM(3, 4, 1, "bidirect", bias_ih_attr=False, seed=0)
    before = {n: a.copy() for n, a in lstm.state_dict().items()}
    given = {
        "other": np.zeros(3),
        "weight_hh_l0": np.zeros((16, 4), "float32"),
        "bias_ih_l0": np.zeros(16, "float32"),  # absent here
        "0.cell_bw.bias_hh": np.zeros(16, "float32"),
        "1.cell_fw.bias_hh": np.zeros(16, "float32"),
        5: None,
    }
    missing, unexpected = lstm.set_state_dict(given)
    assert missing == ["weight_ih_l0", "bias_hh_l0", "weight_ih_l0_reverse", "weight_hh_l0_reverse"]
    assert unexpected == ["other", "bias_ih_l0", "1.cell_fw.bias_hh", 5]
    for name, array in lstm.state_dict().items():
        assert np.array_equal(array, before[name] if name in missing else 0 * before[name])
    assert lstm.set_state_dict({}) == (list(before), [])


@pytest.mark.parametrize("flat_first", [True, False])
def test_the_spelling_by_cell_wins(flat_first):
    lstm = LSTM(3, 4)
    pairs = [
        (n, np.full((16, 3), v, "float32"))
        for n, v in (("weight_ih_l0", 1), ("0.cell.weight_ih", 2))
    ]
    lstm.set_state_dict(dict(pairs if flat_first else pairs[::-1]))
    assert (lstm.weight_ih_l0.data == 2).all()


def test_state_dict_is_live_and_loads_a_copy():
    first, second = LSTM(3, 4, seed=0), LSTM(3, 4, seed=1)
    state = first.state_dict()
    assert all(np.shares_memory(state[n], p.data) for n, p in first.named_parameters())
    second.set_state_dict(state)
    state["weight_ih_l0"][...] = 7
    assert (first.weight_ih_l0.data == 7).all()
    assert not (second.weight_ih_l0.data == 7).any()
    second.set_state_dict(dict(first.named_parameters()))  # Parameters will do
    assert (second.weight_ih_l0.data == 7).all()


def test_weights_of_one_layer_can_change_places():
    lstm = LSTM(3, 4, 1, "bidirect", seed=0)
    before = {n: a.copy() for n, a in lstm.state_dict().items()}
    swapped = {n: n + "_reverse" for n in before if not n.endswith("reverse")}
    swapped |= {there: here for here, there in swapped.items()}
    lstm.set_state_dict({swapped[n]: a for n, a in lstm.state_dict().items()})
    for name, array in lstm.state_dict().items():
        assert np.array_equal(array, before[swapped[name]])


@pytest.mark.parametrize(
    "bad",
    [
        np.zeros((3, 16), "float32"),
        np.zeros(48, "float32"),
        np.zeros((16, 3)),
        np.zeros((16, 3), "int32"),
        np.zeros((16, 3), "float16"),
        [[0.0] * 3] * 16,
        None,
    ],
    ids=["transposed", "flat", "float64", "int32", "float16", "list", "none"],
)
@pytest.mark.parametrize("key", ["weight_ih_l1", "1.cell.weight_ih"])
def test_nothing_is_loaded_on_an_error(bad, key):
    lstm = LSTM(3, 3, 2, seed=0)
    before = {n: a.copy() for n, a in lstm.state_dict().items()}
    versions = [p.buffer.version for p in lstm.parameters()]
    given = {n: a + 1 for n, a in before.items() if n != "weight_ih_l1"} | {key: bad}
    given |= {"unexpected": 1}
    text = raised(
        (TypeError, ValueError)[isinstance(bad, np.ndarray)], lambda: lstm.set_state_dict(given)
    )
    assert text.startswith(f"state_dict[{key!r}]: weight_ih_l1 ")
    assert text.endswith("; nothing was loaded")
    for name, array in lstm.state_dict().items():
        assert np.array_equal(array, before[name])
    assert [p.buffer.version for p in lstm.parameters()] == versions


def test_a_composite_s_names_states_and_modes():
    model = Model()
    names = list(model.state_dict())
    assert names[0] == "encoder.weight_ih_l0"
    assert "decoder.cell_bw.weight_hh" in names
    assert names[-2:] == ["head.weight", "head.bias"]
    assert len(names) == len(set(names)) == 12 + 8 + 2
    assert [n for n, _ in model.named_parameters("net")] == [f"net.{n}" for n in names]
    assert [n for n, _ in model.named_children()] == ["encoder", "decoder", "head", "same"]

    other = Model(seed=5)
    assert other.set_state_dict(model.state_dict()) == ([], [])
    x = normal(2, 6, 3)
    assert np.array_equal(model.eval()(x), other.eval()(x))
    assert not model.encoder.training
    assert not model.decoder.cell_fw.training
    assert model.train() is model
    assert model.encoder.training
    assert model.decoder.cell_bw.training

    by_cell = {"encoder.1.cell_bw.weight_hh": np.ones((16, 4), "float32"), "encoder.1.cell.x": 0}
    missing, unexpected = model.set_state_dict(by_cell)
    assert "encoder.weight_hh_l1_reverse" not in missing
    assert len(missing) == len(names) - 1
    assert unexpected == ["encoder.1.cell.x"]
    assert (model.encoder.weight_hh_l1_reverse.data == 1).all()


class Stack(Layer):
    """Layers in containers, some of them twice, and one that an underscore hides."""

    def __init__(self):
        super().__init__()
        shared = LSTMCell(3, 4)
        self.cells = [LSTMCell(3, 4), (shared, RNN(shared))]
        self.heads = {"mean": Linear(4, 1), "width": Linear(4, 1, bias_attr=False)}
        self.first = self.cells[0]
        self._hidden = [Linear(3, 3)]


def test_layers_in_containers():
    stack = Stack()
    kinds = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    expected = [f"cells.{k}.{kind}" for k in ("0", "1.0") for kind in kinds]
    expected += ["heads.mean.weight", "heads.mean.bias", "heads.width.weight"]
    assert list(stack.state_dict()) == expected
    stack.eval()
    assert not stack.cells[1][1].training
    assert stack.heads["mean"].training is stack.cells[0].training is False
    other = Stack()
    assert other.set_state_dict(stack.state_dict()) == ([], [])
    assert stack.to(dtype="float64").heads["width"].dtype == np.float64
    assert {p.dtype for p in stack.parameters()} == {np.dtype("float64")}


def test_paddle_s_spelling_in_a_container():
    class Tower(Layer):
        def __init__(self):
            super().__init__()
            self.floors = [LSTM(3, 4), LSTM(4, 4)]

    tower, ones = Tower(), np.ones(16, "float32")
    _, unexpected = tower.set_state_dict({"floors.1.0.cell.bias_ih": ones})
    assert unexpected == []
    assert (tower.floors[1].bias_ih_l0.data == 1).all()


class Tensor:
    """What tensors of other libraries on the CPU have in common."""

    def __init__(self, array):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        return self.array


def test_tensors_of_other_libraries_load():
    lstm = LSTM(3, 4)
    lstm.set_state_dict({n: Tensor(a + 1) for n, a in lstm.state_dict().items()})
    lstm.weight_ih_l0.set_value(Tensor(np.ones((16, 3), "float32")))
    assert (lstm.weight_ih_l0.data == 1).all()
    text = raised(ValueError, lambda: lstm.weight_ih_l0.set_value(Tensor(np.ones((16, 3)))))
    assert text.startswith("weight_ih_l0 has dtype float32, received float64")
