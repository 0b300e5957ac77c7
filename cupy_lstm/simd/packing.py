"""Weights in the order in which a register tile reads them.

A *block* is one vector of neighbouring columns, and a packed matrix of K terms holds K rows of a
few blocks, so that a tile walks through it from first to last. J = ceil(H / lanes) blocks make
H columns; what is beyond a last column is zero.

============ ====================================================================
by units     [J][K][4][lanes]: block j of all four gates side by side, K = I or P;
             a tile's columns are the gates i, f, g, o of the same units
by columns   panels of [K][4][lanes], the last one of as many blocks as are left;
             the panel that begins with block v lies v * K vectors from the start
============ ====================================================================

The gates of a row are laid out as [J][4][lanes] everywhere in this engine.
"""

from typing import Any, NamedTuple

from numba import njit

from cupy_lstm.simd.memory import load, load_first, read_job, store, store_first, transpose
from cupy_lstm.simd.vector import itemsize, lane_count, splat


class PackingJob(NamedTuple):
    """A weight to pack, or a packed sum to be added to one.

    Attributes
    ----------
    weight
        Address of the weight.
    other
        Address of a second vector, of a scratch block where one is unpacked, or 0.
    rows, columns
        Sizes of the weight: H in place of 4H rows.
    first, last
        The blocks to do, where the work can be divided.
    packed
        Address of the packed weight.
    terms
        Terms of a packed sum, the columns of the weight and what may be behind them.
    begins
        Whether a weight is set to a packed sum, not added to.
    """

    weight: int
    other: int
    rows: int
    columns: int
    first: int
    last: int
    packed: int
    terms: int
    begins: int


@njit(nogil=True)
def pack_by_units(lanes: Any, place: int) -> None:
    """Pack a matrix [4H,K] by units, some of its blocks; a product transposes it."""
    job = read_job(PackingJob, place)
    weight, units, terms, packed = job.weight, job.rows, job.columns, job.packed
    count, size = lane_count(lanes), itemsize(lanes)
    vector = count * size
    for j in range(job.first, job.last):
        rows = min(count, units - j * count)
        for gate in range(4):
            source = weight + (gate * units + j * count) * terms * size
            target = packed + (j * terms * 4 + gate) * vector
            for k in range(0, terms, count):
                transpose(
                    lanes,
                    source + k * size,
                    terms * size,
                    rows,
                    min(count, terms - k),
                    target + k * 4 * vector,
                    4 * vector,
                )


@njit(nogil=True)
def unpack_by_units(lanes: Any, place: int) -> None:
    """Add a matrix packed by units, some of its blocks, to a matrix [4H,K], or set that to it."""
    job = read_job(PackingJob, place)
    out, units, terms, packed, scratch = job.weight, job.rows, job.columns, job.packed, job.other
    panel = job.terms * 4 * lane_count(lanes) * itemsize(lanes)
    count, size = lane_count(lanes), itemsize(lanes)
    vector = count * size
    for j in range(job.first, job.last):
        rows = min(count, units - j * count)
        for gate in range(4):
            source = packed + j * panel + gate * vector
            target = out + (gate * units + j * count) * terms * size
            for k in range(0, terms, count):
                columns = min(count, terms - k)
                transpose(
                    lanes, source + k * 4 * vector, 4 * vector, columns, count, scratch, vector
                )
                for r in range(rows):
                    row = target + (r * terms + k) * size
                    total = load(lanes, scratch + r * vector)
                    if job.begins == 0:
                        total = load_first(lanes, row, columns) + total
                    store_first(row, total, columns)


@njit(nogil=True)
def pack_bias(lanes: Any, place: int) -> None:
    """Pack the sum of two vectors [4H] as the gates of a row; an address of 0 is a zero vector."""
    job = read_job(PackingJob, place)
    units = job.rows
    count, size = lane_count(lanes), itemsize(lanes)
    for j in range(-(-units // count)):
        there = min(count, units - j * count)
        for gate in range(4):
            offset = (gate * units + j * count) * size
            total = splat(lanes, 0.0)
            if job.weight != 0:
                total = load_first(lanes, job.weight + offset, there)
            if job.other != 0:
                total = total + load_first(lanes, job.other + offset, there)
            store(job.packed + (j * 4 + gate) * count * size, total)


@njit(nogil=True)
def unpack_bias(lanes: Any, place: int) -> None:
    """Add the gates of a row to a vector [4H], or set that to them."""
    job = read_job(PackingJob, place)
    units = job.rows
    count, size = lane_count(lanes), itemsize(lanes)
    for j in range(-(-units // count)):
        there = min(count, units - j * count)
        for gate in range(4):
            target = job.weight + (gate * units + j * count) * size
            total = load(lanes, job.packed + (j * 4 + gate) * count * size)
            if job.begins == 0:
                total = load_first(lanes, target, there) + total
            store_first(target, total, there)


@njit(nogil=True)
def panel_width(block: int, blocks: int) -> int:
    """Return how many blocks the panel has that begins with `block`: 4, or what is left."""
    return min(4, blocks - block)


@njit(nogil=True)
def pack_gate_rows(lanes: Any, place: int) -> None:
    """Pack a matrix [4H,N] by columns, its rows in the order of the gates of a row: K = 4JV.

    Of its blocks some, the first a multiple of four, the last another one or the end.
    """
    job = read_job(PackingJob, place)
    weight, units, columns = job.weight, job.rows, job.columns
    count, size = lane_count(lanes), itemsize(lanes)
    vector = count * size
    groups, blocks = -(-units // count), -(-columns // count)
    terms = groups * 4 * count
    v = job.first
    while v < job.last:
        width = panel_width(v, blocks)
        target = job.packed + v * terms * vector
        for j in range(groups):
            for gate in range(4):
                for lane in range(count):
                    unit = j * count + lane
                    source = weight + (gate * units + unit) * columns * size
                    for b in range(v, v + width):
                        if unit < units:
                            there = min(count, columns - b * count)
                            store(target, load_first(lanes, source + b * vector, there))
                        else:
                            store(target, splat(lanes, 0.0))
                        target += vector
        v += width


@njit(nogil=True)
def pack_columns(lanes: Any, place: int) -> None:
    """Pack a matrix [K,N] by columns."""
    job = read_job(PackingJob, place)
    weight, terms, columns = job.weight, job.rows, job.columns
    count, size = lane_count(lanes), itemsize(lanes)
    vector = count * size
    blocks = -(-columns // count)
    v = 0
    while v < blocks:
        width = panel_width(v, blocks)
        target = job.packed + v * terms * vector
        for k in range(terms):
            for b in range(v, v + width):
                there = min(count, columns - b * count)
                store(target, load_first(lanes, weight + k * columns * size + b * vector, there))
                target += vector
        v += width


@njit(nogil=True)
def pack_columns_transposed(lanes: Any, place: int) -> None:
    """Pack the transpose of a matrix [N,K] by columns."""
    job = read_job(PackingJob, place)
    weight, columns, terms, packed = job.weight, job.rows, job.columns, job.packed
    count, size = lane_count(lanes), itemsize(lanes)
    vector = count * size
    blocks = -(-columns // count)
    v = 0
    while v < blocks:
        width = panel_width(v, blocks)
        for b in range(v, v + width):
            source = weight + b * count * terms * size
            target = packed + (v * terms + b - v) * vector
            for k in range(0, terms, count):
                transpose(
                    lanes,
                    source + k * size,
                    terms * size,
                    min(count, columns - b * count),
                    min(count, terms - k),
                    target + k * width * vector,
                    width * vector,
                )
        v += width
