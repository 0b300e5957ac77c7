"""Teams: the blocks of the engine persistent that hold a layer's recurrent weights together.

Where they do not fit on one multiprocessor, the hidden units of a direction are spread over the
blocks of a *team*, and after every step each block gives what it computed to the others: through
memory in the *grid* tier, through the shared memory of each other in the *cluster* tier. A team
takes a slice of the batch, in *tiles* of as many rows as a product takes at once; the exchange of
one tile goes on while a block works on another. Pure arithmetic: teams for any device can be found
on any machine.

A block's weights are cut into *terms*, of which each of its threads holds a part, in registers
first, then in shared memory. Two forms of the product share them out differently:

==========  ==============================================  ====  ===============================
form        where                                           rows  weights of a term
==========  ==============================================  ====  ===============================
`LANES`     everywhere, in float32                          4     8 of each thread
`TENSOR`    on tensor cores, compute capability 8.0; float  8     16 x 16 halves of each warp, or
            rounded to TF32 where CUPY_TF32=1 asks for it         16 x 8 floats
==========  ==============================================  ====  ===============================
"""

from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

from cupy_lstm.device import DeviceFacts
from cupy_lstm.persistent.tiles import ITEMSIZE

THREADS = 512
"""Threads of a block."""

REGISTERS = 128
"""The most registers of a thread, so that a multiprocessor holds one block."""

UNITS = (128, 64, 32, 16, 8)
"""Hidden units of a block: what the threads can share out."""

CLUSTERS = (2, 4, 8)
"""Blocks of a cluster: the sizes that every card with clusters has."""

NEIGHBOURS = 18
"""Multiprocessors that a cluster's can be chosen from, those of a graphics processing cluster at
most, assumed. Some have fewer, so that fewer clusters fit on a card than multiprocessors would do
for: on an H100 this makes 14 of 8, where 16 are to be expected."""

COMPUTE_CAPABILITY = (7, 5)
"""The oldest architecture: the kernels spill on those before it."""

TENSOR_CAPABILITY = (8, 0)
"""The oldest architecture with all instructions of the form `TENSOR`."""

ROW_BYTES, TILE_BYTES = 12, 4
"""Shared memory for the steps of a row, and for those of a tile's longest."""


