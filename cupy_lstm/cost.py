"""What a step of a sweep costs on a GPU: counts, the floor under them, and a prediction.

The counts are exact for what they name. The times are a **model**, not a measurement: published
rates, instructions counted in compiled kernels (`STEP_INSTRUCTIONS`), and assumptions
(`STEP_CYCLES`, `VECTOR_WAVEFRONTS`, GEMMs at the full rate). `profiling/model.py` draws it,
`profiling/bench_gpu.py` compares it with a device.
"""

from typing import NamedTuple

from cupy_lstm.device import DeviceFacts
from cupy_lstm.notation import Shape
from cupy_lstm.persistent.blocks import BlockPass, Blocks
from cupy_lstm.persistent.team_cost import BARRIERS, shared_traffic, step_clocks
from cupy_lstm.persistent.teams import Teams
from cupy_lstm.persistent.tiles import ITEMSIZE, ROWS

WARP = 32
SHARED_BYTES_A_CLOCK = 128
"""Of a multiprocessor: 32 banks of 4 bytes, on every architecture (CUDA C++ Programming Guide)."""

RESERVED_BYTES = 1024
"""Shared memory the system takes for each block in flight, from compute capability 8.0 on."""

SHARED_UNIT = 128
"""Bytes of shared memory that a block is given at a time."""

REGISTER_UNIT = 256
"""Registers that a warp is given at a time."""

SCHEDULERS = 4
"""Of a multiprocessor; each has its own warps and registers, and issues an instruction of a warp in
a clock, on every architecture."""

STEP_INSTRUCTIONS = {"forward": 380, "backward": 370}
"""Instructions of a warp in a step beside products and loads of the vector and the weights: gates,
exchange, addresses. The middle of what `profiling/model.py --sass` counts for sm_90, 350 to 420 by
tile and dtype, each once, though some lie in branches that are rarely taken."""

SHARED_TERM_INSTRUCTIONS = 6
"""The same for a term whose weights lie in shared memory: addresses, and the loop."""

STEP_CYCLES = {"forward": 350, "backward": 350}
"""Clocks of a step that nothing hides, assumed: the first load of shared memory (about 30), two or
three exchanges between lanes (25 each), two sigmoids and two tanh one after another (about 150),
the store and the barrier (about 60)."""

VECTOR_WAVEFRONTS = 2
"""Passes through shared memory of a warp's load of 4 (backward 16) different addresses of 16 bytes,
assumed: between 1 (2), all lanes at once, and 4, eight lanes at a time."""

PRODUCTS_OF_A_TERM = 16
"""Multiplications and additions of a lane: four weights, each for four rows."""

LAUNCHES = {"stepwise": 2, "single": 1}
"""Kernels and GEMMs of a step without projection, which is one more, by engine."""

HOST_SECONDS = 20e-6
"""Of the host for the launches of a step of the engine stepwise, assumed: 15 to 25 us with CuPy."""

GEMM_SHARE = 0.5
"""Of its full rate that the product of one step reaches, assumed."""

MICROSECOND = 1e-6


class Cost(NamedTuple):
    """What one step of one layer's pass costs, all rows and directions together.

    Attributes
    ----------
    flops : int
        Of the matrix products, weight gradients included in a backward pass.
    memory_bytes : int
        Between the device and its memory, each array once: inputs, outputs, tape, and what goes
        from kernel to kernel.
    weight_bytes : int
        Of the weights that every step reads from beyond the multiprocessor: none where they stay
        on the chip.
    shared_bytes : int
        Moved out of shared memory.
    barriers : int
        Of a block.
    launches : int
        Kernels and GEMMs of every single step, beside those of a chunk.
    floor_us : float or None
        The least time the device's arithmetic and memory allow, in microseconds.
    predicted_us : float or None
        What the model says, in microseconds; None for an engine whose steps the host launches,
        or where the device does not say its rates.
    """

    flops: int
    memory_bytes: int
    weight_bytes: int
    shared_bytes: int
    barriers: int
    launches: int
    floor_us: float | None
    predicted_us: float | None


