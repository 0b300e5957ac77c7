"""Memory of calls that is kept for the next one: never in use twice, never too much."""

import gc
import threading
from types import SimpleNamespace

import numpy as np
import pytest

from cupy_lstm import LSTM, engine
from cupy_lstm.simd import reserve
from cupy_lstm.simd.reserve import LARGE, LARGEST, MOST, MOST_PIECES, keep, piece, take


@pytest.fixture(autouse=True)
def empty(monkeypatch):
    gc.collect()
    monkeypatch.setattr(reserve, "_free", {})


def place(array):
    return array.__array_interface__["data"][0]


def kept():
    return [memory.size for memory in reserve._free.values()]


def test_a_piece_that_is_gone_is_taken_again():
    first = piece(LARGE)
    where = place(first)
    del first
    assert kept() == [LARGE]
    second = piece(LARGE)
    assert place(second) == where
    assert not reserve._free


@pytest.mark.parametrize(
    "view",
    [
        lambda array: array[8:],
        lambda array: array[8:].view("float32").reshape(-1, 2)[::2].T,
        lambda array: memoryview(array),
        lambda array: np.asarray(memoryview(array[3:5])),
    ],
    ids=["slice", "view-of-views", "memoryview", "behind-a-memoryview"],
)
def test_a_view_keeps_it(view):
    array = piece(LARGE)
    where, seen = place(array), view(array)
    del array
    gc.collect()
    other = piece(LARGE)
    assert place(other) != where
    del seen, other
    assert sorted(kept()) == [LARGE, LARGE]


def test_not_taken_for_much_less_or_for_more():
    large = piece(8 * LARGE)
    where = place(large)
    del large
    for size in (LARGE, 4 * LARGE, 6 * LARGE):
        assert place(piece(size)) != where
    assert place(piece(7 * LARGE)) == where
    assert place(piece(8 * LARGE + 1)) != where


def test_what_is_taken_is_kept_only_when_it_is_said():
    memory = take(LARGE)
    where = place(memory)
    del memory
    gc.collect()
    assert not reserve._free
    memory = take(LARGE)
    where = place(memory)
    keep(memory)
    assert kept() == [LARGE]
    assert place(piece(LARGE)) == where
    for size in (LARGE - 1, LARGEST + 1):
        keep(take(size))
    assert kept() == [LARGE]


@pytest.mark.parametrize("size", [0, 1, LARGE - 1, LARGEST + 1])
def test_small_and_huge_pieces_are_not_kept(size):
    assert piece(size).size == size
    assert not reserve._free


def test_no_more_than_a_limit_is_kept():
    size = MOST // 5
    pieces = [piece(size + number) for number in range(7)]
    for number in (3, 0, 6, 1, 2, 5, 4):
        pieces[number] = None
    assert kept() == [size + number for number in (1, 2, 5, 4)]


def test_no_more_than_a_number_is_kept():
    pieces = [piece(LARGE + number) for number in range(MOST_PIECES + 5)]
    while pieces:
        del pieces[0]
    assert kept() == [LARGE + number for number in range(5, MOST_PIECES + 5)]


def test_garbage_may_be_collected_at_any_moment():
    """Its finalizers keep memory while what is kept is looked through for another piece."""

    class Cycle:
        def __init__(self, held):
            self.held, self.own = held, self

    before = gc.get_threshold()
    gc.freeze()  # what other tests have left is not looked through each time
    try:
        for allocations in range(1, 30):
            reserve.release()
            pieces = [piece(LARGE + number) for number in range(20)]
            del pieces
            gc.collect()
            gc.disable()
            for _ in range(3):
                Cycle(piece(4 * LARGE))
            # Pairs that Python has at hand are no allocations: let there be none.
            pairs = [(number, None) for number in range(3000)]
            gc.set_threshold(gc.get_count()[0] + allocations)
            gc.enable()
            held = piece(LARGE)  # collects garbage after so many allocations
            gc.disable()
            gc.collect()
            assert len(kept()) == 19 + 3
            del held, pairs
    finally:
        gc.enable()
        gc.set_threshold(*before)
        gc.unfreeze()


def test_what_is_kept_can_be_given_back():
    held = piece(LARGE)
    del held
    reserve.release()
    assert not kept()


def test_threads_never_get_the_same_one():
    problems, start = [], threading.Barrier(4)

    def work(number):
        rng = np.random.default_rng(number)
        start.wait()
        for _ in range(100):
            held = [piece(LARGE + int(size)) for size in rng.integers(0, 50, 3)]
            for array in held:
                array[::4096] = number
            if any((array[::4096] != number).any() for array in held):
                problems.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems
    assert 0 < sum(kept()) <= MOST


def test_a_training_loop_asks_for_no_fresh_memory(monkeypatch):
    made = []

    def counted(size, dtype):
        made.append(size)
        return np.empty(size, dtype)

    watched = SimpleNamespace(empty=counted, asarray=np.asarray)

    lstm, x = LSTM(16, 64, 2, seed=0), np.ones((16, 40, 16), "float32")
    with engine("simd"):
        results = []
        for step in range(3):
            if step == 1:
                monkeypatch.setattr(reserve, "numpy", watched)
            lstm.clear_gradients()
            y, _ = lstm(x)
            dx, _ = lstm.backward(np.ones_like(y))
            results.append([y, dx, *(parameter.grad.copy() for parameter in lstm.parameters())])
    assert kept()
    assert made, "small pieces are made each time"
    assert max(made) < LARGE
    for later in results[1:]:
        for array, first in zip(later, results[0], strict=True):
            assert np.array_equal(array, first)
