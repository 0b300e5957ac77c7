"""The forward sweep of one direction with its products in the matrix unit.

As `cupy_lstm.simd.forward`, but a step's inputs and outputs are split and multiplied together,
while the state of the rows and units before is updated: vectors and the matrix unit work at once.
All weights are read at every step, so this is for those that fit the caches.
"""

from typing import Any, NamedTuple

from numba import njit

from cupy_lstm.simd.amx.split import groups_of, multiply_as_it_is, place_of_row, split_row
from cupy_lstm.simd.amx.unit import (
    NEAR_GROUPS,
    SIDE,
    STEP,
    add_terms,
    clear_sums,
    load_sums,
    release_tiles,
    store_sums,
    take_tiles,
)
from cupy_lstm.simd.barrier import meet
from cupy_lstm.simd.forward import ForwardJob, list_slots, put_step, update_units
from cupy_lstm.simd.memory import load, read, read_job, write
from cupy_lstm.simd.rows import active_rows, slot_beside


class TileJob(NamedTuple):
    """What a thread needs beside, in the matrix unit.

    Attributes
    ----------
    h
        Split outputs [2], after even and odd steps, of the thread's rows; threads that share those
        share them.
    x
        Scratch for the split inputs of the rows.
    odd, odd_rows
        Scratch for tables of the rows: whether the input at a step, or the first output, has
        infinite numbers or NaN.
    odd_weights
        Address of a word: whether the weights have some.
    sums
        Scratch for two times the sums of 16 rows and the gates of 16 units.
    configuration
        Scratch of 64 bytes.
    """

    h: int
    x: int
    odd: int
    odd_rows: int
    odd_weights: int
    sums: int
    configuration: int


SUMS = SIDE * 256
"""Bytes of the sums of 16 rows and the gates of 16 units."""


