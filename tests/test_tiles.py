"""The tiles of the engine persistent: what fits where, and that the numbers are the kernels'."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cupy_lstm import kernels
from cupy_lstm.device import CARDS
from cupy_lstm.persistent import tiles
from cupy_lstm.persistent.tiles import (
    ITEMSIZE,
    TILES,
    BlockTile,
    backward_shared_bytes,
    block_capacity,
    block_threads,
    block_tile,
    forward_shared_bytes,
    projects_inside,
)

dtypes = st.sampled_from(list(ITEMSIZE))
shared = st.sampled_from([card.shared_memory_per_block for card in CARDS.values()])


def test_the_numbers_of_the_kernels_are_the_same():
    text = kernels.source("recurrence_block.cuh")
    for name in ("ROWS", "GROUP"):
        found = re.search(rf"constexpr int {name} = (\d+);", text)
        assert found and int(found[1]) == getattr(tiles, name)


def test_tiles_are_in_order_and_few():
    for sizes in TILES.values():
        assert list(sizes) == sorted(sizes, key=lambda tile: tile.threads)
        for tile in sizes:
            assert tile.threads % 128 == 0  # warps come in fours: no registers are left over
            assert tile.forward_terms % tiles.GROUP == tile.backward_terms % tiles.GROUP == 0
    assert 2 * sum(len(TILES[itemsize]) for itemsize in ITEMSIZE.values()) <= 24


@given(st.integers(1, 256), dtypes, shared, st.booleans())
def test_a_tile_fits_and_is_the_smallest_that_does(H, dtype, available, training):
    found, itemsize = block_tile(H, H, dtype, available, (8, 0), training), ITEMSIZE[dtype]

    def fits(tile):
        used = forward_shared_bytes(tile, 0, H, itemsize, False)
        if training:
            used = max(used, backward_shared_bytes(tile, H, itemsize))
        return block_threads(H) <= tile.threads and used <= available

    served = [tile for tile in TILES[itemsize] if fits(tile)]
    if isinstance(found, BlockTile):
        assert found == served[0]
        assert block_threads(H) * found.registers <= tiles.REGISTERS
    else:
        assert not served
        capacity = block_capacity(dtype, available, training)
        assert f"at most {capacity} in {dtype} on this device, not {H}" in found


@pytest.mark.parametrize("dtype", ITEMSIZE)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("available", [1, 16, 64, 99, 163, 227])
def test_every_size_up_to_the_capacity_is_served(dtype, training, available):
    capacity = block_capacity(dtype, 1024 * available, training)
    for H in range(1, 300):
        found = block_tile(H, H, dtype, 1024 * available, (7, 0), training)
        assert isinstance(found, BlockTile) == (capacity >= H)


def test_the_capacity_grows_with_shared_memory_and_without_a_backward_pass():
    for dtype in ITEMSIZE:
        found = [
            (block_capacity(dtype, 1024 * kib, True), block_capacity(dtype, 1024 * kib, False))
            for kib in (64, 99, 163, 227)
        ]
        assert found == sorted(found)
        assert all(training <= inference for training, inference in found)
    half, full = (block_capacity(dtype, 227 * 1024) for dtype in ("float16", "float32"))
    assert half > full


@given(st.integers(1, 100), st.integers(1, 128), dtypes, shared)
def test_a_projection_inside_has_a_thread_for_each_feature_and_fits(I, H, dtype, available):  # noqa: E741
    found, itemsize = block_tile(H, H, dtype, available, (8, 0), False), ITEMSIZE[dtype]
    if isinstance(found, str):
        return
    inside = projects_inside(found, I, H, itemsize, available)
    used = forward_shared_bytes(found, I, H, itemsize, True)
    assert used >= forward_shared_bytes(found, I, H, itemsize, False)
    if inside:
        assert block_threads(H) >= 4 * I
        assert used <= available
    elif used <= available and block_threads(H) >= 4 * I:
        assert I > tiles.INSIDE_FEATURES


def test_shared_bytes_by_hand():
    tile = BlockTile(256, 2, 4)
    # H = 17: 24 units, 96 threads. Forward: 5 terms, 3 of them in shared memory, 6 terms of 4
    # entries of h, of four rows; a bias of four gates a unit.
    forward = 3 * 96 * 4 * 4 + 2 * 6 * 4 * 4 * 4 + 24 * 4 * 4
    assert forward_shared_bytes(tile, 9, 17, 4, False) == forward
    # With 9 features 7 terms, 5 of them shared, and 8 terms of entries.
    inside = 5 * 96 * 4 * 4 + 2 * 8 * 4 * 4 * 4 + 24 * 4 * 4
    assert forward_shared_bytes(tile, 9, 17, 4, True) == inside
    # Backward: 5 terms, one shared, of 2 bytes a weight; 6 terms of 16 entries of dz.
    assert backward_shared_bytes(tile, 17, 2) == 1 * 96 * 4 * 2 + 2 * 6 * 16 * 4 * 4


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ((8, 8, "float64", 65536, (8, 0)), "it serves float32, float16, bfloat16, not float64"),
        ((8, 4, "float32", 65536, (8, 0)), "it serves no projection"),
        ((8, 8, "float32", 65536, (6, 1)),
         "it needs compute capability 7.0 or later, the device has 6.1"),
        ((500, 500, "float32", 65536, (7, 5)),
         "its recurrent weights must fit on one multiprocessor: hidden_size is at most 96 in "
         "float32 on this device, not 500"),
    ],
)  # fmt: skip
def test_reasons(arguments, reason):
    assert block_tile(*arguments) == reason