def step_cost(
    shape: Shape,
    dtype: str,
    device: DeviceFacts | None,
    engine: str,
    launch: Blocks | Teams | None,
    training: bool,
    backward: bool = False,
) -> Cost:
    """Count a step of one pass.

    Parameters
    ----------
    shape : Shape
        Sizes of the layer, its batch and its sequence.
    dtype : str
        Name of the storage dtype.
    device : DeviceFacts or None
        Where it runs; None where that is no GPU or not known, and then there are no times.
    engine : str
        Which engine runs it.
    launch : Blocks, Teams or None
        What the engine persistent launches, None for any other.
    training : bool
        Whether the forward pass keeps a tape.
    backward : bool
        Which pass.
    """
    flops, memory = step_flops(shape, backward), step_memory_bytes(shape, dtype, training, backward)
    floor = floor_us(shape, dtype, device, training, backward)
    if launch is None:
        _, _, I, H, P, D = shape  # noqa: E741
        projection = H * P if P != H else 0
        weights = D * (4 * H * (P + (I if engine == "single" else 0)) + projection)
        launches = LAUNCHES.get(engine, 0)
        if launches and P != H:
            launches += 1
        return Cost(flops, memory, weights * element_bytes(dtype), 0, 0, launches, floor, None)
    if not launch.inside and not backward:
        # The input projection is written by a GEMM and read by the kernel.
        memory += 2 * 4 * shape.B * shape.D * 4 * shape.H
    moved = launch.grid[0] * launch.grid[1]
    if isinstance(launch, Teams):
        work = launch.backward if backward else launch.forward
        each = launch.tiles * shared_traffic(launch, work, ITEMSIZE[dtype])
        moved *= each * (shape.D // launch.directions)
        barriers = BARRIERS[launch.tier] * launch.tiles
    else:
        moved *= _shared_bytes(launch, dtype, backward)
        barriers = 1
    predicted = None
    if device is not None and device.clock_hz and device.memory_bandwidth:
        outside = flops - recurrent_flops(shape)
        if launch.inside and not backward:
            outside = 0
        clocks = recurrence_clocks(launch, dtype, device, shape.D, backward)
        seconds = max(clocks / device.clock_hz, memory / device.memory_bandwidth)
        seconds += outside / flops_per_second(device, dtype)
        predicted = seconds / MICROSECOND
    return Cost(flops, memory, 0, moved, barriers, 0, floor, predicted)


def recurrence_clocks(
    launch: Blocks | Teams, dtype: str, device: DeviceFacts, D: int, backward: bool
) -> float:
    """Return the clocks of a step of the kernel in one pass, by the model."""
    if isinstance(launch, Teams):
        work = launch.backward if backward else launch.forward
        return step_clocks(launch, work, device, ITEMSIZE[dtype], D)
    return _block_clocks(launch, dtype, device, backward)


def stepwise_seconds(shape: Shape, dtype: str, device: DeviceFacts) -> float:
    """Return the time of a step of the engine stepwise in one pass, without the input's products.

    The host launches while the device works, and the slower of them counts.
    """
    return max(
        HOST_SECONDS, recurrent_flops(shape) / (GEMM_SHARE * flops_per_second(device, dtype))
    )


def recurrent_flops(shape: Shape) -> int:
    """Return the floating-point operations of one step's product with the recurrent weights."""
    _, B, _, H, P, D = shape
    return 2 * D * B * (4 * H * P + (H * P if P != H else 0))


def step_flops(shape: Shape, backward: bool) -> int:
    """Return the floating-point operations of one step's matrix products.

    Backward has twice those of forward: the gradients of the operands on both sides.
    """
    _, B, I, H, _, D = shape  # noqa: E741
    forward = recurrent_flops(shape) + 2 * D * B * 4 * H * I
    return 2 * forward if backward else forward


def step_memory_bytes(shape: Shape, dtype: str, training: bool, backward: bool) -> int:
    """Return the bytes of one step that must pass through the device's memory, each array once.

    Forward: x, y, and the tape of gates and c if there is one. Backward: the tape, x, dy and dx,
    and as operands of the GEMMs dz and the previous h, written and read.
    """
    _, B, I, H, P, D = shape  # noqa: E741
    stored, summed = element_bytes(dtype), max(4, element_bytes(dtype))
    tape = 5 * D * H * summed
    if backward:
        return B * (tape + (2 * I + D * P + 2 * D * (4 * H + P)) * stored)
    return B * ((I + D * P) * stored + (tape if training else 0))


def floor_us(
    shape: Shape, dtype: str, device: DeviceFacts | None, training: bool, backward: bool
) -> float | None:
    """Return the least microseconds of a step: all multiprocessors busy, each array moved once."""
    if device is None or not device.clock_hz or not device.memory_bandwidth:
        return None
    memory = step_memory_bytes(shape, dtype, training, backward) / device.memory_bandwidth
    arithmetic = step_flops(shape, backward) / flops_per_second(device, dtype)
    return max(memory, arithmetic) / MICROSECOND


def element_bytes(dtype: str) -> int:
    """Return the bytes of an element of a storage dtype."""
    return {"float64": 8, **ITEMSIZE}[dtype]


def float32_lanes(device: DeviceFacts) -> int:
    """Return the float32 products of a multiprocessor in a clock (CUDA C++ Programming Guide)."""
    return 64 if device.compute_capability <= (8, 0) else 128


def flops_per_second(device: DeviceFacts, dtype: str) -> float:
    """Return the highest rate of a GEMM: tensor cores for half types and TF32, exact float32 else.

    Half types by compute capability, without sparsity, at the clock of float32: an upper bound,
    7 or 8 % above the published rates of H100 and B200, whose tensor cores run slower, and twice
    that of laptop cards, which halve it for sums of float32. TF32 has half of it.
    """
    tf32 = dtype == "float32" and device.tf32 and device.compute_capability >= (8, 0)
    if tf32 or dtype in ("float16", "bfloat16"):
        rates = (((9, 0), 4096), ((8, 6), 1024), ((8, 0), 2048), ((0, 0), 1024))
        a_clock = 8192 if device.compute_capability[0] in (10, 11) else 0
        if device.compute_capability[0] >= 12:
            a_clock = 1024
        a_clock = a_clock or next(
            rate for since, rate in rates if device.compute_capability >= since
        )
        a_clock //= 2 if tf32 else 1
    else:
        # float64 is at best half of that, on most cards a 32nd or less.
        a_clock = 2 * float32_lanes(device) // (2 if dtype == "float64" else 1)
    return a_clock * device.multiprocessors * device.clock_hz


def blocks_at_once(blocks: Blocks, device: DeviceFacts, backward: bool) -> int:
    """Return how many blocks of a kernel one multiprocessor holds at once; at least one.

    By the rules of NVIDIA's occupancy calculator.
    """
    shared = _rounded_up(
        (blocks.backward if backward else blocks.forward).shared_bytes, SHARED_UNIT
    )
    shared += RESERVED_BYTES if device.compute_capability >= (8, 0) else 0
    registers = _rounded_up(blocks.registers * WARP, REGISTER_UNIT)  # of a warp
    warps = device.registers_per_multiprocessor // registers // SCHEDULERS * SCHEDULERS
    return max(
        1,
        min(
            device.shared_memory_per_multiprocessor // shared,
            warps // (blocks.threads // WARP),
            device.max_threads_per_multiprocessor // blocks.threads,
            device.max_blocks_per_multiprocessor,
        ),
    )


def _rounded_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit


def _shared_bytes(blocks: Blocks, dtype: str, backward: bool) -> int:
    """Return the bytes that a block moves out of shared memory in a step.

    A warp's four or sixteen vectors of four rows are read once for all its lanes that share them.
    """
    work: BlockPass = blocks.backward if backward else blocks.forward
    vector = work.terms * blocks.threads // WARP * VECTOR_WAVEFRONTS * SHARED_BYTES_A_CLOCK
    return vector + work.shared_terms * blocks.threads * 4 * ITEMSIZE[dtype]


def _block_clocks(blocks: Blocks, dtype: str, device: DeviceFacts, backward: bool) -> float:
    """Return the clocks of a step of the kernel, waves of blocks one after another.

    A multiprocessor's blocks share its arithmetic and its shared memory; what a block waits for
    is hidden by nothing.
    """
    work: BlockPass = blocks.backward if backward else blocks.forward
    total = blocks.grid[0] * blocks.grid[1]
    at_once = blocks_at_once(blocks, device, backward)
    waves = -(-total // (device.multiprocessors * at_once))
    resident = min(at_once, -(-total // device.multiprocessors))
    name = "backward" if backward else "forward"
    products = work.terms * PRODUCTS_OF_A_TERM
    widened = 0 if ITEMSIZE[dtype] == 4 else products // ROWS  # a half weight serves four rows
    loads = work.terms + work.shared_terms
    instructions = products + widened + loads + STEP_INSTRUCTIONS[name]
    instructions += work.shared_terms * SHARED_TERM_INSTRUCTIONS
    busy = max(
        blocks.threads * products / float32_lanes(device),
        blocks.threads / WARP * instructions / SCHEDULERS,
        _shared_bytes(blocks, dtype, backward) / SHARED_BYTES_A_CLOCK,
    )
    return waves * (resident * busy + STEP_CYCLES[name])
