"""What threads share: words in memory that are changed in one go, and counters to meet at."""

import sys
from typing import Any

from llvmlite import binding, ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from cupy_lstm.simd.memory import pointer
from cupy_lstm.simd.vector import WORD


@intrinsic
def add(context: Any, place: Any, number: Any) -> Any:
    """Add to a word, and return what it was."""

    def lower(context: Any, builder: Any, kinds: Any, operands: Any) -> Any:
        return builder.atomic_rmw("add", pointer(builder, operands[0]), operands[1], "seq_cst")

    return types.int64(types.int64, types.int64), lower


@intrinsic
def exchange(context: Any, place: Any, value: Any) -> Any:
    """Set a word, and return what it was."""

    def lower(context: Any, builder: Any, kinds: Any, operands: Any) -> Any:
        return builder.atomic_rmw("xchg", pointer(builder, operands[0]), operands[1], "seq_cst")

    return types.int64(types.int64, types.int64), lower


@intrinsic
def replace(context: Any, place: Any, expected: Any, value: Any) -> Any:
    """Set a word if it is what is expected; return whether it was."""

    def lower(context: Any, builder: Any, kinds: Any, operands: Any) -> Any:
        place, expected, value = operands
        pair = builder.cmpxchg(pointer(builder, place), expected, value, "seq_cst", "seq_cst")
        return builder.extract_value(pair, 1)

    return types.boolean(types.int64, types.int64, types.int64), lower


@intrinsic
def current(context: Any, place: Any) -> Any:
    """Return a word, and with it all that whoever set it had written before."""

    def lower(context: Any, builder: Any, kinds: Any, operands: Any) -> Any:
        return builder.load_atomic(pointer(builder, operands[0]), "acquire", 8, typ=WORD)

    return types.int64(types.int64), lower


@intrinsic
def pause(context: Any) -> Any:
    """Let the core know that this thread waits in a loop, where there is a word for it."""

    def lower(context: Any, builder: Any, kinds: Any, operands: Any) -> Any:
        if binding.get_default_triple().startswith(("x86_64", "i386", "i686")):
            kind = ir.FunctionType(ir.VoidType(), [])
            name = "llvm.x86.sse2.pause"
            builder.call(cgutils.get_or_insert_function(builder.module, kind, name), [])
        return context.get_dummy_value()

    return types.void(), lower


if sys.platform == "win32":

    @njit(nogil=True)
    def give_way() -> None:
        """Do nothing: the system interrupts a thread that waits for long."""

else:
    give_way = types.ExternalFunction("sched_yield", types.int32())


@njit(nogil=True)
def meet(counter: int, target: int) -> None:
    """Wait until the threads have come here `target` times in all."""
    add(counter, 1)
    tries = 0
    while current(counter) < target:
        tries += 1
        # Where there are more threads than cores, the one that is waited for must run.
        if tries > 2000:
            give_way()
