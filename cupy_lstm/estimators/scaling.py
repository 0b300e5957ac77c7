"""Standardised values: mean 0 and standard deviation 1 in every feature."""

from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Self

from cupy_lstm.backend import Array, array_module, to_host

BLOCK = 2**20
"""Values that are looked at at once."""


@dataclass(frozen=True)
class Scaling:
    """The mean of each feature, and its standard deviation.

    Attributes
    ----------
    mean, scale : float64 array [F]
        Where the values are; the scale of a constant feature is 1.
    """

    mean: Array
    scale: Array

    @classmethod
    def of(cls, values: Array, weights: Array) -> Self:
        """Learn from values, in little memory beside them; nothing synchronises.

        Parameters
        ----------
        values : array [..., F]
            Those of weight 0 may be anything.
        weights : array [...]
            Not negative, with a positive sum.
        """
        xp, axes = array_module(values), tuple(range(values.ndim - 1))
        mean, variance = xp.zeros(values.shape[-1]), xp.zeros(values.shape[-1])
        for known, shares in _blocks(values, weights):
            mean += (shares * known).sum(axis=axes)
        for known, shares in _blocks(values, weights):
            deviations = known - mean
            variance += (shares * deviations * deviations).sum(axis=axes)
        scale = xp.sqrt(variance)
        # Of a constant, what is left is the rounding of its mean.
        is_constant = scale <= 16 * xp.finfo(values.dtype).eps * abs(mean)
        return cls(mean, xp.where(is_constant, 1.0, scale))

    @classmethod
    def none(cls, features: int, xp: ModuleType) -> Self:
        """Return the scaling that changes nothing."""
        return cls(xp.zeros(features), xp.ones(features))

    def apply(self, values: Array, dtype: Any) -> Array:
        """Return standardised values [..., F] in a dtype: a fresh array."""
        mean, scale = self.mean.astype(values.dtype), self.scale.astype(values.dtype)
        standardised = values - mean
        standardised /= scale
        return standardised.astype(dtype, copy=False)

    def undo(self, values: Array, dtype: Any) -> Array:
        """Return values [..., F] in their own units, in a dtype."""
        return (values.astype("float64") * self.scale + self.mean).astype(dtype, copy=False)

    def to(self, xp: ModuleType) -> "Scaling":
        """Return the same in another array module."""
        return Scaling(xp.asarray(to_host(self.mean)), xp.asarray(to_host(self.scale)))


def _blocks(values: Array, weights: Array) -> Iterator[tuple[Array, Array]]:
    """Yield values, 0 where their weight is, and their shares of all weights [..., 1], by rows."""
    xp, total = array_module(values), weights.sum(dtype="float64")
    rows = max(1, BLOCK * len(values) // values.size)
    for start in range(0, len(values), rows):
        shares = (weights[start : start + rows] / total)[..., None]
        yield xp.where(shares > 0, values[start : start + rows], 0), shares
