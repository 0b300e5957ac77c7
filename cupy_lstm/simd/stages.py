"""The stages of a call: what each thread does, one stage after the other, in one go.

Waking a thread takes as long as thousands of multiply-adds, so threads are woken once a call. They
begin a stage together, when each has ended the one before. Only where a profiler wants to see the
stages is each run on its own.
"""

from collections.abc import Sequence

from cupy_lstm.ranges import detailed, stage
from cupy_lstm.simd.compiled import kernel
from cupy_lstm.simd.layout import Layout, Scratch
from cupy_lstm.simd.programs import MeetingJob, meet_others
from cupy_lstm.simd.threads import Call, Crew, Task


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
        self._stages: list[tuple[str, list[Sequence[Call]]]] = []
        self._alive: list[object] = []

    def add(self, name: str, parts: Sequence[Sequence[Call]], *alive: object) -> None:
        """Add a stage of one part a thread, and what its memory belongs to."""
        self._stages.append((name, [part for part in parts if part]))
        self.keep(*alive)

    def keep(self, *alive: object) -> None:
        """Keep memory alive until the stages have run."""
        self._alive.extend(alive)

    def run(self) -> None:
        """Run all stages."""
        if detailed():
            for name, parts in self._stages:
                with stage(name, self.layout.shape, self.layout.dtype):
                    self._run([parts])
        else:
            with stage("sweep", self.layout.shape, self.layout.dtype):
                self._run([parts for _, parts in self._stages])
        self._stages, self._alive = [], []

    def _run(self, stages: Sequence[Sequence[Sequence[Call]]]) -> None:
        """Run some stages in one go."""
        team = max(map(len, stages), default=0)
        threads: list[list[Call]] = [[] for _ in range(team)]
        scratch = Scratch(self.layout)
        counter = scratch.job((0,))
        for number, parts in enumerate(stages):
            if number and team > 1:
                job = scratch.job(MeetingJob(counter, target=team * number))
                here = kernel(meet_others, self.layout.lanes), job
                for calls in threads:
                    calls.append(here)
            for calls, part in zip(threads, parts, strict=False):
                calls.extend(part)
        self.crew.run(Task(threads, (scratch, *self._alive)))
