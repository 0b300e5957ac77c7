"""The order in which the threads of a kernel run.

The environment chooses for a whole run: ``GPU_ON_CPU_ORDER`` (forward, reverse or random) and
``GPU_ON_CPU_SEED`` (a number, for random).
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

ORDERS = ("forward", "reverse", "random")


@dataclass
class Schedule:
    """An order, and a seed that differs from launch to launch but not from run to run."""

    order: str
    seed: int
    launches: int = 0

    def __post_init__(self) -> None:
        if self.order not in ORDERS:
            raise ValueError(f"order must be one of {ORDERS}, received {self.order!r}")

    def next_seed(self) -> int:
        """Return the seed of the next launch."""
        self.launches += 1
        return self.seed * 1_000_003 + self.launches


_schedules = [
    Schedule(
        os.environ.get("GPU_ON_CPU_ORDER", "forward"), int(os.environ.get("GPU_ON_CPU_SEED", "0"))
    )
]


def schedule() -> Schedule:
    """Return the schedule of the next launch."""
    return _schedules[-1]


@contextmanager
def order(name: str, seed: int = 0) -> Iterator[None]:
    """Run the threads of every kernel in this order until the block ends.

    Parameters
    ----------
    name : str
        ``"forward"``, ``"reverse"`` or ``"random"``.
    seed : int
        Of the random order; the same seed gives the same interleaving.
    """
    _schedules.append(Schedule(name, seed))
    try:
        yield
    finally:
        _schedules.pop()
