"""tanh and the logistic function of the engine simd: units in the last place, over all numbers."""

import numpy as np
import pytest
from numba import njit

from cupy_lstm.simd.compiled import host_lanes
from cupy_lstm.simd.functions import sigmoid, tanh
from cupy_lstm.simd.memory import load, store
from cupy_lstm.simd.vector import itemsize, lane_count

WIDE = {"float32": np.float64, "float64": np.longdouble}
DTYPES = [
    "float32",
    pytest.param(
        "float64",
        marks=pytest.mark.skipif(
            np.finfo(np.longdouble).eps >= np.finfo(np.float64).eps,
            reason="long double is no wider than double here: nothing to measure float64 against",
        ),
    ),
]
each_dtype = pytest.mark.parametrize("dtype", DTYPES)

MOST = 3.0
"""Units in the last place a result may be off: six roundings lie between x and it, of half a unit
each at the most (r, its square or q, p, the exponential, the sum below the line, the quotient).
Measured over millions of numbers: 2.4 in float32, 2.6 in float64."""


@njit(nogil=True)
def all_tanh(lanes, source, target, count):
    for k in range(0, count * itemsize(lanes), lane_count(lanes) * itemsize(lanes)):
        store(target + k, tanh(lanes, load(lanes, source + k)))


@njit(nogil=True)
def all_sigmoid(lanes, source, target, count):
    for k in range(0, count * itemsize(lanes), lane_count(lanes) * itemsize(lanes)):
        store(target + k, sigmoid(lanes, load(lanes, source + k)))


