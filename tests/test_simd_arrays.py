"""Arrays of any kind through the core: read where they are, written where they should be, only."""

import itertools

import numpy as np
import pytest
from simd_bed import use_threads

from cupy_lstm import engine, engines
from cupy_lstm.functional import lstm_backward, lstm_forward
from cupy_lstm.notation import LayerGradients, LayerWeights, Wanted

T, B, I, H = 6, 7, 9, 21  # noqa: E741


def plain(array):
    return array.copy()


def fortran(array):
    return np.asfortranarray(array)


def strided(array):
    """Every other number of the last axis; NaN between."""
    wide = np.full((*array.shape[:-1], 2 * array.shape[-1]), np.nan, array.dtype)
    wide[..., ::2] = array
    return wide[..., ::2]


def backwards(array):
    """The last axis runs down in memory."""
    return array[..., ::-1].copy()[..., ::-1]


def inset(array):
    """A window of a larger array; NaN around."""
    wide = np.full([size + 2 for size in array.shape], np.nan, array.dtype)
    window = wide[(slice(1, -1),) * array.ndim]
    window[...] = array
    return window


def unaligned(array):
    raw = np.zeros(array.nbytes + 1, np.uint8)
    shifted = raw[1:].view(array.dtype).reshape(array.shape)
    shifted[...] = array
    return shifted


def locked(array):
    array = array.copy()
    array.flags.writeable = False
    return array


KINDS = [fortran, strided, backwards, inset, unaligned, locked]
each_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
each_writable = pytest.mark.parametrize("kind", KINDS[:-1], ids=lambda kind: kind.__name__)
each_dtype = pytest.mark.parametrize("dtype", ["float32", "float64"])
each_width = pytest.mark.parametrize("P", [H, 10])


def bytes_behind(array):
    """The bytes of all the memory an array is a part of."""
    while array.base is not None:
        array = array.base
    return array.tobytes()


def normal(rng, *shape, dtype):
    return (0.4 * rng.standard_normal(shape)).astype(dtype)


def make_weights(rng, P, dtype):
    shapes = (2, 4 * H, I), (2, 4 * H, P), (2, 4 * H), (2, 4 * H), (2, H, P)
    arrays = [normal(rng, *shape, dtype=dtype) for shape in shapes]
    return LayerWeights(*arrays) if P != H else LayerWeights(*arrays[:4], None)


def through_core(kind, P, dtype, time_major):
    """Run the core with every array of a kind; return its results and all that went in."""
    rng = np.random.default_rng(0)
    steps = (T, B) if time_major else (B, T)
    weights = LayerWeights(*(w if w is None else kind(w) for w in make_weights(rng, P, dtype)))
    x = kind(normal(rng, *steps, I, dtype=dtype))
    states = [kind(normal(rng, 2, B, size, dtype=dtype)) for size in (P, H)]
    lengths = np.array([6, 2, 0, 5, 6, 1, 4])
    if kind not in (strided, inset):  # NaN is no integer
        lengths = kind(lengths)
    dy = kind(normal(rng, *steps, 2 * P, dtype=dtype))
    dstates = [kind(normal(rng, 2, B, size, dtype=dtype)) for size in (P, H)]
    dcells = kind(normal(rng, *steps, 2 * H, dtype=dtype))
    given = [x, *states, lengths, dy, *dstates, dcells, *(w for w in weights if w is not None)]
    before = [bytes_behind(array) for array in given]
    with engine("simd"):
        y, final, cells, tape = lstm_forward(
            x,
            [weights],
            tuple(states),
            lengths,
            reverse=(False, True),
            time_major=time_major,
            return_cells=True,
        )
    dx, initial, (gradients,) = lstm_backward(tape, dy, tuple(dstates), dcells)
    assert [bytes_behind(array) for array in given] == before, "the caller's array was written"
    sums = [gradient for gradient in gradients if gradient is not None]
    return [y, *final, cells, dx, *initial, *sums]


