"""The gradient of the input, which the engine simd sets where it may hold anything, or adds to."""

from itertools import pairwise

import numpy as np
import pytest
from simd_bed import use_threads

from cupy_lstm import LSTM, engine
from cupy_lstm.engines import simd
from cupy_lstm.notation import LayerGradients, LayerWeights, Wanted

REVERSE = {1: (False,), -1: (True,), 2: (False, True)}
LENGTHS = [7, 0, 9, 3, 1, 9, 9, 2]


def gradient_of_input(
    dx, directions, sizes, *, lengths=None, cuts=(0, 9), unset=(), dtype="float32"
):
    """Train a layer on B=8 rows, in ranges of its T=9 steps, backwards for -1; return dx [T,B,I].

    `dx` makes its memory.
    """
    T, B, D, (I, H) = 9, 8, abs(directions), sizes  # noqa: E741
    rng = np.random.default_rng(I + H)
    shapes = (D, 4 * H, I), (D, 4 * H, H), (D, 4 * H), (D, 4 * H)
    weights = LayerWeights(
        *[(0.3 * rng.standard_normal(shape)).astype(dtype) for shape in shapes], None
    )
    x, dy = (rng.standard_normal(shape).astype(dtype) for shape in ((T, B, I), (T, B, D, H)))
    states, zero = (np.zeros((D, B, H), dtype),) * 2, (None, None)
    lengths = None if lengths is None else np.array(lengths)
    tapes = []
    for first, last in pairwise(cuts):
        states, tape = simd.forward(
            x,
            weights,
            states,
            lengths,
            reverse=REVERSE[directions],
            y=np.empty((T, B, D, H), dtype),
            keep=True,
            steps=range(first, last),
            chunk=3,
        )
        tapes.insert(0, tape)
    simd.backward(
        tapes,
        dy,
        zero,
        wanted=Wanted(slice(None), None, None, None, None),
        gradients=LayerGradients(np.zeros_like(weights.weight_ih), None, None, None, None),
        dx=dx((T, B, I), dtype),
        unset=frozenset(unset),
    )
    return dx.array


class Memory:
    """Memory for a gradient, of some content and some strides; other numbers around it stay."""

    def __init__(self, content, kind):
        self.content, self.kind = content, kind

    def __call__(self, sizes, dtype):
        T, B, I = sizes  # noqa: E741
        if self.kind == "rows":
            self.whole = np.full((B, T + 1, I + 3), self.content, dtype)
            self.array = self.whole[:, 1:, 1:-2].swapaxes(0, 1)
        else:
            self.whole = np.full((T, B, 2 * I), self.content, dtype)
            self.array = self.whole[:, :, ::2]
        return self.array


CASES = {
    "a vector and a part": (1, (21, 24)),
    "backwards": (-1, (5, 24)),
    "both at once": (2, (70, 12)),
    "the matrix unit": (1, (64, 128)),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", ["rows", "every other number"])
@pytest.mark.parametrize("cuts", [(0, 9), (0, 4, 9)], ids=["at-once", "in-ranges"])
@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["full", "lengths"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_it_is_set_whatever_was_there(case, lengths, cuts, kind, dtype, monkeypatch):
    use_threads(monkeypatch, 2)
    more = {"lengths": lengths, "cuts": cuts, "dtype": dtype}
    expected = gradient_of_input(Memory(0, kind), *case, **more)
    assert expected.any()
    for _ in range(2):  # passes are made, and run again
        found = Memory(np.nan, kind)
        gradient_of_input(found, *case, unset=["dx"], **more)
        assert found.array.tobytes() == expected.tobytes()
        found.array[...] = np.nan
        assert np.isnan(found.whole).all(), "numbers beside it were written"


def test_directions_at_different_times_both_add_to_it():
    case, cuts = CASES["both at once"], (4, 9)
    expected = gradient_of_input(Memory(0, "rows"), *case, cuts=cuts)
    found = gradient_of_input(Memory(np.nan, "rows"), *case, cuts=cuts, unset=["dx"])
    assert found.tobytes() == expected.tobytes()


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["full", "lengths"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_else_it_is_added_to(case, lengths):
    expected = gradient_of_input(Memory(0, "rows"), *case, lengths=lengths)
    for _ in range(2):
        found = gradient_of_input(Memory(1, "rows"), *case, lengths=lengths)
        np.testing.assert_allclose(found, 1 + expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["full", "lengths"])
def test_fresh_memory_of_all_layers_may_hold_anything(lengths, monkeypatch):
    """What `LSTM.backward` returns, and what it takes from layer to layer."""
    lstm = LSTM(6, 8, 2, direction="bidirect", seed=0)
    x = np.random.default_rng(0).standard_normal((8, 9, 6)).astype("float32")

    def train():
        y, _ = lstm(x, None, lengths)
        return lstm.backward(np.cos(y))[0]

    with engine("simd"):
        expected = train()
        empty, empty_like = np.empty, np.empty_like

        def spoilt(array):
            if array.dtype.kind == "f":
                array.fill(np.nan)
            return array

        monkeypatch.setattr(np, "empty", lambda *args, **more: spoilt(empty(*args, **more)))
        monkeypatch.setattr(np, "empty_like", lambda *args: spoilt(empty_like(*args)))
        found = train()
    assert found.tobytes() == expected.tobytes()
