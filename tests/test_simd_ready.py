"""Passes of the engine simd that serve one call after the other: as if each were new."""

import copy
import ctypes
import gc
import os
import pickle
import signal
import threading
import weakref
from itertools import pairwise

import numpy as np
import pytest
from simd_bed import needs_fork, use_threads

from cupy_lstm.engines import simd
from cupy_lstm.notation import LayerGradients, LayerWeights, Wanted
from cupy_lstm.simd import packing, threads
from cupy_lstm.simd.compiled import host_lanes, kernel
from cupy_lstm.simd.ready import SHARED
from cupy_lstm.simd.scratch import Scratch, address
from cupy_lstm.simd.stages import Stages
from cupy_lstm.simd.weights import Prepared

H = 40
REVERSE = {1: (False,), 2: (False, True)}


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


def run(weights, x, states, y=None, chunk=3):
    """Inference: outputs and final states."""
    D, _, P = states[0].shape
    y = np.full((*x.shape[:2], D, P), np.nan, x.dtype) if y is None else y
    more = {"reverse": REVERSE[D], "keep": False, "chunk": chunk}
    after, tape = simd.forward(x, weights, states, None, y=y, **more)
    assert tape is None
    return [y, *after]


def train(weights, x, states, lengths=None, wanted=None, dx=True, cells=True):
    """Training, all gradients from outputs, states and cells: all that comes out."""
    D, B, P = states[0].shape
    T = len(x)
    y, c = (np.full((T, B, D, size), np.nan, x.dtype) for size in (P, H))
    more = {"reverse": REVERSE[D], "keep": True, "chunk": 3, "cells": c if cells else None}
    after, tape = simd.forward(x, weights, states, lengths, y=y, **more)
    weights = weights.weights if isinstance(weights, Prepared) else weights
    if wanted is None:
        wanted = [None if weight is None else slice(None) for weight in weights]
    gradients = [
        None if some is None else np.ones_like(w) for some, w in zip(wanted, weights, strict=True)
    ]
    dx = np.zeros_like(x) if dx else None
    rng = np.random.default_rng(T)
    dy, dc = (rng.standard_normal(array.shape).astype(x.dtype) for array in (y, c))
    kinds = {"wanted": Wanted(*wanted), "gradients": LayerGradients(*gradients), "dx": dx}
    before = simd.backward([tape], dy, states, dc if cells else None, **kinds)
    found = [y, c if cells else None, *after, *before, dx, *gradients]
    return [array for array in found if array is not None]


def fresh(function, weights, *arguments, **more):
    """What comes out where no pass waits; those that wait go on waiting."""
    if isinstance(weights, Prepared):
        return function(simd.prepare(weights.weights), *arguments, **more)
    kept = dict(SHARED.waiting)
    SHARED.waiting.clear()
    found = function(weights, *arguments, **more)
    SHARED.waiting.clear()
    SHARED.waiting.update(kept)
    return found


