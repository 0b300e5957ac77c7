"""Sums of outer products over all slots of one direction, compiled: the gradients of weights.

Slots are taken in the order in which they lie, some at a time. The right rows, which are the gates
in nearly all sums, lie far apart, at distances that let few of them into the first cache together.
So what a group of blocks has of them is copied once, and all sums take it from there.
"""

from typing import Any, NamedTuple

from numba import njit

from cupy_lstm.simd.memory import load, read_job, store, write
from cupy_lstm.simd.places import Places, slots_of_part, write_places
from cupy_lstm.simd.tile import LINE, multiply_tile
from cupy_lstm.simd.vector import itemsize, lane_count, tile_rows


class SumJob(NamedTuple):
    """One of some sums that have their right rows in common.

    Attributes
    ----------
    features
        Numbers in the left row of each slot.
    left
        Address of the `Places` of the left rows.
    table
        Scratch for a table of `ProductJob.chunk` slots.
    out, out_step, group_step
        Result for the first feature and block, bytes from feature to feature, and from one group
        of four blocks to the next.
    split
        Scratch for the split left rows of a sum in the matrix unit; see `cupy_lstm.simd.amx`.
    following
        Address of the next sum, or 0.
    """

    features: int
    left: int
    table: int
    out: int
    out_step: int
    group_step: int
    split: int
    following: int


class ProductJob(NamedTuple):
    """One thread's part of some sums over slots of the outer products of two rows.

    The results, packed by units or by columns, are cut into tiles of features and four blocks; the
    job is a range of them. Each is summed by one thread in an order that does not depend on the
    threads, nor on the ranges of steps a sequence is cut into: `steps` of them at a time, the last
    ones first, as a backward pass comes to them.

    Attributes
    ----------
    steps
        Steps of a part, counted from the first step.
    right, right_step, blocks
        Address of the right row of the first slot, bytes to the next, and blocks in it.
    first, last
        The range: tiles of one sum after the other within groups of four blocks.
    tiles
        How many tiles all sums have in a group.
    chunk
        Slots to take at once.
    rows
        Scratch for two tables of the rows of a tile.
    copy
        Scratch for four vectors of `chunk` slots.
    sums
        Address of the first `SumJob`.
    begin
        Address of a group of zero vectors where the sums begin here, else 0.
    unit
        Address of the `TileProductJob` of sums in the matrix unit.
    """

    steps: int
    right: int
    right_step: int
    blocks: int
    first: int
    last: int
    tiles: int
    chunk: int
    rows: int
    copy: int
    sums: int
    begin: int
    unit: int


@njit(nogil=True)
def add_outer_products(lanes: Any, place: int) -> None:
    """Add some tiles of some sums of outer products."""
    job = read_job(ProductJob, place)
    left = read_job(Places, read_job(SumJob, job.sums).left)
    parts = -(-(left.last_time - left.time) // job.steps)
    begins = job.begin != 0
    for part in range(parts - 1, -1, -1):
        position, last = slots_of_part(left, part, job.steps)
        for start in range(position[1], last, job.chunk):
            n = min(job.chunk, last - start)
            position = find_left_rows(job, start, n, position)
            _add_slots(lanes, job, start, n, begins, start + n < last)
            begins = False


@njit(nogil=True)
def find_left_rows(job: Any, start: int, n: int, position: Any) -> Any:
    """Write the addresses of the left rows of `n` slots from `start` to the tables of all sums.

    `position` is that of this slot; returns that of the slot behind the last one.
    """
    behind, place = position, job.sums
    while place != 0:
        one = read_job(SumJob, place)
        behind = write_places(read_job(Places, one.left), start, n, position, one.table)
        place = one.following
    return behind


@njit(nogil=True)
def _add_slots(lanes: Any, job: Any, start: int, n: int, begins: bool, more: bool) -> None:
    """Add the products of `n` slots from `start`, whose left rows are in the tables.

    `more` is whether the slots behind them follow.
    """
    lane, size, most = lane_count(lanes), itemsize(lanes), tile_rows(lanes)
    vector = lane * size
    outputs = job.rows
    starts = outputs + 8 * most if begins else outputs
    for r in range(most):
        write(outputs + 8 * most + 8 * r, job.begin)
    tile = job.first
    while tile < job.last:
        group = tile // job.tiles
        columns = min(4, job.blocks - 4 * group)
        source = job.right + start * job.right_step + group * 4 * vector
        for k in range(n):
            for v in range(columns):
                store(
                    job.copy + (4 * k + v) * vector,
                    load(lanes, source + k * job.right_step + v * vector),
                )
        # What is copied next is fetched by the first tiles of this group, a line of each slot each.
        ahead, begun, fetched = source + 4 * vector, tile, 4 * vector
        if (group + 1) * job.tiles >= job.last:
            ahead = job.right + (start + n) * job.right_step + job.first // job.tiles * 4 * vector
            fetched = 4 * vector if more else 0
        first_tile, place = group * job.tiles, job.sums
        end = min(job.last, first_tile + job.tiles)
        while place != 0:
            one = read_job(SumJob, place)
            tiles = -(-one.features // most)
            while tile < min(end, first_tile + tiles):
                feature = (tile - first_tile) * most
                rows = min(most, one.features - feature)
                out = one.out + group * one.group_step + feature * one.out_step
                for r in range(rows):
                    write(outputs + 8 * r, out + r * one.out_step)
                line, step = job.copy, 0
                if (tile - begun) * LINE < fetched:
                    line, step = ahead + (tile - begun) * LINE, job.right_step
                if columns == 4:
                    multiply_tile(
                        lanes, 4, True, rows, n, one.table, feature * size, job.copy, 4 * vector,
                        0, starts, outputs, 0, vector, line, step,
                    )  # fmt: skip
                else:
                    for v in range(columns):
                        multiply_tile(
                            lanes, 1, True, rows, n, one.table, feature * size,
                            job.copy + v * vector, 4 * vector, 0, starts, outputs, v * vector,
                            vector, job.copy, 0,
                        )  # fmt: skip
                tile += 1
            first_tile += tiles
            place = one.following
