"""Allocation, copies and fills: the part of the runtime that moves bytes."""

import ctypes
from collections.abc import Callable
from typing import Any

from gpu_on_cpu.driver import devices
from gpu_on_cpu.driver.entry_points import RUNTIME
from gpu_on_cpu.driver.errors import DeviceMisuseError, Status, runtime_error
from gpu_on_cpu.driver.memory import SPACE, Block
from gpu_on_cpu.driver.recorder import Allocation, Copy, Fill, Free, note
from gpu_on_cpu.driver.streams import (
    active_captures,
    refuse_during_capture,
    stream_of,
    submit,
)

# --- allocation ----------------------------------------------------------------------------------


def _allocate(size: int, device: int | None, kind: str) -> int:
    what = f"{size} bytes of {kind} memory were allocated"
    if any(capture.relaxed for capture in active_captures()):
        # CUDA allows it in this mode, CuPy's default; but the graph keeps the address, and nothing
        # keeps the memory.
        raise DeviceMisuseError(f"{what} during a capture: allocate before it")
    refuse_during_capture(what)
    block = SPACE.allocate(size, device, kind)
    note(Allocation(block.address, size, -1 if device is None else device, kind))
    return block.address


def _release(address: int, *kinds: str) -> None:
    if address:
        block = SPACE.release(address, kinds)
        place = -1 if block.device is None else block.device
        note(Free(address, block.bytes, place, block.kind))


@RUNTIME.provides("malloc")
def allocate(size: int) -> int:
    """Return fresh memory of the current device."""
    return _allocate(size, devices.current(), "device")


@RUNTIME.provides("mallocAsync")
def allocate_in_stream_order(size: int, stream: int) -> int:
    """Return fresh memory; it must be freed in stream order too, or by `release`."""
    stream_of(stream)
    return _allocate(size, devices.current(), "asynchronous")


@RUNTIME.provides("mallocManaged")
def allocate_managed(size: int, flags: int = 1) -> int:
    """Return fresh memory that every device may use."""
    return _allocate(size, devices.current(), "managed")


@RUNTIME.provides("free")
def release(address: int) -> None:
    """Free memory of a device."""
    _release(address, "device", "managed", "asynchronous")


@RUNTIME.provides("freeAsync")
def release_in_stream_order(address: int, stream: int) -> None:
    """Free memory that was allocated in stream order."""
    stream_of(stream)
    _release(address, "asynchronous")


@RUNTIME.provides("hostAlloc")
def allocate_pinned(size: int, flags: int) -> int:
    """Return fresh host memory. Host and devices share one address space, so it is mapped."""
    return _allocate(size, None, "pinned")


@RUNTIME.provides("freeHost")
def release_pinned(address: int) -> None:
    """Free pinned memory."""
    _release(address, "pinned")


@RUNTIME.provides("hostRegister")
def register(address: int, size: int, flags: int) -> None:
    """Let the devices use memory of the host."""
    SPACE.adopt(address, size, None, "registered")


@RUNTIME.provides("hostUnregister")
def unregister(address: int) -> None:
    """End what `register` began."""
    SPACE.release(address, ("registered",))


@RUNTIME.provides("memGetInfo")
def free_and_total() -> tuple[int, int]:
    """Return the free and all bytes of the current device."""
    used = SPACE.live_bytes.get(devices.current(), 0)
    return devices.MEMORY_BYTES - used, devices.MEMORY_BYTES


MEMORY_TYPES = {"pinned": 1, "registered": 1, "managed": 3}


@RUNTIME.provides("pointerGetAttributes")
def attributes(address: int) -> Any:
    """Return CuPy's `PointerAttributes`: device, device address, host address, memory type."""
    from cupy_backends.cuda.api import runtime

    block = SPACE.find(address)
    if block is None:
        return runtime.PointerAttributes(-2, 0, address, 0)
    kind = MEMORY_TYPES.get(block.kind, 2)
    device = devices.current() if block.device is None else block.device
    return runtime.PointerAttributes(device, address, 0 if kind == 2 else address, kind)


