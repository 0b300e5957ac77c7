"""Dropout: the mask is a function of (seed, call, layer, t, row, feature) and of nothing else."""

import itertools
import math

import numpy as np
import pytest
from oracle import dropout_mask, philox

from cupy_lstm import LSTM, no_grad, plan
from cupy_lstm.dropout import Dropout


def mask_of(dropout, T, B, F, layer=1, dtype="float64"):
    """Factors that `dropout` multiplies by, read from its effect on ones."""
    array = np.ones((T, B, F), dtype)
    dropout.apply(array, layer)
    return array


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("probability", [0.0, 0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize(
    ("T", "B", "F", "layer", "seed", "call"),
    [
        (3, 4, 5, 1, 0, 0),
        (2, 3, 8, 1, 1, 0),  # a whole block of features
        (2, 3, 9, 2, 0, 1),  # one more
        (4, 2, 17, 7, 2**64 - 1, 2**64 - 1),
        (1, 1, 1, 1, 2**63 + 5, 3),
        (5, 0, 3, 1, 0, 0),
        (0, 2, 3, 1, 0, 0),
    ],
)
def test_mask_is_philox(T, B, F, layer, seed, call, probability, dtype):
    expected = dropout_mask(T, B, F, layer=layer, probability=probability, seed=seed, call=call)
    found = mask_of(Dropout(probability, seed, call), T, B, F, layer, dtype)
    # The one rounding is that of the factor.
    assert np.array_equal(found, expected.astype(dtype))


@pytest.mark.parametrize("offset", [-1, -0.25, 0, 0.25, 0.5, 0.75, 1])
def test_threshold_is_exact(offset):
    """An element is dropped where its 32 bits are below p * 2^32, a comparison of real numbers."""
    seed, call, layer = 7, 11, 3
    bits = philox((0, 0, layer, 0), (seed, call))[0] & 0xFFFFFFFF
    mask = mask_of(Dropout((bits + offset) / 2**32, seed, call), 1, 1, 1, layer)
    assert (mask[0, 0, 0] == 0) == (offset > 0)


def test_probabilities_next_to_zero_and_one():
    shape = (4, 30, 40)
    assert mask_of(Dropout(5e-324, 0, 0), *shape).min() == 1
    for probability in (np.nextafter(1, 0), 1 - 2**-40):
        # Below p * 2^32 > 2^32 - 1 are all values of 32 bits.
        assert not mask_of(Dropout(float(probability), 0, 0), *shape, dtype="float32").any()
    # The largest scale that float32 meets in earnest: one element in 2^10, times 2^10.
    mask = mask_of(Dropout(1 - 2**-10, 0, 0), *shape, dtype="float32")
    assert set(np.unique(mask)) == {0, 2**10}


def rearranged(array):
    """Return equal arrays in other memory layouts."""
    yield array.copy()
    yield array.copy(order="F")
    yield array.swapaxes(0, 1).copy().swapaxes(0, 1)
    yield np.repeat(array, 2, axis=2)[..., ::2]
    yield array[::-1].copy()[::-1]


def test_memory_layout_does_not_matter():
    array = np.random.default_rng(0).standard_normal((4, 3, 11))
    dropout = Dropout(0.4, 1, 2)
    expected = array * mask_of(dropout, *array.shape)
    for other in rearranged(array):
        dropout.apply(other, 1)
        assert np.array_equal(other, expected)


@pytest.mark.parametrize("F", [1, 8, 13])
def test_a_part_of_the_batch_has_its_part_of_the_mask(F):
    whole = mask_of(Dropout(0.5, 3, 4), 3, 7, F)
    for start, stop in itertools.combinations(range(8), 2):
        part = mask_of(Dropout(0.5, 3, 4, first_row=start), 3, stop - start, F)
        assert np.array_equal(part, whole[:, start:stop])


def test_fewer_steps_or_rows_have_the_first_part_of_the_mask():
    whole = mask_of(Dropout(0.5, 3, 4), 5, 7, 9)
    assert np.array_equal(mask_of(Dropout(0.5, 3, 4), 2, 3, 9), whole[:2, :3])


N = (64, 32, 48)
COUNT = math.prod(N)


def binomial_bound(probability):
    """Five standard deviations of a Binomial(COUNT, probability), in counts.

    By the normal limit a fair draw leaves it once in 1.7 million; the seeds here are fixed.
    """
    return 5 * math.sqrt(COUNT * probability * (1 - probability))


@pytest.mark.parametrize("probability", [0.01, 0.1, 0.3, 0.5, 0.8, 0.99])
@pytest.mark.parametrize("seed", [0, 1, 2**64 - 1])
def test_fraction_that_is_dropped(probability, seed):
    dropped = mask_of(Dropout(probability, seed, 0), *N) == 0
    assert abs(dropped.sum() - COUNT * probability) <= binomial_bound(probability)
    # Each step, row and feature has its share: the largest of m counts of n elements is bounded
    # as above, at 5 + sqrt(2 log m) deviations.
    for axis, m in enumerate(N):
        n = COUNT // m
        counts = dropped.sum(axis=tuple({0, 1, 2} - {axis}))
        bound = (5 + math.sqrt(2 * math.log(m))) * math.sqrt(n * probability * (1 - probability))
        assert abs(counts - n * probability).max() <= bound


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(lambda: mask_of(Dropout(0.5, 0, 1), *N), id="call"),
        pytest.param(lambda: mask_of(Dropout(0.5, 1, 0), *N), id="seed"),
        pytest.param(lambda: mask_of(Dropout(0.5, 0, 0), *N, layer=2), id="layer"),
        *(
            pytest.param(
                lambda axis=axis, by=by: np.roll(mask_of(Dropout(0.5, 0, 0), *N), by, axis),
                id=f"{name}+{by}",
            )
            for axis, name in enumerate(["step", "row", "feature"])
            for by in (1, 2, 8)
        ),
    ],
)
def test_masks_are_independent(other):
    """Two independent masks of p = 1/2 agree in half of the elements, within the bound."""
    agree = (mask_of(Dropout(0.5, 0, 0), *N) == other()).sum()
    assert abs(agree - COUNT / 2) <= binomial_bound(0.5)


