"""What threads share: a counter in memory that only grows, to meet at or to take pieces from."""

import sys
from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from cupy_lstm.simd.memory import pointer
from cupy_lstm.simd.vector import WORD


@intrinsic
def take_next(context: Any, counter: Any) -> Any:
    """Add one to a counter, and return what it was."""

    def lower(context: Any, builder: Any, kinds: Any, operands: Any) -> Any:
        place = pointer(builder, operands[0])
        return builder.atomic_rmw("add", place, ir.Constant(WORD, 1), "seq_cst")

    return types.int64(types.int64), lower


@intrinsic
def _current(context: Any, counter: Any) -> Any:
    def lower(context: Any, builder: Any, kinds: Any, operands: Any) -> Any:
        place = pointer(builder, operands[0])
        return builder.load_atomic(place, "acquire", 8, typ=WORD)

    return types.int64(types.int64), lower


if sys.platform == "win32":

    @njit(nogil=True)
    def _give_way() -> None:
        """Do nothing: the system interrupts a thread that waits for long."""

else:
    _give_way = types.ExternalFunction("sched_yield", types.int32())


@njit(nogil=True)
def meet_others(lanes: Any, counter: int, target: int) -> None:
    """Meet, as a kernel."""
    meet(counter, target)


@njit(nogil=True)
def meet(counter: int, target: int) -> None:
    """Wait until the threads have come here `target` times in all."""
    take_next(counter)
    tries = 0
    while _current(counter) < target:
        tries += 1
        # Where there are more threads than cores, the one that is waited for must run.
        if tries > 2000:
            _give_way()
