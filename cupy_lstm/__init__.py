"""An LSTM for array programs: the interface of `paddle.nn.LSTM` on NumPy and CuPy arrays."""

from cupy_lstm import initializer, regularizer
from cupy_lstm.cell import LSTMCell
from cupy_lstm.lstm import LSTM
from cupy_lstm.modes import engine, no_grad
from cupy_lstm.parameter import ParamAttr, Parameter
from cupy_lstm.plan import explain_plan
from cupy_lstm.rnn import RNN, BiRNN

__version__ = "0.1.0"

__all__ = [
    "LSTM",
    "RNN",
    "BiRNN",
    "LSTMCell",
    "ParamAttr",
    "Parameter",
    "engine",
    "explain_plan",
    "initializer",
    "no_grad",
    "regularizer",
]
