"""Weights and models to and from the libraries themselves, each where it is installed.

A peer runs in float64 and is the reference for ours in float32; ONNX Runtime, which has no float64
LSTM, is itself held to the error rule.
"""

import os
import warnings
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest
from cases import Case, build, make_lstm
from face import normal
from interop_files import assert_outputs, naive_outputs, same_weights

from cupy_lstm import LSTM
from cupy_lstm.io import (
    from_keras,
    from_onnx,
    from_paddle,
    from_torch,
    to_keras,
    to_onnx,
    to_paddle,
    to_torch,
)

# What others warn of is not ours to fix: their own modules, and what they put down to the caller.
pytestmark = [
    pytest.mark.filterwarnings("ignore:::(google|keras|onnx|paddle|tensorflow|tf2onnx|torch)"),
    pytest.mark.filterwarnings("ignore:You are using the legacy TorchScript-based ONNX export"),
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.* is deprecated"),
]

CASES = [
    Case("live", states=True),
    Case("live-time-major-dropout", L=2, time_major=True, states=True, dropout=0.5),
    Case("live-3-layers-bidirectional", L=3, bidirectional=True, states=True, H=17),
    Case("live-no-bias", L=2, bidirectional=True, bias_ih=False, bias_hh=False),
    Case("live-one-bias", bias_ih=False, states=True),
    Case("live-projection", L=2, P=3, bidirectional=True, states=True),
    Case("live-projection-time-major", P=2, time_major=True),
]
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
unprojected = pytest.mark.parametrize(
    "case", [case for case in CASES if not case.P], ids=lambda case: case.id
)


