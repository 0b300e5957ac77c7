"""Kernels of the grid and cluster tiers with a mistake in them: the tests must see it."""

import pytest
from cases import Case
from full import only_in_full
from gpu_cases import assert_device_case
from gpu_on_cpu import DeviceMisuseError, check_freed_memory, order
from gpu_on_cpu.device import LaunchError
from gpu_on_cpu.device.sanitize import run_sanitized
from persistent_cases import bits, run
from team_cases import FORMS, card_of, choose_teams
from test_gpu_sanitizers import needs, needs_the_bed

from cupy_lstm import kernels
from cupy_lstm.persistent import launches

pytestmark = [
    pytest.mark.gpu_on_cpu,
    # A launch that fails leaves broken guards; that they are found is the point.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

CASE = Case("team-broken", T=3, B=3, H=19, bidirectional=True, states=True, lengths=(3, 0, 2),
            upstream=("y", "h", "c", "cells"))  # fmt: skip
TILES = Case("team-broken-tiles", T=3, B=9, H=19, states=True, upstream=("y", "h", "c"))
WIDE = Case("team-broken-wide", T=2, B=2, H=57, states=True)  # with terms in shared memory
DTYPES = {"lanes": "float32", "tensor": "float16", "cluster-tensor": "bfloat16"}
SOURCES = {
    "forward": "recurrence_team.cu",
    "backward": "recurrence_team_backward.cu",
    "team": "team.cuh",
    "product": "team_product.cuh",
    "mma": "mma.cuh",
}
POLL = "while (load_acquire<Scope::device>(flags + tile * blocks + i) < count) continue;"
SIGNAL = "        __syncthreads();\n        if (threadIdx.x == 0) store_release"
VARIANTS = {
    # name: form, case, source, old, new
    "flags not waited for": ("tensor", CASE, "team", POLL, ";"),
    "a team with a block too few": ("tensor", CASE, "forward", "blockIdx.x % blocks",
                                    "blockIdx.x % (blocks - 1)"),
    "block scope": ("tensor", CASE, "team", "store_release<Scope::device>",
                    "store_release<Scope::block>"),
    "exchange of the other direction": ("tensor", CASE, "forward",
                                        "d * (gridDim.x / blocks) + team", "team"),
    "vector of the step before": ("tensor", CASE, "team",
        "const S* from = vectors + (static_cast<long long>(count % 2)",
        "const S* from = vectors + (static_cast<long long>((count + 1) % 2)"),
    "h at first not published": ("tensor", CASE, "forward", "others.publish(tile, 1,",
                                 "if (false) others.publish(tile, 1,"),
    "a row of no steps goes on": ("tensor", CASE, "forward",
        "active = is_unit && step < times.count;",
        "active = is_unit && step < times.count + (first_row + tile * ROWS + row == 1);"),
    "the last state not kept": ("tensor", CASE, "forward", "step + 1 == times.count",
                                "step + 2 == times.count"),
    "a bias of another unit": ("tensor", CASE, "forward", "bias[g * units + own]",
                               "bias[g * units]"),
    "one bias": ("tensor", CASE, "forward", "bias[i] += widen", "bias[i] = widen"),
    "parts left out": ("tensor", CASE, "product", "return many;", "return 1;"),
    "half of a sum": ("tensor", WIDE, "product", "sum[0][i] + sum[1][i],", "sum[0][i],"),
    "rows changed in a fragment": ("tensor", CASE, "product", "i % 2 * 8, k", "(1 - i % 2) * 8, k"),
    "k changed in a fragment": ("tensor", CASE, "product", "k + i / 2 * 4 * E", "k"),
    "k changed in a vector": ("tensor", CASE, "product", "inside / (4 * E) * E", "0"),
    "rows of a vector changed": ("tensor", CASE, "product", "lane = row * 4",
                                 "lane = (7 - row) * 4"),
    "the last state in every step": ("tensor", CASE, "backward",
        "if (cell.has_begun && cell.is_last) dh_here", "if (cell.has_begun) dh_here"),
    "no first state": ("tensor", CASE, "backward", "c_prev = cell.kept > 0", "c_prev = true"),
    "y where h belongs": ("tensor", CASE, "backward", ": h_first[cell.state]", ": S(0.0f)"),
    "dy lost": ("tensor", CASE, "backward", "dh_here + dm", "dh_here"),
    "dcells lost": ("tensor", CASE, "backward", "dc_carried + dc_here", "dc_carried"),
    "gates changed in what goes around": ("tensor", CASE, "backward", "place(g * H + unit, row)",
                                          "place((3 - g) * H + unit, row)"),
    "no state before the steps": ("tensor", CASE, "backward", "if (step < -1 ||",
                                  "if (step < 0 ||"),
    "slices beside": ("lanes", CASE, "product", "n, slice + j * slices)",
                      "n, slice + j * slices + 1)"),
    "a term less": ("lanes", WIDE, "product", "return terms * slices;",
                    "return (terms - 1) * slices;"),
    "terms of another thread": ("lanes", WIDE, "product", "rest(shared + threadIdx.x)",
                                "rest(shared + threadIdx.x / 2)"),
    "sums of another octet": ("lanes", CASE, "product", "outputs + octet * OUTPUTS) * ROWS",
                              "outputs) * ROWS"),
    "sums of few lanes": ("lanes", CASE, "product", "halve<16>(sum, sixteen, lanes / 2)",
                          "halve<16>(sum, sixteen, 1)"),
    "a cluster that begins at once": ("cluster-tensor", CASE, "team",
        "        cluster_arrive_release();\n        cluster_wait_acquire();\n    }", "    }"),
    "a cluster that is left early": ("cluster-tensor", CASE, "team",
                                     "if (latest >= 0) cluster_wait_acquire();\n    }",
                                     "}"),
    "another block's vector": ("cluster-tensor", CASE, "team", "*map_shared(mine, rank) = value",
                               "*map_shared(mine, 0) = value"),
    "no barrier before the sums of the next tile": ("cluster-tensor", TILES, "team",
        "            latest = -1;\n        }\n        __syncthreads();",
        "            latest = -1;\n        }"),
}  # fmt: skip


@pytest.fixture
def edited(monkeypatch):
    """Return a function that changes a text in every kernel of the engine until the test ends."""
    original = kernels.resolved

    def edit(old, new, file):
        assert kernels.source(file).count(old), "the source no longer holds what is broken here"
        monkeypatch.setattr(kernels, "resolved", lambda name: original(name).replace(old, new))
        launches._team_kernel.cache_clear()

    yield edit
    launches._team_kernel.cache_clear()


def found(cupy, case, dtype):
    """Say whether the bed, the rule or the order of threads objects to a run of the case."""
    expected = None
    for turn in ("forward", "reverse", "random"):
        try:
            with order(turn, seed=1):
                result = run(cupy, case, dtype)[0]
            check_freed_memory()
            assert_device_case(case, dtype, result)
        except (LaunchError, DeviceMisuseError, AssertionError):
            return True
        expected = expected or bits(result)
        if bits(result) != expected:
            return True
    return False


def test_what_is_broken_is_in_the_sources():
    """At once, without a device: what a source no longer holds cannot be broken."""
    for name, (_, _, source, old, new) in VARIANTS.items():
        assert old in kernels.source(SOURCES[source]), name
        assert old != new, name
    everything = "".join(map(kernels.source, SOURCES.values()))
    for name, (_, old, _) in UNORDERED.items():
        assert old in everything, name


@pytest.mark.parametrize("name", VARIANTS)
def test_a_broken_kernel_is_seen(cupy, edited, name, monkeypatch):
    form, case, source, old, new = VARIANTS[name]
    most_units = 128 if form == "lanes" else 64
    choose_teams(monkeypatch, form, most_units if case is WIDE else None)
    edited(old, new, SOURCES[source])
    with card_of(form):
        assert found(cupy, case, DTYPES[form])


@pytest.mark.parametrize("form", DTYPES)
@pytest.mark.parametrize("case", [CASE, TILES], ids=lambda case: case.id)
def test_an_edit_that_changes_nothing_is_not(cupy, edited, form, case, monkeypatch):
    choose_teams(monkeypatch, form)
    edited("step", "step", SOURCES["forward"])
    with card_of(form):
        assert not found(cupy, case, DTYPES[form])


# --- sanitizers ----------------------------------------------------------------------------------

PROGRAM = """
import sys
from gpu_on_cpu import install, profile
cupy = install()
import numpy as np
import pytest
from team_cases import FORMS, card_of, choose_teams
from cupy_lstm import kernels
from cupy_lstm.engines import persistent
from cupy_lstm.notation import LayerWeights, PerWeight
resolved, (old, new, form, dtype) = kernels.resolved, sys.argv[1:]
kernels.resolved = lambda file: resolved(file).replace(old, new)
choose_teams(pytest.MonkeyPatch(), form)
T, B, I, H = 2, FORMS[form][0].rows + 1, 2, 9
with card_of(form):
    def values(*shape, dtype=dtype):
        return cupy.asarray(np.random.default_rng(0).standard_normal(shape).astype(dtype))
    weights = LayerWeights(*(values(1, 4 * H, *more) for more in ((I,), (H,), (), ())))
    y, none = values(T, B, 1, H), PerWeight(None, None)
    states = values(1, B, H), values(1, B, H, dtype="float32")
    for reverse, lengths, chunk in (
        (True, cupy.asarray(np.array([1] + [2] * (B - 1))), 9), (False, None, 1),
    ):
        x = values(B, T, I).swapaxes(0, 1)
        _, tape = persistent.forward(x, weights, states, lengths, reverse=(reverse,), y=y,
                                     keep=True, chunk=chunk)
        persistent.backward([tape], y, states, None, wanted=none, gradients=none, dx=None)
print("all of them")
"""
UNORDERED = {
    # name: form, old, new
    "one flag not waited for": ("tensor", "i < blocks; i += WARP", "i < blocks - 1; i += WARP"),
    "a relaxed load of a flag": ("tensor", "load_acquire<", "load_relaxed<"),
    "a flag before the vector": ("tensor", SIGNAL, SIGNAL.split("\n")[1]),
    "one copy of the vectors": ("tensor", "count % 2)", "0)"),
    "a relaxed arrival": ("cluster-tensor", "cluster_arrive_release()", "cluster_arrive_relaxed()"),
    "arrived, not waited": ("cluster-tensor", "if (latest == tile) {", "if (false) {"),
    "one copy in a cluster": ("cluster-tensor", "count % 2 * tiles", "0 * tiles"),
    "no barrier before the sums of the next tile": ("cluster-tensor",
        *VARIANTS["no barrier before the sums of the next tile"][3:]),
}  # fmt: skip
"""What the bed runs in no order that shows it: only its happens-before does."""


def sanitized(sanitizer, form, old="step", new="step", dtype=None):
    dtype = dtype or ("float32" if form.endswith("lanes") else "float16")
    return run_sanitized(PROGRAM, sanitizer, old, new, form, dtype, timeout=900)


@needs("tsan")
@needs_the_bed
@pytest.mark.parametrize(
    "form",
    [pytest.param(form, marks=only_in_full if form.endswith("lanes") else ()) for form in FORMS],
)
def test_there_is_no_race(form):
    done = sanitized("tsan", form)
    assert done.clean, done.output
    assert done.output.endswith("all of them\n")


@needs("tsan")
@needs_the_bed
@only_in_full
@pytest.mark.parametrize("name", UNORDERED)
def test_what_nothing_orders_is_a_race(name):
    form, old, new = UNORDERED[name]
    done = sanitized("tsan", form, old, new)
    assert any("data race" in report for report in done.reports), done.output


@needs("asan")
@needs_the_bed
@only_in_full
@pytest.mark.parametrize("form", FORMS)
def test_the_kernels_stay_within_their_arrays(form):
    done = sanitized("asan", form)
    assert done.clean, done.output
    assert done.output.endswith("all of them\n")


@needs("asan")
@needs_the_bed
@only_in_full
def test_a_row_that_is_not_there_is_named():
    done = sanitized("asan", "tensor", "if (is_unit && b < B) {", "if (is_unit) {")
    assert done.reports, done.output
