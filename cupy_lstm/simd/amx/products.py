"""The gradients of weights and input with their products in the matrix unit.

As `cupy_lstm.simd.outer_products` and `input_gradient`, but for the products: for some slots at a
time, what belongs to them is split, the left rows of sums transposed, as slots are their terms.
"""

from typing import Any, NamedTuple

from numba import njit

from cupy_lstm.simd.amx.backward import split_gates
from cupy_lstm.simd.amx.split import (
    groups_of,
    multiply_as_it_is,
    number,
    place_of_row,
    store_split,
)
from cupy_lstm.simd.amx.unit import (
    PART,
    SIDE,
    STEP,
    TERMS,
    add_products,
    clear_sums,
    load_sums,
    multiply_tiles,
    release_tiles,
    store_sums,
    take_tiles,
)
from cupy_lstm.simd.barrier import add
from cupy_lstm.simd.input_gradient import InputGradientJob
from cupy_lstm.simd.memory import (
    load,
    load_first,
    read,
    read_job,
    store,
    store_first,
    transpose,
    write,
)
from cupy_lstm.simd.outer_products import ProductJob, SumJob, find_left_rows
from cupy_lstm.simd.places import Places, begin, find_slot, slots_of_part, write_places
from cupy_lstm.simd.vector import fused, splat


class TileProductJob(NamedTuple):
    """What a thread needs beside for sums of outer products, in the matrix unit.

    Of each sum, `SumJob.split` is scratch for the left rows of `chunk` slots, split and transposed,
    of features in whole tiles.

    Attributes
    ----------
    right
        Scratch for the split right rows of `chunk` slots, of the gates of 16 units.
    blocks
        Scratch for 48 vectors.
    configuration
        Scratch of 64 bytes.
    """

    right: int
    blocks: int
    configuration: int


