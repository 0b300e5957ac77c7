"""What a step of a team takes: counts of the plan, and clocks by a **model**, not a measurement.

Rates are those of the architecture; what is assumed says so. `profiling/model.py` draws it, and
`profiling/bench_gpu.py` compares it with a device.
"""

from cupy_lstm.device import DeviceFacts
from cupy_lstm.persistent.teams import LANES, TeamPass, Teams

SCHEDULERS, WARP = 4, 32
"""Of a multiprocessor, each of which issues an instruction of a warp in a clock."""

TERM_INSTRUCTIONS = 34
"""Of a warp for a term of `LANES` in registers: 32 products and two loads of four rows."""

SHARED_TERM_INSTRUCTIONS = 8
"""More of them for a term in shared memory: its loads, addresses, the loop."""

FRAGMENT_INSTRUCTIONS = 4
"""Of a warp for a term on tensor cores: the product, loads, addresses."""

FRAGMENT_CLOCKS = {"half": 16, "tf32": 16}
"""Of a scheduler's tensor core for a product of 16 x 8 x 16 halves or 16 x 8 x 8 floats by
mma.sync, assumed: 256 multiplications a clock for halves, half of the rate of an A100."""

STEP_INSTRUCTIONS = {"LaneProduct": 320, "TensorProduct": 220}
"""Of a warp in a step of a tile beside the product, assumed: sums between lanes, gates, addresses,
copies."""

STEP_CLOCKS = 500
"""Of a step of a tile that nothing hides, assumed: loads of shared memory, two sigmoids and two
tanh one after another, three barriers of the block."""

EXCHANGE_CLOCKS = {"grid": 1300, "cluster": 450}
"""From the signal of a block to the vector in the others, assumed. Through memory: a flag and then
data to and from the L2 cache, 0.5 to 0.7 us; in a cluster: a store to the other's shared memory and
the barrier, 0.2 to 0.3 us."""

BARRIERS = {"grid": 4, "cluster": 2}
"""Of a block in a step of a tile: after the flags, after the copy, after the sums, before the flag;
in a cluster after the sums and that of the cluster."""

COPY_BYTES_A_CLOCK = 64
"""From the L2 cache to one multiprocessor, assumed."""


def tile_clocks(teams: Teams, work: TeamPass, device: DeviceFacts, itemsize: int) -> float:
    """Return the clocks of a block for a step of one tile, without the exchange."""
    warps = teams.threads // WARP
    if teams.form.kind == LANES.kind:
        products, instructions = 32 * work.terms, TERM_INSTRUCTIONS * work.terms
        instructions += SHARED_TERM_INSTRUCTIONS * work.shared_terms
        lanes = 64 if device.compute_capability <= (8, 0) else 128
        arithmetic = teams.threads * products / lanes
    else:
        kind = "tf32" if itemsize == 4 else "half"
        arithmetic = warps * work.terms * FRAGMENT_CLOCKS[kind] / SCHEDULERS
        instructions = FRAGMENT_INSTRUCTIONS * work.terms
    instructions += STEP_INSTRUCTIONS[teams.form.kind]
    busy = max(
        arithmetic, warps * instructions / SCHEDULERS, shared_traffic(teams, work, itemsize) / 128
    )
    return busy + STEP_CLOCKS


def shared_traffic(teams: Teams, work: TeamPass, itemsize: int) -> int:
    """Return the bytes a block moves out of shared memory for a step of a tile."""
    weights = work.shared_terms * teams.form.term_weights * itemsize
    # Each warp reads its part of the vector for its outputs, each term of it once.
    of_warp = 32 * 4 * itemsize if teams.form.kind == LANES.kind else 32 * 8
    return weights + teams.threads // WARP * work.terms * of_warp


def exchange_clocks(teams: Teams, work: TeamPass, itemsize: int) -> float:
    """Return the clocks from the end of a tile's step in one block to its vector in the others."""
    copied = 0.0
    if teams.tier == "grid":
        copied = work.vector * itemsize / COPY_BYTES_A_CLOCK
    return EXCHANGE_CLOCKS[teams.tier] + copied


def step_clocks(teams: Teams, work: TeamPass, device: DeviceFacts, itemsize: int, D: int) -> float:
    """Return the clocks of a step of all tiles and directions.

    The exchange of a tile is hidden by the work on the others, as far as they last.
    """
    tile = tile_clocks(teams, work, device, itemsize)
    one = max(teams.tiles * tile, tile + exchange_clocks(teams, work, itemsize))
    return one * (D // teams.directions)
