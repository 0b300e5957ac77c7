"""What every test of the engine persistent begins with: its cases, and a run of one of them."""

import pytest
from cases import CASES, Case, results
from gpu_cases import assert_device_case, call, on_host, prepared
from gpu_on_cpu import record

from cupy_lstm import engine, plan
from cupy_lstm.device import CARDS
from cupy_lstm.persistent import launches, tiers, tiles
from cupy_lstm.persistent.blocks import blocks_for

DTYPES = tuple(tiles.ITEMSIZE)
each_dtype = pytest.mark.parametrize("dtype", DTYPES)
each_form = pytest.mark.parametrize("inside", [True, False], ids=["inside", "gemm"])
"""The input's projection in the kernel, or in a GEMM before it."""

# What a multiprocessor of the bed's first device holds, in float32 and so in any dtype.
_CAPACITY = tiles.block_capacity("float32", CARDS["A100"].shared_memory_per_block)
SERVED = [case for case in CASES if not case.P and case.H <= _CAPACITY]

_ALL = ("y", "h", "c", "cells")
SAMPLE = [
    Case("rich", T=6, H=9, L=2, bidirectional=True, states=True, lengths=(4, 6, 0), upstream=_ALL),
    Case("rich-time-major", T=5, B=6, H=8, bidirectional=True, time_major=True, states=True,
         lengths=(5, 1, 0, 2, 5, 4), upstream=_ALL),
    Case("rich-many-rows", T=3, B=9, I=5, H=17, states=True, upstream=_ALL),
]  # fmt: skip
"""One case for every kind of thing the kernels do: odd sizes, several blocks, ended rows."""

each_sample = pytest.mark.parametrize("case", SAMPLE, ids=lambda case: case.id)


def choose_form(monkeypatch, inside):
    """Let the kernel project what it can, or nothing."""
    monkeypatch.setattr(tiles, "INSIDE_FEATURES", tiles.INSIDE_FEATURES if inside else 0)
    # Without its cache, which knows nothing of the choice.
    monkeypatch.setattr(tiers, "blocks_for", blocks_for.__wrapped__)


def choose_blocks(monkeypatch):
    """Let blocks serve all that they can, though teams be faster, and teams nothing."""
    for module in (plan, launches):
        monkeypatch.setattr(module, "tier_for", blocks_for)


def run(cupy, case, dtype):
    """Run forward and backward of a case with the engine; everything on the host, and the log."""
    lstm, arrays = prepared(cupy, case, dtype)
    with engine("persistent"), record() as log:
        result = call(lstm, case, arrays)
    return on_host(result), log


def kernels_of(log):
    """Return the names of the kernels of a log that are the engine's own."""
    return [e.name.split("<")[0] for e in log.launches if e.name.startswith("recurrence_")]


def assert_served(cupy, case, dtype):
    """Fail unless the engine runs the case, waits for nothing, and keeps the error rule."""
    result, log = run(cupy, case, dtype)
    if case.T and case.B:
        assert kernels_of(log) == ["recurrence_forward"] * case.L + ["recurrence_backward"] * case.L
    assert not [entry for entry in log.launches if entry.name.startswith("gates_")]
    assert not log.synchronisations
    assert not log.host_copies
    assert_device_case(case, dtype, result)
    return result


def bits(result):
    """Return the bytes of every array of a result."""
    return {name: array.tobytes() for name, array in results(result).items()}
