"""An LSTM for array programs: the interface of `paddle.nn.LSTM` on NumPy and CuPy arrays."""

from cupy_lstm import initializer, regularizer
from cupy_lstm.cell import LSTMCell
from cupy_lstm.checkpoints import Checkpoints
from cupy_lstm.clip import ClipGradByGlobalNorm, ClipGradByNorm, ClipGradByValue
from cupy_lstm.dropout import Dropout
from cupy_lstm.engines import warmup
from cupy_lstm.explain import explain_plan
from cupy_lstm.functional import lstm_backward, lstm_forward
from cupy_lstm.history import EpochRecord, History
from cupy_lstm.layer import Layer
from cupy_lstm.linear import Linear
from cupy_lstm.loss import huber_loss, mae_loss, mse_loss, softmax_cross_entropy
from cupy_lstm.lstm import LSTM
from cupy_lstm.modes import engine, no_grad
from cupy_lstm.notation import LayerGradients, LayerWeights, Wanted
from cupy_lstm.optimizer import SGD, Adam, AdamW
from cupy_lstm.parameter import ParamAttr, Parameter
from cupy_lstm.rnn import RNN, BiRNN
from cupy_lstm.schedule import CosineAnnealingDecay, LinearWarmup, StepDecay
from cupy_lstm.segments import SegmentBatches, StatefulLSTM
from cupy_lstm.stored_series import ParquetSeries, open_series
from cupy_lstm.stream import LSTMStream
from cupy_lstm.streamed import StreamedBatches
from cupy_lstm.training import fit
from cupy_lstm.windows import Batches, sliding_windows

__version__ = "0.1.0"

__all__ = [
    "LSTM",
    "RNN",
    "SGD",
    "Adam",
    "AdamW",
    "Batches",
    "BiRNN",
    "Checkpoints",
    "ClipGradByGlobalNorm",
    "ClipGradByNorm",
    "ClipGradByValue",
    "CosineAnnealingDecay",
    "Dropout",
    "EpochRecord",
    "History",
    "LSTMCell",
    "LSTMStream",
    "Layer",
    "LayerGradients",
    "LayerWeights",
    "Linear",
    "LinearWarmup",
    "ParamAttr",
    "Parameter",
    "ParquetSeries",
    "SegmentBatches",
    "StatefulLSTM",
    "StepDecay",
    "StreamedBatches",
    "Wanted",
    "engine",
    "explain_plan",
    "fit",
    "huber_loss",
    "initializer",
    "lstm_backward",
    "lstm_forward",
    "mae_loss",
    "mse_loss",
    "no_grad",
    "open_series",
    "regularizer",
    "sliding_windows",
    "softmax_cross_entropy",
    "warmup",
]
