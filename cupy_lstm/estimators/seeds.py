"""Seeds of a fit."""

from types import ModuleType
from typing import Any

import numpy
from sklearn.utils import check_random_state

from cupy_lstm.distributed.agreement import on_first
from cupy_lstm.distributed.launcher import launched


def agreed_seeds(random_state: Any, count: int, xp: ModuleType = numpy) -> list[int]:
    """Return seeds, the same in all processes that fit together: those of rank 0.

    Parameters
    ----------
    random_state : int, RandomState or None
        As scikit-learn has it.
    count : int
        How many.
    xp : module
        Of the arrays that are fitted to.
    """

    def draw() -> Any:
        return check_random_state(random_state).randint(2**31 - 1, size=count).tolist()

    seeds: list[int] = on_first(launched(xp), draw)
    return seeds
