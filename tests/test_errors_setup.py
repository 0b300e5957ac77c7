"""Bad arguments of constructors, weights that do not fit, bad settings."""

import math

import numpy as np
import pytest
from bench import (
    DIRECTIONS,
    DTYPES,
    MODULES,
    TO_FLOAT32,
    Bad,
    assert_fails,
    assert_survives,
)

from cupy_lstm import LSTM, RNN, BiRNN, LSTMCell, ParamAttr, engine
from cupy_lstm.dropout import Dropout
from cupy_lstm.initializer import Assign, Orthogonal, Uniform
from cupy_lstm.plan import ENGINES

V, T = ValueError, TypeError

ENGINE_NAMES = ("auto", *ENGINES)
ATTRIBUTE = "must be None, a bool, a name, a ParamAttr, an Initializer or a Regularizer, received"

CONSTRUCTIONS = [
    Bad(lambda b: LSTM(0, 4), V, "input_size must be at least 1, received 0"),
    Bad(lambda b: LSTM(-3, 4), V, "input_size must be at least 1, received -3"),
    Bad(lambda b: LSTM(3.0, 4), T, "input_size must be an integer, received 3.0"),
    Bad(lambda b: LSTM("3", 4), T, "input_size must be an integer, received '3'"),
    Bad(lambda b: LSTM(None, 4), T, "input_size must be an integer, received None"),
    Bad(lambda b: LSTM(3, 0), V, "hidden_size must be at least 1, received 0"),
    Bad(lambda b: LSTM(3, True), T, "hidden_size must be an integer, received True"),
    Bad(lambda b: LSTM(3, [4]), T, "hidden_size must be an integer, received [4]"),
    Bad(lambda b: LSTM(3, 4, 0), V, "num_layers must be at least 1, received 0"),
    Bad(lambda b: LSTM(3, 4, -1), V, "num_layers must be at least 1, received -1"),
    Bad(lambda b: LSTM(3, 4, 1.5), T, "num_layers must be an integer, received 1.5"),
    Bad(lambda b: LSTM(3, 4, True), T, "num_layers must be an integer, received True"),
    Bad(
        lambda b: LSTM(3, 4, 1, "backward"),
        V,
        f"direction must be one of {DIRECTIONS}, received 'backward'",
    ),
    Bad(
        lambda b: LSTM(3, 4, 1, "Forward"),
        V,
        f"direction must be one of {DIRECTIONS}, received 'Forward'",
    ),
    Bad(lambda b: LSTM(3, 4, 1, None), V, f"direction must be one of {DIRECTIONS}, received None"),
    Bad(lambda b: LSTM(3, 4, 1, True), V, f"direction must be one of {DIRECTIONS}, received True"),
    Bad(lambda b: LSTM(3, 4, time_major=1), V, "time_major must be True or False, received 1"),
    Bad(
        lambda b: LSTM(3, 4, time_major=None), V, "time_major must be True or False, received None"
    ),
    Bad(lambda b: LSTM(3, 4, dropout=1.1), V, "dropout must be in [0, 1], received 1.1"),
    Bad(lambda b: LSTM(3, 4, dropout=-0.5), V, "dropout must be in [0, 1], received -0.5"),
    Bad(lambda b: LSTM(3, 4, dropout=math.nan), V, "dropout must be in [0, 1], received nan"),
    Bad(lambda b: LSTM(3, 4, dropout=None), T, "dropout must be a number in [0, 1], received None"),
    Bad(lambda b: LSTM(3, 4, dropout=True), T, "dropout must be a number in [0, 1], received True"),
    Bad(lambda b: LSTM(3, 4, name=4), T, "name must be a string or None, received 4"),
    Bad(
        lambda b: LSTM(3, 4, proj_size=4),
        V,
        "proj_size must be smaller than hidden_size 4, received 4",
    ),
    Bad(lambda b: LSTM(3, 4, proj_size=-1), V, "proj_size must be at least 0, received -1"),
    Bad(lambda b: LSTM(3, 4, proj_size=2.0), T, "proj_size must be an integer, received 2.0"),
    Bad(lambda b: LSTM(3, 4, proj_size=None), T, "proj_size must be an integer, received None"),
    Bad(
        lambda b: LSTM(3, 4, dtype="float16"),
        V,
        f"dtype must be one of {DTYPES}, received 'float16'",
    ),
    Bad(lambda b: LSTM(3, 4, dtype="int8"), V, f"dtype must be one of {DTYPES}, received 'int8'"),
    Bad(lambda b: LSTM(3, 4, dtype=None), V, f"dtype must be one of {DTYPES}, received None"),
    Bad(lambda b: LSTM(3, 4, dtype="real"), T, f"dtype must be one of {DTYPES}, received 'real'"),
    Bad(lambda b: LSTM(3, 4, xp="torch"), V, f"xp must be one of {MODULES}, received 'torch'"),
    Bad(lambda b: LSTM(3, 4, xp=math), V, f"xp must be one of {MODULES}, received 'math'"),
    Bad(
        lambda b: LSTM(3, 4, xp=None),
        T,
        f"xp must be a module or its name, one of {MODULES}, received None",
    ),
    Bad(lambda b: LSTM(3, 4, seed=-1), V, "seed must be at least 0, received -1"),
    Bad(lambda b: LSTM(3, 4, seed=1.5), T, "seed must be an integer, received 1.5"),
    Bad(lambda b: LSTM(3, 4, weight_ih_attr=3), T, f"weight_ih_attr {ATTRIBUTE} int"),
    Bad(lambda b: LSTM(3, 4, weight_hh_attr=[None]), T, f"weight_hh_attr {ATTRIBUTE} list"),
    Bad(lambda b: LSTM(3, 4, bias_ih_attr=b.x), T, f"bias_ih_attr {ATTRIBUTE} ndarray"),
    Bad(lambda b: LSTM(3, 4, bias_hh_attr={}), T, f"bias_hh_attr {ATTRIBUTE} dict"),
    Bad(
        lambda b: LSTM(3, 4, 2, weight_ih_attr="w"),
        V,
        "the name 'w' would serve 2 parameters: name parameters only where each attribute serves "
        "one (one layer, one direction)",
    ),
    Bad(
        lambda b: LSTM(3, 4, weight_hh_attr=ParamAttr("w"), proj_size=2),
        V,
        "the name 'w' would serve 2 parameters: name parameters only where each attribute serves "
        "one (one layer, one direction)",
    ),
    Bad(
        lambda b: LSTM(3, 4, 2, weight_ih_attr=Assign(np.zeros((16, 3)))),
        V,
        "weight_ih_l1: Assign holds an array of shape [16, 3], but the weight has shape [16, 4]",
    ),
    Bad(
        lambda b: LSTM(3, 4, 1, "bidirect", bias_hh_attr=Orthogonal()),
        V,
        "bias_hh_l0: Orthogonal draws matrices, but the weight has shape [16]",
    ),
    Bad(lambda b: LSTMCell(0, 4), V, "input_size must be at least 1, received 0"),
    Bad(lambda b: LSTMCell(3, "4"), T, "hidden_size must be an integer, received '4'"),
    Bad(
        lambda b: LSTMCell(3, 4, proj_size=5),
        V,
        "proj_size must be smaller than hidden_size 4, received 5",
    ),
    Bad(lambda b: LSTMCell(3, 4, weight_hh_attr=1), T, f"weight_hh_attr {ATTRIBUTE} int"),
    Bad(
        lambda b: LSTMCell(3, 4, "w", "w"),
        V,
        "the name 'w' would serve 2 parameters: name parameters only where each attribute serves "
        "one (one layer, one direction)",
    ),
    Bad(
        lambda b: LSTMCell(3, 4, bias_ih_attr=Assign([1.0])),
        V,
        "bias_ih: Assign holds an array of shape [1], but the weight has shape [16]",
    ),
    Bad(lambda b: LSTMCell(3, 4, name=b"x"), T, "name must be a string or None, received b'x'"),
    Bad(lambda b: RNN(b.lstm), T, "cell must be an LSTMCell, received LSTM"),
    Bad(lambda b: RNN(None), T, "cell must be an LSTMCell, received NoneType"),
    Bad(lambda b: RNN(LSTMCell), T, "cell must be an LSTMCell, received type"),
    Bad(lambda b: RNN(b.cell, 1), V, "is_reverse must be True or False, received 1"),
    Bad(lambda b: RNN(b.cell, True, "no"), V, "time_major must be True or False, received 'no'"),
    Bad(lambda b: BiRNN(b.cell, None), T, "cell_bw must be an LSTMCell, received NoneType"),
    Bad(lambda b: BiRNN(b.rnn, b.cell), T, "cell_fw must be an LSTMCell, received RNN"),
    Bad(lambda b: BiRNN(b.cell, b.cell, 0), V, "time_major must be True or False, received 0"),
    Bad(
        lambda b: BiRNN(b.cell, LSTMCell(5, 4)),
        V,
        "the cells must agree in input_size: cell_bw has 5, the first has 3",
    ),
    Bad(
        lambda b: BiRNN(b.cell, LSTMCell(3, 4, dtype="float64")),
        V,
        "the cells must agree in dtype: cell_bw has float64, the first has float32",
    ),
    Bad(lambda b: ParamAttr(name=3), T, "name must be str or None, received 3"),
    Bad(
        lambda b: ParamAttr(initializer=Uniform),
        T,
        f"initializer must be Initializer or None, received {Uniform!r}",
    ),
    Bad(
        lambda b: ParamAttr(regularizer=0.1),
        T,
        "regularizer must be Regularizer or None, received 0.1",
    ),
    Bad(lambda b: ParamAttr(learning_rate="1"), T, "learning_rate must be a number, received '1'"),
    Bad(
        lambda b: ParamAttr(learning_rate=True), T, "learning_rate must be a number, received True"
    ),
    Bad(
        lambda b: ParamAttr(learning_rate=-1), V, "learning_rate must lie in [0, inf), received -1"
    ),
    Bad(
        lambda b: ParamAttr(learning_rate=math.inf),
        V,
        "learning_rate must lie in [0, inf), received inf",
    ),
    Bad(lambda b: ParamAttr(trainable=1), T, "trainable must be a bool, received 1"),
    Bad(lambda b: ParamAttr(need_clip=None), T, "need_clip must be a bool, received None"),
    Bad(
        lambda b: ParamAttr(do_model_average="no"),
        T,
        "do_model_average must be a bool, received 'no'",
    ),
]


