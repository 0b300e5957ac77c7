"""The matrix unit of the engine simd: splitting, every remainder, infinite numbers, its choice."""

import dataclasses
import itertools
import sys
from pathlib import Path

import numpy as np
import pytest
from cases import (
    Case,
    aim_at_steps,
    assert_case,
    assert_within_rule,
    build,
    make_lstm,
    results,
    run_oracle,
)
from face import assert_bit_equal
from numba import njit
from simd_bed import infer, run, run_script, use_threads

from cupy_lstm import engine, no_grad
from cupy_lstm.engines import simd
from cupy_lstm.notation import LayerWeights, Shape, Wanted
from cupy_lstm.simd import backward_pass, forward_pass, gradients, layout, ready, sharing
from cupy_lstm.simd.amx.split import store_split
from cupy_lstm.simd.amx.unit import SWITCH, available
from cupy_lstm.simd.compiled import host_lanes
from cupy_lstm.simd.memory import load, write

NO_UNIT = "this host has no matrix unit"
needs_unit = pytest.mark.skipif(not available(), reason=NO_UNIT)

EVERY = ("y", "h", "c", "cells")
KERNELS = {"forward_tiles", "backward_tiles", "add_tile_products", "add_tile_input_gradient"}


@pytest.fixture
def tiles(monkeypatch):
    """Let the unit compute whatever it can, however small; return the names of kernels used."""
    if not available():
        pytest.skip(NO_UNIT)
    ready.SHARED.waiting.clear()
    used, kernel = set(), forward_pass.kernel

    def watched(function, lanes):
        used.add(function.__name__)
        return kernel(function, lanes)

    for module in (forward_pass, backward_pass, gradients):
        monkeypatch.setattr(module, "kernel", watched)
    monkeypatch.setattr(layout, "worth_tiles", lambda *sizes: True)
    monkeypatch.setattr(layout, "MANY_UNITS", 1)
    monkeypatch.setattr(layout, "FEWEST_ROWS", 1)
    return used


@njit(nogil=True)
def split_pairs(lanes, source, target, odd, count):
    for k in range(count):
        place = source + 128 * k
        first, second = load(lanes, place), load(lanes, place + 64)
        write(odd + 8 * k, store_split(first, second, target + 192 * k, 64))


def split(x):
    """Return the three parts of numbers, 32 in a pair of vectors, and what each pair returned."""
    count = x.size // 32
    stored, odd = np.zeros((count, 3, 16, 2), "uint16"), np.zeros(count, "int64")
    split_pairs(host_lanes("float32"), x.ctypes.data, stored.ctypes.data, odd.ctypes.data, count)
    parts = (stored.astype("uint32") << 16).view("float32")
    return parts.transpose(1, 0, 3, 2).reshape(3, -1), odd


def numbers_of_all_sizes():
    rng, largest = np.random.default_rng(0), np.finfo("float32").max
    bits = rng.integers(0, 2**32, 2**18, dtype=np.uint32).view("float32")
    bits = bits[np.isfinite(bits) & (abs(bits) > 2.0**-100)]
    powers = np.ldexp(1.0, np.arange(-99, 128)).astype("float32")
    below = np.nextafter(powers, np.float32(0))
    some = np.concatenate([bits, powers, -powers, below, [largest, -largest, 0.0, -0.0, 1, -1]])
    return some[some.size % 32 :].astype("float32")


@needs_unit
def test_three_parts_are_the_number_exactly():
    x = numbers_of_all_sizes()
    parts, odd = split(x)
    assert np.array_equal(parts.astype("float64").sum(axis=0), x.astype("float64"))
    assert np.array_equal(np.signbit(parts[0]), np.signbit(x))
    assert not odd.any()


@needs_unit
@pytest.mark.parametrize("bits", [0x7F800000, 0xFF800000, 0x7FC00000, 0xFFC00000, 0x7F800001])
def test_infinity_and_nan_are_their_first_part_and_are_reported(bits):
    """In every lane of both vectors, between numbers; the last pair has none."""
    x = np.random.default_rng(1).standard_normal((33, 32)).astype("float32")
    where = np.arange(32), np.arange(32)
    x.view("uint32")[where] = bits
    parts, odd = split(x.ravel())
    first, second, third = parts.reshape(3, 33, 32)
    assert np.array_equal(first[where], x[where], equal_nan=True)
    assert not second[where].any()
    assert not third[where].any()
    assert odd.astype(bool).tolist() == [True] * 32 + [False]
    x[where], first[where] = 0, 0
    assert np.array_equal(parts.astype("float64").sum(axis=0), x.ravel().astype("float64"))


