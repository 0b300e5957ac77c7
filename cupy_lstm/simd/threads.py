"""Threads for compiled kernels, which run without the interpreter's lock.

One crew serves the process. Whoever needs it while another call has it works alone, in its own
thread: its callers already keep the cores busy. So calls from any number of threads are safe,
and jobs that meet each other all run at once. A forked child makes a crew of its own.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import starmap
from operator import call
from queue import SimpleQueue
from threading import Lock, Thread
from typing import Any

import numba
from numba.np.ufunc import parallel

Call = tuple[Any, ...]
"""A kernel and its arguments."""

WORTH_A_THREAD = 2**21
"""Multiply-adds below which waking a thread takes longer than it saves."""


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


class Crew:
    """The threads a call may use.

    Attributes
    ----------
    size : int
        How many.
    """

    def __init__(self, size: int) -> None:
        self.size = size

    def threads(self, work: int) -> int:
        """Return how many threads are worth while for so many multiply-adds."""
        return max(1, min(self.size, work // WORTH_A_THREAD))

    def run(self, parts: Sequence[Sequence[Call]], alive: object = None) -> None:
        """Make each thread's calls, ``function(*arguments)`` one after the other.

        The caller is one of the threads. Returns when all are done, even if it is interrupted:
        the kernels write to memory that is the caller's to free, and may wait for each other.
        `alive` is what this memory belongs to, kept until then even if a flood of interrupts ends
        the wait.
        """
        parts = [part for part in parts if part]
        if not parts:
            return
        work = _Work(parts[1:], alive)
        own: list[None] = []
        problem: BaseException | None = None
        interrupted: BaseException | None = None
        while (problem is None and len(own) < len(parts[0])) or not work.finished:
            # An interrupt can come anywhere; what is given twice is done once.
            try:
                if not work.given:
                    for worker, piece in zip(_workers, work.pieces, strict=False):
                        worker.pieces.put(piece)
                    work.given = True
                if problem is None:
                    # Python sees nothing from the first call to the last: an interrupt waits.
                    own.extend(starmap(call, parts[0][len(own) :]))
                if not work.finished:
                    work.done.acquire()
            except KeyboardInterrupt as error:
                interrupted = error
            except BaseException as error:
                problem = error
        problem = problem or work.error or interrupted
        if problem is not None:
            raise problem


class _Work:
    """Parts that are made at the same time, and what is known of them."""

    def __init__(self, parts: Sequence[Sequence[Call]], alive: object) -> None:
        self.alive = alive
        self.given = self.finished = not parts
        self.error: BaseException | None = None
        self.done = Lock()
        self.done.acquire()
        self._left, self._counting = len(parts), Lock()
        self.pieces = [_Piece(self, part) for part in parts]

    def count(self) -> None:
        """Note that a piece is done."""
        with self._counting:
            self._left -= 1
            last = self.finished = self._left == 0
        if last:
            # The caller goes on at once, and this thread perhaps later: let nothing live on here.
            self.alive = None
            self.done.release()


class _Piece:
    """One part, to be made once."""

    def __init__(self, work: _Work, part: Sequence[Call]) -> None:
        self._work, self._part, self._taken = work, part, Lock()

    def make(self) -> None:
        if not self._taken.acquire(blocking=False):
            return
        try:
            for function, *arguments in self._part:
                function(*arguments)
        except BaseException as error:
            self._work.error = error
        self._work.count()


class _Worker(Thread):
    """A thread that waits for pieces."""

    def __init__(self, number: int) -> None:
        super().__init__(name=f"cupy_lstm-{number}", daemon=True)
        self.pieces: SimpleQueue[_Piece] = SimpleQueue()
        self.start()

    def run(self) -> None:
        while True:
            self.pieces.get().make()


_lock = Lock()
_workers: list[_Worker] = []


def _forget_workers() -> None:
    """Start afresh in a forked child, where the parent's threads do not exist."""
    global _lock, _workers
    _lock, _workers = Lock(), []


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_workers)


@contextmanager
def crew() -> Iterator[Crew]:
    """Take the crew for the length of a call; it is of one where another call has it."""
    size, lock, taken = thread_count(), _lock, False
    try:
        taken = size > 1 and lock.acquire(blocking=False)
        try:
            while taken and len(_workers) < size - 1:
                _workers.append(_Worker(len(_workers)))
        except RuntimeError:  # no more threads, or none any more as the interpreter ends
            size = 1 + len(_workers)
        yield Crew(size if taken else 1)
    finally:
        if taken:
            lock.release()
