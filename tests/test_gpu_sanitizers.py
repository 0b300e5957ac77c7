"""The kernels under AddressSanitizer and ThreadSanitizer, each in a process of its own."""

import os

import pytest
from gpu_on_cpu.device.sanitize import missing, run_sanitized
from gpu_on_cpu.driver.installation import reason_it_cannot_work

from cupy_lstm import kernels


def needs(sanitizer):
    reason = missing(sanitizer)
    return pytest.mark.skipif(reason is not None, reason=str(reason))


# The only kernel whose threads talk to each other. It takes nothing but arrays, so no CuPy either.
LENGTHS = """
import sys
import numpy as np
from gpu_on_cpu.device import A100, compile_module
source = sys.stdin.read()
module = compile_module(source, (), ("check_lengths<long long>",), filename="lengths.cu")
for rows in (1, 7, 300):
    lengths, report = np.full(rows, 2, np.int64), np.zeros(3, np.int64)
    lengths[rows // 2] = 9
    values = [np.array([v], np.int64) for v in (lengths.ctypes.data, report.ctypes.data, rows, 5)]
    module.kernels["check_lengths<long long>"].launch(
        (1,), (256,), 0, [v.ctypes.data for v in values], profile=A100
    )
    print(rows, report.tolist())
"""


def run_lengths(sanitizer, tmp_path, text):
    """Run the check of lengths on a source text."""
    source = tmp_path / "lengths.cu"
    source.write_text(text)
    program = LENGTHS.replace("sys.stdin.read()", f"open({str(source)!r}).read()")
    return run_sanitized(program, sanitizer)


@needs("tsan")
def test_the_length_check_has_no_race(tmp_path):
    done = run_lengths("tsan", tmp_path, kernels.resolved("lengths.cu"))
    assert done.clean, done.output
    assert done.output.splitlines()[-3:] == ["1 [1, 9, 5]", "7 [4, 9, 5]", "300 [151, 9, 5]"]


@needs("tsan")
def test_without_its_barrier_it_has_one(tmp_path):
    text = kernels.resolved("lengths.cu")
    assert text.count("__syncthreads();") == 1
    done = run_lengths("tsan", tmp_path, text.replace("__syncthreads();", ""))
    races = [report for report in done.reports if "data race" in report]
    assert any("lengths.cu" in report for report in races), done.output


@needs("asan")
def test_a_row_past_the_end_is_named(tmp_path):
    text = kernels.resolved("lengths.cu")
    assert run_lengths("asan", tmp_path, text).clean
    done = run_lengths("asan", tmp_path, text.replace("row < B; row", "row <= B; row"))
    assert any("lengths.cu" in report for report in done.reports), done.output


# Forward, backward and dropout of every dtype at odd sizes, and at sizes that vectors fit.
TABLE = """
from gpu_on_cpu import install
cupy = install()
from cases import Case
from gpu_cases import DTYPES, assert_device_case, run_on_device
for dtype in DTYPES:
    for case in (
        Case("sanitized", T=3, B=3, H=5, L=2, bidirectional=True, states=True, lengths=(3, 1, 0),
             dropout=0.5, upstream=("y", "h", "c", "cells")),
        Case("sanitized-vectors", T=2, B=3, H=8, P=4, states=True, lengths=(2, 1, 0)),
    ):
        assert_device_case(case, dtype, run_on_device(cupy, case, dtype))
print("all of them")
"""


@needs("asan")
@pytest.mark.skipif(reason_it_cannot_work() is not None, reason=str(reason_it_cannot_work()))
@pytest.mark.skipif(not os.environ.get("CUPY_LSTM_FULL"), reason="runs in .ci/full")
def test_every_kernel_stays_within_its_arrays():
    done = run_sanitized(TABLE, "asan", timeout=900)
    assert done.clean, done.output
    assert done.output.endswith("all of them\n")
