"""What is typical of each series: learned from its training part, never from what comes later."""

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType

import numpy

from cupy_lstm.backend import Array, array_module, to_host
from cupy_lstm.forecast.errors import DataError
from cupy_lstm.forecast.evaluation import change_scale
from cupy_lstm.forecast.panel import Panel

SCALES = (1e-100, 1e100)
"""Between these the squares of values are numbers."""

REACH = 1e15
"""Typical changes that a value may be away from zero: beyond, float64 does not resolve them."""


@dataclass(frozen=True)
class Norms:
    """The scales of several series, each with its features.

    Attributes
    ----------
    scale : array [S, C]
        Typical change of each column of each series, positive; 1 for a constant feature.
    centre : array [S, C]
        Mean of each column of each series.
    """

    scale: Array
    centre: Array

    def to(self, xp: ModuleType) -> "Norms":
        """Return the norms where arrays of `xp` are."""
        if xp is numpy:
            return Norms(to_host(self.scale), to_host(self.centre))
        return Norms(xp.asarray(self.scale), xp.asarray(self.centre))


def learn_norms(panel: Panel, training: Sequence[int], horizon: int) -> Norms:
    """Learn the norms from the first rows of each series; waits for a GPU.

    Parameters
    ----------
    panel : Panel
        The series.
    training : sequence of int
        For each series, how many of its rows to learn from; more than `horizon`.
    horizon : int
        Number of steps a forecast has.

    Raises
    ------
    DataError
        If a series is constant over these rows, or a column too extreme to be scaled.
    """
    xp = array_module(panel.values)
    parts = [rows[:count] for rows, count in zip(panel.rows(), training, strict=True)]
    constant = xp.stack([(part == part[0]).all(axis=0) for part in parts])
    scale = xp.stack([change_scale(part, horizon) for part in parts])
    scale = xp.where(constant, 1.0, scale)  # features alone: a constant series is refused below
    smallest, largest = SCALES
    host_scale = to_host(scale)
    extreme = ~((host_scale > smallest) & (host_scale < largest))
    for names, is_constant, is_extreme, rows in zip(
        panel.names, to_host(constant)[:, 0], extreme, training, strict=True
    ):
        if is_constant:
            raise DataError(
                f"{names[0]} is constant over the training part, "
                f"the first {rows} rows; there is nothing to learn from it"
            )
        if is_extreme.any():
            raise DataError(
                f"the values of {names[int(is_extreme.argmax())]} are too large or too small: "
                "change their unit"
            )
    norms = Norms(scale, xp.stack([part.mean(axis=0) for part in parts]))
    check_reach(panel, norms)
    return norms


def check_reach(panel: Panel, norms: Norms) -> None:
    """Raise where a value is so far out that the arithmetic would lose it; waits for a GPU.

    Raises
    ------
    DataError
        If a value is more than `REACH` scales from zero.
    """
    far = abs(panel.values) > REACH * norms.scale[panel.series]
    if far.any():
        raise DataError(f"{panel.first(far)}, which is out of all proportion to its usual change")
