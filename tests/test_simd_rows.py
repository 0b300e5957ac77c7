"""Rows do not touch each other in the engine simd, and padding is no work at all."""

import dataclasses
import math
import sys

import numpy as np
import pytest
from cases import Case, build, results
from face import assert_bit_equal
from simd_bed import infer, run, run_script, use_threads

from cupy_lstm import engines
from cupy_lstm.notation import LayerWeights
from cupy_lstm.simd.layout import layout_of
from cupy_lstm.simd.tape import Recorded

ROWS = {"y": 0, "cells": 0, "dx": 0, "h": 1, "c": 1, "dh0": 1, "dc0": 1}
"""The axis of the batch rows; the arrays without one are sums over rows."""

# More rows than a tile, and no whole number of them; two blocks of units and a bit.
WIDE = Case(
    "rows",
    T=6,
    B=13,
    I=19,
    H=37,
    states=True,
    upstream=("y", "h", "c", "cells"),
)
EACH = [
    pytest.param(WIDE, id="forward"),
    pytest.param(dataclasses.replace(WIDE, bidirectional=True, L=2), id="bidirectional"),
    pytest.param(dataclasses.replace(WIDE, P=18), id="projection"),
    pytest.param(
        dataclasses.replace(
            WIDE, bidirectional=True, lengths=(6, 1, 5, 0, 3, 6, 6, 2, 4, 6, 5, 3, 6)
        ),
        id="lengths",
    ),
]
DIRTY = 6
"""The row that is spoilt; in the middle of a tile."""


def spoilt(arrays, where, value):
    """Return the arrays with one number, or one row of numbers, replaced."""

    def changed(array, *index):
        array = array.copy()
        array[index] = value
        return array

    h, c = arrays.states
    if where == "x":
        return dataclasses.replace(arrays, x=changed(arrays.x, DIRTY, 2, 7))
    if where == "h0":
        return dataclasses.replace(arrays, states=(changed(h, slice(None), DIRTY, 5), c))
    if where == "c0":
        return dataclasses.replace(arrays, states=(h, changed(c, slice(None), DIRTY, 36)))
    index = (slice(None), DIRTY) if where in ("h", "c") else (DIRTY, 3)
    upstream = arrays.upstream | {where: changed(arrays.upstream[where], *index)}
    return dataclasses.replace(arrays, upstream=upstream)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf], ids=str)
@pytest.mark.parametrize("where", ["x", "h0", "c0", "y", "cells", "h", "c"])
@pytest.mark.parametrize("case", EACH)
def test_a_spoilt_row_spoils_no_other(case, where, value, threads, monkeypatch):
    use_threads(monkeypatch, threads)
    arrays = build(case, "float32")
    clean = results(run(case, arrays=arrays))
    dirty = results(run(case, arrays=spoilt(arrays, where, value)))
    for name, axis in ROWS.items():
        others = [np.delete(some[name], DIRTY, axis) for some in (clean, dirty)]
        assert np.array_equal(*others), name
        assert np.isfinite(others[0]).all(), name


def test_nan_comes_out_from_where_it_comes_in():
    """At its step and after, in every unit, and in the gradients of that row."""
    arrays = build(WIDE, "float32")
    result = run(WIDE, arrays=spoilt(arrays, "x", np.nan))
    for array in (result.y, result.cells):
        assert np.isfinite(array[DIRTY, :2]).all()
        assert np.isnan(array[DIRTY, 2:]).all()
    for array in (result.h, result.c, result.dh0, result.dc0):
        assert np.isnan(array[:, DIRTY]).all()
    assert np.isnan(result.dx[DIRTY]).all()
    for name in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"):
        assert np.isnan(result.grads[name]).all(), name


def test_infinity_saturates_and_does_no_more():
    """An infinite weight sum closes or opens gates; only 0 * inf and inf - inf are NaN."""
    case = dataclasses.replace(WIDE, I=1, bias_ih=False, bias_hh=False)
    arrays = build(case, "float32")
    x = arrays.x.copy()
    x[DIRTY, 2, 0] = np.inf
    result = run(case, arrays=dataclasses.replace(arrays, x=x))
    assert np.isfinite(result.y).all()
    assert np.isfinite(result.cells).all()
    signs = np.sign(arrays.weights["weight_ih_l0"][:, 0])
    i, f, g, o = signs.reshape(4, -1)
    before, after = result.cells[DIRTY, 1:3]
    assert np.array_equal(after, np.where(f > 0, before, 0) + np.where(i > 0, g, 0))
    assert np.array_equal(result.y[DIRTY, 2, o < 0], np.zeros((o < 0).sum()))


