"""Teams for cards that are not here: limits, coverage, choice, reasons, and what a step costs."""

from dataclasses import replace
from itertools import product

import pytest
from devices import DTYPES, any_devices, any_shapes, cards
from full import FULL
from hypothesis import given, settings
from hypothesis import strategies as st

from cupy_lstm import explain_plan
from cupy_lstm.cost import recurrence_clocks, stepwise_seconds
from cupy_lstm.device import CARDS
from cupy_lstm.notation import Shape
from cupy_lstm.persistent.blocks import Blocks, blocks_for
from cupy_lstm.persistent.teams import (
    CLUSTERS,
    LANES,
    TENSOR,
    TENSOR_TF32,
    THREADS,
    Teams,
    fitting_teams,
    teams_of,
)
from cupy_lstm.persistent.tiers import (
    NEAR,
    WAITING,
    best_teams,
    capacity,
    pass_clocks,
    tier_for,
)
from cupy_lstm.persistent.tiles import ITEMSIZE, block_capacity
from cupy_lstm.plan import ENGINES, REASONS, plan_sweep

many = settings(max_examples=2000 if FULL else 150)
dtypes = st.sampled_from(DTYPES)
each_card = pytest.mark.parametrize("card", CARDS)
each_dtype = pytest.mark.parametrize("dtype", DTYPES)


def works_of(found, training):
    return (found.forward, found.backward)[: 1 + training]


# --- limits --------------------------------------------------------------------------------------


@many
@given(any_shapes(), dtypes, any_devices(), st.booleans())
def test_teams_keep_every_limit_of_the_device(shape, dtype, device, training):
    _, B, _, H, _, D = shape
    for found in fitting_teams(B, H, D, dtype, device, training):
        assert device.compute_capability >= (7, 5)
        for work in works_of(found, training):
            assert work.shared_bytes <= device.shared_memory_per_block
        assert found.threads <= device.max_threads_per_block
        assert found.threads * found.registers <= device.registers_per_multiprocessor
        # Each multiprocessor runs one block, so all of a launch run at once.
        assert found.grid[0] * found.grid[1] <= device.multiprocessors
        assert found.directions in (1, D)
        assert found.units * found.form.rows <= THREADS  # a thread for each cell of a tile
        if found.tier == "cluster":
            assert device.cluster_launch
            assert found.blocks in CLUSTERS
        else:
            assert device.cooperative_launch
        if found.form != LANES:
            assert device.compute_capability >= (8, 0)
            assert found.form == (TENSOR_TF32 if dtype == "float32" else TENSOR)
            assert dtype != "float32" or device.tf32


@many
@given(any_shapes(), dtypes, any_devices(), st.booleans())
def test_units_and_rows_are_covered_once_and_no_block_is_too_many(shape, dtype, device, training):
    _, B, _, H, _, D = shape
    for found in fitting_teams(B, H, D, dtype, device, training):
        assert found.units * found.blocks >= H
        fewer = found.blocks // 2 if found.tier == "cluster" else found.blocks - 1
        assert found.units * fewer < H or found.blocks == min(CLUSTERS)
        slices = found.tiles * found.form.rows
        assert slices * found.teams >= B
        assert slices * (found.teams - 1) < max(B, 1)
        assert D % found.directions == 0
        # Both directions in one launch where there is room for both.
        assert (found.directions == D) == (found.blocks * D <= device.multiprocessors)


@many
@given(any_shapes(), dtypes, any_devices(), st.booleans())
def test_the_capacity_is_the_only_limit_of_one_tile(shape, dtype, device, training):
    H = shape.H
    shape = shape._replace(B=1, P=H)
    found = tier_for(shape, dtype, device, training)
    if device.compute_capability < (7, 5):
        assert found == blocks_for(shape, dtype, device, training)
        return
    blocks = blocks_for(shape, dtype, device, training)
    largest = capacity(dtype, device, training)
    assert (best_teams(1, H, shape.D, dtype, device, training) is not None) == (
        largest >= H and any_teams(H, dtype, device, training)
    )
    if isinstance(found, str):
        assert isinstance(blocks, str)
        assert largest < H
        most = max(block_capacity(dtype, device.shared_memory_per_block, training), largest)
        assert f"hidden_size is at most {most} in {dtype} on this device, not {H}" in found


def any_teams(H, dtype, device, training):
    """Whether there are teams for H: a block of enough units would have no others to wait for."""
    return any(fitting_teams(1, H, 1, dtype, device, training))


@each_dtype
@each_card
@pytest.mark.parametrize("training", [False, True])
def test_forced_at_the_capacity_and_beyond(card, dtype, training):
    device = CARDS[card]
    largest = capacity(dtype, device, training)
    assert 256 < largest < 4096
    for H in (largest - 1, largest):
        found = plan_sweep(Shape(9, 3, 200, H, H, 2), dtype, "cupy", training, "persistent", device)
        assert (found.engine, found.reason) == ("persistent", "forced by cupy_lstm.engine(...)")
        assert found.tier == "grid"
    beyond = Shape(9, 3, 200, largest + 1, largest + 1, 2)
    with pytest.raises(ValueError) as raised:
        plan_sweep(beyond, dtype, "cupy", training, "persistent", device)
    assert str(raised.value) == (
        "the engine 'persistent' cannot serve this call: its recurrent weights must fit on the "
        f"multiprocessors together: hidden_size is at most {largest} in {dtype} on this device, "
        f"not {largest + 1}"
    )


