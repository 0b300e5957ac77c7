"""Threads for programs of kernels, which run without the interpreter's lock.

One crew serves the process. Whoever needs it while another call has it works alone, in its own
thread: its callers already keep the cores busy. So calls from any number of threads are safe,
and programs that meet each other all run at once. A forked child makes a crew of its own.
"""

import os
from array import array
from collections.abc import Sequence
from functools import cache
from queue import SimpleQueue
from threading import Lock, Thread
from time import perf_counter

import numba
from numba.np.ufunc import parallel

from cupy_lstm.simd import programs
from cupy_lstm.simd.compiled import routine
from cupy_lstm.simd.scratch import CACHE_LINE, next_line

Call = tuple[int, int]
"""The addresses of a kernel and of its job."""

WORTH_WAKING = 2**22
"""Multiply-adds of a pass for each thread, below which waking it takes longer than it saves."""

WORTH_A_THREAD = 2**17
"""Multiply-adds of a stage for each thread that is awake, and waits for its part in a loop."""

PATIENCE = 2e-4
"""Seconds for which a thread looks out for another task before it sleeps, about."""

SOON = 2e-4
"""Seconds from one small call to the next in which it is worth while to wake a thread."""


def _limit() -> int:
    """Return the most threads that the environment allows, read once as OpenMP does."""
    count = int(numba.config.NUMBA_NUM_THREADS)
    openmp = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    if "NUMBA_NUM_THREADS" not in os.environ and openmp.isdecimal() and int(openmp) > 0:
        count = min(count, int(openmp))
    return count


_LIMIT = _limit()


def thread_count() -> int:
    """Return how many threads a sweep may use.

    What `numba.set_num_threads` has set in the calling thread, and at most the environment
    variable NUMBA_NUM_THREADS; without that OMP_NUM_THREADS; without both the cores of this
    process.
    """
    # Asking Numba before anybody has set it would start threads of its own.
    return min(_LIMIT, numba.get_num_threads()) if parallel._is_initialized else _LIMIT


