"""Streams and events. Work runs at once, in the order of the calls, or is captured in a graph.

Three handles name streams that always exist: 0 and 1 are the legacy default stream, 2 is the
calling thread's own. Like CUDA, the bed lets nobody wait for what is being captured: it has not
run.
"""

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gpu_on_cpu.driver import devices
from gpu_on_cpu.driver.capture import Capture, Clock, Node
from gpu_on_cpu.driver.entry_points import DRIVER, RUNTIME
from gpu_on_cpu.driver.errors import Status, runtime_error
from gpu_on_cpu.driver.recorder import (
    Entry,
    EventRecord,
    EventWait,
    HostFunction,
    Query,
    Synchronisation,
    note,
)

LEGACY = (0, 1)
ALWAYS_THERE = (0, 1, 2)
NON_BLOCKING = 1  # a flag of a stream: it does not wait for the legacy stream
DISABLE_TIMING = 2  # a flag of an event

new_handle = itertools.count(0x5000, 16).__next__


@dataclass(eq=False)
class Stream:
    """A stream; `capture` is what its work goes into while it is being captured."""

    handle: int
    device: int
    flags: int = 0
    priority: int = 0
    capture: Capture | None = None


@dataclass(eq=False)
class Event:
    """An event, and what it last stood for."""

    handle: int
    device: int
    flags: int
    time: float | None = None
    capture: Capture | None = None
    clock: Clock | None = None


stream_table: dict[int, Stream] = {}
_events: dict[int, Event] = {}


def stream_of(handle: int) -> Stream:
    """Return a stream by its handle; those that always exist are the current device's."""
    if handle in ALWAYS_THERE:
        return Stream(handle, devices.current())
    if handle not in stream_table:
        raise runtime_error(Status.INVALID_HANDLE, f"there is no stream {handle:#x}")
    return stream_table[handle]


def event_of(handle: int) -> Event:
    """Return an event by its handle."""
    if handle not in _events:
        raise runtime_error(Status.INVALID_HANDLE, f"there is no event {handle:#x}")
    return _events[handle]


def active_captures() -> list[Capture]:
    """Return the captures that are going on."""
    return list({id(s.capture): s.capture for s in stream_table.values() if s.capture}.values())


def submit(handle: int, entry: Entry, run: Callable[[], None]) -> None:
    """Run a piece of work on a stream and note it, or capture it."""
    stream = stream_of(handle)
    refuse_legacy_during_capture(handle)
    if stream.capture:
        stream.capture.add(handle, Node(entry, run))
    else:
        note(entry)
        run()


def refuse_legacy_during_capture(handle: int) -> None:
    """Raise if a use of the legacy stream would wait for a stream that is being captured."""
    if handle in LEGACY:
        for capture in active_captures():
            if capture.blocking:
                raise capture.invalidate(
                    Status.STREAM_CAPTURE_IMPLICIT,
                    f"the legacy stream was used while stream {capture.origin:#x}, which is not "
                    "non_blocking, is being captured",
                )


def refuse_during_capture(what: str) -> None:
    """Raise if anything is being captured, and spoil that capture."""
    for capture in active_captures():
        raise capture.invalidate(
            Status.STREAM_CAPTURE_UNSUPPORTED,
            f"{what} while stream {capture.origin:#x} is being captured",
        )


# --- streams -------------------------------------------------------------------------------------


@RUNTIME.provides("streamCreate")
def create_stream() -> int:
    """Create a stream on the current device."""
    return create_stream_with_priority(0, 0)


@RUNTIME.provides("streamCreateWithFlags")
def create_stream_with_flags(flags: int) -> int:
    """Create a stream on the current device."""
    return create_stream_with_priority(flags, 0)


@RUNTIME.provides("streamCreateWithPriority")
def create_stream_with_priority(flags: int, priority: int) -> int:
    """Create a stream on the current device."""
    handle = new_handle()
    stream_table[handle] = Stream(handle, devices.current(), flags, priority)
    return handle


@RUNTIME.provides("streamDestroy")
def destroy_stream(handle: int) -> None:
    """Destroy a stream."""
    del stream_table[stream_of(handle).handle]


@RUNTIME.provides("streamGetFlags")
def stream_flags(handle: int) -> int:
    """Return the flags a stream was created with."""
    return stream_of(handle).flags


@RUNTIME.provides("streamGetPriority")
def stream_priority(handle: int) -> int:
    """Return the priority a stream was created with."""
    return stream_of(handle).priority


@DRIVER.provides("streamGetCtx")
def context_of_stream(handle: int) -> int:
    """Return the context of a stream: its device's number plus one."""
    return stream_of(handle).device + 1


@RUNTIME.provides("streamSynchronize")
def synchronize_stream(handle: int) -> None:
    """Wait for a stream: nothing is left to wait for, but it counts."""
    stream = stream_of(handle)
    refuse_legacy_during_capture(handle)
    if stream.capture:
        raise stream.capture.invalidate(
            Status.STREAM_CAPTURE_UNSUPPORTED, f"stream {handle:#x} is being captured"
        )
    note(Synchronisation("stream", handle))


