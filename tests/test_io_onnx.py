"""ONNX both ways: what is written computes the same, what others write is read."""

import sys

import numpy as np
import onnx
import pytest
from cases import Case, assert_within_rule, build, make_lstm
from face import CONFIGURATIONS, normal, raised
from interop_files import FOLDER, Stored, naive_outputs, same_weights
from onnx_files import File, gates, named, run, weights_of
from oracle import lstm_oracle

from cupy_lstm import LSTM, RNN
from cupy_lstm.io import from_keras, from_onnx, from_torch, onnx_export, onnx_scan, to_onnx
from cupy_lstm.io.onnx_graph import MOVES

WRITTEN = [
    Case("onnx"),
    Case("onnx-time-major", time_major=True),
    Case("onnx-3-layers", L=3),
    Case("onnx-bidirectional", bidirectional=True, bias_ih=False),
    Case("onnx-2-layers-bidirectional", L=2, bidirectional=True, time_major=True),
    Case("onnx-no-bias", L=2, bias_ih=False, bias_hh=False),
    Case("onnx-projection", P=2, time_major=True),
    Case("onnx-projection-2-layers-bidirectional", P=5, L=2, bidirectional=True, bias_hh=False),
    Case("onnx-projection-no-bias", P=1, bidirectional=True, bias_ih=False, bias_hh=False),
]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.onnx"


def lstm_of(case, dtype="float32"):
    return make_lstm(case, build(case, dtype).weights, dtype)


# --- written -------------------------------------------------------------------------------------


@pytest.mark.parametrize("lengths", [False, True], ids=["", "lengths"])
@pytest.mark.parametrize("states", [False, True], ids=["", "states"])
@pytest.mark.parametrize("case", WRITTEN, ids=lambda case: case.id)
def test_a_written_model_computes_the_same(path, case, states, lengths):
    """Bit for bit, where both are the oracle; a projection computes under the rule."""
    lstm = lstm_of(case, "float64")
    to_onnx(lstm, path, initial_states=states, sequence_length=lengths)
    onnx.checker.check_model(str(path), full_check=True)
    for B, T in ((4, 6), (2, 3)):  # any number of rows and steps goes in
        x = normal(*((T, B) if case.time_major else (B, T)), case.I, dtype="f8")
        given, n = None, np.array([2, 0, T, 1][:B]) if lengths else None
        inputs = {"inputs": x} | ({"sequence_length": n} if lengths else {})
        if states:
            sizes = (case.P or case.H, case.H)
            given = [normal(case.L * case.D, B, size, dtype="f8", seed=size) for size in sizes]
            inputs |= dict(zip(("h0", "c0"), given, strict=True))
        naive = naive_outputs(lstm, x, given, n, np.float64)
        outputs = dict(zip("yhc", run(path, **inputs), strict=True))
        if case.P:
            truth = naive_outputs(lstm, x, given, n, np.longdouble)
            for name, actual in outputs.items():
                assert_within_rule(name, actual, getattr(truth, name), getattr(naive, name))
        else:
            assert all(np.array_equal(a, getattr(naive, name)) for name, a in outputs.items())


@pytest.mark.parametrize(
    "case", CONFIGURATIONS, ids=lambda c: f"{c.L}{c.P}{c.D}{c.bias_ih}{c.bias_hh}"
)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_written_model_comes_back(path, case, dtype):
    lstm = lstm_of(case, dtype)
    lstm.time_major, lstm.dropout = True, 0.5
    to_onnx(lstm, path, initial_states=True, sequence_length=True)
    twin = from_onnx(path)
    assert same_weights(twin, lstm)
    assert (twin.time_major, twin.dropout, twin.dropout_seed) == (True, 0.5, lstm.dropout_seed)


def test_a_model_says_who_wrote_it_and_is_repeatable(path):
    lstm = LSTM(3, 4, seed=0)
    to_onnx(lstm, path)
    first = path.read_bytes()
    to_onnx(lstm, str(path))
    assert path.read_bytes() == first
    model = onnx.load(path)
    assert (model.producer_name, model.ir_version) == ("cupy_lstm", 8)
    assert [(i.domain, i.version) for i in model.opset_import] == [("", 17)]
    dims = [[d.dim_param or d.dim_value for d in i.type.tensor_type.shape.dim] for i in
            (*model.graph.input, *model.graph.output)]  # fmt: skip
    assert dims == [["batch", "steps", 3], ["batch", "steps", 4], [1, "batch", 4], [1, "batch", 4]]


