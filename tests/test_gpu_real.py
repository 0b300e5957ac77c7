"""The table of cases on a real device, where there is one.

Everything here is run on the CPU, too, by test_gpu_table.py; this file is what a card adds.
"""

import ctypes
import importlib.util

import pytest
from cases import CASES, results
from gpu_cases import assert_device_case, each_dtype, run_on_device

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def real_cupy():
    """CuPy on a device, or a skip that says why there is none."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        pytest.skip("no device: the NVIDIA driver (libcuda.so.1) is not installed")
    if importlib.util.find_spec("cupy") is None:
        pytest.skip("no device: CuPy is not installed")
    import cupy

    from cupy_lstm.info import find_gpus

    gpus, why_none = find_gpus(cupy)
    if not gpus:
        pytest.skip(f"no device: {why_none}")
    return cupy


@each_dtype
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_table(real_cupy, case, dtype):
    assert_device_case(case, dtype, run_on_device(real_cupy, case, dtype))


@each_dtype
def test_two_runs_are_bit_equal(real_cupy, dtype):
    case = next(case for case in CASES if case.id == "cells-bidirectional")
    first, second = (results(run_on_device(real_cupy, case, dtype)) for _ in range(2))
    for name, array in first.items():
        assert array.tobytes() == second[name].tobytes(), name
