"""The exchange of a team, as a model: every interleaving of a few blocks, tiles and steps.

What `recurrence_team.cu`, `recurrence_team_backward.cu` and `team.cuh` do is written here as a
program of single operations for each block. All orders in which the blocks can run them are tried:
nobody may wait forever, and whoever reads a block's part of a vector must find the one that was
published last before it, neither an older one nor one that came too early. Acquire and release make
each operation see all that was before the signal; that they are there, and wide enough, is the
matter of ThreadSanitizer and of the check of the PTX.
"""

from dataclasses import dataclass, replace

import pytest


@dataclass(frozen=True)
class Protocol:
    """What a team does, and what a broken one does not.

    Attributes
    ----------
    tier : {"grid", "cluster"}
    blocks : int
    longest : tuple of int
        Steps of each tile.
    backward : bool
    launches : int
        One after another, in the same memory, as a graph's replays are.
    buffers : int
        Copies of a vector.
    unseen : int
        Blocks whose flags are not waited for.
    ahead : int
        How many vectors too early a wait ends.
    clears : bool
        Whether the flags are zero before each launch.
    waits_to_leave : bool
        Whether a block of a cluster waits for the others before it leaves.
    """

    tier: str
    blocks: int
    longest: tuple[int, ...]
    backward: bool = False
    launches: int = 1
    buffers: int = 2
    unseen: int = 0
    ahead: int = 0
    clears: bool = True
    waits_to_leave: bool = True


class WrongReadError(Exception):
    """A block has read what it must not."""


def program(protocol: Protocol) -> list[tuple]:
    """Return what each block does in one launch, as operations that happen at once."""
    operations, waiting_for = [], None  # the tile whose arrival nobody has waited for

    def publish(tile, count):
        nonlocal waiting_for
        operations.append(("write", tile, count))
        if protocol.tier == "grid":
            operations.append(("flag", tile, count))
            return
        if waiting_for is not None:
            operations.append(("wait",))
        operations.append(("arrive",))
        waiting_for = tile

    def receive(tile, count):
        nonlocal waiting_for
        if protocol.tier == "grid":
            operations.append(("poll", tile, count))
        elif waiting_for == tile:
            operations.append(("wait",))
            waiting_for = None
        operations.extend(("read", tile, count, block) for block in range(protocol.blocks))

    if protocol.tier == "cluster":
        operations += [("clear",), ("arrive",), ("wait",)]
    tiles = range(len(protocol.longest))
    if not protocol.backward:
        for tile in tiles:
            publish(tile, 1)
    for turn in range(max(protocol.longest) + 1):
        for tile in tiles:
            steps = protocol.longest[tile]
            if protocol.backward and turn <= steps and steps:
                if turn:
                    receive(tile, turn)
                if turn < steps:
                    publish(tile, turn + 1)
            elif not protocol.backward and turn < steps:
                receive(tile, turn + 1)
                publish(tile, turn + 2)
    if waiting_for is not None and protocol.waits_to_leave:
        operations.append(("wait",))
    return [*operations, ("leave",)]


@dataclass(frozen=True)
class State:
    """Where each block is, and what memory holds: counts of the vectors that were published."""

    at: tuple[int, ...]
    arrived: tuple[int, ...]
    waited: tuple[int, ...]
    vectors: tuple[tuple[tuple[int, ...], int], ...]  # (owner, buffer, tile, producer), count
    flags: tuple[tuple[tuple[int, int], int], ...]


