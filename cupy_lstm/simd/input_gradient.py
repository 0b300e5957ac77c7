"""The gradient of the input, compiled: products of the gates of all slots with the weights.

Slots are taken in the order in which they lie.
"""

from typing import Any, NamedTuple

from numba import njit

from cupy_lstm.simd.barrier import add
from cupy_lstm.simd.matrix import multiply_rows
from cupy_lstm.simd.memory import load, load_first, read, read_job, store_first, write
from cupy_lstm.simd.places import Places, begin, find_slot, write_places
from cupy_lstm.simd.vector import itemsize, lane_count

PANEL = 4
"""Vectors in a row of the widest panel."""


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
    begins
        Whether the gradient is set, not added to.
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
    begins: int
    tiles: int


@njit(nogil=True)
def add_input_gradient(lanes: Any, place: int) -> None:
    """Compute the gradient of the input of some slots and add it, or set it."""
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
        start, begin_at = zeros, zeros if job.begins != 0 else places
        for side in range(2):
            dz, weight = job.gates, job.weight_ih
            if side == 1:
                dz, weight = job.gates_beside, job.weight_ih_beside
            if dz != 0:
                for row in range(n):
                    write(gates + 8 * row, dz + (first + row) * job.gate_bytes)
                multiply_rows(
                    lanes, n, job.terms, job.columns, 0, split, gates, weight, begin_at, places
                )
                multiply_rows(
                    lanes, n, job.terms, job.columns, split, blocks, gates, weight, start, products
                )
                start, begin_at = products, places
        for row in range(n):
            for v in range(split, blocks):
                there = min(lane, job.columns - v * lane)
                target = read(places + 8 * row) + v * vector
                term = load(lanes, read(products + 8 * row) + v * vector)
                if job.begins == 0:
                    term = load_first(lanes, target, there) + term
                store_first(target, term, there)