class Task:
    """Programs that run at once, one a thread; a task can be run again and again.

    Parameters
    ----------
    parts : sequence of sequence of Call
        What each thread does, one call after the other.
    counters : sequence of tuple of int
        Addresses of words that are zero when a run begins, and how many.

    Attributes
    ----------
    alive : object
        What the memory belongs to that they work on; None until it is set.
    """

    def __init__(self, parts: Sequence[Sequence[Call]], counters: Sequence[Call] = ()) -> None:
        parts = [part for part in parts if part]
        self.alive: object = None
        self.size = len(parts)
        others = max(0, self.size - 1)
        words = [0] * (programs.PLACES // 8 + 2 * others)
        starts = []
        for part in parts:
            starts.append(8 * len(words))
            words += [len(part), *(word for call in part for word in call)]
        starts.append(8 * len(words))
        words += [len(counters), *(word for counter in counters for word in counter)]
        self._words = array("q", words)
        self._place = place = self._words.buffer_info()[0]
        self._words[programs.PROGRAM // 8] = place + starts[0]
        self._words[programs.COUNTERS // 8] = place + starts[-1]
        self._words[programs.WORKERS // 8] = others
        self._boxes = range(programs.PLACES // 8, programs.PLACES // 8 + 2 * others, 2)
        for box, start in zip(self._boxes, starts[1:-1], strict=True):
            self._words[box + 1] = place + start
        self._workers: Sequence[_Worker] = ()
        self._begin, self._finish = routine(programs.begin), routine(programs.finish)

    def run(self, workers: "Sequence[_Worker]") -> None:
        """Run all programs, the first one here; return when all are done.

        Even an interrupt waits for that: the kernels write to memory that is the caller's to free,
        and may wait for each other.
        """
        if not self.size:
            return
        workers = workers[: self.size - 1]
        self._prepare(workers)
        interrupted: BaseException | None = None
        while True:
            # An interrupt, or what else a signal's handler raises, can come between any two lines;
            # what is asked for twice is done once.
            try:
                if workers:
                    _given.add(self)
                self._complete()
                _given.discard(self)
                break
            except BaseException as error:
                interrupted = error
        if self._words[programs.FAILED // 8]:
            raise RuntimeError("a compiled kernel has failed: this is a mistake in cupy_lstm")
        if interrupted is not None:
            raise interrupted

    def _prepare(self, workers: "Sequence[_Worker]") -> None:
        """Make a run of it that nobody has begun, for these workers."""
        if workers and workers != self._workers:
            self._workers = workers
            for box, worker in zip(self._boxes, workers, strict=True):
                self._words[box] = worker.box
        self._words[programs.RUN // 8] += 1

    def _complete(self) -> None:
        """Do what is not done of this task."""
        if self._begin(self._place):
            for worker in self._workers:
                worker.wake()
            self._finish(self._place)

    @property
    def begun(self) -> int:
        """How many runs were begun."""
        return self._words[programs.GIVEN // 8]

    def complete_if_given(self) -> None:
        """Do what is not done of a task that workers are at."""
        if self.begun == self._words[programs.RUN // 8]:
            self._complete()
        _given.discard(self)


_given: set[Task] = set()
"""The task that workers may be at. After a flood of interrupts it may be one that nobody waits for
any more; its memory stays until whoever takes the crew next has completed it."""


LOOKS = 500
"""Looks by which their time is measured."""

SHORTEST_LOOK = 1e-9
"""Seconds, less than any look takes; a clock with large steps may say that some take none."""


class _Worker(Thread):
    """A thread that waits for tasks.

    Attributes
    ----------
    box : int
        Address of where it finds them.
    """

    def __init__(self, number: int) -> None:
        super().__init__(name=f"cupy_lstm-{number}", daemon=True)
        # Nobody else writes to its cache line.
        self._memory = array("q", bytes(3 * CACHE_LINE))
        place = self._memory.buffer_info()[0]
        self.box = next_line(place)
        self._state_word = (self.box - place + programs.STATE) // 8
        self._bell: SimpleQueue[None] = SimpleQueue()
        self._serve = routine(programs.serve)
        seconds = min(self._looked() for _ in range(3)) / LOOKS
        self._seconds_a_look = max(seconds, SHORTEST_LOOK)
        self.start()

    def _looked(self) -> float:
        """Return the seconds that some looks into the box take."""
        start = perf_counter()
        self._serve(self.box, LOOKS)
        return perf_counter() - start

    def wake(self) -> None:
        """Let it look into its box."""
        if self._bell.empty():  # else it will look after this
            self._bell.put(None)

    @property
    def waits(self) -> bool:
        """Whether it is awake, waiting for a task."""
        return self._memory[self._state_word] == programs.WAITS

    def run(self) -> None:
        while True:
            self._bell.get()
            self._serve(self.box, int(PATIENCE / self._seconds_a_look))


def worthwhile(work: int, team: int) -> int:
    """Return how many threads of a team are worth while for a stage of so many multiply-adds."""
    return max(1, min(team, work // WORTH_A_THREAD))


class Crew:
    """The threads a call may use.

    Attributes
    ----------
    size : int
        How many.
    """

    def __init__(self, size: int) -> None:
        self.size = size

    def team(self, work: int) -> int:
        """Return how many threads a pass of so many multiply-adds may use; to be asked once a call.

        All where they are awake; else as many as are worth waking.
        """
        worth_waking = work // WORTH_WAKING
        if worth_waking >= self.size:
            return self.size
        if work >= 2 * WORTH_A_THREAD and self._others_wait():
            return self.size
        return max(1, worth_waking)

    def _others_wait(self) -> bool:
        """Whether the others are awake.

        Where small calls follow each other, let them wake up.
        """
        global _small_call
        others = _workers[: self.size - 1]
        for worker in others:
            if not worker.waits:
                break
        else:
            return True
        before, _small_call = _small_call, perf_counter()
        if _small_call - before < SOON:
            for worker in others:
                worker.wake()
        return False

    def run(self, task: Task) -> None:
        """Run a task of at most as many programs."""
        task.run(_workers)


_lock = Lock()
_workers: list[_Worker] = []
_small_call = 0.0
"""When a call last found itself too small to wake somebody."""


def _forget_workers() -> None:
    """Start afresh in a forked child, where the parent's threads do not exist."""
    global _lock, _workers
    _lock, _workers = Lock(), []
    _given.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_workers)


_crew_of = cache(Crew)


class crew:  # noqa: N801 - used like a function
    """Take the crew for the length of a call; it is of one where another call has it."""

    __slots__ = ("_taken",)

    def __enter__(self) -> Crew:
        size, lock = thread_count(), _lock
        self._taken: Lock | None = None
        if size == 1 or not lock.acquire(False):
            return _crew_of(1)
        self._taken = lock
        try:
            if _given:
                for task in tuple(_given):
                    task.complete_if_given()
            while len(_workers) < size - 1:
                _workers.append(_Worker(len(_workers)))
        except RuntimeError:  # no more threads, or none any more as the interpreter ends
            size = 1 + len(_workers)
        except BaseException:
            lock.release()
            raise
        return _crew_of(size)

    def __exit__(self, *exception: object) -> None:
        if self._taken is not None:
            self._taken.release()
