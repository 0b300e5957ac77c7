"""The register tile: a small matrix product whose sums stay in registers from first to last.

Everything that costs the engine time is this one loop. A tile has up to `Lanes.rows` rows and
1 to 4 vectors of columns: 24 sums where there are 32 registers, 12 where there are 16.
"""

from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from cupy_lstm.simd.memory import BYTE, POINTER, fetch_line, load_vector, pointer, store_vector
from cupy_lstm.simd.vector import (
    WORD,
    itemsize,
    lane_count,
    multiply_add,
    splat_number,
    tile_rows,
)

LINE = 64
"""Bytes of a cache line."""

NEAR = 2**20
"""Bytes of a packed matrix up to which it is left to stay in the second cache: fetching it ahead
would take of the cache's rate, which is what a product of few rows waits for."""


@intrinsic(prefer_literal=True)
def multiply_tile(
    context: Any,
    lanes: Any,
    columns: Any,
    by_step: Any,
    rows: Any,
    steps: Any,
    a: Any,
    a_step: Any,
    b: Any,
    b_step: Any,
    b_group: Any,
    start: Any,
    out: Any,
    offset: Any,
    column_step: Any,
    ahead: Any,
    ahead_step: Any,
) -> Any:
    """Compute ``out[r] = start[r] + sum_k A[r, k] B[k]`` for a tile of `rows` rows.

    Parameters
    ----------
    lanes : Lanes
        Kind of vector.
    columns : literal int
        Vectors of a row.
    by_step : literal bool
        How A is found. False: `a` is a table of the addresses of its rows, `a_step` the bytes
        between numbers of a row. True: `a` is a table of one address for each k, and `a_step`
        the bytes to add to it for the first row; the rows are neighbours.
    rows : int
        1 to `Lanes.rows`.
    steps : int
        Terms of the sum.
    b, b_step, b_group : int
        Address of the columns for k = 0, bytes from one k to the next, and from one group of four
        columns to the next.
    start, out : int
        Tables of the addresses of the rows to begin with and to write; may be the same.
    offset, column_step : int
        Bytes from those addresses to the first vector, and from one vector to the next.
    ahead, ahead_step : int
        Address of a cache line that will be read after this tile, and bytes from it to the next
        one, for as many lines as there are terms. A tile of many rows has time to fetch them.
    """
    vector, most = lanes.vector, lanes.lanes.rows
    width, transposed = columns.literal_value, bool(by_step.literal_value)
    width_in_bytes = vector.scalar.bitwidth // 8
    size = vector.count * width_in_bytes

    def lower(context: Any, builder: Any, kinds: Any, operands: Any) -> Any:
        rows, steps, a, a_step, b, b_step, b_group = operands[3:10]
        start, out, offset, column_step, ahead, ahead_step = operands[10:]

        def at(place: Any, distance: Any) -> Any:
            return builder.gep(place, [distance], source_etype=BYTE)

        def entry(table: Any, index: int) -> Any:
            place = at(pointer(builder, table), ir.Constant(WORD, 8 * index))
            return builder.load(place, align=8, typ=POINTER)

        end = builder.append_basic_block("tile_done")
        # Eight columns are for the few rows that leave room for them.
        largest = most // 2 if width == 8 else most
        cases = [builder.append_basic_block(f"tile_{count}") for count in range(1, largest + 1)]
        switch = builder.switch(rows, end)
        for count, case in enumerate(cases, 1):
            switch.add_case(ir.Constant(rows.type, count), case)
            builder.position_at_end(case)
            # From zero, as the start may be large: its digits would be lost in every term.
            sums = [cgutils.alloca_once(builder, vector.llvm) for _ in range(count * width)]
            for total in sums:
                builder.store(vector.constant(0.0), total)
            first = [] if transposed else [entry(a, r) for r in range(count)]
            with cgutils.for_range(builder, steps) as loop:
                k = loop.index
                if width == 4 and 2 * count > most:
                    place = at(pointer(builder, ahead), builder.mul(k, ahead_step))
                    fetch_line(builder, place)
                row = at(pointer(builder, b), builder.mul(k, b_step))
                groups = [row, at(row, b_group)][: -(-width // 4)]
                step = [
                    load_vector(builder, vector, at(group, ir.Constant(WORD, c * size)))
                    for group in groups
                    for c in range(min(width, 4))
                ]
                if transposed:
                    slot = at(pointer(builder, a), builder.mul(k, ir.Constant(WORD, 8)))
                    base = at(builder.load(slot, align=8, typ=POINTER), a_step)
                    places = [at(base, ir.Constant(WORD, r * width_in_bytes)) for r in range(count)]
                else:
                    distance = builder.mul(k, a_step)
                    places = [at(place, distance) for place in first]
                for r, place in enumerate(places):
                    number = builder.load(place, align=width_in_bytes, typ=vector.element)
                    factor = splat_number(builder, vector, number)
                    for c in range(width):
                        total = sums[r * width + c]
                        builder.store(
                            multiply_add(builder, vector, factor, step[c], builder.load(total)),
                            total,
                        )
            for r in range(count):
                source, target = (at(entry(table, r), offset) for table in (start, out))
                for c in range(width):
                    total = builder.load(sums[r * width + c])
                    total = builder.fadd(load_vector(builder, vector, source), total)
                    store_vector(builder, vector, total, target)
                    source, target = at(source, column_step), at(target, column_step)
            builder.branch(end)
        builder.position_at_end(end)
        return context.get_dummy_value()

    return types.void(lanes, columns, by_step, *[types.int64] * 13), lower


@njit(nogil=True)
def rows_at_once(lanes: Any, rows: int) -> int:
    """Return how many rows the tiles over some rows should have: about equal, as few as can be."""
    most: int = tile_rows(lanes)
    tiles = -(-rows // most)
    return -(-rows // tiles) if rows > 0 else 1


@njit(nogil=True)
def lines_ahead(tile: int, panel: int, panel_bytes: int, terms: int, others: int) -> Any:
    """Return `ahead` and `ahead_step` for a tile of a panel of four columns.

    The first tiles of a panel fetch the panel that follows, a line for each term each. The others,
    or all where nothing follows, fetch a single line that is there already, over and over.

    Parameters
    ----------
    tile : int
        Number of the tile within the panel.
    panel, panel_bytes, terms : int
        Address of the panel, its bytes and terms.
    others : int
        How many panels follow, or if negative, lie in front and are taken in that order.
    """
    first = tile * terms * LINE
    if others == 0 or first + terms * LINE > panel_bytes:
        return panel, 0
    return panel + first + (panel_bytes if others > 0 else -panel_bytes), LINE


@njit(nogil=True)
def multiply(
    lanes: Any,
    columns: int,
    rows: int,
    terms: int,
    a: int,
    packed: int,
    start: int,
    out: int,
    offset: int,
    ahead: int,
    ahead_step: int,
) -> None:
    """Compute a tile of rows, given by their addresses, and 1 to 4 or 8 columns of a packed matrix.

    Eight columns are two panels of four, one behind the other. `ahead` and `ahead_step` are those
    of `multiply_tile`.
    """
    size, vector = itemsize(lanes), lane_count(lanes) * itemsize(lanes)
    group = 4 * terms * vector
    if columns == 8:
        multiply_tile(
            lanes, 8, False, rows, terms, a, size, packed, 4 * vector, group,
            start, out, offset, vector, ahead, ahead_step,
        )  # fmt: skip
    elif columns == 4:
        multiply_tile(
            lanes, 4, False, rows, terms, a, size, packed, 4 * vector, group,
            start, out, offset, vector, ahead, ahead_step,
        )  # fmt: skip
    elif columns == 3:
        multiply_tile(
            lanes, 3, False, rows, terms, a, size, packed, 3 * vector, group,
            start, out, offset, vector, ahead, ahead_step,
        )  # fmt: skip
    elif columns == 2:
        multiply_tile(
            lanes, 2, False, rows, terms, a, size, packed, 2 * vector, group,
            start, out, offset, vector, ahead, ahead_step,
        )  # fmt: skip
    else:
        multiply_tile(
            lanes, 1, False, rows, terms, a, size, packed, vector, group,
            start, out, offset, vector, ahead, ahead_step,
        )  # fmt: skip
