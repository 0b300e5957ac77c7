"""Sweeps of the engine simd that serve one call after the other: as if each were new."""

import copy
import gc
import os
import pickle
import signal
import threading
import weakref

import numpy as np
import pytest
from simd_bed import needs_fork, use_threads

from cupy_lstm.engines import simd
from cupy_lstm.notation import LayerWeights
from cupy_lstm.simd import ready, threads

H = 40


def make_weights(I, P, D, dtype="float32"):  # noqa: E741
    rng = np.random.default_rng(I + P + D)
    shapes = (D, 4 * H, I), (D, 4 * H, P), (D, 4 * H), (D, 4 * H), (D, H, P)
    arrays = [(0.3 * rng.standard_normal(shape)).astype(dtype) for shape in shapes]
    return LayerWeights(*arrays) if P != H else LayerWeights(*arrays[:4], None)


def inputs(seed, T, B, I, P, D, dtype="float32"):  # noqa: E741
    """Return x [T,B,I] and states h [D,B,P] and c [D,B,H]."""
    rng = np.random.default_rng(seed)
    shapes = (T, B, I), (D, B, P), (D, B, H)
    x, h, c = (rng.standard_normal(shape).astype(dtype) for shape in shapes)
    return x, (h, c)


def run(weights, x, states, y=None, chunk=3, D=1):
    P = states[0].shape[2]
    y = np.full((*x.shape[:2], D, P), np.nan, x.dtype) if y is None else y
    reverse = (False, True)[:D]
    after, _ = simd.forward(x, weights, states, None, reverse=reverse, y=y, keep=False, chunk=chunk)
    return [y, *after]


def fresh(I, P, D, *arguments, dtype="float32", **more):  # noqa: E741
    return run(simd.prepare(make_weights(I, P, D, dtype)), *arguments, D=D, **more)


