"""Bad inputs of calls and of backward passes; arrays that are elsewhere."""

import math
import sys
import types

import numpy as np
import pytest
from bench import (
    NO_GRADIENT,
    TO_FLOAT32,
    Bad,
    Bench,
    assert_fails,
    assert_survives,
)
from face import CHANGED, NO_CALL

from cupy_lstm import LSTM, Linear, LSTMCell, no_grad
from cupy_lstm.functional import lstm_backward

V, T = ValueError, TypeError


CALLS = [
    Bad(lambda b: b.lstm(None), T, "inputs must be an array of numpy, received NoneType"),
    Bad(lambda b: b.lstm(b.x.tolist()), T, "inputs must be an array of numpy, received list"),
    Bad(
        lambda b: b.lstm(np.ma.masked_less(b.x, 0)),
        T,
        "inputs must be an array of numpy, received MaskedArray",
    ),
    Bad(
        lambda b: b.lstm(b.x.astype("float64")),
        V,
        f"inputs has dtype float64, but the weights have float32: {TO_FLOAT32}",
    ),
    Bad(
        lambda b: b.lstm(b.x.astype(int)),
        V,
        f"inputs has dtype int64, but the weights have float32: {TO_FLOAT32}",
    ),
    Bad(
        lambda b: b.lstm(b.x.astype(">f4")),
        V,
        f"inputs has dtype >f4, but the weights have float32: {TO_FLOAT32}",
    ),
    Bad(
        lambda b: b.lstm(b.x[0]),
        V,
        "inputs has shape [5, 3], but must have shape [batch, steps, 3]",
    ),
    Bad(
        lambda b: b.lstm(b.x[None]),
        V,
        "inputs has shape [1, 2, 5, 3], but must have shape [batch, steps, 3]",
    ),
    Bad(
        lambda b: b.lstm(b.x[..., :2]),
        V,
        "inputs has shape [2, 5, 2], but must have shape [batch, steps, 3]",
    ),
    Bad(
        lambda b: LSTM(3, 4, time_major=True)(b.x[0]),
        V,
        "inputs has shape [5, 3], but must have shape [steps, batch, 3]",
    ),
    Bad(
        lambda b: b.lstm(b.x, b.h),
        T,
        "initial_states must be a tuple (h, c), received ndarray",
    ),
    Bad(
        lambda b: b.lstm(b.x, {"h": b.h, "c": b.c}),
        T,
        "initial_states must be a tuple (h, c), received dict",
    ),
    Bad(
        lambda b: b.lstm(b.x, (b.h,)),
        V,
        "initial_states must be a tuple (h, c), received 1 elements",
    ),
    Bad(
        lambda b: b.lstm(b.x, [b.h, b.c, b.h]),
        V,
        "initial_states must be a tuple (h, c), received 3 elements",
    ),
    Bad(
        lambda b: b.lstm(b.x, (b.h, None)),
        T,
        "initial_states[1] (c) must be an array of numpy, received NoneType",
    ),
    Bad(
        lambda b: b.lstm(b.x, (b.h[0], b.c)),
        V,
        "initial_states[0] (h) has shape [2, 4], but must have shape [4, 2, 4]",
    ),
    Bad(
        lambda b: b.lstm(b.x, (b.h, b.c[:2])),
        V,
        "initial_states[1] (c) has shape [2, 2, 4], but must have shape [4, 2, 4]",
    ),
    Bad(
        lambda b: b.lstm(b.x, (b.h[:, :1], b.c)),
        V,
        "initial_states[0] (h) has shape [4, 1, 4], but must have shape [4, 2, 4]",
    ),
    Bad(
        lambda b: b.lstm(b.x, (b.h, b.c.astype("float64"))),
        V,
        f"initial_states[1] (c) has dtype float64, but the weights have float32: {TO_FLOAT32}",
    ),
    Bad(lambda b: b.cell(b.x0[0]), V, "inputs has shape [3], but must have shape [batch, 3]"),
    Bad(lambda b: b.cell(b.x), V, "inputs has shape [2, 5, 3], but must have shape [batch, 3]"),
    Bad(lambda b: b.cell(3), T, "inputs must be an array of numpy, received int"),
    Bad(lambda b: b.cell(b.x0, b.h), T, "states must be a tuple (h, c), received ndarray"),
    Bad(lambda b: b.cell(b.x0, ()), V, "states must be a tuple (h, c), received 0 elements"),
    Bad(
        lambda b: b.cell(b.x0, b.own),
        V,
        "states[0] (h) has shape [2, 4], but must have shape [2, 2]",
    ),
    Bad(
        lambda b: b.cell(b.x0, (b.small[0], b.small[1][:1])),
        V,
        "states[1] (c) has shape [1, 4], but must have shape [2, 4]",
    ),
    Bad(
        lambda b: b.rnn(b.x0),
        V,
        "inputs has shape [2, 3], but must have shape [batch, steps, 3]",
    ),
    Bad(
        lambda b: b.rnn(b.x, (b.h, b.c)),
        V,
        "initial_states[0] (h) has shape [4, 2, 4], but must have shape [2, 4]",
    ),
    Bad(
        lambda b: b.rnn(b.x, (b.own[0], 0)),
        T,
        "initial_states[1] (c) must be an array of numpy, received int",
    ),
    Bad(
        lambda b: b.rnn(b.x, sequence_length=[1, 9]),
        V,
        "sequence_length[1] is 9, but inputs have 5 steps",
    ),
    Bad(
        lambda b: b.birnn(b.x, b.own[0]),
        T,
        "initial_states must be a tuple ((h, c), (h, c)), received ndarray",
    ),
    Bad(
        lambda b: b.birnn(b.x, b.own),
        T,
        "initial_states[0] must be a tuple (h, c), received ndarray",
    ),
    Bad(
        lambda b: b.birnn(b.x, (b.own, b.own[:1])),
        V,
        "initial_states[1] must be a tuple (h, c), received 1 elements",
    ),
    Bad(
        lambda b: b.birnn(b.x, (b.own, b.small)),
        V,
        "initial_states[1][0] (h) has shape [2, 2], but must have shape [2, 4]",
    ),
    Bad(
        lambda b: b.birnn(b.x, sequence_length=[5]),
        V,
        "sequence_length has shape [1], but must have shape [2], one length for each row",
    ),
]