def step(protocol: Protocol, operations: list[tuple], state: State, block: int) -> State | None:
    """Return the state after the next operation of a block, None if it must wait."""
    name, *values = operations[state.at[block]]
    vectors, flags = dict(state.vectors), dict(state.flags)
    shared = protocol.tier == "cluster"
    owners = range(protocol.blocks) if shared else (0,)

    def after(**changes):
        at = (*state.at[:block], state.at[block] + 1, *state.at[block + 1 :])
        return replace(state, at=at, **changes)

    def counted(numbers):
        return (*numbers[:block], numbers[block] + 1, *numbers[block + 1 :])

    if name == "write":
        tile, count = values
        for owner in owners:
            if shared and ("left", owner) in flags:
                raise WrongReadError(f"block {block} writes to block {owner}, which has left")
            vectors[owner, count % protocol.buffers, tile, block] = count
        return after(vectors=tuple(sorted(vectors.items())))
    if name == "clear":
        cleared = {key: n for key, n in vectors.items() if key[0] != block}
        return after(vectors=tuple(sorted(cleared.items())))
    if name == "read":
        tile, count, producer = values
        found = vectors.get((block if shared else 0, count % protocol.buffers, tile, producer), 0)
        if found != count:
            raise WrongReadError(f"block {block} reads {found} of block {producer}, not {count}")
        return after()
    if name == "flag":
        tile, count = values
        flags[tile, block] = count
        return after(flags=tuple(sorted(flags.items(), key=str)))
    if name == "poll":
        tile, count = values
        seen = [flags.get((tile, other), 0) for other in range(protocol.blocks - protocol.unseen)]
        return after() if min(seen, default=count) >= count - protocol.ahead else None
    if name == "arrive":
        return after(arrived=counted(state.arrived))
    if name == "wait":
        if min(state.arrived) <= state.waited[block]:
            return None
        return after(waited=counted(state.waited))
    assert name == "leave"
    flags["left", block] = 1
    return after(flags=tuple(sorted(flags.items(), key=str)))


def explore(protocol: Protocol) -> int:
    """Try every order; return how many states there are, raise for a wrong read or a deadlock."""
    operations, zeros = program(protocol), (0,) * protocol.blocks
    begin = State(zeros, zeros, zeros, (), ())
    states = 0
    for _ in range(protocol.launches):
        waiting, known, ends = [begin], {begin}, set()
        while waiting:
            state = waiting.pop()
            running = [b for b in range(protocol.blocks) if state.at[b] < len(operations)]
            following = [step(protocol, operations, state, b) for b in running]
            if not running:
                ends.add(state)
            elif not any(following):
                raise TimeoutError(f"everyone waits: {[operations[state.at[b]] for b in running]}")
            new = {one for one in following if one is not None} - known
            known |= new
            waiting += new
        states += len(known)
        (end,) = ends  # whatever the order, memory holds the same
        kept = () if protocol.clears else tuple(f for f in end.flags if f[0][0] != "left")
        begin = State(zeros, zeros, zeros, end.vectors, kept)
    return states


each_tier = pytest.mark.parametrize("tier", ["grid", "cluster"])
each_pass = pytest.mark.parametrize("backward", [False, True])


@each_tier
@each_pass
@pytest.mark.parametrize(
    ("blocks", "longest"),
    [(2, (3,)), (2, (3, 3)), (2, (2, 0, 3)), (2, (1, 3)), (3, (3,)), (3, (2, 1)), (4, (2,))],
)
def test_in_no_order_is_a_vector_stale_or_a_block_stuck(tier, backward, blocks, longest):
    states = explore(Protocol(tier, blocks, longest, backward, launches=2))
    assert states > 2 * 10


BROKEN = {
    "a flag not waited for": Protocol("grid", 2, (3,), unseen=1),
    "no flag waited for": Protocol("grid", 2, (3,), unseen=2),
    "a wait that ends too early": Protocol("grid", 2, (3,), ahead=1),
    "one copy of the vectors": Protocol("grid", 2, (3,), buffers=1),
    "one copy in a cluster": Protocol("cluster", 2, (3,), buffers=1),
    "one copy of two tiles": Protocol("cluster", 2, (3, 3), buffers=1),
    "flags of the launch before": Protocol("grid", 2, (3,), launches=2, clears=False),
    "a block that leaves early": Protocol("cluster", 2, (2, 2), waits_to_leave=False),
}


EVERYONE_WAITED = "a block that leaves early", True
"""Nothing to find: the last product of a backward pass waits for all that is published."""


@pytest.mark.parametrize(
    ("name", "backward"),
    [(name, b) for name in BROKEN for b in (False, True) if (name, b) != EVERYONE_WAITED],
)
def test_what_is_broken_is_found(name, backward):
    with pytest.raises((WrongReadError, TimeoutError)):
        explore(replace(BROKEN[name], backward=backward))
