"""The kernels of the engine single: what the real compiler makes of them, what a fault would do."""

import pytest
from cases import Case
from gpu_cases import assert_device_case
from gpu_on_cpu import DeviceMisuseError, check_freed_memory, order
from gpu_on_cpu.device import LaunchError, nvrtc
from gpu_on_cpu.device.sanitize import run_sanitized
from test_gpu_nvrtc import BYTES, chosen, each_architecture
from test_gpu_sanitizers import needs, needs_the_bed
from test_gpu_step import inference, run

from cupy_lstm import kernels
from cupy_lstm.engines import single
from cupy_lstm.kernels import OPTIONS, SUMMED, VECTOR_BYTES

FUNCTIONS = ("step_gates", "step_projection")
INSTANTIATIONS = [(f, scalar, rows) for f in FUNCTIONS for scalar in SUMMED for rows in single.ROWS]
REGISTERS = {
    "step_gates": 65536 // (3 * 128) // 8 * 8,
    "step_projection": 65536 // (3 * 256) // 8 * 8,
}
"""Of a thread at most, for three blocks on a multiprocessor, as its launch bounds have it."""

WRITTEN = {
    "step_gates": {"m", "c_after", "y", "cells"},
    "step_projection": {"h_after", "y"},
}
SHARED = {"c_before"}
"""What may be the memory of something that is written."""


@pytest.fixture(scope="module")
def compiled():
    known = {}

    def compile_(architecture):
        if architecture not in known:
            names = [expression(*one) for one in INSTANTIATIONS]
            known[architecture] = nvrtc.compile_offline(
                kernels.resolved("step.cu"), architecture, OPTIONS, names, "step.cu"
            )
        return known[architecture]

    return compile_


def expression(function, scalar, rows):
    return f"{function}<{scalar}, {rows}>"


@pytest.mark.gpu_on_cpu
@each_architecture
def test_nothing_spills(compiled, architecture):
    chosen(architecture)
    module = compiled(architecture)
    for one in INSTANTIATIONS:
        function, scalar, rows = one
        usage = module.resources[module.names[expression(*one)]]
        assert (usage.spill_stores, usage.spill_loads, usage.stack_frame) == (0, 0, 0), one
        assert usage.registers <= REGISTERS[function], one
        parts = 8 * rows * 32 * BYTES[SUMMED[scalar]] if function == "step_projection" else 0
        assert usage.static_shared_bytes == parts, one


@pytest.mark.gpu_on_cpu
@each_architecture
def test_memory_instructions(compiled, architecture):
    """Nothing that is written is read through the path that sees no writes; 16 bytes at once."""
    chosen(architecture)
    module = compiled(architecture)
    for function, scalar, rows in INSTANTIATIONS:
        one = expression(function, scalar, rows)
        names = [p.name for p in kernels.signature("step.cu", function, (scalar, str(rows)))]
        accesses = module.accesses(one)
        written = {names[n] for a in accesses if a.writes for n in a.parameters}
        cached = {names[n] for a in accesses if a.non_coherent for n in a.parameters}
        assert WRITTEN[function] <= written
        assert not cached & (WRITTEN[function] | SHARED), one
        assert {a.space for a in accesses} <= {"global", "shared"}, one
        if function == "step_gates":
            for name in ("weight_ih", "weight_hh", "x", "h_before"):
                found = nvrtc.widths(accesses, names.index(name))
                assert found[VECTOR_BYTES] >= (4 if name.startswith("weight") else rows), one
        begin = module.ptx.index(f".entry {module.names[one]}")
        text = module.ptx[begin : module.ptx.index("\n}", begin)]
        assert (".f64" in text) == (scalar == "double"), one


# --- faults --------------------------------------------------------------------------------------

_LENGTHS = {"states": True, "lengths": (2, 0, 1), "upstream": ("y", "h", "c", "cells")}
ODD = Case("fault-odd", T=2, B=3, I=3, H=5, bidirectional=True, **_LENGTHS)
VECTORS = Case("fault-vectors", T=2, B=3, I=8, H=136, bidirectional=True, **_LENGTHS)
MANY = Case("fault-many", T=1, B=9, I=4, H=6, states=True)
PROJECTED = Case("fault-projected", T=2, B=3, I=3, H=35, P=33, bidirectional=True, **_LENGTHS)
MANY_PROJECTED = Case("fault-many-projected", T=1, B=9, I=4, H=6, P=4, states=True)
SAMPLE = (ODD, VECTORS, MANY, PROJECTED, MANY_PROJECTED)

