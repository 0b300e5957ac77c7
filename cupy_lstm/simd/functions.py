"""tanh and the logistic function of a vector, accurate to a few units in the last place.

Both come from one exponential. With n the integer nearest to x / ln 2 and r = x - n ln 2, so that
abs(r) <= ln 2 / 2, and p = exp(r) - 1 by its Taylor series::

    exp(x) = 2^n (1 + p)        exp(x) - 1 = 2^n p + (2^n - 1)

    sigmoid(x) = 1 / (1 + e), sigmoid(-x) = e / (1 + e) with e = exp(-x), x >= 0
    tanh(x) = -tanh(-x) = E / (E + 2) = 1 - 2 / (E + 2) with E = exp(2 x) - 1, x >= 0

The second form of the exponential keeps tanh accurate near zero, the second form of tanh near 1.
Arguments are limited to
where the results no longer change; NaN passes through. A sigmoid below the smallest normal number
may be zero.
"""

from typing import Any

from numba import njit, types
from numba.extending import overload

from cupy_lstm.simd.vector import (
    at_most,
    fused,
    magnitude,
    power_of_two,
    splat,
    where_positive,
    with_sign,
)


def _reduce(lanes: Any, x: Any) -> Any:
    """Return 2^n and r of the module's formulas."""


def _polynomial(lanes: Any, r: Any) -> Any:
    """Return exp(r) - 1 for small r."""


def _limits(x: Any) -> Any:
    """Return where x of a sigmoid, and 2x of a tanh, can be cut off."""


# ln 2 in two parts, the first with few bits so that n times it is exact.
_HIGH32, _LOW32 = 0.693359375, -2.12194440054690583e-4
_HIGH64, _LOW64 = 6.93147180369123816490e-01, 1.90821492927058770002e-10
_LOG2_E = 1.4426950408889634


@overload(_reduce)
def _reduce_overload(lanes: Any, x: Any) -> Any:
    single = x.scalar == types.float32
    shift = 1.5 * 2.0 ** (23 if single else 52)
    high, low = (_HIGH32, _LOW32) if single else (_HIGH64, _LOW64)

    def implementation(lanes: Any, x: Any) -> Any:
        shifted = fused(x, splat(lanes, _LOG2_E), splat(lanes, shift))
        n = shifted - shift
        r = fused(n, splat(lanes, -low), fused(n, splat(lanes, -high), x))
        return power_of_two(shifted), r

    return implementation


def _taylor(terms: int) -> list[float]:
    """Return 1/2!, 1/3!, ... 1/terms!."""
    coefficients, factorial = [], 1.0
    for n in range(2, terms + 1):
        factorial *= n
        coefficients.append(1 / factorial)
    return coefficients


@overload(_polynomial)
def _polynomial_overload(lanes: Any, r: Any) -> Any:
    # The first term left out is below half a unit in the last place.
    if r.scalar == types.float32:
        a2, a3, a4, a5, a6, a7 = _taylor(7)

        def single(lanes: Any, r: Any) -> Any:
            s = fused(splat(lanes, a7), r, splat(lanes, a6))
            s = fused(s, r, splat(lanes, a5))
            s = fused(s, r, splat(lanes, a4))
            s = fused(s, r, splat(lanes, a3))
            s = fused(s, r, splat(lanes, a2))
            return fused(s * r, r, r)

        return single
    b2, b3, b4, b5, b6, b7, b8, b9, b10, b11, b12, b13 = _taylor(13)

    def double(lanes: Any, r: Any) -> Any:
        s = fused(splat(lanes, b13), r, splat(lanes, b12))
        s = fused(s, r, splat(lanes, b11))
        s = fused(s, r, splat(lanes, b10))
        s = fused(s, r, splat(lanes, b9))
        s = fused(s, r, splat(lanes, b8))
        s = fused(s, r, splat(lanes, b7))
        s = fused(s, r, splat(lanes, b6))
        s = fused(s, r, splat(lanes, b5))
        s = fused(s, r, splat(lanes, b4))
        s = fused(s, r, splat(lanes, b3))
        s = fused(s, r, splat(lanes, b2))
        return fused(s * r, r, r)

    return double


@overload(_limits)
def _limits_overload(x: Any) -> Any:
    # Where 2^n of exp(-x) is zero, n being one below the smallest exponent; and where tanh is 1.
    zero, flat = (88.0, 20.0) if x.scalar == types.float32 else (709.0, 40.0)

    def implementation(x: Any) -> Any:
        return zero, flat

    return implementation


@njit
def sigmoid(lanes: Any, x: Any) -> Any:
    """Return 1 / (1 + exp(-x))."""
    zero, _ = _limits(x)
    scale, r = _reduce(lanes, 0.0 - at_most(magnitude(x), zero))
    e = fused(scale, _polynomial(lanes, r), scale)
    one = splat(lanes, 1.0)
    return where_positive(x, one, e) / (e + 1.0)


@njit
def tanh(lanes: Any, x: Any) -> Any:
    """Return the hyperbolic tangent."""
    _, flat = _limits(x)
    scale, r = _reduce(lanes, at_most(magnitude(x + x), flat))
    e = fused(scale, _polynomial(lanes, r), scale - 1.0)
    two = splat(lanes, 2.0)
    above_half = e - two
    quotient = where_positive(above_half, two, e) / (e + two)
    return with_sign(where_positive(above_half, 1.0 - quotient, quotient), x)