def assert_equal(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert one.tobytes() == other.tobytes()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(("P", "D"), [(H, 1), (H, 2), (21, 1), (21, 2)])
def test_each_call_is_as_if_it_were_the_first(P, D, threads, dtype, monkeypatch):
    use_threads(monkeypatch, threads)
    packed = simd.prepare(make_weights(11, P, D, dtype))
    for T, B in [(7, 5), (8, 5), (1, 1), (7, 5), (8, 5), (1, 1), (7, 1), (7, 1)]:
        x, states = inputs(T + B, T, B, 11, P, D, dtype)
        for _ in range(2):
            found = run(packed, x, states, D=D)
            assert_equal(found, fresh(11, P, D, x, states, dtype=dtype))
            states = found[1:]
    assert len(packed.ready) == 4


def test_threads_that_share_rows_meet_in_every_call(monkeypatch):
    """Their counters begin at zero each time: if not, they would not wait for each other."""
    use_threads(monkeypatch, 3)
    weights = make_weights(9, H, 1)
    wide = LayerWeights(*(np.repeat(w, 8, axis=1) for w in weights[:4]), None)
    wide = wide._replace(weight_hh=np.tile(wide.weight_hh, 8) / 8)
    packed, rng = simd.prepare(wide), np.random.default_rng(0)
    for _ in range(20):
        x, h, c = (
            rng.standard_normal(shape).astype("float32")
            for shape in ((30, 1, 9), (1, 1, 8 * H), (1, 1, 8 * H))
        )
        assert_equal(run(packed, x, (h, c)), run(simd.prepare(wide), x, (h, c)))
    (sweep,) = packed.ready.values()
    assert sweep._task.size == 3


def test_strides_are_a_part_of_what_a_sweep_is_for():
    packed = simd.prepare(make_weights(11, H, 1))
    x, states = inputs(0, 6, 4, 11, H, 1)
    expected = fresh(11, H, 1, x, states)
    batch_major = x.swapaxes(0, 1).copy().swapaxes(0, 1)
    room = np.zeros((4, 6, 2, H), "float32").swapaxes(0, 1)
    room.flags.writeable = True
    reversed_times = x[::-1].copy()[::-1]
    locked = x.copy()
    locked.flags.writeable = False
    for given in (x, batch_major, reversed_times, locked, x):
        for y in (None, room[:, :, 1:], room[:, :, :1]):
            assert_equal(run(packed, given, states, y), expected)
    # A row whose numbers do not lie side by side is copied, in a sweep that is not kept.
    kept = len(packed.ready)
    spread = np.repeat(x, 2, axis=2)[:, :, ::2]
    assert_equal(run(packed, spread, states), expected)
    assert len(packed.ready) == kept


@pytest.mark.parametrize(("T", "B"), [(0, 3), (3, 0)])
def test_nothing_to_do_keeps_nothing(T, B):
    packed = simd.prepare(make_weights(11, H, 1))
    x, states = inputs(0, T, B, 11, H, 1)
    found = run(packed, x, states)
    assert_equal(found[1:], states)
    assert not packed.ready


def test_no_more_than_a_few_are_kept():
    packed = simd.prepare(make_weights(11, H, 1))
    for T in range(1, 3 * ready.KEPT):
        x, states = inputs(T, T, 2, 11, H, 1)
        assert_equal(run(packed, x, states), fresh(11, H, 1, x, states))
        assert 1 <= len(packed.ready) <= ready.KEPT


def test_arrays_are_not_held():
    packed = simd.prepare(make_weights(11, H, 1))
    x, states = inputs(0, 6, 4, 11, H, 1)
    y, h, c = run(packed, x, states)
    watched = [weakref.ref(array) for array in (x, *states, y, h, c)]
    assert packed.ready
    del x, states, y, h, c
    gc.collect()
    assert all(one() is None for one in watched)


def test_stale_weights_are_freed_at_once():
    """Without waiting for the collector of cycles, which does not know how large they are."""
    packed = simd.prepare(make_weights(11, H, 1))
    x, states = inputs(0, 6, 4, 11, H, 1)
    gc.disable()
    try:
        run(packed, x, states)
        (sweep,) = packed.ready.values()
        watched = [weakref.ref(sweep), weakref.ref(sweep._memory[0].packed.weight_hh[0])]
        del packed, sweep
        assert all(one() is None for one in watched)
    finally:
        gc.enable()


def test_large_sweeps_are_not_remembered():
    packed = simd.prepare(make_weights(11, H, 1))
    for B, kept in ((4, 1), (6000, 1), (5, 2)):
        x, states = inputs(0, 2, B, 11, H, 1)
        run(packed, x, states)
        assert len(packed.ready) == kept
    assert all(0 < sweep.nbytes <= ready.LARGEST for sweep in packed.ready.values())


def test_what_threads_write_to_lives_as_long_as_they_may_write(monkeypatch):
    """Even where the wait for them has been broken off."""
    packed = simd.prepare(make_weights(11, H, 1))
    x, states = inputs(0, 6, 4, 11, H, 1)
    run(packed, x, states)
    (sweep,) = packed.ready.values()
    monkeypatch.setattr(threads.Crew, "run", lambda crew, task: 1 / 0)
    y = np.zeros((6, 4, 1, H), "float32")
    watched = weakref.ref(y)
    with pytest.raises(ZeroDivisionError):
        run(packed, x, states, y)
    del y
    assert watched() is not None
    assert not packed.ready
    del sweep
    gc.collect()
    assert watched() is None


def test_results_are_not_written_by_later_calls():
    packed = simd.prepare(make_weights(11, H, 1))
    x, states = inputs(0, 6, 4, 11, H, 1)
    first = run(packed, x, states)
    before = [array.copy() for array in first]
    run(packed, -x, states)
    assert_equal(first, before)


def test_copies_begin_without_sweeps():
    packed = simd.prepare(make_weights(11, H, 1))
    x, states = inputs(0, 6, 4, 11, H, 1)
    expected = run(packed, x, states)
    copies = [copy.deepcopy(packed), pickle.loads(pickle.dumps(packed))]
    del packed
    gc.collect()
    for other in copies:
        assert not other.ready
        assert_equal(run(other, x, states), expected)


def test_calls_at_the_same_time_do_not_share_one(monkeypatch):
    use_threads(monkeypatch, 2)
    packed = simd.prepare(make_weights(11, H, 1))
    given = [inputs(seed, 30, 4, 11, H, 1) for seed in range(4)]
    expected = [fresh(11, H, 1, *arguments) for arguments in given]
    start, problems = threading.Barrier(4), []

    def work(number):
        start.wait()
        try:
            for _ in range(200):
                assert_equal(run(packed, *given[number]), expected[number])
        except BaseException as error:
            problems.append(error)

    workers = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not problems


@needs_fork
def test_a_forked_child_runs_them_with_threads_of_its_own(monkeypatch):
    use_threads(monkeypatch, 2)
    packed = simd.prepare(make_weights(11, H, 1))
    x, states = inputs(0, 6, 4, 11, H, 1)
    expected = run(packed, x, states)
    child = os.fork()
    if not child:
        signal.alarm(30)
        same = all(
            a.tobytes() == b.tobytes()
            for a, b in zip(run(packed, x, states), expected, strict=True)
        )
        os._exit(0 if same else 1)
    _, status = os.waitpid(child, 0)
    assert status == 0
    assert_equal(run(packed, x, states), expected)


def test_calls_with_lengths_cells_or_a_range_of_steps_keep_none():
    packed = simd.prepare(make_weights(11, H, 1))
    x, states = inputs(0, 6, 4, 11, H, 1)
    lengths, common = np.array([6, 0, 3, 6]), {"reverse": (False,), "keep": False, "chunk": 3}
    y, cells = np.zeros((2, 6, 4, 1, H), "float32")
    (h, _), _ = simd.forward(x, packed, states, lengths, y=y, **common)
    assert np.array_equal(h[0, 2], y[2, 2, 0])
    assert not y[3:, 2].any()
    (_, c), _ = simd.forward(x, packed, states, None, y=y, cells=cells, **common)
    assert np.array_equal(c[0], cells[5, :, 0])
    (h, _), _ = simd.forward(x, packed, states, None, y=y, steps=range(2), **common)
    assert np.array_equal(h[0], y[1, :, 0])
    assert not packed.ready