class Form(NamedTuple):
    """How a block multiplies with its weights.

    Attributes
    ----------
    kind : str
        ``"LaneProduct"`` or ``"TensorProduct"``, as the kernels call it.
    rows : int
        Batch rows of a tile.
    outputs : int
        Outputs that a thread, or a warp, computes.
    sums : int
        Partial sums of a block: outputs times parts, at least.
    kept_terms : int
        Terms that lie in registers.
    term_weights : int
        Weights of a term, of all threads of a block.
    """

    kind: str
    rows: int
    outputs: int
    sums: int
    kept_terms: int
    term_weights: int

    def span(self, outputs: int) -> int:
        """Return the values of the vector that a term has for each of `outputs`."""
        return self.term_weights // outputs

    def terms(self, outputs: int, length: int) -> int:
        """Return the terms of a product of `length` values for each of `outputs`."""
        return -(-length // self.span(outputs))

    def vector(self, outputs: int, length: int) -> int:
        """Return the elements of an exchanged vector of a tile: whole terms of it, and all rows."""
        return self.terms(outputs, length) * self.span(outputs) * self.rows


LANES = Form("LaneProduct", 4, 8, 128, 6, 8 * THREADS)
TENSOR = Form("TensorProduct", 8, 16, 256, 16, 8 * THREADS)
TENSOR_TF32 = TENSOR._replace(term_weights=4 * THREADS)


class TeamPass(NamedTuple):
    """What a block does in every step of one pass, forward or backward.

    Attributes
    ----------
    outputs : int
        Of its product: the four gates of its units forward, its units backward.
    terms, shared_terms : int
        Terms of the product, and those of them whose weights lie in shared memory.
    vector : int
        Elements of the exchanged vector of a tile.
    shared_bytes : int
        Shared memory of a block.
    """

    outputs: int
    terms: int
    shared_terms: int
    vector: int
    shared_bytes: int


class Teams(NamedTuple):
    """The teams of a layer's launches.

    Attributes
    ----------
    tier : str
        ``"grid"`` or ``"cluster"``: how the blocks of a team exchange.
    form : Form
        How they multiply.
    units : int
        Hidden units of a block; the last ones of a team may have fewer or none.
    blocks : int
        Of a team.
    teams : int
        Of a direction: slices of the batch.
    tiles : int
        Of a slice.
    directions : int
        In one launch; the other follows where that is fewer than there are.
    forward, backward : TeamPass
        The two kernels.
    """

    tier: str
    form: Form
    units: int
    blocks: int
    teams: int
    tiles: int
    directions: int
    forward: TeamPass
    backward: TeamPass

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return THREADS

    @property
    def registers(self) -> int:
        """The most registers of a thread."""
        return REGISTERS

    @property
    def inside(self) -> bool:
        """Whether the forward kernel projects the input itself."""
        return False

    @property
    def grid(self) -> tuple[int, int]:
        """Blocks of a launch along x and y."""
        return self.blocks * self.teams, self.directions

    @property
    def name(self) -> str:
        """What a plan calls it."""
        kind = "tensor cores" if self.form.kind == TENSOR.kind else "float32 lanes"
        return f"teams of {self.blocks} blocks of {self.units} units on {kind}"

    def exchange_bytes(self, work: TeamPass, D: int, itemsize: int) -> tuple[int, int]:
        """Return the bytes of exchanged vectors and of flags in memory; none in a cluster."""
        if self.tier == "cluster":
            return 0, 0
        tiles = D * self.teams * self.tiles
        return 2 * tiles * work.vector * itemsize, 4 * tiles * self.blocks


def forms_for(dtype: str, device: DeviceFacts) -> tuple[Form, ...]:
    """Return how products of a dtype can be computed on a device.

    Where TF32 is asked for, layers that it has no room for are computed in float32.
    """
    if device.compute_capability < TENSOR_CAPABILITY:
        return (LANES,)
    if dtype == "float32":
        return (TENSOR_TF32, LANES) if device.tf32 else (LANES,)
    return (TENSOR,)


def shared_bytes(
    form: Form,
    tier: str,
    units: int,
    tiles: int,
    outputs: int,
    length: int,
    itemsize: int,
    biases: bool,
) -> TeamPass:
    """Return what a block holds for the product of a vector of `length` with its weights.

    In shared memory: the terms that are not in registers, the vectors (in a cluster those of all
    tiles twice, else a copy of one), the partial sums, c or its gradient, the biases in the forward
    pass, and the steps of each row.
    """
    terms, vector = form.terms(outputs, length), form.vector(outputs, length)
    shared_terms = max(0, terms - form.kept_terms)
    vectors = 2 * tiles if tier == "cluster" else 1
    floats = max(form.sums, outputs) * form.rows + tiles * units * form.rows
    floats += 4 * units if biases else 0
    return TeamPass(
        outputs,
        terms,
        shared_terms,
        vector,
        shared_terms * form.term_weights * itemsize
        + vectors * vector * itemsize
        + 4 * floats
        + tiles * (form.rows * ROW_BYTES + TILE_BYTES),
    )


def teams_of(
    tier: str, form: Form, units: int, blocks: int, B: int, H: int, D: int, itemsize: int, most: int
) -> Teams | None:
    """Return teams of so many blocks and units that share a batch, at most `most` blocks at once.

    None where not even one direction has room.
    """
    directions = D if blocks * D <= most else 1
    at_once = most // (blocks * directions)
    if at_once == 0:
        return None
    tiles_of_batch = max(1, -(-B // form.rows))
    tiles = -(-tiles_of_batch // at_once)
    return Teams(
        tier=tier,
        form=form,
        units=units,
        blocks=blocks,
        teams=-(-tiles_of_batch // tiles),
        tiles=tiles,
        directions=directions,
        forward=shared_bytes(form, tier, units, tiles, 4 * units, H, itemsize, True),
        backward=shared_bytes(form, tier, units, tiles, units, 4 * H, itemsize, False),
    )


def fitting_teams(
    B: int, H: int, D: int, dtype: str, device: DeviceFacts, training: bool
) -> Iterator[Teams]:
    """Yield all teams that a device can launch for a layer.

    A multiprocessor holds one block; those of a cluster are on multiprocessors beside each other,
    so some of a device stay idle.
    """
    if (
        device.compute_capability < COMPUTE_CAPABILITY
        or device.max_threads_per_block < THREADS
        or device.registers_per_multiprocessor < THREADS * REGISTERS
    ):
        return
    for form, units in product(forms_for(dtype, device), UNITS):
        needed = -(-H // units)
        if needed == 1 or units * form.rows > THREADS or units % form.outputs:
            continue
        sizes = {"grid": needed} if device.cooperative_launch else {}
        if device.cluster_launch and needed <= max(CLUSTERS):
            sizes["cluster"] = next(size for size in CLUSTERS if size >= needed)
        for tier, blocks in sizes.items():
            most = device.multiprocessors
            if tier == "cluster":
                most = most // NEIGHBOURS * (NEIGHBOURS // blocks) * blocks
            found = teams_of(tier, form, units, blocks, B, H, D, ITEMSIZE[dtype], most)
            if found is None:
                continue
            works = (found.forward, found.backward) if training else (found.forward,)
            if max(work.shared_bytes for work in works) <= device.shared_memory_per_block:
                yield found
