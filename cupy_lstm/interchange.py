"""Arrays of other libraries, taken in by the protocols they offer: nothing is moved.

A value is asked for ``__dlpack__`` first, which says where it is, never copies, and orders the
streams of producer and consumer; then for ``__cuda_array_interface__``; then for ``__array__``,
which is for the host. Results leave the same way: arrays of NumPy and CuPy have these protocols.
"""

import sys
from contextlib import nullcontext
from typing import Any

import numpy

from cupy_lstm.backend import Array, HostArray, import_module, is_array, require_same_place

# Kinds of devices: DLDeviceType of DLPack's header.
CPU, CUDA, CUDA_HOST, CUDA_MANAGED = 1, 2, 3, 13


def array_beside(argument: str, value: object, reference: Array, owner: str) -> Array:
    """Return `value` as an array where `reference` is.

    Parameters
    ----------
    argument : str
        Name of the argument, for the message.
    value : object
        An array of NumPy or CuPy, which is returned as it is, or what `adopted` takes.
    reference : array
        An array at the right place.
    owner : str
        What `reference` is, in the plural: ``"the weights"``.

    Raises
    ------
    TypeError
        If it is no array, cannot be read as one, requires a gradient, or is somewhere else.
    """
    if type(value) is type(reference) is numpy.ndarray:
        return value  # most calls: nothing is asked of a plain array
    if not isinstance(value, type(reference)):
        if _requires_gradient(value):
            raise TypeError(
                f"{argument} requires a gradient, and the graph of {_library(value)} does not go "
                "through this call: pass it detached (.detach()); cupy_lstm.torch.LSTM is the "
                "module for PyTorch's autograd"
            )
        value = adopted(argument, value, reference, owner)
    require_same_place(argument, value, reference, owner)
    return value


def adopted(
    argument: str, value: object, reference: Array | None = None, owner: str = "the weights"
) -> object:
    """Return an array of another library as one of NumPy or CuPy over the same memory.

    What is no array at all is returned as it is, for the caller to refuse. A copy is made only
    where a value has ``__array__`` alone and needs one for it, as a table of several columns may.

    Parameters
    ----------
    argument, owner : str
        As of `array_beside`.
    value : object
        Anything.
    reference : array, optional
        An array where a value on a GPU must be; default: any GPU will do. A value on the host is
        returned on the host in any case.

    Raises
    ------
    TypeError
        If the value cannot be read as an array (on a GPU also where CuPy is missing), or is on
        another device than `reference` where that matters.
    """
    if is_array(value) or isinstance(value, numpy.ndarray | numpy.generic):
        return value
    try:
        device = _device(value)
    except Exception as error:
        raise _unreadable(argument, value, error) from error
    if device is None:
        return value
    kind, number = device
    on_gpu = kind in (CUDA, CUDA_MANAGED)
    if on_gpu:
        _require_gpu(argument, number, reference, owner)
    elif kind not in (CPU, CUDA_HOST):
        raise TypeError(
            f"{argument} is on a device of kind {kind} of DLPack, which is neither the host nor a "
            "GPU of CUDA: copy it to the host first"
        )
    try:
        return _read_on_gpu(value, number) if on_gpu else _read_on_host(value)
    except Exception as error:  # whatever the other library raises
        raise _unreadable(argument, value, error) from error


def _device(value: Any) -> tuple[int, int | None] | None:
    """Return the kind of device and its number, None if unknown; None for what is no array."""
    if hasattr(value, "__dlpack__"):
        kind, number = value.__dlpack_device__()
        return int(kind), int(number)
    if hasattr(value, "__cuda_array_interface__"):
        return CUDA, _gpu_of(value.__cuda_array_interface__["data"][0])
    return (CPU, None) if hasattr(value, "__array__") else None


def _gpu_of(address: int) -> int | None:
    """Return the number of the GPU that memory belongs to; None where CuPy is not loaded."""
    cupy = sys.modules.get("cupy")
    if cupy is None or not address:
        return None
    return int(cupy.cuda.runtime.pointerGetAttributes(address).device)


def _read_on_host(value: Any) -> HostArray:
    if hasattr(value, "__dlpack__"):
        try:
            array: HostArray = numpy.from_dlpack(value)
            return array
        except Exception:  # a dtype or a property that DLPack has no word for
            if not hasattr(value, "__array__"):
                raise
    return numpy.asarray(value)


def _read_on_gpu(value: Any, number: int | None) -> Array:
    cupy = import_module("cupy")
    # CuPy reads an interface on another device than the current one by copying.
    with nullcontext() if number is None else cupy.cuda.Device(number):
        if hasattr(value, "__dlpack__"):
            return cupy.from_dlpack(value)  # tells the producer the stream that has to wait for it
        interface = value.__cuda_array_interface__
        array = cupy.asarray(_WithoutStream(value, interface))
        _wait_for(cupy, interface.get("stream"))
        return array


class _WithoutStream:
    """An array without the stream it is made on, for which CuPy would make the host wait."""

    def __init__(self, value: object, interface: dict[str, Any]) -> None:
        self.value = value  # its memory lives as long as an array over it
        self.__cuda_array_interface__ = interface | {"stream": None}


def _wait_for(cupy: Any, stream: int | None) -> None:
    """Make CuPy's current stream wait for what is in another one now; the host goes on."""
    runtime, current = cupy.cuda.runtime, cupy.cuda.get_current_stream().ptr
    # The interface calls the default stream 1, CuPy calls it 0.
    if stream is None or stream == (current or 1):
        return
    event = cupy.cuda.Event(disable_timing=True)
    runtime.eventRecord(event.ptr, stream)
    runtime.streamWaitEvent(current, event.ptr)


def _require_gpu(argument: str, number: int | None, reference: Array | None, owner: str) -> None:
    """Raise if an array on a GPU cannot be where `reference` is."""
    found = "a GPU" if number is None else f"GPU {number}"
    if isinstance(reference, numpy.ndarray):
        raise TypeError(
            f"{argument} is on {found}, but {owner} are on numpy: move one of them, for example "
            "with .to('cupy')"
        )
    if reference is not None and number not in (None, reference.device.id):
        raise TypeError(
            f"{argument} is on {found}, but {owner} are on GPU {reference.device.id}: copy it to "
            "that device first"
        )


def _requires_gradient(value: object) -> bool:
    """Say whether a tensor belongs to a graph, as PyTorch and as Paddle put it."""
    return (
        getattr(value, "requires_grad", False) is True
        or getattr(value, "stop_gradient", True) is False
    )


def _unreadable(argument: str, value: object, error: Exception) -> TypeError:
    return TypeError(
        f"{argument} is a {type(value).__name__} of {_library(value)} that cannot be read as an "
        f"array: {error}"
    )


def _library(value: object) -> str:
    return type(value).__module__.partition(".")[0]
