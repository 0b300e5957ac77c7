"""The crew of the engine simd: programs at once, threads that wait and sleep, interrupts."""

import gc
import itertools
import signal
import sys
import threading
import time
from types import SimpleNamespace

import numba
import numpy as np
import pytest
from cases import Case
from numba import types
from simd_bed import run, use_threads

from cupy_lstm.simd import programs, threads
from cupy_lstm.simd.barrier import add, current
from cupy_lstm.simd.compiled import host_lanes, routine
from cupy_lstm.simd.memory import read, write
from cupy_lstm.simd.vector import LanesType


def native(function):
    """Return the address of a kernel of this file."""
    compiled, kind = numba.njit(nogil=True)(function), LanesType(host_lanes("float32"))
    signature = types.void(kind, types.int64)
    compiled.compile(signature)
    result = compiled.overloads[signature.args]
    KEPT.append(compiled)
    return result.library.get_pointer_to_function(result.fndesc.llvm_func_name)


KEPT = []  # the code of kernels, and the memory of jobs


def job(*words):
    KEPT.append(np.array(words, "int64"))
    return KEPT[-1].ctypes.data


def numbers(count):
    """Return zeros that kernels write to, and their address."""
    array = np.zeros(count, "int64")
    KEPT.append(array)
    return array, array.ctypes.data


if sys.platform == "win32":
    pytestmark = pytest.mark.skip(reason="kernels of these tests call usleep, which is POSIX")
else:
    usleep = types.ExternalFunction("usleep", types.int32(types.uint32))


def _note(lanes, place):
    """Write a number behind those that are in a log, whose first word counts them."""
    log, number = read(place), read(place + 8)
    write(log + 8 + 8 * add(log, 1), number)


def _meet(lanes, place):
    """Wait for others at a counter, up to 30 seconds; set a word if they have not come then."""
    counter, target, late = read(place), read(place + 8), read(place + 16)
    add(counter, 1)
    for _ in range(30_000):
        if current(counter) >= target:
            return
        usleep(1000)
    write(late, 1)


def _sleep(lanes, place):
    """Wait for some microseconds, then count."""
    usleep(read(place))
    add(read(place + 8), 1)


def _fail(lanes, place):
    raise ZeroDivisionError("in a kernel")


@pytest.fixture(scope="module")
def kernels():
    return SimpleNamespace(
        note=native(_note), meet=native(_meet), sleep=native(_sleep), fail=native(_fail)
    )


def asleep():
    """Wait until all workers sleep."""
    deadline = time.monotonic() + 30
    while any(worker.waits for worker in threads._workers):
        assert time.monotonic() < deadline
        time.sleep(0.001)


def meeting(kernels, count, times=1):
    """Return parts that all meet each other, and a word that is set if they did not."""
    _, place = numbers(1)
    late, late_place = numbers(1)
    calls = [(kernels.meet, job(place, count * (k + 1), late_place)) for k in range(times)]
    return [calls] * count, late


def test_parts_run_at_once_each_in_a_thread_of_its_own(kernels, monkeypatch):
    use_threads(monkeypatch, 5)
    for sleeping in (True, False):
        parts, late = meeting(kernels, 5, times=20)
        with threads.crew() as team:
            assert team.size == 5
            if sleeping:
                asleep()
            team.run(threads.Task(parts))
        assert not late


def test_calls_of_a_part_are_made_in_order_and_again(kernels, monkeypatch):
    use_threads(monkeypatch, 3)
    logs = [numbers(250) for _ in range(3)]
    parts = [[(kernels.note, job(place, k)) for k in range(100)] for _, place in logs]
    task, nothing = threads.Task(parts), threads.Task([[], []])
    with threads.crew() as team:
        for _ in range(2):
            team.run(task)
            team.run(nothing)
    assert (task.size, nothing.size) == (3, 0)
    for log, _ in logs:
        assert log[:201].tolist() == [200, *range(100), *range(100)]