def size(k):
    """Return a case; of 32, H and I take every remainder by 32, and B by 16 of up to two tiles."""
    B, I, H = 1 + 11 * k % 35, 1 + 7 * k % 64, 17 + k  # noqa: E741
    lengths = tuple((3 * row + k) % 6 for row in range(B)) if k % 3 == 1 else None
    flags = {"bidirectional": k % 4 == 3, "time_major": k % 2 == 0, "states": k % 5 > 0}
    return Case(f"H{H}-B{B}-I{I}", B=B, I=I, H=H, lengths=lengths, upstream=EVERY, **flags)


SIZES = [size(k) for k in range(32)]
MORE = [
    Case("layers", T=5, B=35, I=33, H=48, L=2, bidirectional=True, states=True, upstream=EVERY),
    Case("no-row-at-all", T=5, B=17, I=33, H=40, lengths=(0,) * 17, states=True, upstream=EVERY),
    Case("saturated", T=8, B=24, I=40, H=40, scale=3.0, states=True, upstream=EVERY),
    Case("many-terms", T=3, B=18, I=290, H=200, states=True, upstream=EVERY),
]


def test_every_remainder_is_there():
    for name, modulus in (("H", 32), ("I", 32), ("B", 16)):
        assert {getattr(case, name) % modulus for case in SIZES} == set(range(modulus))


@pytest.mark.parametrize("case", SIZES + MORE, ids=lambda case: case.id)
def test_every_gradient(case, tiles, monkeypatch):
    shape = Shape(case.T, case.B, case.I, case.H, case.H, case.D)
    aim_at_steps(monkeypatch, "simd", shape, 2 + case.H % 4)
    assert_case(case, "float32", run(case))
    assert tiles >= (KERNELS if case.lengths is None or any(case.lengths) else {"forward_tiles"})


LENGTHS = tuple(5 * row % 7 for row in range(35))
SHARED = [
    Case("all", T=6, B=35, I=37, H=200, states=True, upstream=EVERY),
    Case("lengths", T=6, B=35, I=37, H=200, states=True, upstream=EVERY, lengths=LENGTHS),
    Case("both", T=3, B=19, I=37, H=200, bidirectional=True, upstream=EVERY),
]


def divide(monkeypatch, count, units):
    """Let threads divide units, or rows; return how many a call took and how many shared rows."""
    teams, split = [], sharing.split

    def watched(*arguments):
        shares = split(*arguments)
        teams.extend(share.team for part in shares for share in part)
        return shares

    for module in (forward_pass, backward_pass):
        monkeypatch.setattr(module, "split", watched)
    monkeypatch.setattr(sharing, "LARGE_WEIGHTS", 1 if units else 2**62)
    return use_threads(monkeypatch, count), teams


