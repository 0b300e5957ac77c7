"""Work that is captured instead of run, and which streams it has passed through."""

from collections.abc import Callable
from dataclasses import dataclass

from gpu_on_cpu.driver.errors import Status, runtime_error
from gpu_on_cpu.driver.recorder import Entry

Clock = dict[int, int]
"""Stream -> how many of its captured operations are known to be done."""


@dataclass(frozen=True)
class Node:
    """One piece of work: how it is recorded when it runs, and how it runs."""

    entry: Entry
    run: Callable[[], None]


class Capture:
    """A capture that began on one stream; others join by waiting for an event of it.

    Every stream keeps a clock of what must be done before its next operation. An event takes the
    clock of its stream along, a wait merges it into another's. At the end the clock of the first
    stream must hold everything, else work would be left that nobody waits for.
    """

    def __init__(self, origin: int, relaxed: bool, blocking: bool) -> None:
        self.origin = origin
        self.relaxed = relaxed  # whether CUDA would allow calls that may be unsafe
        self.blocking = blocking  # whether work on the legacy stream would have to wait for it
        self.nodes: list[Node] = []
        self.clocks: dict[int, Clock] = {origin: {origin: 0}}
        self.error: str | None = None

    def add(self, stream: int, node: Node) -> None:
        """Capture one piece of work of a stream."""
        self.require_valid()
        self.nodes.append(node)
        self.clocks[stream][stream] += 1

    def join(self, stream: int, clock: Clock) -> None:
        """Let a stream wait for an event that was recorded at `clock`."""
        own = self.clocks.setdefault(stream, {stream: 0})
        for other, count in clock.items():
            own[other] = max(own.get(other, 0), count)

    def event_clock(self, stream: int) -> Clock:
        """Return what an event recorded on a stream now stands for."""
        return dict(self.clocks[stream])

    def unjoined(self) -> list[int]:
        """Return the streams with work that the first stream does not wait for."""
        known = self.clocks[self.origin]
        return [s for s, clock in self.clocks.items() if clock[s] > known.get(s, -1)]

    def invalidate(self, status: Status, reason: str) -> RuntimeError:
        """Spoil the capture, as CUDA does, and return the error for whoever caused it."""
        self.error = self.error or reason
        return runtime_error(status, reason)

    def require_valid(self) -> None:
        """Raise if something has spoilt the capture."""
        if self.error:
            raise runtime_error(Status.STREAM_CAPTURE_INVALIDATED, self.error)
