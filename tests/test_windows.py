"""Sliding windows and batches."""

import numpy as np
import pytest

from cupy_lstm.windows import Batches, sliding_windows

SERIES = np.arange(40.0).reshape(10, 4)


@pytest.mark.parametrize("features", [(), (4,), (2, 3), (0,)], ids=str)
@pytest.mark.parametrize(
    ("length", "stride"), [(1, 1), (3, 1), (3, 2), (3, 3), (3, 20), (4, 5), (10, 1), (10, 7)]
)
def test_windows(length, stride, features):
    series = np.arange(10 * int(np.prod(features))).reshape(10, *features)
    windows = sliding_windows(series, length, stride)
    expected = [series[start : start + length] for start in range(0, 10 - length + 1, stride)]
    assert windows.dtype == series.dtype
    assert np.array_equal(windows, np.stack(expected))


@pytest.mark.parametrize(
    "series",
    [SERIES[::-1], SERIES[:, ::2], SERIES.T, np.asfortranarray(SERIES)],
    ids=["reversed", "strided", "transposed", "fortran"],
)
def test_windows_of_any_layout(series):
    windows = sliding_windows(series, 3)
    assert np.array_equal(windows, np.stack([series[k : k + 3] for k in range(len(series) - 2)]))


def test_windows_are_a_read_only_view():
    series = SERIES.copy()
    windows = sliding_windows(series, 3)
    assert np.shares_memory(windows, series) and windows.base is not None
    with pytest.raises(ValueError, match="read-only"):
        windows[0, 0, 0] = 1
    series[2, 0] = -1
    assert windows[0, 2, 0] == windows[1, 1, 0] == windows[2, 0, 0] == -1


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([1, 2, 3], 2), TypeError, "series must be an array of numpy or cupy, received list"),
        ((np.array(1.0), 1), ValueError, "series has no axes"),
        ((SERIES, 11), ValueError, "series has 10 steps, a window of length 11 needs more"),
        ((SERIES, 0), ValueError, "length must be at least 1, received 0"),
        ((SERIES, 2.0), TypeError, "length must be an integer, received 2.0"),
        ((SERIES, 2, 0), ValueError, "stride must be at least 1, received 0"),
        ((SERIES, 2, True), TypeError, "stride must be an integer, received True"),
        ((SERIES[:0], 1), ValueError, "series has 0 steps"),
    ],
)
def test_bad_windows(arguments, error, message):
    with pytest.raises(error, match=message):
        sliding_windows(*arguments)


X = np.arange(20.0).reshape(10, 2)
Y = np.arange(10)


@pytest.mark.parametrize(
    ("batch_size", "drop_last", "sizes"),
    [
        (3, False, [3, 3, 3, 1]),
        (3, True, [3, 3, 3]),
        (5, False, [5, 5]),
        (5, True, [5, 5]),
        (20, False, [10]),
        (20, True, []),
        (1, True, [1] * 10),
    ],
)
@pytest.mark.parametrize("shuffle", [False, True])
def test_batches_cover_every_sample_once(batch_size, drop_last, sizes, shuffle):
    batches = Batches(X, Y, batch_size, shuffle=shuffle, drop_last=drop_last, seed=0)
    for _ in range(2):
        seen = list(batches)
        assert [len(y) for _, y in seen] == sizes and len(batches) == len(sizes)
        for x, y in seen:
            assert np.array_equal(x, X[y])
        samples = [sample for _, y in seen for sample in y]
        assert len(set(samples)) == sum(sizes)
        if not shuffle:
            assert samples == list(range(sum(sizes)))


def orders(batches, epochs):
    return [np.concatenate([y for _, y in batches]).tolist() for _ in range(epochs)]


def test_every_epoch_has_its_order():
    first = orders(Batches(X, Y, 3, shuffle=True, seed=7), 4)
    assert first == orders(Batches(X, Y, 4, shuffle=True, seed=7), 4)
    assert len({tuple(order) for order in first}) == 4
    assert first != orders(Batches(X, Y, 3, shuffle=True, seed=8), 4)


def test_the_seed_in_use_repeats_the_orders():
    batches = Batches(X, Y, 3, shuffle=True)
    assert batches.seed != Batches(X, Y, 3, shuffle=True).seed
    again = Batches(X, Y, 3, shuffle=True, seed=batches.seed)
    assert orders(batches, 3) == orders(again, 3)


