"""Forward sweeps that keep nothing, made once and run again and again on other numbers."""

import numpy

from cupy_lstm.backend import HostArray
from cupy_lstm.notation import States
from cupy_lstm.ranges import detailed, stage
from cupy_lstm.simd.forward import ForwardJob
from cupy_lstm.simd.layout import address, layout_of
from cupy_lstm.simd.sweeps import ForwardSweep
from cupy_lstm.simd.threads import Crew, Task
from cupy_lstm.simd.weights import Packed, Prepared
from cupy_lstm.steps import Directions

KEPT = 8
"""Sweeps of different sizes that packed weights remember at once."""

LARGEST = 2**21
"""Bytes of the memory of a sweep that is remembered: what a larger one computes takes so long that
making it does not count."""

X_FIELD, Y_FIELD = (ForwardJob._fields.index(name) for name in ("x", "y"))


class ReadySweep:
    """A sweep over all steps of arrays of one shape, and all the memory it uses.

    It remembers neither the arrays nor their numbers.

    Attributes
    ----------
    nbytes : int
        Bytes of that memory.
    """

    def __init__(
        self,
        packed: Packed,
        x: HostArray,
        y: HostArray,
        states: States,
        reverse: Directions,
        chunk: int,
        threads: int,
    ) -> None:
        T, B = x.shape[:2]
        layout = layout_of(T, B, packed.weights)
        sweep = ForwardSweep(layout, x, packed, states, None, reverse, range(T), keep=False)
        parts, scratch = sweep.parts(threads, x, y, None, max(1, min(chunk, T)))
        sweep.x = numpy.empty((0, *x.shape[1:]), x.dtype)
        self._task, self._memory = Task(parts), (sweep, scratch)
        self.nbytes = sweep.h.nbytes + sweep.c.nbytes + scratch.nbytes
        H, P = layout.shape.H, layout.shape.P
        self._layout, self._barriers = layout, sweep.barriers
        self._before = sweep.h[:, 0, :, :P], sweep.c[:, :, :H]
        self._after = sweep.h[:, T % 2, :, :P], sweep.c[:, :, :H]
        self._jobs = [(job, int(job[Y_FIELD]) - address(y)) for job in sweep.jobs]

    def run(self, crew: Crew, x: HostArray, y: HostArray, states: States) -> States:
        """Run from these states over x [T,B,I] into y [T,B,D,P]; return the states after it."""
        h, c = self._before
        h[...], c[...] = states
        self._barriers.fill(0)
        inputs, outputs = address(x), address(y)
        for job, offset in self._jobs:
            job[X_FIELD], job[Y_FIELD] = inputs, outputs + offset
        self._task.alive = self._memory, x, y
        # Weights are packed: a sweep has this one stage.
        name = "recurrence" if detailed() else "sweep"
        with stage(name, self._layout.shape, self._layout.dtype):
            crew.run(self._task)
        self._task.alive = None
        h, c = self._after
        return h.copy(), c.copy()


def run_ready(
    prepared: Prepared,
    crew: Crew,
    x: HostArray,
    y: HostArray,
    states: States,
    reverse: Directions,
    chunk: int,
) -> States:
    """Run the sweep for these arrays, made now if none is kept that nobody runs.

    Parameters
    ----------
    prepared : Prepared
        Keeps the sweeps.
    x, y : array [T,B,I] and [T,B,D,P]
        At least one step of one row; the numbers of a row side by side.

    Returns
    -------
    tuple of array [D,B,P] and [D,B,H]
        The states after the last step, new arrays.
    """
    packed = prepared.packed(x.shape[1], crew)
    threads = crew.threads(x.size // x.shape[2] * packed.products)
    key = x.shape, x.strides, y.strides, reverse, chunk, threads
    sweep: ReadySweep | None = prepared.ready.pop(key, None)  # nobody else can run it now
    if sweep is None:
        sweep = ReadySweep(packed, x, y, states, reverse, chunk, threads)
    after = sweep.run(crew, x, y, states)
    if sweep.nbytes <= LARGEST:
        prepared.ready[key] = sweep
        for oldest in list(prepared.ready)[:-KEPT]:
            prepared.ready.pop(oldest, None)
    return after
