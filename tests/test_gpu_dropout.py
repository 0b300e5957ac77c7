"""The dropout kernel gives, bit for bit, what the host gives."""

from math import gcd

import numpy as np
import pytest
from gpu_cases import HALF, each_dtype, storage
from gpu_on_cpu import record

from cupy_lstm.dropout import LANES, Dropout, _kernel

pytestmark = pytest.mark.gpu_on_cpu


def on_the_host(dropout, array, layer):
    """Apply dropout on the host; in float32 for a half type, rounded once."""
    wide = array.astype(np.float32) if array.dtype.name in HALF else array.copy()
    dropout.apply(wide, layer)
    return wide.astype(array.dtype)


def values(shape, dtype, seed=0):
    """Numbers of every magnitude, and both zeros."""
    rng = np.random.default_rng(seed)
    array = rng.standard_normal(shape) * rng.choice([0, -0.0, 1, 1e-3, 1e3], shape)
    return array.astype(storage(dtype))


def assert_bits(cupy, dropout, array, layer=1):
    given = cupy.asarray(array)
    dropout.apply(given, layer)
    assert given.get().tobytes() == on_the_host(dropout, array, layer).tobytes()


@each_dtype
@pytest.mark.parametrize(
    "shape",
    [(1, 1, 1), (3, 4, 5), (2, 3, 8), (2, 3, 9), (5, 1, 16), (1, 9, 31), (40, 17, 33), (2, 2, 0)],
)
def test_every_shape(cupy, shape, dtype):
    assert_bits(cupy, Dropout(0.3, 2**63 + 7, 5), values(shape, dtype))


@each_dtype
@pytest.mark.parametrize("probability", [1e-12, 0.1, 0.5, 0.75, 1 - 2**-31, 1 - 2**-40, 1.0])
def test_every_probability(cupy, probability, dtype):
    if dtype == "float16" and 1 - 2**-31 <= probability < 1:
        array = np.ones((4, 5, 17), np.float16)  # times 2^31 is infinite in float16
    else:
        array = values((4, 5, 17), dtype)
    with np.errstate(over="ignore"):
        assert_bits(cupy, Dropout(probability, 3, 4), array)


@pytest.mark.parametrize("seed", [0, 1, 2**32, 2**64 - 1])
@pytest.mark.parametrize("call", [0, 2**33 + 1, 2**64 - 1])
@pytest.mark.parametrize("layer", [1, 2, 7])
@pytest.mark.parametrize("first_row", [0, 1, 2**40])
def test_every_key_and_position(cupy, seed, call, layer, first_row):
    dropout = Dropout(0.5, seed, call, first_row)
    assert_bits(cupy, dropout, values((2, 3, 11), "float32"), layer)


@each_dtype
def test_a_batch_may_be_split(cupy, dtype):
    whole = cupy.asarray(values((4, 7, 13), dtype))
    parts = [whole[:, :3].copy(), whole[:, 3:].copy()]
    Dropout(0.4, 1, 2).apply(whole, 1)
    for first_row, part in zip((0, 3), parts, strict=True):
        Dropout(0.4, 1, 2, first_row).apply(part, 1)
    assert whole.get().tobytes() == cupy.concatenate(parts, axis=1).get().tobytes()


@each_dtype
def test_what_is_dropped_keeps_its_sign_and_infinities_do_not_vanish(cupy, dtype):
    rows = np.array([[-1.0, 1.0, np.inf, -np.inf, np.nan]] * 40).astype(storage(dtype))[None]
    given = cupy.asarray(rows)
    Dropout(0.5, 1, 2).apply(given, 1)
    found = given.get()
    with np.errstate(invalid="ignore"):
        expected = on_the_host(Dropout(0.5, 1, 2), rows, 1)
    # The sign of a NaN is nobody's promise.
    np.testing.assert_array_equal(found.astype("f8"), expected.astype("f8"))
    number = ~np.isnan(expected.astype("f8"))
    np.testing.assert_array_equal(
        np.signbit(found.astype("f8"))[number], np.signbit(expected.astype("f8"))[number]
    )


@each_dtype
def test_one_kernel_and_nothing_else(cupy, dtype):
    array = cupy.asarray(values((4, 7, 13), dtype))
    with record() as log:
        Dropout(0.4, 1, 2).apply(array, 1)
    assert list(log.counts().values()) == [1]
    assert log.launches[0].name.startswith("dropout<")


@each_dtype
@pytest.mark.parametrize("offset", [0, 1, 2, 4])
@pytest.mark.parametrize("features", [8, 12, 16, 20, 26, 27])
def test_as_wide_as_the_features_and_the_address_allow_and_the_same_bits(
    cupy, features, offset, dtype
):
    """Vectors of 16 bytes, of less where a row does not hold them whole, or of one element."""
    array = values((3, 4, features), dtype)
    whole = cupy.empty(array.size + offset, array.dtype)
    given = whole[offset:].reshape(array.shape)
    given[...] = cupy.asarray(array)
    dropout = Dropout(0.4, 1, 2)
    with record() as log:
        dropout.apply(given, 1)
    width = gcd(features, offset, 16 // array.itemsize)
    assert [entry.name.split(", ")[-1] for entry in log.launches] == [f"{width}>"]
    assert given.get().tobytes() == on_the_host(dropout, array, 1).tobytes()


@each_dtype
def test_fewer_threads_than_blocks_of_features(cupy, dtype):
    """A grid that is too small for one thread an item goes round: the 2^39 items nobody has."""
    dropout, array = Dropout(0.4, 1, 2), values((5, 30, 13), dtype)
    T, B, F = array.shape
    given, kernel = cupy.asarray(array), _kernel(storage(dtype), 1)
    numbers = (1, 2, 1, 0, dropout.threshold, 1 / 0.6, T, B, F)
    arguments = [
        p.dtype.type(number) for p, number in zip(kernel.parameters[1:], numbers, strict=True)
    ]
    assert T * B * -(-F // LANES) == 300
    kernel.function(0)((2,), (32,), [given, *arguments])
    assert given.get().tobytes() == on_the_host(dropout, array, 1).tobytes()