def test_what_cannot_be_written(path, monkeypatch):
    raised(TypeError, lambda: to_onnx(RNN, path))
    monkeypatch.setattr(onnx_export, "LARGEST", 100)
    text = raised(ValueError, lambda: to_onnx(LSTM(3, 4), path))
    assert text == "lstm has 576 bytes of weights, but an ONNX file holds 100"
    assert not path.exists()
    monkeypatch.undo()
    raised(IsADirectoryError, lambda: to_onnx(LSTM(3, 4), path.parent))


def test_without_onnx(path, monkeypatch):
    to_onnx(LSTM(3, 4), path)
    monkeypatch.setitem(sys.modules, "onnx", None)
    for call in (lambda: to_onnx(LSTM(3, 4), path), lambda: from_onnx(path)):
        assert "onnx needs onnx: pip install 'cupy_lstm[io]'" in raised(ImportError, call)


class ShortIntegers:
    """NumPy where its default integer has 32 bits, as on Windows before NumPy 2."""

    def __getattr__(self, name):
        return getattr(np, name)

    def array(self, value, dtype=None):
        made = np.array(value, dtype)
        fits = dtype is None and made.dtype.kind == "i" and abs(made).max() < 2**31
        return made.astype("int32") if fits else made

    def full(self, shape, value):
        return np.full(shape, value, "int32")


@pytest.mark.parametrize("P", [0, 2])
def test_the_default_integer_of_the_platform_does_not_matter(path, monkeypatch, P):
    lstm, written = LSTM(3, 4, 2, "bidirect", proj_size=P), []
    for short in (False, True):
        if short:
            for module in (onnx_export, onnx_scan):
                monkeypatch.setattr(module, "numpy", ShortIntegers())
        to_onnx(lstm, path, initial_states=True, sequence_length=True)
        written.append(path.read_bytes())
    assert written[0] == written[1]


# --- read, as others write -----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["torch_exported", "torch_traced"])
def test_exports_of_torch(name):
    """Of which one has its weights beside it, the other cuts and joins them in the graph."""
    stored = Stored("torch_bi2")
    lstm = from_onnx(FOLDER / f"{name}.onnx")
    assert same_weights(lstm, from_torch(stored.weights))
    stored.assert_given_by(lstm)


@pytest.mark.parametrize("name", ["keras_bi2", "keras_no_bias"])
def test_exports_of_keras(name):
    stored = Stored(name)
    lstm = from_onnx(FOLDER / f"{name}.onnx")
    expected = from_keras(stored.layers()).state_dict()
    assert all(np.array_equal(lstm.state_dict()[key], w) for key, w in expected.items())
    assert not any(p.numpy().any() for key, p in lstm.named_parameters() if key not in expected)
    stored.assert_given_by(lstm)


def layer(lstm, k):
    """Return the weights of a layer as if it were the only one."""
    state = lstm.state_dict().items()
    return {name.replace(f"_l{k}", "_l0"): w for name, w in state if f"_l{k}" in name}


def assert_layers(lstm, *layers):
    assert lstm.num_layers == len(layers)
    for k, arrays in enumerate(layers):
        expected = named(*arrays)
        assert layer(lstm, k).keys() == expected.keys()
        assert all(np.array_equal(layer(lstm, k)[n], w) for n, w in expected.items())


def test_one_node(path):
    file, weights = File(path), weights_of()
    file.lstm("x", *weights)
    assert_layers(from_onnx(file.write()), weights)


@pytest.mark.parametrize("D", [1, 2])
def test_layers_with_the_rows_in_front(path, D):
    file = File(path)
    first, second = weights_of(D=D), weights_of(I=4 * D, D=D, seed=1)
    options = {"direction": ("forward", "bidirectional")[D - 1], "layout": 1}
    y = file.lstm("x", *first, **options)
    shape = file.constant("shape", np.array([0, 0, 4 * D]))
    file.lstm(file.node("Reshape", y, shape), *second, **options)
    assert_layers(from_onnx(file.write()), first, second)


def squeezed(file, y):
    return file.node("Squeeze", y, file.constant("one", np.array([1])))


def squeezed_before_opset_13(file, y):
    return file.node("Squeeze", y, axes=[1])


def moved_and_back(file, y):
    y = file.node("Transpose", squeezed(file, y), perm=[1, 0, 2])
    y = file.node("Unsqueeze", file.node("Dropout", y), file.constant("zero", np.array([0])))
    y = file.node("Squeeze", y, file.constant("front", np.array([0])))
    return file.node("Identity", file.node("Transpose", y, perm=[1, 0, 2]))


def reshaped(shape):
    def add(file, y):
        return file.node("Reshape", y, file.constant("shape", np.array(shape)))

    return add


