"""The tiles of the engine persistent: how a block of threads holds a layer's recurrent weights.

A block runs `ROWS` batch rows of one direction through all steps. Four neighbouring lanes share a
hidden unit, so a warp has eight. A lane keeps a part of the weights, in *terms* of four: what one
value of the exchanged vector (h forward, dz backward) is multiplied with.

========  ==================  ==================================  =============================
pass      vector              a term                              terms of a lane
========  ==================  ==================================  =============================
forward   h [H], or h and x   the four gates of the lane's unit   every fourth value of it
          [H+I]
backward  dz [4H]             four units, those of 16 lanes       every sixteenth value of it
========  ==================  ==================================  =============================

The first terms of a lane lie in its registers, by a number fixed when the kernel is compiled, the
rest in shared memory. So a kernel serves every H up to a capacity, and few are compiled. Pure
arithmetic: a tile for any device can be found on any machine.
"""

from typing import NamedTuple

ROWS = 4
"""Batch rows of a block: each weight that is loaded from shared memory serves all of them."""

LANES = 4
"""Neighbouring threads that share a hidden unit, one for each row, and forward its sums."""

BACKWARD_LANES = 16
"""Neighbouring threads that share the sums of four units in the backward pass."""

UNITS_OF_A_WARP = 8
"""Hidden units of 32 threads; H is rounded up to a multiple."""

GROUP = 2
"""Terms in registers that are taken or left together; the vector has zeros for those beyond."""

REGISTERS = 65536
"""Registers of a block at most, on every architecture there is."""

COMPUTE_CAPABILITY = (7, 0)
"""The oldest architecture: threads of a warp that wait for each other independently."""

INSIDE_FEATURES = 32
"""The widest input whose projection the kernel takes upon itself, where its weights fit too.

Each step is then longer by I / (I + H) of its products, and the GEMM and the memory of z are
saved. A choice, not a measurement.
"""

ITEMSIZE = {"float32": 4, "float16": 2, "bfloat16": 2}
"""Bytes of a weight on the chip for each dtype that is served."""


class BlockTile(NamedTuple):
    """A compiled form of the kernels.

    Attributes
    ----------
    threads : int
        The most threads of a block, the launch bound.
    forward_terms, backward_terms : int
        Terms of a lane that lie in registers.
    """

    threads: int
    forward_terms: int
    backward_terms: int

    @property
    def name(self) -> str:
        """What a plan calls it."""
        return f"block of {self.threads}"

    @property
    def max_hidden(self) -> int:
        """The most units its threads can have, whatever fits."""
        return self.threads // LANES

    @property
    def registers(self) -> int:
        """Registers a thread may have: warps come in fours, registers of a thread in eights."""
        return min(255, REGISTERS // (-(-self.threads // 128) * 128) // 8 * 8)


TILES = {
    4: (
        BlockTile(256, 16, 16),
        BlockTile(384, 24, 22),
        BlockTile(512, 14, 12),
        BlockTile(640, 6, 4),
    ),
    2: (
        BlockTile(256, 16, 16),
        BlockTile(384, 22, 22),
        BlockTile(512, 14, 12),
        BlockTile(768, 0, 0),
    ),
}
"""The tiles by bytes of a weight, smallest first."""


def block_threads(H: int) -> int:
    """Return the threads of a block: four for each unit, in whole warps."""
    return -(-H // UNITS_OF_A_WARP) * UNITS_OF_A_WARP * LANES


def forward_shared_bytes(tile: BlockTile, I: int, H: int, itemsize: int, inside: bool) -> int:  # noqa: E741
    """Return the shared memory of a block of the forward kernel, in bytes.

    The terms that are not in registers, and h of float32 twice, before a step and after it; x of
    the step is beside h where the projection is `inside` the kernel. The sum of both biases.
    """
    terms = -(-(H + I * inside) // LANES)
    biases = block_threads(H) // LANES * 4 * 4
    return _shared_bytes(terms, tile.forward_terms, LANES, H, itemsize) + biases


def backward_shared_bytes(tile: BlockTile, H: int, itemsize: int) -> int:
    """Return the shared memory of a block of the backward kernel, in bytes: weights, twice dz."""
    terms = -(-H // 4)
    return _shared_bytes(terms, tile.backward_terms, BACKWARD_LANES, H, itemsize)


def _shared_bytes(terms: int, in_registers: int, lanes: int, H: int, itemsize: int) -> int:
    """Return the bytes of the terms that are not in registers, and of two exchanged vectors."""
    vector = -(-terms // GROUP) * GROUP * lanes * ROWS * 4
    return 2 * vector + max(0, terms - in_registers) * block_threads(H) * 4 * itemsize


def projects_inside(tile: BlockTile, I: int, H: int, itemsize: int, shared_bytes: int) -> bool:  # noqa: E741
    """Say whether the forward kernel projects the input itself, or a GEMM does before it.

    Each thread fetches one feature of one row, so there must be as many units as features.
    """
    fits = forward_shared_bytes(tile, I, H, itemsize, True) <= shared_bytes
    return fits and min(INSIDE_FEATURES, block_threads(H) // LANES) >= I


def block_tile(
    H: int,
    P: int,
    dtype: str,
    shared_bytes: int,
    compute_capability: tuple[int, int],
    training: bool = True,
) -> BlockTile | str:
    """Return the tile that serves a layer on a device, or why none does.

    Parameters
    ----------
    H, P : int
        Sizes of the layer, as the notation names them.
    dtype : str
        Name of the storage dtype.
    shared_bytes : int
        The most shared memory a block of the device can ask for.
    compute_capability : tuple of int
        Major and minor.
    training : bool
        Whether the backward kernel must fit, too.

    Returns
    -------
    BlockTile or str
        The smallest tile that has the threads and whose weights fit, or the reason. For any I: a
        GEMM projects the input where the kernel does not.
    """
    if dtype not in ITEMSIZE:
        return f"it serves {', '.join(ITEMSIZE)}, not {dtype}"
    if P != H:
        return "it serves no projection"
    if compute_capability < COMPUTE_CAPABILITY:
        have, need = (".".join(map(str, one)) for one in (compute_capability, COMPUTE_CAPABILITY))
        return f"it needs compute capability {need} or later, the device has {have}"
    tile = _fitting(H, dtype, shared_bytes, training)
    return tile or (
        "its recurrent weights must fit on one multiprocessor: hidden_size is at most "
        f"{block_capacity(dtype, shared_bytes, training)} in {dtype} on this device, not {H}"
    )


def block_capacity(dtype: str, shared_bytes: int, training: bool = True) -> int:
    """Return the largest H that a tile serves; arguments as those of `block_tile`."""
    most = max(tile.max_hidden for tile in TILES[ITEMSIZE[dtype]])
    served = (H for H in range(1, most + 1) if _fitting(H, dtype, shared_bytes, training))
    return max(served, default=0)


def _fitting(H: int, dtype: str, shared_bytes: int, training: bool) -> BlockTile | None:
    """Return the smallest tile that has the threads and whose weights fit."""
    itemsize = ITEMSIZE[dtype]
    for tile in TILES[itemsize]:
        needed = forward_shared_bytes(tile, 0, H, itemsize, False)
        if training:
            needed = max(needed, backward_shared_bytes(tile, H, itemsize))
        if block_threads(H) <= tile.threads and needed <= shared_bytes:
            return tile
    return None
