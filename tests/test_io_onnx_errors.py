"""ONNX files that are damaged, hostile, or compute what an LSTM here does not: one clear error."""

import pickle

import numpy as np
import onnx
import pytest
from face import raised
from interop_files import FOLDER
from onnx_files import File, named, weights_of

from cupy_lstm import LSTM
from cupy_lstm.io import from_onnx, load_state_dict, to_onnx


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.onnx"


def refused(path):
    """Return what `from_onnx` says of a file it does not read, without the path."""
    text = raised(ValueError, lambda: from_onnx(path))
    assert text.startswith(str(path))
    return text.removeprefix(f"{path}: ")


# --- no ONNX -------------------------------------------------------------------------------------


class Trap:
    def __reduce__(self):
        return pytest.fail, ("it was unpickled",)


@pytest.mark.parametrize(
    "contents",
    [
        b"a text, and no model at all",
        b'{"graph": {}}',
        pickle.dumps(Trap()),
        b"\x0a\xff\xff\xff\xff\x0f",
    ],
    ids=["text", "json", "pickle", "a giant length"],
)
def test_what_is_no_onnx_file(path, contents):
    path.write_bytes(contents)
    assert "is no ONNX file, or a damaged one" in refused(path)


def test_the_end_of_a_name_chooses_no_other_format(tmp_path):
    for name in ("model.json", "model.textproto", "model"):
        to_onnx(LSTM(3, 4), tmp_path / name)
        assert from_onnx(tmp_path / name).hidden_size == 4


def test_a_file_that_ends_early(path):
    to_onnx(LSTM(3, 4), path)
    whole = path.read_bytes()
    for size in (*range(0, len(whole), 31), len(whole) - 1):
        path.write_bytes(whole[:size])
        refused(path)


def test_a_file_that_is_not_there(path):
    raised(FileNotFoundError, lambda: from_onnx(path))


def test_no_lstm(path):
    path.write_bytes(b"")
    assert refused(path) == "it holds no LSTM node in its main graph; nothing was loaded"
    file = File(path)
    file.node("LSTM", "x", domain="com.example")
    file.write()
    assert "no LSTM node" in refused(path)


# --- another function ----------------------------------------------------------------------------

W, R, B = weights_of()


def with_attributes(**attributes):
    return lambda file: file.lstm("x", W, R, B, **attributes)


def with_weights(*arrays, **attributes):
    return lambda file: file.lstm("x", *arrays, **attributes)


def with_inputs(**arrays):
    """Inputs of the node beyond B, by name."""

    def add(file):
        names = [
            file.constant(name, arrays[name]) if name in arrays else ""
            for name in ("lengths", "h", "c", "P")
        ]
        file.lstm("x", W, R, B, *names)

    return add


def computed_weight(file):
    product = file.node("MatMul", file.constant("w", W), file.constant("e", np.eye(3, dtype="f4")))
    file.node("LSTM", "x", product, file.constant("r", R), outputs=3, hidden_size=4)


def computed_axes(file):
    axes = file.node("Shape", "x")
    moved = file.node("Squeeze", file.constant("w", W[None]), axes)
    file.node("LSTM", "x", moved, file.constant("r", R), outputs=3, hidden_size=4)


def given_weight(file):
    file.inputs.append("w")
    file.node("LSTM", "x", "w", file.constant("r", R), outputs=3, hidden_size=4)


def missing_weight(file):
    file.node("LSTM", "x", "gone", file.constant("r", R), outputs=3, hidden_size=4)


def no_weight(file):
    file.node("LSTM", "x", outputs=3, hidden_size=4)


def wrong_move(file):
    moved = file.node("Transpose", file.constant("w", W), perm=[0, 3, 1])
    file.node("LSTM", "x", moved, file.constant("r", R), outputs=3, hidden_size=4)


def circle(file):
    file.nodes.append(onnx.helper.make_node("Identity", ["b"], ["a"]))
    file.nodes.append(onnx.helper.make_node("Identity", ["a"], ["b"]))
    file.node("LSTM", "x", "a", file.constant("r", R), outputs=3, hidden_size=4)


def doubled_again_and_again(file):
    name = file.constant("w", W)
    for _ in range(60):
        name = file.node("Concat", name, name, axis=2)
    file.node("LSTM", "x", name, file.constant("r", R), outputs=3, hidden_size=4)


def shared_by_very_many(file):
    square = np.zeros((1, 512, 128), "f4")
    names, y = [file.constant(letter, square) for letter in "WR"], "x"
    for _ in range(50):
        y = file.node("LSTM", y, *names, outputs=3, hidden_size=128)
        y = file.node("Squeeze", y, axes=[1])


