"""Where an array lives: NumPy or CuPy, and on which device.

CuPy is never imported here unless somebody names it: an array module is looked up among the
modules already loaded, so `import cupy_lstm` costs nothing on a machine without a GPU, and an
array of CuPy cannot exist before its module does.
"""

import sys
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from types import ModuleType
from typing import Any, TypeAlias

import numpy

Array: TypeAlias = Any
"""A ``numpy.ndarray`` or a ``cupy.ndarray`` (CuPy ships no types)."""

HostArray: TypeAlias = numpy.ndarray[Any, numpy.dtype[Any]]
"""An array that NumPy can read."""

MODULES = ("numpy", "cupy")


def array_module(*arrays: Array) -> ModuleType:
    """Return the module of the arrays: CuPy if one of them is CuPy's, else NumPy.

    Parameters
    ----------
    *arrays : array
        Arrays of any shape and dtype.

    Returns
    -------
    module
        ``cupy.get_array_module(*arrays)`` where CuPy is loaded, NumPy where it is not.
    """
    cupy = sys.modules.get("cupy")
    if cupy is None:
        return numpy
    module: ModuleType = cupy.get_array_module(*arrays)
    return module


def module_name(xp: str | ModuleType) -> str:
    """Return ``"numpy"`` or ``"cupy"`` for a module or its name.

    Raises
    ------
    TypeError
        If `xp` is neither a string nor a module.
    ValueError
        If it names another module.
    """
    name = xp.__name__ if isinstance(xp, ModuleType) else xp
    if not isinstance(name, str):
        raise TypeError(f"xp must be a module or its name, one of {MODULES}, received {xp!r}")
    if name not in MODULES:
        raise ValueError(f"xp must be one of {MODULES}, received {name!r}")
    return name


def import_module(name: str) -> ModuleType:
    """Import the array module called `name` (``"numpy"`` or ``"cupy"``).

    Raises
    ------
    ImportError
        If CuPy is named and cannot be imported; the message says what to install.
    """
    if name == "numpy":
        return numpy
    try:
        import cupy
    except ImportError as error:
        raise ImportError(
            "xp='cupy' needs CuPy: pip install 'cupy_lstm[cuda12x]' "
            f"(or cuda13x for CUDA 13); importing it failed with: {error}"
        ) from error
    module: ModuleType = cupy
    return module


def require_device(name: str) -> None:
    """Raise unless arrays of the module called `name` can be made here.

    Raises
    ------
    ImportError
        If CuPy is named and cannot be imported.
    RuntimeError
        If there is no GPU, or no driver for it.
    """
    module = import_module(name)
    if module is numpy:
        return
    try:
        devices = module.cuda.runtime.getDeviceCount()
    except Exception as error:  # a missing driver is CuPy's own kind of error, version by version
        raise RuntimeError(f"xp='cupy' needs a GPU and its driver: {error}") from error
    if devices == 0:
        raise RuntimeError("xp='cupy' needs a GPU, but the driver finds none")


def is_array(value: object) -> bool:
    """Say whether `value` is an array of NumPy or of CuPy.

    Those whose arithmetic is another, masked arrays and matrices, are none.
    """
    if isinstance(value, numpy.ndarray):
        masked = sys.modules.get("numpy.ma")  # NumPy loads it when it is first asked for
        return not isinstance(value, numpy.matrix) and (
            masked is None or not isinstance(value, masked.MaskedArray)
        )
    cupy = sys.modules.get("cupy")
    return cupy is not None and isinstance(value, cupy.ndarray)


def location(array: Array) -> str:
    """Return where an array lives, as the user would write it: ``numpy`` or ``cupy, device 0``."""
    if isinstance(array, numpy.ndarray):
        return "numpy"
    return f"cupy, device {array.device.id}"


def require_same_place(argument: str, array: object, reference: Array, owner: str) -> None:
    """Raise unless `array` lives where `reference` does.

    Parameters
    ----------
    argument : str
        Name of the argument for the message.
    array : object
        What came.
    reference : array
        An array at the right place.
    owner : str
        What `reference` is, for the message: ``"the weights"``.

    Raises
    ------
    TypeError
        If `array` is no array, belongs to the other module, or is on another device.
    """
    wanted = location(reference)
    if not is_array(array):
        raise TypeError(
            f"{argument} must be an array of {wanted.split(',')[0]}, "
            f"received {type(array).__name__}"
        )
    found = location(array)
    if found != wanted:
        module = "cupy" if found.startswith("cupy") else "numpy"
        fix = (
            f"move one of them, for example with .to({module!r})"
            if module != wanted.split(",")[0]
            else "copy it to that device first"
        )
        raise TypeError(f"{argument} is on {found}, but {owner} are on {wanted}: {fix}")


DTYPES = {
    "numpy": ("float32", "float64"),
    "cupy": ("float32", "float64", "float16", "bfloat16"),
}
"""What weights may be, for each array module."""


def checked_dtype(dtype: Any, module: str) -> "numpy.dtype[Any]":
    """Return `dtype` as one that weights may have in an array module.

    Raises
    ------
    TypeError
        If it means no dtype.
    ValueError
        If it is none of `DTYPES`.
    ImportError
        If it is bfloat16 and ml_dtypes, which defines it, is not installed.
    """
    choices = DTYPES[module]
    if isinstance(dtype, str) and dtype == "bfloat16" and "bfloat16" in choices:
        try:
            import ml_dtypes
        except ImportError as error:
            raise ImportError(
                "dtype='bfloat16' needs ml_dtypes: pip install 'cupy_lstm[cuda12x]'"
            ) from error
        dtype = ml_dtypes.bfloat16
    try:
        wanted: numpy.dtype[Any] = numpy.dtype(dtype)
    except TypeError:
        if dtype != "bfloat16":
            raise TypeError(f"dtype must be one of {choices}, received {dtype!r}") from None
        wanted = numpy.dtype("V2")
    if dtype is None or wanted.name not in choices:
        raise ValueError(f"dtype must be one of {choices}, received {dtype!r}")
    return wanted.newbyteorder("=")


def require_current_device(array: Array, owner: str) -> None:
    """Raise unless `array` is on CuPy's current device, where kernels are launched.

    Raises
    ------
    ValueError
        If it is on another one.
    """
    if isinstance(array, numpy.ndarray):
        return
    current = sys.modules["cupy"].cuda.device.get_device_id()
    if array.device.id != current:
        raise ValueError(
            f"{owner} are on {location(array)}, but the current device is {current}: "
            f"call inside `with cupy.cuda.Device({array.device.id}):`"
        )


def on_device_of(array: Array) -> AbstractContextManager[object]:
    """Return a context in which the device of `array` is CuPy's current one."""
    return nullcontext() if isinstance(array, numpy.ndarray) else array.device


@cache
def dtype_name(dtype: "numpy.dtype[Any]") -> str:
    """Return the name of a dtype, which NumPy makes anew each time it is asked."""
    return str(dtype.name)


def sum_dtype(dtype: "numpy.dtype[Any]") -> "numpy.dtype[Any]":
    """Return the dtype in which values of `dtype` are summed and kept: float32 for half types."""
    return numpy.dtype("float32") if dtype.itemsize == 2 else dtype


def to_host(array: Array) -> HostArray:
    """Return a host array with the values of `array`; synchronises for a CuPy array."""
    if isinstance(array, numpy.ndarray):
        return array
    host: HostArray = array.get()
    return host