def reshaped_as_computed(file, y):
    moved = file.node("Transpose", y, perm=[0, 2, 1, 3])
    return file.node("Reshape", moved, file.node("Shape", "x"))


@pytest.mark.parametrize(
    "between",
    [
        File.joined, squeezed, squeezed_before_opset_13, moved_and_back, reshaped_as_computed,
        *map(reshaped, ([7, 2, 4], [-1, 1, 4], [0, -1, 4], [9, 9, -1])),
    ],
)  # fmt: skip
def test_layers_of_one_direction(path, between):
    file = File(path)
    first, second = weights_of(), weights_of(I=4, seed=1, bias=False)
    file.lstm(between(file, file.lstm("x", *first)), *second)
    second = *second[:2], np.zeros((1, 32), "f4")  # where another layer has biases
    assert_layers(from_onnx(file.write()), first, second)


def sliced(file, y, start, end, stem):
    """Cut a direction out, as exporters do that think in single directions."""
    bounds = [file.constant(f"{stem}{n}", np.array([v])) for n, v in enumerate((start, end, 1, 1))]
    return squeezed_before_opset_13(file, file.node("Slice", y, *bounds))


def both_directions(file, y, order=(0, 1)):
    halves = [sliced(file, y, d, d + 1, f"d{d}") for d in order]
    return file.node("Concat", *halves, axis=2)


def test_layers_of_both_directions_in_halves(path):
    file = File(path)
    first, second = weights_of(D=2), weights_of(I=8, D=2, seed=1)
    y = both_directions(file, file.lstm("x", *first, direction="bidirectional"))
    file.lstm(y, *second, direction="bidirectional")
    assert_layers(from_onnx(file.write()), first, second)


@pytest.mark.parametrize("order", [("forward", "reverse"), ("reverse", "forward")])
def test_directions_that_are_two_nodes(path, order):
    file = File(path)
    layers = [weights_of(D=2), weights_of(I=8, D=2, seed=1)]
    x = "x"
    for weights in layers:
        found = {}
        for direction in order:
            d = int(direction == "reverse")
            part = [array[d : d + 1] for array in weights]
            found[direction] = file.lstm(x, *part, direction=direction)
        halves = [squeezed_before_opset_13(file, found[name]) for name in ("forward", "reverse")]
        x = file.node("Concat", *halves, axis=2)
    assert_layers(from_onnx(file.write()), *layers)


@pytest.mark.parametrize("bias", [True, False])
def test_a_lone_reverse_direction(path, bias):
    file, (W, R, B) = File(path), weights_of(bias=bias)
    file.lstm("x", W, R, B, direction="reverse")
    rnn = from_onnx(file.write())
    assert isinstance(rnn, RNN)
    x, lengths = normal(2, 5, 3), np.array([5, 3])
    y, (h, c) = rnn(x, sequence_length=lengths)
    truth, naive = (
        lstm_oracle(x, named(W, R, B), is_reverse=True, lengths=lengths, dtype=dtype)
        for dtype in (np.float64, np.float32)
    )
    assert_within_rule("y", y, truth.y, naive.y)
    assert_within_rule("h", h, truth.h[0], naive.h[0])
    assert_within_rule("c", c, truth.c[0], naive.c[0])


def test_weights_that_the_graph_moves(path):
    file, (W, R, B) = File(path), weights_of()
    blocks = [file.constant(f"block{n}", block) for n, block in enumerate(np.split(W[0], 4))]
    front = file.constant("front", np.array([0]))
    joined = file.node("Unsqueeze", file.node("Concat", *blocks, axis=0), front)
    turned = file.node("Transpose", file.constant("turned", R.transpose(2, 1, 0)), perm=[2, 1, 0])
    flat = file.node("Reshape", file.constant("flat", B[0]), file.constant("s", np.array([1, -1])))
    file.node("LSTM", "x", joined, turned, flat, outputs=3, hidden_size=4)
    assert_layers(from_onnx(file.write()), (W, R, B))


def test_weights_that_are_nodes(path):
    file, (W, R, _) = File(path), weights_of()
    names = [
        file.node("Constant", value=onnx.numpy_helper.from_array(array, "value"))
        for array in (W, R)
    ]
    file.node("LSTM", "x", *names, outputs=3, hidden_size=4)
    assert_layers(from_onnx(file.write()), (W, R))