def test_epochs_are_counted_and_can_be_set():
    batches = Batches(X, Y, 3, shuffle=True, seed=7)
    assert batches.epoch == 0
    four = orders(batches, 4)
    assert batches.epoch == 4
    batches.epoch = 2
    assert orders(batches, 2) == four[2:]


def test_two_iterations_at_once_are_two_epochs():
    first, second = orders(Batches(X, Y, 3, shuffle=True, seed=7), 2)
    batches = Batches(X, Y, 3, shuffle=True, seed=7)
    pairs = list(zip(batches, batches, strict=True))
    assert np.concatenate([y for (_, y), _ in pairs]).tolist() == first
    assert np.concatenate([y for _, (_, y) in pairs]).tolist() == second


def test_weights_go_with_their_samples():
    for x, y, weights in Batches(X, Y, 4, shuffle=True, weights=Y / 2):
        assert np.array_equal(weights, y / 2) and len(x) == len(weights)


@pytest.mark.parametrize("inputs", [(X,), (X, -X), (X, Y, X)], ids=len)
def test_several_inputs_come_as_a_tuple(inputs):
    for several, y in Batches(inputs, Y, 4, shuffle=True):
        assert isinstance(several, tuple) and len(several) == len(inputs)
        for part, whole in zip(several, inputs, strict=True):
            assert np.array_equal(part, whole[y])


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize(
    "inputs",
    [
        X,
        sliding_windows(np.arange(24.0).reshape(12, 2), 3),
        sliding_windows(np.arange(36.0).reshape(12, 3), 3).transpose(0, 2, 1),
        np.asfortranarray(np.arange(60.0).reshape(10, 3, 2)),
    ],
    ids=["plain", "windows", "transposed windows", "fortran"],
)
def test_a_batch_is_fresh_and_contiguous(inputs, shuffle):
    for x, y in Batches(inputs, Y, 4, shuffle=shuffle):
        assert x.flags.c_contiguous and x.flags.writeable and y.flags.writeable
        assert not np.shares_memory(x, inputs) and not np.shares_memory(y, Y)
        assert np.array_equal(x, inputs[y])


def test_windows_far_larger_than_memory_are_not_copied():
    series = np.zeros((2**17, 4), "float32")
    windows = sliding_windows(series, 2**16)  # 64 GiB if it were copied
    batches = Batches(windows, windows[:, -1], 2, shuffle=True, seed=0)
    x, y = next(iter(batches))
    assert x.shape == (2, 2**16, 4) and y.shape == (2, 4) and len(batches) == 2**15 + 1


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Batches([1, 2], Y, 2), TypeError, "inputs must be an array .* received list"),
        (lambda: Batches((X, None), Y, 2), TypeError, r"inputs\[1\] must be an array"),
        (lambda: Batches((), Y, 2), ValueError, "inputs is an empty tuple"),
        (lambda: Batches(X, [0] * 10, 2), TypeError, "targets must be an array of numpy, received"),
        (lambda: Batches(X, Y[:9], 2), ValueError, "targets has 9 samples, but inputs have 10"),
        (lambda: Batches((X, X[:3]), Y, 2), ValueError, r"inputs\[1\] has 3 samples, but inputs"),
        (lambda: Batches(np.array(1.0), Y, 2), ValueError, "inputs has no axes"),
        (lambda: Batches(X, np.array(1), 2), ValueError, "targets has no axes"),
        (lambda: Batches(X, Y, 2, weights=Y[:9]), ValueError, "weights has 9 samples, but inputs"),
        (
            lambda: Batches(X, Y, 2, weights=[1] * 10),
            TypeError,
            "weights must be an array of numpy",
        ),
        (lambda: Batches(X, Y, 0), ValueError, "batch_size must be at least 1, received 0"),
        (lambda: Batches(X, Y, 2.0), TypeError, "batch_size must be an integer, received 2.0"),
        (lambda: Batches(X, Y, 2, seed=-1), ValueError, "seed must be at least 0, received -1"),
        (lambda: Batches(X, Y, 2, seed="a"), TypeError, "seed must be an integer, received 'a'"),
        (lambda: setattr(Batches(X, Y, 2), "epoch", -1), ValueError, "epoch must be at least 0"),
        (lambda: setattr(Batches(X, Y, 2), "epoch", 1.5), TypeError, "epoch must be an integer"),
    ],
)
def test_bad_batches(make, error, message):
    with pytest.raises(error, match=message):
        make()
