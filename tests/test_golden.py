"""The 28 golden cases: what the real paddle.nn.LSTM computes, through our public face."""

import json
from pathlib import Path

import numpy as np
import pytest
from cases import HOST_ENGINES
from oracle import Result, lstm_oracle

from cupy_lstm import LSTM, RNN, LSTMCell, engine

FOLDER = Path(__file__).parent / "golden"
NAMES = [entry["name"] for entry in json.loads((FOLDER / "manifest.json").read_text())]

# Twice the deviation that golden/README.md states for an independent implementation.
FORWARD = {"float32": 2 * 2.4e-7, "float64": 2 * 2.8e-16}
GRADIENT = {"float32": 2 * 4.8e-7, "float64": 2 * 5.4e-16}


class Golden:
    """One golden file."""

    def __init__(self, name):
        with np.load(FOLDER / f"{name}.npz", allow_pickle=False) as file:
            self.arrays = {key: file[key] for key in file.files}
        self.config = json.loads(str(self.arrays.pop("config")))
        self.weights = self.starting_with("w.")
        self.lengths = self.arrays.get("seq_len")
        self.states = (self.arrays["h0"], self.arrays["c0"]) if "h0" in self.arrays else None

    def __getitem__(self, key):
        return self.arrays[key]

    def starting_with(self, prefix):
        return {k.removeprefix(prefix): a for k, a in self.arrays.items() if k.startswith(prefix)}


def assert_golden(golden, result):
    """Hold every array of a result against the file."""
    dtype = golden.config["dtype"]
    for key, actual in (("y", result.y), ("h_n", result.h), ("c_n", result.c)):
        assert actual.shape == golden[key].shape, key
        error = abs(actual - golden[key]).max()
        assert error <= FORWARD[dtype], f"{key}: {error:.3g}"
    if not golden.config["has_grads"]:
        return
    gradients = {"dx": result.dx} | {f"dw.{name}": grad for name, grad in result.grads.items()}
    if golden.states:
        gradients |= {"dh0": result.dh0, "dc0": result.dc0}
    absent_in_paddle = {f"dw.{name}" for name in golden.weights} - set(golden.arrays)
    assert {k for k in golden.arrays if k == "dx" or k.startswith("dw.")} <= set(gradients)
    for key in gradients.keys() - absent_in_paddle:
        actual, expected = gradients[key], golden[key]
        assert actual.shape == expected.shape, key
        error = abs(actual - expected).max()
        assert error <= GRADIENT[dtype] * abs(expected).max(), f"{key}: {error:.3g}"


def through_lstm(golden, rename=dict):
    """Run the case through LSTM, whose weights are loaded from ``rename(weights)``."""
    config = golden.config
    lstm = LSTM(
        config["input_size"],
        config["hidden_size"],
        config["num_layers"],
        config["direction"],
        config["time_major"],
        config["dropout"],
        bias_ih_attr=None if config["bias_ih"] else False,
        bias_hh_attr=None if config["bias_hh"] else False,
        proj_size=config["proj_size"],
        dtype=config["dtype"],
    )
    assert lstm.set_state_dict(rename(golden.weights)) == ([], [])
    lstm.train() if config["training"] else lstm.eval()
    y, (h, c) = lstm(golden["x"], golden.states, sequence_length=golden.lengths)
    result = Result(y, h, c, cells=None)
    if config["has_grads"]:
        result.dx, (result.dh0, result.dc0) = lstm.backward(
            golden["dy"], (golden["dh_n"], golden["dc_n"])
        )
        result.grads = {name: p.grad for name, p in lstm.named_parameters()}
    return result


def through_cell(golden):
    """Run the case through LSTMCell, or through RNN around one."""
    config = golden.config
    cell = LSTMCell(config["input_size"], config["hidden_size"], dtype=config["dtype"])
    weights = {name.removesuffix("_l0"): w for name, w in golden.weights.items()}
    assert cell.set_state_dict(weights) == ([], [])
    if config["kind"] == "RNN":
        module = RNN(cell, config["is_reverse"], config["time_major"])
        y, (h, c) = module(golden["x"], golden.states, sequence_length=golden.lengths)
    else:
        module = cell
        y, (h, c) = module(golden["x"], golden.states)
    result = Result(y, h, c, cells=None)
    result.dx, (result.dh0, result.dc0) = module.backward(
        golden["dy"], (golden["dh_n"], golden["dc_n"])
    )
    result.grads = {f"{name}_l0": p.grad for name, p in cell.named_parameters()}
    return result


def through_oracle(golden):
    """Run the case through the oracle of these tests, in float64."""
    config = golden.config
    single = config["kind"] != "LSTM"  # no axis of layers in the states
    one_step = config["kind"] == "LSTMCell"  # no axis of time either

    def layered(a):
        return a[None] if single else a

    def timed(a):
        return a[:, None] if one_step else a

    masks = None
    if config["dropout"] and config["training"]:
        assert config["dropout"] == 1
        masks = [np.zeros_like(golden["y"])] * (config["num_layers"] - 1)
    upstream = None
    if config["has_grads"]:
        upstream = {k: layered(golden[f"d{k}_n"]) for k in "hc"} | {"y": timed(golden["dy"])}
    result = lstm_oracle(
        timed(golden["x"]),
        golden.weights,
        bidirectional=config["direction"] != "forward",
        is_reverse=config["is_reverse"],
        time_major=config["time_major"],
        states=golden.states and tuple(map(layered, golden.states)),
        lengths=golden.lengths,
        masks=masks,
        upstream=upstream,
    )
    for key in ("h", "c", "dh0", "dc0") if single else ():
        setattr(result, key, getattr(result, key)[0])
    for key in ("y", "dx") if one_step else ():
        setattr(result, key, getattr(result, key)[:, 0])
    return result


def by_cell(weights):
    """Rename to Paddle's names by cell: ``weight_ih_l1_reverse`` to ``1.cell_bw.weight_ih``."""
    both = any(name.endswith("_reverse") for name in weights)

    def renamed(name):
        kind, _, place = name.partition("_l")
        layer, _, reverse = place.partition("_")
        return f"{layer}.cell{('_bw' if reverse else '_fw') * both}.{kind}"

    return {renamed(name): w for name, w in weights.items()}


def as_paddle_saves(weights):
    """Give every weight twice. Paddle has four flat names a cell: with a projection, which is a
    fifth weight, or without a bias, they mean the wrong weights and only those by cell count."""
    flat = [
        f"{kind}_l{place}"
        for place in dict.fromkeys(name.partition("_l")[2] for name in weights)
        for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    ]
    return dict(zip(flat, weights.values(), strict=False)) | by_cell(weights)


def test_every_file_is_listed():
    assert len(NAMES) == 28
    assert {path.stem for path in FOLDER.glob("*.npz")} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("forced", HOST_ENGINES)
def test_face(name, forced):
    golden = Golden(name)
    run = through_lstm if golden.config["kind"] == "LSTM" else through_cell
    with engine(forced):
        assert_golden(golden, run(golden))


@pytest.mark.parametrize("rename", [by_cell, as_paddle_saves])
@pytest.mark.parametrize("name", ["s12_bi2_tm_seq_h17", "s18_proj_bi2_seq_f64", "s19_proj_2l_tm"])
def test_paddle_names(name, rename):
    golden = Golden(name)
    assert_golden(golden, through_lstm(golden, rename))


@pytest.mark.parametrize("name", NAMES)
def test_oracle(name):
    golden = Golden(name)
    assert_golden(golden, through_oracle(golden))