def imported(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(name, reason=f"{name} is not installed: not tried live")


@pytest.fixture(scope="module")
def torch():
    return imported("torch")


@pytest.fixture(scope="module")
def paddle():
    return imported("paddle")


@pytest.fixture(scope="module")
def keras():
    backends = {"torch": "torch", "tensorflow": "tensorflow", "jax": "jax"}
    found = [name for name, package in backends.items() if find_spec(package)]
    if not found:
        pytest.skip("Keras has no backend here (torch, tensorflow or jax): not tried live")
    os.environ.setdefault("KERAS_BACKEND", found[0])
    return imported("keras")


@pytest.fixture(scope="module")
def onnxruntime():
    return imported("onnxruntime")


def pair(case):
    """Return the LSTM of a case in float32 and in float64, in evaluation mode, and its arrays."""
    arrays = build(case, "float32")
    single = make_lstm(case, arrays.weights, "float32").eval()
    double = make_lstm(case, {n: w.astype("f8") for n, w in arrays.weights.items()}, "float64")
    return single, double.eval(), arrays


def check(single, arrays, peer_outputs):
    """Hold ours in float32 against what a peer gave in float64."""
    names = "yhc"[: len(peer_outputs)]
    y, (h, c) = single(arrays.x, arrays.states, arrays.lengths)
    truth = dict(zip(names, peer_outputs, strict=True))
    assert_outputs(single, (y, h, c), truth, arrays.x, arrays.states, arrays.lengths)


def same_configuration(twin, lstm):
    return (twin.time_major, twin.dropout if lstm.num_layers > 1 else lstm.dropout) == (
        lstm.time_major,
        lstm.dropout,
    )


def with_absent_bias_as_zeros(twin, lstm):
    """Say whether two LSTMs have the same weights, but for a bias that is zero in the first."""
    ours = lstm.state_dict()
    return ours.keys() <= twin.state_dict().keys() and all(
        np.array_equal(array, ours.get(name, np.zeros_like(array)))
        for name, array in twin.state_dict().items()
    )


# --- PyTorch -------------------------------------------------------------------------------------


def run_torch(torch, module, arrays):
    x, *states = (torch.tensor(a, dtype=torch.float64) for a in (arrays.x, *(arrays.states or ())))
    with torch.no_grad():
        y, (h, c) = module(x, states or None)
    return y.numpy(), h.numpy(), c.numpy()


@every_case
def test_torch(torch, case):
    single, double, arrays = pair(case)
    before = torch.random.get_rng_state()
    module = to_torch(double)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert (module.batch_first, module.training) == (not case.time_major, False)
    check(single, arrays, run_torch(torch, module, arrays))
    twin = from_torch(module)
    assert with_absent_bias_as_zeros(twin, double)
    assert same_configuration(twin, double)
    assert not twin.training
    assert same_weights(from_torch(module.state_dict()), twin)
    assert same_weights(from_torch(module.float()), from_torch(module, dtype="float32"))
    assert to_torch(single).weight_ih_l0.dtype == torch.float32


def test_torch_of_its_own_making(torch):
    """A module that PyTorch has initialised, inside a larger one."""

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            options = {"bidirectional": True, "batch_first": True, "proj_size": 2}
            self.rnns = torch.nn.Sequential(torch.nn.LSTM(3, 6, 2, dropout=0.25, **options))
            self.dropout, self.batch_first = torch.nn.Dropout(0.5), False

    net, x = Net().double().eval(), normal(2, 7, 3)
    single = from_torch(net, prefix="rnns.0.", dtype="float32")
    assert (single.time_major, single.dropout, single.training) == (False, 0.25, False)
    with torch.no_grad():
        y, (h, c) = net.rnns(torch.tensor(x).double())
    truth = {"y": y.numpy(), "h": h.numpy(), "c": c.numpy()}
    first, (second, third) = single(x)
    assert_outputs(single, (first, second, third), truth, x)


def test_bfloat16_of_torch(torch):
    module = torch.nn.LSTM(3, 4).to(torch.bfloat16)
    lstm = from_torch(module, dtype="float32")
    for name, weight in module.state_dict().items():
        assert np.array_equal(lstm.state_dict()[name], weight.float().numpy())


# --- Paddle --------------------------------------------------------------------------------------


def run_paddle(paddle, layer, arrays):
    x, *states = (paddle.to_tensor(a.astype("f8")) for a in (arrays.x, *(arrays.states or ())))
    y, (h, c) = layer(x, tuple(states) or None)
    return y.numpy(), h.numpy(), c.numpy()


@every_case
def test_paddle(paddle, case):
    single, double, arrays = pair(case)
    paddle.seed(3)
    first = paddle.rand([2]).numpy()
    paddle.seed(3)
    layer = to_paddle(double)
    assert np.array_equal(paddle.rand([2]).numpy(), first)  # its random state is as it was
    assert paddle.get_default_dtype() == "float32"
    assert (layer.time_major, layer.training) == (case.time_major, False)
    check(single, arrays, run_paddle(paddle, layer, arrays))
    twin = from_paddle(layer)
    if case.bias_ih or case.bias_hh:
        assert with_absent_bias_as_zeros(twin, double)
    assert same_configuration(twin, double)
    assert not twin.training
    assert same_weights(from_paddle(layer.state_dict()), twin)
    assert same_weights(from_paddle(dict(layer.named_parameters())), twin)  # shifted where they are


# --- Keras ---------------------------------------------------------------------------------------


@unprojected
def test_keras(keras, case):
    single, double, arrays = pair(case)
    model = to_keras(double)
    x = np.swapaxes(arrays.x, 0, 1) if case.time_major else arrays.x
    y = keras.ops.convert_to_numpy(model(x.astype("f8")))
    assert y.dtype == np.float64
    single.time_major = False
    check(single, replace(arrays, x=x, states=None), [y])  # a model of Keras takes no states
    twin = from_keras(model)
    assert twin.bias_hh_l0 is None
    assert [len(w) for w in model.get_weights()] == [len(w) for w in to_keras(twin).get_weights()]
    assert all(map(np.array_equal, model.get_weights(), to_keras(twin).get_weights()))
    assert same_weights(from_keras(model.layers), twin)
    assert same_weights(from_keras([layer.get_weights() for layer in model.layers]), twin)


def test_keras_of_its_own_making(keras):
    layers = [
        keras.layers.Bidirectional(keras.layers.LSTM(6, return_sequences=True), dtype="float64"),
        keras.layers.Bidirectional(keras.layers.LSTM(6, return_sequences=True), dtype="float64"),
    ]
    with pytest.raises(ValueError, match="has no weights yet"):
        from_keras(layers)
    x = normal(2, 7, 3)
    y = keras.ops.convert_to_numpy(keras.Sequential(layers)(x.astype("f8")))
    single = from_keras(layers, dtype="float32")
    first, (second, third) = single(x)
    assert_outputs(single, (first, second, third), {"y": y}, x)
    for layer, words in (
        (keras.layers.LSTM(3, activation="relu"), "has activation='relu'"),
        (keras.layers.LSTM(3, go_backwards=True), "go_backwards=True"),
        (keras.layers.Bidirectional(keras.layers.LSTM(3), merge_mode="sum"), "merge_mode='sum'"),
    ):
        layer.build((None, 5, 3))
        with pytest.raises(ValueError, match=words):
            from_keras(layer)
    with pytest.raises(TypeError, match="received Dense"):
        from_keras(keras.Sequential([*layers, keras.layers.Dense(2)]))


# --- ONNX ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("lengths", [None, (5, 0, 2)], ids=["", "lengths"])
@every_case
def test_onnx_runtime(onnxruntime, tmp_path, case, lengths):
    pytest.importorskip("onnx", reason="onnx is not installed: not tried live")
    single, double, arrays = pair(case)
    path = str(tmp_path / "model.onnx")
    to_onnx(single, path, initial_states=case.states, sequence_length=lengths is not None)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for repeat in (1, 3):  # any number of rows goes in
        axis = 1 if case.time_major else 0
        x = np.repeat(arrays.x, repeat, axis=axis)
        states = arrays.states and tuple(np.repeat(s, repeat, axis=1) for s in arrays.states)
        inputs = {"inputs": x}
        if states:
            inputs |= dict(zip(("h0", "c0"), states, strict=True))
        n = None if lengths is None else np.repeat(np.array(lengths), repeat)
        if n is not None:
            inputs["sequence_length"] = n
        truth = naive_outputs(double, x, states, n, np.float64)
        truth = {"y": truth.y, "h": truth.h, "c": truth.c}
        assert_outputs(single, session.run(None, inputs), truth, x, states, n)
        assert_outputs(single, flat(single(x, states, n)), truth, x, states, n)
    assert same_weights(from_onnx(path), single)


def flat(outputs):
    y, (h, c) = outputs
    return y, h, c


@pytest.mark.parametrize("dynamo", [True, False], ids=["exported", "traced"])
@unprojected
def test_exporters_of_torch(torch, tmp_path, case, dynamo):
    for package in ("onnx", *(["onnxscript"] if dynamo else [])):
        pytest.importorskip(package, reason=f"{package} is not installed: no export is tried")
    _, double, arrays = pair(case)
    module, path = to_torch(double), tmp_path / "model.onnx"
    x, *states = (torch.tensor(a).double() for a in (arrays.x, *(arrays.states or ())))
    torch.onnx.export(module, (x, tuple(states)) if states else (x,), path, dynamo=dynamo)
    assert with_absent_bias_as_zeros(from_onnx(path), double)


def test_a_projection_that_torch_exports_is_refused(torch, tmp_path):
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package, reason=f"{package} is not installed: no export is tried")
    path = tmp_path / "model.onnx"
    module = to_torch(LSTM(3, 4, proj_size=2).eval())
    torch.onnx.export(module, (torch.zeros(2, 5, 3),), path, dynamo=True)
    with pytest.raises(ValueError, match="writes an LSTM with a projection so, and it is lost"):
        from_onnx(path)


@unprojected
def test_exporter_of_keras(keras, tmp_path, case):
    tf2onnx = imported("tf2onnx")
    tensorflow = imported("tensorflow")
    if keras.backend.backend() != "tensorflow":
        pytest.skip("Keras runs on another backend: KERAS_BACKEND=tensorflow tries its export")
    single, _, _ = pair(case)
    model, path = to_keras(single), tmp_path / "model.onnx"
    signature = [tensorflow.TensorSpec((None, None, case.I), tensorflow.float32, name="x")]
    function = tensorflow.function(lambda x: model(x), input_signature=signature)
    tf2onnx.convert.from_function(
        function, input_signature=signature, opset=17, output_path=str(path)
    )
    twin, expected = from_onnx(path), from_keras(model).state_dict()
    for name, array in twin.state_dict().items():
        assert np.array_equal(array, expected.get(name, np.zeros_like(array)))