LENGTHS = [
    (5, V, "has shape [], but must have shape [2], one length for each row"),
    ([5], V, "has shape [1], but must have shape [2], one length for each row"),
    ([], V, "has shape [0], but must have shape [2], one length for each row"),
    ([[5, 3]], V, "has shape [1, 2], but must have shape [2], one length for each row"),
    ([6, 3], V, "[0] is 6, but inputs have 5 steps"),
    ([5, -1], V, "[1] is -1, but a length cannot be negative"),
    (np.array([1, 250], "uint8"), V, "[1] is 250, but inputs have 5 steps"),
    (np.array([2**64 - 1, 1], "uint64"), V, f"[0] is {2**64 - 1}, but inputs have 5 steps"),
    ([5.0, 3.0], V, "must hold integers, received dtype float64"),
    ([True, False], V, "must hold integers, received dtype bool"),
    ([math.nan, 1], V, "must hold integers, received dtype float64"),
    ([[1], [2, 3]], V, "must be one integer for each row, received [[1], [2, 3]]"),
    ([None, 3], T, "must hold integers, received list of dtype object"),
    ([2**70, 3], T, "must hold integers, received list of dtype object"),
    (["5", "3"], T, "must hold integers, received list of dtype <U1"),
    ("53", T, "must hold integers, received str of dtype <U2"),
    ({5, 3}, T, "must hold integers, received set of dtype object"),
    (np.array([5, 3], object), T, "must hold integers, received ndarray of dtype object"),
]
CALLS += [
    Bad(
        lambda b, value=value: b.lstm(b.x, None, value),
        error,
        f"sequence_length{' ' * (not message.startswith('['))}{message}",
    )
    for value, error, message in LENGTHS
]

