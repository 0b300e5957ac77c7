"""What a step of a team takes: counts of the plan, and clocks by a **model**, not a measurement.

Instructions are counted in the compiled kernels (`profiling/model.py --sass` counts anew), each
once, though some lie in branches that are rarely taken. Rates are those of the architecture. What
is assumed says so: most of all what blocks wait for. `profiling/model.py` draws the model, and
`profiling/bench_gpu.py` compares it with a device.
"""

from cupy_lstm.device import DeviceFacts
from cupy_lstm.persistent.teams import LANES, TeamPass, Teams

SCHEDULERS, WARP = 4, 32
"""Of a multiprocessor, each of which issues an instruction of a warp in a clock."""

TERM_INSTRUCTIONS, SHARED_TERM_INSTRUCTIONS = 35, 43
"""Of a warp for a term of `LANES`: 32 products, the load of four rows, and whether there is one
more; in shared memory also two loads of weights, addresses, the loop."""

FRAGMENT_INSTRUCTIONS, SHARED_FRAGMENT_INSTRUCTIONS = 7, 10
"""Of a warp for a term on tensor cores: the product, the load of the vector, and whether there is
one more; in shared memory also the load of weights, addresses, the loop."""

STEP_INSTRUCTIONS = {"LaneProduct": 400, "TensorProduct": 110}
"""Of each warp in a step of a tile beside these: waiting, the copy, where things are, and in
`LANES` the sums over the lanes of a warp."""

CELL_INSTRUCTIONS = 340
"""Of each warp that has cells, one a lane, in a step of a tile: what it loads and stores, gates."""

PART_INSTRUCTIONS = 3
"""The same for each partial sum of each of its outputs."""

FRAGMENT_CLOCKS = ((12, 0, 16), (9, 0, 8), (8, 1, 16), (8, 0, 8))
"""Since which compute capability how many clocks of a scheduler's tensor core a term takes, 16 x 8
x 16 halves or 16 x 8 x 8 floats: the rate of its architecture, but by mma.sync no more than that
of 8.0 (assumed)."""

STEP_CLOCKS = 500
"""Of a step of a tile that nothing hides, assumed: loads of shared memory, two sigmoids and two
tanh one after another, three barriers of the block."""

EXCHANGE_CLOCKS = {"grid": 1300, "cluster": 600}
"""From the last store of a block to the vector in the others, assumed. Through memory: the fence of
the release, until the stores before it have arrived (400), the flag to the L2 cache and back (600),
the data from there (300): 0.65 us on an H100. In a cluster the same fence, which compilers put
before its barrier, too, here of stores to shared memory (300), and the barrier (300)."""

BARRIERS = {"grid": 4, "cluster": 3}
"""Of a block in a step of a tile: after the flags, after the copy, after the sums, before the flag;
in a cluster that of the cluster, one after it, one after the sums."""

COPY_BYTES_A_CLOCK = 64
"""From the L2 cache to one multiprocessor, assumed."""


def tile_clocks(teams: Teams, work: TeamPass, device: DeviceFacts, itemsize: int) -> float:
    """Return the clocks of a block for a step of one tile, without the exchange."""
    warps, form = teams.threads // WARP, teams.form
    kept = work.terms - work.shared_terms
    if form.kind == LANES.kind:
        instructions = TERM_INSTRUCTIONS * kept + SHARED_TERM_INSTRUCTIONS * work.shared_terms
        if itemsize == 2:  # widened at every step: values, and weights in shared memory
            instructions += form.rows * work.terms + form.outputs * work.shared_terms
        lanes = 64 if device.compute_capability <= (8, 0) else 128
        arithmetic = teams.threads * form.outputs * form.rows * work.terms / lanes
    else:
        instructions = FRAGMENT_INSTRUCTIONS * kept
        instructions += SHARED_FRAGMENT_INSTRUCTIONS * work.shared_terms
        arithmetic = warps * work.terms * fragment_clocks(device) / SCHEDULERS
    instructions += STEP_INSTRUCTIONS[form.kind]
    sums = work.outputs // teams.units * max(1, form.sums // work.outputs)
    cells = teams.units * form.rows / WARP * (CELL_INSTRUCTIONS + PART_INSTRUCTIONS * sums)
    busy = max(
        arithmetic,
        (warps * instructions + cells) / SCHEDULERS,
        shared_traffic(teams, work, itemsize) / 128,
    )
    return busy + STEP_CLOCKS


def fragment_clocks(device: DeviceFacts) -> int:
    """Return the clocks of a tensor core for a term."""
    return next(
        clocks
        for major, minor, clocks in FRAGMENT_CLOCKS
        if device.compute_capability >= (major, minor)
    )


def shared_traffic(teams: Teams, work: TeamPass, itemsize: int) -> int:
    """Return the bytes a block moves out of shared memory for a step of a tile."""
    form, warps = teams.form, teams.threads // WARP
    weights = work.shared_terms * form.term_weights * itemsize
    if form.kind == LANES.kind:
        # Lanes that share a part of the vector load it together.
        lanes = min(WARP, form.term_weights // work.outputs)
        of_warp = lanes * form.rows * itemsize
    else:
        of_warp = WARP * 8  # two registers a lane
    return weights + warps * work.terms * of_warp


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
