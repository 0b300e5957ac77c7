"""The backward sweep of one direction, compiled.

The sweep goes back through the steps and leaves, in place of the gates of every slot, the
gradients of their pre-activations, and in place of c the outputs m = o tanh(c). With dc the whole
gradient of c, the chain rule gives::

    dz_i = dc * g * i * (1 - i)          dz_g = dc * i * (1 - g^2)
    dz_f = dc * c_prev * f * (1 - f)     dz_o = dm * tanh(c) * o * (1 - o)
    dc  += dm * o * (1 - tanh(c)^2)      dc_prev = dc * f

The gradients of the weights and of the input are sums and products over all slots after that:
`cupy_lstm.simd.outer_products` and `input_gradient`.
"""

from typing import Any, NamedTuple

from numba import njit

from cupy_lstm.simd.barrier import meet
from cupy_lstm.simd.functions import tanh
from cupy_lstm.simd.matrix import multiply_rows
from cupy_lstm.simd.memory import fetch, load, load_first, read, read_job, store, write
from cupy_lstm.simd.rows import active_rows, slot_beside
from cupy_lstm.simd.tile import LINE
from cupy_lstm.simd.vector import fused, itemsize, keep_first, lane_count


class BackwardJob(NamedTuple):
    """One thread's part of a backward sweep; see `ForwardJob` for what is common.

    Attributes
    ----------
    last_slot
        The first slot of the last step's time.
    weight_hh, weight_ho
        Packed for products with the matrices as they are.
    dy, dy_time, dy_row, dcells, dcells_time, dcells_row
        Gradients [T,B,P] and [T,B,H] from outside; 0 for none.
    dh, dc
        Gradients of the states after the last step, [B][P] and [B][H] in whole vectors; become
        those of the states before the first.
    dm
        Scratch [B][H] before a projection.
    gates, cell_steps
        Of the forward sweep.
    c
        Cell states before the first step, [B][H].
    dh_steps
        Receives the whole gradient of h of every slot, where there is a projection.
    zeros
        A row of zeros, as long as the longer of h and c.
    tables
        Scratch for four tables of rows.
    tiles
        Address of the `TileBackJob` of a sweep in the matrix unit.
    """

    steps: int
    time: int
    direction: int
    order: int
    lengths: int
    batch: int
    last_slot: int
    first_row: int
    last_row: int
    first_unit_block: int
    last_unit_block: int
    hidden_size: int
    output_size: int
    weight_hh: int
    weight_ho: int
    dy: int
    dy_time: int
    dy_row: int
    dcells: int
    dcells_time: int
    dcells_row: int
    dh: int
    dc: int
    dm: int
    gates: int
    cell_steps: int
    c: int
    dh_steps: int
    zeros: int
    tables: int
    team: int
    barrier: int
    tiles: int


