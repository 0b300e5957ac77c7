"""What a recording holds: ranges of the host, work of the GPU, and how they lie in each other."""

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from cupy_lstm.device import DeviceFacts


@dataclass(frozen=True)
class Span:
    """A range; times in nanoseconds of the recording's clock.

    Attributes
    ----------
    payload : dict, number or None
        What it carries.
    colour : int
        0xAARRGGBB.
    """

    name: str
    domain: str
    category: str
    colour: int
    payload: Any
    process: int
    thread: int
    start: int
    end: int

    @property
    def length(self) -> int:
        """Nanoseconds from start to end."""
        return self.end - self.start


@dataclass(frozen=True)
class Kernel:
    """Work of the GPU: a kernel, a copy or a fill.

    Attributes
    ----------
    launched : int
        When the host asked for it, in the same process and on the thread named here.
    """

    name: str
    kind: str
    device: int
    stream: int
    process: int
    thread: int
    launched: int
    start: int
    end: int


@dataclass
class Recording:
    """All that was recorded.

    Attributes
    ----------
    unclosed, unopened : int
        Ranges without an end, and ends without a beginning.
    device : DeviceFacts or None
        The GPU, as far as the recording says what it is.
    """

    spans: list[Span]
    kernels: list[Kernel] = field(default_factory=list)
    unclosed: int = 0
    unopened: int = 0
    device: DeviceFacts | None = None


@dataclass
class Node:
    """A range and what lies in it.

    Attributes
    ----------
    kernels : list of Kernel
        Launched in it, but in none of its children.
    """

    span: Span
    parent: "Node | None" = field(default=None, repr=False)
    children: "list[Node]" = field(default_factory=list)
    kernels: list[Kernel] = field(default_factory=list)

    @property
    def alone(self) -> int:
        """Time in none of its children."""
        return self.span.length - sum(child.span.length for child in self.children)

    def all_kernels(self) -> Iterator[Kernel]:
        """Yield what was launched in it, children included."""
        yield from self.kernels
        for child in self.children:
            yield from child.all_kernels()


def forest(recording: Recording) -> list[Node]:
    """Return the outermost ranges of every thread, in order, with all others inside.

    A kernel belongs to the innermost range that was open on the thread when it was launched.
    """
    threads: dict[tuple[int, int], list[Node]] = {}
    for span in sorted(recording.spans, key=lambda span: (span.start, -span.end)):
        nodes = threads.setdefault((span.process, span.thread), [])
        # Ranges of start and end need not nest: such a one is in whatever holds all of it.
        parent = _around(nodes[-1] if nodes else None, span.end)
        nodes.append(Node(span, parent))
        if parent is not None:
            parent.children.append(nodes[-1])
    for kernel in recording.kernels:
        nodes = threads.get((kernel.process, kernel.thread), [])
        before = bisect_right(nodes, kernel.launched, key=lambda node: node.span.start)
        node = _around(nodes[before - 1] if before else None, kernel.launched)
        if node is not None:
            node.kernels.append(kernel)
    outermost = [node for nodes in threads.values() for node in nodes if node.parent is None]
    return sorted(outermost, key=lambda node: node.span.start)


def _around(node: Node | None, time: int) -> Node | None:
    """Return the range itself, or the innermost around it, that has not ended before a time."""
    while node is not None and node.span.end < time:
        node = node.parent
    return node
