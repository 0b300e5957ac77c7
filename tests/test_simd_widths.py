"""Every kind of vector there is, on any host: LLVM makes of it what the host has.

H takes every remainder by the width of a vector, and B every remainder by the rows of a tile; I and
P, and with them the blocks of columns that are left after groups of four, go along.
"""

import math

import pytest
from cases import Case, assert_case
from full import only_in_full
from simd_bed import run, use_lanes, use_threads

from cupy_lstm.simd.compiled import host_lanes, lanes_for
from cupy_lstm.simd.vector import Lanes

KINDS = [
    Lanes("float32", 4, 6),
    Lanes("float32", 8, 3),
    Lanes("float32", 16, 6),
    Lanes("float64", 2, 3),
    Lanes("float64", 4, 3),
    Lanes("float64", 8, 6),
]


def sizes(lanes):
    """Cases whose sizes take every remainder."""
    count, rows = lanes.count, lanes.rows
    for k in range(max(count, 2 * rows)):
        # One vector of units or less, less than a group of four, and more than a group.
        H = (k % count or count) + count * (0, 2, 4)[k % 3] if count < 16 else count + k
        wide = 0 if H < 3 or k % 2 else 1 + (5 * k) % (H - 1)
        B = 1 + k % (2 * rows)  # a tile of one row, ..., two tiles
        lengths = tuple((2 * row + k) % 5 for row in range(B)) if k % 3 == 1 else None
        yield Case(
            f"H{H}-B{B}-I{3 + 3 * k}-P{wide}",
            T=4,
            B=B,
            I=3 + 3 * k,
            H=H,
            P=wide,
            bidirectional=k % 4 == 3,
            time_major=k % 2 == 0,
            states=True,
            lengths=lengths,
            upstream=("y", "h", "c", "cells"),
        )


# One narrow kind of each dtype, and those of the host: it takes long to compile one.
_NARROW = {("float32", 4), ("float64", 4)}
_OF_THE_HOST = {(dtype, host_lanes(dtype).count) for dtype in ("float32", "float64")}


def kind(lanes, *more, name=""):
    """Return a parameter that is tried here, or in .ci/full alone."""
    here = (lanes.dtype, lanes.count) in _NARROW | _OF_THE_HOST
    marks = () if here else only_in_full
    return pytest.param(lanes, *more, id=f"{lanes.dtype}x{lanes.count}{name}", marks=marks)


EVERY = [kind(lanes, case, name=f"-{case.id}") for lanes in KINDS for case in sizes(lanes)]


def test_every_remainder_is_there():
    for lanes in KINDS:
        cases = list(sizes(lanes))
        assert {case.H % lanes.count for case in cases} == set(range(lanes.count))
        assert {case.B % lanes.rows for case in cases} == set(range(lanes.rows))
        assert {case.I % lanes.count for case in cases} == set(range(lanes.count))
        if lanes.count > 2:
            assert len({case.P % lanes.count for case in cases if case.P}) > 1
        blocks = {math.ceil(case.H / lanes.count) for case in cases}
        assert max(blocks) > 4 or lanes.count == 16


@pytest.mark.parametrize(("lanes", "case"), EVERY)
def test_every_gradient_in_every_kind_of_vector(lanes, case, monkeypatch):
    use_lanes(monkeypatch, lanes)
    assert_case(case, lanes.dtype, run(case, lanes.dtype))


@pytest.mark.parametrize("lanes", [kind(lanes) for lanes in KINDS])
def test_units_shared_by_threads_in_every_kind_of_vector(lanes, monkeypatch):
    """One row: two threads take four blocks of units and what is left, and meet at each step."""
    use_lanes(monkeypatch, lanes)
    taken = use_threads(monkeypatch, 2)
    case = Case("units", B=1, I=5, H=9 * lanes.count - 1, states=True)
    assert_case(case, lanes.dtype, run(case, lanes.dtype))
    assert 2 in taken


@pytest.mark.parametrize(
    ("features", "triple", "floats", "doubles"),
    [
        ({"avx512f": True, "avx2": True}, "x86_64-unknown-linux-gnu", (16, 6), (8, 6)),
        ({"avx512f": False, "avx2": True}, "x86_64-unknown-linux-gnu", (8, 3), (4, 3)),
        ({"avx2": False}, "x86_64-pc-windows-msvc", (4, 3), (2, 3)),
        ({}, "aarch64-unknown-linux-gnu", (4, 6), (2, 6)),
        ({}, "arm64-apple-darwin23.1.0", (4, 6), (2, 6)),
    ],
)
def test_the_kind_of_vector_fits_the_registers(features, triple, floats, doubles):
    assert lanes_for("float32", features, triple) == Lanes("float32", *floats)
    assert lanes_for("float64", features, triple) == Lanes("float64", *doubles)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_this_host_has_one_of_them(dtype):
    lanes = host_lanes(dtype)
    assert lanes.dtype == dtype
    assert lanes.count * lanes.itemsize in (16, 32, 64)
