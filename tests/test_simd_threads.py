"""Threads of the engine simd: how many there are, and that results do not depend on it."""

import dataclasses
import threading

import numba
import numpy as np
import pytest
from cases import Case, build
from face import assert_bit_equal
from simd_bed import infer, run, run_script, use_threads

from cupy_lstm import engine
from cupy_lstm.functional import lstm_backward, lstm_forward
from cupy_lstm.notation import LayerWeights
from cupy_lstm.simd import threads

EVERY = ("y", "h", "c", "cells")
LENGTHS = (9, 1, 8, 0, 5, 9, 2, 9, 3, 4, 6, 7, 9, 9, 1, 2, 9)
CASES = [
    Case("rows", T=9, B=17, I=11, H=40, states=True, upstream=EVERY),
    Case("lengths", T=9, B=17, I=11, H=40, states=True, upstream=EVERY, lengths=LENGTHS),
    Case("both", T=9, B=17, H=40, L=2, bidirectional=True, lengths=LENGTHS, upstream=EVERY),
    Case("projection", T=9, B=17, H=40, P=21, states=True, upstream=EVERY),
    # So few rows that threads share them, take some units each and meet after every step.
    Case("units", T=9, B=1, I=11, H=256, states=True, upstream=EVERY),
    Case("units-and-a-bit", T=9, B=2, I=11, H=201, states=True, upstream=EVERY),
    Case("units-lengths", T=9, B=3, H=200, states=True, upstream=EVERY, lengths=(4, 0, 9)),
    # So large weights that they do so with many rows, too.
    Case("large", T=4, B=17, I=11, H=256, states=True, upstream=EVERY),
    Case("large-lengths", T=9, B=17, I=32, H=257, states=True, upstream=EVERY, lengths=LENGTHS),
    Case("units-both", T=9, B=1, H=256, bidirectional=True, states=True, upstream=EVERY),
    Case("fewer-rows-than-threads", T=9, B=2, H=30, P=7, upstream=EVERY),
]
each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@each_case
def test_results_do_not_depend_on_the_number_of_threads(case, dtype, monkeypatch):
    found = {}
    for count in (1, 2, 3, 4):
        with monkeypatch.context() as patch:
            taken = use_threads(patch, count)
            found[count] = run(case, dtype), infer(case, dtype)
            assert max(taken) == count
    for count in (2, 3, 4):
        for several, alone in zip(found[count], found[1], strict=True):
            assert_bit_equal(several, alone)


def test_a_projection_as_wide_as_the_layer_is_one(monkeypatch):
    """Through the core only: threads cannot share its rows, as h takes all units."""
    rng = np.random.default_rng(0)
    H, I = 256, 5  # noqa: E741
    shapes = (1, 4 * H, I), (1, 4 * H, H), (1, 4 * H), (1, 4 * H), (1, H, H)
    weights = LayerWeights(*(rng.uniform(-0.1, 0.1, s).astype("float32") for s in shapes))
    found = []
    for count in (1, 2):
        with monkeypatch.context() as patch, engine("simd"):
            use_threads(patch, count)
            y, states, tape = lstm_forward(np.ones((1, 9, I), "float32"), [weights])
            dx, dstates, (gradients,) = lstm_backward(tape, y)
            found.append([y, *states, dx, *dstates, *gradients])
            _, _, tape = lstm_forward(np.ones((1, 9, I), "float32"), [weights])
            _, _, (gradients,) = lstm_backward(tape, y, inputs_wanted=False)
            found[-1] += gradients
    for several, alone in zip(*found, strict=True):
        assert np.array_equal(several, alone)


def test_small_calls_wake_nobody(monkeypatch):
    taken = use_threads(monkeypatch, 2)
    monkeypatch.setattr(threads, "WORTH_WAKING", 2**22)
    monkeypatch.setattr(threads, "WORTH_A_THREAD", 2**17)
    run(Case("small", H=8))
    assert max(taken) == 1


COUNT = """
import threading
from cases import Case
from simd_bed import run
from cupy_lstm.simd.threads import crew, thread_count

run(Case("large", T=20, B=64, I=32, H=64))
workers = [t.name for t in threading.enumerate() if t is not threading.main_thread()]
with crew() as team:
    print(thread_count(), team.size, len(workers))
"""


