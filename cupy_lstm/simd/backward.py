"""The backward sweep of one direction, compiled, and the products that follow it.

The sweep goes back through the steps and leaves, in place of the gates of every slot, the
gradients of their pre-activations, and in place of c the outputs m = o tanh(c). With dc the whole
gradient of c, the chain rule gives::

    dz_i = dc * g * i * (1 - i)          dz_g = dc * i * (1 - g^2)
    dz_f = dc * c_prev * f * (1 - f)     dz_o = dm * tanh(c) * o * (1 - o)
    dc  += dm * o * (1 - tanh(c)^2)      dc_prev = dc * f

The gradients of the weights and of the input are sums and products over all slots after that.
"""

from typing import Any, NamedTuple

from numba import njit

from cupy_lstm.simd.barrier import meet
from cupy_lstm.simd.forward import multiply_rows
from cupy_lstm.simd.functions import tanh
from cupy_lstm.simd.tile import multiply_tile
from cupy_lstm.simd.vector import (
    fused,
    itemsize,
    keep_first,
    lane_count,
    load,
    load_first,
    read,
    store,
    store_first,
    tile_rows,
    write,
)


class BackwardJob(NamedTuple):
    """One thread's part of a backward sweep; see `ForwardJob` for what is common.

    Attributes
    ----------
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
        Scratch for two tables of rows.
    """

    steps: int
    time: int
    direction: int
    counts: int
    slots: int
    order: int
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


@njit(nogil=True)
def backward_sweep(lanes: Any, job: Any) -> None:
    """Run a backward sweep."""
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
    for meetings in range(1, job.steps + 1):
        s = job.steps - meetings
        time = job.time + s * job.direction
        active = max(0, min(job.last_row, read(job.counts + 8 * time)) - job.first_row)
        slot = read(job.slots + 8 * time) + job.first_row
        before, before_slot = 0, 0
        if s > 0:
            before = read(job.counts + 8 * (time - job.direction)) - job.first_row
            before_slot = read(job.slots + 8 * (time - job.direction)) + job.first_row
        if job.weight_ho != 0:
            project_back(lanes, job, time, active, slot, gate_rows, h_rows, m_rows, zeros)
        for row in range(active):
            write(gate_rows + 8 * row, job.gates + (slot + row) * gate_bytes)
        for row in range(active):
            batch_row = read(job.order + 8 * (job.first_row + row))
            c_before = job.c + (job.first_row + row) * c_bytes
            if row < before:
                c_before = job.cell_steps + (before_slot + row) * c_bytes
            dy = job.dy + time * job.dy_time + batch_row * job.dy_row
            dcells = job.dcells + time * job.dcells_time + batch_row * job.dcells_row
            for j in range(job.first_unit_block, job.last_unit_block):
                there = min(lane, H - j * lane)
                if job.weight_ho != 0:
                    dm = load(lanes, read(m_rows + 8 * row) + j * vector)
                else:
                    dm = load(lanes, read(h_rows + 8 * row) + j * vector)
                    if job.dy != 0:
                        dm = dm + load_first(lanes, dy + j * vector, there)
                dc_place = job.dc + (job.first_row + row) * c_bytes + j * vector
                dc = load(lanes, dc_place)
                if job.dcells != 0:
                    dc = dc + load_first(lanes, dcells + j * vector, there)
                c_place = job.cell_steps + (slot + row) * c_bytes + j * vector
                z = job.gates + (slot + row) * gate_bytes + j * 4 * vector
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
        )


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


class ProductJob(NamedTuple):
    """One thread's part of a sum over slots of the outer products of two rows.

    The result, packed by units or by columns, is cut into tiles; the job is a range of them. Each
    is summed by one thread in the order of the slots, so the sum does not depend on the threads.

    Attributes
    ----------
    slots
        Number of terms.
    sources, features
        Table of the addresses of one row of each slot, and numbers in it.
    right, right_step, blocks
        Address of the other row of the first slot, bytes to the next, and blocks in it.
    out, out_step
        Result for the first feature and block, and bytes from feature to feature.
    panel_step
        Bytes of the result from one group of four blocks to the next.
    first, last
        The range: tiles of features within groups of four blocks.
    tables
        Scratch for a table of the rows of a tile.
    """

    slots: int
    sources: int
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


@njit(nogil=True)
def add_outer_products(lanes: Any, job: Any) -> None:
    """Compute some tiles of a sum of outer products."""
    lane, size, most = lane_count(lanes), itemsize(lanes), tile_rows(lanes)
    vector = lane * size
    tiles = -(-job.features // most)
    # What a chunk of slots has in a group of blocks stays in the cache from tile to tile.
    chunk = 96
    for start in range(0, job.slots, chunk):
        n = min(chunk, job.slots - start)
        for index in range(job.first, job.last):
            group, feature = index // tiles, index % tiles * most
            rows = min(most, job.features - feature)
            out = job.out + group * job.panel_step + feature * job.out_step
            for r in range(rows):
                write(job.tables + 8 * r, out + r * job.out_step)
            right = job.right + start * job.right_step + group * 4 * vector
            sources = job.sources + 8 * start
            if 4 * group + 4 <= job.blocks:
                multiply_tile(
                    lanes,
                    4,
                    True,
                    rows,
                    n,
                    sources,
                    feature * size,
                    right,
                    job.right_step,
                    job.tables,
                    job.tables,
                    0,
                    vector,
                )
            else:
                for v in range(job.blocks - 4 * group):
                    multiply_tile(
                        lanes,
                        1,
                        True,
                        rows,
                        n,
                        sources,
                        feature * size,
                        right + v * vector,
                        job.right_step,
                        job.tables,
                        job.tables,
                        v * vector,
                        vector,
                    )


class InputGradientJob(NamedTuple):
    """One thread's part of the gradient of the input.

    Attributes
    ----------
    first, last
        The slots.
    gates, gate_bytes
        Gradients of the pre-activations of the first of all slots, and bytes to the next.
    terms, columns
        Numbers in the gates of a row, and I.
    weight_ih
        Packed by columns.
    targets
        Table of the addresses to add to.
    zeros
        A row of zeros.
    tables, scratch
        Scratch for three tables of `chunk` rows, and for as many rows.
    chunk
        Slots to take at once.
    """

    first: int
    last: int
    gates: int
    gate_bytes: int
    terms: int
    columns: int
    weight_ih: int
    targets: int
    zeros: int
    tables: int
    scratch: int
    chunk: int


@njit(nogil=True)
def add_input_gradient(lanes: Any, job: Any) -> None:
    """Compute the gradient of the input of some slots and add it."""
    lane, size = lane_count(lanes), itemsize(lanes)
    blocks = -(-job.columns // lane)
    row_bytes = blocks * lane * size
    gates, zeros = job.tables, job.tables + 8 * job.chunk
    products = zeros + 8 * job.chunk
    for row in range(job.chunk):
        write(zeros + 8 * row, job.zeros)
        write(products + 8 * row, job.scratch + row * row_bytes)
    for first in range(job.first, job.last, job.chunk):
        n = min(job.chunk, job.last - first)
        for row in range(n):
            write(gates + 8 * row, job.gates + (first + row) * job.gate_bytes)
        multiply_rows(
            lanes, n, job.terms, job.columns, 0, blocks, gates, job.weight_ih, zeros, products
        )
        for row in range(n):
            target = read(job.targets + 8 * (first + row))
            for v in range(blocks):
                there = min(lane, job.columns - v * lane)
                place = target + v * lane * size
                term = load(lanes, job.scratch + row * row_bytes + v * lane * size)
                store_first(place, load_first(lanes, place, there) + term, there)