def test_expectation_is_kept():
    """The mean of the factors is 1, within the binomial bound times the factor."""
    for probability in (0.1, 0.5, 0.9):
        mask = mask_of(Dropout(probability, 5, 0), *N)
        bound = binomial_bound(probability) / (1 - probability) / COUNT
        assert abs(mask.mean() - 1) <= bound


# Through the face. The second layer's gates are held open and its input is passed on, so that an
# output is zero exactly where its input was dropped.

F = 5  # features of each layer's output, a direction


def revealing(probability, seed=0, **options):
    """Return an LSTM of two layers whose outputs are tanh(tanh(inputs of the second))."""
    lstm = LSTM(3, F, 2, dropout=probability, seed=seed, dtype="float64", **options)
    for name in ("weight_ih_l1", "weight_hh_l1", "bias_ih_l1", "bias_hh_l1"):
        getattr(lstm, name).set_value(np.zeros(getattr(lstm, name).shape))
    weight, bias = np.zeros((4 * F, F)), np.zeros(4 * F)
    weight[2 * F : 3 * F] = np.eye(F)
    bias[:F], bias[F : 2 * F], bias[3 * F :] = 40, -800, 40  # i open, f zero, o open
    lstm.weight_ih_l1.set_value(weight)
    lstm.bias_ih_l1.set_value(bias)
    return lstm


def kept_by(lstm, T=6, B=4, **call):
    """Return [T,B,F] which inputs of the second layer the call kept."""
    x = np.random.default_rng(0).standard_normal((T, B, 3))
    y, _ = lstm(x if lstm.time_major else x.swapaxes(0, 1), **call)
    return (y if lstm.time_major else y.swapaxes(0, 1)) != 0


def expected(lstm, call, T=6, B=4):
    mask = dropout_mask(
        T, B, F, layer=1, probability=lstm.dropout, seed=lstm.dropout_seed, call=call
    )
    return mask != 0


def test_every_call_has_a_new_mask():
    lstm = revealing(0.5)
    for call in range(3):
        assert lstm.dropout_calls == call
        assert np.array_equal(kept_by(lstm), expected(lstm, call))