@each_dtype
@each_width
@each_kind
@pytest.mark.parametrize("time_major", [False, True])
def test_inputs_and_weights_of_any_kind(kind, P, dtype, time_major):
    expected = through_core(plain, P, dtype, time_major)
    for found, truth in zip(through_core(kind, P, dtype, time_major), expected, strict=True):
        assert np.array_equal(found, truth)


def through_engine(kind, P, dtype, wanted):
    """Run the engine with every array to be written of a kind; return these."""
    rng = np.random.default_rng(0)
    weights = make_weights(rng, P, dtype)
    x = normal(rng, T, B, I, dtype=dtype)
    states = normal(rng, 2, B, P, dtype=dtype), normal(rng, 2, B, H, dtype=dtype)
    dy, dcells = normal(rng, T, B, 2, P, dtype=dtype), normal(rng, T, B, 2, H, dtype=dtype)
    y, cells = (kind(np.full(a.shape, 7, dtype)) for a in (dy, dcells))
    gradients = LayerGradients(
        *(
            None if w is None else kind(np.arange(w.size, dtype=dtype).reshape(w.shape))
            for w in weights
        )
    )
    dx = kind(np.ones_like(x))
    if P == H:
        wanted = wanted._replace(weight_ho=None)
    simd = engines.load("simd")
    final, tape = simd.forward(
        x,
        weights,
        states,
        np.array([6, 2, 0, 5, 6, 1, 4]),
        reverse=(False, True),
        y=y,
        cells=cells,
        keep=True,
        chunk=4,
    )
    initial = simd.backward([tape], dy, final, dcells, wanted=wanted, gradients=gradients, dx=dx)
    return [y, cells, dx, *gradients], [*final, *initial]


EVERYTHING = Wanted(*[slice(None)] * 5)
SOME = [
    Wanted(*(kind if k == index else None for k in range(5)))
    for index, kind in itertools.product(range(5), (slice(None), slice(1, 2)))
]


def outside(array):
    """All numbers of the memory an array is a part of, with zeros for its own."""
    whole = array
    while whole.base is not None:
        whole = whole.base
    if whole.dtype != array.dtype:
        return np.zeros(0)
    array[...] = 0
    return whole.copy()


@each_dtype
@each_width
@each_writable
@pytest.mark.parametrize("threads", [1, 2])
def test_outputs_and_gradients_of_any_kind(kind, P, dtype, threads, monkeypatch):
    use_threads(monkeypatch, threads)
    expected, states = through_engine(plain, P, dtype, EVERYTHING)
    written, found = through_engine(kind, P, dtype, EVERYTHING)
    for some, truth in zip(found, states, strict=True):
        assert np.array_equal(some, truth)
    for array, truth in zip(written, expected, strict=True):
        if truth is None:
            continue
        # A sum that is added later is rounded later; y and cells are no sums.
        rounding = 0 if truth is expected[0] or truth is expected[1] else 2 * np.finfo(dtype).eps
        assert (abs(array - truth) <= rounding * abs(truth).max()).all()
        around = outside(array)
        assert (np.isnan(around) | (around == 0)).all(), "something else was written"


@each_width
@pytest.mark.parametrize("wanted", SOME, ids=str)
def test_nothing_but_what_is_wanted_is_added(P, wanted):
    every, _ = through_engine(plain, P, "float32", EVERYTHING)
    some, _ = through_engine(plain, P, "float32", wanted)
    for name, before, truth, found in zip(
        Wanted._fields, through_nothing(P), every[3:], some[3:], strict=True
    ):
        if truth is None:
            continue
        part = getattr(wanted, name)
        for d in range(2):
            asked = part is not None and d in range(2)[part]
            assert np.array_equal(found[d], (truth if asked else before)[d]), (name, d)


def through_nothing(P):
    untouched, _ = through_engine(plain, P, "float32", Wanted(*[None] * 5))
    for gradient in untouched[3:]:
        if gradient is not None:
            assert np.array_equal(gradient.ravel(), np.arange(gradient.size))
    return untouched[3:]
