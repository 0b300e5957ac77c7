"""The picture of a recording: ranges over time, one row a depth, and the GPU's streams below."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from traces.spans import Node
from traces.stages import unnumbered

if TYPE_CHECKING:
    from matplotlib.axes import Axes

KERNEL_COLOURS = {"kernel": "#5b5b5b", "copy": "#b07aa1", "fill": "#bab0ac"}
CHARACTER_INCHES = 0.075
WIDTH_INCHES = 13.0


def draw_timeline(nodes: Sequence[Node], path: Path, title: str, last: int = 6) -> None:
    """Draw the last of the outermost ranges, of the thread that has most of them.

    Parameters
    ----------
    nodes : sequence of Node
        The outermost ranges.
    path : Path
        A .png to write.
    title : str
        Above the picture.
    last : int
        How many to show.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = shown_nodes(nodes, last)
    depth = 1 + max((level for node in shown for level, _ in _walk(node)), default=0)
    kernels = [kernel for node in shown for kernel in node.all_kernels()]
    streams = sorted({(kernel.device, kernel.stream) for kernel in kernels})
    figure = Figure(
        figsize=(WIDTH_INCHES, 1.7 + 0.42 * (depth + len(streams))), layout="constrained"
    )
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    origin = min((node.span.start for node in shown), default=0)
    ends = [node.span.end for node in shown] + [kernel.end for kernel in kernels]
    unit, scale = _unit(max(ends, default=origin + 1) - origin)
    length = (max(ends, default=origin + 1) - origin) / scale
    stages: dict[tuple[str, str], None] = {}
    for node in shown:
        for level, inner in _walk(node):
            span = inner.span
            colour = f"#{span.colour & 0xFFFFFF:06x}"
            stages[unnumbered(span.name), colour] = None
            _bar(
                axes, level, (span.start - origin) / scale, span.length / scale, length, colour,
                span.name,
            )  # fmt: skip
    for row, stream in enumerate(streams, depth):
        for kernel in kernels:
            if (kernel.device, kernel.stream) == stream:
                _bar(
                    axes, row, (kernel.start - origin) / scale,
                    (kernel.end - kernel.start) / scale, length,
                    KERNEL_COLOURS[kernel.kind], kernel.name,
                )  # fmt: skip
    labels = [f"depth {level}" for level in range(depth)]
    labels += [f"GPU {device}, stream {stream}" for device, stream in streams]
    axes.set_yticks(range(len(labels)), labels, fontsize=8)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.set_xlim(0, length)
    axes.set_xlabel(unit)
    axes.grid(axis="x", linewidth=0.4)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(axis="y", length=0)
    figure.legend(
        handles=_legend([*stages], {kernel.kind for kernel in kernels}),
        loc="outside lower center", ncols=9, frameon=False, fontsize=8.5,
    )  # fmt: skip
    figure.suptitle(title, fontsize=10, x=0.01, ha="left")
    figure.savefig(path, dpi=130)


def shown_nodes(nodes: Sequence[Node], last: int) -> list[Node]:
    """Return the last of the outermost ranges of the thread with the most."""
    threads: dict[tuple[int, int], list[Node]] = {}
    for node in nodes:
        threads.setdefault((node.span.process, node.span.thread), []).append(node)
    return max(threads.values(), key=len, default=[])[-last:]


def _walk(node: Node, level: int = 0) -> Iterator[tuple[int, Node]]:
    """Yield a range and all in it, each with its depth."""
    yield level, node
    for child in node.children:
        yield from _walk(child, level + 1)


def _bar(
    axes: "Axes", row: int, start: float, width: float, length: float, colour: str, name: str
) -> None:
    """Draw a bar, and its name where it fits."""
    axes.barh(row, width, left=start, height=0.78, color=colour, edgecolor="white", linewidth=0.3)
    room = int(width / length * (WIDTH_INCHES - 1.5) / CHARACTER_INCHES)
    if room >= 4:
        text = name if len(name) <= room else name[: room - 1] + "…"
        axes.text(
            start + width / 2, row, text, ha="center", va="center", fontsize=7.5, clip_on=True,
            color="black" if _is_light(colour) else "white",
        )  # fmt: skip


def _is_light(colour: str) -> bool:
    """Say whether black is the better colour for text on this one."""
    red, green, blue = (int(colour[k : k + 2], 16) for k in (1, 3, 5))
    return 0.299 * red + 0.587 * green + 0.114 * blue > 140


def _unit(nanoseconds: float) -> tuple[str, float]:
    """Return a unit of time for an axis of some length."""
    if nanoseconds < 2e6:
        return "microseconds", 1e3
    return ("milliseconds", 1e6) if nanoseconds < 2e9 else ("seconds", 1e9)


def _legend(stages: Sequence[tuple[str, str]], kinds: set[str]) -> list[object]:
    from matplotlib.patches import Patch

    handles = [Patch(color=colour, label=name) for name, colour in stages]
    return handles + [
        Patch(color=colour, label=f"GPU: {kind}")
        for kind, colour in KERNEL_COLOURS.items()
        if kind in kinds
    ]