@njit(nogil=True)
def add_tile_products(lanes: Any, place: int) -> None:
    """Add the outer products for some blocks of units; `ProductJob.first` and `last` are those."""
    job = read_job(ProductJob, place)
    unit = read_job(TileProductJob, job.unit)
    left = read_job(Places, read_job(SumJob, job.sums).left)
    take_tiles(unit.configuration)
    parts = -(-(left.last_time - left.time) // job.steps)
    begins = job.begin != 0
    for part in range(parts - 1, -1, -1):
        position, last = slots_of_part(left, part, job.steps)
        for start in range(position[1], last, job.chunk):
            n = min(job.chunk, last - start)
            position = find_left_rows(job, start, n, position)
            odd, place = 0, job.sums
            while place != 0:
                one = read_job(SumJob, place)
                odd |= _split_left(lanes, one, n, unit.blocks)
                place = one.following
            for j in range(job.first, job.last):
                source = job.right + start * job.right_step + j * 256
                odd_here = odd | _split_slots(lanes, source, job.right_step, n, unit.right)
                place = job.sums
                while place != 0:
                    one = read_job(SumJob, place)
                    if odd_here == 0:
                        _add_tiles(one, unit.right, n, j, begins)
                    else:
                        _add_as_they_are(lanes, one, source, job.right_step, n, j, begins)
                    place = one.following
            begins = False
    release_tiles()


@njit(nogil=True)
def _split_left(lanes: Any, one: Any, n: int, scratch: int) -> int:
    """Split the left rows of `n` slots, whose addresses are in the sum's table."""
    groups = groups_of(n)
    odd = 0
    for tile in range(-(-one.features // SIDE)):
        for group in range(groups):
            odd |= _split_transposed(
                lanes,
                one.table + 8 * TERMS * group,
                n - TERMS * group,
                64 * tile,
                one.features - SIDE * tile,
                scratch,
                one.split + (tile * groups + group) * STEP,
            )
    return odd


@njit(nogil=True)
def _add_tiles(one: Any, right: int, n: int, j: int, begins: bool) -> None:
    """Add the products of `n` slots to a sum, for a block of units."""
    groups = groups_of(n)
    for tile in range(-(-one.features // SIDE)):
        out = one.out + j * one.group_step + tile * SIDE * one.out_step
        rows = one.split + tile * groups * STEP
        for gate in range(4):
            if begins:
                clear_sums()
            else:
                load_sums(out + 64 * gate, one.out_step)
            add_products(rows, right + gate * groups * STEP, groups)
            store_sums(out + 64 * gate, one.out_step)


@njit(nogil=True)
def _split_transposed(
    lanes: Any,
    rows: int,
    count: int,
    offset: int,
    features: int,
    scratch: int,
    target: int,
) -> int:
    """Split the transpose of 16 features of 32 slots.

    Parameters
    ----------
    rows, count : int
        Table of the slots' rows, and how many there are; zeros stand for the others.
    offset, features : int
        Bytes from a row to the first feature, and how many there are.
    scratch : int
        Scratch for 48 vectors.
    target : int
        Address of the tile of rows.
    """
    odd = 0
    for half in range(2):
        for k in range(16):
            values = splat(lanes, 0.0)
            if 16 * half + k < count:
                row = read(rows + 8 * (16 * half + k)) + offset
                values = load_first(lanes, row, features)
            store(scratch + 2048 + 64 * k, values)
        transpose(lanes, scratch + 2048, 64, 16, 16, scratch + 1024 * half, 64)
    for k in range(16):
        first, second = load(lanes, scratch + 64 * k), load(lanes, scratch + 1024 + 64 * k)
        odd |= store_split(first, second, target + k * 64, PART)
    return odd


@njit(nogil=True)
def _split_slots(lanes: Any, source: int, step: int, count: int, target: int) -> int:
    """Split the gates of a block of units of some slots, as terms of split columns."""
    odd, groups = 0, groups_of(count)
    for group in range(groups):
        for k in range(TERMS * group, TERMS * group + 16):
            for gate in range(4):
                first, second = splat(lanes, 0.0), splat(lanes, 0.0)
                here = source + k * step + 64 * gate
                if k < count:
                    first = load(lanes, here)
                if k + 16 < count:
                    second = load(lanes, here + 16 * step)
                place = target + (gate * groups + group) * STEP + k % 16 * 64
                odd |= store_split(first, second, place, PART)
    return odd


@njit(nogil=True)
def _add_as_they_are(
    lanes: Any, one: Any, source: int, step: int, n: int, j: int, begins: bool
) -> None:
    """Add the products of slots that have infinite numbers, which cannot be split."""
    for row in range(-(-one.features // SIDE) * SIDE):
        for gate in range(0, 256, 64):
            place = one.out + j * one.group_step + row * one.out_step + gate
            total = splat(lanes, 0.0) if begins else load(lanes, place)
            if row >= one.features:
                store(place, total)  # of no feature, but read with the others
                continue
            for k in range(n):
                feature = read(one.table + 8 * k) + 4 * row
                dz = load(lanes, source + k * step + gate)
                total = fused(number(lanes, feature), dz, total)
            store(place, total)


class TileInputJob(NamedTuple):
    """What a thread needs beside for the gradient of the input, in the matrix unit.

    Attributes
    ----------
    dz
        Scratch for the split gates of `chunk` slots, a multiple of 16, in both directions.
    odd
        Scratch for a table of `chunk` slots.
    odd_weights
        Address of a word: whether the weights have infinite numbers or NaN.
    sums
        Scratch for two times the sums of 16 rows and all columns.
    configuration
        Scratch of 64 bytes.
    """

    dz: int
    odd: int
    odd_weights: int
    sums: int
    configuration: int


@njit(nogil=True)
def add_tile_input_gradient(lanes: Any, place: int) -> None:
    """Compute the gradient of the input of some slots and add it, or set it."""
    job = read_job(InputGradientJob, place)
    targets, tiles = read_job(Places, job.targets), read_job(TileInputJob, job.tiles)
    groups, columns = job.terms // TERMS, -(-job.columns // 16)
    places, sums_step = job.tables, 64 * columns
    side, sides = job.chunk // SIDE * groups * STEP, 2 if job.gates_beside != 0 else 1
    take_tiles(tiles.configuration)
    position = begin(targets)
    while True:
        first = add(job.counter, 1) * job.chunk
        if first >= job.slots:
            break
        n = min(job.chunk, job.slots - first)
        position = find_slot(targets, first, position)
        position = write_places(targets, first, n, position, places)
        for row in range(n):
            odd, at = read(tiles.odd_weights), (first + row) * job.gate_bytes
            split = place_of_row(tiles.dz, row, groups)
            odd |= split_gates(lanes, job.gates + at, 0, groups // 2, split)
            if sides == 2:
                odd |= split_gates(lanes, job.gates_beside + at, 0, groups // 2, split + side)
            write(tiles.odd + 8 * row, odd)
        for r in range(0, n, SIDE):
            rows, beside = tiles.dz + r // SIDE * groups * STEP, tiles.sums + SIDE * sums_step
            multiply_tiles(rows, groups, job.weight_ih, columns, tiles.sums, sums_step)
            if sides == 2:
                weight = job.weight_ih_beside
                multiply_tiles(rows + side, groups, weight, columns, beside, sums_step)
            for row in range(r, min(n, r + SIDE)):
                at, odd = (first + row) * job.gate_bytes, read(tiles.odd + 8 * row)
                for block in range(columns):
                    out = tiles.sums + (row - r) * sums_step + 64 * block
                    offset = block * groups * STEP
                    if odd != 0:
                        dz = job.gates + at
                        multiply_as_it_is(lanes, dz, job.terms, job.weight_ih + offset, out, False)
                    total = load(lanes, out)
                    if sides == 2:
                        out += SIDE * sums_step
                        if odd != 0:
                            dz, weight = job.gates_beside + at, job.weight_ih_beside + offset
                            multiply_as_it_is(lanes, dz, job.terms, weight, out, False)
                        total = total + load(lanes, out)
                    target = read(places + 8 * row) + 64 * block
                    there = min(16, job.columns - 16 * block)
                    if job.begins == 0:
                        total = load_first(lanes, target, there) + total
                    store_first(target, total, there)
    release_tiles()
