"""Engines: each runs one layer's sweep over time, both directions, with the same two functions.

``forward(x, weights, states, lengths, *, reverse, y, cells, keep, steps, chunk)`` and
``backward(tapes, dy, dstates, dcells, *, wanted, gradients, dx)``, as `stepwise` documents them.
Arrays over time are given in the caller's layout and order, for an engine to read and to fill in
place. The engine `single`, which keeps no tape, has the first of them alone. An engine with
``SETS_GRADIENTS`` takes ``unset``, too: the names of weights whose gradients it sets, instead of
adding to them, and ``"dx"`` if it shall set that. `cupy_lstm.plan` chooses among the engines.
"""

from collections.abc import Sequence
from functools import cache
from types import ModuleType

from cupy_lstm.plan import simd_missing


@cache
def load(name: str) -> ModuleType:
    """Return the engine called `name`, imported on first use; Python's own look-up is slower."""
    from importlib import import_module

    return import_module(f"cupy_lstm.engines.{name}")


def warmup(dtypes: Sequence[str] | str = ("float32", "float64")) -> bool:
    """Compile the kernels of the CPU, or read them from disk, so that no later call waits.

    Parameters
    ----------
    dtypes : sequence of str, or str
        Of ``"float32"`` and ``"float64"``.

    Returns
    -------
    bool
        Whether there are such kernels: False without Numba, where nothing is compiled.

    Raises
    ------
    ValueError
        If a dtype is none of them.
    """
    dtypes = (dtypes,) if isinstance(dtypes, str) else dtypes
    for dtype in dtypes:
        if dtype not in ("float32", "float64"):
            raise ValueError(f"dtypes must be of ('float32', 'float64'), received {dtype!r}")
    if simd_missing():
        return False
    from cupy_lstm.simd.compiled import ROUTINES, host_lanes, kernel, kernels_for, routine

    for dtype in dtypes:
        lanes = host_lanes(dtype)
        for function in kernels_for(lanes):
            kernel(function, lanes)
    for function in ROUTINES:
        routine(function)
    return True
