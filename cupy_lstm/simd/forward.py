"""The forward sweep of one direction, compiled: all steps of a slice of the batch.

Rows are independent, so a thread takes its slice through all steps. Where the batch is too small
for that, threads take the same rows and different units, and meet after every step.
"""

from typing import Any, NamedTuple

from numba import njit

from cupy_lstm.simd.barrier import meet
from cupy_lstm.simd.functions import sigmoid, tanh
from cupy_lstm.simd.matrix import clear_numbers, copy_numbers, multiply_rows
from cupy_lstm.simd.memory import fetch, load, read, read_job, store, write
from cupy_lstm.simd.rows import active_rows, slot_beside
from cupy_lstm.simd.tile import LINE, NEAR, lines_ahead, multiply, rows_at_once
from cupy_lstm.simd.vector import fused, itemsize, keep_first, lane_count, tile_rows


class ForwardJob(NamedTuple):
    """One thread's part of a forward sweep: sizes, addresses, and strides in bytes.

    Rows are numbered by falling length, so the rows that take part at a time are the first ones.
    A *slot* is one such row at one time; the slots of a time lie together. Tables hold 64-bit
    integers.

    Attributes
    ----------
    steps, time, direction
        Number of steps, time of the first, 1 or -1 from one to the next.
    order, lengths, batch
        Tables of the batch row and the length of each of B rows.
    first_slot
        The first slot of the first step's time.
    first_row, last_row, first_unit_block, last_unit_block
        The part.
    input_size, hidden_size, output_size
        I, H, P.
    weight_ih, weight_hh, weight_ho, bias
        Packed; weight_ho is 0 without a projection.
    x, x_time, x_row
        Input [T,B,I].
    y, y_time, y_row, cells, cells_time, cells_row
        Outputs [T,B,P] and [T,B,H]; `cells` 0 for none.
    h, c, m
        States [2][B][P] and [B][H], in whole vectors: the outputs after even and odd steps, and
        the cell states. `m` is scratch [B][H] before a projection.
    gates, cell_steps
        Gates and c of every slot for the backward pass; `cell_steps` is 0, and `gates` is scratch
        for the slots of a chunk, where none follows.
    chunk
        Steps whose input projection is done at once.
    tables
        Scratch for two tables of the slots of a chunk.
    team, barrier
        Threads that share these rows, and where they meet.
    tiles
        Address of the `TileJob` of a sweep in the matrix unit.
    """

    steps: int
    time: int
    direction: int
    order: int
    lengths: int
    batch: int
    first_slot: int
    first_row: int
    last_row: int
    first_unit_block: int
    last_unit_block: int
    input_size: int
    hidden_size: int
    output_size: int
    weight_ih: int
    weight_hh: int
    weight_ho: int
    bias: int
    x: int
    x_time: int
    x_row: int
    y: int
    y_time: int
    y_row: int
    cells: int
    cells_time: int
    cells_row: int
    h: int
    c: int
    m: int
    gates: int
    cell_steps: int
    chunk: int
    tables: int
    team: int
    barrier: int
    tiles: int