def test_slices():
    array = np.arange(5)
    for start, end, step, expected in (
        (-1, -(2**31), -1, [4, 3, 2, 1, 0]),
        (3, 0, -1, [3, 2, 1]),
        (4, -9, -2, [4, 2, 0]),
        (1, 2**31, 2, [1, 3]),
    ):
        bounds = [np.array([v]) for v in (start, end, 0, step)]
        assert MOVES["Slice"]([array], bounds, {}).tolist() == expected
    before_opset_10 = {"starts": [1], "ends": [3]}
    assert MOVES["Slice"]([array], [], before_opset_10).tolist() == [1, 2]


def test_gates_in_their_order():
    """i, o, f, c become i, f, g, o; written back, they lie where they lay."""
    assert [*gates(np.arange(4))] == [0, 2, 3, 1]
    assert [*gates(np.arange(4))[list(onnx_export.TO_ONNX)]] == [0, 1, 2, 3]


# --- more than one stack -------------------------------------------------------------------------


def relu(file, y):
    return file.node("Relu", squeezed(file, y))


def swapped_rows_and_steps(file, y):
    return file.node("Transpose", squeezed(file, y), perm=[1, 0, 2])


def last_step(file, y):
    bounds = [file.constant(f"b{n}", np.array([v])) for n, v in enumerate((-1, 2**31, 0, 1))]
    return file.node("Slice", squeezed(file, y), *bounds)


def from_the_input(file, y):
    return "x"


@pytest.mark.parametrize("between", [relu, swapped_rows_and_steps, last_step, from_the_input])
def test_what_no_stack_does(path, between):
    file = File(path)
    I = 3 if between is from_the_input else 4  # noqa: E741
    first, second = weights_of(), weights_of(I=I, seed=1)
    file.lstm(between(file, file.lstm("x", *first)), *second)
    file.write()
    text = raised(ValueError, lambda: from_onnx(path))
    assert "it holds 2 stacks of LSTM nodes (0 from 'LSTM0.0', 1 from 'LSTM" in text
    assert "choose one with stack=, received None; nothing was loaded" in text
    assert_layers(from_onnx(path, stack=0), first)
    assert_layers(from_onnx(path, stack=1), second)
    assert "received 2" in raised(ValueError, lambda: from_onnx(path, stack=2))


def test_directions_in_the_wrong_order(path):
    file = File(path)
    first, second = weights_of(D=2), weights_of(I=8, D=2, seed=1)
    y = file.lstm("x", *first, direction="bidirectional")
    file.lstm(both_directions(file, y, (1, 0)), *second, direction="bidirectional")
    assert "2 stacks" in raised(ValueError, lambda: from_onnx(file.write()))


@pytest.mark.parametrize("second", [weights_of(I=4, H=5), weights_of(I=4, D=2)])
def test_layers_that_do_not_fit_each_other(path, second):
    file = File(path)
    y = squeezed(file, file.lstm("x", *weights_of()))
    file.lstm(y, *second, direction=("forward", "bidirectional")[len(second[0]) - 1])
    assert "2 stacks" in raised(ValueError, lambda: from_onnx(file.write()))
    assert_layers(from_onnx(path, stack=1), second)


def test_a_layer_that_feeds_two(path):
    file = File(path)
    first, second, third = weights_of(), weights_of(I=4, seed=1), weights_of(I=4, seed=2)
    y = squeezed(file, file.lstm("x", *first))
    file.lstm(y, *second)
    file.lstm(y, *third)
    file.write()
    assert_layers(from_onnx(path, stack=0), first, second)
    assert_layers(from_onnx(path, stack=1), third)


def test_dtype_of_a_file(path):
    file, (W, R, _) = File(path), weights_of()
    file.lstm("x", W.astype("f2"), R.astype("f2"))
    file.write()
    assert "dtype float16, but an LSTM on numpy" in raised(ValueError, lambda: from_onnx(path))
    assert from_onnx(path, dtype="float64").dtype == np.float64
    file.constants[0].CopyFrom(onnx.numpy_helper.from_array(W.astype("i4"), "W0"))
    file.write()
    assert "weight_ih_l0 has dtype int32" in raised(ValueError, lambda: from_onnx(path))


def test_inputs_that_the_caller_gives_are_no_hindrance(path):
    file = File(path)
    file.inputs += ["h", "c", "n"]
    zero = file.constant("zero", np.zeros((1, 2, 4), "f4"))
    peepholes = file.constant("P", np.zeros((1, 12), "f4"))
    first, second = weights_of(), weights_of(I=4, seed=1)
    y = file.lstm("x", *first, "n", "h", file.node("Relu", "c"), peepholes)
    file.lstm(squeezed(file, y), *second, "", zero, zero)
    assert_layers(from_onnx(file.write()), first, second)
