"""Bad inputs of the functional core."""

import numpy as np
import pytest
from bench import DTYPES, NO_GRADIENT, TO_FLOAT32, Bad, assert_fails, assert_survives

from cupy_lstm.functional import lstm_backward, lstm_forward
from cupy_lstm.notation import LayerWeights, Wanted

V, T = ValueError, TypeError

TAPE = "tape must be the Tape of a recorded lstm_forward (inside no_grad() none is kept), received"

NARROW = np.zeros((2, 16, 2), "float32")
PROJECTION = np.zeros((2, 4, 2), "float32")
FIRST = "the first layer's weights"
CORE = [
    Bad(
        lambda b: b.core(weights=b.first),
        T,
        "weights must be a sequence of LayerWeights, one for each layer, received PerWeight",
    ),
    Bad(
        lambda b: lstm_forward(b.x, None),
        T,
        "weights must be a sequence of LayerWeights, one for each layer, received NoneType",
    ),
    Bad(
        lambda b: b.core(weights={0: b.first}),
        T,
        "weights must be a sequence of LayerWeights, one for each layer, received dict",
    ),
    Bad(lambda b: b.core(weights=[]), V, "weights must hold at least one layer, received none"),
    Bad(
        lambda b: b.core(weights=[b.first, b.x]),
        T,
        "weights[1] must be a LayerWeights, received ndarray",
    ),
    Bad(
        lambda b: b.one(weight_ih=None),
        T,
        "weights[0].weight_ih must be an array of numpy or cupy, received NoneType",
    ),
    Bad(
        lambda b: b.one(weight_hh=[[0.0]]),
        T,
        "weights[0].weight_hh must be an array of numpy or cupy, received list",
    ),
    Bad(
        lambda b: b.one(weight_ih=b.first.weight_ih[0]),
        V,
        "weights[0].weight_ih has shape [16, 3], but must have shape [2, 4H, any]",
    ),
    Bad(
        lambda b: b.one(weight_ih=b.first.weight_ih[:, :6]),
        V,
        "weights[0].weight_ih has shape [2, 6, 3], but its second size is 4H and must be a "
        "positive multiple of 4",
    ),
    Bad(
        lambda b: b.one(weight_hh=b.first.weight_hh[..., :3]),
        V,
        "weights[0].weight_hh has shape [2, 16, 3], but must have shape [2, 16, 4]",
    ),
    Bad(
        lambda b: b.one(bias_ih=b.first.bias_ih[:1]),
        V,
        "weights[0].bias_ih has shape [1, 16], but must have shape [2, 16]",
    ),
    Bad(
        lambda b: b.one(bias_hh=b.first.bias_hh.astype("float64")),
        V,
        f"weights[0].bias_hh has dtype float64, but {FIRST} have float32: {TO_FLOAT32}",
    ),
    Bad(
        lambda b: b.one(weight_ho=b.first.weight_hh),
        V,
        "weights[0].weight_ho has shape [2, 16, 4], but must have shape [2, 4, 4]",
    ),
    Bad(
        lambda b: b.core(weights=[b.first, b.first]),
        V,
        "weights[1].weight_ih has shape [2, 16, 3], but must have shape [2, 4H, 8]",
    ),
    Bad(
        lambda b: b.core(
            weights=[b.first, b.second._replace(weight_ih=np.zeros((2, 20, 8), "f4"))]
        ),
        V,
        "weights[1].weight_ih has shape [2, 20, 8], but must have shape [2, 16, 8]",
    ),
    Bad(
        lambda b: b.core(
            weights=[b.first, b.second._replace(weight_hh=NARROW, weight_ho=PROJECTION)]
        ),
        V,
        "weights[0].weight_ho is None, but another layer has one",
    ),
    Bad(
        lambda b: b.core(
            weights=[
                b.first._replace(weight_hh=NARROW, weight_ho=PROJECTION),
                b.second._replace(weight_ih=b.first.weight_hh, weight_hh=NARROW),
            ]
        ),
        V,
        "weights[1].weight_ho is None, but another layer has one",
    ),
    Bad(
        lambda b: b.core(
            weights=[
                b.first._replace(weight_hh=NARROW, weight_ho=PROJECTION),
                b.second._replace(
                    weight_ih=b.first.weight_hh, weight_ho=np.zeros((2, 4, 4), "float32")
                ),
            ]
        ),
        V,
        "weights[1].weight_hh has shape [2, 16, 4], but must have shape [2, 16, 2]",
    ),
    *(
        Bad(
            lambda b, dtype=dtype: b.core(
                b.x.astype(dtype), [LayerWeights(*(a.astype(dtype) for a in b.first[:4]))]
            ),
            V,
            f"weights[0].weight_ih has dtype {dtype}, but must have one of {DTYPES}",
        )
        for dtype in ("float16", "int32", "complex64", ">f4")
    ),
    Bad(lambda b: b.core(reverse=()), V, "reverse must hold at least one direction, received ()"),
    *(
        Bad(
            lambda b, value=value: b.core(reverse=value),
            T,
            f"reverse must be a tuple of bool, one for each direction, received {value!r}",
        )
        for value in (None, True, "forward", [False, True], (0, 1))
    ),
    Bad(
        lambda b: b.core(reverse=(False,)),
        V,
        "weights[0].weight_ih has shape [2, 16, 3], but must have shape [1, 4H, any]",
    ),
    Bad(lambda b: b.core(dropout=0.5), T, "dropout must be a Dropout or None, received float"),
    Bad(lambda b: b.core([1.0]), T, "inputs must be an array of numpy, received list"),
    Bad(
        lambda b: b.core(b.x.swapaxes(0, 2)),
        V,
        "inputs has shape [3, 5, 2], but must have shape [batch, steps, 3]",
    ),
    Bad(
        lambda b: b.core(initial_states=(b.h, b.c[:, :, :2])),
        V,
        "initial_states[1] (c) has shape [4, 2, 2], but must have shape [4, 2, 4]",
    ),
    Bad(
        lambda b: b.core(sequence_length=[5, 6]),
        V,
        "sequence_length[1] is 6, but inputs have 5 steps",
    ),
    Bad(lambda b: lstm_backward(None, b.y), T, f"{TAPE} NoneType"),
    Bad(lambda b: lstm_backward(b.lstm, b.y), T, f"{TAPE} LSTM"),
    Bad(lambda b: lstm_backward(b.tape), V, NO_GRADIENT),
    Bad(
        lambda b: lstm_backward(b.tape, b.y[0]),
        V,
        "doutputs has shape [5, 8], but must have shape [2, 5, 8]",
    ),
    Bad(
        lambda b: lstm_backward(b.tape, b.y, (b.h, b.h[0])),
        V,
        "dfinal_states[1] (dc) has shape [2, 4], but must have shape [4, 2, 4]",
    ),
    Bad(
        lambda b: lstm_backward(b.tape, b.y, wanted=3),
        T,
        "wanted must be a sequence with one PerWeight for each layer, received int",
    ),
    Bad(
        lambda b: lstm_backward(b.tape, b.y, wanted=[]),
        V,
        "wanted must hold one entry for each of the 2 layers, received 0",
    ),
    Bad(
        lambda b: lstm_backward(b.tape, b.y, wanted=[None, None]),
        T,
        "wanted[0] must be a PerWeight, received NoneType",
    ),
    Bad(
        lambda b: lstm_backward(b.tape, b.y, wanted=[Wanted(None, True), Wanted(None, None)]),
        T,
        "wanted[0].weight_hh must be a slice or None, received bool",
    ),
    Bad(
        lambda b: lstm_backward(b.tape, b.y, gradients=b.gradients[0]),
        T,
        "gradients must be a sequence with one PerWeight for each layer, received PerWeight",
    ),
    Bad(
        lambda b: lstm_backward(b.tape, b.y, gradients=b.gradients[:1]),
        V,
        "gradients must hold one entry for each of the 2 layers, received 1",
    ),
    Bad(
        lambda b: lstm_backward(
            b.tape, b.y, gradients=[b.gradients[0], b.gradients[1]._replace(bias_hh=None)]
        ),
        V,
        "gradients[1].bias_hh is None, but wanted[1].bias_hh asks for it",
    ),
    Bad(
        lambda b: lstm_backward(
            b.tape, b.y, gradients=[b.gradients[0], b.gradients[1]._replace(bias_hh=b.x)]
        ),
        V,
        "gradients[1].bias_hh has shape [2, 5, 3], but must have shape [2, 16]",
    ),
    Bad(
        lambda b: lstm_backward(
            b.tape, b.y, gradients=[b.gradients[0]._replace(weight_ih=np.zeros((2, 16, 3)))] * 2
        ),
        V,
        f"gradients[0].weight_ih has dtype float64, but the weights have float32: {TO_FLOAT32}",
    ),
]


TABLE = CORE


@pytest.mark.parametrize("bad", TABLE, ids=[f"{k}-{b.message[:50]}" for k, b in enumerate(TABLE)])
def test_bad_input(bad):
    assert_fails(bad)


def test_one_bench_survives_all_of_them():
    assert_survives(TABLE)
