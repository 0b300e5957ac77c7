"""Plans of the engine persistent for cards that are not here: limits, coverage, chunks, reasons."""

from dataclasses import replace

import pytest
from cases import Case
from devices import DTYPES, any_devices, any_shapes, cards
from full import FULL
from gpu_on_cpu.device import PROFILES
from gpu_on_cpu.device.profiles import KernelFacts
from hypothesis import given, settings
from hypothesis import strategies as st

from cupy_lstm import explain_plan, plan
from cupy_lstm.cost import blocks_at_once, step_cost
from cupy_lstm.device import CARDS
from cupy_lstm.notation import Shape
from cupy_lstm.persistent.blocks import Blocks, blocks_for
from cupy_lstm.persistent.tiles import ROWS, TILES, block_capacity
from cupy_lstm.plan import ENGINES, FEW_STEPS, LAUNCH_STEPS, WORKSPACE_LIMIT, plan_sweep
from cupy_lstm.workspace import persistent_fixed_bytes, persistent_step_bytes


def is_few(shape, training):
    """Whether the engine single may serve: one launch a step."""
    return shape.T <= FEW_STEPS and not training


many = settings(max_examples=3000 if FULL else 300)
dtypes = st.sampled_from([*DTYPES, "float64"])
LARGEST_GRID = 2**31 - 1, 65535


@many
@given(any_shapes(), dtypes, any_devices(), st.booleans())
def test_a_plan_keeps_every_limit_of_the_device(shape, dtype, device, training):
    found = plan_sweep(shape, dtype, "cupy", training, device=device)
    if found.engine != "persistent":
        assert found.engine == "stepwise" or is_few(shape, training)
        assert (found.launch, found.tier) == (None, None)
        assert found.reason.startswith("not persistent, ") or shape.T == 1
        return
    if found.tier != "block":
        return  # test_plan_teams.py
    blocks = found.launch
    assert dtype in DTYPES
    assert shape.P == shape.H
    assert device.compute_capability >= (7, 0)
    for work in (blocks.forward, blocks.backward) if training else (blocks.forward,):
        assert work.shared_bytes <= device.shared_memory_per_block
    assert blocks.threads % 32 == 0
    assert blocks.threads <= min(device.max_threads_per_block, blocks.tile.threads)
    assert blocks.threads * blocks.registers <= device.registers_per_multiprocessor
    assert blocks.registers <= 255
    assert all(size <= largest for size, largest in zip(blocks.grid, LARGEST_GRID, strict=True))
    assert blocks.tile in TILES[2 if "16" in dtype else 4]  # one that is compiled


@many
@given(any_shapes(), st.sampled_from(DTYPES), any_devices(), st.booleans())
def test_the_capacity_is_the_only_limit_of_a_layer_without_projection(
    shape, dtype, device, training
):
    shape = shape._replace(P=shape.H)
    found = blocks_for(shape, dtype, device, training)
    if device.compute_capability < (7, 0):
        assert "it needs compute capability 7.0 or later" in found
        return
    capacity = block_capacity(dtype, device.shared_memory_per_block, training)
    H, threads = shape.H, 4 * shape.H
    fits = capacity >= H and threads <= device.max_threads_per_block
    assert isinstance(found, Blocks) == fits
    if capacity < H:
        assert f"hidden_size is at most {capacity} in {dtype}" in found


