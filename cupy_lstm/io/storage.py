"""Our own files: weights and configuration in one safetensors file."""

from os import PathLike
from pathlib import Path
from types import ModuleType
from typing import Any

from cupy_lstm.backend import HostArray
from cupy_lstm.io.configuration import (
    FORMAT,
    configuration_as_json,
    parsed_configuration,
    restored_lstm,
)
from cupy_lstm.io.files import write_whole
from cupy_lstm.io.tensors import read_tensors, tensors_as_bytes
from cupy_lstm.layer import Layer
from cupy_lstm.lstm import LSTM


def save(layer: Layer, path: str | PathLike[str]) -> None:
    """Write the weights of a layer into a safetensors file, complete or not at all.

    Those of an `LSTM` with its configuration, for `load`; those of any other layer by their names
    alone, for `load_state_dict`. Gradients and what an optimiser knows are not written. Waits for
    the GPU where the weights are there.

    Parameters
    ----------
    layer : Layer
        Whose weights to write.
    path : str or path
        The file; one that is there is replaced.

    Raises
    ------
    ImportError
        If safetensors is not installed.
    OSError
        If the file cannot be written; what was there stays then.
    TypeError
        If `layer` is none.
    """
    if not isinstance(layer, Layer):
        raise TypeError(f"layer must be a Layer, such as an LSTM, received {type(layer).__name__}")
    metadata = {FORMAT: configuration_as_json(layer)} if isinstance(layer, LSTM) else {}
    contents = tensors_as_bytes(layer.state_dict(), metadata)
    write_whole(Path(path), contents)


def load(path: str | PathLike[str], *, xp: str | ModuleType = "numpy", dtype: Any = None) -> LSTM:
    """Return the LSTM that `save` has written.

    Parameters
    ----------
    path : str or path
        The file.
    xp : module or str
        ``numpy`` or ``cupy``: where the weights go.
    dtype : dtype-like, optional
        What to convert the weights to; default: keep theirs.

    Returns
    -------
    LSTM
        In training mode, with the weights, the arguments of the constructor, what is frozen, and
        the key of the next dropout mask as they were.

    Raises
    ------
    ImportError
        If safetensors is not installed, or CuPy where it is asked for.
    OSError
        If the file cannot be read.
    ValueError
        If it is no safetensors file, is damaged, holds no LSTM of this package, or one of a dtype
        that `xp` has not.
    """
    weights, metadata = read_tensors(Path(path))
    if FORMAT not in metadata:
        raise ValueError(
            f"{path} holds no LSTM that this version of cupy_lstm has written: load_state_dict "
            "reads its arrays, and from_torch or from_paddle takes those of other libraries"
        )
    read = parsed_configuration(metadata[FORMAT], str(path))
    return restored_lstm(read, weights, str(path), xp, dtype)


def load_state_dict(path: str | PathLike[str]) -> dict[str, HostArray]:
    """Return the arrays of any safetensors file by name.

    Parameters
    ----------
    path : str or path
        A file of `save`, or of another library, such as a ``state_dict`` of PyTorch.

    Returns
    -------
    dict of str to numpy array
        For `Layer.set_state_dict`, `from_torch` or `from_paddle`.

    Raises
    ------
    ImportError
        If safetensors is not installed.
    OSError
        If the file cannot be read.
    ValueError
        If it is no safetensors file or damaged.
    """
    return read_tensors(Path(path))[0]
