"""Layers on CuPy arrays as objects: moved, copied, pickled, saved, loaded."""

import copy
import pickle

import numpy as np
import pytest
from cases import Case, results
from gpu_cases import (
    DTYPES,
    HALF,
    arrays_of,
    call,
    each_dtype,
    on_device,
    on_host,
    prepared,
    storage,
)
from gpu_on_cpu import record

from cupy_lstm import LSTM, RNN, Adam, BiRNN, Linear, LSTMCell, ParamAttr, initializer
from cupy_lstm.backend import sum_dtype

pytestmark = pytest.mark.gpu_on_cpu

RICH = Case(
    "rich-model", L=2, P=3, bidirectional=True, states=True, lengths=(3, 5, 0), dropout=0.5,
    upstream=("y", "h", "c", "cells"),
)  # fmt: skip


def layers(dtype="float32", xp="cupy"):
    options = {"dtype": dtype, "xp": xp, "seed": 0}
    return {
        "lstm": LSTM(3, 4, 2, "bidirect", proj_size=2, **options),
        "cell": LSTMCell(3, 4, **options),
        "rnn": RNN(LSTMCell(3, 4, **options), is_reverse=True),
        "birnn": BiRNN(LSTMCell(3, 4, **options), LSTMCell(3, 4, **options)),
        "linear": Linear(3, 4, **options),
    }


each_layer = pytest.mark.parametrize("kind", layers("float32", "numpy"))


def run(cupy, layer, kind):
    """One call and one backward; return everything as bytes."""
    shape = (2, 3) if kind == "cell" else (2, 5, 3)
    x = np.random.default_rng(0).standard_normal(shape).astype(layer.dtype)
    y = layer(cupy.asarray(x))
    y = y if kind == "linear" else y[0]
    dx = layer.backward(y)
    dx = dx if kind == "linear" else dx[0]
    grads = [p.grad for p in layer.parameters()]
    return [array.get().tobytes() for array in (y, dx, *grads)]


def same(first, second):
    return first.get().tobytes() == second.get().tobytes()


# --- made ----------------------------------------------------------------------------------------


@each_dtype
@each_layer
def test_weights_start_with_the_same_bits_on_both_sides(cupy, kind, dtype):
    ours = layers(dtype)[kind]
    host = layers("float64" if dtype == "float64" else "float32", "numpy")[kind]
    for (name, p), (other, q) in zip(ours.named_parameters(), host.named_parameters(), strict=True):
        assert name == other
        assert isinstance(p.data, cupy.ndarray)
        assert p.dtype == storage(dtype)
        assert p.numpy().tobytes() == q.data.astype(storage(dtype)).tobytes()


def test_xp_is_a_module_or_its_name(cupy):
    for xp in (cupy, "cupy"):
        layer = LSTM(3, 4, xp=xp, seed=0)
        assert layer.xp is cupy
        assert repr(layer) == "LSTM(3, 4, xp='cupy')"


@pytest.mark.parametrize(
    "drawn",
    [
        initializer.Constant(0.5), initializer.Normal(), initializer.TruncatedNormal(),
        initializer.Uniform(), initializer.XavierUniform(), initializer.KaimingNormal(),
        initializer.Orthogonal(),
    ],
    ids=lambda drawn: type(drawn).__name__,
)  # fmt: skip
def test_every_initializer(cupy, drawn):
    made = [
        LSTM(3, 4, weight_ih_attr=ParamAttr(initializer=drawn), xp=xp, seed=0)
        for xp in ("numpy", "cupy")
    ]
    host, ours = (layer.weight_ih_l0.numpy() for layer in made)
    assert host.tobytes() == ours.tobytes()


@pytest.mark.parametrize("dtype", ["int32", "complex64", "float128"])
def test_a_dtype_that_is_none(cupy, dtype):
    with pytest.raises(ValueError, match=r"dtype must be one of .*'bfloat16'"):
        LSTM(3, 4, dtype=dtype, xp="cupy")


# --- moved ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@each_layer
def test_there_and_back(cupy, kind, dtype):
    layer = layers(dtype, "numpy")[kind]
    before = {name: p.numpy() for name, p in layer.named_parameters()}
    assert layer.to("cupy") is layer
    assert layer.xp is cupy
    first = run(cupy, layer, kind)
    assert first == run(cupy, layers(dtype)[kind], kind)
    grads = {name: p.grad.get() for name, p in layer.named_parameters()}
    layer.to("numpy")
    for name, p in layer.named_parameters():
        assert isinstance(p.data, np.ndarray)
        assert p.data.tobytes() == before[name].tobytes()
        assert p.grad.tobytes() == grads[name].tobytes()