def rows_of(file, *sizes):
    """Add the shape [1, rows, *sizes] with as many rows as there come in."""
    shape = file.node("Shape", "x")
    n = len(file.nodes)
    rows = file.node("Gather", shape, file.constant(f"axis{n}", np.array([1])))
    around = [file.constant(f"{k}.{n}", np.array([size])) for k, size in enumerate((1, *sizes))]
    return file.node("Concat", around[0], rows, *around[1:], axis=0)


def expanded(value):
    def make(file):
        return file.node("Expand", file.constant("state", value), rows_of(file, 4))

    return make


def tiled(value):
    def make(file):
        cast = file.node("Cast", file.constant("state", value), to=1)
        return file.node("Tile", file.node("Unsqueeze", cast, axes=[0]), rows_of(file, 1))

    return make


def filled(value):
    def make(file):
        tensor = onnx.numpy_helper.from_array(np.array([value], "f4"))
        state = file.node("ConstantOfShape", rows_of(file, 4), value=tensor)
        return file.node("Concat", state, expanded(np.zeros((1, 1, 4), "f4"))(file), axis=2)

    return make


def computed_state(value):
    def make(file):
        return file.node("Add", *2 * [file.constant("state", np.full((1, 2, 4), value, "f4"))])

    return make


def sizes_as_a_state(file):
    return file.node("Cast", expanded_size(file, 1), to=1)


def expanded_size(file, axis):
    size = file.node("Gather", file.node("Shape", "x"), file.constant("axis", np.array([axis])))
    return file.node("Expand", size, rows_of(file))


def with_state(make, place=5):
    """An input of the node that the graph makes: 4 for lengths, 5 for h, 6 for c."""
    return lambda file: file.lstm("x", W, R, B, *[""] * (place - 4), make(file))


def lengths_of_constants(file):
    return file.node("Expand", file.constant("n", np.array([3], "i4")), rows_of(file))


def one_step_less(file):
    return file.node("Sub", expanded_size(file, 0), file.constant("one", np.array([1])))


HALF, ZERO = np.full((1, 1, 4), 0.5, "f4"), np.zeros((1, 1, 4), "f4")

