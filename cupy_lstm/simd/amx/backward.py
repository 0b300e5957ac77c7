"""The backward sweep of one direction with its products in the matrix unit.

As `cupy_lstm.simd.backward` without a projection, but for the product of a step: the gradients of
the pre-activations are split as they are computed.
"""

from typing import Any, NamedTuple

from numba import njit

from cupy_lstm.simd.amx.split import multiply_as_it_is, place_of_row, store_split
from cupy_lstm.simd.amx.unit import PART, SIDE, STEP, multiply_tiles, release_tiles, take_tiles
from cupy_lstm.simd.backward import BackwardJob, differentiate_row
from cupy_lstm.simd.barrier import meet
from cupy_lstm.simd.memory import load, read, read_job, store, write
from cupy_lstm.simd.rows import active_rows, slot_beside


class TileBackJob(NamedTuple):
    """What a thread needs beside, in the matrix unit.

    Attributes
    ----------
    dz
        Split gradients of the pre-activations [2], of even and odd steps, of the thread's rows;
        threads that share those share them, and one can be a step ahead of another.
    odd_rows
        Table of all rows, zeros to begin with: at which step, counted from the last one, something
        infinite or NaN came up in one. A thread that is a step ahead says so early.
    odd_weights
        Address of a word: whether the weights have infinite numbers or NaN.
    sums
        Scratch for the sums of 16 rows and all units.
    configuration
        Scratch of 64 bytes.
    """

    dz: int
    odd_rows: int
    odd_weights: int
    sums: int
    configuration: int


@njit(nogil=True)
def split_gates(lanes: Any, gates: int, first: int, last: int, target: int) -> int:
    """Split the blocks `first` to `last` of the gates of a row: i with f, g with o.

    Returns
    -------
    int
        Not zero if something there is infinite or NaN.
    """
    odd = 0
    for j in range(first, last):
        z, place = gates + j * 256, target + 2 * j * STEP
        odd |= store_split(load(lanes, z), load(lanes, z + 64), place, PART)
        odd |= store_split(load(lanes, z + 128), load(lanes, z + 192), place + STEP, PART)
    return odd


@njit(nogil=True)
def backward_tiles(lanes: Any, place: int) -> None:
    """Run a backward sweep."""
    job = read_job(BackwardJob, place)
    tiles = read_job(TileBackJob, job.tiles)
    blocks = -(-job.hidden_size // 16)
    gate_bytes, c_bytes, groups = blocks * 256, blocks * 64, 2 * blocks
    odd_rows = tiles.odd_rows + 8 * job.first_row
    buffer = -(-(job.last_row - job.first_row) // SIDE) * groups * STEP
    first_block, blocks_here = job.first_unit_block, job.last_unit_block - job.first_unit_block
    columns = job.weight_hh + first_block * groups * STEP
    take_tiles(tiles.configuration)
    first_slot = job.last_slot
    for meetings in range(1, job.steps + 1):
        s = job.steps - meetings
        time = job.time + s * job.direction
        active = min(job.last_row, active_rows(job.lengths, job.batch, time)) - job.first_row
        active = max(0, active)
        slot = first_slot + job.first_row
        split = tiles.dz + s % 2 * buffer
        before, before_slot = 0, 0
        if s > 0:
            before = active_rows(job.lengths, job.batch, time - job.direction) - job.first_row
            first_slot = slot_beside(job.lengths, job.batch, first_slot, time, -job.direction)
            before_slot = first_slot + job.first_row
        for row in range(active):
            batch_row = read(job.order + 8 * (job.first_row + row))
            c_before = job.c + (job.first_row + row) * c_bytes
            if row < before:
                c_before = job.cell_steps + (before_slot + row) * c_bytes
            dh_row = job.dh + (job.first_row + row) * c_bytes
            differentiate_row(lanes, job, time, row, batch_row, slot, c_before, dh_row)
            odd = split_gates(
                lanes,
                job.gates + (slot + row) * gate_bytes,
                job.first_unit_block,
                job.last_unit_block,
                place_of_row(split, row, groups),
            )
            if odd != 0 and read(odd_rows + 8 * row) == 0:
                write(odd_rows + 8 * row, meetings)
        if job.team > 1:
            meet(job.barrier, job.team * meetings)
        for r in range(0, active, SIDE):
            rows = split + r // SIDE * groups * STEP
            multiply_tiles(rows, groups, columns, blocks_here, tiles.sums, c_bytes)
            for row in range(r, min(active, r + SIDE)):
                sums = tiles.sums + (row - r) * c_bytes
                dh = job.dh + (job.first_row + row) * c_bytes + 64 * first_block
                since = read(odd_rows + 8 * row)
                odd = 0 < since <= meetings or read(tiles.odd_weights) != 0
                for block in range(blocks_here):
                    if odd:
                        gates = job.gates + (slot + row) * gate_bytes
                        weights, out = columns + block * groups * STEP, sums + 64 * block
                        multiply_as_it_is(lanes, gates, 64 * blocks, weights, out, False)
                    store(dh + 64 * block, load(lanes, sums + 64 * block))
    release_tiles()
