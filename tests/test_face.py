"""What a user sees and relies on: names, attributes, gradients, modes, moving."""

import dataclasses
import itertools

import numpy as np
import pytest
from cases import Case, assert_case, backward, build, forward, make_lstm, run_face
from face import (
    CONFIGURATIONS,
    KINDS,
    RICH,
    Model,
    assert_bit_equal,
    assert_sum_of_gradients,
    call_and_back,
    grads,
    normal,
    raised,
)

from cupy_lstm import LSTM, RNN, BiRNN, LSTMCell, ParamAttr
from cupy_lstm.initializer import Constant
from cupy_lstm.regularizer import L2Decay


@pytest.mark.parametrize(
    "case", CONFIGURATIONS, ids=lambda c: f"{c.L}{c.P}{c.D}{c.bias_ih}{c.bias_hh}"
)
def test_names_shapes_and_order(case):
    lstm = make_lstm(case, build(case, "float32").weights, "float32")
    expected = case.weight_shapes()
    assert [(n, p.shape) for n, p in lstm.named_parameters()] == list(expected.items())
    assert [p.name for p in lstm.parameters()] == list(expected)
    assert [(n, a.shape) for n, a in lstm.state_dict().items()] == list(expected.items())
    for name, parameter in lstm.named_parameters():
        assert getattr(lstm, name) is parameter
        assert parameter.data.shape == parameter.shape
        assert parameter.ndim == len(parameter.shape)
        assert parameter.size == parameter.data.size
    for layer, suffix in itertools.product(range(case.L), ("", "_reverse")[: case.D]):
        for kind, there in (("bias_ih", case.bias_ih), ("bias_hh", case.bias_hh)):
            assert (getattr(lstm, f"{kind}_l{layer}{suffix}") is None) == (not there)
        assert hasattr(lstm, f"weight_ho_l{layer}{suffix}") == bool(case.P)
    assert not hasattr(lstm, "weight_ih_l0_reverse") or case.bidirectional
    assert not hasattr(lstm, f"weight_ih_l{case.L}")


def test_attributes_of_paddle():
    lstm = LSTM(3, 4, 2, "bidirect", True, 0.5, proj_size=2)
    assert (lstm.mode, lstm.state_components, lstm.training) == ("LSTM", 2, True)
    assert (lstm.input_size, lstm.hidden_size, lstm.num_layers) == (3, 4, 2)
    assert (lstm.num_directions, lstm.proj_size) == (2, 2)
    assert (lstm.time_major, lstm.dropout) == (True, 0.5)
    assert lstm.flatten_parameters() is None
    assert lstm.xp is np
    assert lstm.dtype == np.float32
    assert LSTM(np.int64(3), np.uint8(4), np.int32(2)).hidden_size == 4


def test_positional_arguments_are_in_paddle_s_order():
    lstm = LSTM(3, 4, 1, "bidirectional", True, 0.5, False, None, False, None, "name")
    assert lstm.time_major
    assert lstm.dropout == 0.5
    assert lstm.bias_ih_l0 is None
    assert not lstm.weight_ih_l0.trainable
    assert "positional" in raised(TypeError, lambda: LSTM(3, 4, 1, "forward", *[None] * 9))


def test_each_kind_of_a_layer_is_one_contiguous_memory():
    lstm = LSTM(3, 4, 2, "bidirect", proj_size=2)
    for layer, kind in itertools.product(
        range(2), ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_ho")
    ):
        first, second = (getattr(lstm, f"{kind}_l{layer}{end}") for end in ("", "_reverse"))
        whole = first.buffer.data
        assert whole.flags.c_contiguous
        assert whole.shape == (2, *first.shape)
        assert second.buffer is first.buffer
        for parameter, row in ((first, whole[0]), (second, whole[1])):
            assert parameter.data.ctypes.data == row.ctypes.data


