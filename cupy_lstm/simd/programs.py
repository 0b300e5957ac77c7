"""What the threads of a call do, as programs in memory, which run without the interpreter.

A *program* is a table of what one thread does: how many calls, then for each the address of a
kernel and that of its job. A *task* is programs that run at once, the first one in the thread of
the caller, the others in workers. A worker has a *box* in which it finds its next task. After one
it waits for the next in a loop for a while, since to wake a thread takes longer than many a call.
"""

from typing import Any, NamedTuple

from numba import njit, types
from numba.extending import intrinsic

from cupy_lstm.simd.barrier import add, current, exchange, give_way, meet, pause, replace
from cupy_lstm.simd.memory import read, read_job, write
from cupy_lstm.simd.vector import Lanes, LanesType

RUN, GIVEN, DONE, ASLEEP, LEFT, FAILED, PROGRAM, COUNTERS, WORKERS, PLACES = (
    8 * k for k in range(10)
)
"""Words of a task, in bytes: the number of the run that is wanted, of the one that was given to the
workers last, and of that in which the caller's own program was done last; how many workers slept
when it was given, how many programs of others are not done, how many calls have failed; the
caller's program; a table of what is zero when a run begins: how many places, then for each its
address and its words; the number of workers; from `PLACES` on the box and the program of each."""

STATE, BOX_TASK, BOX_PROGRAM = (8 * k for k in range(3))
"""Words of a box, in bytes."""

SLEEPS, WAITS, WORKS = range(3)
"""States of a worker: to be woken; in a loop that looks into its box; with something in it."""

_ANY_LANES = LanesType(Lanes("float32", 4, 3))  # they are all alike where a kernel is called


@intrinsic
def _call(context: Any, kernel: Any, job: Any) -> Any:
    """Call the kernel at an address; return whether it raised."""

    def lower(context: Any, builder: Any, kinds: Any, operands: Any) -> Any:
        parameters = _ANY_LANES, types.int64
        kind = context.call_conv.get_function_type(types.void, parameters)
        function = builder.inttoptr(operands[0], kind.as_pointer())
        arguments = [context.get_dummy_value(), operands[1]]
        status, _ = context.call_conv.call_function(
            builder, function, types.void, parameters, arguments
        )
        return status.is_error

    return types.boolean(types.int64, types.int64), lower


@njit(nogil=True)
def _run(program: int, task: int) -> None:
    for k in range(read(program)):
        entry = program + 8 + 16 * k
        if _call(read(entry), read(entry + 8)):
            add(task + FAILED, 1)


@njit(nogil=True)
def begin(task: int) -> int:
    """Give a task to the workers and do it; return 0, or if some of them sleep, how many.

    Those must be woken then, and `finish` be called. A run that was given is not given again.
    """
    if read(task + GIVEN) != read(task + RUN):
        write(task + GIVEN, read(task + RUN))
        write(task + ASLEEP, 0)
        write(task + FAILED, 0)
        write(task + LEFT, read(task + WORKERS))
        counters = read(task + COUNTERS)
        for k in range(read(counters)):
            entry = counters + 8 + 16 * k
            for word in range(read(entry + 8)):
                write(read(entry) + 8 * word, 0)
        for k in range(read(task + WORKERS)):
            place = task + PLACES + 16 * k
            box = read(place)
            write(box + BOX_TASK, task)
            write(box + BOX_PROGRAM, read(place + 8))
            if exchange(box + STATE, WORKS) == SLEEPS:
                write(task + ASLEEP, read(task + ASLEEP) + 1)
    asleep: int = read(task + ASLEEP)
    if asleep == 0:
        finish(task)
    return asleep


@njit(nogil=True)
def finish(task: int) -> None:
    """Run the caller's own program, and wait for the others."""
    if read(task + DONE) != read(task + RUN):
        write(task + DONE, read(task + RUN))
        _run(read(task + PROGRAM), task)
    tries = 0
    while current(task + LEFT) > 0:
        tries += 1
        if tries > 2000:
            give_way()


@njit(nogil=True)
def serve(box: int, patience: int) -> None:
    """Work on what comes into a box, until nothing has come for a number of looks into it."""
    replace(box + STATE, SLEEPS, WAITS)
    tries = 0
    while True:
        if current(box + STATE) == WORKS:
            task = read(box + BOX_TASK)
            _run(read(box + BOX_PROGRAM), task)
            # What is given next is given by one who knows that this task is done.
            exchange(box + STATE, WAITS)
            add(task + LEFT, -1)
            tries = 0
        elif tries < patience:
            tries += 1
            pause()
        elif replace(box + STATE, WAITS, SLEEPS):
            break


@njit(nogil=True)
def fill(gaps: int, begins: int) -> None:
    """Write addresses to the gaps of jobs.

    `gaps` is a table of how many there are, then for each of its place, the number of the memory
    that the address lies in, and the distance from where that begins, which `begins` has.
    """
    for k in range(read(gaps)):
        gap = gaps + 8 + 24 * k
        write(read(gap), read(begins + 8 * read(gap + 8)) + read(gap + 16))


class MeetingJob(NamedTuple):
    """A counter that threads meet at, and what it must have come to."""

    counter: int
    target: int


@njit(nogil=True)
def meet_others(lanes: Any, place: int) -> None:
    """Meet, as a kernel."""
    job = read_job(MeetingJob, place)
    meet(job.counter, job.target)
