"""Products of rows with packed matrices, compiled; rows are given by tables of their addresses."""

from typing import Any, NamedTuple

from numba import njit

from cupy_lstm.simd.memory import load, load_first, read_job, store, store_first, write
from cupy_lstm.simd.packing import panel_width
from cupy_lstm.simd.tile import NEAR, lines_ahead, multiply, rows_at_once
from cupy_lstm.simd.vector import itemsize, lane_count, splat, tile_rows


@njit(nogil=True)
def copy_numbers(lanes: Any, source: int, target: int, count: int) -> None:
    """Copy some neighbouring numbers."""
    lane, size = lane_count(lanes), itemsize(lanes)
    k = 0
    while k + lane <= count:
        store(target + k * size, load(lanes, source + k * size))
        k += lane
    if k < count:
        there = count - k
        store_first(target + k * size, load_first(lanes, source + k * size, there), there)


class CopyJob(NamedTuple):
    """Rows of numbers to copy; bytes from row to row."""

    source: int
    source_step: int
    target: int
    target_step: int
    rows: int
    numbers: int


@njit(nogil=True)
def copy_rows(lanes: Any, place: int) -> None:
    """Copy some rows."""
    job = read_job(CopyJob, place)
    for row in range(job.rows):
        source, target = job.source + row * job.source_step, job.target + row * job.target_step
        copy_numbers(lanes, source, target, job.numbers)


@njit(nogil=True)
def clear_numbers(lanes: Any, target: int, count: int) -> None:
    """Set some neighbouring numbers to zero."""
    lane, size = lane_count(lanes), itemsize(lanes)
    for k in range(0, count, lane):
        store_first(target + k * size, splat(lanes, 0.0), min(lane, count - k))


@njit(nogil=True)
def multiply_rows(
    lanes: Any,
    rows: int,
    terms: int,
    columns: int,
    first: int,
    last: int,
    a: int,
    packed: int,
    start: int,
    out: int,
    back: bool = False,
) -> None:
    """Multiply rows with a matrix packed by columns: out = start + A B, all tables of rows.

    Parameters
    ----------
    rows, terms, columns : int
        Sizes of the product.
    first, last : int
        Blocks of columns to compute; multiples of four, or the end.
    back : bool
        Whether to take the columns from the last to the first: what a sweep has read last, it finds
        in the cache when it goes back.
    """
    lane, size = lane_count(lanes), itemsize(lanes)
    vector = lane * size
    blocks = -(-columns // lane)
    most = rows_at_once(lanes, rows)
    # Few rows leave registers for two panels.
    together = 8 if 2 * rows <= tile_rows(lanes) else 4
    far = (last - first) * terms * vector > NEAR
    groups = -(-(last - first) // together)
    for index in range(groups):
        group = groups - 1 - index if back else index
        v = first + group * together
        end = min(v + together, last)
        while v < end:
            width = panel_width(v, blocks)
            if width == 4 and v + 8 <= end:
                width = 8
            panel, at = packed + v * terms * vector, v * vector
            others = 0
            if far:
                others = index - groups + 1 if back else (last - v - width) // width
            for r in range(0, rows, most):
                n = min(most, rows - r)
                sources, starts, targets = a + 8 * r, start + 8 * r, out + 8 * r
                ahead, step = lines_ahead(r // most, panel, width * terms * vector, terms, others)
                multiply(lanes, width, n, terms, sources, panel, starts, targets, at, ahead, step)
            v += width


class ProjectionJob(NamedTuple):
    """Rows to project: out = m W_ho.

    Attributes
    ----------
    first, last
        The rows.
    terms, columns
        H and P.
    m, m_bytes, out, out_bytes
        Addresses of row 0, and bytes to the next one.
    weight_ho
        Packed.
    zeros
        A row of zeros, as long as an output.
    tables, chunk
        Scratch for three tables of `chunk` rows.
    """

    first: int
    last: int
    terms: int
    columns: int
    m: int
    m_bytes: int
    out: int
    out_bytes: int
    weight_ho: int
    zeros: int
    tables: int
    chunk: int


@njit(nogil=True)
def project_steps(lanes: Any, place: int) -> None:
    """Project the cell outputs of many steps."""
    job = read_job(ProjectionJob, place)
    lane = lane_count(lanes)
    sources, targets = job.tables, job.tables + 8 * job.chunk
    zeros = targets + 8 * job.chunk
    for row in range(job.chunk):
        write(zeros + 8 * row, job.zeros)
    for first in range(job.first, job.last, job.chunk):
        n = min(job.chunk, job.last - first)
        for row in range(n):
            write(sources + 8 * row, job.m + (first + row) * job.m_bytes)
            write(targets + 8 * row, job.out + (first + row) * job.out_bytes)
        multiply_rows(
            lanes,
            n,
            job.terms,
            job.columns,
            0,
            -(-job.columns // lane),
            sources,
            job.weight_ho,
            zeros,
            targets,
        )