@pytest.mark.parametrize("time_major", [False, True])
@pytest.mark.parametrize("chunk_bytes", [1, 2000, 2**22])
def test_mask_depends_on_no_layout_and_no_chunk(time_major, chunk_bytes, monkeypatch):
    monkeypatch.setitem(plan.CHUNK_BYTES, "numpy", chunk_bytes)
    monkeypatch.setattr(plan, "SIMD_CHUNK_BYTES", chunk_bytes)
    lstm = revealing(0.5, time_major=time_major)
    assert np.array_equal(kept_by(lstm), expected(lstm, 0))


def test_mask_depends_on_no_tape_and_no_lengths():
    lstm = revealing(0.5)
    lengths = np.array([6, 3, 0, 5])
    valid = np.arange(6)[:, None, None] < lengths[:, None]
    assert np.array_equal(kept_by(lstm, sequence_length=lengths), expected(lstm, 0) & valid)
    with no_grad():
        assert np.array_equal(kept_by(lstm), expected(lstm, 1))


def test_a_key_repeats_its_mask():
    lstm = revealing(0.5)
    first, second = kept_by(lstm), kept_by(lstm)
    assert not np.array_equal(first, second)
    lstm.dropout_calls = 0
    assert np.array_equal(kept_by(lstm), first)
    assert np.array_equal(kept_by(lstm), second)
    other = revealing(0.5, seed=1)
    assert not np.array_equal(kept_by(other), first)
    other.dropout_seed, other.dropout_calls = lstm.dropout_seed, 0
    assert np.array_equal(kept_by(other), first)
    assert np.array_equal(kept_by(revealing(0.5, seed=0)), first)


def test_without_a_seed_layers_have_masks_of_their_own():
    assert LSTM(3, 4).dropout_seed != LSTM(3, 4).dropout_seed


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_nothing_and_everything(probability):
    assert (kept_by(revealing(probability)) == (probability == 0)).all()


def test_everything_dropped_stops_the_gradient():
    lstm = revealing(1.0)
    kept_by(lstm)
    dx, _ = lstm.backward(np.ones((4, 6, F)))
    assert not dx.any()
    assert not lstm.weight_ih_l0.grad.any()
    assert not lstm.weight_ih_l1.grad.any()
    assert lstm.bias_ih_l1.grad.any()


def test_evaluation_drops_nothing_and_uses_up_no_mask():
    lstm = revealing(0.5).eval()
    assert kept_by(lstm).all()
    assert lstm.dropout_calls == 0
    assert np.array_equal(kept_by(lstm.train()), expected(lstm, 0))


def test_dropout_is_read_at_each_call():
    lstm = revealing(0.0)
    assert kept_by(lstm).all()
    lstm.dropout = 0.5
    assert np.array_equal(kept_by(lstm), expected(lstm, 0))
    lstm.dropout = 0.9
    assert np.array_equal(kept_by(lstm), expected(lstm, 1))


def test_one_layer_has_nothing_to_drop():
    lstm = LSTM(3, 4, dropout=0.9, seed=0)
    x = np.ones((2, 5, 3), "float32")
    first, _ = lstm(x)
    second, _ = lstm.eval()(x)
    assert np.array_equal(first, second)
    assert lstm.dropout_calls == 0


def test_backward_uses_the_mask_of_its_call():
    """The gradient of the first layer's output is zero exactly where it was dropped."""
    lstm = revealing(0.5)
    # No recurrence in the first layer either, so that dx of a step tells of that step alone.
    lstm.weight_hh_l0.set_value(np.zeros((4 * F, F)))
    bias = np.zeros(4 * F)
    bias[F : 2 * F] = -800  # f is zero
    lstm.bias_ih_l0.set_value(bias)
    lstm.bias_hh_l0.set_value(np.zeros(4 * F))
    for call in range(2):
        kept_by(lstm)
        for feature in range(F):
            lstm.dropout_calls = call
            kept_by(lstm)
            dy = np.zeros((4, 6, F))
            dy[..., feature] = 1
            dx, _ = lstm.backward(dy)
            kept = dx.swapaxes(0, 1).any(axis=2)
            assert np.array_equal(kept, expected(lstm, call)[..., feature])


def test_a_failed_call_uses_up_no_mask():
    lstm = revealing(0.5)
    with pytest.raises(ValueError, match="sequence_length"):
        kept_by(lstm, sequence_length=[7, 1, 1, 1])
    assert lstm.dropout_calls == 0