FAULTS = {
    "a unit too many": (ODD, "if (unit >= H) return;", "if (unit > H) return;"),
    "a unit too few": (ODD, "if (unit >= H) return;", "if (unit >= H - 1) return;"),
    "units of one block": (ODD, "blockIdx.x % unit_blocks * UNITS", "0"),
    "rows of one tile": (MANY, "first = tile * rows;", "first = 0;"),
    "a row too many": (MANY, "row < batch.present;\n", "row <= batch.present;\n"),
    "absent rows read": (MANY, "const long long row = r < present ? r : present - 1;",
                         "const long long row = 1000000 * r;"),
    "an element too many": (ODD, "k < K; k +=", "k <= K; k +="),
    "half of the elements": (VECTORS, "k += WARP * width", "k += 2 * WARP * width"),
    "vectors counted as elements": (VECTORS, "threadIdx.x % WARP * width; k",
                                    "threadIdx.x % WARP; k"),
    "vectors where there are none": (ODD, "if (wide_h)", "if (true)"),
    "a sum twice": (ODD, "to[n] = kept +", "to[n] = kept * 2 +"),
    "the other half kept": (ODD, "kept = upper ? from[n + N] : from[n],",
                            "kept = upper ? from[n] : from[n + N],"),
    "a lane left out": (ODD, "if constexpr (bit == 0)", "if constexpr (bit <= 1)"),
    "two gates changed": (ODD, "z.f += __shfl_sync(ALL, sum, first + lanes)",
                          "z.f += __shfl_sync(ALL, sum, first + 2 * lanes)"),
    "one bias": (ODD, "        add_bias(z, bias_hh, gate, H);\n", ""),
    "biases of direction 0": (ODD, "add_bias(z, bias_ih, gate, H)",
                              "add_bias(z, bias_ih, unit, H)"),
    "h of direction 0": (ODD, "(d * B + batch.first) * P", "batch.first * P"),
    "the time of the other direction": (ODD, "t = backwards ? T - 1 - step : step;", "t = step;"),
    "a length too long": (ODD, "t >= lengths[row]", "t > lengths[row]"),
    "c not held": (ODD, "c_after[state] = held ? c : cell.c;", "c_after[state] = cell.c;"),
    "h not held": (ODD, "held && P == H ? h_before[state] : h", "h"),
    "padding not zero": (ODD, "y_unit] = held ? S{} : h;", "y_unit] = h;"),
    "cells not zero": (ODD, "held ? A(0) : cell.c;", "cell.c;"),
    "outputs of one block": (PROJECTED, "blockIdx.x % output_blocks * WARP", "0"),
    "an output too many": (PROJECTED, "|| p >= P) return;", "|| p > P) return;"),
    "a part left out": (PROJECTED, "n < PARTS; ++n) sum", "n < PARTS - 1; ++n) sum"),
    "no barrier": (PROJECTED, "    __syncthreads();\n", ""),
    "h not held by the projection": (PROJECTED, "h_after[state] = held ? h_before[state] : h;",
                                     "h_after[state] = h;"),
    "rows of the first tile": (MANY_PROJECTED, "batch.first + (r < batch.present",
                               "(r < batch.present"),
    "an absent row finished": (MANY_PROJECTED, "part >= batch.present ||", "false ||"),
}  # fmt: skip


@pytest.fixture
def edited(monkeypatch):
    """Return a function that changes a text in the source until the test ends."""
    original = kernels.resolved

    def edit(old, new):
        assert old in original("step.cu"), "the source no longer holds the line this fault is in"

        def changed(file):
            text = original(file)
            return text.replace(old, new) if file == "step.cu" else text

        monkeypatch.setattr(kernels, "resolved", changed)
        single._kernel.cache_clear()

    yield edit
    single._kernel.cache_clear()


def found(cupy, case):
    """Say whether the bed or the rule objects to a run of the case, in any order of threads."""
    case = inference(case)
    try:
        for way in ("forward", "reverse"):
            with order(way):
                result, _ = run(cupy, case, "float32")
            check_freed_memory()
            assert_device_case(case, "float32", result)
    except (LaunchError, DeviceMisuseError, AssertionError):
        return True
    return False


@pytest.mark.gpu_on_cpu
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_seen(cupy, edited, name):
    case, old, new = FAULTS[name]
    edited(old, new)
    assert found(cupy, case)


@pytest.mark.gpu_on_cpu
@pytest.mark.parametrize("case", SAMPLE, ids=lambda case: case.id)
def test_no_fault_is_not(cupy, edited, case):
    edited("unit", "unit")
    assert not found(cupy, case)


# --- sanitizers ----------------------------------------------------------------------------------

SANITIZED = """
import sys
from gpu_on_cpu import install
cupy = install()
from cases import Case
from cupy_lstm import kernels
from test_gpu_step import inference, run
resolved, (old, new) = kernels.resolved, sys.argv[1:]
assert old in resolved("step.cu")
kernels.resolved = lambda file: (
    resolved(file).replace(old, new) if file == "step.cu" else resolved(file)
)
for H, P in ((5, 0), (9, 8), (8, 0)):
    case = Case("sanitized", T=1, B=3, I=4, H=H, P=P, states=True, lengths=(1, 0, 1))
    run(cupy, inference(case), "float32")
print("all of them")
"""


@needs("asan")
@needs_the_bed
def test_the_kernels_stay_within_their_arrays():
    done = run_sanitized(SANITIZED, "asan", "unit", "unit")
    assert done.clean, done.output
    assert done.output.endswith("all of them\n")


@needs("asan")
@needs_the_bed
def test_a_read_behind_the_last_weight_is_named():
    done = run_sanitized(SANITIZED, "asan", "k < K; k +=", "k <= K; k +=")
    assert any("vector.cuh" in report or "step.cu" in report for report in done.reports)


@needs("tsan")
@needs_the_bed
def test_the_kernels_have_no_race():
    done = run_sanitized(SANITIZED, "tsan", "unit", "unit")
    assert done.clean, done.output
    assert done.output.endswith("all of them\n")


@needs("tsan")
@needs_the_bed
def test_without_its_barrier_the_projection_has_one():
    done = run_sanitized(SANITIZED, "tsan", "    __syncthreads();\n", "")
    races = [report for report in done.reports if "data race" in report]
    assert any("step.cu" in report for report in races), done.output