@RUNTIME.provides("pointerGetMemoryType")
def memory_type(address: int) -> int:
    """Return the type alone: 0 unknown, 1 host, 2 device, 3 managed."""
    return int(attributes(address).type)


@RUNTIME.provides("memPrefetchAsync")
def prefetch(address: int, size: int, device: int, stream: int) -> None:
    """Do nothing but see that the memory is there."""
    SPACE.check(address, size, "prefetch", device)


@RUNTIME.provides("memAdvise")
def advise(address: int, size: int, advice: int, device: int) -> None:
    """Do nothing but see that the memory is there."""
    SPACE.check(address, size, "advice", devices.current())


# --- copies and fills ----------------------------------------------------------------------------

# What cudaMemcpyKind says of the two ends, source first; 4 leaves it to the addresses.
KINDS = {0: ("host", "host"), 1: ("host", "device"), 2: ("device", "host"), 3: ("device", "device")}


def _place(block: Block | None) -> str:
    return "host" if block is None or block.device is None else f"device {block.device}"


def _copier(to: int, source: int, size: int) -> Callable[[], None]:
    def run() -> None:
        SPACE.check(to, size, "destination of a copy")
        SPACE.check(source, size, "source of a copy")
        ctypes.memmove(to, source, size)

    return run


def _copy(to: int, source: int, size: int, kind: int, stream: int, blocking: bool) -> None:
    places = _place(SPACE.find(source)), _place(SPACE.find(to))
    for said, place in zip(KINDS.get(kind, places), places, strict=True):
        if said.split()[0] != place.split()[0]:
            raise runtime_error(
                Status.INVALID_VALUE,
                f"a copy from {' to '.join(KINDS[kind])} was given one from {' to '.join(places)}",
            )
    text = " to ".join(places)
    same = places[0] == places[1] and places[0] != "host"
    entry = Copy("within " + places[0] if same else text, size, stream, blocking)
    submit(stream, entry, _copier(to, source, size))


@RUNTIME.provides("memcpy")
def copy(to: int, source: int, size: int, kind: int) -> None:
    """Copy on the legacy stream; the host waits if an end is its own."""
    host = "host" in (_place(SPACE.find(source)), _place(SPACE.find(to)))
    if host:
        refuse_during_capture("the host waited for a copy")
    _copy(to, source, size, kind, 0, blocking=host)


@RUNTIME.provides("memcpyAsync")
def copy_in_stream_order(to: int, source: int, size: int, kind: int, stream: int) -> None:
    """Copy in the order of a stream. The host waits for a copy to memory that is not pinned."""
    to_pageable = SPACE.find(to) is None
    if stream_of(stream).capture and (to_pageable or SPACE.find(source) is None):
        refuse_during_capture("memory of the host that is not pinned was copied")
    _copy(to, source, size, kind, stream, blocking=to_pageable)


@RUNTIME.provides("memcpyPeer")
def copy_to_peer(to: int, to_device: int, source: int, source_device: int, size: int) -> None:
    """Copy from a device to another, on the legacy stream."""
    copy_to_peer_in_stream_order(to, to_device, source, source_device, size, 0)


@RUNTIME.provides("memcpyPeerAsync")
def copy_to_peer_in_stream_order(
    to: int, to_device: int, source: int, source_device: int, size: int, stream: int
) -> None:
    """Copy from a device to another, in the order of a stream."""
    SPACE.check(to, size, "destination of a copy", to_device)
    SPACE.check(source, size, "source of a copy", source_device)
    _copy(to, source, size, 3, stream, blocking=False)


def _filler(address: int, value: int, size: int, device: int) -> Callable[[], None]:
    def run() -> None:
        SPACE.check(address, size, "fill", device)
        ctypes.memset(address, value, size)

    return run


@RUNTIME.provides("memset")
def fill(address: int, value: int, size: int) -> None:
    """Fill on the legacy stream."""
    fill_in_stream_order(address, value, size, 0)


@RUNTIME.provides("memsetAsync")
def fill_in_stream_order(address: int, value: int, size: int, stream: int) -> None:
    """Fill in the order of a stream."""
    submit(stream, Fill(size, stream), _filler(address, value, size, devices.current()))
