"""Safetensors files: named arrays, one text beside them, and no pickle."""

import errno
from collections.abc import Mapping
from pathlib import Path

import numpy

from cupy_lstm.backend import Array, HostArray, to_host
from cupy_lstm.io.optional import IO_EXTRA, optional_module


def tensors_as_bytes(tensors: Mapping[str, Array], metadata: Mapping[str, str]) -> bytes:
    """Return a safetensors file.

    Parameters
    ----------
    tensors : mapping of str to array
        On the host or on a GPU, which is waited for then.
    metadata : mapping of str to str
        At most one entry: several are written in an order that differs from run to run.

    Raises
    ------
    ImportError
        If safetensors is not installed.
    """
    safetensors = optional_module("safetensors.numpy", "a safetensors file", IO_EXTRA)
    arrays = {name: numpy.ascontiguousarray(to_host(array)) for name, array in tensors.items()}
    contents: bytes = safetensors.save(arrays, dict(metadata) or None)
    return contents


def read_tensors(path: Path) -> tuple[dict[str, HostArray], dict[str, str]]:
    """Read a safetensors file.

    Parameters
    ----------
    path : Path
        The file.

    Returns
    -------
    tensors : dict of str to array
        By name.
    metadata : dict of str to str
        The texts beside them.

    Raises
    ------
    ImportError
        If safetensors is not installed.
    OSError
        If the file cannot be read, or the path is that of a folder.
    ValueError
        If it is no safetensors file, is damaged, or holds a dtype that NumPy has no name for.
    """
    safetensors = optional_module("safetensors", "a safetensors file", IO_EXTRA)
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "cannot read a file, it is a folder", str(path))
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors, file.metadata() or {}
    except (safetensors.SafetensorError, AttributeError, TypeError) as error:
        raise ValueError(
            f"{path} is no safetensors file, or a damaged one ({error}); nothing was loaded"
        ) from None