@njit(nogil=True)
def backward_sweep(lanes: Any, place: int) -> None:
    """Run a backward sweep."""
    job = read_job(BackwardJob, place)
    lane, size = lane_count(lanes), itemsize(lanes)
    vector = lane * size
    H, P = job.hidden_size, job.output_size
    blocks = -(-H // lane)
    gate_bytes, c_bytes = blocks * 4 * vector, blocks * vector
    h_bytes = -(-P // lane) * vector
    rows = job.last_row - job.first_row
    gate_rows, h_rows = job.tables, job.tables + 8 * rows
    zeros, m_rows = h_rows + 8 * rows, h_rows + 16 * rows
    for row in range(rows):
        write(h_rows + 8 * row, job.dh + (job.first_row + row) * h_bytes)
        write(m_rows + 8 * row, job.dm + (job.first_row + row) * c_bytes)
        write(zeros + 8 * row, job.zeros)
    first_slot = job.last_slot
    for meetings in range(1, job.steps + 1):
        s = job.steps - meetings
        time = job.time + s * job.direction
        active = min(job.last_row, active_rows(job.lengths, job.batch, time)) - job.first_row
        active = max(0, active)
        slot = first_slot + job.first_row
        before, before_slot = 0, 0
        if s > 0:
            before = active_rows(job.lengths, job.batch, time - job.direction) - job.first_row
            first_slot = slot_beside(job.lengths, job.batch, first_slot, time, -job.direction)
            before_slot = first_slot + job.first_row
        if job.weight_ho != 0:
            project_back(lanes, job, time, active, slot, gate_rows, h_rows, m_rows, zeros)
        for row in range(active):
            write(gate_rows + 8 * row, job.gates + (slot + row) * gate_bytes)
        for row in range(active):
            batch_row = read(job.order + 8 * (job.first_row + row))
            c_before = job.c + (job.first_row + row) * c_bytes
            if row < before:
                c_before = job.cell_steps + (before_slot + row) * c_bytes
            dm_row = read((m_rows if job.weight_ho != 0 else h_rows) + 8 * row)
            differentiate_row(lanes, job, time, row, batch_row, slot, c_before, dm_row)
            if s > 0 and job.dy != 0 and job.weight_ho == 0:
                # What the step before reads, for the reason that `put_rows` gives.
                following = job.dy + (time - job.direction) * job.dy_time + batch_row * job.dy_row
                for k in range(job.first_unit_block * vector, job.last_unit_block * vector, LINE):
                    fetch(following + k)
        if job.team > 1:
            meet(job.barrier, job.team * meetings)
        first, last = job.first_unit_block, job.last_unit_block
        if job.weight_ho != 0:
            first, last = 0, -(-P // lane)
        multiply_rows(
            lanes,
            active,
            4 * blocks * lane,
            P,
            first,
            last,
            gate_rows,
            job.weight_hh,
            zeros,
            h_rows,
            s % 2 != 0,
        )


@njit(nogil=True)
def differentiate_row(
    lanes: Any, job: Any, time: int, row: int, batch_row: int, slot: int, c_before: int, dm_row: int
) -> None:
    """Take the gradient of some units' outputs back to their gates and cell states.

    Parameters
    ----------
    row, batch_row, slot : int
        The row, counted from the first one of this part; its batch row; the slot of that first
        row.
    c_before : int
        Address of the row's cell state before the step.
    dm_row : int
        Address of the gradient of its output before a projection; without one, dy is missing.
    """
    lane, size = lane_count(lanes), itemsize(lanes)
    vector = lane * size
    H = job.hidden_size
    c_bytes = -(-H // lane) * vector
    dy = job.dy + time * job.dy_time + batch_row * job.dy_row
    dcells = job.dcells + time * job.dcells_time + batch_row * job.dcells_row
    for j in range(job.first_unit_block, job.last_unit_block):
        there = min(lane, H - j * lane)
        dm = load(lanes, dm_row + j * vector)
        if job.weight_ho == 0 and job.dy != 0:
            dm = dm + load_first(lanes, dy + j * vector, there)
        dc_place = job.dc + (job.first_row + row) * c_bytes + j * vector
        dc = load(lanes, dc_place)
        if job.dcells != 0:
            dc = dc + load_first(lanes, dcells + j * vector, there)
        c_place = job.cell_steps + (slot + row) * c_bytes + j * vector
        z = job.gates + ((slot + row) * c_bytes + j * vector) * 4
        i, f = load(lanes, z), load(lanes, z + vector)
        g, o = load(lanes, z + 2 * vector), load(lanes, z + 3 * vector)
        tanh_c = tanh(lanes, load(lanes, c_place))
        store(c_place, o * tanh_c)
        dc = fused(dm * o, 1.0 - tanh_c * tanh_c, dc)
        store(z, keep_first(dc * g * i * (1.0 - i), there))
        f_factor = load(lanes, c_before + j * vector) * f * (1.0 - f)
        store(z + vector, keep_first(dc * f_factor, there))
        store(z + 2 * vector, keep_first(dc * i * (1.0 - g * g), there))
        store(z + 3 * vector, keep_first(dm * tanh_c * o * (1.0 - o), there))
        store(dc_place, keep_first(dc * f, there))


@njit(nogil=True)
def project_back(
    lanes: Any,
    job: Any,
    time: int,
    active: int,
    slot: int,
    scratch: int,
    h_rows: int,
    m_rows: int,
    zeros: int,
) -> None:
    """Sum the gradient of h of a step, keep it, and take it back through the projection."""
    lane, size = lane_count(lanes), itemsize(lanes)
    vector = lane * size
    H, P = job.hidden_size, job.output_size
    h_blocks = -(-P // lane)
    for row in range(active):
        batch_row = read(job.order + 8 * (job.first_row + row))
        dy = job.dy + time * job.dy_time + batch_row * job.dy_row
        kept = job.dh_steps + (slot + row) * h_blocks * vector
        for v in range(h_blocks):
            dh = load(lanes, read(h_rows + 8 * row) + v * vector)
            if job.dy != 0:
                dh = dh + load_first(lanes, dy + v * vector, min(lane, P - v * lane))
            store(kept + v * vector, dh)
        write(scratch + 8 * row, kept)
    multiply_rows(lanes, active, P, H, 0, -(-H // lane), scratch, job.weight_ho, zeros, m_rows)
