"""Tensors as arrays and back, over the same memory, and CuPy put to work where PyTorch does."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy
import torch
from torch import Tensor

from cupy_lstm.backend import DTYPES, Array, import_module

ARRAY_MODULES = {"cpu": "numpy", "cuda": "cupy"}
"""Where tensors can be, and whose arrays they are there."""


def require_supported(weight: Tensor) -> None:
    """Raise unless there are arrays for the device and the dtype of a weight.

    Raises
    ------
    ValueError
        If there are none.
    """
    kind = weight.device.type
    if kind not in ARRAY_MODULES:
        raise ValueError(
            f"cupy_lstm.torch.LSTM runs on {tuple(ARRAY_MODULES)}, but its weights are on "
            f"{str(weight.device)!r}: move it with .to(...)"
        )
    choices, dtype = DTYPES[ARRAY_MODULES[kind]], str(weight.dtype).removeprefix("torch.")
    if dtype not in choices:
        raise ValueError(
            f"the weights of cupy_lstm.torch.LSTM on {kind!r} must have one of {choices}, but have "
            f"{dtype}: convert it with .to(...)"
        )


def array_of(tensor: Tensor) -> Array:
    """Return a tensor as an array, without its graph."""
    tensor = tensor.detach()
    if tensor.device.type == "cpu":
        return tensor.numpy()  # the memory that DLPack would give, in a third of the time
    return import_module("cupy").from_dlpack(tensor)


def tensor_of(array: Array) -> Tensor:
    """Return an array as a tensor."""
    if isinstance(array, numpy.ndarray):
        return torch.from_numpy(array)
    return torch.from_dlpack(array)


@contextmanager
def beside(tensor: Tensor) -> Iterator[None]:
    """Make CuPy work on the device of a tensor, in PyTorch's current stream there."""
    if tensor.device.type == "cpu":
        yield
        return
    cuda = import_module("cupy").cuda
    with cuda.Device(tensor.device.index), cuda.Stream.from_external(_CurrentStream(tensor.device)):
        yield


class _CurrentStream:
    """PyTorch's current stream, by the protocol that CuPy reads; not every PyTorch has it."""

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.current_stream(device)

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.stream.cuda_stream
