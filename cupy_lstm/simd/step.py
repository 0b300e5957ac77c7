"""One step of all layers, made once and run again and again: what a stream runs at every call."""

from collections.abc import Sequence

import numpy

from cupy_lstm.backend import HostArray
from cupy_lstm.notation import States
from cupy_lstm.simd.compiled import kernel
from cupy_lstm.simd.layout import Scratch, layout_of
from cupy_lstm.simd.programs import MeetingJob, meet_others
from cupy_lstm.simd.sweeps import ForwardSweep
from cupy_lstm.simd.threads import Call, Task, crew
from cupy_lstm.simd.weights import Packed


class ReadyStep:
    """One step of all layers and all the memory it uses, the states included.

    Parameters
    ----------
    layers : sequence of Packed
        The weights of every layer, of one direction.
    states : tuple of array [L,B,P], [L,B,H]
        Those to go on from, copied.

    Attributes
    ----------
    memory : tuple of array [L,B,P], [L,B,H]
        The states, read and written by every step.
    """

    def __init__(self, layers: Sequence[Packed], states: States) -> None:
        (L, B, P), H = states[0].shape, states[1].shape[2]
        layouts = [layout_of(1, B, packed.weights) for packed in layers]
        first = layouts[0]
        h_size, c_size = 2 * B * first.h_width, B * first.c_width
        self._states = first.zeros(L, h_size + c_size)
        self._states_before = numpy.empty_like(self._states)
        h = self._states[:, :h_size].reshape(L, 2, B, first.h_width)
        c = self._states[:, h_size:].reshape(L, B, first.c_width)
        self.memory, self._h_after = (h[:, 0, :, :P], c[:, :, :H]), h[:, 1, :, :P]
        for kept, values in zip(self.memory, states, strict=True):
            kept[...] = values
        self._x = first.zeros(1, B, first.shape.I)
        self._sweeps: list[tuple[ForwardSweep, HostArray, HostArray]] = []
        x, self._products = self._x, 0
        for k, (layout, packed) in enumerate(zip(layouts, layers, strict=True)):
            here = slice(k, k + 1)
            own = self.memory[0][here], self.memory[1][here]
            sweep = ForwardSweep(layout, x, packed, own, None, (False,), range(1), keep=False)
            sweep.h, sweep.c = h[here], c[here]
            y = layout.zeros(1, B, 1, P)
            self._sweeps.append((sweep, x, y))
            self._products += sweep.work
            x = y[:, :, 0]
        self._y = x[0]
        # Kernels are compiled now, not while the first step waits.
        self._tasks = {1: self._task(1)}

    def run(self, x: HostArray, y: HostArray) -> None:
        """Run one step from x [B,I] into y [B,P], any strides."""
        with crew() as team:
            threads = team.threads(self._products)
            if threads not in self._tasks:
                self._tasks[threads] = self._task(threads)
            task, counters = self._tasks[threads]
            self._x[0], self._states_before[...] = x, self._states
            for counter in counters:
                counter.fill(0)
            try:
                team.run(task)
                self.memory[0][...], y[...] = self._h_after, self._y
            except BaseException:
                # An interrupt: the step has come to its end, and is taken back.
                self._states[...] = self._states_before
                raise

    def _task(self, threads: int) -> tuple[Task, list[HostArray]]:
        """Return what so many threads do, and the counters that are zero when they begin."""
        scratch = Scratch(self._sweeps[0][0].layout)
        counter = numpy.zeros(1, "int64")
        programs: list[list[Call]] = [[] for _ in range(threads)]
        counters: list[HostArray] = [counter]
        # Not this object: only a collection would free both.
        alive: list[object] = [scratch, counter]
        for number, (sweep, x, y) in enumerate(self._sweeps):
            if number and threads > 1:
                job = scratch.job(MeetingJob(counter.ctypes.data, target=threads * number))
                for program in programs:
                    program.append((kernel(meet_others, sweep.layout.lanes), job))
            parts, own = sweep.parts(threads, x, y, None, 1)
            counters.append(sweep.barriers)
            alive += [sweep, sweep.jobs, sweep.barriers, own, x, y]
            sweep.jobs = []
            for program, part in zip(programs, parts, strict=False):
                program += part
        return Task(programs, alive), counters