def test_more_rows_than_fit_say_so():
    device = CARDS["RTX 3050 Laptop"]
    shape = Shape(9, 10**5, 8, 320, 320, 1)
    assert tier_for(shape, "float32", device, True) == (
        "100000 rows are more than the shared memory of its teams holds"
    )


def test_what_a_device_cannot_launch_is_not_planned():
    shape = Shape(9, 8, 8, 200, 200, 1)
    tiers = {
        (clusters, together): tier_for(
            shape,
            "float16",
            replace(CARDS["H100"], cluster_launch=clusters, cooperative_launch=together),
            True,
        )
        for clusters, together in product([True, False], repeat=2)
    }
    assert tiers[True, True].tier == tiers[True, False].tier == "cluster"
    assert tiers[False, True].tier == "grid"
    assert "hidden_size is at most 160 in float16" in tiers[False, False]
    old = replace(CARDS["T4"], compute_capability=(7, 0))
    assert "must fit on one multiprocessor" in tier_for(shape, "float16", old, True)


# --- choice --------------------------------------------------------------------------------------


@given(any_shapes(projected=False), dtypes, any_devices(), st.booleans())
def test_the_fewest_blocks_of_those_as_fast(shape, dtype, device, training):
    _, B, _, H, _, D = shape
    found = best_teams(B, H, D, dtype, device, training)
    clocks = {
        one: pass_clocks(one, dtype, device, D, training)
        for one in fitting_teams(B, H, D, dtype, device, training)
    }
    if found is None:
        assert not clocks
        return
    assert clocks[found] <= NEAR * min(clocks.values())
    for one, taken in clocks.items():
        if one.blocks * one.teams * one.directions < found.grid[0] * found.grid[1]:
            assert taken > NEAR * min(clocks.values())


@given(any_shapes(projected=False), dtypes, cards, st.booleans(), st.integers(1, 100))
def test_a_larger_card_is_not_slower(shape, dtype, card, training, more):
    _, B, _, H, _, D = shape
    larger = replace(card, multiprocessors=card.multiprocessors + more)
    small, large = (best_teams(B, H, D, dtype, one, training) for one in (card, larger))
    if small is not None:
        before, after = (
            pass_clocks(one, dtype, on, D, training) for one, on in ((small, card), (large, larger))
        )
        assert after <= NEAR * before


@given(any_shapes(projected=False), dtypes, cards, st.booleans())
def test_more_rows_are_not_faster(shape, dtype, device, training):
    _, B, _, H, _, D = shape
    found = [best_teams(rows, H, D, dtype, device, training) for rows in (B, 2 * B + 1)]
    if found[1] is not None:
        few, many = (pass_clocks(one, dtype, device, D, training) for one in found)
        assert few <= NEAR * many


@given(any_shapes(projected=False), dtypes, cards, st.booleans())
def test_blocks_wait_for_nobody_unless_teams_are_much_faster(shape, dtype, device, training):
    _, B, _, H, _, D = shape
    blocks = blocks_for(shape, dtype, device, training)
    found = best_teams(B, H, D, dtype, device, training)
    chosen = tier_for(shape, dtype, device, training)
    if isinstance(blocks, str):
        assert chosen == found or isinstance(chosen, str)
    elif found is None:
        assert chosen == blocks
    else:
        longer, shorter = (pass_clocks(one, dtype, device, D, training) for one in (blocks, found))
        assert chosen == (blocks if longer <= WAITING * shorter else found)


@pytest.mark.parametrize(
    ("card", "dtype", "H", "tier"),
    [
        ("T4", "float32", 90, "block"),
        ("T4", "float32", 128, "grid"),
        ("H100", "float32", 100, "block"),
        ("H100", "float16", 64, "block"),
        ("H100", "float16", 160, "cluster"),  # eight multiprocessors and their tensor cores
        ("H100", "float32", 150, "cluster"),
        ("H100", "float16", 768, "grid"),
        ("A100", "bfloat16", 768, "grid"),
    ],
)
def test_tiers_of_known_layers(card, dtype, H, tier):
    found = plan_sweep(Shape(100, 16, H, H, H, 1), dtype, "cupy", device=CARDS[card])
    assert (found.engine, found.tier) == ("persistent", tier)
    assert found.reason == REASONS[tier]


