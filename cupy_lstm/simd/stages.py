"""The stages of a pass: what each thread does, one stage after the other, in one go.

Waking a thread takes as long as thousands of multiply-adds, so threads are woken once a pass. They
begin a stage together, when each has ended the one before. Only where a profiler wants to see the
stages is each run on its own.
"""

from collections.abc import Mapping, Sequence

from cupy_lstm.ranges import detailed, stage
from cupy_lstm.simd.compiled import kernel
from cupy_lstm.simd.layout import Layout
from cupy_lstm.simd.programs import MeetingJob, meet_others
from cupy_lstm.simd.reserve import keep
from cupy_lstm.simd.scratch import Scratch, address
from cupy_lstm.simd.threads import Call, Crew, Task, worthwhile

Stage = tuple[str, Sequence[Sequence[Call]]]
"""A name, and a part for each thread."""


OWN = 2**13
"""Bytes of memory that a pass keeps for itself from one run to the next, unless it is told."""


class Stages:
    """Stages to run once or again and again, and the memory they use.

    Attributes
    ----------
    layout : Layout
        Of the layer, for profilers; whose kind of vectors the kernels are for.
    team : int
        Threads there are.
    scratch : Scratch
        The memory, made with what is given as `own`.
    """

    def __init__(self, layout: Layout, team: int, own: int = OWN) -> None:
        self.layout, self.team, self.scratch = layout, team, Scratch(layout.itemsize, own)
        self._stages: list[Stage] = []
        self._tasks: list[tuple[str, Task]] = []

    def add(self, name: str, parts: Sequence[Sequence[Call]]) -> None:
        """Add a stage of one part a thread; the parts may grow until the stages run."""
        self._stages.append((name, parts))

    def threads(self, work: int) -> int:
        """Return how many threads are worth while for a stage of so many multiply-adds."""
        return worthwhile(work, self.team)

    def run(self, crew: Crew, places: Mapping[str, int], alive: object) -> None:
        """Run all stages on memory at these addresses.

        Parameters
        ----------
        alive : object
            What that memory belongs to.
        """
        if not self._tasks:
            stages = [("", self._stages)]
            if detailed():
                stages = [(name, [(name, parts)]) for name, parts in self._stages]
            # Later ones find what earlier ones have counted.
            self._tasks = [(name, self._task(some, not n)) for n, (name, some) in enumerate(stages)]
        pieces = self.scratch.fill(places)
        alive = self.scratch, pieces, alive
        shape, dtype = self.layout.shape, self.layout.dtype
        for name, task in self._tasks:
            task.alive = alive
            with stage(name or "sweep", shape, dtype):
                crew.run(task)
            task.alive = None
        for memory in pieces:
            keep(memory)

    def task(self) -> Task:
        """Return all stages as one task, where nothing is given."""
        task = self._task(self._stages, True)
        task.alive = self.scratch, self.scratch.fill({})
        return task

    def _task(self, stages: Sequence[Stage], begins: bool) -> Task:
        """Return what each thread does in some stages that are run in one go."""
        filled = [[part for part in parts if part] for _, parts in stages]
        size = max(map(len, filled), default=0)
        threads: list[list[Call]] = [[] for _ in range(size)]
        counter = address(self.scratch.counters(1))
        for number, parts in enumerate(filled):
            if number and size > 1:
                job = self.scratch.job(MeetingJob(counter, target=size * number))
                for calls in threads:
                    calls.append((kernel(meet_others, self.layout.lanes), job))
            for calls, part in zip(threads, parts, strict=False):
                calls.extend(part)
        return Task(threads, self.scratch.zeros if begins else ())