def test_threads_wait_for_the_next_call_a_while(kernels, monkeypatch):
    """In the meantime small calls, which wake nobody, take them; and such calls that follow each
    other closely wake them after all."""
    small, large = threads.WORTH_A_THREAD, threads.WORTH_WAKING
    use_threads(monkeypatch, 2)
    monkeypatch.setattr(threads, "WORTH_A_THREAD", small)
    monkeypatch.setattr(threads, "WORTH_WAKING", large)
    monkeypatch.setattr(threads, "PATIENCE", 2.0)
    monkeypatch.setattr(threads, "SOON", 0.0)
    parts, late = meeting(kernels, 2)
    with threads.crew() as team:
        (worker, *_) = threads._workers
        asleep()
        assert [team.team(work) for work in (small, 2 * large - 1, 2 * large)] == [1, 1, 2]
        assert not worker.waits
        team.run(threads.Task(parts))
        assert worker.waits
    with threads.crew() as team:
        assert [team.team(work) for work in (small, 2 * small, large - 1)] == [1, 2, 2]
    assert [threads.worthwhile(work, 2) for work in (0, 2 * small - 1, 2 * small)] == [1, 1, 2]
    assert threads.worthwhile(9 * small, 3) == 3
    monkeypatch.setattr(threads, "PATIENCE", 0.05)
    asleep()
    monkeypatch.setattr(threads, "SOON", 60.0)
    deadline, size = time.monotonic() + 30, 1
    while size == 1:
        assert time.monotonic() < deadline
        with threads.crew() as team:
            size = team.team(2 * small)
    assert not late


def test_who_finds_the_crew_taken_works_alone(monkeypatch):
    use_threads(monkeypatch, 3)
    with threads.crew() as first, threads.crew() as second:
        assert (first.size, second.size) == (3, 1)
    with threads.crew() as third:
        assert third.size == 3


def test_crew_grows_and_shrinks(kernels, monkeypatch):
    for count in (2, 4, 3):
        with monkeypatch.context() as patch:
            use_threads(patch, count)
            parts, late = meeting(kernels, count)
            with threads.crew() as team:
                assert team.size == count
                team.run(threads.Task(parts))
            assert not late


def test_a_thread_that_cannot_be_started_is_done_without(monkeypatch):
    use_threads(monkeypatch, len(threads._workers) + 3)

    def refused(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refused)
    case = Case("units", T=9, B=1, I=11, H=256, states=True, upstream=("y", "h", "c"))
    with threads.crew() as team:
        assert team.size == 1 + len(threads._workers)
    run(case)


@pytest.mark.parametrize("steps", [0.0, -1.0], ids=["stands", "goes-back"])
def test_a_clock_that_is_no_use_harms_nobody(steps, kernels, monkeypatch):
    """A thread that died of it would be waited for without end."""
    clock = itertools.count(0.0, steps)
    monkeypatch.setattr(threads, "perf_counter", lambda: next(clock))
    use_threads(monkeypatch, 2)
    monkeypatch.setattr(threads, "_workers", [])
    monkeypatch.setattr(threads, "PATIENCE", 1e-6)
    for _ in range(3):
        parts, late = meeting(kernels, 2)
        with threads.crew() as team:
            assert threads._workers[0]._seconds_a_look > 0
            team.run(threads.Task(parts))
        assert not late
    assert threads._workers[0].is_alive()


@pytest.mark.parametrize("part", range(3))
def test_a_kernel_that_fails_is_an_error_when_all_parts_are_done(part, kernels, monkeypatch):
    use_threads(monkeypatch, 3)
    done, place = numbers(1)
    parts = [[(kernels.sleep, job(20_000, place))] for _ in range(3)]
    parts[part].insert(0, (kernels.fail, 0))
    with threads.crew() as team:
        with pytest.raises(RuntimeError, match="a compiled kernel has failed"):
            team.run(threads.Task(parts))
        assert done == 3
        del parts[part][0]
        team.run(threads.Task(parts))
    assert done == 6


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="interrupts by a timer")
@pytest.mark.parametrize("again", [0, 0.004], ids=["once", "many-times"])
def test_an_interrupt_waits_for_all_parts(again, kernels, monkeypatch):
    """They write to memory that is freed as soon as the interrupt goes up."""
    use_threads(monkeypatch, 3)
    done, place = numbers(1)
    interrupts, armed = [], False

    def interrupt(number, frame):
        if armed:
            interrupts.append(number)
            raise KeyboardInterrupt

    parts = [[(kernels.sleep, job(100_000, place))] for _ in range(3)]
    before = signal.signal(signal.SIGALRM, interrupt)
    gc.disable()  # what is raised in a callback of the collector does not get here
    try:
        for turn in range(1, 6):
            if turn % 2:
                asleep()
            with threads.crew() as team, pytest.raises(KeyboardInterrupt):
                task = threads.Task(parts)
                signal.setitimer(signal.ITIMER_REAL, 0.02, again)
                armed = True
                try:
                    team.run(task)
                finally:
                    armed = False
            assert done == 3 * turn
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        gc.enable()
    assert len(interrupts) >= 5
    with threads.crew() as team:
        team.run(threads.Task(parts))  # as before
    assert done == 18