def test_tf32_is_used_where_it_is_asked_for_and_fits():
    device = CARDS["H100"]
    asked = replace(device, tf32=True)
    assert {one.form for one in fitting_teams(16, 400, 1, "float32", device, True)} == {LANES}
    assert best_teams(16, 400, 1, "float32", asked, True).form == TENSOR_TF32
    assert best_teams(1, 1000, 1, "float32", asked, True).form == LANES  # more rows, more memory
    old = replace(CARDS["T4"], tf32=True)
    assert best_teams(16, 400, 1, "float32", old, True).form == LANES


@many
@given(any_shapes(projected=False), dtypes, cards, st.booleans())
def test_steps_that_would_be_slower_stay_stepwise(shape, dtype, device, training):
    shape = shape._replace(T=100)
    found = tier_for(shape, dtype, device, training)
    chosen = plan_sweep(shape, dtype, "cupy", training, device=device)
    if not isinstance(found, Teams):
        return
    seconds = pass_clocks(found, dtype, device, shape.D, training) / device.clock_hz
    assert (chosen.engine == "stepwise") == (
        seconds > (1 + training) * stepwise_seconds(shape, dtype, device)
    )
    if chosen.engine == "stepwise":
        assert chosen.reason == (
            "not persistent, by the model a GEMM a step is faster, launches included"
        )
        forced = plan_sweep(shape, dtype, "cupy", training, "persistent", device)
        assert forced.launch == found
    else:
        assert chosen.launch == found


# --- what a step costs ---------------------------------------------------------------------------


def test_the_counts_of_a_step_by_hand():
    device = CARDS["A100"]
    found = teams_of("grid", TENSOR, 16, 5, 20, 80, 2, 2, 30)
    assert (found.teams, found.tiles, found.directions, found.grid) == (3, 1, 2, (15, 2))
    shape = Shape(10, 20, 16, 80, 80, 2)
    planned = plan_sweep(shape, "float16", "cupy", True, device=device)
    planned = replace(planned, launch=found)
    cost = planned.cost()
    # Two terms of 64 values, all in registers: 16 warps load 32 lanes x 8 bytes of the vector each.
    assert found.forward[:3] == (64, 2, 0)
    assert cost.shared_bytes == 30 * 16 * 2 * 256
    assert (cost.barriers, cost.launches, cost.weight_bytes) == (4, 0, 0)
    # Where the directions follow each other, every step is run twice.
    alone = found._replace(directions=1)
    one, both = (
        recurrence_clocks(launch, "float16", device, 2, False) for launch in (found, alone)
    )
    assert both == 2 * one


def test_other_tiles_hide_the_exchange():
    device = CARDS["H100"]
    clocks = [
        recurrence_clocks(
            teams_of("grid", TENSOR, 16, 8, 8 * n, 128, 1, 2, 8), "float16", device, 1, False
        )
        for n in (1, 2, 4, 8)
    ]
    assert clocks == sorted(clocks)
    assert clocks[1] < 1.5 * clocks[0]
    assert clocks[3] == pytest.approx(2 * clocks[2])


@pytest.mark.parametrize("device", CARDS.values(), ids=list(CARDS))
@pytest.mark.parametrize("tf32", [False, True])
@given(any_shapes(projected=False), dtypes, st.booleans())
@settings(max_examples=100)
def test_no_prediction_is_below_the_floor(device, tf32, shape, dtype, backward):
    device = replace(device, tf32=tf32)
    found = tier_for(shape, dtype, device, True)
    if isinstance(found, str) or not shape.B:
        return
    forced = plan_sweep(shape, dtype, "cupy", True, "persistent", device)
    cost = forced.cost(backward)
    assert cost.predicted_us >= cost.floor_us


# --- in words ------------------------------------------------------------------------------------


def test_teams_are_explained():
    text = explain_plan(1000, 16, 64, 512, device="H100", dtype="float16")
    found = plan_sweep(Shape(1000, 16, 64, 512, 512, 1), "float16", "cupy", device=CARDS["H100"])
    work, name = found.launch, "tensor cores"
    first, launch, cost = text.split("\n")
    assert f": {REASONS['grid']} ({ENGINES['persistent']})" in first
    assert launch == (
        f"  grid tier, teams of {work.blocks} blocks of {work.units} units on {name}: "
        f"{work.grid[0]} x 1 blocks of 512 threads on the 132 multiprocessors of H100, at most 128 "
        f"registers each, {work.forward.shared_bytes / 1024:.1f} and "
        f"{work.backward.shared_bytes / 1024:.1f} KiB of shared memory"
    )
    assert "4 barriers" in cost
    assert "by the model, not measured" in cost
    assert "float32 lanes" in explain_plan(1000, 16, 64, 512, device="H100")


def test_the_sizes_of_the_model_s_table_have_a_tier_on_an_h100():
    """Every H up to the capacity has a plan for a small batch."""
    for dtype in DTYPES:
        largest = capacity(dtype, CARDS["H100"], True)
        for H in range(1, largest + 1, 37):
            found = tier_for(Shape(9, 4, 8, H, H, 1), dtype, CARDS["H100"], True)
            assert isinstance(found, Blocks | Teams), H
        assert ITEMSIZE[dtype] == 4 or largest > 1500
