"""The devices of the fake machine: which one is current, and what each says about itself."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from gpu_on_cpu.device.profiles import LAPTOP, DeviceProfile
from gpu_on_cpu.driver.entry_points import DRIVER, RUNTIME
from gpu_on_cpu.driver.errors import Status, runtime_error


@dataclass(frozen=True)
class Device:
    """One device; it never changes its nature, since CuPy remembers what a device once was."""

    id: int
    profile: DeviceProfile


_devices: list[Device] = []
_thread = threading.local()
TOOLKIT = {"version": 12090}


def set_up(profiles: list[DeviceProfile], toolkit: int) -> None:
    """Make one device of each profile, under a toolkit of this version, such as 12090."""
    _devices[:] = [Device(number, profile) for number, profile in enumerate(profiles)]
    TOOLKIT["version"] = toolkit


def device(number: int) -> Device:
    """Return a device by its number."""
    if not 0 <= number < len(_devices):
        raise runtime_error(
            Status.INVALID_DEVICE, f"there is no device {number}, only {len(_devices)}"
        )
    return _devices[number]


@contextmanager
def profile(name: str) -> Iterator[int]:
    """Make the first device of a profile current until the block ends, and give its number.

    Arrays made in the block are that device's. No device ever changes its profile: CuPy, and who
    uses it, remembers what a device is.
    """
    names = {"LAPTOP": LAPTOP.name}
    number = next((d.id for d in _devices if d.profile.name == names.get(name, name)), None)
    if number is None:
        known = sorted({d.profile.name for d in _devices})
        raise ValueError(f"no device has the profile {name!r}; there are {known}")
    before = current()
    use(number)
    try:
        yield number
    finally:
        use(before)


@RUNTIME.provides("getDevice")
def current() -> int:
    """Return the number of the calling thread's device."""
    return getattr(_thread, "device", 0)


@RUNTIME.provides("setDevice")
def use(number: int) -> None:
    """Make a device the calling thread's."""
    _thread.device = device(number).id


@RUNTIME.provides("getDeviceCount")
def count() -> int:
    """Return how many devices there are."""
    return len(_devices)


# Attributes of every device of the last ten years, by their number in cudaDeviceAttr.
COMMON_ATTRIBUTES = {
    2: 1024,  # block dimensions
    3: 1024,
    4: 64,
    5: 2**31 - 1,  # grid dimensions
    6: 65535,
    7: 65535,
    9: 65536,  # constant memory
    15: 1,  # copies overlap with kernels
    19: 1,  # host memory can be mapped
    31: 1,  # concurrent kernels
    41: 1,  # one address space for host and devices
    78: 1,  # stream priorities
    83: 1,  # managed memory
    89: 1,
    90: 1,  # computation can be preempted
    91: 1,  # registered host memory has one address
    95: 1,  # cooperative launches
    99: 1,  # host memory can be registered
    115: 1,  # stream-ordered allocation
}


@RUNTIME.provides("deviceGetAttribute")
def attribute(number: int, of_device: int) -> int:
    """Return an attribute by its number in cudaDeviceAttr; 0 for those the bed lacks."""
    facts = device(of_device).profile
    major, minor = facts.compute_capability
    own = {
        1: facts.max_threads_per_block,
        8: facts.shared_per_block,
        10: facts.warp,
        12: facts.registers_per_block,
        13: facts.clock_khz,
        16: facts.sm_count,
        36: facts.memory_clock_khz,
        37: facts.memory_bus_bits,
        38: facts.l2_bytes,
        39: facts.threads_per_sm,
        75: major,
        76: minor,
        81: facts.shared_per_sm,
        82: facts.registers_per_sm,
        97: facts.shared_per_block_optin,
        106: facts.blocks_per_sm,
        111: facts.shared_reserved_per_block,
        120: facts.cluster_launch,
    }
    return int(own.get(number, COMMON_ATTRIBUTES.get(number, 0)))


MEMORY_BYTES = 16 << 30


@RUNTIME.provides("getDeviceProperties")
def properties(number: int) -> dict[str, Any]:
    """Return what CuPy gives for cudaGetDeviceProperties, as far as the bed knows it."""
    facts = device(number).profile
    major, minor = facts.compute_capability
    return {
        "name": f"{facts.name} on a CPU".encode(),
        "totalGlobalMem": MEMORY_BYTES,
        "major": major,
        "minor": minor,
        "multiProcessorCount": attribute(16, number),
        "warpSize": attribute(10, number),
        "sharedMemPerBlock": attribute(8, number),
        "sharedMemPerBlockOptin": attribute(97, number),
        "sharedMemPerMultiprocessor": attribute(81, number),
        "reservedSharedMemPerBlock": attribute(111, number),
        "regsPerBlock": attribute(12, number),
        "regsPerMultiprocessor": attribute(82, number),
        "maxThreadsPerBlock": attribute(1, number),
        "maxThreadsPerMultiProcessor": attribute(39, number),
        "maxBlocksPerMultiProcessor": attribute(106, number),
        "maxThreadsDim": tuple(attribute(axis, number) for axis in (2, 3, 4)),
        "maxGridSize": tuple(attribute(axis, number) for axis in (5, 6, 7)),
        "totalConstMem": attribute(9, number),
        "concurrentKernels": attribute(31, number),
        "cooperativeLaunch": attribute(95, number),
        "canMapHostMemory": attribute(19, number),
        "unifiedAddressing": attribute(41, number),
        "pciDomainID": 0,
        "pciBusID": number,
        "pciDeviceID": 0,
    }


@RUNTIME.provides("deviceGetPCIBusId")
def pci_bus_id(number: int) -> str:
    """Return an address on the bus that is the device's number."""
    return f"0000:{device(number).id:02x}:00.0"


@RUNTIME.provides("deviceGetByPCIBusId")
def by_pci_bus_id(text: str) -> int:
    """Return the device at an address on the bus."""
    return device(int(text.split(":")[1], 16)).id


@RUNTIME.provides("deviceCanAccessPeer")
def can_access_peer(number: int, peer: int) -> int:
    """Say no: every access of a device to another's memory is to be seen."""
    assert device(number) and device(peer)
    return 0


@RUNTIME.provides("deviceEnablePeerAccess", "_deviceEnsurePeerAccess")
def enable_peer_access(peer: int) -> None:
    """Refuse."""
    raise runtime_error(
        Status.PEER_ACCESS_UNSUPPORTED, f"device {current()} cannot access device {peer}"
    )


@RUNTIME.provides("runtimeGetVersion", "driverGetVersion")
def toolkit_version() -> int:
    """Return the version of the toolkit CuPy was built for."""
    return TOOLKIT["version"]


@RUNTIME.provides("_getCUDAMajorVersion")
def toolkit_major_version() -> int:
    """Return the first number of the toolkit's version."""
    return TOOLKIT["version"] // 1000


# A context is named by its device's number plus one.


@RUNTIME.provides("_ensure_context")
def ensure_context() -> None:
    """Do nothing: every device has its context."""


@DRIVER.provides("ctxGetCurrent")
def current_context() -> int:
    """Return the context of the current device."""
    return current() + 1


@DRIVER.provides("ctxSetCurrent")
def use_context(context: int) -> None:
    """Make the device of a context current."""
    use(context - 1)


@DRIVER.provides("ctxGetDevice")
def device_of_context() -> int:
    """Return the device of the current context."""
    return current()