WEIGHTS = [
    Bad(
        lambda b: b.lstm.weight_ih_l0.set_value([1.0]),
        T,
        "weight_ih_l0 must be set from an array, received list",
    ),
    Bad(
        lambda b: b.lstm.weight_ih_l0.set_value(None),
        T,
        "weight_ih_l0 must be set from an array, received NoneType",
    ),
    Bad(
        lambda b: b.lstm.weight_ih_l0.set_value(np.zeros((3, 16), "float32")),
        V,
        "weight_ih_l0 has shape [16, 3], received shape [3, 16]",
    ),
    Bad(
        lambda b: setattr(b.lstm.bias_ih_l0, "data", np.zeros(1, "float32")),
        V,
        "bias_ih_l0 has shape [16], received shape [1]",
    ),
    Bad(
        lambda b: setattr(b.lstm.bias_ih_l0, "data", 0.0),
        T,
        "bias_ih_l0 must be set from an array, received float",
    ),
    Bad(
        lambda b: b.lstm.weight_ih_l0.set_value(np.zeros((16, 3))),
        V,
        f"weight_ih_l0 has dtype float32, received float64: {TO_FLOAT32}",
    ),
    Bad(
        lambda b: b.cell.weight_ho.set_value(b.cell.weight_hh),
        V,
        "weight_ho has shape [4, 2], received shape [16, 2]",
    ),
    Bad(
        lambda b: LSTM(3, 4, weight_ih_attr="mine").weight_ih_l0.set_value(0),
        T,
        "mine must be set from an array, received int",
    ),
    Bad(
        lambda b: b.lstm.set_state_dict([("weight_ih_l0", b.x)]),
        T,
        "state_dict must be a mapping of names to arrays, received list",
    ),
    Bad(
        lambda b: b.lstm.set_state_dict(None),
        T,
        "state_dict must be a mapping of names to arrays, received NoneType",
    ),
    Bad(
        lambda b: b.lstm.set_state_dict(good_weights(b.lstm) | {"bias_hh_l1_reverse": 0.0}),
        T,
        "state_dict['bias_hh_l1_reverse']: bias_hh_l1_reverse must be set from an array, "
        "received float; nothing was loaded",
    ),
    Bad(
        lambda b: b.lstm.set_state_dict(
            good_weights(b.lstm) | {"1.cell_bw.weight_hh": np.zeros((4, 16), "float32")}
        ),
        V,
        "state_dict['1.cell_bw.weight_hh']: weight_hh_l1_reverse has shape [16, 4], received "
        "shape [4, 16]; nothing was loaded",
    ),
    Bad(
        lambda b: b.birnn.set_state_dict(good_weights(b.birnn) | {"cell_bw.bias_hh": np.zeros(16)}),
        V,
        "state_dict['cell_bw.bias_hh']: bias_hh has dtype float32, received float64: "
        f"{TO_FLOAT32}; nothing was loaded",
    ),
    Bad(
        lambda b: setattr(b.lstm, "weight_ih_l0", b.x),
        T,
        "weight_ih_l0 is a parameter and cannot be rebound to ndarray: copy values in with "
        "weight_ih_l0.set_value(...)",
    ),
    Bad(
        lambda b: setattr(b.cell, "weight_ho", None),
        T,
        "weight_ho is a parameter and cannot be rebound to NoneType: copy values in with "
        "weight_ho.set_value(...)",
    ),
    Bad(
        lambda b: setattr(b.without_bias, "bias_hh_l0", b.x),
        T,
        "this layer was made without bias_hh_l0, it cannot be set",
    ),
]


