"""Initializers: the first values of a weight, drawn on the host so that backends start bit-equal.

Fans are those of one gate block: for a weight [4H, I] of an LSTM, fan_in is I and fan_out is H.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from math import inf, sqrt
from typing import NamedTuple

import numpy
from numpy.random import Generator

from cupy_lstm.backend import Array, HostArray, is_array, to_host
from cupy_lstm.checks import checked_number


class Fans(NamedTuple):
    """How many inputs and outputs one unit of a weight connects."""

    fan_in: int
    fan_out: int


class Initializer(ABC):
    """A rule for first values."""

    @abstractmethod
    def draw(self, shape: tuple[int, ...], fans: Fans, generator: Generator) -> HostArray:
        """Return first values as a host array of the given shape.

        Parameters
        ----------
        shape : tuple of int
            Shape of the weight.
        fans : Fans
            Inputs and outputs of one unit.
        generator : numpy.random.Generator
            Source of randomness.
        """


@dataclass(frozen=True)
class Constant(Initializer):
    """Every element is `value`."""

    value: float = 0.0

    def __post_init__(self) -> None:
        checked_number("value", self.value, -inf, low_included=False)

    def draw(self, shape: tuple[int, ...], fans: Fans, generator: Generator) -> HostArray:
        return numpy.full(shape, self.value)


@dataclass(frozen=True)
class Uniform(Initializer):
    """Uniform in [low, high)."""

    low: float = -1.0
    high: float = 1.0

    def __post_init__(self) -> None:
        checked_number("low", self.low, -inf, low_included=False)
        checked_number("high", self.high, -inf, low_included=False)
        if self.low > self.high:
            raise ValueError(
                f"low must not exceed high, received low={self.low} and high={self.high}"
            )

    def draw(self, shape: tuple[int, ...], fans: Fans, generator: Generator) -> HostArray:
        return generator.uniform(self.low, self.high, shape)


@dataclass(frozen=True)
class Normal(Initializer):
    """Normal with the given mean and standard deviation."""

    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        checked_number("mean", self.mean, -inf, low_included=False)
        checked_number("std", self.std)

    def draw(self, shape: tuple[int, ...], fans: Fans, generator: Generator) -> HostArray:
        return generator.normal(self.mean, self.std, shape)


@dataclass(frozen=True)
class TruncatedNormal(Initializer):
    """Normal, redrawn wherever a value is further than `bound` deviations from the mean.

    Parameters
    ----------
    mean, std : float
        Of the normal distribution before truncation.
    bound : float
        In standard deviations, at least 0.01: draws beyond it are thrown away.
    """

    mean: float = 0.0
    std: float = 1.0
    bound: float = 2.0

    def __post_init__(self) -> None:
        checked_number("mean", self.mean, -inf, low_included=False)
        checked_number("std", self.std)
        checked_number("bound", self.bound, 0.01)

    def draw(self, shape: tuple[int, ...], fans: Fans, generator: Generator) -> HostArray:
        values = generator.standard_normal(shape)
        while (outside := numpy.abs(values) > self.bound).any():
            values[outside] = generator.standard_normal(int(outside.sum()))
        return self.mean + self.std * values


@dataclass(frozen=True)
class XavierUniform(Initializer):
    """Uniform with variance 2 / (fan_in + fan_out) (Glorot and Bengio, 2010)."""

    def draw(self, shape: tuple[int, ...], fans: Fans, generator: Generator) -> HostArray:
        limit = sqrt(6 / (fans.fan_in + fans.fan_out))
        return generator.uniform(-limit, limit, shape)


@dataclass(frozen=True)
class XavierNormal(Initializer):
    """Normal with variance 2 / (fan_in + fan_out) (Glorot and Bengio, 2010)."""

    def draw(self, shape: tuple[int, ...], fans: Fans, generator: Generator) -> HostArray:
        return generator.normal(0, sqrt(2 / (fans.fan_in + fans.fan_out)), shape)


@dataclass(frozen=True)
class KaimingUniform(Initializer):
    """Uniform with variance 2 / fan_in (He et al., 2015)."""

    def draw(self, shape: tuple[int, ...], fans: Fans, generator: Generator) -> HostArray:
        limit = sqrt(6 / fans.fan_in)
        return generator.uniform(-limit, limit, shape)


@dataclass(frozen=True)
class KaimingNormal(Initializer):
    """Normal with variance 2 / fan_in (He et al., 2015)."""

    def draw(self, shape: tuple[int, ...], fans: Fans, generator: Generator) -> HostArray:
        return generator.normal(0, sqrt(2 / fans.fan_in), shape)


@dataclass(frozen=True)
class Orthogonal(Initializer):
    """A matrix with orthonormal rows or columns, whichever are fewer, times `gain`.

    The matrix is the whole weight, all gate blocks together (Saxe et al., 2014: QR of a normal
    matrix, signs fixed by the diagonal of R so that the draw is uniform).
    """

    gain: float = 1.0

    def __post_init__(self) -> None:
        checked_number("gain", self.gain, -inf, low_included=False)

    def draw(self, shape: tuple[int, ...], fans: Fans, generator: Generator) -> HostArray:
        if len(shape) != 2:
            raise ValueError(f"Orthogonal draws matrices, but the weight has shape {list(shape)}")
        rows, columns = shape
        normal = generator.standard_normal((max(shape), min(shape)))
        q, r = numpy.linalg.qr(normal)
        q *= numpy.sign(numpy.diag(r))
        return self.gain * (q if rows >= columns else q.T)


class Assign(Initializer):
    """The values of a given array (copied, on the host).

    Parameters
    ----------
    value : array or nested sequence of float
        Must have the shape of each weight it serves.
    """

    def __init__(self, value: Array) -> None:
        try:
            self.value = numpy.array(to_host(value) if is_array(value) else value, "float64")
        except (TypeError, ValueError):
            raise TypeError(
                f"value must be an array of numbers, received {type(value).__name__}"
            ) from None

    def draw(self, shape: tuple[int, ...], fans: Fans, generator: Generator) -> HostArray:
        if self.value.shape != shape:
            raise ValueError(
                f"Assign holds an array of shape {list(self.value.shape)}, "
                f"but the weight has shape {list(shape)}"
            )
        return self.value
