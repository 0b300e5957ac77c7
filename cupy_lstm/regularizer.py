"""Regularizers: what an optimiser adds to a gradient to keep weights small."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from cupy_lstm.backend import Array, array_module
from cupy_lstm.checks import checked_number


@dataclass(frozen=True)
class Regularizer(ABC):
    """A penalty on a weight, scaled by `coeff`.

    Parameters
    ----------
    coeff : float
        Strength, not negative.

    Raises
    ------
    TypeError, ValueError
        If `coeff` is no number, negative or not finite.
    """

    coeff: float = 0.0

    def __post_init__(self) -> None:
        # A Python float, so that the gradient keeps the dtype of the weight.
        object.__setattr__(self, "coeff", checked_number("coeff", self.coeff))

    @abstractmethod
    def gradient(self, weight: Array) -> Array:
        """Return the penalty's gradient, an array like `weight`."""


class L1Decay(Regularizer):
    """The penalty coeff * sum(abs(w)), of gradient coeff * sign(w)."""

    def gradient(self, weight: Array) -> Array:
        """Return coeff * sign(w), an array like `weight`."""
        return self.coeff * array_module(weight).sign(weight)


class L2Decay(Regularizer):
    """The penalty coeff / 2 * sum(w * w), of gradient coeff * w."""

    def gradient(self, weight: Array) -> Array:
        """Return coeff * w, an array like `weight`."""
        return self.coeff * weight