@njit(nogil=True)
def forward_tiles(lanes: Any, place: int) -> None:
    """Run a forward sweep."""
    job = read_job(ForwardJob, place)
    tiles = read_job(TileJob, job.tiles)
    gate_bytes, h_bytes = -(-job.hidden_size // 16) * 256, -(-job.hidden_size // 16) * 64
    rows = job.last_row - job.first_row
    inputs, gates = job.tables, job.tables + 8 * job.chunk * rows
    groups = groups_of(job.hidden_size)
    buffer = -(-rows // SIDE) * groups * STEP
    take_tiles(tiles.configuration)
    # Threads that share rows write the same here.
    for row in range(rows):
        source = job.h + (job.first_row + row) * h_bytes
        target = place_of_row(tiles.h, row, groups)
        odd = split_row(lanes, source, 0, job.hidden_size, target)
        split_row(lanes, source, 0, job.hidden_size, target + buffer)
        write(tiles.odd_rows + 8 * row, odd)
    meetings = 0
    if job.team > 1:
        meetings = 1
        meet(job.barrier, job.team)
    slot = job.first_slot
    for first in range(0, job.steps, job.chunk):
        last = min(first + job.chunk, job.steps)
        list_slots(job, first, last, slot, inputs, gates, gate_bytes)
        n = 0
        for s in range(first, last):
            time = job.time + s * job.direction
            active = min(job.last_row, active_rows(job.lengths, job.batch, time)) - job.first_row
            active = max(0, active)
            forward_tile_step(
                lanes, job, tiles, s, time, active, slot, inputs + 8 * n, gates + 8 * n
            )
            slot = slot_beside(job.lengths, job.batch, slot, time, job.direction)
            n += active
            if job.team > 1:
                meetings += 1
                meet(job.barrier, job.team * meetings)
    release_tiles()


@njit(nogil=True)
def split_inputs(lanes: Any, job: Any, tiles: Any, count: int, inputs: int) -> None:
    """Split the inputs of some rows."""
    groups = groups_of(job.input_size)
    for k in range(count):
        source, target = read(inputs + 8 * k), place_of_row(tiles.x, k, groups)
        write(tiles.odd + 8 * k, split_row(lanes, source, 0, job.input_size, target))


@njit(nogil=True)
def forward_tile_step(
    lanes: Any,
    job: Any,
    tiles: Any,
    s: int,
    time: int,
    active: int,
    slot: int,
    inputs: int,
    gates: int,
) -> None:
    """Run one step for the `active` first rows.

    Parameters
    ----------
    s, time, slot : int
        See `cupy_lstm.simd.forward.forward_step`.
    inputs, gates : int
        Tables of the inputs and the gates of these rows.
    """
    H, rows = job.hidden_size, job.last_row - job.first_row
    h_bytes, groups = -(-H // 16) * 64, groups_of(H)
    buffer = -(-rows // SIDE) * groups * STEP
    before, after = tiles.h + s % 2 * buffer, tiles.h + (1 - s % 2) * buffer
    h_from = job.h + (s % 2 * job.batch + job.first_row) * h_bytes
    h_to = job.h + ((1 - s % 2) * job.batch + job.first_row) * h_bytes
    slot += job.first_row
    x_groups = groups_of(job.input_size)
    split_inputs(lanes, job, tiles, active, inputs)
    blocks = job.last_unit_block - job.first_unit_block
    row_tiles = -(-active // SIDE)
    # The sums of some units are made while the state is updated with those of the ones before.
    first_row, last_row, j = 0, 0, 0
    for index in range(blocks * row_tiles + 1):
        next_j, r, all_groups = 0, 0, 0
        if index < blocks * row_tiles:
            block, r, all_groups = index // row_tiles, index % row_tiles * SIDE, x_groups + groups
            # Back and forth: the weights one step reads last, the next one finds in the cache.
            next_j = job.first_unit_block + (block if s % 2 == 0 else blocks - 1 - block)
        x, h = tiles.x + r // SIDE * x_groups * STEP, before + r // SIDE * groups * STEP
        x_columns = job.weight_ih + 4 * next_j * x_groups * STEP
        h_columns = job.weight_hh + 4 * next_j * groups * STEP
        sums, next_sums = tiles.sums + (1 - index % 2) * SUMS, tiles.sums + index % 2 * SUMS
        row, due = first_row, 0
        for first in range(0, all_groups, NEAR_GROUPS):
            for gate in range(4):
                if first == 0:
                    clear_sums()
                else:
                    load_sums(next_sums + 64 * gate, 256)
                for group in range(first, min(first + NEAR_GROUPS, all_groups)):
                    if group < x_groups:
                        columns = x_columns + (gate * x_groups + group) * STEP
                        add_terms(x + group * STEP, columns)
                    else:
                        k = group - x_groups
                        add_terms(h + k * STEP, h_columns + (gate * groups + k) * STEP)
                    due += last_row - first_row
                    while due >= 4 * all_groups:
                        due -= 4 * all_groups
                        update_row(lanes, job, j, row, sums, first_row, h_to, slot, gates)
                        row += 1
                store_sums(next_sums + 64 * gate, 256)
        while row < last_row:
            update_row(lanes, job, j, row, sums, first_row, h_to, slot, gates)
            row += 1
        first_row, last_row, j = r, min(active, r + SIDE), next_j
        if all_groups == 0:
            break
        for row in range(first_row, last_row):
            odd = read(tiles.odd + 8 * row) | read(tiles.odd_rows + 8 * row)
            odd |= read(tiles.odd_weights)
            for gate in range(4 if odd != 0 else 0):
                out, here = next_sums + (row - first_row) * 256 + 64 * gate, h_from + row * h_bytes
                multiply_as_it_is(lanes, here, H, h_columns + gate * groups * STEP, out, False)
                here, columns = read(inputs + 8 * row), x_columns + gate * x_groups * STEP
                multiply_as_it_is(lanes, here, job.input_size, columns, out, True)
    first, last = 16 * job.first_unit_block, min(16 * job.last_unit_block, H)
    for row in range(active):
        target = place_of_row(after, row, groups)
        split_row(lanes, h_to + row * h_bytes, first, last, target)
    put_step(lanes, job, time, active, h_to)


@njit(nogil=True)
def update_row(
    lanes: Any,
    job: Any,
    j: int,
    row: int,
    sums: int,
    first_row: int,
    h: int,
    slot: int,
    gates: int,
) -> None:
    """Update the state of 16 units of a row.

    Parameters
    ----------
    j : int
        The block of units.
    sums, first_row : int
        Address of the sums of a tile, and the row that comes first in it.
    h : int
        Address of the outputs of the first row, to be written.
    slot, gates : int
        The slot of the first row, and the table of the rows' gates.
    """
    c_bytes = -(-job.hidden_size // 16) * 64
    z, kept = read(gates + 8 * row) + j * 256, 0
    bias = job.bias + j * 256
    if job.cell_steps != 0:
        kept = job.cell_steps + (slot + row) * c_bytes + j * 64
    here = sums + (row - first_row) * 256
    update_units(
        lanes,
        load(lanes, here) + load(lanes, bias),
        load(lanes, here + 64) + load(lanes, bias + 64),
        load(lanes, here + 128) + load(lanes, bias + 128),
        load(lanes, here + 192) + load(lanes, bias + 192),
        min(16, job.hidden_size - 16 * j),
        job.c + (job.first_row + row) * c_bytes + j * 64,
        h + row * c_bytes + j * 64,
        z,
        kept,
    )
