"""Weights as split columns."""

from typing import Any, NamedTuple

from numba import njit

from cupy_lstm.simd.amx.split import groups_of, store_split
from cupy_lstm.simd.amx.unit import PART, STEP, TERMS
from cupy_lstm.simd.memory import load, load_first, read_job, store, transpose, write
from cupy_lstm.simd.vector import splat


class SplitJob(NamedTuple):
    """A weight [4H,N] to split.

    Attributes
    ----------
    weight
        Address of the weight.
    units, columns
        H and N.
    first, last
        The blocks of 16 units, or of 16 columns, to do.
    packed
        Address of the split columns.
    odd
        Address of a word that is set if the weight has infinite numbers or NaN.
    scratch
        Scratch for 32 vectors.
    """

    weight: int
    units: int
    columns: int
    first: int
    last: int
    packed: int
    odd: int
    scratch: int


@njit(nogil=True)
def split_by_units(lanes: Any, place: int) -> None:
    """Split the transpose, in the order of the gates of a row: i, f, g, o of 16 units each."""
    job = read_job(SplitJob, place)
    terms, odd = job.columns, 0
    for j in range(job.first, job.last):
        for gate in range(4):
            source = job.weight + (gate * job.units + 16 * j) * terms * 4
            for k in range(0, terms, TERMS):
                for half in range(2):
                    block, there = job.scratch + 1024 * half, terms - k - 16 * half
                    for row in range(max(0, there), 16):
                        store(block + 64 * row, splat(lanes, 0.0))
                    transpose(
                        lanes,
                        source + (k + 16 * half) * 4,
                        terms * 4,
                        min(16, job.units - 16 * j),
                        min(16, there),
                        block,
                        64,
                    )
                tile = 4 * j + gate
                target = job.packed + (tile * groups_of(terms) + k // TERMS) * STEP
                for pair in range(0, 1024, 64):
                    odd |= store_split(
                        load(lanes, job.scratch + pair),
                        load(lanes, job.scratch + 1024 + pair),
                        target + pair,
                        PART,
                    )
    if odd != 0:
        write(job.odd, 1)


@njit(nogil=True)
def split_by_columns(lanes: Any, place: int) -> None:
    """Split the matrix, its terms in the order of the gates of a row: i with f, and g with o."""
    job = read_job(SplitJob, place)
    groups, odd = 2 * -(-job.units // 16), 0
    zero = splat(lanes, 0.0)
    for block in range(job.first, job.last):
        tile = job.packed + block * groups * STEP
        there, column = job.columns - 16 * block, 64 * block
        for unit in range(16 * (groups // 2)):
            for half in range(2):
                first, second = zero, zero
                if unit < job.units:
                    row = job.weight + (2 * half * job.units + unit) * job.columns * 4 + column
                    first = load_first(lanes, row, there)
                    second = load_first(lanes, row + job.units * job.columns * 4, there)
                target = tile + (unit // 16 * 2 + half) * STEP + unit % 16 * 64
                odd |= store_split(first, second, target, PART)
    if odd != 0:
        write(job.odd, 1)