def assert_equal(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert one.tobytes() == other.tobytes()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(("P", "D"), [(H, 1), (H, 2), (21, 1), (21, 2)])
def test_each_call_is_as_if_it_were_the_first(P, D, threads, dtype, monkeypatch):
    use_threads(monkeypatch, threads)
    weights = make_weights(11, P, D, dtype)
    packed = simd.prepare(weights)
    for T, B in [(7, 5), (8, 5), (1, 1), (7, 5), (8, 5), (1, 1), (7, 1), (7, 1)]:
        x, states = inputs(T + B, T, B, 11, P, D, dtype)
        for scale in (1, 2):
            found = run(packed, scale * x, states)
            assert_equal(found, fresh(run, packed, scale * x, states))
            assert_equal(run(weights, scale * x, states), found)
            trained = train(weights, scale * x, states)
            assert_equal(trained, fresh(train, weights, scale * x, states))
            states = found[1:]
    assert len(packed.passes.waiting) == 4
    assert len(SHARED.waiting) == 3 * 4  # inference, training, and backward


def test_what_is_not_finite_does_not_stay():
    weights = make_weights(11, 21, 2)
    x, states = inputs(0, 6, 4, 11, 21, 2)
    expected = train(weights, x, states)
    spoiled = x.copy()
    spoiled[2, 1] = np.nan, np.inf, *[0] * 9
    odd = [state.copy() for state in states]
    odd[1][0, 2] = np.inf
    for _ in range(2):
        assert np.isnan(train(weights, spoiled, odd)[0]).any()
        assert_equal(train(weights, x, states), expected)


def test_other_weights_of_the_same_sizes_are_used():
    weights = make_weights(11, H, 1)
    others = LayerWeights(*[None if w is None else -w[:, ::-1].copy() for w in weights])
    x, states = inputs(0, 6, 4, 11, H, 1)
    train(weights, x, states)
    run(weights, x, states)
    count = len(SHARED.waiting)
    assert_equal(train(others, x, states), fresh(train, others, x, states))
    assert_equal(run(others, x, states), fresh(run, others, x, states))
    assert len(SHARED.waiting) == count


@pytest.mark.parametrize("absent", [2, 3])
def test_which_weights_there_are_is_a_part_of_what_a_pass_is_for(absent):
    weights = make_weights(11, H, 1)
    x, states = inputs(0, 6, 4, 11, H, 1)
    fewer = weights._replace(**{weights._fields[absent]: None})
    every = slice(None)
    for _ in range(2):
        for some in (weights, fewer):
            more = {"wanted": [every, every, None, None, None]}
            assert_equal(train(some, x, states, **more), fresh(train, some, x, states, **more))
            assert_equal(run(some, x, states), fresh(run, some, x, states))


def test_what_is_asked_for_is_a_part_of_what_a_pass_is_for():
    weights = make_weights(11, 21, 2)
    x, states = inputs(0, 6, 4, 11, 21, 2)
    every, first = slice(None), slice(0, 1)
    for _ in range(2):
        for wanted in (
            [every] * 5,
            [None, every, None, None, None],
            [first, None, every, None, slice(1, 2)],
            [slice(1, 2), None, every, None, first],
            [None, None, first, every, None],
        ):
            for dx in (False, True):
                for cells in (False, True):
                    more = {"wanted": wanted, "dx": dx, "cells": cells}
                    expected = fresh(train, weights, x, states, **more)
                    assert_equal(train(weights, x, states, **more), expected)
    assert len(SHARED.waiting) == 2 + 5 * 4


def test_threads_that_share_rows_meet_in_every_call(monkeypatch):
    """Their counters begin at zero each time: if not, they would not wait for each other."""
    taken = use_threads(monkeypatch, 3)
    weights = make_weights(9, H, 1)
    wide = LayerWeights(*(np.repeat(w, 8, axis=1) for w in weights[:4]), None)
    wide = wide._replace(weight_hh=np.tile(wide.weight_hh, 8) / 8)
    packed, rng = simd.prepare(wide), np.random.default_rng(0)
    for _ in range(20):
        x, h, c = (
            rng.standard_normal(shape).astype("float32")
            for shape in ((30, 1, 9), (1, 1, 8 * H), (1, 1, 8 * H))
        )
        taken.clear()
        found = run(packed, x, (h, c))
        assert taken[-1] == 3
        assert_equal(found, fresh(run, simd.prepare(wide), x, (h, c)))


@pytest.mark.parametrize("dx", [False, True])
def test_sums_have_ended_before_they_are_added_to_gradients(dx, monkeypatch):
    """A thread adds what others have summed, so they meet in between."""
    use_threads(monkeypatch, 3)
    stages, add = [], Stages.add
    monkeypatch.setattr(Stages, "add", lambda *given: stages.append(given[2]) or add(*given))
    weights = make_weights(11, H, 2)
    train(weights, *inputs(0, 6, 4, 11, H, 2), dx=dx)
    lanes = host_lanes("float32")
    adding = {kernel(one, lanes) for one in (packing.unpack_by_units, packing.unpack_bias)}
    kernels = [{place for part in parts for place, _ in part} for parts in stages]
    assert adding == kernels[-1]
    assert not any(adding & used for used in kernels[:-1])


def test_strides_are_a_part_of_what_a_pass_is_for():
    packed = simd.prepare(make_weights(11, H, 1))
    x, states = inputs(0, 6, 4, 11, H, 1)
    expected = run(packed, x, states)
    batch_major = x.swapaxes(0, 1).copy().swapaxes(0, 1)
    room = np.zeros((4, 6, 2, H), "float32").swapaxes(0, 1)
    reversed_times = x[::-1].copy()[::-1]
    locked = x.copy()
    locked.flags.writeable = False
    spread = np.repeat(x, 2, axis=2)[:, :, ::2]  # rows that are copied
    for given in (x, batch_major, reversed_times, locked, spread, x):
        for y in (None, room[:, :, 1:], room[:, :, :1]):
            assert_equal(run(packed, given, states, y), expected)
    assert len(packed.passes.waiting) == 3 * 2


def test_strides_of_upstream_gradients_are_too():
    weights = make_weights(11, H, 1)
    x, states = inputs(0, 6, 4, 11, H, 1)
    dy = np.random.default_rng(1).standard_normal((6, 4, 1, H)).astype("float32")
    found = []
    for given in (dy, dy.swapaxes(0, 1).copy().swapaxes(0, 1), np.repeat(dy, 2, -1)[..., ::2]):
        for target in (np.zeros_like(x), np.zeros((4, 6, 11), "float32").swapaxes(0, 1)):
            more = {"reverse": (False,), "keep": True, "chunk": 6, "y": np.empty_like(dy)}
            _, tape = simd.forward(x, weights, states, None, **more)
            gradients = [None if w is None else np.zeros_like(w) for w in weights]
            gradients[0] = np.zeros((1, 11, 4 * H), "float32").swapaxes(1, 2)
            wanted = Wanted(*[None if w is None else slice(None) for w in weights])
            kinds = {"wanted": wanted, "gradients": LayerGradients(*gradients), "dx": target}
            before = simd.backward([tape], given, (None, None), **kinds)
            found.append([*before, target, *gradients[:4]])
    for other in found[1:]:
        assert_equal(other, found[0])


@pytest.mark.parametrize(("T", "B"), [(0, 3), (3, 0)])
def test_nothing_to_do_leaves_everything_as_it_is(T, B):
    weights = make_weights(11, H, 1)
    x, states = inputs(0, T, B, 11, H, 1)
    for _ in range(2):
        assert_equal(run(simd.prepare(weights), x, states)[1:], states)
        _, _, *after = train(weights, x, states)
        assert_equal(after[:4], [*states, *states])
        assert all((gradient == 1).all() for gradient in after[5:])


def test_no_more_than_some_are_kept():
    packed = simd.prepare(make_weights(11, H, 1))
    most = packed.passes.most
    for T in range(1, 3 * most):
        x, states = inputs(T, T, 2, 11, H, 1)
        assert_equal(run(packed, x, states), fresh(run, packed, x, states))
        assert len(packed.passes.waiting) == min(T, most)
    assert {key[0][0] for key in packed.passes.waiting} == set(range(2 * most, 3 * most))


@pytest.mark.parametrize("packed", [False, True])
def test_large_ones_are_not_kept(packed):
    weights = make_weights(11, H, 1)
    given = simd.prepare(weights) if packed else weights
    passes = given.passes if packed else SHARED
    for B, kept in ((4, 1), (6000, 1), (5, 2)):
        run(given, *inputs(0, 2, B, 11, H, 1))
        assert len(passes.waiting) == kept
    assert all(0 < one.nbytes <= passes.largest for one in passes.waiting.values())


def test_arrays_and_weights_are_not_held():
    """They are free at once, without waiting for the collector of cycles."""
    weights = make_weights(11, 21, 1)
    packed = simd.prepare(weights)
    x, states = inputs(0, 6, 4, 11, 21, 1)
    gc.disable()
    try:
        found = [*run(packed, x, states), *train(weights, x, states)]
        (made,) = packed._packed.values()
        (one,) = packed.passes.waiting.values()
        arrays = [*made, *weights, x, *states, *found]
        watched = [weakref.ref(array) for array in (one, *arrays)]
        assert len(SHARED.waiting) == 2
        del weights, packed, x, states, found, made, arrays, one
        assert all(one() is None for one in watched)
    finally:
        gc.enable()


@pytest.mark.parametrize("way", ["forward", "backward"])
def test_what_threads_write_to_lives_as_long_as_they_may_write(way, monkeypatch):
    """Even where the wait for them has been broken off."""
    weights = make_weights(11, H, 1)
    x, states = inputs(0, 6, 4, 11, H, 1)
    train(weights, x, states)
    y, more = np.zeros((6, 4, 1, H), "float32"), {"reverse": (False,), "keep": True, "chunk": 6}
    _, tape = simd.forward(x, weights, states, None, y=y, **more)
    given = []
    monkeypatch.setattr(threads.Crew, "run", lambda crew, task: given.append(task) or 1 / 0)
    dx = np.zeros_like(x)
    watched = weakref.ref(y if way == "forward" else dx)
    with pytest.raises(ZeroDivisionError):
        if way == "forward":
            simd.forward(x, weights, states, None, y=y, **more)
        else:
            kinds = {"wanted": Wanted(*[None] * 5), "gradients": LayerGradients(*[None] * 5)}
            simd.backward([tape], np.ones_like(y), (None, None), **kinds, dx=dx)
    del y, dx, tape
    assert watched() is not None
    # Nobody else runs that pass.
    assert not any(
        task is given[0] for one in SHARED.waiting.values() for _, task in one._stages._tasks
    )
    given.clear()
    gc.collect()
    assert watched() is None


def test_results_are_not_written_by_later_calls():
    weights = make_weights(11, H, 1)
    packed = simd.prepare(weights)
    x, states = inputs(0, 6, 4, 11, H, 1)
    first = [*run(packed, x, states), *train(weights, x, states)]
    before = [array.copy() for array in first]
    run(packed, -x, states)
    train(weights, -x, states)
    assert_equal(first, before)


def test_a_tape_outlives_the_next_forward():
    """Two calls may be gone back through in any order."""
    weights = make_weights(11, H, 1)
    arguments = [inputs(seed, 6, 4, 11, H, 1) for seed in range(2)]
    expected = [train(weights, *given, cells=False) for given in arguments]
    more = {"reverse": (False,), "keep": True, "chunk": 3}
    ys = [np.empty((6, 4, 1, H), "float32") for _ in range(2)]
    calls = [
        simd.forward(x, weights, states, None, y=y, **more)
        for (x, states), y in zip(arguments, ys, strict=True)
    ]
    for (x, states), y, (after, tape), wanted in zip(arguments, ys, calls, expected, strict=True):
        gradients = LayerGradients(*[None if w is None else np.ones_like(w) for w in weights])
        every = Wanted(*[None if w is None else slice(None) for w in weights])
        dx = np.zeros_like(x)
        kinds = {"wanted": every, "gradients": gradients, "dx": dx}
        dy = np.random.default_rng(6).standard_normal(y.shape).astype("float32")
        before = simd.backward([tape], dy, states, **kinds)
        assert_equal([y, *after, *before, dx, *gradients[:4]], wanted)


def test_calls_at_the_same_time_do_not_share_one(monkeypatch):
    use_threads(monkeypatch, 2)
    weights = make_weights(11, H, 1)
    packed = simd.prepare(weights)
    given = [inputs(seed, 30, 4, 11, H, 1) for seed in range(4)]
    expected = [fresh(run, packed, *arguments) for arguments in given]
    trained = [fresh(train, weights, *arguments) for arguments in given]
    start, problems = threading.Barrier(4), []

    def work(number):
        start.wait()
        try:
            for _ in range(100):
                assert_equal(run(packed, *given[number]), expected[number])
                assert_equal(train(weights, *given[number]), trained[number])
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
    weights = make_weights(11, H, 1)
    packed = simd.prepare(weights)
    x, states = inputs(0, 6, 4, 11, H, 1)

    def both():
        return [*run(packed, x, states), *train(weights, x, states)]

    expected = both()
    child = os.fork()
    if not child:
        signal.alarm(30)
        same = all(a.tobytes() == b.tobytes() for a, b in zip(both(), expected, strict=True))
        os._exit(0 if same else 1)
    _, status = os.waitpid(child, 0)
    assert status == 0
    assert_equal(both(), expected)


def test_calls_with_lengths_keep_none():
    weights = make_weights(11, H, 1)
    x, states = inputs(0, 6, 4, 11, H, 1)
    train(weights, x, states)
    kept = list(SHARED.waiting)
    lengths = np.array([6, 0, 3, 6])
    found = train(weights, x, states, lengths)
    assert np.array_equal(found[2][0, 2], found[0][2, 2, 0])
    assert not found[0][3:, 2].any()
    assert list(SHARED.waiting) == kept


def test_ranges_of_steps_keep_none():
    """There can be many of them, and they are for sequences that are too long for memory."""
    packed = simd.prepare(make_weights(11, H, 1))
    x, states = inputs(0, 6, 4, 11, H, 1)
    y = np.zeros((6, 4, 1, H), "float32")
    expected = run(packed, x, states)
    kept = list(packed.passes.waiting)
    now = states
    for steps in (range(2), range(2, 5), range(5, 6)):
        more = {"reverse": (False,), "keep": False, "chunk": 3, "steps": steps}
        now, _ = simd.forward(x, packed, now, None, y=y, **more)
    assert_equal([y, *now], expected)
    assert list(packed.passes.waiting) == kept


def test_copies_begin_without_passes():
    packed = simd.prepare(make_weights(11, H, 1))
    x, states = inputs(0, 6, 4, 11, H, 1)
    expected = run(packed, x, states)
    copies = [copy.deepcopy(packed), pickle.loads(pickle.dumps(packed))]
    del packed
    gc.collect()
    for other in copies:
        assert not other.passes.waiting
        assert_equal(run(other, x, states), expected)


def test_memory_of_any_number_comes_from_one_piece():
    """A thread asks for several, and there can be hundreds of threads."""
    scratch = Scratch(4, own=64)
    words = [scratch.numbers(100) for _ in range(500)]
    x = np.zeros((3, 4, 5), "float32")[::-1, :, ::-1]
    given = scratch.given("x", x)
    behind = address(given) + 2 * given.strides[0] + 4 * given.strides[2]
    job = scratch.job((7, *words, address(given), behind, -1))
    alive = scratch.fill({"x": address(x)})
    found = (ctypes.c_int64 * 504).from_address(job)
    assert (found[0], found[503]) == (7, -1)
    assert found[501:503] == [address(x), address(x[2:, :, 4:])]
    (memory,) = alive
    begin, end = address(memory), address(memory) + memory.nbytes
    assert all(begin <= place <= end - 400 and place % 64 == 0 for place in found[1:501])
    assert all(after - before >= 400 for before, after in pairwise(found[1:501]))


def test_strides_may_be_negative():
    """Of directions, too, where a row has a single number."""
    x, weights = np.ones((2, 6, 3), "float32"), make_weights(3, 1, 2)
    states = np.zeros((2, 6, 1), "float32"), np.zeros((2, 6, H), "float32")
    dy = np.random.default_rng(0).standard_normal((2, 6, 2, 1)).astype("float32")
    found = []
    for given in (dy[:, :, ::-1], dy[:, :, ::-1].copy()):
        y = np.zeros((2, 6, 2, 1), "float32")[:, :, ::-1]
        more = {"reverse": (False, True), "keep": True, "chunk": 2, "y": y}
        after, tape = simd.forward(x, weights, states, None, **more)
        dx, nothing = np.zeros_like(x), LayerGradients(*[None] * 5)
        kinds = {"wanted": Wanted(*[None] * 5), "gradients": nothing, "dx": dx}
        found.append([y, *after, *simd.backward([tape], given, (None, None), **kinds), dx])
    assert_equal(*found)


def test_a_tape_has_no_addresses():
    """A copy goes back through memory of its own."""
    weights = make_weights(11, H, 1)
    x, states = inputs(0, 6, 4, 11, H, 1)
    y, found = np.zeros((6, 4, 1, H), "float32"), []
    more = {"reverse": (False,), "keep": True, "chunk": 6, "y": y}
    _, tape = simd.forward(x, weights, states, None, **more)
    for one in (copy.deepcopy(tape), tape):
        dx, nothing = np.zeros_like(x), LayerGradients(*[None] * 5)
        kinds = {"wanted": Wanted(*[None] * 5), "gradients": nothing, "dx": dx}
        found.append([*simd.backward([one], y, (None, None), **kinds), dx])
    assert_equal(*found)


def test_prepared_weights_can_be_trained_with():
    weights = make_weights(11, 21, 2)
    spread = LayerWeights(*(np.repeat(w, 2, axis=-1)[..., ::2] for w in weights))
    x, states = inputs(0, 6, 4, 11, 21, 2)
    expected = train(weights, x, states)
    for one in (weights, spread):
        assert_equal(train(simd.prepare(one), x, states), expected)
        assert_equal(train(one, x, states), expected)
