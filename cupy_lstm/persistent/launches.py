"""Launching a pass of the engine persistent: the kernel of its tier, and what teams need beside.

An engine gives every value a kernel might take, by the name of its parameter; each tier's kernels
take what they need.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any

from cupy_lstm.backend import Array, array_module
from cupy_lstm.device import device_facts, refuse_clusters
from cupy_lstm.kernels import SCALARS, Kernel
from cupy_lstm.notation import Shape
from cupy_lstm.persistent.blocks import Blocks
from cupy_lstm.persistent.teams import Teams
from cupy_lstm.persistent.tiers import tier_for
from cupy_lstm.persistent.tiles import ITEMSIZE

FILES = {
    ("block", "forward"): "recurrence_block.cu",
    ("block", "backward"): "recurrence_block_backward.cu",
    ("team", "forward"): "recurrence_team.cu",
    ("team", "backward"): "recurrence_team_backward.cu",
}
"""The sources of the kernels, by what launches them and pass."""

_proven: set[tuple[int, str, str, int, int]] = set()
"""Kinds of clusters that a device has launched: device, pass, dtype, blocks, shared memory."""


def tier_of(shape: Shape, x: Array, training: bool) -> Blocks | Teams:
    """Return what serves a layer on the device of its input.

    Raises
    ------
    ValueError
        If nothing does.
    """
    tier = tier_for(shape, x.dtype.name, device_facts(x.device.id), training)
    if isinstance(tier, str):
        raise ValueError(f"the engine 'persistent' cannot serve this call: {tier}")
    return tier


class Pass:
    """One pass of a layer, forward or backward, to be launched for each chunk of its steps.

    Parameters
    ----------
    which : str
        ``"forward"`` or ``"backward"``.
    shape : Shape
        Sizes of the layer, its batch and its sequence.
    x : array
        Its input, for device and dtype.
    training : bool
        Whether the tier serves both passes.

    Attributes
    ----------
    tier : Blocks or Teams
        What is launched.
    """

    def __init__(self, which: str, shape: Shape, x: Array, training: bool) -> None:
        self.which, self._shape, self._x, self._training = which, shape, x, training
        self.tier = tier_of(shape, x, training)

    def launch(self, values: Mapping[str, Any]) -> None:
        """Launch for a chunk, with the values of the kernel's parameters by their names.

        A device may say that it launches clusters, and refuse the first of a kind: then it has
        none, and the blocks exchange through memory.
        """
        device, dtype, tier = self._x.device.id, self._x.dtype.name, self.tier
        if isinstance(tier, Blocks):
            self._launch_blocks(tier, values)
            return
        shared_bytes = getattr(tier, self.which).shared_bytes
        kind = device, self.which, dtype, tier.blocks, shared_bytes
        if tier.tier != "cluster" or kind in _proven:
            self._launch_teams(tier, values)
        else:
            import cupy

            try:
                self._launch_teams(tier, values)
                _proven.add(kind)
            except cupy.cuda.driver.CUDADriverError as error:
                refuse_clusters(device, str(error))
                try:
                    self.tier = tier_of(self._shape, self._x, self._training)
                    self.launch(values)
                except Exception:
                    refuse_clusters(device, None)  # nothing else goes either: not their fault
                    raise

    def _launch_blocks(self, blocks: Blocks, values: Mapping[str, Any]) -> None:
        terms = getattr(blocks.tile, f"{self.which}_terms")
        kernel = _block_kernel(self.which, self._x.dtype.name, terms, blocks.tile.threads)
        work = getattr(blocks, self.which)
        kernel.launch_blocks(
            blocks.grid, blocks.threads, work.shared_bytes, *_named(kernel, values)
        )

    def _launch_teams(self, teams: Teams, values: Mapping[str, Any]) -> None:
        dtype, D = self._x.dtype.name, self._shape.D
        cluster = teams.blocks if teams.tier == "cluster" else 0
        kernel = _team_kernel(self.which, dtype, teams.form.kind, teams.form.kept_terms, cluster)
        work = getattr(teams, self.which)
        exchange, flags = self._exchange(teams, D)
        for first in range(0, D, teams.directions):
            own = {
                **{"exchange": exchange, "flags": flags, "first_direction": first},
                **{"blocks": teams.blocks, "units": teams.units, "tiles": teams.tiles},
                **{"terms": work.terms, "span": teams.form.span(work.outputs)},
            }
            kernel.launch_blocks(
                teams.grid, teams.threads, work.shared_bytes, *_named(kernel, {**values, **own})
            )

    def _exchange(self, teams: Teams, D: int) -> tuple[Array | None, Array | None]:
        """Return zeros for exchanged vectors and flags, of this launch and its stream alone.

        Cleared in stream order, so that the replay of a graph clears them, too.
        """
        work, dtype = getattr(teams, self.which), self._x.dtype
        vectors, flags = teams.exchange_bytes(work, D, ITEMSIZE[dtype.name])
        if not flags:
            return None, None
        memory = array_module(self._x).zeros(vectors + flags, "uint8")
        return memory[:vectors].view(dtype), memory[vectors:].view("uint32")


@cache
def _block_kernel(which: str, dtype: str, terms: int, threads: int) -> Kernel:
    function = f"recurrence_{which}"
    return Kernel(FILES["block", which], function, SCALARS[dtype], str(terms), str(threads))


@cache
def _team_kernel(which: str, dtype: str, form: str, kept_terms: int, cluster: int) -> Kernel:
    scalar = SCALARS[dtype]
    return Kernel(
        FILES["team", which],
        f"recurrence_{which}",
        scalar,
        f"{form}<{scalar}, {kept_terms}>",
        options=(f"-DCLUSTER={cluster}",) if cluster else (),
        cooperative=not cluster,
    )


def _named(kernel: Kernel, values: Mapping[str, Any]) -> list[Any]:
    """Return the values of a kernel's parameters, in its order."""
    return [values[parameter.name] for parameter in kernel.parameters]
