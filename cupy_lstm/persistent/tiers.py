"""Which tier of the engine persistent serves a layer on a device: pure arithmetic."""

from bisect import bisect_left
from functools import lru_cache

from cupy_lstm.cost import recurrence_clocks
from cupy_lstm.device import DeviceFacts
from cupy_lstm.notation import Shape
from cupy_lstm.persistent.blocks import Blocks, blocks_for
from cupy_lstm.persistent.teams import COMPUTE_CAPABILITY, Teams, fitting_teams, forms_for
from cupy_lstm.persistent.tiles import ITEMSIZE, block_capacity

MOST_HIDDEN = 4096
"""More than any device holds."""

NEAR = 1.05
"""How many times more clocks count as the fewest: multiprocessors are worth more than the rest."""

WAITING = 1.5
"""How many times longer than those of teams the steps of blocks may take by the model. Blocks wait
for nobody, and how long teams do is assumed, not measured."""


def tier_for(shape: Shape, dtype: str, device: DeviceFacts, training: bool) -> Blocks | Teams | str:
    """Return what the engine launches for a layer on a device, or why it cannot serve it.

    Blocks where the recurrent weights of a direction fit on a multiprocessor, unless their steps
    take much longer than those of teams, which have more multiprocessors for each row.

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
    if dtype not in ITEMSIZE or shape.P != shape.H:
        return blocks
    if device.compute_capability < COMPUTE_CAPABILITY:
        return blocks
    _, B, _, H, _, D = shape
    teams = best_teams(B, H, D, dtype, device, training)
    if isinstance(blocks, Blocks):
        if teams is None:
            return blocks
        longer, shorter = (pass_clocks(one, dtype, device, D, training) for one in (blocks, teams))
        return blocks if longer <= WAITING * shorter else teams
    if teams is not None:
        return teams
    if any(fitting_teams(1, H, D, dtype, device, training)):
        return f"{B} rows are more than the shared memory of its teams holds"
    most = max(
        block_capacity(dtype, device.shared_memory_per_block, training),
        capacity(dtype, device, training),
    )
    return (
        "its recurrent weights must fit on the multiprocessors together: hidden_size is at most "
        f"{most} in {dtype} on this device, not {H}"
    )


@lru_cache(maxsize=4096)
def best_teams(
    B: int, H: int, D: int, dtype: str, device: DeviceFacts, training: bool
) -> Teams | None:
    """Return the teams of the fewest blocks among those whose steps take the fewest clocks."""
    clocks = {
        teams: pass_clocks(teams, dtype, device, D, training)
        for teams in fitting_teams(B, H, D, dtype, device, training)
    }
    near = NEAR * min(clocks.values(), default=0.0)
    return min(
        (teams for teams in clocks if clocks[teams] <= near),
        key=lambda teams: (teams.grid[0] * teams.grid[1], clocks[teams]),
        default=None,
    )


@lru_cache(maxsize=4096)
def pass_clocks(
    launch: Blocks | Teams, dtype: str, device: DeviceFacts, D: int, training: bool
) -> float:
    """Return the clocks of a step forward, and of one backward where that follows."""
    passes = (False, True) if training else (False,)
    return sum(recurrence_clocks(launch, dtype, device, D, backward) for backward in passes)


@lru_cache(maxsize=256)
def capacity(dtype: str, device: DeviceFacts, training: bool, tier: str | None = None) -> int:
    """Return the largest H that teams serve, of one direction and a batch of one tile; 0 if none.

    Every smaller one fits, too, down to the fewest units of a block, which need no team.
    """

    def is_too_large(H: int) -> bool:
        found = fitting_teams(1, H, 1, dtype, device, training)
        return all(tier not in (None, teams.tier) for teams in found)

    least = 1 + max(form.outputs for form in forms_for(dtype, device))
    fitting = bisect_left(range(least, MOST_HIDDEN), True, key=is_too_large)
    return least + fitting - 1 if fitting else 0