OTHERS = {
    "h expanded": (with_state(expanded(HALF)), "it fixes an initial h, which is given"),
    "c expanded": (with_state(expanded(HALF), 6), "it fixes an initial c, which is given"),
    "h tiled": (with_state(tiled(HALF[0])), "it fixes an initial h, which is given"),
    "h filled": (with_state(filled(0.5)), "it fixes an initial h, which is given"),
    "h computed": (with_state(computed_state(0.5)), "it fixes an initial h, which is given"),
    "h of sizes": (with_state(sizes_as_a_state), "it fixes an initial h, which is given"),
    "lengths expanded": (with_state(lengths_of_constants, 4), "it fixes the sequence lengths"),
    "lengths computed": (with_state(one_step_less, 4), "it fixes the sequence lengths"),
    "peepholes": (with_inputs(P=np.ones((1, 12), "f4")), "it has peepholes"),
    "clipping": (with_attributes(clip=3.0), "it clips at 3, an LSTM here does not"),
    "coupled": (with_attributes(input_forget=1), "gates are coupled"),
    "functions": (
        with_attributes(activations=["HardSigmoid", "Tanh", "Tanh"]), "['HardSigmoid', 'Tanh',",
    ),
    "too few functions": (with_attributes(activations=["Tanh"]), "its activations are ['Tanh']"),
    "a direction": (with_attributes(direction="up"), "its direction is 'up'"),
    "a direction that is a list": (with_attributes(direction=["up"]), "the LSTM 'LSTM0.0': "),
    "one function": (with_attributes(activations=3), "the LSTM 'LSTM0.0': "),
    "initial h": (with_inputs(h=np.ones((1, 2, 4), "f4")), "it fixes an initial h, which is given"),
    "initial c": (with_inputs(c=np.ones((1, 2, 4), "f4")), "it fixes an initial c, which is given"),
    "a projection of torch": (
        with_inputs(c=np.zeros((1, 2, 6), "f4")),
        "its initial c has shape [1, 2, 6], which does not end with its hidden_size 4: PyTorch "
        "writes an LSTM with a projection so, and it is lost",
    ),
    "a state without size": (with_inputs(c=np.zeros((), "f4")), "its initial c has shape []"),
    "lengths": (with_inputs(lengths=np.array([2, 1], "i4")), "it fixes the sequence lengths"),
    "a computed weight": (computed_weight, "its W ('MatMul0.0') is no constant, but is computed"),
    "computed axes": (computed_axes, "its W ('Squeeze1.0') is no constant, but is computed"),
    "a weight as an input": (given_weight, "its W ('w') is no constant"),
    "a missing initialiser": (missing_weight, "its input 'gone' is missing: nothing in the file"),
    "no weights": (no_weight, "its W ('') is no constant"),
    "a wrong move": (wrong_move, "the node 'Transpose0.0' cannot be followed: "),
    "a circle": (circle, "its input comes after it"),
    "doubling": (doubled_again_and_again, "far more would be made of its constants than it holds"),
    "sharing": (shared_by_very_many, "far more would be made of its constants than it holds"),
    "W of two axes": (with_weights(W[0], R), "its W has shape [16, 3], but must have [1, any, "),
    "W of two directions": (with_weights(np.tile(W, (2, 1, 1)), R), "its W has shape [2, 16, 3]"),
    "W of other gates": (with_weights(W[:, :12], R), "W has shape [1, 12, 3] and R [1, 16, 4]"),
    "R of other columns": (with_weights(W, R[:, :, :3], hidden_size=4), "R [1, 16, 3], but they"),
    "another hidden_size": (with_attributes(hidden_size=10**9), "with H = hidden_size 1000000000"),
    "B too short": (with_weights(W, R, B[:, :31]), "its B has shape [1, 31], but must have [1, 32"),
    "B of one axis": (with_weights(W, R, B[0]), "its B has shape [32], but must have [1, 32]"),
    "no size": (with_weights(W[:, :0], R[:, :0, :0]), "its W has shape [1, 0, 3], but must have"),
    "no features": (with_weights(W[:, :, :0], R), "its W has shape [1, 16, 0], but must have"),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_nodes_that_are_refused(path, name):
    build, words = OTHERS[name]
    file = File(path)
    build(file)
    file.write()
    assert words in refused(path)


def given_state(file):
    file.inputs.append("s")
    return file.node("Tile", file.node("Tanh", "s"), rows_of(file, 1))


MADE = {
    "zeros expanded": (expanded(ZERO), 5),
    "zeros tiled": (tiled(ZERO[0]), 6),
    "zeros filled": (filled(0), 5),
    "a state from an input": (given_state, 6),
    "lengths from an input": (given_state, 4),
    "all steps": (lambda file: expanded_size(file, 0), 4),
}


@pytest.mark.parametrize("name", MADE)
def test_states_and_lengths_that_a_call_gives(path, name):
    file = File(path)
    with_state(*MADE[name])(file)
    lstm = from_onnx(file.write())
    assert np.array_equal(lstm.weight_ih_l0.data, named(W, R, B)["weight_ih_l0"])


def test_only_what_a_state_is_made_of_is_read(path):
    """Where an input has a part in it, nobody looks at the constants."""
    file = File(path)
    x = file.node("MatMul", "x", file.constant("encoder", np.ones((3, 4), "f4")))
    file.lstm("x", W, R, B, "", x)
    file.constants[0].data_type = 99
    assert from_onnx(file.write()).hidden_size == 4


def test_what_a_state_is_filled_with_is_damaged(path):
    file = File(path)
    with_state(filled(0))(file)
    (node,) = (node for node in file.nodes if node.op_type == "ConstantOfShape")
    node.attribute[0].t.data_type = 99
    file.write()
    assert "the node 'ConstantOfShape" in refused(path)


def test_a_long_chain_is_no_danger(path):
    file = File(path)
    name = file.constant("w", W)
    for _ in range(5000):
        name = file.node("Identity", name)
    file.node("LSTM", "x", name, file.constant("r", R), outputs=3, hidden_size=4)
    assert from_onnx(file.write()).hidden_size == 4


def test_a_constant_that_is_damaged(path):
    file = File(path)
    file.lstm("x", W, R)
    file.constants[0].dims[0] = 2**40
    file.write()
    assert "the constant 'W0' cannot be read: " in refused(path)
    file.constants[0].data_type = 99
    file.write()
    assert "the constant 'W0' cannot be read: " in refused(path)


def test_a_configuration_that_contradicts_the_weights(path):
    to_onnx(LSTM(3, 4, bias_ih_attr=False), path)
    model = onnx.load(path)
    (entry,) = model.metadata_props
    for old, new, words in (
        ('"hidden_size": 4', '"hidden_size": 9', "says hidden_size 9, but its weights 4"),
        ('"bias_hh": true', '"bias_hh": false', "says bias_hh False, but its weights True"),
        ('"bias_ih": false', '"bias_ih": true', None),  # zeros will do
        ("{", "", "its configuration is damaged"),
    ):
        entry.value = entry.value.replace(old, new)
        path.write_bytes(model.SerializeToString())
        if words is None:
            assert from_onnx(path).bias_ih_l0 is not None
        else:
            assert words in refused(path)
        entry.value = entry.value.replace(new, old) if new else entry.value


def test_a_projection_that_contradicts_itself(path):
    to_onnx(LSTM(3, 4, proj_size=2), path)
    model = onnx.load(path)
    (tensor,) = (t for t in model.graph.initializer if t.name == "weight_ho_l0")
    tensor.name = "weight_ho_l1"
    path.write_bytes(model.SerializeToString())
    assert "weight_ho_l0 is missing" in refused(path)
    del model.graph.initializer[:]
    path.write_bytes(model.SerializeToString())
    assert "it holds no weight of an LSTM" in refused(path)


# --- external data -------------------------------------------------------------------------------


@pytest.fixture
def secret(tmp_path):
    """A folder with a model in it, and beside it a file that has the right size for its W."""
    (tmp_path / "models").mkdir()
    (tmp_path / "secret").write_bytes(W.tobytes())
    return tmp_path


def write_external(folder, location, **entries):
    """Write a model whose W lies where `location` says."""
    file = File(folder / "models" / "model.onnx")
    file.lstm("x", W, R)
    tensor = file.constants[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in ({"location": location} | entries).items():
        entry = tensor.external_data.add()
        entry.key, entry.value = key, str(value)
    return file.write()


def test_data_beside_the_model(secret, monkeypatch):
    path = write_external(secret, "weights", offset=8, length=W.nbytes)
    (secret / "models" / "weights").write_bytes(bytes(8) + W.tobytes() + bytes(8))
    lstm = from_onnx(path)
    inline = File(secret / "inline.onnx")
    inline.lstm("x", W, R)
    assert np.array_equal(lstm.weight_ih_l0.data, from_onnx(inline.write()).weight_ih_l0.data)
    monkeypatch.chdir(path.parent)
    assert from_onnx("model.onnx").input_size == 3  # a path without a folder


def linked(folder):
    (folder / "models" / "link").symlink_to(folder / "secret")


def hard_linked(folder):
    (folder / "models" / "link").hardlink_to(folder / "secret")


def linked_folder(folder):
    (folder / "models" / "link").symlink_to(folder)


ESCAPES = {
    "above": (None, "../secret"),
    "above and back": (None, "sub/../../secret"),
    "absolute": (None, "{folder}/secret"),
    "a link": (linked, "link"),
    "a hard link": (hard_linked, "link"),
    "a linked folder": (linked_folder, "link/secret"),
    "a folder": (None, "."),
    "nothing": (None, ""),
    "what is not there": (None, "gone"),
}


@pytest.mark.parametrize("name", ESCAPES)
def test_data_that_is_elsewhere(secret, name):
    prepare, location = ESCAPES[name]
    if prepare:
        prepare(secret)
    path = write_external(secret, location.format(folder=secret))
    assert "the constant 'W0' cannot be read: " in refused(path)


@pytest.mark.parametrize(
    "entries",
    [
        {"offset": -1}, {"length": -1}, {"offset": 10**15}, {"length": 10**15}, {"length": 4},
        {"offset": 8}, {"offset": "x"},
    ],
    ids=str,
)  # fmt: skip
def test_data_of_another_size(secret, entries):
    path = write_external(secret, "weights", **entries)
    (secret / "models" / "weights").write_bytes(W.tobytes())
    assert "the constant 'W0' cannot be read: " in refused(path)


def test_only_what_is_needed_is_read(secret):
    """Other constants may be anywhere: nobody looks."""
    path = write_external(secret, "weights")
    (secret / "models" / "weights").write_bytes(W.tobytes())
    model = onnx.load(path, load_external_data=False)
    other = model.graph.initializer.add()
    other.CopyFrom(model.graph.initializer[0])
    other.name, other.external_data[0].value = "other", "../secret"
    path.write_bytes(model.SerializeToString())
    assert from_onnx(path).input_size == 3


@pytest.mark.parametrize("name", ["torch_traced.onnx", "keras_bi2.onnx", "torch_bi2.safetensors"])
def test_changed_bytes_are_read_or_refused(tmp_path, name):
    """Whatever bytes change, nothing but a ValueError comes of it."""
    original, read = (FOLDER / name).read_bytes(), (from_onnx, load_state_dict)[".s" in name]
    rng, refusals = np.random.default_rng(0), 0
    for _ in range(150):
        contents = np.frombuffer(original, "u1").copy()
        places = rng.integers(0, len(contents), rng.integers(1, 6))
        contents[places] = rng.integers(0, 256, len(places))
        (tmp_path / name).write_bytes(contents.tobytes())
        try:
            read(tmp_path / name)
        except ValueError:
            refusals += 1
    assert 0 < refusals < 150
