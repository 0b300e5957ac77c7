"""One step of all layers, ready to be run again: as a sweep of one step, layer after layer."""

import gc
import weakref

import numpy as np
import pytest
from simd_bed import use_threads

from cupy_lstm import LSTM, engine
from cupy_lstm.engines import simd
from cupy_lstm.simd import forward_pass, sharing, threads


def make(B, I, H, L, P=0, dtype="float32"):  # noqa: E741
    """An LSTM whose weights are drawn, a stream of it, and some steps of input."""
    lstm = LSTM(I, H, L, seed=L, dtype=dtype, proj_size=P)
    x = np.random.default_rng(B).standard_normal((7, B, I)).astype(dtype)
    return lstm, lstm.stream(B), x


def ready(stream):
    """The step that a stream runs."""
    (step,) = stream._snapshot._steps.values()
    return step


def stepped(stream, x):
    """Outputs of steps that come one by one, and the state after each of them."""
    return [(stream(one).copy(), *stream.state) for one in x]


def assert_equal(found, expected):
    for step, other in zip(found, expected, strict=True):
        for array, wanted in zip(step, other, strict=True):
            np.testing.assert_array_equal(array, wanted)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize(
    ("B", "I", "H", "L", "P"),
    [(1, 5, 24, 1, 0), (1, 40, 70, 3, 0), (9, 3, 17, 2, 0), (2, 6, 70, 2, 9), (20, 130, 128, 2, 0)],
)
def test_a_step_is_a_sweep_of_one_step(B, I, H, L, P, count, dtype, monkeypatch):  # noqa: E741
    use_threads(monkeypatch, count)
    _, stream, x = make(B, I, H, L, P, dtype)
    _, other, _ = make(B, I, H, L, P, dtype)
    other._snapshot._steps = {"auto": None}
    assert_equal(stepped(stream, x), stepped(other, x))
    assert ready(stream) is not None


def test_threads_that_share_a_row_meet_in_every_step_and_layer(monkeypatch):
    monkeypatch.setattr(sharing, "LARGE_WEIGHTS", 1)
    taken = use_threads(monkeypatch, 2)
    _, stream, x = make(1, 16, 8 * 16, 3)
    found = stepped(stream, np.repeat(x, 30, axis=0))
    monkeypatch.setattr(threads, "thread_count", lambda: 1)
    _, alone, _ = make(1, 16, 8 * 16, 3)
    assert_equal(found, stepped(alone, np.repeat(x, 30, axis=0)))
    assert {1, 2} == set(taken)


def test_threads_meet_between_layers_that_they_divide_differently(monkeypatch):
    """Rows of the first layer, and units of the second: each needs what the other thread made."""
    split, divided = sharing.split, []

    def by_layer(layout, *more):
        monkeypatch.setattr(sharing, "LARGE_WEIGHTS", 1 if layout.shape.I == 128 else 2**62)
        parts = split(layout, *more)
        divided.append(parts[0][0].team)
        return parts

    monkeypatch.setattr(sharing, "SMALL_BATCH", 0)
    monkeypatch.setattr(forward_pass, "split", by_layer)
    use_threads(monkeypatch, 2)
    _, stream, x = make(3, 700, 128, 2)
    found = stepped(stream, np.repeat(x, 30, axis=0))
    assert divided[-2:] == [1, 2]
    monkeypatch.setattr(threads, "thread_count", lambda: 1)
    _, alone, _ = make(3, 700, 128, 2)
    assert_equal(found, stepped(alone, np.repeat(x, 30, axis=0)))


def test_the_state_goes_through_steps_ranges_and_other_engines():
    lstm, stream, _ = make(3, 4, 20, 2)
    x = np.random.default_rng(9).standard_normal((10, 3, 4), "float32")
    whole = lstm.stream(3)
    expected = np.swapaxes(whole(np.swapaxes(x, 0, 1)), 0, 1)
    found = [stream(x[0])]
    with engine("stepwise"):
        found.append(stream(x[1]))
    found.append(stream(x[2]))
    with engine("simd"):  # a step of its own, made before and used again
        found.append(stream(x[3]))
    found.append(stream(x[4]))
    with engine("simd"):
        found += list(np.swapaxes(stream(np.swapaxes(x[5:7], 0, 1)), 0, 1))
        found.append(stream(x[7]))
    stream.refresh()
    found.append(stream(x[8]))
    state = stream.state
    stream.reset()
    stream.state = state
    found.append(stream(x[9]))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    for array, other in zip(stream.state, whole.state, strict=True):
        np.testing.assert_allclose(array, other, rtol=0, atol=1e-6)


def test_inputs_and_outputs_of_any_strides():
    _, stream, x = make(3, 4, 20, 1)
    _, other, _ = make(3, 4, 20, 1)
    for one in x:
        out = np.full((20, 6), 7, "float32")
        wide = np.zeros((4, 9), "float32")
        wide[:, 1:7:2] = one.T
        assert stream(wide[:, 1:7:2].T, out=out[:, ::2].T).base is out
        np.testing.assert_array_equal(out[:, ::2].T, other(one))
        assert (out[:, 1::2] == 7).all()


@pytest.mark.parametrize("when", ["before it begins", "before the state is there", "behind it"])
def test_an_interrupted_step_is_taken_back(when, monkeypatch):
    _, stream, x = make(3, 4, 20, 2)
    stream(x[0])
    stream.state = [2 * one for one in stream.state]  # no longer what the last step has kept
    before, run, out = stream.state, threads.Crew.run, np.empty((3, 20), "float32")

    def interrupted(crew, task):
        if when != "before it begins":
            run(crew, task)
        raise KeyboardInterrupt

    if when == "behind it":
        monkeypatch.setattr(ready(stream), "_y_rows", np.empty((3, 7)))  # what is written last
    else:
        monkeypatch.setattr(threads.Crew, "run", interrupted)
    with pytest.raises((KeyboardInterrupt, ValueError)):
        stream(x[1], out=out)
    monkeypatch.undo()
    assert_equal([before], [stream.state])
    _, other, _ = make(3, 4, 20, 2)
    other.state = before
    np.testing.assert_array_equal(stream(x[1]), other(x[1]))


def test_a_stream_frees_what_it_held():
    _, stream, x = make(3, 4, 20, 2)
    stream(x[0])
    gone = weakref.ref(ready(stream))
    gc.disable()
    try:
        del stream
        assert gone() is None  # at once: there is no cycle
    finally:
        gc.enable()


def test_what_a_call_gave_is_not_written_by_the_next_one():
    _, stream, x = make(3, 4, 20, 1)
    first, state = stream(x[0]), stream.state
    kept = first.copy(), [one.copy() for one in state]
    stream(x[1])
    assert_equal([(first, *state)], [(kept[0], *kept[1])])


def test_layers_of_different_inputs_are_prepared_for_the_same_rows():
    lstm, _, _ = make(2, 3, 8, 2)
    prepared = [simd.prepare(layer.arrays()) for layer in lstm._layers]
    step = simd.step_of(prepared, (np.ones((2, 4, 8), "float32"), np.ones((2, 4, 8), "float32")))
    assert all((array == 1).all() for array in step.memory)
    y = np.empty((4, 8), "float32")
    step.run(np.zeros((4, 3), "float32"), y)
    np.testing.assert_array_equal(y, step.memory[0][1])
