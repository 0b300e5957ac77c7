"""Weights from and to files and other libraries; nothing here unpickles anything.

From below: `files` and `tensors` write and read files, `host` brings tensors to NumPy, `assembly`
makes an LSTM of named weights, `configuration` is what a file says beside them. On these stand
`storage`, our own files, and a module each for PyTorch, Paddle, Keras and the two ways of ONNX.
Other libraries are imported where they are used; only safetensors and onnx are of the extra `io`.
"""

from cupy_lstm.io.keras_weights import from_keras, to_keras
from cupy_lstm.io.onnx_export import to_onnx
from cupy_lstm.io.onnx_import import from_onnx
from cupy_lstm.io.paddle_weights import from_paddle, to_paddle
from cupy_lstm.io.storage import load, load_state_dict, save
from cupy_lstm.io.torch_weights import from_torch, to_torch

__all__ = [
    "from_keras",
    "from_onnx",
    "from_paddle",
    "from_torch",
    "load",
    "load_state_dict",
    "save",
    "to_keras",
    "to_onnx",
    "to_paddle",
    "to_torch",
]