@pytest.mark.parametrize("first", DTYPES)
@pytest.mark.parametrize("second", DTYPES)
def test_to_another_dtype(cupy, first, second):
    layer = layers(first)["lstm"]
    run(cupy, layer, "lstm")
    before = {name: (p.data.copy(), p.grad.copy()) for name, p in layer.named_parameters()}
    layer.to(dtype=second)
    assert layer.dtype == storage(second)
    wide = sum_dtype(storage(second))
    for name, p in layer.named_parameters():
        assert same(p.data, before[name][0].astype(storage(second)))
        assert same(p.grad, before[name][1].astype(wide))
    layer.clear_gradients()
    run(cupy, layer, "lstm")


@pytest.mark.parametrize("dtype", HALF)
def test_halves_stay_on_the_gpu(cupy, dtype):
    layer = LSTM(3, 4, dtype=dtype, xp="cupy", seed=0)
    with pytest.raises(ValueError, match=r"dtype must be one of .* received"):
        layer.to("numpy")
    assert layer.xp is cupy
    run(cupy, layer, "lstm")
    layer.to("numpy", "float32")
    assert {p.dtype for p in layer.parameters()} == {np.dtype("float32")}


def test_an_optimiser_is_made_after_the_move(cupy):
    layer = Linear(3, 4, seed=0)
    adam = Adam(0.1, layer.parameters())
    layer.to("cupy")
    run(cupy, layer, "linear")
    before = layer.weight.numpy()
    with pytest.raises(RuntimeError, match=r"make the optimiser after \.to\(\.\.\.\)"):
        adam.step()
    assert layer.weight.numpy().tobytes() == before.tobytes()


# --- copied --------------------------------------------------------------------------------------


@each_dtype
@each_layer
@pytest.mark.parametrize("way", ["deepcopy", "pickle"])
def test_copies(cupy, kind, way, dtype):
    layer = layers(dtype)[kind]
    run(cupy, layer, kind)
    twin = copy.deepcopy(layer) if way == "deepcopy" else pickle.loads(pickle.dumps(layer))
    assert twin.xp is cupy
    for (name, p), (other, q) in zip(
        layer.named_parameters(), twin.named_parameters(), strict=True
    ):
        assert name == other
        assert same(p.data, q.data)
        assert same(p.grad, q.grad)
        assert p.data.data.ptr != q.data.data.ptr
    for one in (layer, twin):
        one.clear_gradients()
    assert run(cupy, layer, kind) == run(cupy, twin, kind)
    next(iter(twin.parameters())).data[...] = 0
    assert next(iter(layer.parameters())).data.any()


def test_a_copy_goes_on_with_its_own_dropout(cupy):
    lstm, arrays = prepared(cupy, RICH, "float32")
    twin = copy.deepcopy(lstm)
    first, second = (results(on_host(call(one, RICH, arrays))) for one in (lstm, twin))
    for name, array in first.items():
        assert array.tobytes() == second[name].tobytes(), name


# --- saved and loaded ----------------------------------------------------------------------------


@each_dtype
@each_layer
def test_a_state_is_live_and_loads_from_both_sides(cupy, kind, dtype):
    layer, other = layers(dtype)[kind], layers(dtype)[kind]
    for p in other.parameters():
        p.data[...] = 0
    state = layer.state_dict()
    assert all(isinstance(array, cupy.ndarray) for array in state.values())
    for given in (state, {name: array.get() for name, array in state.items()}):
        for p in other.parameters():
            p.data[...] = 0
        assert other.set_state_dict(given) == ([], [])
        for name, array in other.state_dict().items():
            assert same(array, state[name])
    name = next(iter(state))
    state[name][...] = 7  # a live view
    assert (layer.state_dict()[name].get().astype("f8") == 7).all()


