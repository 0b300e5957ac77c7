"""Which tier of the engine persistent serves a layer on a device: pure arithmetic."""

from functools import lru_cache

from cupy_lstm.device import DeviceFacts
from cupy_lstm.notation import Shape
from cupy_lstm.persistent.blocks import Blocks, blocks_for
from cupy_lstm.persistent.team_cost import step_clocks
from cupy_lstm.persistent.teams import COMPUTE_CAPABILITY, Teams, fitting_teams
from cupy_lstm.persistent.tiles import ITEMSIZE

MOST_HIDDEN = 4096
"""More than any device holds."""


def tier_for(shape: Shape, dtype: str, device: DeviceFacts, training: bool) -> Blocks | Teams | str:
    """Return what the engine launches for a layer on a device, or why it cannot serve it.

    Blocks that wait for nobody where the recurrent weights of a direction fit on a multiprocessor,
    else teams of blocks.

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
    blocks = blocks_for(shape, dtype, device, training)
    if isinstance(blocks, Blocks) or dtype not in ITEMSIZE or shape.P != shape.H:
        return blocks
    if device.compute_capability < COMPUTE_CAPABILITY:
        return blocks
    _, B, _, H, _, D = shape
    teams = best_teams(B, H, D, dtype, device, training)
    if teams is not None:
        return teams
    if any(fitting_teams(1, H, D, dtype, device, training)):
        return f"{B} rows are more than the shared memory of its teams holds"
    return (
        "its recurrent weights must fit on the multiprocessors together: hidden_size is at most "
        f"{capacity(dtype, device, training)} in {dtype} on this device, not {H}"
    )


@lru_cache(maxsize=4096)
def best_teams(
    B: int, H: int, D: int, dtype: str, device: DeviceFacts, training: bool
) -> Teams | None:
    """Return the teams whose steps take the fewest clocks, of equals those of the fewest blocks."""
    itemsize = ITEMSIZE[dtype]

    def clocks(teams: Teams) -> tuple[float, int]:
        works = (teams.forward, teams.backward) if training else (teams.forward,)
        total = sum(step_clocks(teams, work, device, itemsize, D) for work in works)
        return total, teams.blocks * teams.teams

    return min(fitting_teams(B, H, D, dtype, device, training), key=clocks, default=None)


@lru_cache(maxsize=256)
def capacity(dtype: str, device: DeviceFacts, training: bool, tier: str | None = None) -> int:
    """Return the largest H that teams serve, of one direction and a batch of one tile."""
    for H in range(MOST_HIDDEN, 0, -1):
        for teams in fitting_teams(1, H, 1, dtype, device, training):
            if tier in (None, teams.tier):
                return H
    return 0
