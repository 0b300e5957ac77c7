"""What the engine persistent launches for a layer on a device: pure arithmetic over `tiles`."""

from functools import lru_cache
from typing import NamedTuple

from cupy_lstm.device import DeviceFacts
from cupy_lstm.notation import Shape
from cupy_lstm.persistent.tiles import (
    BACKWARD_LANES,
    ITEMSIZE,
    LANES,
    ROWS,
    BlockTile,
    backward_shared_bytes,
    block_threads,
    block_tile,
    forward_shared_bytes,
    projects_inside,
)


class BlockPass(NamedTuple):
    """What a block does in every step of one pass, forward or backward.

    Attributes
    ----------
    terms : int
        Terms of a lane, 16 products each.
    shared_terms : int
        Those of them whose weights lie in shared memory.
    shared_bytes : int
        Shared memory of a block.
    """

    terms: int
    shared_terms: int
    shared_bytes: int


class Blocks(NamedTuple):
    """The blocks of a layer's launch.

    Attributes
    ----------
    tile : BlockTile
        The compiled form of the kernels.
    grid : tuple of int
        Blocks along x and y: tiles of `ROWS` batch rows, and directions.
    threads, registers : int
        Threads of a block, and the most registers of each.
    inside : bool
        Whether the forward kernel projects the input itself.
    forward, backward : BlockPass
        The two kernels.
    """

    tile: BlockTile
    grid: tuple[int, int]
    threads: int
    registers: int
    inside: bool
    forward: BlockPass
    backward: BlockPass

    @property
    def tier(self) -> str:
        """Where the weights stay: on one multiprocessor."""
        return "block"

    @property
    def name(self) -> str:
        """What a plan calls it."""
        return self.tile.name


# Without the batch and the sequence, which change from call to call: it takes long to find that
# there is none, and why.
_tile = lru_cache(maxsize=4096)(block_tile)


@lru_cache(maxsize=4096)
def blocks_for(shape: Shape, dtype: str, device: DeviceFacts, training: bool) -> Blocks | str:
    """Return the blocks that serve a layer on a device, or why none do.

    Parameters
    ----------
    shape : Shape
        Sizes of the layer, its batch and its sequence.
    dtype : str
        Name of the storage dtype.
    device : DeviceFacts
        Where they would run.
    training : bool
        Whether the backward kernel must fit, too.
    """
    _, B, I, H, P, D = shape  # noqa: E741
    available = device.shared_memory_per_block
    tile = _tile(H, P, dtype, available, device.compute_capability, training)
    if isinstance(tile, str):
        return tile
    threads, itemsize = block_threads(H), ITEMSIZE[dtype]
    if (
        threads > device.max_threads_per_block
        or threads * tile.registers > device.registers_per_multiprocessor
    ):
        return (
            f"a block of {threads} threads with {tile.registers} registers each is more than the "
            f"device has: {device.max_threads_per_block} threads a block, "
            f"{device.registers_per_multiprocessor} registers"
        )
    inside = projects_inside(tile, I, H, itemsize, available)
    forward_terms, backward_terms = -(-(H + I * inside) // LANES), -(-4 * H // BACKWARD_LANES)
    return Blocks(
        tile=tile,
        grid=(-(-B // ROWS), D),
        threads=threads,
        registers=tile.registers,
        inside=inside,
        forward=BlockPass(
            forward_terms,
            max(0, forward_terms - tile.forward_terms),
            forward_shared_bytes(tile, I, H, itemsize, inside),
        ),
        backward=BlockPass(
            backward_terms,
            max(0, backward_terms - tile.backward_terms),
            backward_shared_bytes(tile, H, itemsize),
        ),
    )