@each_dtype
def test_a_wrong_state_changes_nothing(cupy, dtype):
    layer = layers(dtype)["lstm"]
    before = {name: p.numpy() for name, p in layer.named_parameters()}
    other = "float32" if dtype != "float32" else "float64"
    name = "bias_hh_l1_reverse"
    for bad in (cupy.zeros(3, storage(dtype)), cupy.zeros(16, other), np.zeros(16, other)):
        state = {n: cupy.zeros_like(p.data) for n, p in layer.named_parameters()} | {name: bad}
        with pytest.raises(ValueError, match=name):
            layer.set_state_dict(state)
        for n, p in layer.named_parameters():
            assert p.numpy().tobytes() == before[n].tobytes()


def test_weights_of_one_layer_can_change_places(cupy):
    layer = LSTM(3, 4, direction="bidirect", xp="cupy", seed=0)
    forward, reverse = layer.weight_ih_l0.numpy(), layer.weight_ih_l0_reverse.numpy()
    layer.set_state_dict(
        {"weight_ih_l0": layer.weight_ih_l0_reverse, "weight_ih_l0_reverse": layer.weight_ih_l0}
    )
    assert layer.weight_ih_l0.numpy().tobytes() == reverse.tobytes()
    assert layer.weight_ih_l0_reverse.numpy().tobytes() == forward.tobytes()


def test_both_directions_share_memory(cupy):
    """Flat memory is what an all-reduce wants; both directions are one buffer."""
    layer = LSTM(3, 4, direction="bidirect", xp="cupy", seed=0)
    run(cupy, layer, "lstm")
    for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
        one, other = getattr(layer, f"{kind}_l0"), getattr(layer, f"{kind}_l0_reverse")
        assert other.data.data.ptr - one.data.data.ptr == one.data.nbytes
        assert other.grad.data.ptr - one.grad.data.ptr == one.grad.nbytes


# --- versions and tapes --------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["set_value", "data", "optimiser", "state"])
def test_a_changed_weight_is_noticed_without_waiting(cupy, how):
    lstm, arrays = prepared(cupy, RICH, "float32")
    adam = Adam(0.1, lstm.parameters())
    call(lstm, RICH, arrays)
    y, _ = lstm(arrays.x)
    value = lstm.weight_ih_l0.data.copy()
    changes = {
        "set_value": lambda: lstm.weight_ih_l0.set_value(value),
        "data": lambda: setattr(lstm.weight_ih_l0, "data", value),
        "optimiser": adam.step,
        "state": lambda: lstm.set_state_dict(lstm.state_dict()),
    }
    with record() as log:
        changes[how]()
        with pytest.raises(RuntimeError, match="the weights have changed since the call"):
            lstm.backward(y)
    assert not log.synchronisations


def test_a_second_backward(cupy):
    lstm, arrays = prepared(cupy, RICH, "float32")
    call(lstm, RICH, arrays)
    with pytest.raises(RuntimeError, match="there is no call to go back through"):
        lstm.backward(arrays.upstream["y"])


@each_dtype
def test_dtypes_that_do_not_fit_are_both_named(cupy, dtype):
    lstm = LSTM(3, 4, dtype=dtype, xp="cupy", seed=0)
    other = "float64" if dtype != "float64" else "float32"
    x = cupy.ones((2, 5, 3), other)
    with pytest.raises(ValueError, match=rf"(?s)inputs.*{other}.*{dtype}|inputs.*{dtype}.*{other}"):
        lstm(x)
    good, wide = cupy.ones((2, 5, 3), storage(dtype)), sum_dtype(storage(dtype))
    h, c = cupy.zeros((1, 2, 4), storage(dtype)), cupy.zeros((1, 2, 4), wide)
    lstm(good, (h, c))
    if dtype in HALF:  # the cell state is float32 there
        with pytest.raises(ValueError, match=r"initial_states\[1\] \(c\)"):
            lstm(good, (h, h))


def test_upstream_gradients_of_a_half_type_have_the_dtypes_of_what_they_are_of(cupy):
    case = RICH
    arrays = on_device(cupy, arrays_of(case, "float16"))
    lstm, _ = prepared(cupy, case, "float16")
    y, (h, c), cells = lstm(arrays.x, arrays.states, arrays.lengths, return_cells=True)
    dx, (dh, dc) = lstm.backward(y, (h, c), cells)
    assert [a.dtype.name for a in (y, h, dx, dh)] == ["float16"] * 4
    assert [a.dtype.name for a in (c, cells, dc)] == ["float32"] * 3
