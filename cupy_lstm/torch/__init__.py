"""A bridge to PyTorch: the LSTM as a module that its autograd goes through.

PyTorch is imported by this package alone, never by `cupy_lstm`.
"""

try:
    import torch  # noqa: F401 - missed here, with a sentence, not below
except ImportError as error:
    raise ImportError(
        f"cupy_lstm.torch needs PyTorch (https://pytorch.org): importing it failed with: {error}"
    ) from error

from cupy_lstm.torch.module import LSTM

__all__ = ["LSTM"]
