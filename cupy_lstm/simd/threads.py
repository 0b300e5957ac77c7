"""Threads for compiled kernels, which run without the interpreter's lock.

One crew serves the process. Whoever needs it while another call has it works alone, in its own
thread: its callers already keep the cores busy. So calls from any number of threads are safe,
and jobs that meet each other all run at once. A forked child makes a crew of its own.
"""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from threading import Lock
from typing import Any

import numba
from numba.np.ufunc import parallel

Call = tuple[Any, ...]
"""A kernel and its arguments."""


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
        How many, the caller's own included.
    """

    def __init__(self, size: int) -> None:
        self.size = size

    def run(self, parts: Sequence[Sequence[Call]]) -> None:
        """Make each thread's calls, ``function(*arguments)`` one after the other.

        Returns when all are done, even if the caller is interrupted: the kernels write to memory
        that is the caller's to free.
        """
        parts = [part for part in parts if part]
        if not parts:
            return
        futures = [_executor(self.size).submit(_make, part) for part in parts[1:]]
        interrupted: BaseException | None = None
        try:
            _make(parts[0])
        finally:
            for future in futures:
                interrupted = _wait(future) or interrupted
        if interrupted is not None:
            raise interrupted


def _make(calls: Sequence[Call]) -> None:
    for function, *arguments in calls:
        function(*arguments)


def _wait(future: "Future[None]") -> BaseException | None:
    """Wait for a result, and return what has interrupted the wait."""
    interrupted = None
    while not future.done():
        try:
            future.result()
        except KeyboardInterrupt as error:
            interrupted = error
    return interrupted or future.exception()


_lock = Lock()
_pool: ThreadPoolExecutor | None = None
_pool_size = 0


def _executor(size: int) -> ThreadPoolExecutor:
    """Return the pool, with a thread for all but one of `size`; called with the lock held."""
    global _pool, _pool_size
    if _pool is None or _pool_size < size - 1:
        if _pool is not None:
            _pool.shutdown()
        _pool_size = size - 1
        _pool = ThreadPoolExecutor(_pool_size, "cupy_lstm")
    return _pool


def _forget_pool() -> None:
    """Start afresh in a forked child, where the parent's threads do not exist."""
    global _lock, _pool
    _lock, _pool = Lock(), None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)


@contextmanager
def crew() -> Iterator[Crew]:
    """Take the crew for the length of a call; it is of one where another call has it."""
    size = thread_count()
    if size > 1 and _lock.acquire(blocking=False):
        lock = _lock
        try:
            yield Crew(size)
        finally:
            lock.release()
    else:
        yield Crew(1)
