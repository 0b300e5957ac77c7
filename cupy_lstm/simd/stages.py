"""The stages of a call: what each thread does, one stage after the other, in one go.

Waking a thread takes as long as thousands of multiply-adds, so threads are woken once a call. They
begin a stage together, when each has ended the one before.
"""

from collections.abc import Sequence

import numpy

from cupy_lstm.simd.barrier import meet_others
from cupy_lstm.simd.compiled import kernel
from cupy_lstm.simd.layout import Layout, address
from cupy_lstm.simd.threads import Call, Crew


class Stages:
    """Stages to run, and the memory they use.

    Attributes
    ----------
    layout : Layout
        Whose kind of vectors the kernels are for.
    crew : Crew
        The threads.
    """

    def __init__(self, layout: Layout, crew: Crew) -> None:
        self.layout, self.crew = layout, crew
        self._stages: list[list[Sequence[Call]]] = []
        self._alive: list[object] = []

    def add(self, parts: Sequence[Sequence[Call]], *alive: object) -> None:
        """Add a stage of one part a thread, and what its memory belongs to."""
        self._stages.append([part for part in parts if part])
        self.keep(*alive)

    def keep(self, *alive: object) -> None:
        """Keep memory alive until the stages have run."""
        self._alive.extend(alive)

    def run(self) -> None:
        """Run all stages."""
        team = max(map(len, self._stages), default=0)
        threads: list[list[Call]] = [[] for _ in range(team)]
        meeting, lanes = numpy.zeros(1, "int64"), self.layout.lanes
        for number, stage in enumerate(self._stages):
            if number and team > 1:
                here = (kernel(meet_others, lanes), lanes, address(meeting), team * number)
                for calls in threads:
                    calls.append(here)
            for calls, part in zip(threads, stage, strict=False):
                calls.extend(part)
        self.crew.run(threads, (meeting, *self._alive))
        self._stages, self._alive = [], []