@pytest.mark.parametrize("sleeping", [True, False], ids=["sleeping", "waiting"])
def test_an_interrupt_at_any_moment_leaves_parts_that_meet_together(sleeping, kernels, monkeypatch):
    """Those that wait for each other are all made or none, wherever in `run` the interrupt is."""
    use_threads(monkeypatch, 3)
    monkeypatch.setattr(threads, "PATIENCE", 1e-6 if sleeping else 0.02)
    made, place = numbers(1)
    interrupted = 0

    def interrupt_at(line):
        seen = 0

        def trace(frame, event, argument):
            nonlocal seen
            if frame.f_code is not threads.Task.run.__code__:
                return None
            seen += event == "line"
            if seen == line:
                seen += 1
                raise KeyboardInterrupt
            return trace

        return trace

    for line in range(1, 25):
        parts, late = meeting(kernels, 3)
        parts = [[*part, (kernels.sleep, job(0, place))] for part in parts]
        made[0] = 0
        with threads.crew() as team:
            if sleeping:
                asleep()
            tracing = sys.gettrace()
            sys.settrace(interrupt_at(line))
            try:
                team.run(threads.Task(parts))
            except KeyboardInterrupt:
                interrupted += 1
                assert made in (0, 3)
            finally:
                sys.settrace(tracing)
            assert not late
            parts, late = meeting(kernels, 3)
            team.run(threads.Task(parts))
            assert not late
    assert interrupted >= 8


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, TimeoutError])
def test_whatever_a_signal_s_handler_raises_waits_for_all_parts(error, kernels, monkeypatch):
    use_threads(monkeypatch, 3)
    parts, late = meeting(kernels, 3)
    task, complete, begun = threads.Task(parts), threads.Task._complete, []

    def disturbed(self):
        if not begun:
            begun.append(self._begin(self._place))
            raise error
        complete(self)

    monkeypatch.setattr(threads.Task, "_complete", disturbed)
    with threads.crew() as team:
        asleep()
        with pytest.raises(error):
            team.run(task)
    assert begun == [2]
    assert task._words[programs.LEFT // 8] == 0
    assert not late
    assert not threads._given


@pytest.mark.parametrize("count", [2, 3])
def test_a_task_that_was_left_is_completed_by_whoever_takes_the_crew(count, kernels, monkeypatch):
    """As if interrupts had come so fast that not even waiting for it was possible."""
    use_threads(monkeypatch, 3)
    parts, late = meeting(kernels, 3)
    left, never = threads.Task(parts), threads.Task(parts)
    with threads.crew():
        asleep()
    for task in (left, never):
        task._prepare(threads._workers[:2])
        threads._given.add(task)
    assert routine(programs.begin)(left._place) == 2
    monkeypatch.setattr(threads, "thread_count", lambda: count)
    with threads.crew() as team:
        assert left._words[programs.LEFT // 8] == 0
        assert never._words[programs.GIVEN // 8] == 0, "a task that nobody has begun is let be"
        assert not threads._given
        others, late_too = meeting(kernels, count)
        team.run(threads.Task(others))
    assert not late
    assert not late_too


def test_a_crew_that_could_not_be_taken_is_free(monkeypatch):
    use_threads(monkeypatch, len(threads._workers) + 3)

    def interrupted(thread):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", interrupted)
        with pytest.raises(KeyboardInterrupt), threads.crew():
            pass
    with threads.crew() as team:
        assert team.size == len(threads._workers) + 1 > 2


def test_a_bell_rings_once(monkeypatch):
    use_threads(monkeypatch, 2)
    with threads.crew():
        (worker, *_) = threads._workers
        asleep()
        monkeypatch.setattr(worker, "_serve", lambda box, looks: time.sleep(0.01))
        for _ in range(50):
            worker.wake()
        assert worker._bell.qsize() <= 1
        while not worker._bell.empty():
            time.sleep(0.001)
        time.sleep(0.02)


def test_only_small_calls_that_follow_each_other_wake_somebody(monkeypatch):
    use_threads(monkeypatch, 2)
    monkeypatch.setattr(threads, "WORTH_WAKING", 2**22)
    monkeypatch.setattr(threads, "SOON", 60.0)
    rung = []
    monkeypatch.setattr(threads._Worker, "wake", lambda worker: rung.append(worker))
    with threads.crew() as team:
        asleep()
        monkeypatch.setattr(threads, "_small_call", -1e9)
        assert team.team(2**20) == 1
        assert not rung
    with threads.crew() as team:
        assert team.team(2**20) == 1
    assert len(rung) == 1
    # Of the threads of a large machine those that are worth it, not all.
    assert threads.Crew(9).team(3 * 2**22) == 3
    assert threads.Crew(9).team(30 * 2**22) == 9
