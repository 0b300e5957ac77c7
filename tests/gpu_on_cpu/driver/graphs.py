"""Graphs: begin and end of a capture, and its replay."""

from dataclasses import dataclass, replace
from pathlib import Path

from gpu_on_cpu.driver.capture import Capture, Node
from gpu_on_cpu.driver.entry_points import RUNTIME
from gpu_on_cpu.driver.errors import Status, runtime_error
from gpu_on_cpu.driver.recorder import GraphLaunch, Launch
from gpu_on_cpu.driver.streams import (
    LEGACY,
    NON_BLOCKING,
    Stream,
    new_handle,
    stream_of,
    stream_table,
    submit,
)

RELAXED = 2  # a mode of a capture


@dataclass(frozen=True)
class Graph:
    """What was captured."""

    nodes: tuple[Node, ...]


_graphs: dict[int, Graph] = {}
_executables: dict[int, Graph] = {}


def _of(table: dict[int, Graph], handle: int) -> Graph:
    if handle not in table:
        raise runtime_error(Status.INVALID_VALUE, f"there is no graph {handle:#x}")
    return table[handle]


@RUNTIME.provides("streamBeginCapture")
def begin_capture(handle: int, mode: int = RELAXED) -> None:
    """Capture what follows on a stream."""
    stream = stream_of(handle)
    if handle in LEGACY:
        raise runtime_error(
            Status.STREAM_CAPTURE_UNSUPPORTED, "the legacy stream cannot be captured"
        )
    if stream.capture:
        raise stream.capture.invalidate(
            Status.INVALID_VALUE, f"stream {handle:#x} is being captured already"
        )
    stream.capture = Capture(
        handle, relaxed=mode == RELAXED, blocking=not stream.flags & NON_BLOCKING
    )


@RUNTIME.provides("streamIsCapturing")
def is_capturing(handle: int) -> bool:
    """Say whether a stream is being captured; raise as CuPy does if something has spoilt it."""
    capture = stream_of(handle).capture
    if capture and capture.error:
        raise RuntimeError(
            "the stream was capturing, but an error has invalidated the capture sequence: "
            + capture.error
        )
    return capture is not None


@RUNTIME.provides("streamEndCapture")
def end_capture(handle: int) -> int:
    """End the capture that began on a stream and return its graph."""
    capture = stream_of(handle).capture
    if capture is None:
        raise runtime_error(Status.INVALID_VALUE, f"stream {handle:#x} is not being captured")
    if capture.origin != handle:
        raise capture.invalidate(
            Status.STREAM_CAPTURE_UNMATCHED, f"the capture began on stream {capture.origin:#x}"
        )
    for stream in streams_of(capture):
        stream.capture = None
    capture.require_valid()
    if unjoined := capture.unjoined():
        names = ", ".join(f"{stream:#x}" for stream in unjoined)
        raise runtime_error(
            Status.STREAM_CAPTURE_UNJOINED, f"stream {handle:#x} does not wait for {names}"
        )
    graph = new_handle()
    _graphs[graph] = Graph(tuple(capture.nodes))
    return graph


def streams_of(capture: Capture) -> list[Stream]:
    """Return the streams whose work goes into a capture."""
    return [stream for stream in stream_table.values() if stream.capture is capture]


@RUNTIME.provides("graphInstantiate")
def instantiate(handle: int) -> int:
    """Make a graph that can be launched."""
    executable = new_handle()
    _executables[executable] = _of(_graphs, handle)
    return executable


@RUNTIME.provides("graphDestroy")
def destroy(handle: int) -> None:
    """Destroy a graph; what was made of it stays."""
    _of(_graphs, handle)
    del _graphs[handle]


@RUNTIME.provides("graphExecDestroy")
def destroy_executable(handle: int) -> None:
    """Destroy a graph that could be launched."""
    _of(_executables, handle)
    del _executables[handle]


@RUNTIME.provides("graphUpload")
def upload(handle: int, stream: int) -> None:
    """Do nothing but see that both exist."""
    _of(_executables, handle)
    stream_of(stream)


@RUNTIME.provides("graphLaunch")
def launch(handle: int, stream: int) -> None:
    """Run the work of a graph, in the order in which it was captured."""
    nodes = _of(_executables, handle).nodes
    submit(stream, GraphLaunch(handle, len(nodes), stream), lambda: None)
    for node in nodes:
        place = {"stream": stream} | ({"graph": handle} if isinstance(node.entry, Launch) else {})
        submit(stream, replace(node.entry, **place), node.run)


@RUNTIME.provides("graphDebugDotPrint")
def write_dot(handle: int, path: str, flags: int) -> None:
    """Write the nodes of a graph, one after the other, for Graphviz."""
    entries = [node.entry for node in _of(_graphs, handle).nodes]
    labels = [e.name if isinstance(e, Launch) else type(e).__name__ for e in entries]
    lines = [f'  n{number} [label="{label}"];' for number, label in enumerate(labels)]
    lines += [f"  n{number} -> n{number + 1};" for number in range(len(labels) - 1)]
    Path(path).write_text("\n".join(["digraph {", *lines, "}", ""]))