@njit(nogil=True)
def forward_sweep(lanes: Any, place: int) -> None:
    """Run a forward sweep."""
    job = read_job(ForwardJob, place)
    lane, size = lane_count(lanes), itemsize(lanes)
    vector = lane * size
    blocks = -(-job.hidden_size // lane)
    gate_bytes = blocks * 4 * vector
    capacity = job.chunk * (job.last_row - job.first_row)
    inputs, gates = job.tables, job.tables + 8 * capacity
    constants = gates + 8 * capacity
    for r in range(tile_rows(lanes)):
        write(constants + 8 * r, job.bias)
    meetings, slot = 0, job.first_slot
    blocks_here = job.last_unit_block - job.first_unit_block
    for first in range(0, job.steps, job.chunk):
        last = min(first + job.chunk, job.steps)
        n = list_slots(job, first, last, slot, inputs, gates, gate_bytes)
        for j in range(job.first_unit_block, job.last_unit_block):
            panel_bytes = job.input_size * 4 * vector
            panel = job.weight_ih + j * panel_bytes
            others = job.last_unit_block - j - 1 if blocks_here * panel_bytes > NEAR else 0
            for r in range(0, n, tile_rows(lanes)):
                rows = min(tile_rows(lanes), n - r)
                x_rows, z_rows, at = inputs + 8 * r, gates + 8 * r, j * 4 * vector
                ahead, step = lines_ahead(
                    r // tile_rows(lanes), panel, panel_bytes, job.input_size, others
                )
                multiply(
                    lanes, 4, rows, job.input_size, x_rows, panel, constants, z_rows, at,
                    ahead, step,
                )  # fmt: skip
        n = 0
        for s in range(first, last):
            time = job.time + s * job.direction
            active = min(job.last_row, active_rows(job.lengths, job.batch, time)) - job.first_row
            active = max(0, active)
            forward_step(lanes, job, s, time, active, slot, gates + 8 * n, inputs + 8 * n)
            slot = slot_beside(job.lengths, job.batch, slot, time, job.direction)
            n += active
            if job.team > 1:
                meetings += 1
                meet(job.barrier, job.team * meetings)


@njit(nogil=True)
def list_slots(
    job: Any, first: int, last: int, slot: int, inputs: int, gates: int, gate_bytes: int
) -> int:
    """Write the addresses of the inputs and gates of the slots of some steps; return how many.

    Parameters
    ----------
    first, last : int
        The steps.
    slot : int
        The first slot of the first step's time.
    inputs, gates : int
        The tables.
    """
    n = 0
    for s in range(first, last):
        time = job.time + s * job.direction
        active = min(job.last_row, active_rows(job.lengths, job.batch, time))
        for row in range(job.first_row, active):
            place = job.x + time * job.x_time + read(job.order + 8 * row) * job.x_row
            kept = slot + row if job.cell_steps != 0 else n
            write(inputs + 8 * n, place)
            write(gates + 8 * n, job.gates + kept * gate_bytes)
            n += 1
        slot = slot_beside(job.lengths, job.batch, slot, time, job.direction)
    return n


@njit(nogil=True)
def update_units(
    lanes: Any, i: Any, f: Any, g: Any, o: Any, there: int, c: int, m: int, z: int, kept: int
) -> None:
    """Update the state of some units of a row from the sums of their gates.

    Parameters
    ----------
    i, f, g, o : Vector
        The sums.
    there : int
        How many units there are. Beyond the last one all is zero, so that nothing there can
        become NaN.
    c, m : int
        Addresses of the cell state, and of the output before a projection.
    z, kept : int
        Addresses that receive the gates and the cell state for the backward pass; `kept` is 0
        without one.
    """
    vector = lane_count(lanes) * itemsize(lanes)
    i = sigmoid(lanes, keep_first(i, there))
    f = sigmoid(lanes, keep_first(f, there))
    g = tanh(lanes, keep_first(g, there))
    o = sigmoid(lanes, keep_first(o, there))
    state = fused(f, load(lanes, c), i * g)
    store(c, state)
    store(m, o * tanh(lanes, state))
    if kept != 0:
        store(z, i)
        store(z + vector, f)
        store(z + 2 * vector, g)
        store(z + 3 * vector, o)
        store(kept, state)


@njit(nogil=True)
def forward_step(
    lanes: Any, job: Any, s: int, time: int, active: int, slot: int, gates: int, h_rows: int
) -> None:
    """Run one step for the `active` first rows.

    Parameters
    ----------
    s, time : int
        The step and its time.
    slot : int
        The first slot of this time.
    gates : int
        Table of the gates of these rows; overwritten where there is a projection.
    h_rows : int
        Scratch for a table of them.
    """
    lane, size = lane_count(lanes), itemsize(lanes)
    vector = lane * size
    H, P = job.hidden_size, job.output_size
    c_bytes = -(-H // lane) * vector
    h_bytes = -(-P // lane) * vector
    h_from = job.h + ((s % 2) * job.batch + job.first_row) * h_bytes
    h_to = job.h + ((1 - s % 2) * job.batch + job.first_row) * h_bytes
    c = job.c + job.first_row * c_bytes
    m, m_bytes = h_to, h_bytes
    if job.weight_ho != 0:
        m, m_bytes = job.m + job.first_row * c_bytes, c_bytes
    slot += job.first_row
    for row in range(active):
        write(h_rows + 8 * row, h_from + row * h_bytes)
    # Few rows leave registers for two blocks, and one alone would wait for its own sums.
    together = 2 if 2 * active <= tile_rows(lanes) else 1
    most = rows_at_once(lanes, active)
    groups = -(-(job.last_unit_block - job.first_unit_block) // together)
    panel_bytes = P * 4 * vector
    for index in range(groups):
        # Back and forth: the weights one step reads last, the next one finds in the cache.
        group = index if s % 2 == 0 else groups - 1 - index
        j = job.first_unit_block + group * together
        blocks = min(together, job.last_unit_block - j)
        panel, others = job.weight_hh + j * panel_bytes, 0
        if (job.last_unit_block - job.first_unit_block) * panel_bytes > NEAR:
            others = (groups - index - 1) * (1 if s % 2 == 0 else -1)
        for r in range(0, active, most):
            n = min(most, active - r)
            rows, z_rows, at = h_rows + 8 * r, gates + 8 * r, j * 4 * vector
            ahead, step = lines_ahead(r // most, panel, panel_bytes, P, others)
            multiply(lanes, 4 * blocks, n, P, rows, panel, z_rows, z_rows, at, ahead, step)
            for row in range(r, r + n):
                for block in range(j, j + blocks):
                    z = read(gates + 8 * row) + block * 4 * vector
                    kept = 0
                    if job.cell_steps != 0:
                        kept = job.cell_steps + (slot + row) * c_bytes + block * vector
                    update_units(
                        lanes,
                        load(lanes, z),
                        load(lanes, z + vector),
                        load(lanes, z + 2 * vector),
                        load(lanes, z + 3 * vector),
                        min(lane, H - block * lane),
                        c + row * c_bytes + block * vector,
                        m + row * m_bytes + block * vector,
                        z,
                        kept,
                    )
    if job.weight_ho != 0:
        for row in range(active):
            write(gates + 8 * row, m + row * m_bytes)
            write(h_rows + 8 * row, h_to + row * h_bytes)
            clear_numbers(lanes, h_to + row * h_bytes, h_bytes // size)
        multiply_rows(lanes, active, H, P, 0, -(-P // lane), gates, job.weight_ho, h_rows, h_rows)
    put_step(lanes, job, time, active, h_to)


@njit(nogil=True)
def put_step(lanes: Any, job: Any, time: int, active: int, h: int) -> None:
    """Write the outputs, and the cell states if they are wanted, of the units of a step.

    Parameters
    ----------
    h : int
        Address of the outputs of the first row.
    """
    lane, size = lane_count(lanes), itemsize(lanes)
    H, P = job.hidden_size, job.output_size
    h_bytes, c_bytes = -(-P // lane) * lane * size, -(-H // lane) * lane * size
    first, last = job.first_unit_block * lane, job.last_unit_block * lane
    rows = job.last_row - job.first_row
    order = job.order + 8 * job.first_row
    put_rows(
        lanes, rows, active, first, P if job.weight_ho != 0 else min(P, last),
        h, h_bytes, order, job.y + time * job.y_time, job.y_row,
        job.direction * job.y_time,
    )  # fmt: skip
    if job.cells != 0:
        put_rows(
            lanes, rows, active, first, min(H, last), job.c + job.first_row * c_bytes, c_bytes,
            order, job.cells + time * job.cells_time, job.cells_row,
            job.direction * job.cells_time,
        )  # fmt: skip


@njit(nogil=True)
def put_rows(
    lanes: Any,
    rows: int,
    active: int,
    first: int,
    last: int,
    source: int,
    source_step: int,
    order: int,
    target: int,
    target_step: int,
    ahead: int,
) -> None:
    """Write the numbers `first` to `last` of the active rows to their batch rows, zeros to others.

    Parameters
    ----------
    rows, active : int
        Rows, and how many of them take part.
    source, source_step : int
        Address of row 0, and bytes from row to row.
    order : int
        Table of their batch rows.
    target, target_step : int
        Address of batch row 0, and bytes from one to the next.
    ahead : int
        Bytes to the rows of the next step. They are fetched: rows of one time can lie far apart,
        where the hardware fetches nothing ahead.
    """
    offset = first * itemsize(lanes)
    for row in range(rows):
        place = target + read(order + 8 * row) * target_step + offset
        if row < active:
            copy_numbers(lanes, source + row * source_step + offset, place, last - first)
            for k in range(0, (last - first) * itemsize(lanes), LINE):
                fetch(place + ahead + k)
        else:
            clear_numbers(lanes, place, last - first)
