"""The least time a machine allows: from the rates of a GPU, or measured of this CPU."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

import numpy as np

from cupy_lstm.cost import flops_per_second, step_flops, step_memory_bytes
from cupy_lstm.device import DeviceFacts
from cupy_lstm.notation import Shape

DTYPES = {2: "float16", 4: "float32", 8: "float64"}
"""The dtype of the rates by the bytes of an element."""

SIZES = (128, 256, 512, 1024)
"""Rows and columns of the products that are timed; a busy machine disturbs a small one less."""

COPIED_BYTES = 64 * 2**20
"""Far more than a cache holds."""

BUDGET = 0.2
"""Seconds of repetitions of each, of which the shortest counts; at least a few are made."""


@dataclass(frozen=True)
class Machine:
    """Rates that nothing exceeds, and where they are from.

    Attributes
    ----------
    flops : dict of str to float
        Floating-point operations a second of a large matrix product, by dtype.
    bandwidth : float
        Bytes a second of the memory.
    """

    name: str
    flops: dict[str, float]
    bandwidth: float
    source: str

    def or_better(self, other: "Machine") -> "Machine":
        """Return the same machine with the better rates of two measurements."""
        flops = {dtype: max(rate, other.flops[dtype]) for dtype, rate in self.flops.items()}
        return replace(self, flops=flops, bandwidth=max(self.bandwidth, other.bandwidth))

    def floor_us(self, shape: Shape, dtype: str, training: bool, backward: bool) -> float | None:
        """Return the least microseconds of a step: products, or each array moved once."""
        rate = self.flops.get(dtype)
        if rate is None:
            return None
        moved = step_memory_bytes(shape, dtype, training, backward) / self.bandwidth
        return 1e6 * max(moved, step_flops(shape, backward) / rate)


def gpu_machine(device: DeviceFacts) -> Machine | None:
    """Return the rates of a GPU, None where its driver does not say them."""
    if not (device.multiprocessors and device.clock_hz and device.memory_bandwidth):
        return None
    flops = {dtype: flops_per_second(device, dtype) for dtype in DTYPES.values()}
    return Machine(device.name, flops, device.memory_bandwidth, "highest clock, all units busy")


def host_machine() -> Machine:
    """Measure this machine's CPU: NumPy's matrix product, and a copy; about a second."""
    flops = {}
    for dtype in ("float32", "float64"):
        flops[dtype] = max(_product_rate(size, dtype) for size in SIZES)
    source, target = np.ones(COPIED_BYTES, "uint8"), np.zeros(COPIED_BYTES, "uint8")
    # A copy reads every byte and writes it.
    bandwidth = 2 * COPIED_BYTES / _best(lambda: np.copyto(target, source))
    return Machine("CPU", flops, bandwidth, "NumPy's product and copy, measured here")


def _product_rate(size: int, dtype: str) -> float:
    a = np.random.default_rng(0).standard_normal((size, size)).astype(dtype)
    out = np.empty_like(a)
    return 2 * size**3 / _best(lambda: np.matmul(a, a, out=out))


def _best(call: Callable[[], Any]) -> float:
    """Return the shortest of some times of a call, in seconds."""
    times: list[float] = []
    until = perf_counter() + BUDGET
    while len(times) < 3 or perf_counter() < until:
        begun = perf_counter()
        call()
        times.append(perf_counter() - begun)
    return min(times)