BACKWARDS = [
    Bad(lambda b: LSTM(3, 4).backward(b.y), RuntimeError, NO_CALL),
    Bad(lambda b: b.lstm.backward(), V, NO_GRADIENT),
    Bad(lambda b: b.lstm.backward(None, (None, None)), V, NO_GRADIENT),
    Bad(
        lambda b: b.lstm.backward(b.y.tolist()),
        T,
        "doutputs must be an array of numpy, received list",
    ),
    Bad(lambda b: b.lstm.backward(1.0), T, "doutputs must be an array of numpy, received float"),
    Bad(
        lambda b: b.lstm.backward(b.y[:1]),
        V,
        "doutputs has shape [1, 5, 8], but must have shape [2, 5, 8]",
    ),
    Bad(
        lambda b: b.lstm.backward(b.y.swapaxes(0, 1)),
        V,
        "doutputs has shape [5, 2, 8], but must have shape [2, 5, 8]",
    ),
    Bad(
        lambda b: b.lstm.backward(b.y.astype("float64")),
        V,
        f"doutputs has dtype float64, but the inputs have float32: {TO_FLOAT32}",
    ),
    Bad(
        lambda b: b.lstm.backward(b.y, b.h),
        T,
        "dfinal_states must be a tuple (dh, dc), received ndarray",
    ),
    Bad(
        lambda b: b.lstm.backward(b.y, (b.h,)),
        V,
        "dfinal_states must be a tuple (dh, dc), received 1 elements",
    ),
    Bad(
        lambda b: b.lstm.backward(b.y, (b.h[:2], None)),
        V,
        "dfinal_states[0] (dh) has shape [2, 2, 4], but must have shape [4, 2, 4]",
    ),
    Bad(
        lambda b: b.lstm.backward(b.y, (None, b.c.astype("float64"))),
        V,
        f"dfinal_states[1] (dc) has dtype float64, but the inputs have float32: {TO_FLOAT32}",
    ),
    Bad(
        lambda b: b.lstm.backward(b.y, (None, 0)),
        T,
        "dfinal_states[1] (dc) must be an array of numpy, received int",
    ),
    Bad(
        lambda b: b.lstm.backward(b.y, None, b.cells[..., :4]),
        V,
        "dcells has shape [2, 5, 4], but must have shape [2, 5, 8]",
    ),
    Bad(
        lambda b: b.lstm.backward(b.y, None, "cells"),
        T,
        "dcells must be an array of numpy, received str",
    ),
    Bad(lambda b: b.cell.backward(), V, NO_GRADIENT),
    Bad(lambda b: b.cell.backward(None, (None, None)), V, NO_GRADIENT),
    Bad(
        lambda b: b.cell.backward(b.own[0]),
        V,
        "doutputs has shape [2, 4], but must have shape [2, 2]",
    ),
    Bad(lambda b: b.cell.backward([1]), T, "doutputs must be an array of numpy, received list"),
    Bad(
        lambda b: b.cell.backward(None, (b.own[0], None)),
        V,
        "dfinal_states[0] has shape [2, 4], but must have shape [2, 2]",
    ),
    Bad(
        lambda b: b.cell.backward(None, b.own[0]),
        T,
        "dfinal_states must be a tuple (dh, dc), received ndarray",
    ),
    Bad(lambda b: b.rnn.backward(), V, NO_GRADIENT),
    Bad(
        lambda b: b.rnn.backward(b.y),
        V,
        "doutputs has shape [2, 5, 8], but must have shape [2, 5, 4]",
    ),
    Bad(
        lambda b: b.rnn.backward(None, (b.own[0], b.h)),
        V,
        "dfinal_states[1] has shape [4, 2, 4], but must have shape [2, 4]",
    ),
    Bad(
        lambda b: b.rnn.backward(None, (b.own[0],)),
        V,
        "dfinal_states must be a tuple (dh, dc), received 1 elements",
    ),
    Bad(lambda b: b.birnn.backward(), V, NO_GRADIENT),
    Bad(lambda b: b.birnn.backward(None, ((None, None), None)), V, NO_GRADIENT),
    Bad(
        lambda b: b.birnn.backward(b.y[..., :4]),
        V,
        "doutputs has shape [2, 5, 4], but must have shape [2, 5, 8]",
    ),
    Bad(
        lambda b: b.birnn.backward(b.y, 3),
        T,
        "dfinal_states must be a tuple ((dh, dc), (dh, dc)), received int",
    ),
    Bad(
        lambda b: b.birnn.backward(b.y, b.own),
        T,
        "dfinal_states[0] must be a tuple (dh, dc), received ndarray",
    ),
    Bad(
        lambda b: b.birnn.backward(b.y, (b.own, 3)),
        T,
        "dfinal_states[1] must be a tuple (dh, dc), received int",
    ),
    Bad(
        lambda b: b.birnn.backward(None, ((), b.own)),
        V,
        "dfinal_states[0] must be a tuple (dh, dc), received 0 elements",
    ),
    Bad(
        lambda b: b.birnn.backward(b.y, (b.own, b.small)),
        V,
        "dfinal_states[1][0] has shape [2, 2], but must have shape [2, 4]",
    ),
]


TABLE = CALLS + BACKWARDS


@pytest.mark.parametrize("bad", TABLE, ids=[f"{k}-{b.message[:50]}" for k, b in enumerate(TABLE)])
def test_bad_input(bad):
    assert_fails(bad)


def test_one_bench_survives_all_of_them():
    assert_survives(TABLE)


def test_misuse_of_tapes():
    """The messages of what uses a tape up, and of weights that have changed."""
    bench = Bench()
    bench.go_back()
    for layer, gradient in zip(
        bench.layers, (bench.y, bench.y, *bench.small[:1], bench.y, bench.y), strict=True
    ):
        with pytest.raises(RuntimeError) as raised:
            layer.backward(gradient)
        assert str(raised.value) == NO_CALL
    with pytest.raises(RuntimeError) as raised:
        lstm_backward(bench.tape, bench.y)
    assert str(raised.value) == "the tape of this forward has been used: run the forward again"
    bench.call()
    bench.lstm.bias_hh_l1.set_value(bench.lstm.bias_ih_l1)
    with pytest.raises(RuntimeError) as raised:
        bench.lstm.backward(bench.y)
    assert str(raised.value) == CHANGED
    with no_grad():
        *_, tape = bench.core()
    assert tape is None


