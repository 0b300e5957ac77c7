"""How a sweep is divided among threads."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy

from cupy_lstm.backend import HostArray
from cupy_lstm.simd.amx.unit import SIDE
from cupy_lstm.simd.layout import Layout
from cupy_lstm.simd.rows import Rows

SMALL_BATCH = 4
"""Rows of a thread up to which threads share the rows and divide the units instead."""

LARGE_WEIGHTS = 2**20
"""Bytes of a direction's recurrent weights from which they do so whatever the batch: a core's
cache, 1 or 2 MB on most, holds half of them where it would not hold all."""


@dataclass(frozen=True)
class Share:
    """What one thread does of one direction: some rows, some blocks of units.

    Attributes
    ----------
    team : int
        Threads that share these rows.
    """

    direction: int
    first_row: int
    last_row: int
    first_block: int
    last_block: int
    team: int


def split(
    layout: Layout, rows: Sequence[Rows], threads: int, projected: bool, group: int
) -> list[list[Share]]:
    """Divide a sweep among threads; return the shares of each.

    Rows are independent, so each thread takes some through all steps. Where there are few, or the
    weights are large, each would read all weights at every step for little work; then threads
    take some units of all rows each, in groups of so many blocks, and meet after every step; but
    a projection needs all units.
    """
    B, D, blocks = layout.shape.B, layout.shape.D, layout.blocks
    team = min(threads // D, blocks // 4)
    rows_of_a_thread = B * D / threads
    weights = 4 * layout.c_width * layout.h_width * layout.itemsize
    divided = rows_of_a_thread <= SMALL_BATCH or weights >= LARGE_WEIGHTS
    # In the matrix unit a few rows take as long as 16.
    divided |= layout.tiles and team > -(-B // SIDE)
    if team > 1 and divided and not projected:
        return [
            [Share(d, 0, B, first, last, team)]
            for d in range(D)
            for first, last in block_ranges(blocks, team, group)
        ]
    parts = []
    for first, last in pairwise(even(numpy.concatenate([some.steps for some in rows]), threads)):
        limits = [(d, max(first - d * B, 0), min(last - d * B, B)) for d in range(D)]
        parts.append([Share(d, a, b, 0, blocks, 1) for d, a, b in limits if a < b])
    return parts


def block_ranges(blocks: int, threads: int, group: int) -> list[tuple[int, int]]:
    """Return the first and last block for each thread, in groups; no range is empty."""
    threads = max(1, min(threads, blocks // group))
    bounds = [group * (blocks // group * p // threads) for p in range(threads)] + [blocks]
    return list(pairwise(bounds))


def even(weights: HostArray, threads: int) -> list[int]:
    """Return the bounds of `threads` parts of about equal weight."""
    if threads == 1:
        return [0, len(weights)]
    ends = numpy.concatenate([[0], numpy.cumsum(numpy.maximum(weights, 1))])
    goals = ends[-1] * numpy.arange(threads + 1) / threads
    return [int(bound) for bound in numpy.searchsorted(ends, goals)]


def equal(count: int, threads: int) -> list[tuple[int, int]]:
    """Return the first and last of `count` things for each thread."""
    return list(pairwise(count * p // threads for p in range(threads + 1)))
