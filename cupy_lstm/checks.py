"""Checks of what a caller passes: each raises with the argument, what came, and what would do."""

from math import inf
from numbers import Integral, Real
from typing import Any

import numpy

from cupy_lstm.backend import Array
from cupy_lstm.interchange import array_beside

DIRECTIONS = {
    "forward": (False,),
    "bidirect": (False, True),
    "bidirectional": (False, True),
}
"""Paddle's words for which directions there are, and which of them read from the end."""


def checked_optional_integer(argument: str, value: object) -> int | None:
    """Return `value` as an int that is at least 1, or None; see `checked_integer`."""
    return None if value is None else checked_integer(argument, value)


def checked_integer(argument: str, value: object, minimum: int = 1) -> int:
    """Return `value` as an int that is at least `minimum`.

    Parameters
    ----------
    argument : str
        Name of the argument, for the message.
    value : int
        What came; NumPy's integers are accepted.
    minimum : int
        Smallest accepted value.

    Raises
    ------
    TypeError
        If it is no integer; a bool is none.
    ValueError
        If it is smaller than `minimum`.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{argument} must be an integer, received {value!r}")
    if value < minimum:
        raise ValueError(f"{argument} must be at least {minimum}, received {value}")
    return int(value)


def checked_word(argument: str, value: object) -> int:
    """Return `value` as an int that fits 64 bits without a sign.

    Raises
    ------
    TypeError
        If it is no integer.
    ValueError
        If it is outside [0, 2^64).
    """
    number = checked_integer(argument, value, 0)
    if number >= 2**64:
        raise ValueError(f"{argument} must be below 2^64, received {number}")
    return number


def checked_number(
    argument: str,
    value: object,
    low: float = 0.0,
    high: float = inf,
    *,
    low_included: bool = True,
) -> float:
    """Return `value` as a float that lies between `low` and `high`, `high` itself excluded.

    Parameters
    ----------
    argument : str
        Name of the argument, for the message.
    value : float
        What came; NumPy's real scalars are accepted.
    low, high : float
        Bounds of the interval.
    low_included : bool
        Whether `low` itself is accepted.

    Raises
    ------
    TypeError
        If it is no real number; a bool is none.
    ValueError
        If it lies outside the interval, or is not a number.
    """
    if isinstance(value, bool | numpy.bool_) or not isinstance(value, Real):
        raise TypeError(f"{argument} must be a number, received {value!r}")
    number = float(value)
    if not (low <= number < high) or (number == low and not low_included):
        bracket = "[" if low_included else "("
        raise ValueError(f"{argument} must lie in {bracket}{low:g}, {high:g}), received {value}")
    return number


def checked_probability(argument: str, value: object) -> float:
    """Return `value` as a float in [0, 1].

    Raises
    ------
    TypeError
        If it is no real number; a bool is none.
    ValueError
        If it is outside [0, 1] or NaN.
    """
    if isinstance(value, bool | numpy.bool_) or not isinstance(value, Real):
        raise TypeError(f"{argument} must be a number in [0, 1], received {value!r}")
    number = float(value)
    if not 0 <= number <= 1:
        raise ValueError(f"{argument} must be in [0, 1], received {value}")
    return number


def checked_boolean(argument: str, value: object) -> bool:
    """Return `value` if it is a bool; raise a ValueError otherwise."""
    if not isinstance(value, bool | numpy.bool_):
        raise ValueError(f"{argument} must be True or False, received {value!r}")
    return bool(value)


def checked_choice(argument: str, value: object, choices: tuple[str, ...]) -> str:
    """Return `value` if it is one of `choices`.

    Raises
    ------
    TypeError
        If it is no string.
    ValueError
        If it is another one.
    """
    if not isinstance(value, str):
        raise TypeError(f"{argument} must be one of {choices}, received {value!r}")
    if value not in choices:
        raise ValueError(f"{argument} must be one of {choices}, received {value!r}")
    return value


def checked_direction(value: object) -> tuple[bool, ...]:
    """Return for each direction of ``"forward"`` or ``"bidirectional"`` whether it is reversed.

    Raises
    ------
    ValueError
        If it is none of Paddle's words, whatever its type.
    """
    if not isinstance(value, str) or value not in DIRECTIONS:
        raise ValueError(f"direction must be one of {tuple(DIRECTIONS)}, received {value!r}")
    return DIRECTIONS[value]


def checked_name(value: object) -> str | None:
    """Return `value` if it is a string or None; raise a TypeError otherwise."""
    if value is not None and not isinstance(value, str):
        raise TypeError(f"name must be a string or None, received {value!r}")
    return value


def checked_projection(value: object, hidden_size: int) -> int:
    """Return `value` as a projection size below `hidden_size`; 0 means none.

    Raises
    ------
    TypeError
        If it is no integer.
    ValueError
        If it is negative or not below `hidden_size`.
    """
    size = checked_integer("proj_size", value, 0)
    if size >= hidden_size:
        raise ValueError(
            f"proj_size must be smaller than hidden_size {hidden_size}, received {size}"
        )
    return size


def seeded_generator(seed: object) -> numpy.random.Generator:
    """Return a generator for `seed`, which is None or an integer that is not negative."""
    return numpy.random.default_rng(None if seed is None else checked_integer("seed", seed, 0))


def checked_array(
    argument: str,
    value: object,
    reference: Array,
    owner: str,
    shape: tuple[int | str | None, ...],
    dtype: "numpy.dtype[Any] | None" = None,
) -> Array:
    """Return `value` as an array of NumPy or CuPy, if it is one as wanted.

    Parameters
    ----------
    argument : str
        Name of the argument.
    value : object
        What came; arrays of other libraries are taken in (see `cupy_lstm.interchange`).
    reference : array
        Has the module, device and dtype that are wanted.
    owner : str
        What `reference` is, in the plural: ``"the weights"``.
    shape : tuple of int, str or None
        Wanted shape; a name, or None, where any size will do.
    dtype : numpy.dtype, optional
        Wanted dtype; default that of `reference`.

    Raises
    ------
    TypeError
        If it is no array, or not where `reference` is.
    ValueError
        If dtype or shape differ.
    """
    array = array_beside(argument, value, reference, owner)
    wanted = reference.dtype if dtype is None else dtype
    if array.dtype != wanted:
        why = "" if dtype is None or dtype == reference.dtype else f", so it must have {wanted}"
        raise ValueError(
            f"{argument} has dtype {array.dtype}, but {owner} have {reference.dtype}{why}: "
            f"convert it with .astype({str(wanted)!r})"
        )
    fits = len(shape) == array.ndim and all(
        not isinstance(expected, int) or expected == size
        for expected, size in zip(shape, array.shape, strict=True)
    )
    if not fits:
        sizes = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(f"{argument} has shape {list(array.shape)}, but must have shape [{sizes}]")
    return array


def checked_pair(argument: str, value: object, what: str = "(h, c)") -> tuple[Any, Any]:
    """Return `value` as a pair.

    Raises
    ------
    TypeError
        If it is neither tuple nor list.
    ValueError
        If it has not two elements.
    """
    if not isinstance(value, tuple | list):
        raise TypeError(f"{argument} must be a tuple {what}, received {type(value).__name__}")
    if len(value) != 2:
        raise ValueError(f"{argument} must be a tuple {what}, received {len(value)} elements")
    return value[0], value[1]