# Arrays of another module or device. What the checks look at is imitated: no GPU is needed.


class DeviceArray:
    """Looks like an array of CuPy on a device."""

    def __init__(self, shape, dtype="float32", device=0):
        self.shape, self.ndim, self.dtype = shape, len(shape), np.dtype(dtype)
        self.device = types.SimpleNamespace(id=device)


@pytest.fixture
def cupy(monkeypatch):
    module = types.ModuleType("cupy")
    module.ndarray = DeviceArray
    module.get_array_module = lambda *arrays: (
        module if any(isinstance(a, DeviceArray) for a in arrays) else np
    )
    monkeypatch.setitem(sys.modules, "cupy", module)


def elsewhere(argument, owner, module="cupy"):
    return (
        f"{argument} is on cupy, device 0, but {owner} are on numpy: move one of them, for "
        f"example with .to({module!r})"
    )


ELSEWHERE = [
    Bad(lambda b: b.lstm(DeviceArray((2, 5, 3))), T, elsewhere("inputs", "the weights")),
    Bad(
        lambda b: b.lstm(b.x, (b.h, DeviceArray((4, 2, 4)))),
        T,
        elsewhere("initial_states[1] (c)", "the weights"),
    ),
    Bad(
        lambda b: b.lstm(b.x, None, DeviceArray((2,), "int64")),
        T,
        elsewhere("sequence_length", "the inputs"),
    ),
    Bad(lambda b: b.cell(DeviceArray((2, 3))), T, elsewhere("inputs", "the weights")),
    Bad(
        lambda b: b.birnn(b.x, (b.own, (b.own[0], DeviceArray((2, 4))))),
        T,
        elsewhere("initial_states[1][1] (c)", "the weights"),
    ),
    Bad(lambda b: b.lstm.backward(DeviceArray((2, 5, 8))), T, elsewhere("doutputs", "the inputs")),
    Bad(
        lambda b: b.lstm.backward(b.y, (None, DeviceArray((4, 2, 4)))),
        T,
        elsewhere("dfinal_states[1] (dc)", "the inputs"),
    ),
    Bad(
        lambda b: b.lstm.backward(b.y, None, DeviceArray((2, 5, 8))),
        T,
        elsewhere("dcells", "the inputs"),
    ),
    Bad(
        lambda b: b.lstm.weight_ih_l0.set_value(DeviceArray((16, 3))),
        T,
        "weight_ih_l0 is on numpy, received an array on cupy, device 0: copy it there first",
    ),
    Bad(
        lambda b: b.lstm.set_state_dict({"0.cell_fw.bias_ih": DeviceArray((16,))}),
        T,
        "state_dict['0.cell_fw.bias_ih']: bias_ih_l0 is on numpy, received an array on cupy, "
        "device 0: copy it there first; nothing was loaded",
    ),
    Bad(lambda b: b.core(DeviceArray((2, 5, 3))), T, elsewhere("inputs", "the weights")),
    Bad(
        lambda b: b.one(weight_hh=DeviceArray((2, 16, 4))),
        T,
        elsewhere("weights[0].weight_hh", "the first layer's weights"),
    ),
    Bad(
        lambda b: lstm_backward(
            b.tape,
            b.y,
            gradients=[b.gradients[0], b.gradients[1]._replace(bias_hh=DeviceArray((2, 16)))],
        ),
        T,
        elsewhere("gradients[1].bias_hh", "the weights"),
    ),
]


@pytest.mark.parametrize("bad", ELSEWHERE, ids=[b.message[:40] for b in ELSEWHERE])
def test_arrays_of_another_place(bad, cupy):
    assert_fails(bad)


@pytest.mark.parametrize(
    "call",
    [
        lambda b: LSTM(3, 4, xp="cupy"),
        lambda b: LSTMCell(3, 4, xp="cupy"),
        lambda b: b.lstm.to("cupy"),
        lambda b: b.birnn.to("cupy", dtype="float64"),
        lambda b: Linear(3, 4, xp="cupy"),
    ],
)
def test_cupy_that_is_not_there(call, monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    message = (
        "xp='cupy' needs CuPy: pip install 'cupy_lstm[cuda12x]' (or cuda13x for CUDA 13); "
        "importing it failed with: import of cupy halted; None in sys.modules"
    )
    assert_fails(Bad(call, ImportError, message))
