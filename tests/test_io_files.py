"""Our own files: they come back as they were, and a bad one changes nothing and runs nothing."""

import json
import pickle
import struct
import sys

import numpy as np
import pytest
from cases import build, make_lstm
from face import CONFIGURATIONS, Model, normal, raised
from interop_files import same_weights
from safetensors import safe_open
from safetensors.numpy import save_file

from cupy_lstm import LSTM
from cupy_lstm.io import load, load_state_dict, save
from cupy_lstm.io.configuration import FORMAT


@pytest.fixture
def path(tmp_path):
    return tmp_path / "lstm.safetensors"


@pytest.mark.parametrize(
    "case", CONFIGURATIONS, ids=lambda c: f"{c.L}{c.P}{c.D}{c.bias_ih}{c.bias_hh}"
)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_an_lstm_comes_back(path, case, dtype):
    lstm = make_lstm(case, build(case, dtype).weights, dtype)
    save(lstm, path)
    assert same_weights(load(path), lstm)


def test_what_is_not_a_weight_comes_back(path):
    lstm = LSTM(3, 4, 2, "bidirect", True, 0.5, seed=3)
    lstm.weight_hh_l1_reverse.trainable = False
    x = normal(5, 2, 3)
    lstm(x)
    lstm.dropout_calls = 2**63 + 1
    save(lstm, path)
    twin = load(str(path))
    assert (twin.time_major, twin.dropout, twin.training) == (True, 0.5, True)
    assert [n for n, p in twin.named_parameters() if not p.trainable] == ["weight_hh_l1_reverse"]
    assert np.array_equal(twin(x)[0], lstm(x)[0])  # the same masks, too


def test_a_file_is_standard_and_repeatable(path, tmp_path):
    lstm = LSTM(3, 4, seed=0)
    save(lstm, path)
    save(lstm, tmp_path / "again")
    assert path.read_bytes() == (tmp_path / "again").read_bytes()
    with safe_open(path, "numpy") as file:
        assert set(file.keys()) == set(lstm.state_dict())
        assert json.loads(file.metadata()[FORMAT])["hidden_size"] == 4


def test_a_model_of_many_layers(path):
    model, other = Model(seed=1), Model(seed=2)
    save(model, path)
    assert other.set_state_dict(load_state_dict(path)) == ([], [])
    x = normal(2, 6, 3)
    assert np.array_equal(model.eval()(x), other.eval()(x))
    assert "holds no LSTM that this version of cupy_lstm has written" in raised(
        ValueError, lambda: load(path)
    )


def test_a_file_is_converted_if_asked(path):
    save(LSTM(3, 4, dtype="float64", seed=0), path)
    lstm = load(path, dtype="float32")
    assert {p.dtype for p in lstm.parameters()} == {np.dtype("float32")}
    assert np.array_equal(lstm.weight_ih_l0.data, load(path).weight_ih_l0.data.astype("f4"))


def test_writing_is_whole_or_not_at_all(path, tmp_path, monkeypatch):
    save(LSTM(3, 4, seed=0), path)
    before = path.read_bytes()

    def until_the_disk_is_full(self, contents):
        with self.open("wb") as file:
            file.write(contents[:9])
        raise OSError("no space left")

    monkeypatch.setattr("pathlib.Path.write_bytes", until_the_disk_is_full)
    raised(OSError, lambda: save(LSTM(3, 4, seed=1), path))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    monkeypatch.undo()
    save(LSTM(3, 4, seed=1), path)
    assert path.read_bytes() != before
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_is_no_file(tmp_path):
    for call in (lambda: save(LSTM(3, 4), tmp_path), lambda: load(tmp_path)):
        text = raised(IsADirectoryError, call)
        assert text.endswith(f" a file, it is a folder: {str(tmp_path)!r}")
    assert tmp_path.is_dir()


def test_what_cannot_be_saved(path):
    text = raised(TypeError, lambda: save({"weight": np.ones(3)}, path))
    assert text == "layer must be a Layer, such as an LSTM, received dict"
    assert not path.exists()


# --- files that are wrong ------------------------------------------------------------------------


class Trap:
    """What runs when it is unpickled."""

    def __reduce__(self):
        return pytest.fail, ("it was unpickled",)