@pytest.mark.parametrize("poison", [np.nan, np.inf], ids=str)
@pytest.mark.parametrize("threads", [1, 2])
def test_padding_may_hold_anything(poison, threads, monkeypatch):
    use_threads(monkeypatch, threads)
    lengths = (6, 1, 5, 0, 3, 6, 6, 2, 4, 6, 5, 3, 6)
    case = dataclasses.replace(WIDE, L=2, bidirectional=True, lengths=lengths)
    arrays = build(case, "float32")
    padding = np.arange(case.T) >= np.array(lengths)[:, None]
    up = {name: a.copy() for name, a in arrays.upstream.items()}
    x = arrays.x.copy()
    for array in (x, up["y"], up["cells"]):
        array[padding] = poison
    dirty = dataclasses.replace(arrays, x=x, upstream=up)
    assert_bit_equal(run(case, arrays=arrays), run(case, arrays=dirty))
    assert_bit_equal(infer(case, arrays=arrays), infer(case, arrays=dirty))


def weights_of(I, H, D):  # noqa: E741
    rng = np.random.default_rng(0)
    shapes = (4 * H, I), (4 * H, H), (4 * H,), (4 * H,)
    return LayerWeights(*(rng.uniform(-0.1, 0.1, (D, *s)).astype("float32") for s in shapes), None)


def sweep(x, lengths, reverse, keep, y=None):
    """Run the engine over x [T,B,I]."""
    T, B, I = x.shape  # noqa: E741
    H, D = 17, len(reverse)
    y = np.full((T, B, D, H), np.nan, "float32") if y is None else y
    states = np.zeros((D, B, H), "float32"), np.zeros((D, B, H), "float32")
    weights, simd = weights_of(I, H, D), engines.load("simd")
    return y, *simd.forward(x, weights, states, lengths, reverse=reverse, y=y, keep=keep, chunk=3)


@pytest.mark.parametrize(
    "lengths", [(7, 0, 3, 5), (0, 0, 0, 0), (1, 1, 1, 1), (7, 7, 7, 7)], ids=str
)
@pytest.mark.parametrize("reverse", [(False,), (True,), (False, True)], ids=str)
def test_the_tape_has_no_place_for_padding(lengths, reverse):
    """So the kernels have no work with it: one slot for every valid step of every row."""
    x = np.ones((7, 4, 5), "float32")
    y, _, tape = sweep(x, np.array(lengths), reverse, keep=True)
    parts = dict(Recorded(layout_of(7, 4, tape.weights), tape.rows).sizes)
    for d in range(len(reverse)):
        assert [parts[f"{name} {d}"][1][0] for name in ("gates", "cells")] == [sum(lengths)] * 2
    assert tape.block.size == sum(-(-math.prod(sizes) // 16) * 16 for _, sizes in parts.values())
    padding = np.arange(7)[:, None] >= np.array(lengths)
    assert not y[padding].any()
    assert y[~padding].all()


def test_no_tape_without_need():
    _, _, tape = sweep(np.ones((7, 4, 5), "float32"), None, (False,), keep=False)
    assert tape is None


FORBIDDEN = """
import ctypes, mmap, resource, sys
import numpy as np
from test_simd_rows import engines, sweep, weights_of
from cupy_lstm.notation import LayerGradients, Wanted

# A step of a row is a page, and the pages of padding cannot be read.
T, lengths, page = 6, np.array([6, 1, 0, 4]), mmap.PAGESIZE
memory = mmap.mmap(-1, len(lengths) * T * page)
x = np.frombuffer(memory, "float32").reshape(len(lengths), T, page // 4)
x[...] = np.random.default_rng(0).standard_normal(x.shape)
whole = x.copy().swapaxes(0, 1)
start = x.__array_interface__["data"][0]
protect = ctypes.CDLL(None, use_errno=True).mprotect
protect.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
for row, length in enumerate(lengths):
    if length < T:
        pages = start + int(row * T + length) * page, int(T - length) * page
        assert protect(*pages, 0) == 0
found = []
for some in (x.swapaxes(0, 1), whole):
    for keep in (False, True):
        y, states, tape = sweep(some, lengths, (False, True), keep)
    weights = weights_of(x.shape[2], 17, 2)
    gradients = LayerGradients(*(None if w is None else np.zeros_like(w) for w in weights))
    dx = np.zeros(whole.shape, "float32")
    wanted = Wanted(*[slice(None)] * 4, None)
    dstates = engines.load("simd").backward(
        [tape], np.ones_like(y), states, wanted=wanted, gradients=gradients, dx=dx
    )
    found.append([y, *states, *gradients[:4], dx, *dstates])
for first, second in zip(*found, strict=True):
    assert np.array_equal(first, second)
if sys.argv[1] == "touch":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # no file of what is meant
    x[1, 1, 0]
"""


@pytest.mark.skipif(sys.platform != "linux", reason="forbids pages as Linux does")
def test_padding_is_not_even_read():
    run_script(FORBIDDEN, "leave")
    with pytest.raises(AssertionError, match="exit status -11"):  # the pages are forbidden indeed
        run_script(FORBIDDEN, "touch")