def test_names_around_a_cell():
    cell = LSTMCell(3, 4, bias_hh_attr=False, proj_size=2)
    names = ["weight_ih", "weight_hh", "bias_ih", "weight_ho"]
    assert list(cell.state_dict()) == names
    assert cell.bias_hh is None
    assert not hasattr(LSTMCell(3, 4), "weight_ho")
    assert list(RNN(cell).state_dict()) == [f"cell.{n}" for n in names]
    other = LSTMCell(3, 5)
    both = [f"cell_fw.{n}" for n in names]
    both += [f"cell_bw.{n}" for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
    assert list(BiRNN(cell, other).state_dict()) == both
    assert list(BiRNN(cell, cell).state_dict()) == both[:4]  # shared: each parameter once
    assert cell.state_shape == ((2,), (4,))
    h, c = cell.get_initial_states(np.zeros((7, 3)))
    assert (h.shape, c.shape, h.dtype, h.any(), c.any()) == (
        (7, 2),
        (7, 4),
        "float32",
        False,
        False,
    )


ATTR = ParamAttr(
    initializer=Constant(0.5),
    learning_rate=0.25,
    regularizer=L2Decay(0.1),
    trainable=False,
    do_model_average=False,
    need_clip=False,
)


@pytest.mark.parametrize("kind", KINDS)
def test_param_attr_lands_on_its_parameters(kind):
    lstm = LSTM(3, 4, 2, "bidirect", proj_size=2, **{f"{kind}_attr": ATTR})
    kinds = {kind, "weight_ho"} if kind == "weight_hh" else {kind}
    touched = 0
    for name, p in lstm.named_parameters():
        if name.split("_l")[0] in kinds:
            touched += 1
            assert (p.data == 0.5).all()
            assert p.optimize_attr == {"learning_rate": 0.25}
            assert p.regularizer == L2Decay(0.1)
            assert (p.trainable, p.stop_gradient) == (False, True)
            assert (p.do_model_average, p.need_clip) == (False, False)
        else:
            assert len(np.unique(p.data)) > 1
            assert p.optimize_attr == {"learning_rate": 1.0}
            assert p.regularizer is None
            assert (p.trainable, p.stop_gradient) == (True, False)
            assert (p.do_model_average, p.need_clip) == (True, True)
    assert touched == 4 * len(kinds)


@pytest.mark.parametrize(
    ("spelling", "seen"),
    [
        (None, lambda p: p.name == "weight_ih_l0"),
        (True, lambda p: p.name == "weight_ih_l0"),
        ("mine", lambda p: p.name == "mine"),
        (ParamAttr(name="mine"), lambda p: p.name == "mine"),
        (Constant(2), lambda p: (p.data == 2).all()),
        (L2Decay(0.5), lambda p: p.regularizer == L2Decay(0.5)),
        (False, lambda p: (p.data == 1).all() and not p.trainable),
    ],
    ids=["none", "true", "name", "attr", "initializer", "regularizer", "false"],
)
def test_every_spelling_of_an_attribute(spelling, seen):
    lstm = LSTM(3, 4, weight_ih_attr=spelling)
    assert seen(lstm.weight_ih_l0)
    assert next(iter(lstm.state_dict())) == "weight_ih_l0"  # whatever the parameter is called
    assert lstm.weight_hh_l0.name == "weight_hh_l0"


def test_weights_that_are_off_are_ones_and_frozen():
    lstm = LSTM(3, 4, weight_ih_attr=False, weight_hh_attr=False, proj_size=2)
    for p in (lstm.weight_ih_l0, lstm.weight_hh_l0, lstm.weight_ho_l0):
        assert (p.data == 1).all()
        assert not p.trainable
    y, _ = lstm(normal(2, 5, 3))
    lstm.backward(np.ones_like(y))
    assert [n for n, p in lstm.named_parameters() if p.grad is not None] == [
        "bias_ih_l0",
        "bias_hh_l0",
    ]


def test_a_parameter_cannot_be_rebound():
    lstm = LSTM(3, 4, bias_hh_attr=False)
    before = lstm.weight_ih_l0
    raised(TypeError, lambda: setattr(lstm, "weight_ih_l0", before.data))
    raised(TypeError, lambda: setattr(lstm, "bias_hh_l0", np.zeros(16, "float32")))
    assert lstm.weight_ih_l0 is before
    assert lstm.bias_hh_l0 is None


def test_set_value_and_data_copy_in():
    lstm = LSTM(3, 4)
    for value in (np.ones((16, 3), "float32"), np.full((3, 16), 2, "float32").T):
        for put in (lstm.weight_ih_l0.set_value, lambda v: setattr(lstm.weight_ih_l0, "data", v)):
            value.flags.writeable = False
            put(value)
            assert np.array_equal(lstm.weight_ih_l0.data, value)
            assert not np.shares_memory(lstm.weight_ih_l0.data, value)
    other = LSTM(3, 4)
    other.weight_ih_l0.set_value(lstm.weight_ih_l0)
    assert np.array_equal(other.weight_ih_l0.data, lstm.weight_ih_l0.data)
    host = other.weight_ih_l0.numpy()
    assert np.array_equal(host, other.weight_ih_l0.data)
    assert not np.shares_memory(host, other.weight_ih_l0.data)


# Gradients and trainable.


def test_gradients_before_during_and_after():
    lstm = LSTM(3, 4, 2, "bidirect", proj_size=2, seed=0)
    assert set(grads(lstm).values()) == {None}
    call_and_back(lstm)
    first = grads(lstm)
    for name, p in lstm.named_parameters():
        assert p.grad.shape == p.shape
        assert p.grad.dtype == p.dtype
        assert p.grad.any(), name
        assert np.shares_memory(p.grad, p.buffer.gradient)
    lstm.clear_gradients()
    assert not any(p.grad.any() for p in lstm.parameters())
    call_and_back(lstm)
    assert all(np.array_equal(p.grad, first[n]) for n, p in lstm.named_parameters())
    lstm.clear_gradients(set_to_zero=False)
    assert set(grads(lstm).values()) == {None}
    call_and_back(lstm)
    assert all(np.array_equal(p.grad, first[n]) for n, p in lstm.named_parameters())


def test_gradients_accumulate_over_different_calls():
    """One call's own gradients, of a dtype that rounds, are the parts of the sum."""
    lstm, parts = LSTM(3, 4, 2, "bidirect", proj_size=2, seed=0), []
    for seed in range(3):
        lstm.clear_gradients()
        call_and_back(lstm, seed)
        parts.append(grads(lstm))
    lstm.clear_gradients()
    for seed in range(3):
        call_and_back(lstm, seed)
    assert_sum_of_gradients(lstm, parts)


def test_toggling_trainable():
    lstm = LSTM(3, 4, 1, "bidirect", seed=0)
    expected = call_and_back(lstm)
    first = grads(lstm)
    lstm.weight_hh_l0.trainable = False
    lstm.bias_ih_l0_reverse.stop_gradient = True
    assert not lstm.bias_ih_l0_reverse.trainable
    assert lstm.weight_hh_l0.grad is None
    lstm.clear_gradients()
    assert np.array_equal(call_and_back(lstm), expected)
    frozen = ("weight_hh_l0", "bias_ih_l0_reverse")
    for name, p in lstm.named_parameters():
        assert (p.grad is None) == (name in frozen)
    lstm.weight_hh_l0.trainable = True
    lstm.bias_ih_l0_reverse.stop_gradient = False
    for name in frozen:
        assert not getattr(lstm, name).grad.any()  # nothing came in between
    lstm.clear_gradients()
    call_and_back(lstm)
    for name, p in lstm.named_parameters():
        assert np.array_equal(p.grad, first[name]), name


def test_trainable_counts_when_backward_runs():
    lstm = LSTM(3, 4, seed=0)
    y, _ = lstm(normal(2, 5, 3))
    lstm.weight_ih_l0.trainable = False
    lstm.backward(np.ones_like(y))
    assert lstm.weight_ih_l0.grad is None
    assert lstm.weight_hh_l0.grad.any()


# Modes and switches that are read at each call.


def test_train_and_eval():
    lstm = LSTM(3, 4, 2, dropout=0.5, seed=0)
    x = normal(2, 5, 3)
    assert lstm.training
    assert lstm.eval() is lstm
    assert not lstm.training
    first, second = lstm(x)[0], lstm(x)[0]
    assert np.array_equal(first, second)
    lstm.train()
    assert not np.array_equal(lstm(x)[0], first)


def test_time_major_takes_effect():
    lstm = LSTM(3, 4, 2, "bidirect", seed=0)
    x = normal(2, 5, 3)
    y, (h, c) = lstm(x)
    lstm.time_major = True
    z, (h2, c2) = lstm(x.swapaxes(0, 1))
    assert z.shape == (5, 2, 8)
    assert np.array_equal(z.swapaxes(0, 1), y)
    assert np.array_equal(h, h2)
    assert np.array_equal(c, c2)


def test_backward_goes_by_the_layout_and_the_mask_of_its_call():
    case = Case("switched", L=2, dropout=0.5, states=True)
    arrays = build(case, "float32")
    expected = run_face(case, arrays, "float32")
    lstm = make_lstm(case, arrays.weights, "float32")
    outputs = forward(lstm, case, arrays)
    lstm.time_major, lstm.dropout = True, 0.25
    lstm.eval()
    lstm.dropout_seed = 0
    assert_bit_equal(backward(lstm, case, arrays, outputs), expected)


def test_backward_in_evaluation_is_exact():
    case = dataclasses.replace(RICH, id="evaluation", dropout=0.0)
    arrays = build(case, "float32")
    lstm = make_lstm(case, arrays.weights, "float32")
    lstm.dropout = 0.5
    lstm.eval()
    assert_case(case, "float32", backward(lstm, case, arrays, forward(lstm, case, arrays)))


# Moving, seeds, texts.


def test_to_another_dtype_and_back():
    lstm = LSTM(3, 4, 2, "bidirect", proj_size=2, seed=0)
    call_and_back(lstm)
    parameters, single = lstm.parameters(), {n: a.copy() for n, a in lstm.state_dict().items()}
    gradients = grads(lstm)
    assert lstm.to(dtype="float64") is lstm
    assert lstm.parameters() == parameters  # the same objects
    assert lstm.dtype == np.float64
    for name, p in lstm.named_parameters():
        assert p.data.dtype == p.grad.dtype == p.dtype == np.float64
        assert np.array_equal(p.data, single[name])
        assert np.array_equal(p.grad, gradients[name])
    y, _ = lstm(normal(2, 5, 3, dtype="float64"))
    assert y.dtype == np.float64
    lstm.weight_ih_l0.data[...] = 1 / 3
    lstm.to("numpy", dtype=np.float32).to(np)
    assert (lstm.weight_ih_l0.data == np.float32(1 / 3)).all()
    assert lstm.parameters() == parameters
    call_and_back(lstm)


def test_to_reaches_every_part():
    model = Model().to(dtype="float64")
    assert {p.dtype for p in model.parameters()} == {np.dtype("float64")}
    assert model.dtype == model.encoder.dtype == model.decoder.cell_bw.dtype == np.float64
    x = normal(2, 6, 3, dtype="float64")
    assert model.backward(np.ones_like(model(x))).dtype == np.float64
    rnn = RNN(LSTMCell(3, 4))
    rnn.cell.to(dtype="float64")
    assert rnn.dtype == np.float64


def test_a_failed_move_changes_nothing(monkeypatch):
    """The last of the copies cannot be made."""
    model = Model()
    model.backward(np.ones_like(model(normal(2, 6, 3))))
    model(normal(2, 6, 3))
    weights = [(p.data, p.data.copy(), p.grad.copy()) for p in model.parameters()]
    last = model.head.bias.buffer
    monkeypatch.setattr(last, "moved", lambda *_: (_ for _ in ()).throw(MemoryError()))
    raised(MemoryError, lambda: model.to(dtype="float64"))
    assert model.dtype == model.encoder.dtype == np.float32
    for p, (view, data, gradient) in zip(model.parameters(), weights, strict=True):
        assert np.shares_memory(p.data, view)
        assert np.array_equal(p.data, data)
        assert np.array_equal(p.grad, gradient)
    model.backward(np.ones((2, 6, 2), "float32"))  # the tapes are still there


def test_seeds():
    def weights(make):
        return {n: p.numpy() for n, p in make.named_parameters()}

    for make in (
        lambda seed: LSTM(3, 4, 2, "bidirect", proj_size=2, seed=seed),
        lambda seed: LSTMCell(3, 4, seed=seed),
    ):
        first, same, other, fresh = (weights(make(s)) for s in (3, np.int64(3), 4, None))
        for name in first:
            assert np.array_equal(first[name], same[name])
            assert not np.array_equal(first[name], other[name])
            assert not np.array_equal(first[name], fresh[name])
    assert LSTM(3, 4, seed=3).dropout_seed == LSTM(3, 4, seed=3).dropout_seed


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: LSTM(3, 4), "LSTM(3, 4)"),
        (
            lambda: LSTM(3, 4, 2, "bidirect", True, 0.5, proj_size=2, dtype="float64"),
            "LSTM(3, 4, direction='bidirectional', num_layers=2, time_major=True, dropout=0.5, "
            "proj_size=2, dtype='float64')",
        ),
        (lambda: LSTMCell(3, 4), "LSTMCell(3, 4)"),
        (lambda: LSTMCell(3, 4, proj_size=2), "LSTMCell(3, 4, proj_size=2)"),
        (lambda: RNN(LSTMCell(3, 4)), "RNN(LSTMCell(3, 4))"),
        (
            lambda: RNN(LSTMCell(3, 4), True, True),
            "RNN(LSTMCell(3, 4), is_reverse=True, time_major=True)",
        ),
        (
            lambda: BiRNN(LSTMCell(3, 4), LSTMCell(3, 5), True),
            "BiRNN(LSTMCell(3, 4), LSTMCell(3, 5), time_major=True)",
        ),
        (
            lambda: LSTM(3, 4).weight_ih_l0,
            "Parameter('weight_ih_l0', shape=(16, 3), dtype=float32, numpy, trainable=True)",
        ),
    ],
)
def test_repr(make, text):
    assert repr(make()) == text