def container(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def tensor(*offsets, shape=(2,), dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


EIGHT = b"12345678"
DAMAGED = {
    "empty": b"",
    "short": b"\x08\x00",
    "text": b"a text that is longer than eight bytes",
    "a pickle": pickle.dumps(Trap()),
    "a giant header": struct.pack("<Q", 2**63) + b"{}",
    "a header beyond the limit": struct.pack("<Q", 10**8 + 1) + b"{}",
    "a header beyond the end": struct.pack("<Q", 1000) + b"{}",
    "no JSON": container(b'{"a":'),
    "no UTF-8": container(b"\xff\xfe{}"),
    "no object": container([]),
    "deep": container(b'{"a":' + b"[" * 10**5 + b"]" * 10**5 + b"}"),
    "metadata that is no text": container({"__metadata__": {"a": 3}}),
    "data beyond the end": container({"a": tensor(0, 8)}, b"1234"),
    "data before the beginning": container({"a": tensor(-8, 0)}, EIGHT),
    "data from the end": container({"a": tensor(8, 0)}, EIGHT),
    "data twice": container({"a": tensor(0, 8), "b": tensor(0, 8)}, EIGHT),
    "a hole": container({"a": tensor(4, 8, shape=(1,))}, EIGHT),
    "a tail": container({"a": tensor(0, 4, shape=(1,))}, EIGHT),
    "an offset without end": container({"a": tensor(0, 2**64 - 1)}, EIGHT),
    "another shape": container({"a": tensor(0, 8, shape=(3,))}, EIGHT),
    "a shape that overflows": container({"a": tensor(0, 8, shape=(2**32, 2**32))}, EIGHT),
    "an unknown dtype": container({"a": tensor(0, 8, dtype="F99")}, EIGHT),
    "a dtype without name": container({"a": tensor(0, 8, shape=(8,), dtype="F8_E4M3")}, EIGHT),
}


@pytest.mark.parametrize("name", DAMAGED)
@pytest.mark.parametrize("read", [load, load_state_dict])
def test_damaged_files(path, read, name):
    path.write_bytes(DAMAGED[name])
    text = raised(ValueError, lambda: read(path))
    assert text.startswith(f"{path} is no safetensors file, or a damaged one (")
    assert text.endswith("; nothing was loaded")


def test_a_file_that_ends_early(path):
    save(LSTM(3, 4), path)
    whole = path.read_bytes()
    for size in (*range(0, len(whole), 97), len(whole) - 1):
        path.write_bytes(whole[:size])
        raised(ValueError, lambda: load(path))


def test_a_file_that_is_not_there(path):
    raised(FileNotFoundError, lambda: load(path))


def rewritten(path, change):
    """Write the file again, after a change of its weights or its configuration."""
    with safe_open(path, "numpy") as file:
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        read = json.loads(file.metadata()[FORMAT])
    text = change(weights, read)
    save_file(weights, path, {FORMAT: text if isinstance(text, str) else json.dumps(read)})


def put(**fields):
    return lambda weights, read: read.update(fields)


CONTRADICTIONS = {
    "no JSON": (lambda weights, read: "{", "configuration is damaged"),
    "deep": (lambda weights, read: "[" * 10**5, "configuration is damaged"),
    "no object": (lambda weights, read: "[]", "configuration is damaged: it is no object"),
    "no field": (lambda weights, read: read.pop("dropout"), "damaged: 'dropout'"),
    "another field": (put(peephole=True), "says peephole True, but its weights None"),
    "another size": (put(hidden_size=10**12), "says hidden_size 1000000000000, but its weights 4"),
    "other layers": (put(num_layers=7), "says num_layers 7, but its weights 2"),
    "no such direction": (put(direction="up"), "says direction 'up', but its weights 'forward'"),
    "a bias": (put(bias_ih=False), "says bias_ih False, but its weights True"),
    "a projection": (put(proj_size=2), "says proj_size 2, but its weights 0"),
    "a layout": (put(time_major=3), "damaged: time_major must be True or False"),
    "a probability": (put(dropout=float("nan")), "damaged: dropout must be in [0, 1]"),
    "a seed": (put(dropout_seed=-1), "damaged: dropout_seed must be at least 0"),
    "frozen, what is not there": (put(frozen=["weight"]), "damaged: 'weight'"),
    "frozen, no list": (put(frozen=3), "damaged: "),
    "a weight too few": (
        lambda weights, read: weights.pop("bias_ih_l1"), "bias_ih_l1 is missing",
    ),
    "a weight too many": (
        lambda weights, read: weights.update(z=np.ones(1, "f4")), "'z' is the name of no weight",
    ),
    "integers": (
        lambda weights, read: weights.update(bias_ih_l1=np.ones(16, "i4")), "has dtype int32",
    ),
    "double precision": (
        lambda weights, read: weights.update(bias_ih_l1=np.ones(16)), "float32 and float64",
    ),
    "a shape": (
        lambda weights, read: weights.update(bias_ih_l1=np.ones(15, "f4")),
        "bias_ih_l1 has shape [15], but must have shape [16]",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_files_that_contradict_themselves(path, name):
    change, words = CONTRADICTIONS[name]
    save(LSTM(3, 4, 2), path)
    rewritten(path, change)
    text = raised(ValueError, lambda: load(path))
    assert text.startswith(f"{path}: ")
    assert words in text


def test_without_safetensors(path, monkeypatch):
    save(LSTM(3, 4), path)
    for module in ("safetensors", "safetensors.numpy"):
        monkeypatch.setitem(sys.modules, module, None)
    for call in (lambda: load(path), lambda: save(LSTM(3, 4), path)):
        text = raised(ImportError, call)
        assert text.startswith("a safetensors file needs safetensors: pip install 'cupy_lstm[io]'")