@pytest.mark.parametrize("case", SHARED, ids=lambda case: case.id)
def test_results_do_not_depend_on_the_threads(case, tiles, monkeypatch):
    """Nor on whether they divide rows or units."""
    expected = run(case), infer(case)
    assert_case(case, "float32", expected[0])
    for count, units in itertools.product((1, 2, 3, 4), (False, True)):
        with monkeypatch.context() as patch:
            taken, teams = divide(patch, count, units)
            assert_bit_equal(run(case), expected[0])
            assert_bit_equal(infer(case), expected[1])
            assert max(taken) == count
            assert max(teams) == (max(1, min(3, count // case.D)) if units else 1)
    assert tiles >= KERNELS


@pytest.mark.parametrize("lengths", [None, (7, 0, 3, 4, 6) * 4], ids=["all", "lengths"])
@pytest.mark.parametrize("bounds", [(0, 2, 7), (0, 4, 6, 7)], ids=str)
def test_ranges_of_steps_are_the_whole(bounds, lengths, tiles, monkeypatch):
    """Bit for bit, where ranges end where parts of the sums do; forward alone anywhere."""
    monkeypatch.setattr(gradients, "SUMMED_STEPS", 2)
    T, B, I, H, D = 7, 20, 37, 40, 2  # noqa: E741
    rng = np.random.default_rng(0)
    shapes = (D, 4 * H, I), (D, 4 * H, H), (D, 4 * H), (D, 4 * H)
    weights = LayerWeights(*(rng.uniform(-0.2, 0.2, s).astype("float32") for s in shapes), None)
    x, dy = (rng.standard_normal(s).astype("float32") for s in ((T, B, I), (T, B, D, H)))
    states, dstates = rng.standard_normal((2, 2, D, B, H)).astype("float32")
    some = None if lengths is None else np.array(lengths)

    def call(bounds, keep):
        y, cells = np.full((2, T, B, D, H), np.nan, "float32")
        after, tapes = tuple(states), []
        for start, stop in itertools.pairwise(bounds):
            options = {"keep": keep, "steps": range(start, stop), "chunk": 3}
            places = {"reverse": (False, True), "y": y, "cells": cells}
            after, tape = simd.forward(x, weights, after, some, **places, **options)
            tapes.insert(0, tape)
        return [y, cells, *after], tapes

    def both(bounds):
        outputs, tapes = call(bounds, True)
        dx, sums = np.zeros_like(x), LayerWeights(*map(np.zeros_like, weights[:4]), None)
        wanted = Wanted(*[slice(None)] * 4, None)
        before = simd.backward(tapes, dy, tuple(dstates), dy, wanted=wanted, gradients=sums, dx=dx)
        return [*outputs, dx, *before, *sums[:4]]

    whole = both((0, T))
    for found, expected in zip(both(bounds), whole, strict=True):
        assert found.tobytes() == expected.tobytes()
    for keep in (True, False):
        for found, expected in zip(call((0, 1, 3, T), keep)[0], whole[:4], strict=True):
            assert found.tobytes() == expected.tobytes()
    assert tiles >= KERNELS


ODD = Case("odd", T=4, B=36, I=40, H=40, states=True, lengths=(2, 4, 4, 3) * 9, upstream=EVERY)
ROW = 33
"""Of the second tile of rows by falling length."""


def test_nan_stays_in_its_row(tiles):
    plain = build(ODD, "float32")
    expected, x = run(ODD, arrays=plain), plain.x.copy()
    x[ROW, 2, 5] = np.nan
    found = run(ODD, arrays=dataclasses.replace(plain, x=x))
    others = np.arange(ODD.B) != ROW
    for name, axis in (("y", 0), ("cells", 0), ("dx", 0), ("h", 1), ("c", 1), ("dh0", 1)):
        one, other = (np.moveaxis(getattr(result, name), axis, 0) for result in (found, expected))
        assert one[others].tobytes() == other[others].tobytes(), name
        assert np.isnan(one[ROW]).any(), name
    assert np.isnan(found.y[ROW, 2:]).all()
    assert found.y[ROW, :2].tobytes() == expected.y[ROW, :2].tobytes()
    assert tiles >= KERNELS


def few_bits(zero):
    """Positive numbers of few bits: all parts but the first are zero."""
    arrays, rng = build(ODD, "float32"), np.random.default_rng(3)
    for array in (arrays.x, *arrays.states, *arrays.upstream.values()):
        array[...] = np.ceil(4 * abs(array)) / 4
    for weight in arrays.weights.values():
        weight[...] = rng.choice([1 / 32, 1 / 16], weight.shape)
    if zero:
        arrays.weights["weight_ih_l0"][3, 5] = arrays.weights["weight_hh_l0"][3, 5] = 0
    return arrays


PLACES = {
    "x": lambda arrays: (arrays.x, (ROW, 2, 5)),
    "h0": lambda arrays: (arrays.states[0], (0, ROW, 5)),
    "weight_ih": lambda arrays: (arrays.weights["weight_ih_l0"], (45, 5)),
    "weight_hh": lambda arrays: (arrays.weights["weight_hh_l0"], (45, 5)),
    "dy": lambda arrays: (arrays.upstream["y"], (ROW, 2, 5)),
    "dh": lambda arrays: (arrays.upstream["h"], (0, ROW, 5)),
}


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("weights", ["many", "few", "zero"])
@pytest.mark.parametrize("place", PLACES)
def test_infinity_and_nan_are_what_they_are_in_vectors(place, weights, value, tiles, monkeypatch):
    """NaN and infinity at the same places; the error rule at all others."""
    arrays = build(ODD, "float32") if weights == "many" else few_bits(weights == "zero")
    array, index = PLACES[place](arrays)
    array[index] = value
    found = results(run(ODD, arrays=arrays))
    assert tiles >= KERNELS
    with monkeypatch.context() as patch:
        patch.setattr(layout, "available", lambda: False)
        tiles.clear()
        plain = results(run(ODD, arrays=arrays))
        assert not tiles & KERNELS
    with np.errstate(all="ignore"):
        truth, naive = (results(run_oracle(ODD, arrays, d)) for d in ("float64", np.float32))
    assert found.keys() == plain.keys()
    for name, one in found.items():
        other, finite = plain[name], np.isfinite(plain[name])
        assert np.array_equal(one[~finite], other[~finite], equal_nan=True), name
        assert np.isfinite(one[finite]).all(), name
        finite &= np.isfinite(truth[name]) & np.isfinite(naive[name])
        assert_within_rule(name, one[finite], truth[name][finite], naive[name][finite])
    if weights == "few" and not np.isnan(value):
        assert np.isfinite(found["y"]).all()
        assert not any(np.isnan(found[name]).any() for name in ("dx", "dh0") if place[0] == "d")


@pytest.mark.parametrize("place", ["x", "dy"])
def test_infinity_is_the_same_for_threads_that_share_a_row(place, tiles, monkeypatch):
    """One has fewer units and is ahead: it meets infinity a step before the other."""
    case = dataclasses.replace(ODD, T=2, B=20, H=240, lengths=None)
    arrays = build(case, "float32")
    (arrays.x if place == "x" else arrays.upstream["y"])[-1, 0, 5] = np.inf
    expected = results(run(case, arrays=arrays))
    _, teams = divide(monkeypatch, 2, True)
    for _ in range(100):
        for name, found in results(run(case, arrays=arrays)).items():
            assert np.array_equal(found, expected[name], equal_nan=True), name
    assert set(teams) == {2}
    assert tiles >= KERNELS


@needs_unit
def test_as_accurate_as_a_blas():
    """The documentation's claim: no less accurate than products in float32, within a half."""
    case = Case("accuracy", T=20, B=32, I=256, H=256)
    assert layout.worth_tiles(case.B, case.I, case.H)
    arrays = build(case, "float32")

    def outputs(name, dtype):
        wide = {key: weight.astype(dtype) for key, weight in arrays.weights.items()}
        with engine(name), no_grad():
            return make_lstm(case, wide, dtype)(arrays.x.astype(dtype))[0]

    truth = outputs("stepwise", "float64")
    error = {name: abs(outputs(name, "float32") - truth).max() for name in ("simd", "stepwise")}
    assert error["simd"] <= 1.5 * error["stepwise"], error


ASK = """
from cases import Case, assert_case
from simd_bed import run
from cupy_lstm.simd import forward_pass
from cupy_lstm.simd.amx.unit import available
used, kernel = set(), forward_pass.kernel
forward_pass.kernel = lambda function, lanes: used.add(function.__name__) or kernel(function, lanes)
case = Case("asked", T=2, B=16, I=64, H=128)
assert_case(case, "float32", run(case))
print(available(), "forward_tiles" in used)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lends the unit")
def test_the_processor_and_the_variables_decide(monkeypatch, tmp_path):
    monkeypatch.delenv(SWITCH, raising=False)
    flags = set(Path("/proc/cpuinfo").read_text().split())
    there = str({"amx_tile", "amx_bf16"} <= flags)
    # Numba compiles for what it is told, and LLVM would end the process for want of instructions.
    other = {"NUMBA_CPU_NAME": "generic", "NUMBA_CACHE_DIR": str(tmp_path)}
    answers = (({}, there), ({SWITCH: "1"}, there), ({SWITCH: "0"}, "False"), (other, "False"))
    for variables, found in answers:
        assert run_script(ASK, **variables)[0].split() == [found, found]


YES = "16 128 128", "16 1 128", "99 256 256"
NO = "15 128 128", "999 128 127", "64 257 256", "64 512 512"


@pytest.mark.parametrize("sizes", YES + NO)
def test_where_the_unit_is_worth_it(sizes):
    """Sizes are B, I and H."""
    assert layout.worth_tiles(*map(int, sizes.split())) is (sizes in YES)
