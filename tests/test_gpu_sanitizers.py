"""The kernels under AddressSanitizer and ThreadSanitizer, each in a process of its own."""

import pytest
from full import only_in_full
from gpu_cases import DTYPES
from gpu_on_cpu.device.sanitize import missing, run_sanitized
from gpu_on_cpu.driver.installation import reason_it_cannot_work

from cupy_lstm import kernels


def needs(sanitizer):
    reason = missing(sanitizer)
    return pytest.mark.skipif(reason is not None, reason=str(reason))


needs_the_bed = pytest.mark.skipif(
    reason_it_cannot_work() is not None, reason=str(reason_it_cannot_work())
)


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


# The gates alone, so that next to nothing of CuPy's is compiled; its arguments are an edit.
GATES = """
import sys
from gpu_on_cpu import install
cupy = install()
import numpy as np
from cupy_lstm import kernels
from cupy_lstm.device_gates import DeviceGates
from cupy_lstm.notation import Shape
resolved, (old, new) = kernels.resolved, sys.argv[1:]
assert old in resolved("gates.cu")
kernels.resolved = lambda file: resolved(file).replace(old, new)
def values(*shape):
    return cupy.asarray(np.random.default_rng(0).standard_normal(shape, "float32"))
D, n, B = 2, 2, 3
for H in (5, 8):
    gates = DeviceGates(Shape(T=n, B=B, I=1, H=H, P=H, D=D), n, np.dtype("float32"))
    z, c, h = values(D, n, B, 4 * H), values(D, n + 1, B, H), values(D, n + 1, B, H)
    dh, carried, dc, dcells = (values(D, B, H) for _ in range(4))
    padding = cupy.asarray(np.array([0, 1, 1] * D * n, bool).reshape(D, n, B))
    for s in range(n):
        gates.forward(z[:, s], c[:, s], c[:, s + 1], h[:, s], h[:, s + 1], padding[:, s])
    gates.prepare(z, c, h[:, 1:], padding)
    for s in reversed(range(n)):
        gates.backward(s, dh, carried, dc, dcells)
print("all of them")
"""


@needs("asan")
@needs_the_bed
def test_the_gates_stay_within_their_arrays():
    done = run_sanitized(GATES, "asan", "unit", "unit")
    assert done.clean, done.output
    assert done.output.endswith("all of them\n")


@needs("asan")
@needs_the_bed
def test_a_read_behind_the_last_unit_is_named():
    done = run_sanitized(GATES, "asan", "load<N>(dcells + ", "load<N>(dcells + N + ")
    assert done.reports, done.output
    assert all("at vector.cuh" in report for report in done.reports)  # where the load is


# Forward, backward and dropout at odd sizes, and at sizes that vectors fit.
TABLE = """
import sys
from gpu_on_cpu import install
cupy = install()
from cases import Case
from gpu_cases import assert_device_case, run_on_device
from cupy_lstm import engine
for dtype in sys.argv[1:]:
    for case in (
        Case("sanitized", T=3, B=3, H=5, L=2, bidirectional=True, states=True, lengths=(3, 1, 0),
             dropout=0.5, upstream=("y", "h", "c", "cells")),
        Case("sanitized-vectors", T=2, B=3, H=8, P=4, states=True, lengths=(2, 1, 0)),
    ):
        for name in ("stepwise", "auto"):
            with engine(name):
                assert_device_case(case, dtype, run_on_device(cupy, case, dtype))
print("all of them")
"""


@pytest.mark.parametrize(
    ("sanitizer", "dtypes"),
    [
        pytest.param("asan", DTYPES, marks=needs("asan")),
        # Of the half types one: they differ in how they are rounded, not in who writes where.
        pytest.param("tsan", ("float32", "float16"), marks=needs("tsan")),
    ],
)
@needs_the_bed
@only_in_full
def test_every_kernel_stays_within_its_arrays_and_has_no_race(sanitizer, dtypes):
    done = run_sanitized(TABLE, sanitizer, *dtypes, timeout=900)
    assert done.clean, done.output
    assert done.output.endswith("all of them\n")
