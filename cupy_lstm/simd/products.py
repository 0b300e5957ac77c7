"""Products over all slots of one direction, compiled: the gradients of weights and input.

Slots are taken in the order in which they lie. Addresses of what belongs to a slot are found for
a chunk of slots at a time, so nothing here grows with the number of steps.
"""

from typing import Any, NamedTuple

from numba import njit

from cupy_lstm.simd.barrier import add
from cupy_lstm.simd.matrix import multiply_rows
from cupy_lstm.simd.memory import load, load_first, read, read_job, store_first, write
from cupy_lstm.simd.rows import active_rows
from cupy_lstm.simd.tile import multiply_tile
from cupy_lstm.simd.vector import itemsize, lane_count, tile_rows

BY_ROW, BY_SLOT, BEFORE = 0, 1, 2
"""Kinds of `Places`."""

PANEL = 4
"""Vectors in a row of the widest panel."""


class Places(NamedTuple):
    """Where rows that belong to slots lie.

    Attributes
    ----------
    kind
        BY_ROW: in an array over times and batch rows. BY_SLOT: in the order of slots. BEFORE: in
        the order of slots, that of the same row one step earlier, or where there is none, in the
        order of rows.
    base, time_step, row_step
        Address of the first one; bytes from time to time, and from row to row.
    initial
        Address of the first of those in the order of rows.
    time, last_time, direction
        First time of the range and the one behind it; 1 or -1 from step to step.
    order, lengths, batch
        Tables of the batch row and the length of each of B rows.
    """

    kind: int
    base: int
    time_step: int
    row_step: int
    initial: int
    time: int
    last_time: int
    direction: int
    order: int
    lengths: int
    batch: int


@njit(nogil=True)
def begin(places: Any) -> Any:
    """Return the position of slot 0: its time, the first slot of that, and how many rows it has."""
    return places.time, 0, active_rows(places.lengths, places.batch, places.time)


@njit(nogil=True)
def begin_at(places: Any, time: int) -> Any:
    """Return the position of the first slot of a time of the range, or of the one behind it."""
    first = 0
    for row in range(places.batch):
        first += max(0, min(read(places.lengths + 8 * row), time) - places.time)
    return time, first, active_rows(places.lengths, places.batch, time)


@njit(nogil=True)
def find_slot(places: Any, slot: int, position: Any) -> Any:
    """Return the position of a slot, from that of one before."""
    time, first, active = position
    while slot >= first + active and time + 1 < places.last_time:
        first += active
        time += 1
        active = active_rows(places.lengths, places.batch, time)
    return time, first, active


@njit(nogil=True)
def write_places(places: Any, slot: int, count: int, position: Any, table: int) -> Any:
    """Write the addresses of what belongs to `count` slots from `slot` to a table.

    Parameters
    ----------
    position : tuple of int
        Of this slot.

    Returns
    -------
    tuple of int
        Position of the slot behind the last one.
    """
    time, first, active = position
    for k in range(count):
        while slot + k >= first + active:
            first += active
            time += 1
            active = active_rows(places.lengths, places.batch, time)
        row = slot + k - first
        if places.kind == BY_ROW:
            batch_row = read(places.order + 8 * row)
            place = places.base + time * places.time_step + batch_row * places.row_step
        elif places.kind == BY_SLOT:
            place = places.base + (slot + k) * places.row_step
        else:
            place = places.initial + row * places.row_step
            before = time - places.direction
            if places.time <= before and before < places.last_time:
                there = active_rows(places.lengths, places.batch, before)
                if row < there:
                    start = first - there if places.direction > 0 else first + active
                    place = places.base + (start + row) * places.row_step
        write(table + 8 * k, place)
    return time, first, active


class ProductJob(NamedTuple):
    """One thread's part of a sum over slots of the outer products of two rows.

    The result, packed by units or by columns, is cut into tiles; the job is a range of them. Each
    is summed by one thread in an order that does not depend on the threads, nor on the ranges of
    steps a sequence is cut into: `steps` of them at a time, the last ones first, as a backward
    pass comes to them.

    Attributes
    ----------
    steps
        Steps of a part, counted from the first step.
    features
        Numbers in the left row of each slot.
    right, right_step, blocks
        Address of the right row of the first slot, bytes to the next, and blocks in it.
    out, out_step
        Result for the first feature and block, and bytes from feature to feature.
    panel_step
        Bytes of the result from one group of four blocks to the next.
    first, last
        The range: tiles of features within groups of four blocks.
    tables
        Scratch for a table of `chunk` slots and two of the rows of a tile.
    chunk
        Slots to take at once.
    left
        Address of the `Places` of the left rows.
    begin
        Address of a group of zero vectors where the sums begin here, else 0.
    tiles
        Address of the `TileProductJob` of a sum in the matrix unit.
    """

    steps: int
    features: int
    right: int
    right_step: int
    blocks: int
    out: int
    out_step: int
    panel_step: int
    first: int
    last: int
    tables: int
    chunk: int
    left: int
    begin: int
    tiles: int