def evaluate(kernel, x):
    """Apply a kernel to every number of x."""
    lanes = host_lanes(x.dtype.name)
    padded = np.zeros(-(-x.size // lanes.count) * lanes.count, x.dtype)
    padded[: x.size] = x
    result = np.empty_like(padded)
    kernel(lanes, padded.ctypes.data, result.ctypes.data, padded.size)
    return result[: x.size]


def true_tanh(x):
    return np.tanh(x)


def true_sigmoid(x):
    e = np.exp(-abs(x))
    return np.where(x >= 0, 1, e) / (1 + e)


each_function = pytest.mark.parametrize(
    ("kernel", "truth"),
    [(all_tanh, true_tanh), (all_sigmoid, true_sigmoid)],
    ids=["tanh", "sigmoid"],
)


def every_exponent(dtype):
    """Numbers of every exponent and both signs, subnormal ones included."""
    info, rng = np.finfo(dtype), np.random.default_rng(0)
    per_exponent = 600 if dtype == "float32" else 100
    exponents = np.repeat(np.arange(info.minexp - info.nmant, info.maxexp), per_exponent)
    fractions = rng.uniform(1, 2, exponents.size).astype(dtype)
    positive = np.ldexp(fractions, exponents).astype(dtype)
    return np.concatenate([positive, -positive])


def around_seams(dtype):
    """Neighbours of where the formula changes: halves of ln 2 from where n of the exponential goes
    up by one, where tanh takes its other form, where arguments are cut off, and where the
    exponential is subnormal."""
    ln2 = np.log(2)
    lowest = -np.finfo(dtype).minexp * ln2
    seams = [np.log(3) / 2, 10, 20, 40, 88, 709, lowest, lowest + ln2, *(np.arange(0.5, 130) * ln2)]
    seams = np.concatenate([seams, np.array(seams) / 2]).astype(dtype)
    steps = np.arange(-200, 201) * np.finfo(dtype).eps
    near = (seams[:, None] * (1 + steps)).astype(dtype).ravel()
    return np.concatenate([near, -near])


def dense(dtype):
    rng = np.random.default_rng(1)
    return np.concatenate(
        [
            np.linspace(-20, 20, 600_001),
            np.linspace(-1, 1, 300_001),
            rng.normal(0, 3, 300_000),
            np.linspace(-120, 120, 100_001),
            np.linspace(-800, 800, 100_001),
        ]
    ).astype(dtype)


def units(truth, dtype):
    """A unit in the last place of `dtype` at each number, no smaller than at the least normal."""
    info = np.finfo(dtype)
    _, exponents = np.frexp(truth)  # 2^(e-1) <= truth < 2^e
    exponents = np.maximum(exponents - 1, info.minexp)
    return np.ldexp(np.ones_like(truth), exponents - info.nmant)


@each_dtype
@each_function
@pytest.mark.parametrize("numbers", [every_exponent, around_seams, dense])
def test_error_in_units_of_the_last_place(numbers, kernel, truth, dtype):
    x = numbers(dtype)
    result, exact = evaluate(kernel, x), truth(x.astype(WIDE[dtype]))
    error = abs(result - exact) / units(exact, dtype)
    # exp(-x) of a result below the least normal number may have become zero.
    least = np.finfo(dtype).tiny
    vanishing = (kernel is all_sigmoid) & (exact < least)
    assert ((result[vanishing] >= 0) & (result[vanishing] <= least)).all()
    worst = np.where(vanishing, 0, error).argmax()
    assert error[worst] <= MOST, f"at {x[worst]!r}: {result[worst]!r}, exactly {exact[worst]!r}"


@each_dtype
def test_tanh_is_odd_and_keeps_the_sign_of_zero(dtype):
    x = np.concatenate([every_exponent(dtype), dense(dtype), np.zeros(1, dtype)])
    positive, negative = evaluate(all_tanh, x), evaluate(all_tanh, -x)
    assert positive.tobytes() == (-negative).tobytes()
    signs = evaluate(all_tanh, np.array([0.0, -0.0], dtype))
    assert not signs.any()
    assert np.signbit(signs).tolist() == [False, True]


@each_dtype
def test_tanh_of_small_numbers_is_the_number(dtype):
    info = np.finfo(dtype)
    x = every_exponent(dtype)
    x = x[abs(x) < np.sqrt(info.eps) / 4]  # x^3 / 3 is less than half a unit
    assert x.size > 1000
    assert abs(x).min() < info.tiny, "subnormal numbers are among them"
    assert (abs(evaluate(all_tanh, x) - x) <= MOST * units(abs(x), dtype)).all()
    subnormal = x[abs(x) < info.tiny]
    assert np.array_equal(evaluate(all_tanh, subnormal), subnormal)


@each_dtype
def test_results_are_bounded_and_saturate(dtype):
    x = np.sort(np.concatenate([every_exponent(dtype), around_seams(dtype), dense(dtype)]))
    found_tanh, found_sigmoid = evaluate(all_tanh, x), evaluate(all_sigmoid, x)
    assert abs(found_tanh).max() == 1
    assert found_sigmoid.min() == 0
    assert found_sigmoid.max() == 1
    # Where 1 - tanh = 2 exp(-2 x) is below a sixteenth of a unit.
    flat = (np.finfo(dtype).nmant + 6) * np.log(2) / 2
    assert (found_tanh[x > flat] == 1).all()
    assert (found_tanh[x < -flat] == -1).all()
    assert (found_sigmoid[x > 2 * flat] == 1).all()
    assert (found_sigmoid[x < 2 * np.log(np.finfo(dtype).tiny)] == 0).all()


@each_dtype
@each_function
def test_never_falls_by_more_than_its_error(kernel, truth, dtype):
    x = np.unique(np.concatenate([around_seams(dtype), dense(dtype)]))
    result = evaluate(kernel, x)
    highest = np.maximum.accumulate(result)
    assert (highest - result <= 2 * MOST * units(abs(result), dtype)).all()


@each_dtype
def test_infinity_and_nan(dtype):
    inf, nan = np.inf, np.nan
    x = np.array([inf, -inf, nan, -nan, 1.0, -1.0], dtype)
    found = evaluate(all_tanh, x)
    assert found[:2].tolist() == [1, -1]
    assert np.isnan(found).tolist() == [False, False, True, True, False, False]
    found = evaluate(all_sigmoid, x)
    assert found[:2].tolist() == [1, 0]
    assert np.isnan(found).tolist() == [False, False, True, True, False, False]
