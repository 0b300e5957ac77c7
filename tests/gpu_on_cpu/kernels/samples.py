"""Run the sample kernels and compare what they compute with NumPy.

Every sample takes a compiled module and the order to run in, and tells whether the result is right.
As a script: ``python samples.py NAME[,BUG,...] ...`` runs each one in forward order and says so.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from gpu_on_cpu.device import H100, DeviceProfile, Kernel, LaunchError, Module, compile_module

HERE = Path(__file__).resolve().parent


def load(filename: str, *macros: str, **settings: object) -> Module:
    """Compile a sample with macros defined."""
    options = [f"-I{HERE}", "-ftz=true", *(f"-D{macro}" for macro in macros)]
    return compile_module((HERE / filename).read_text(), options, filename=filename, **settings)


def run(
    kernel: Kernel,
    grid: tuple[int, ...],
    block: tuple[int, ...],
    *arguments: np.ndarray | np.generic,
    shared_bytes: int = 0,
    profile: DeviceProfile = H100,
    **settings: object,
) -> None:
    """Launch with NumPy arrays as pointers and NumPy scalars as values."""
    values = [
        np.array([a.ctypes.data], np.uint64) if isinstance(a, np.ndarray) else np.array([a])
        for a in arguments
    ]
    pointers = [value.ctypes.data for value in values]
    kernel.launch(grid, block, shared_bytes, pointers, profile=profile, **settings)


def tiled_matmul(module: Module, **order: object) -> bool:
    """Multiply two matrices whose sizes are no multiples of the tile."""
    rng = np.random.default_rng(0)
    M, N, K = 13, 11, 20
    # Whole numbers: any order of summation gives the same result.
    a = rng.integers(-4, 5, (M, K)).astype(np.float32)
    b = rng.integers(-4, 5, (K, N)).astype(np.float32)
    c = np.full((M, N), np.nan, np.float32)
    sizes = (np.int32(M), np.int32(N), np.int32(K))
    run(module.kernels["tiled_matmul"], (2, 2), (8, 8), a, b, c, *sizes, **order)
    return np.array_equal(c, a @ b)


def recurrence(module: Module, **order: object) -> bool:
    """Run seven steps over six blocks that exchange their state."""
    H, blocks, steps = 24, 6, 7
    h = h0 = np.arange(H, dtype=np.uint32)
    exchange = np.full((2, H), 0xFFFFFFFF, np.uint32)
    flags, result = np.zeros(blocks, np.uint32), np.zeros(H, np.uint32)
    arguments = (h0, exchange, flags, result, np.int32(steps), np.int32(H))
    run(module.kernels["recurrence"], (blocks,), (3,), *arguments, cooperative=True, **order)
    weights = 1 + (np.arange(H)[:, None] + np.arange(H)) % 3
    for t in range(steps):
        h = (t + weights @ h) % 1021
    return np.array_equal(result, h)


def _over_clusters(kernel: Kernel, **order: object) -> bool:
    x = np.arange(8 * 32, dtype=np.float32).reshape(8, 32)
    y = np.full_like(x, np.nan)
    run(kernel, (8,), (32,), x, y, **order)
    return np.array_equal(y, np.repeat(x.reshape(2, 4, 32).sum(1), 4, axis=0))


def cluster_sum(module: Module, **order: object) -> bool:
    """Sum over two clusters of four blocks, each reading the others' shared memory."""
    return _over_clusters(module.kernels["cluster_sum"], **order)


def cluster_push(module: Module, **order: object) -> bool:
    """The same, each writing into the others' shared memory."""
    return _over_clusters(module.kernels["cluster_push"], **order)


def block_sum(module: Module, **order: object) -> bool:
    """Sum a thousand numbers with three blocks."""
    x, total = np.arange(1000, dtype=np.int32), np.zeros(1, np.int32)
    run(module.kernels["block_sum"], (3,), (96,), x, total, np.int32(x.size), **order)
    return total[0] == x.sum()


def warp_scan(module: Module, **order: object) -> bool:
    """Add up 32 numbers one after the other."""
    x, y = np.arange(32, dtype=np.int32) + 5, np.zeros(32, np.int32)
    run(module.kernels["warp_scan"], (1,), (32,), x, y, **order)
    return np.array_equal(y, x.cumsum())


SAMPLES: dict[str, tuple[str, Callable[..., bool]]] = {
    "tiled_matmul": ("tiled_matmul.cu", tiled_matmul),
    "recurrence": ("recurrence.cu", recurrence),
    "cluster_sum": ("cluster_sum.cu", cluster_sum),
    "cluster_push": ("cluster_sum.cu", cluster_push),
    "block_sum": ("block_sum.cu", block_sum),
    "warp_scan": ("block_sum.cu", warp_scan),
}


def outcome(name: str, *bugs: str, **order: object) -> str:
    """Return "right", "wrong", or the error a sample with these bugs ends in."""
    filename, judge = SAMPLES[name]
    module = load(filename, *bugs)
    try:
        return "right" if judge(module, **order) else "wrong"
    except LaunchError as error:
        return f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        print(f"=== {argument}", flush=True)
        print(outcome(*argument.split(",")), flush=True)
