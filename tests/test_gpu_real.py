"""The table of cases on a real device, where there is one.

All of it runs on the CPU in test_gpu_table.py; this file is what a card adds. A few cases run here
on the test bed, too, so that what a card will run is known to run, and to fail where it should.
"""

import ctypes
import importlib.util
import sys
from contextlib import nullcontext
from types import ModuleType

import pytest
from cases import CASES, results
from gpu_cases import assert_device_case, each_dtype, run_on_device
from team_cases import FORMS, SAMPLE, card_of, choose_teams

from cupy_lstm import engine, gemm, info
from cupy_lstm.device import current_device
from cupy_lstm.persistent import teams

CELLS = next(case for case in CASES if case.id == "cells-bidirectional")


def in_both_places(cases, on_the_bed):
    """Run all cases on a card, and some of them on the test bed."""
    bed = [pytest.param("bed", case, marks=pytest.mark.gpu_on_cpu) for case in on_the_bed]
    card = [pytest.param("card", case, marks=pytest.mark.gpu) for case in cases]
    return pytest.mark.parametrize(
        ("device", "case"),
        bed + card,
        indirect=["device"],
        ids=lambda value: value if isinstance(value, str) else value.id,
    )


def real_cupy():
    """Return CuPy on a card, or skip and say why there is none."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        pytest.skip("no device: the NVIDIA driver (libcuda.so.1) is not installed")
    if importlib.util.find_spec("cupy") is None:
        pytest.skip("no device: CuPy is not installed")
    import cupy

    gpus, why_none = info.find_gpus(cupy)
    if not gpus:
        pytest.skip(f"no device: {why_none}")
    try:
        gemm._binding()
    except ImportError:
        # The extra `test` comes without the libraries of CUDA, which the test bed does not need.
        pytest.skip("no cuBLAS for the device: pip install -e '.[test,cuda12x]'")
    return cupy


@pytest.fixture
def device(request):
    """CuPy on a card or on the test bed."""
    return real_cupy() if request.param == "card" else request.getfixturevalue("cupy")


@in_both_places([], on_the_bed=[CELLS])
def test_a_wrong_result_is_seen(device, case):
    for name in ("y", "dc0"):
        result = run_on_device(device, case, "float32")
        getattr(result, name)[0] += 1e-3
        with pytest.raises(AssertionError, match=f"{name}: error"):
            assert_device_case(case, "float32", result)


@each_dtype
@in_both_places(CASES, on_the_bed=[CELLS])
def test_table(device, case, dtype):
    assert_device_case(case, dtype, run_on_device(device, case, dtype))


@each_dtype
@in_both_places([CELLS], on_the_bed=[CELLS])
def test_two_runs_are_bit_equal(device, case, dtype):
    first, second = (results(run_on_device(device, case, dtype)) for _ in range(2))
    for name, array in first.items():
        assert array.tobytes() == second[name].tobytes(), name


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("form", FORMS)
@in_both_places(SAMPLE, on_the_bed=[SAMPLE[2]])
def test_teams(request, device, case, form, dtype, monkeypatch):
    """Every tier and form that the device has, whatever the plan would choose for so small a layer.

    Rows and hidden sizes that fill nothing, several tiles, both directions, ended and empty rows.
    """
    (kind, _), on_bed = FORMS[form], request.node.get_closest_marker("gpu_on_cpu")
    with card_of(form) if on_bed else nullcontext():
        facts = current_device()
        capable = facts.compute_capability >= teams.COMPUTE_CAPABILITY
        if not capable or kind not in teams.forms_for(dtype, facts):
            pytest.skip(f"{facts.name} does not use {kind.kind} for {dtype}")
        if form.startswith("cluster") and not facts.cluster_launch:
            pytest.skip(f"{facts.name} has no clusters")
        choose_teams(monkeypatch, form)
        with engine("persistent"):
            assert_device_case(case, dtype, run_on_device(device, case, dtype))


def test_a_device_without_cublas_is_a_skip_that_says_what_to_install(monkeypatch):
    """As where the extra `test` is installed alone on a machine with a card."""

    def missing():
        raise ImportError("libcublas.so.12: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", lambda name: None)
    monkeypatch.setattr(info, "find_gpus", lambda cupy: (["a card"], ""))
    monkeypatch.setitem(sys.modules, "cupy", ModuleType("cupy"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(gemm, "_binding", missing)
    with pytest.raises(pytest.skip.Exception, match=r"pip install -e '\.\[test,cuda12x\]'"):
        real_cupy()
