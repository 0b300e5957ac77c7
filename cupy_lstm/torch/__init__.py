"""A bridge to PyTorch: the LSTM as a module that its autograd goes through.

PyTorch is imported by this package alone, never by `cupy_lstm`.
"""

NEEDED = "cupy_lstm.torch needs PyTorch 2.4 or later (https://pytorch.org)"

try:
    import torch  # missed here, with a sentence, not below
except ImportError as error:
    raise ImportError(f"{NEEDED}: importing it failed with: {error}") from error
if not hasattr(torch, "get_autocast_dtype"):  # of the functions used here the youngest
    raise ImportError(f"{NEEDED}, found {torch.__version__}")

from cupy_lstm.torch.module import LSTM  # noqa: E402

__all__ = ["LSTM"]