@RUNTIME.provides("deviceSynchronize")
def synchronize_device() -> None:
    """Wait for the current device."""
    refuse_during_capture("the device was waited for")
    note(Synchronisation("device", devices.current()))


@RUNTIME.provides("streamQuery")
def query_stream(handle: int) -> int:
    """Return 0: everything has run."""
    stream = stream_of(handle)
    if stream.capture:
        raise stream.capture.invalidate(
            Status.STREAM_CAPTURE_UNSUPPORTED, f"stream {handle:#x} is being captured"
        )
    note(Query("stream", handle))
    return 0


@RUNTIME.provides("launchHostFunc")
def launch_host_function(handle: int, function: Callable[[Any], None], argument: Any) -> None:
    """Run a function of the host in the order of a stream."""
    submit(handle, HostFunction(handle), lambda: function(argument))


@RUNTIME.provides("_launchHostFuncUnmanaged")
def launch_host_function_of_graph(handle: int, pair: tuple[Callable[[Any], None], Any]) -> None:
    """Do the same during a capture; CuPy keeps function and argument alive with the graph."""
    launch_host_function(handle, *pair)


@RUNTIME.provides("streamAddCallback")
def add_callback(
    handle: int, callback: Callable[[int, int, Any], None], argument: Any, flags: int = 0
) -> None:
    """Run a callback; unlike a host function it cannot be captured."""
    if stream_of(handle).capture:
        refuse_during_capture("a stream callback was added")
    submit(handle, HostFunction(handle), lambda: callback(handle, 0, argument))


# --- events --------------------------------------------------------------------------------------


@RUNTIME.provides("eventCreate")
def create_event() -> int:
    """Create an event on the current device."""
    return create_event_with_flags(0)


@RUNTIME.provides("eventCreateWithFlags")
def create_event_with_flags(flags: int) -> int:
    """Create an event on the current device."""
    handle = new_handle()
    _events[handle] = Event(handle, devices.current(), flags)
    return handle


@RUNTIME.provides("eventDestroy")
def destroy_event(handle: int) -> None:
    """Destroy an event."""
    del _events[event_of(handle).handle]


@RUNTIME.provides("eventRecord")
def record_event(event_handle: int, stream_handle: int) -> None:
    """Let an event stand for all work so far of a stream of its device."""
    event, stream = event_of(event_handle), stream_of(stream_handle)
    if event.device != stream.device:
        raise runtime_error(
            Status.INVALID_HANDLE,
            f"an event of device {event.device} was recorded on a stream of device {stream.device}",
        )
    refuse_legacy_during_capture(stream_handle)
    event.capture, event.time = stream.capture, time.perf_counter()
    if stream.capture:
        stream.capture.require_valid()
        event.clock = stream.capture.event_clock(stream_handle)
    else:
        note(EventRecord(event_handle, stream_handle))


@RUNTIME.provides("streamWaitEvent")
def wait_event(stream_handle: int, event_handle: int, flags: int = 0) -> None:
    """Make a stream wait for an event; for a captured one, the stream joins the capture."""
    event, stream = event_of(event_handle), stream_of(stream_handle)
    refuse_legacy_during_capture(stream_handle)
    if event.capture and event.capture in active_captures():
        if stream.capture not in (None, event.capture):
            raise event.capture.invalidate(
                Status.STREAM_CAPTURE_UNSUPPORTED, "an event joins two captures"
            )
        stream.capture = event.capture
        event.capture.join(stream_handle, event.clock or {})
    elif stream.capture:
        raise stream.capture.invalidate(
            Status.STREAM_CAPTURE_ISOLATION,
            "a captured stream was made to wait for an event from outside the capture",
        )
    else:
        note(EventWait(event_handle, stream_handle))


def _finished(handle: int) -> Event:
    event = event_of(handle)
    if event.capture:
        raise event.capture.invalidate(
            Status.CAPTURED_EVENT, f"event {handle:#x} was recorded during a capture"
        )
    return event


@RUNTIME.provides("eventSynchronize")
def synchronize_event(handle: int) -> None:
    """Wait for an event."""
    _finished(handle)
    note(Synchronisation("event", handle))


@RUNTIME.provides("eventQuery")
def query_event(handle: int) -> int:
    """Return 0: everything before the event has run."""
    _finished(handle)
    note(Query("event", handle))
    return 0


@RUNTIME.provides("eventElapsedTime")
def elapsed_milliseconds(start: int, end: int) -> float:
    """Return the time between two events; it is the CPU's and says nothing of a device's."""
    times = []
    for handle in (start, end):
        event = _finished(handle)
        if event.time is None or event.flags & DISABLE_TIMING:
            raise runtime_error(
                Status.INVALID_HANDLE, f"event {handle:#x} was not recorded, or without its time"
            )
        times.append(event.time)
    return 1000 * (times[1] - times[0])
