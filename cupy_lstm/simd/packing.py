"""Weights in the order in which a register tile reads them.

A *block* is one vector of neighbouring columns, and a packed matrix of K terms holds K rows of a
few blocks, so that a tile walks through it from first to last. J = ceil(H / lanes) blocks make
H columns; what is beyond a last column is zero.

============ ====================================================================
by units     [J][K][4][lanes]: block j of all four gates side by side, K = I or P;
             a tile's columns are the gates i, f, g, o of the same units
by columns   panels of [K][4][lanes], then what is left in panels of [K][1][lanes];
             the panel that begins with block v lies v * K vectors from the start
============ ====================================================================

The gates of a row are laid out as [J][4][lanes] everywhere in this engine.
"""

from typing import Any

from numba import njit

from cupy_lstm.simd.memory import load, load_first, store, store_first, transpose
from cupy_lstm.simd.vector import itemsize, lane_count, splat


@njit(nogil=True)
def pack_by_units(
    lanes: Any, weight: int, terms: int, units: int, first: int, last: int, packed: int
) -> None:
    """Pack a matrix [4H,K] by units, its blocks `first` to `last`; a product transposes it."""
    count, size = lane_count(lanes), itemsize(lanes)
    vector = count * size
    for j in range(first, last):
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
def unpack_by_units(
    lanes: Any, packed: int, terms: int, units: int, first: int, last: int, scratch: int, out: int
) -> None:
    """Add a matrix packed by units, its blocks `first` to `last`, to a matrix [4H,K].

    `scratch` is the address of a square block.
    """
    count, size = lane_count(lanes), itemsize(lanes)
    vector = count * size
    for j in range(first, last):
        rows = min(count, units - j * count)
        for gate in range(4):
            source = packed + (j * terms * 4 + gate) * vector
            target = out + (gate * units + j * count) * terms * size
            for k in range(0, terms, count):
                columns = min(count, terms - k)
                transpose(
                    lanes, source + k * 4 * vector, 4 * vector, columns, count, scratch, vector
                )
                for r in range(rows):
                    place = target + (r * terms + k) * size
                    total = load_first(lanes, place, columns) + load(lanes, scratch + r * vector)
                    store_first(place, total, columns)


@njit(nogil=True)
def pack_bias(lanes: Any, first: int, second: int, units: int, packed: int) -> None:
    """Pack the sum of two vectors [4H] as the gates of a row; an address of 0 is a zero vector."""
    count, size = lane_count(lanes), itemsize(lanes)
    for j in range(-(-units // count)):
        there = min(count, units - j * count)
        for gate in range(4):
            offset = (gate * units + j * count) * size
            total = splat(lanes, 0.0)
            if first != 0:
                total = load_first(lanes, first + offset, there)
            if second != 0:
                total = total + load_first(lanes, second + offset, there)
            store(packed + (j * 4 + gate) * count * size, total)


@njit(nogil=True)
def unpack_bias(lanes: Any, packed: int, units: int, out: int) -> None:
    """Add the gates of a row to a vector [4H]."""
    count, size = lane_count(lanes), itemsize(lanes)
    for j in range(-(-units // count)):
        there = min(count, units - j * count)
        for gate in range(4):
            place = out + (gate * units + j * count) * size
            term = load(lanes, packed + (j * 4 + gate) * count * size)
            store_first(place, load_first(lanes, place, there) + term, there)


@njit(nogil=True)
def panel_width(block: int, blocks: int) -> int:
    """Return how many blocks the panel has that begins with `block`: 4, or 1 near the end."""
    return 4 if block % 4 == 0 and block + 4 <= blocks else 1


@njit(nogil=True)
def pack_gate_rows(
    lanes: Any, weight: int, units: int, columns: int, first: int, last: int, packed: int
) -> None:
    """Pack a matrix [4H,N] by columns, its rows in the order of the gates of a row: K = 4JV.

    Of its blocks those from `first`, a multiple of four, to `last`, another one or the end.
    """
    count, size = lane_count(lanes), itemsize(lanes)
    vector = count * size
    groups, blocks = -(-units // count), -(-columns // count)
    terms = groups * 4 * count
    v = first
    while v < last:
        width = panel_width(v, blocks)
        target = packed + v * terms * vector
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
def pack_columns(lanes: Any, weight: int, terms: int, columns: int, packed: int) -> None:
    """Pack a matrix [K,N] by columns."""
    count, size = lane_count(lanes), itemsize(lanes)
    vector = count * size
    blocks = -(-columns // count)
    v = 0
    while v < blocks:
        width = panel_width(v, blocks)
        target = packed + v * terms * vector
        for k in range(terms):
            for b in range(v, v + width):
                there = min(count, columns - b * count)
                store(target, load_first(lanes, weight + k * columns * size + b * vector, there))
                target += vector
        v += width


@njit(nogil=True)
def pack_columns_transposed(lanes: Any, weight: int, columns: int, terms: int, packed: int) -> None:
    """Pack the transpose of a matrix [N,K] by columns."""
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