def good_weights(layer):
    return {name: array + 1 for name, array in layer.state_dict().items()}


SETTINGS = [
    Bad(lambda b: setattr(b.lstm, "dropout", 2), V, "dropout must be in [0, 1], received 2"),
    Bad(
        lambda b: setattr(b.lstm, "dropout", "0.5"),
        T,
        "dropout must be a number in [0, 1], received '0.5'",
    ),
    Bad(
        lambda b: setattr(b.lstm, "time_major", "yes"),
        V,
        "time_major must be True or False, received 'yes'",
    ),
    Bad(
        lambda b: setattr(b.rnn, "is_reverse", 1), V, "is_reverse must be True or False, received 1"
    ),
    Bad(
        lambda b: setattr(b.birnn, "time_major", None),
        V,
        "time_major must be True or False, received None",
    ),
    Bad(
        lambda b: setattr(b.lstm, "dropout_seed", -1),
        V,
        "dropout_seed must be at least 0, received -1",
    ),
    Bad(
        lambda b: setattr(b.lstm, "dropout_seed", 0.5),
        T,
        "dropout_seed must be an integer, received 0.5",
    ),
    Bad(
        lambda b: setattr(b.lstm, "dropout_calls", 2**64),
        V,
        f"dropout_calls must be below 2^64, received {2**64}",
    ),
    Bad(lambda b: b.lstm.to("jax"), V, f"xp must be one of {MODULES}, received 'jax'"),
    Bad(
        lambda b: b.lstm.to(3),
        T,
        f"xp must be a module or its name, one of {MODULES}, received 3",
    ),
    Bad(
        lambda b: b.lstm.to(dtype="float16"),
        V,
        f"dtype must be one of {DTYPES}, received 'float16'",
    ),
    Bad(lambda b: b.birnn.to(dtype=[]), V, f"dtype must be one of {DTYPES}, received []"),
    Bad(lambda b: b.rnn.to(dtype="half"), V, f"dtype must be one of {DTYPES}, received 'half'"),
    Bad(lambda b: engine("fast"), V, f"engine must be one of {ENGINE_NAMES}, received 'fast'"),
    Bad(lambda b: engine(None), T, f"engine must be one of {ENGINE_NAMES}, received None"),
    Bad(
        lambda b: engine(np.zeros(2)),
        T,
        f"engine must be one of {ENGINE_NAMES}, received array([0., 0.])",
    ),
    Bad(lambda b: b.lstm.explain_plan(-1, 2), V, "steps must be at least 0, received -1"),
    Bad(lambda b: b.lstm.explain_plan(5, 2.5), T, "batch must be an integer, received 2.5"),
    Bad(lambda b: Dropout(1.5, 0, 0), V, "probability must be in [0, 1], received 1.5"),
    Bad(lambda b: Dropout(0.5, -1, 0), V, "seed must be at least 0, received -1"),
    Bad(lambda b: Dropout(0.5, 0, 2**64), V, f"call must be below 2^64, received {2**64}"),
    Bad(lambda b: Dropout(0.5, 0, "1"), T, "call must be an integer, received '1'"),
    Bad(lambda b: Dropout(0.5, 0, 0, -1), V, "first_row must be at least 0, received -1"),
]


TABLE = CONSTRUCTIONS + WEIGHTS + SETTINGS


@pytest.mark.parametrize("bad", TABLE, ids=[f"{k}-{b.message[:50]}" for k, b in enumerate(TABLE)])
def test_bad_input(bad):
    assert_fails(bad)


def test_one_bench_survives_all_of_them():
    assert_survives(TABLE)
