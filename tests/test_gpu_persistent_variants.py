"""The engine persistent broken on purpose: the bed, or the error rule, must see it.

A line of the source text is changed, and the run must end in an error of the bed, in a result
outside the rule, or in one that depends on the order of threads. Some faults no run can show, since
the threads of the bed take turns only where they wait; ThreadSanitizer names those.
"""

import numpy as np
import pytest
from cases import Case
from full import only_in_full
from gpu_cases import assert_device_case
from gpu_on_cpu import DeviceMisuseError, check_freed_memory, order
from gpu_on_cpu.device import LaunchError
from gpu_on_cpu.device.sanitize import run_sanitized
from persistent_cases import bits, choose_form, run
from test_gpu_sanitizers import needs, needs_the_bed

from cupy_lstm import kernels
from cupy_lstm.engines import persistent
from cupy_lstm.persistent import launches

pytestmark = [
    pytest.mark.gpu_on_cpu,
    # What was written beside an array may be found only when the array is freed.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

CASE = Case("broken", T=4, B=5, H=9, bidirectional=True, states=True, lengths=(3, 4, 0, 1, 4),
            upstream=("y", "h", "c", "cells"))  # fmt: skip
WIDE = Case("broken-wide", T=2, B=2, H=101, states=True)  # with terms in shared memory
BARRIER = "        __syncthreads();\n"
VARIANTS = {
    # name: case, whether the projection is inside, file ("b" for backward), old, new
    "no barrier after a step": (CASE, True, "f", BARRIER + "    }", "    }"),
    "no barrier before the first": (CASE, True, "f", "    __syncthreads();\n\n    for", "    for"),
    "h written where it is read": (CASE, True, "f", "(step + 1) % 2 *", "step % 2 *"),
    "h read from the wrong half": (CASE, True, "f",
        "vector + step % 2 *", "vector + (step + 1) % 2 *"),
    "units beside": (CASE, True, "f", "k = 4 * j + lane", "k = 4 * j + lane + 1"),
    "a term less": (WIDE, False, "h", "(length + lanes - 1) / lanes", "length / lanes"),
    "weights stored to global memory": (WIDE, False, "h",
        "store_shared(rest + (j - kept_terms) * blockDim.x, weights(j))",
        "store(reinterpret_cast<S*>(rest + (j - kept_terms) * blockDim.x), weights(j))"),
    "rest of another lane": (WIDE, False, "h", "shared + threadIdx.x", "shared + threadIdx.x / 2"),
    "half of the lanes left out": (CASE, True, "w", "__shfl_xor_sync(ALL, sent, bit)", "0.0f"),
    "halves changed": (CASE, True, "w",
        "upper ? from[n + N] : from[n],", "upper ? from[n] : from[n + N],"),
    "one step more": (CASE, True, "t",
        "static_cast<int>(end) - low : 0", "static_cast<int>(end) - low + 1 : 0"),
    "one step less": (CASE, True, "t",
        "static_cast<int>(end) - low : 0", "static_cast<int>(end) - low - 1 : 0"),
    "reverse begins at the end": (CASE, True, "t",
        "static_cast<int>(end) - 1 : low", "high - 1 : low"),
    "lengths not clamped": (Case("broken-clamp", T=3, B=2, H=3, lengths=(3, 2)), True, "t",
                            "lengths[row] > high ? high :", "lengths[row] > high + 9 ? high :"),
    "the longest row alone": (CASE, True, "h",
        "other > count ? other : count", "other < count ? other : count"),
    "biases of unit 0": (CASE, True, "f", "loaded(bias[unit])", "loaded(bias[0])"),
    "one bias": (CASE, True, "f",
        "sum[g] += widen(bias_hh[gate])", "sum[g] = widen(bias_hh[gate])"),
    "x of this step again": (CASE, True, "f", "x_here += times.sign * x_time", "x_here += 0"),
    "x forwards in both directions": (CASE, True, "f", "x_here += times.sign *", "x_here +="),
    "z of this step again": (CASE, False, "f", "z_here += times.sign * z_time * D * 4 * H;", ""),
    "z of direction 0": (CASE, False, "f", "b * z_row) * D + d) * 4", "b * z_row) * D) * 4"),
    "gates not kept": (CASE, True, "f", "z_here[2 * H] = cell.gates.g,", ""),
    "c of the step before": (CASE, True, "f", "*c_here = c;", "*c_here = 0.5f * c;"),
    "an ended row goes on": (CASE, True, "f", "is_unit && step < times.count", "is_unit"),
    "no barrier in backward": (CASE, True, "b", BARRIER, ""),
    "one copy of dz": (CASE, True, "b", "vector + step % 2 * entries * ROWS", "vector"),
    "two gates changed": (CASE, True, "b", "mine[0] = gradient.i, mine[H * ROWS] = gradient.f",
                          "mine[0] = gradient.f, mine[H * ROWS] = gradient.i"),
    "gates of 16 rows only": (CASE, True, "b", "terms_of(4 * H, 16)", "terms_of(H, 16)"),
    "the first state in every step": (CASE, True, "b",
        "steps_before + step > 1 ? *c_at", "false ? *c_at"),
    "no first state": (CASE, True, "b", "steps_before + step > 1 ? *c_at : c_first[state]", "c"),
    "y where h belongs": (CASE, True,
        "b", "rounded<S>(gate.o * hyperbolic_tangent(c)) : h_first[state]",
                          "S(0.0f) : S(0.0f)"),
    "dh lost": (CASE, True, "b", "dh_here + dy_here", "dy_here"),
    "dcells lost": (CASE, True, "b", "dc_here + dcells_here", "dc_here"),
    "dh of an ended row": (CASE, True, "b", "if (active) dh_here", "dh_here"),
    "a lane's units reversed": (CASE, True, "b", "sums[n * ROWS + r]", "sums[(3 - n) * ROWS + r]"),
}  # fmt: skip
SOURCES = {
    "f": "recurrence_block.cu",
    "b": "recurrence_block_backward.cu",
    "h": "recurrence_block.cuh",
    "t": "times.cuh",
    "w": "warp.cuh",
}
NEEDS_THREAD_SANITIZER = {"one copy of dz"}


@pytest.fixture
def edited(monkeypatch):
    """Return a function that changes a text in every kernel of the engine until the test ends."""
    original = kernels.resolved

    def edit(old, new, file):
        assert kernels.source(file).count(old), "the source no longer holds what is broken here"
        monkeypatch.setattr(kernels, "resolved", lambda name: original(name).replace(old, new))
        launches._block_kernel.cache_clear()

    yield edit
    launches._block_kernel.cache_clear()


def found(cupy, case):
    """Say whether the bed, the rule or the order of threads objects to a run of the case."""
    results = []
    try:
        for turn in ("forward", "reverse", "random"):
            with order(turn, seed=1):
                results.append(run(cupy, case, "float32")[0])
        check_freed_memory()
    except (LaunchError, DeviceMisuseError):
        return True
    try:
        assert_device_case(case, "float32", results[0])
    except AssertionError:
        return True
    return any(bits(result) != bits(results[0]) for result in results)


@pytest.mark.parametrize("name", [name for name in VARIANTS if name not in NEEDS_THREAD_SANITIZER])
def test_a_broken_kernel_is_seen(cupy, edited, name, monkeypatch):
    case, inside, file, old, new = VARIANTS[name]
    choose_form(monkeypatch, inside)
    edited(old, new, SOURCES[file])
    if name == "lengths not clamped":
        assert overrun_is_found(cupy)
        return
    assert found(cupy, case)


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("case", [CASE, WIDE], ids=lambda case: case.id)
def test_an_edit_that_changes_nothing_is_not(cupy, edited, case, inside, monkeypatch):
    choose_form(monkeypatch, inside)
    edited("step", "step", SOURCES["f"])
    assert not found(cupy, case)
    assert not overrun_is_found(cupy)


def overrun_is_found(cupy):
    """Say whether the bed objects to a run with lengths beyond the steps, as if unchecked."""
    from cupy_lstm.notation import LayerWeights

    T, B, I, H = 3, 2, 2, 3  # noqa: E741
    rng = np.random.default_rng(0)

    def normal(*shape):
        return cupy.asarray(rng.standard_normal(shape).astype("float32"))

    weights = LayerWeights(normal(1, 4 * H, I), normal(1, 4 * H, H))
    x, y = normal(T, B, I), cupy.zeros((T, B, 1, H), "float32")
    states = normal(1, B, H), normal(1, B, H)
    outputs = []
    try:
        for lengths in ((3, 0), (10, -4)):
            (h, c), _ = persistent.forward(
                x, weights, states, cupy.array(lengths), reverse=(False,), y=y, keep=False, chunk=9
            )
            outputs.append([array.get().tobytes() for array in (y, h, c)])
        check_freed_memory()
    except (LaunchError, DeviceMisuseError):
        return True
    return outputs[0] != outputs[1]


# --- sanitizers ----------------------------------------------------------------------------------

PROGRAM = """
import sys
from gpu_on_cpu import install
cupy = install()
import numpy as np
from cupy_lstm import kernels
from cupy_lstm.persistent import tiles
from cupy_lstm.engines import persistent
from cupy_lstm.notation import LayerWeights, PerWeight
resolved, (old, new, inside, dtype, *sizes) = kernels.resolved, sys.argv[1:]
kernels.resolved = lambda file: resolved(file).replace(old, new)
tiles.INSIDE_FEATURES *= int(inside)
T, B, I, H, D = *map(int, sizes), 2
def values(*shape, dtype=dtype):
    return cupy.asarray(np.random.default_rng(0).standard_normal(shape).astype(dtype))
weights = LayerWeights(*(values(D, 4 * H, *more) for more in ((I,), (H,), (), ())))
x, y = values(T, B, I), values(T, B, D, H)
states = values(D, B, H), values(D, B, H, dtype="float32")
lengths = cupy.asarray(np.array([1, T, 0, 2, T])[:B])
_, tape = persistent.forward(x, weights, states, lengths, reverse=(False, True), y=y, keep=True,
                             chunk=2)
none = PerWeight(None, None)
persistent.backward([tape], y, states, None, wanted=none, gradients=none, dx=None)
print("all of them")
"""


SMALL = 3, 5, 2, 3
LARGE = 2, 3, 2, 101  # with weights in shared memory


def sanitized(sanitizer, old="step", new="step", inside=1, dtype="float32", sizes=SMALL):
    arguments = old, new, str(int(inside)), dtype, *map(str, sizes)
    return run_sanitized(PROGRAM, sanitizer, *arguments, timeout=900)


each_size = pytest.mark.parametrize(
    "sizes", [SMALL, pytest.param(LARGE, marks=only_in_full)], ids=["small", "large"]
)


@needs("tsan")
@needs_the_bed
@pytest.mark.parametrize("inside", [True, False])
@each_size
def test_there_is_no_race(inside, sizes):
    done = sanitized("tsan", inside=inside, sizes=sizes)
    assert done.clean, done.output
    assert done.output.endswith("all of them\n")


@needs("tsan")
@needs_the_bed
@pytest.mark.parametrize(
    "name", ["no barrier after a step", "no barrier in backward", "one copy of dz"]
)
def test_without_a_barrier_there_is_one(name):
    _, inside, _, old, new = VARIANTS[name]
    done = sanitized("tsan", old, new, inside)
    assert any("data race" in report for report in done.reports), done.output


@needs("asan")
@needs_the_bed
@pytest.mark.parametrize("dtype", ["float32", pytest.param("float16", marks=only_in_full)])
@pytest.mark.parametrize("inside", [True, False])
@each_size
def test_the_kernels_stay_within_their_arrays(inside, dtype, sizes):
    done = sanitized("asan", inside=inside, dtype=dtype, sizes=sizes)
    assert done.clean, done.output
    assert done.output.endswith("all of them\n")


@needs("asan")
@needs_the_bed
def test_a_read_of_a_row_that_is_not_there_is_named():
    done = sanitized("asan", "is_unit = unit < H && b < B", "is_unit = unit < H")
    assert done.reports, done.output
