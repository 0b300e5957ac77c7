"""What a plan must know of a GPU: its limits and its rates, as plain numbers.

A plan can be made for a card that is not there: `CARDS` has six of them, and `current_device` reads
those numbers of the device that is.
"""

from dataclasses import dataclass
from functools import cache

from cupy_lstm.gemm import rounds_to_tf32

KIB, MIB = 2**10, 2**20


@dataclass(frozen=True)
class DeviceFacts:
    """Limits and rates of a GPU.

    Attributes
    ----------
    name : str
        What its driver calls it.
    compute_capability : tuple of int
        Major and minor.
    multiprocessors : int
        How many there are.
    shared_memory_per_block, shared_memory_per_multiprocessor : int
        Bytes: the most a block can ask for, and all that there is.
    registers_per_multiprocessor : int
        Of 32 bits.
    max_threads_per_block, max_threads_per_multiprocessor, max_blocks_per_multiprocessor : int
        Of any kernel; the last two: in flight at once.
    l2_bytes : int
        Size of the cache that all multiprocessors share.
    clock_hz, memory_bandwidth : float
        Highest clock, and bytes a second of the memory; 0 where the driver does not say.
    cluster_launch : bool
        Whether blocks can be launched in clusters.
    cooperative_launch : bool
        Whether all blocks of a launch can be made to run at once.
    tf32 : bool
        Whether products of float32 may round their operands to TF32: no property of the device, but
        of CuPy on it, as CUPY_TF32=1 asks.
    """

    name: str
    compute_capability: tuple[int, int]
    multiprocessors: int
    shared_memory_per_block: int
    shared_memory_per_multiprocessor: int
    registers_per_multiprocessor: int
    max_threads_per_block: int
    max_threads_per_multiprocessor: int
    max_blocks_per_multiprocessor: int
    l2_bytes: int
    clock_hz: float
    memory_bandwidth: float
    cluster_launch: bool
    cooperative_launch: bool = True
    tf32: bool = False


# Multiprocessors, L2, boost clock and bandwidth: NVIDIA's architecture whitepapers (Turing, Ampere
# GA100, Ada, Hopper, Blackwell) and the data sheet of each card. Where a clock is not published
# (H100, B200) it is that of the published float32 rate: rate / (2 * 128 * multiprocessors). Limits
# by compute capability: CUDA C++ Programming Guide, "Technical Specifications per Compute
# Capability".
CARDS = {
    "T4": DeviceFacts(
        "T4", (7, 5), 40, 64 * KIB, 64 * KIB, 65536, 1024, 1024, 16,
        4 * MIB, 1.59e9, 320e9, False,
    ),
    "A100": DeviceFacts(
        "A100", (8, 0), 108, 163 * KIB, 164 * KIB, 65536, 1024, 2048, 32,
        40 * MIB, 1.41e9, 1555e9, False,
    ),
    "L4": DeviceFacts(
        "L4", (8, 9), 58, 99 * KIB, 100 * KIB, 65536, 1024, 1536, 24,
        48 * MIB, 2.04e9, 300e9, False,
    ),
    "H100": DeviceFacts(
        "H100", (9, 0), 132, 227 * KIB, 228 * KIB, 65536, 1024, 2048, 32,
        50 * MIB, 1.98e9, 3350e9, True,
    ),
    "B200": DeviceFacts(
        "B200", (10, 0), 148, 227 * KIB, 228 * KIB, 65536, 1024, 2048, 32,
        126 * MIB, 1.98e9, 8000e9, True,
    ),
    "RTX 3050 Laptop": DeviceFacts(
        "RTX 3050 Laptop", (8, 6), 16, 99 * KIB, 100 * KIB, 65536, 1024, 1536, 16,
        2 * MIB, 1.74e9, 192e9, False,
    ),
}  # fmt: skip
"""Cards of every kind that is in use, for plans where there is none: a data centre's of four
generations, a small one for inference, a laptop's (the H100 is the SXM card, the A100 that of 40
GB)."""

# Numbers in cudaDeviceAttr, since CuPy does not name all of them. Read one by one: the properties
# of CUDA 13 have no clocks any more.
_MAX_THREADS_PER_BLOCK, _CLOCK_KHZ, _MULTIPROCESSORS = 1, 13, 16
_MEMORY_CLOCK_KHZ, _MEMORY_BUS_BITS, _L2_BYTES = 36, 37, 38
_MAX_THREADS_PER_MULTIPROCESSOR, _MAX_BLOCKS_PER_MULTIPROCESSOR = 39, 106
_MAJOR, _MINOR, _SHARED_PER_MULTIPROCESSOR, _REGISTERS = 75, 76, 81, 82
_COOPERATIVE_LAUNCH, _SHARED_PER_BLOCK_OPTIN, _CLUSTER_LAUNCH = 95, 97, 120


def facts_for(module: str) -> DeviceFacts | None:
    """Return the facts of the current device for arrays of CuPy, None for those of NumPy."""
    return current_device() if module == "cupy" else None


def current_device() -> DeviceFacts:
    """Return the facts of CuPy's current device; waits for nothing."""
    import cupy

    return device_facts(cupy.cuda.device.get_device_id())


_without_clusters: dict[int, str] = {}


def refuse_clusters(device: int, reason: str | None) -> None:
    """Plan without clusters on a device from now on, though it says it launches them.

    A reason of None takes that back.
    """
    if reason is None:
        _without_clusters.pop(device, None)
    else:
        _without_clusters[device] = reason
    _read_facts.cache_clear()


def refused_clusters() -> dict[int, str]:
    """Return the devices on which a launch of clusters failed in this process, and how."""
    return dict(_without_clusters)


def device_facts(device: int) -> DeviceFacts:
    """Return the facts of a device by its number; what its driver says is read once."""
    return _read_facts(device, rounds_to_tf32())


@cache
def _read_facts(device: int, tf32: bool) -> DeviceFacts:
    from cupy.cuda import runtime

    def attribute(number: int) -> int:
        try:
            return int(runtime.deviceGetAttribute(number, device))
        except runtime.CUDARuntimeError:  # a driver older than the attribute
            return 0

    return DeviceFacts(
        name=runtime.getDeviceProperties(device)["name"].decode(),
        compute_capability=(attribute(_MAJOR), attribute(_MINOR)),
        multiprocessors=attribute(_MULTIPROCESSORS),
        shared_memory_per_block=attribute(_SHARED_PER_BLOCK_OPTIN),
        shared_memory_per_multiprocessor=attribute(_SHARED_PER_MULTIPROCESSOR),
        registers_per_multiprocessor=attribute(_REGISTERS),
        max_threads_per_block=attribute(_MAX_THREADS_PER_BLOCK),
        max_threads_per_multiprocessor=attribute(_MAX_THREADS_PER_MULTIPROCESSOR),
        max_blocks_per_multiprocessor=attribute(_MAX_BLOCKS_PER_MULTIPROCESSOR),
        l2_bytes=attribute(_L2_BYTES),
        clock_hz=1e3 * attribute(_CLOCK_KHZ),
        # Two transfers a clock, a byte for eight lines of the bus.
        memory_bandwidth=1e3 * attribute(_MEMORY_CLOCK_KHZ) * 2 * attribute(_MEMORY_BUS_BITS) / 8,
        cluster_launch=bool(attribute(_CLUSTER_LAUNCH)) and device not in _without_clusters,
        cooperative_launch=bool(attribute(_COOPERATIVE_LAUNCH)),
        tf32=tf32,
    )
