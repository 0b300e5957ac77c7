"""The engine simd beside Numba's own threads, in forked processes, and from many threads."""

import os
import sys

import pytest
from simd_bed import needs_fork, run_script

COMMON = """
import os, signal, sys, threading
import numba
import numpy as np
from cases import Case, build
from face import assert_bit_equal
from simd_bed import infer, run

signal.alarm(50)  # a hang ends with the exit status of a signal, in forked children, too
EVERY = ("y", "h", "c", "cells")
CASES = [
    Case("rows", T=30, B=48, I=24, H=64, states=True, upstream=EVERY),
    Case("units", T=30, B=1, I=24, H=256, states=True, upstream=EVERY),
    Case("both", T=20, B=24, I=24, H=48, L=2, bidirectional=True, upstream=EVERY),
]
ARRAYS = [build(case, "float32") for case in CASES]
def compute():
    return [run(case, arrays=arrays) for case, arrays in zip(CASES, ARRAYS)]
EXPECTED = compute()
def check():
    for found, expected in zip(compute(), EXPECTED):
        assert_bit_equal(found, expected)

def workers():
    return [t for t in threading.enumerate() if t.name.startswith("cupy_lstm")]
assert workers(), "these calls are large enough for threads"
"""

BESIDE = """
@numba.njit(parallel=True)
def total(x):
    result = 0.0
    for k in numba.prange(len(x)):
        result += np.sqrt(x[k])
    return result

numbers = np.arange(200_000.0)
truth = total(numbers)
assert numba.threading_layer() == sys.argv[1]
ready, problems = threading.Barrier(4), []

def ours():
    ready.wait()
    for _ in range(8):
        check()

def theirs():
    ready.wait()
    for _ in range(300):
        assert np.isclose(total(numbers), truth, rtol=1e-12)

def guarded(function):
    try:
        function()
    except BaseException as error:
        problems.append(error)

# One thread only runs Numba's parallel code: not all of its layers allow more.
functions = [ours, ours, ours, theirs]
threads = [threading.Thread(target=guarded, args=(function,)) for function in functions]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert not problems, problems
check()
assert np.isclose(total(numbers), truth, rtol=1e-12)
"""


def layer_exists(layer):
    if layer == "workqueue":
        return True
    try:
        if layer == "omp":
            from numba.np.ufunc import omppool  # noqa: F401
        else:
            from numba.np.ufunc import tbbpool  # noqa: F401
    except ImportError:
        return False
    return True


@pytest.mark.parametrize("layer", ["workqueue", "omp", "tbb"])
def test_beside_parallel_code_of_numba(layer):
    if not layer_exists(layer):
        pytest.skip(f"this Numba has no threading layer {layer!r} here")
    fork = FORK if layer == "workqueue" and hasattr(os, "fork") else ""
    run_script(COMMON + BESIDE + fork, layer, NUMBA_THREADING_LAYER=layer, NUMBA_NUM_THREADS="2")


FORK = """
def forked():
    child = os.fork()
    if child == 0:
        code = 1
        try:
            signal.alarm(20)
            assert not workers(), "a child begins without threads"
            check()
            assert workers(), "and makes its own"
            code = 0
        finally:
            os._exit(code)
    return child

def succeeded(child):
    return os.waitpid(child, 0)[1] == 0

assert succeeded(forked())
check()
"""

BUSY = """
stop, problems = threading.Event(), []

def work():
    try:
        while not stop.is_set():
            check()
    except BaseException as error:
        problems.append(error)

thread = threading.Thread(target=work)
thread.start()
for _ in range(6):
    children = [forked() for _ in range(2)]
    check()
    assert all([succeeded(child) for child in children])
stop.set()
thread.join()
assert not problems, problems
check()
"""


@needs_fork
@pytest.mark.filterwarnings("ignore")
def test_a_forked_child_computes_the_same():
    """Forked after a call, while another thread is in one, and from a child."""
    again = "child = forked()\nassert succeeded(child)\n"
    run_script(COMMON + FORK + BUSY + again, NUMBA_NUM_THREADS="3")


@needs_fork
@pytest.mark.skipif(
    sys.platform != "linux", reason="the default start method is fork on Linux only"
)
def test_a_pool_of_forked_processes():
    code = """
import multiprocessing

def once(seed):
    check()
    return seed

with multiprocessing.get_context("fork").Pool(2) as pool:
    assert pool.map(once, range(4)) == [0, 1, 2, 3]
"""
    run_script(COMMON + code, NUMBA_NUM_THREADS="2")