@njit(nogil=True)
def add_outer_products(lanes: Any, place: int) -> None:
    """Add some tiles of a sum of outer products."""
    job = read_job(ProductJob, place)
    left = read_job(Places, job.left)
    parts = -(-(left.last_time - left.time) // job.steps)
    begins = job.begin != 0
    for part in range(parts - 1, -1, -1):
        position, last = slots_of_part(left, part, job.steps)
        for start in range(position[1], last, job.chunk):
            n = min(job.chunk, last - start)
            position = write_places(left, start, n, position, job.tables)
            _add_slots(lanes, job, start, n, begins)
            begins = False


@njit(nogil=True)
def slots_of_part(left: Any, part: int, steps: int) -> Any:
    """Return the position of the first slot of a part of so many steps, and the one behind it."""
    if left.direction > 0:
        time = left.time + part * steps
        behind = min(time + steps, left.last_time)
    else:
        behind = left.last_time - part * steps
        time = max(behind - steps, left.time)
    _, last, _ = begin_at(left, behind)
    return begin_at(left, time), last


@njit(nogil=True)
def _add_slots(lanes: Any, job: Any, start: int, n: int, begins: bool) -> None:
    """Add the products of `n` slots from `start`, whose left rows are in the job's table."""
    lane, size, most = lane_count(lanes), itemsize(lanes), tile_rows(lanes)
    vector = lane * size
    tiles = -(-job.features // most)
    sources, outputs = job.tables, job.tables + 8 * job.chunk
    starts = outputs + 8 * most if begins else outputs
    for r in range(most):
        write(outputs + 8 * most + 8 * r, job.begin)
    for index in range(job.first, job.last):
        group, feature = index // tiles, index % tiles * most
        rows = min(most, job.features - feature)
        out = job.out + group * job.panel_step + feature * job.out_step
        for r in range(rows):
            write(outputs + 8 * r, out + r * job.out_step)
        right = job.right + start * job.right_step + group * 4 * vector
        if 4 * group + 4 <= job.blocks:
            multiply_tile(
                lanes, 4, True, rows, n, sources, feature * size, right, job.right_step,
                0, starts, outputs, 0, vector, right, 0,
            )  # fmt: skip
        else:
            for v in range(job.blocks - 4 * group):
                multiply_tile(
                    lanes, 1, True, rows, n, sources, feature * size, right + v * vector,
                    job.right_step, 0, starts, outputs, v * vector, vector, right, 0,
                )  # fmt: skip


class InputGradientJob(NamedTuple):
    """One thread's part of the gradient of the input: chunks of slots, as many as it can take.

    Attributes
    ----------
    counter
        The next chunk that no thread has taken. A core that is slower than another, or was given
        more before, takes fewer.
    chunk, slots
        Slots of a chunk, and of all.
    gates, gates_beside, gate_bytes
        Gradients of the pre-activations of the first slot, in both directions or 0 for the
        second, and bytes to the next slot.
    weight_ih, weight_ih_beside
        Packed by columns.
    terms, columns
        Numbers in the gates of a row, and I.
    zeros
        A row of zeros.
    tables, scratch
        Scratch for four tables of `chunk` slots, and for as many rows of a panel.
    targets
        Address of the `Places` of the gradient.
    tiles
        Address of the `TileInputJob` of a product in the matrix unit.
    """

    counter: int
    chunk: int
    slots: int
    gates: int
    gates_beside: int
    gate_bytes: int
    weight_ih: int
    weight_ih_beside: int
    terms: int
    columns: int
    zeros: int
    tables: int
    scratch: int
    targets: int
    tiles: int


@njit(nogil=True)
def add_input_gradient(lanes: Any, place: int) -> None:
    """Compute the gradient of the input of some slots and add it."""
    job = read_job(InputGradientJob, place)
    targets = read_job(Places, job.targets)
    lane, size = lane_count(lanes), itemsize(lanes)
    vector, blocks = lane * size, -(-job.columns // lane)
    # A product in whole vectors goes straight to its place; the panel with the last few numbers of
    # a row would write beyond it.
    split = job.columns // lane
    if split < blocks:
        split = split // 4 * 4
    gates, places = job.tables, job.tables + 8 * job.chunk
    products, zeros = places + 8 * job.chunk, places + 16 * job.chunk
    for row in range(job.chunk):
        # Rows of the scratch hold no more than that panel.
        write(products + 8 * row, job.scratch + (row * PANEL - split) * vector)
        write(zeros + 8 * row, job.zeros)
    position = begin(targets)
    while True:
        first = add(job.counter, 1) * job.chunk
        if first >= job.slots:
            break
        n = min(job.chunk, job.slots - first)
        position = find_slot(targets, first, position)
        position = write_places(targets, first, n, position, places)
        start = zeros
        for side in range(2):
            dz, weight = job.gates, job.weight_ih
            if side == 1:
                dz, weight = job.gates_beside, job.weight_ih_beside
            if dz != 0:
                for row in range(n):
                    write(gates + 8 * row, dz + (first + row) * job.gate_bytes)
                multiply_rows(
                    lanes, n, job.terms, job.columns, 0, split, gates, weight, places, places
                )
                multiply_rows(
                    lanes, n, job.terms, job.columns, split, blocks, gates, weight, start, products
                )
                start = products
        for row in range(n):
            for v in range(split, blocks):
                there = min(lane, job.columns - v * lane)
                target = read(places + 8 * row) + v * vector
                term = load(lanes, read(products + 8 * row) + v * vector)
                store_first(target, load_first(lanes, target, there) + term, there)