@pytest.mark.parametrize(
    ("variables", "count"),
    [
        ({"NUMBA_NUM_THREADS": "1"}, 1),
        ({"NUMBA_NUM_THREADS": "3"}, 3),
        ({"OMP_NUM_THREADS": "1"}, 1),
        ({"OMP_NUM_THREADS": "1,2"}, 1),
        ({"NUMBA_NUM_THREADS": "3", "OMP_NUM_THREADS": "2"}, 3),
    ],
    ids=str,
)
def test_the_environment_is_honoured(variables, count):
    output, _ = run_script(COUNT, **variables)
    assert output.split() == [str(count), str(count), str(count - 1)]


@pytest.mark.parametrize(
    ("numba_threads", "openmp", "expected"),
    [
        (8, None, 8),
        (8, "3", 3),
        (8, "3,2", 3),
        (8, " 2 ", 2),
        (2, "16", 2),
        (8, "", 8),
        (8, "0", 8),
        (8, "-1", 8),
        (8, "many", 8),
    ],
)
def test_openmp_s_variable_lowers_the_number(numba_threads, openmp, expected, monkeypatch):
    monkeypatch.setattr(numba.config, "NUMBA_NUM_THREADS", numba_threads)
    monkeypatch.delenv("NUMBA_NUM_THREADS", raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if openmp is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", openmp)
    assert threads._limit() == expected
    monkeypatch.setenv("NUMBA_NUM_THREADS", str(numba_threads))
    assert threads._limit() == numba_threads


SET = """
import threading, numba
from cupy_lstm.simd.threads import thread_count

found = [thread_count()]
for count in (1, 3, 2):
    numba.set_num_threads(count)
    found.append(thread_count())

def elsewhere():
    numba.set_num_threads(3)
    found.append(thread_count())

thread = threading.Thread(target=elsewhere)
thread.start()
thread.join()
print(*found, thread_count())
"""


def test_set_num_threads_is_honoured():
    """In the thread that has called it, as Numba has it."""
    output, _ = run_script(SET, NUMBA_NUM_THREADS="3")
    assert output.split() == ["3", "1", "3", "2", "3", "2"]


def test_numba_starts_no_threads_for_being_asked():
    output, _ = run_script(
        "from numba.np.ufunc import parallel\n"
        "from cupy_lstm.simd.threads import thread_count\n"
        "thread_count()\n"
        "print(parallel._is_initialized)"
    )
    assert output.strip() == "False"


LATE = """
import atexit, threading, time
import numpy as np
from cases import Case, build
from face import assert_bit_equal
from numba import types
from simd_bed import infer, run

case = Case("late", T=20, B=64, I=32, H=64)
arrays, expected = build(case, "float32"), run(case)

def once_more(where):
    assert_bit_equal(run(case, arrays=arrays), expected)
    print(where, flush=True)

def late():
    threading.main_thread().join()
    once_more("thread")

threading.Thread(target=late).start()
atexit.register(once_more, "atexit")
"""


def test_calls_while_the_interpreter_ends():
    output, errors = run_script(LATE, NUMBA_NUM_THREADS="2")
    assert output.split() == ["thread", "atexit"]
    assert "Error" not in errors


def test_calls_from_many_threads_at_once(monkeypatch):
    """Bit-equal to serial ones; whoever comes second works alone."""
    taken = use_threads(monkeypatch, 2)
    cases = [dataclasses.replace(case, seed=seed) for seed in range(2) for case in CASES[:5]]
    arrays = [build(case, "float32") for case in cases]
    expected = [(run(*pair), infer(*pair)) for pair in zip(cases, ["float32"] * 10, strict=True)]
    taken.clear()
    start, problems = threading.Barrier(6), []

    def work(number):
        start.wait()
        try:
            for k in range(20):
                index = (number + k) % len(cases)
                trained = run(cases[index], arrays=arrays[index])
                assert_bit_equal(trained, expected[index][0])
                assert_bit_equal(infer(cases[index], arrays=arrays[index]), expected[index][1])
        except BaseException as error:
            problems.append(error)

    workers = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not problems
    assert set(taken) == {1, 2}