@given(any_shapes(projected=False), st.sampled_from(DTYPES), cards)
def test_every_unit_and_row_has_one_thread(shape, dtype, device):
    """Thread 4 u + r of block (i, d) finishes unit u of row 4 i + r of direction d."""
    B, H = min(shape.B, 40), min(shape.H, 60)
    shape = shape._replace(B=B, H=H, P=H)
    blocks = blocks_for(shape, dtype, device, True)
    served = [
        (d, ROWS * i + thread % ROWS, thread // ROWS)
        for i in range(blocks.grid[0])
        for d in range(blocks.grid[1])
        for thread in range(blocks.threads)
        if thread // ROWS < H and ROWS * i + thread % ROWS < B
    ]
    wanted = {(d, b, u) for d in range(shape.D) for b in range(B) for u in range(H)}
    assert len(served) == len(wanted)
    assert set(served) == wanted


@given(any_shapes(projected=False), st.sampled_from(DTYPES), cards)
def test_every_weight_has_one_lane(shape, dtype, device):
    """Lane l takes the terms l, l + 4, ... of h and x; l, l + 16, ... of dz."""
    H = min(shape.H, 60)
    shape = shape._replace(H=H, P=H)
    blocks = blocks_for(shape, dtype, device, True)
    length = H + (shape.I if blocks.inside else 0)
    for lanes, work, wanted in ((4, blocks.forward, length), (16, blocks.backward, 4 * H)):
        taken = [lanes * j + lane for lane in range(lanes) for j in range(work.terms)]
        assert sorted(k for k in taken if k < wanted) == list(range(wanted))
        assert 0 <= work.shared_terms <= work.terms
    assert blocks.threads // 16 * 4 >= H  # units of the backward pass, four by sixteen lanes


def exchanged_bytes(found):
    """Return the bytes through which the blocks of teams exchange, none where they do not."""
    if found.tier == "block":
        return 0
    works = (found.launch.forward, found.launch.backward)[: 1 + found.training]
    itemsize = 4 if found.dtype == "float32" else 2
    return max(sum(found.launch.exchange_bytes(one, found.shape.D, itemsize)) for one in works)


@many
@given(any_shapes(), st.sampled_from(DTYPES), cards, st.booleans())
def test_chunks_cover_every_step_once(shape, dtype, device, training):
    found = plan_sweep(shape, dtype, "cupy", training, device=device)
    steps = found.steps_per_chunk
    assert 1 <= steps <= max(shape.T, 1)
    assert (found.chunks - 1) * steps < max(shape.T, 1) <= max(found.chunks, 1) * steps
    if found.engine != "persistent":
        return
    sizes = shape, 4, training
    step = persistent_step_bytes(*sizes, found.launch.inside)
    fixed = persistent_fixed_bytes(*sizes) + exchanged_bytes(found)
    assert steps <= LAUNCH_STEPS
    assert found.workspace_bytes == fixed + steps * step
    if fixed + step <= WORKSPACE_LIMIT:
        assert found.workspace_bytes <= WORKSPACE_LIMIT
    if steps < min(shape.T, LAUNCH_STEPS):  # one more would be too much
        aim = min(plan.CHUNK_BYTES["cupy"], max(0, WORKSPACE_LIMIT - fixed))
        assert (steps + 1) * step > aim


@pytest.mark.parametrize("card", CARDS)
@pytest.mark.parametrize(
    ("shape", "dtype", "reason"),
    [
        (
            Shape(9, 2, 3, 8, 8, 1),
            "float64",
            "it serves float32, float16, bfloat16, not float64",
        ),
        (Shape(9, 2, 3, 8, 4, 1), "float32", "it serves no projection"),
        (Shape(9, 2, 3, 8, 4, 2), "float16", "it serves no projection"),
    ],
)
def test_what_stays_stepwise_says_so(card, shape, dtype, reason):
    device = CARDS[card]
    found = plan_sweep(shape, dtype, "cupy", device=device)
    assert (found.engine, found.reason) == ("stepwise", f"not persistent, {reason}")
    with pytest.raises(ValueError) as raised:
        plan_sweep(shape, dtype, "cupy", forced="persistent", device=device)
    assert str(raised.value) == f"the engine 'persistent' cannot serve this call: {reason}"
    assert plan_sweep(shape, dtype, "cupy", forced="stepwise", device=device).launch is None


def test_a_device_with_few_threads_says_so():
    few = replace(CARDS["H100"], max_threads_per_block=256)
    shape = Shape(9, 5, 3, 80, 80, 1)
    assert blocks_for(shape, "float32", few, False) == (
        "a block of 320 threads with 168 registers each is more than the device has: "
        "256 threads a block, 65536 registers"
    )


# --- what a step costs ---------------------------------------------------------------------------


@given(any_shapes(), dtypes, any_devices(), st.booleans(), st.booleans())
def test_no_prediction_is_below_the_floor(shape, dtype, device, training, backward):
    found = plan_sweep(shape, dtype, "cupy", training or backward, device=device)
    cost = found.cost(backward)
    assert cost.floor_us >= 0
    if found.engine == "persistent":
        assert (cost.weight_bytes, cost.launches) == (0, 0)
        assert (cost.barriers == 1) == (found.tier == "block")
        if shape.B:
            assert cost.predicted_us >= cost.floor_us
    else:
        assert cost.predicted_us is None
        fewest = {"stepwise": 2, "single": 1}[found.engine]
        assert cost.launches == fewest + (shape.P != shape.H)
        assert cost.weight_bytes > 0


def test_the_counts_of_a_step_by_hand():
    """T, B, I, H, D = 10, 8, 16, 32, 2; the input is projected inside the forward kernel."""
    shape, device = Shape(10, 8, 16, 32, 32, 2), CARDS["H100"]
    found = plan_sweep(shape, "float32", "cupy", True, device=device)
    assert (found.launch.grid, found.launch.threads, found.launch.inside) == ((2, 2), 128, True)
    forward, backward = found.cost(), found.cost(backward=True)
    products = 2 * 8 * 2 * 4 * 32 * (16 + 32)
    assert (forward.flops, backward.flops) == (products, 2 * products)
    tape = 8 * 2 * 5 * 32 * 4
    assert forward.memory_bytes == 8 * (16 + 2 * 32) * 4 + tape
    assert backward.memory_bytes == tape + 8 * (2 * 16 + 2 * 32 + 2 * 2 * 5 * 32) * 4
    lean = plan_sweep(shape, "float32", "cupy", False, device=device).cost()
    assert forward.memory_bytes - lean.memory_bytes == tape
    # A warp reads 12 vectors forward, in two passes of 128 bytes; all weights are in registers.
    warps = 4 * 4
    assert found.launch.forward[:2] == (12, 0)
    assert forward.shared_bytes == warps * 12 * 256


def test_weights_beyond_the_registers_are_read_from_shared_memory():
    shape, device = Shape(10, 4, 64, 128, 128, 1), CARDS["H100"]
    for dtype, itemsize in (("float32", 4), ("float16", 2)):
        blocks = blocks_for(shape, dtype, device, True)
        assert blocks.forward.terms == 32
        beyond = 32 - blocks.tile.forward_terms
        moved = step_cost(shape, dtype, device, "persistent", blocks, True).shared_bytes
        assert moved == 512 * beyond * 4 * itemsize + 16 * 32 * 256


@pytest.mark.parametrize("card", PROFILES.values(), ids=lambda card: card.name)
@pytest.mark.parametrize("dtype", DTYPES)
def test_blocks_at_once_are_those_of_the_test_bed(card, dtype):
    device = CARDS[card.name]
    assert device.max_threads_per_multiprocessor == card.threads_per_sm
    assert device.max_blocks_per_multiprocessor == card.blocks_per_sm
    for H in range(1, 1 + block_capacity(dtype, device.shared_memory_per_block)):
        blocks = blocks_for(Shape(9, 4, 40, H, H, 1), dtype, device, True)
        facts = KernelFacts(blocks.registers, max_threads=blocks.tile.threads)
        for backward, work in enumerate((blocks.forward, blocks.backward)):
            expected = card.max_active_blocks(facts, blocks.threads, work.shared_bytes)
            assert blocks_at_once(blocks, device, bool(backward)) == expected, H
    # What holds few blocks here: many threads, or none but small blocks.
    few = replace(device, max_threads_per_multiprocessor=64, max_blocks_per_multiprocessor=3)
    blocks = blocks_for(Shape(9, 4, 40, 4, 4, 1), dtype, device, True)
    assert blocks_at_once(blocks, few, False) == 64 // blocks.threads
    few = replace(few, max_threads_per_multiprocessor=1024)
    assert blocks_at_once(blocks, few, False) == 3


def test_more_rows_take_longer_once_the_device_is_full():
    device, predicted = CARDS["T4"], []
    for B in (4, 160, 1600, 16000):
        found = plan_sweep(Shape(10, B, 64, 64, 64, 1), "float32", "cupy", False, device=device)
        predicted.append(found.cost().predicted_us)
    assert predicted == sorted(predicted)
    assert predicted[0] < 1.2 * predicted[1] < predicted[2] < predicted[3]


def test_blocks_on_one_multiprocessor_share_it():
    """Two small ones do not wait for each other, but for the arithmetic."""
    device, predicted = CARDS["T4"], []
    for B in (ROWS * 40, 2 * ROWS * 40):
        found = plan_sweep(Shape(10, B, 8, 16, 16, 1), "float32", "cupy", False, device=device)
        assert blocks_at_once(found.launch, device, False) >= 2
        predicted.append(found.cost().predicted_us)
    assert predicted[0] < predicted[1] < 2 * predicted[0]


def test_a_driver_that_names_no_clock_gives_no_times():
    device = replace(CARDS["H100"], clock_hz=0.0)
    found = plan_sweep(Shape(10, 8, 16, 32, 32, 2), "float32", "cupy", device=device)
    assert found.engine == "persistent"
    cost = found.cost()
    assert (cost.floor_us, cost.predicted_us) == (None, None)
    assert cost.flops > 0


# --- in words ------------------------------------------------------------------------------------


def test_a_laptop_can_ask_what_a_card_would_do():
    text = explain_plan(1000, 16, 64, 80, 2, "bidirect", device="H100")
    assert text == explain_plan(1000, 16, 64, 80, 2, "bidirect", device=CARDS["H100"])
    lines = text.split("\n")
    assert len(lines) == 6
    for layer, features in enumerate([64, 160]):
        shape = Shape(1000, 16, features, 80, 80, 2)
        found = plan_sweep(shape, "float32", "cupy", device=CARDS["H100"])
        first, launch, cost = lines[3 * layer : 3 * layer + 3]
        assert first == (
            f"layer {layer}: persistent on cupy, {found.steps_per_chunk} of 1000 steps a chunk, "
            f"workspace {found.workspace_bytes / 2**20:.1f} MiB: the recurrent weights fit on one "
            f"multiprocessor ({ENGINES['persistent']})"
        )
        work = found.launch
        assert launch == (
            f"  block tier, {work.tile.name}: 4 x 2 blocks of 320 threads on the 132 "
            f"multiprocessors of H100, at most {work.registers} registers each, "
            f"{work.forward.shared_bytes / 1024:.1f} and {work.backward.shared_bytes / 1024:.1f} "
            "KiB of shared memory"
        )
        for backward in (False, True):
            assert f"{found.cost(backward).predicted_us:.3g} us" in cost
        assert "by the model, not measured" in cost


def test_inference_explains_one_pass_and_where_the_input_is_projected():
    text = explain_plan(1000, 16, 8, 64, device="T4", dtype="float16", training=False)
    assert "backward" not in text
    assert ", input projected inside\n" in text
    assert "input projected inside" not in explain_plan(1000, 16, 80, 64, device="T4")


def test_a_gpu_without_a_persistent_plan_has_one_line():
    for text in (
        explain_plan(1000, 16, 8, 64, device="T4", dtype="float64"),
        explain_plan(1000, 16, 8, 2048, device="H100"),
        explain_plan(1000, 16, 8, 64, module="cupy"),
    ):
        assert len(text.split("\n")) == 1
        assert text.startswith("layer 0: stepwise on cupy, ")
        assert ": not persistent, " in text


# --- on the test bed -----------------------------------------------------------------------------


@pytest.mark.gpu_on_cpu
@pytest.mark.parametrize("name", ["T4", "A100", "L4", "H100", "B200", "LAPTOP"])
def test_the_facts_of_a_device_are_read_without_waiting(cupy, name):
    from gpu_on_cpu import profile, record

    from cupy_lstm import device
    from cupy_lstm.device import current_device

    device._read_facts.cache_clear()
    with profile(name), record() as log:
        facts = current_device()
        assert current_device() is facts
    assert not list(log)
    card = CARDS["RTX 3050 Laptop" if name == "LAPTOP" else name]
    assert facts.memory_bandwidth == pytest.approx(card.memory_bandwidth, rel=0.01)
    alike = {"name": f"{card.name} on a CPU", "memory_bandwidth": facts.memory_bandwidth}
    assert facts == replace(card, **alike)


@pytest.mark.gpu_on_cpu
def test_a_layer_explains_what_its_device_would_do(cupy):
    from cupy_lstm import LSTM, engine
    from cupy_lstm.device import current_device

    text = LSTM(8, 20, xp="cupy", dtype="float16").explain_plan(50, 6)
    assert text == explain_plan(50, 6, 8, 20, dtype="float16", device=current_device())
    assert text.startswith("layer 0: persistent on cupy")
    with engine("stepwise"):
        text = LSTM(8, 20, xp="cupy").explain_plan(50, 6)
    assert text.startswith("layer 0: stepwise on cupy")


@pytest.mark.gpu_on_cpu
@pytest.mark.parametrize("training", [False, True])
def test_the_launch_of_a_call_is_the_plan_s(cupy, training):
    from gpu_cases import prepared
    from gpu_on_cpu import record

    from cupy_lstm import engine, no_grad
    from cupy_lstm.device import current_device

    case = Case("planned", T=3, B=6, I=40, H=20, bidirectional=True)
    lstm, arrays = prepared(cupy, case, "float32")
    shape = Shape(3, 6, 40, 20, 20, 2)
    planned = plan_sweep(shape, "float32", "cupy", training, device=current_device())
    with engine("persistent"), record() as log:
        if training:
            y, _ = lstm(arrays.x)
            lstm.backward(y)
        else:
            with no_grad():
                lstm(arrays.x)
    launches = [one for one in log.launches if one.name.startswith("recurrence_")]
    passes = [planned.launch.forward, planned.launch.backward][: 1 + training]
    assert len(launches) == len(passes)
    for launch, work in zip(launches, passes, strict=True):
        assert launch.grid == (*planned.launch.grid, 1)
        assert launch.block == (planned.launch.threads, 1, 1)
        assert launch.shared_bytes == work.shared_bytes


@pytest.mark.gpu_on_cpu
@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"dtype": "float64"}, "it serves float32, float16, bfloat16, not float64"),
        ({"proj_size": 3}, "it serves no projection"),
    ],
)
def test_a_forced_engine_that_cannot_serve_raises_with_the_reason(cupy, options, reason):
    from cupy_lstm import LSTM, engine

    lstm = LSTM(4, 6, xp="cupy", **options)
    with engine("persistent"), pytest.raises(ValueError) as raised:
        lstm(cupy.ones((2, 3, 4), lstm.dtype))
    assert str(raised.value) == f"the engine 'persistent' cannot serve this call: {reason}"
