"""tanh and the logistic function of a vector, accurate to a few units in the last place.

Both come from one exponential. With n the integer nearest to x / ln 2 and r = x - n ln 2, so that
abs(r) <= ln 2 / 2, and p = exp(r) - 1 = r + r^2 q(r)::

    exp(x) = 2^n (1 + p)        exp(x) - 1 = 2^n p + (2^n - 1)

    sigmoid(x) = 1 / (1 + exp(-x))
    tanh(x) = -tanh(-x) = E / (E + 2) with E = exp(2 x) - 1, x >= 0

The second form of the exponential keeps tanh accurate near zero. Arguments are limited to where the
results no longer change; NaN passes through. A sigmoid below the smallest normal number may be
zero.

Time goes into the number of operations and into waiting for one after the other, so the polynomial
q is short, and summed in pairs (Estrin's scheme).
"""

import math
from typing import Any

from numba import njit, types
from numba.extending import intrinsic, overload
from numpy.polynomial import chebyshev, polynomial

from cupy_lstm.simd.vector import (
    at_least,
    at_most,
    fused,
    magnitude,
    multiply_add,
    power_of_two,
    splat,
    with_sign,
)

_SERIES = [1 / math.factorial(k + 2) for k in range(12)]


def _shortened(terms: int) -> list[float]:
    """Return a shorter polynomial than the series of q, equal to it at Chebyshev's points."""
    half = math.log(2) / 2
    scaled = [a * half**k for k, a in enumerate(_SERIES)]
    points = chebyshev.chebpts1(terms)
    through = chebyshev.chebfit(points, polynomial.polyval(points, scaled), terms - 1)
    return [float(a) / half**k for k, a in enumerate(chebyshev.cheb2poly(through))]


# What is missing is below a hundredth of a unit in the last place of p.
_TAIL = {types.float32: _shortened(6), types.float64: _SERIES}

# ln 2 in two parts, the first with so few bits that n times it is exact.
_HIGH = {types.float32: 0.693359375, types.float64: math.ldexp(round(math.log(2) * 2**32), -32)}
_LOW = {
    types.float32: -2.121944400546905827679e-4,
    types.float64: float.fromhex("-0x1.718432a1b0e26p-35"),
}
_LOG2_E = 1 / math.log(2)


@intrinsic
def _tail(context: Any, r: Any) -> Any:
    """Return q(r)."""

    def lower(context: Any, builder: Any, kinds: Any, operands: Any) -> Any:
        terms, power = [r.constant(a) for a in _TAIL[r.scalar]], operands[0]
        while len(terms) > 1:
            pairs = [
                multiply_add(builder, r, high, power, low)
                for low, high in zip(terms[::2], terms[1::2], strict=False)
            ]
            terms = pairs + terms[2 * len(pairs) :]
            if len(terms) > 1:
                power = builder.fmul(power, power)
        return terms[0]

    return r(r), lower


def _reduce(lanes: Any, x: Any) -> Any:
    """Return 2^n and p of the module's formulas."""


@overload(_reduce)
def _reduce_overload(lanes: Any, x: Any) -> Any:
    shift = 1.5 * 2.0 ** (23 if x.scalar == types.float32 else 52)
    high, low = _HIGH[x.scalar], _LOW[x.scalar]

    def implementation(lanes: Any, x: Any) -> Any:
        shifted = fused(x, splat(lanes, _LOG2_E), splat(lanes, shift))
        n = shifted - shift
        r = fused(n, splat(lanes, -low), fused(n, splat(lanes, -high), x))
        return power_of_two(shifted), fused(_tail(r), r * r, r)

    return implementation


def _limits(x: Any) -> Any:
    """Return where -x of a sigmoid, on either side, and 2x of a tanh can be cut off."""


@overload(_limits)
def _limits_overload(x: Any) -> Any:
    # Where 2^n of exp(-x) is infinite, or zero; and where tanh is 1.
    high, low, flat = (89.0, -88.0, 20.0) if x.scalar == types.float32 else (710.0, -709.0, 40.0)

    def implementation(x: Any) -> Any:
        return high, low, flat

    return implementation


@njit
def sigmoid(lanes: Any, x: Any) -> Any:
    """Return 1 / (1 + exp(-x))."""
    high, low, _ = _limits(x)
    scale, p = _reduce(lanes, at_least(at_most(0.0 - x, high), low))
    # Not fused: where the first factor is infinite the second must have its sign.
    return 1.0 / (1.0 + scale * (1.0 + p))


@njit
def tanh(lanes: Any, x: Any) -> Any:
    """Return the hyperbolic tangent."""
    _, _, flat = _limits(x)
    scale, p = _reduce(lanes, at_most(magnitude(x + x), flat))
    e = fused(scale, p, scale - 1.0)
    return with_sign(e / (e + 2.0), x)
