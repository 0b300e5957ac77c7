"""Gradient clipping: limits on gradients before an optimiser uses them.

Each is a callable of (parameter, gradient) pairs that returns new pairs. Gradients it changes are
fresh arrays, so `Parameter.grad` stays what backward made it. Pairs whose parameter has
``need_clip=False`` pass through, and do not count in a global norm.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf
from typing import TypeAlias

from cupy_lstm.backend import Array, array_module
from cupy_lstm.checks import checked_number
from cupy_lstm.parameter import Parameter

ParameterGradients: TypeAlias = Sequence[tuple[Parameter, Array]]
"""Parameters, each with its gradient."""

GradientClip: TypeAlias = Callable[[ParameterGradients], ParameterGradients]
"""What an optimiser accepts as `grad_clip`."""


@dataclass(frozen=True)
class ClipGradByValue:
    """Limit every element of every gradient, as `paddle.nn.ClipGradByValue`.

    Parameters
    ----------
    max : float
        Largest element.
    min : float, optional
        Smallest element; default ``-max``.

    Raises
    ------
    TypeError, ValueError
        If a bound is no finite number, or `min` is larger than `max`.
    """

    max: float
    min: float | None = None

    def __post_init__(self) -> None:
        checked_number("max", self.max, -inf, low_included=False)
        if self.min is not None:
            checked_number("min", self.min, -inf, low_included=False)
        if self._low > self.max:
            raise ValueError(f"min must not be larger than max, received {self._low} > {self.max}")

    @property
    def _low(self) -> float:
        return -self.max if self.min is None else self.min

    def __call__(self, pairs: ParameterGradients) -> ParameterGradients:
        """Return the pairs with every element in [min, max]."""
        return [
            (p, array_module(g).clip(g, self._low, self.max) if p.need_clip else g)
            for p, g in pairs
        ]


@dataclass(frozen=True)
class ClipGradByNorm:
    """Scale each gradient whose L2 norm is larger than `clip_norm` down to it.

    As `paddle.nn.ClipGradByNorm`: every parameter on its own.

    Parameters
    ----------
    clip_norm : float
        Largest norm, positive.

    Raises
    ------
    TypeError, ValueError
        If it is no positive finite number.
    """

    clip_norm: float

    def __post_init__(self) -> None:
        checked_number("clip_norm", self.clip_norm, low_included=False)

    def __call__(self, pairs: ParameterGradients) -> ParameterGradients:
        """Return the pairs with the norm of each at most `clip_norm`."""
        return [
            (p, _scaled(g, _squared_norm(g), self.clip_norm) if p.need_clip else g)
            for p, g in pairs
        ]


@dataclass(frozen=True)
class ClipGradByGlobalNorm:
    """Scale all gradients by one factor if their common L2 norm is larger than `clip_norm`.

    As `paddle.nn.ClipGradByGlobalNorm` (Pascanu et al., 2013): the direction of the step stays.

    Parameters
    ----------
    clip_norm : float
        Largest norm of all gradients together, positive.

    Raises
    ------
    TypeError, ValueError
        If it is no positive finite number.
    """

    clip_norm: float

    def __post_init__(self) -> None:
        checked_number("clip_norm", self.clip_norm, low_included=False)

    def __call__(self, pairs: ParameterGradients) -> ParameterGradients:
        """Return the pairs with their common norm at most `clip_norm`."""
        squared_norm = sum(_squared_norm(g) for p, g in pairs if p.need_clip)
        return [
            (p, _scaled(g, squared_norm, self.clip_norm) if p.need_clip else g) for p, g in pairs
        ]


def _squared_norm(gradient: Array) -> Array:
    # In float64, so that squares neither overflow nor vanish, and dtypes can mix.
    return array_module(gradient).square(gradient, dtype="float64").sum()


def _scaled(gradient: Array, squared_norm: Array, clip_norm: float) -> Array:
    xp = array_module(gradient)
    factor = clip_norm / xp.maximum(xp.sqrt(squared_norm), clip_norm)
    return gradient * factor.astype(gradient.dtype)
