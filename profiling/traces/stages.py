"""The table: for every stage, by where it lies, how often, how long, on the GPU, over the floor."""

import csv
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from cupy_lstm.notation import Shape
from cupy_lstm.ranges import DOMAIN
from traces.machine import DTYPES, Machine
from traces.spans import Kernel, Node

GEMM = re.compile(r"gemm|gemv|cutlass|xmma|nvjet", re.IGNORECASE)
"""What the kernels of cuBLAS have in their names."""


@dataclass
class Row:
    """A stage: all ranges of a name that lie in the same ranges; times in nanoseconds.

    Attributes
    ----------
    path : tuple of str
        Its name, behind those of the ranges around it.
    total, alone : int
        On the host: all of it, and what is in no stage inside it.
    share : float
        `alone` over the total of the outermost ranges.
    gpu : int
        The GPU worked on what was launched in it: overlapping work counts once.
    gaps : int
        The GPU waited between the first and the last of that.
    kernels, gemms : int
        Launched in it: all, and those that are matrix products by their names.
    floor : float or None
        The least that the machine allows for the layers in it; None where none are.
    """

    path: tuple[str, ...]
    calls: int = 0
    total: int = 0
    alone: int = 0
    share: float = 0.0
    gpu: int = 0
    gaps: int = 0
    kernels: int = 0
    gemms: int = 0
    floor: float | None = None

    @property
    def mean(self) -> float:
        """The total over the calls."""
        return self.total / self.calls

    @property
    def of_floor(self) -> float | None:
        """The floor over the time of the GPU, or where it did nothing that of the host."""
        return None if self.floor is None else self.floor / (self.gpu or self.total)


def stage_rows(nodes: Sequence[Node], machine: Machine | None) -> list[Row]:
    """Return the rows of the table, each before those of the stages inside it."""
    rows: dict[tuple[str, ...], Row] = {}
    _count(nodes, (), rows, machine)
    whole = sum(node.span.length for node in nodes)
    for row in rows.values():
        row.share = row.alone / whole if whole else 0.0
    return list(rows.values())


def _count(
    nodes: Iterable[Node],
    around: tuple[str, ...],
    rows: dict[tuple[str, ...], Row],
    machine: Machine | None,
) -> None:
    siblings: dict[str, list[Node]] = {}
    for node in nodes:
        siblings.setdefault(node.span.name, []).append(node)
    for name, same in siblings.items():
        row = rows[*around, name] = Row((*around, name))
        for node in same:
            busy, span = busy_and_span(node.all_kernels())
            kernels = [kernel for kernel in node.all_kernels() if kernel.kind == "kernel"]
            row.calls += 1
            row.total += node.span.length
            row.alone += node.alone
            row.gpu += busy
            row.gaps += span - busy
            row.kernels += len(kernels)
            row.gemms += sum(GEMM.search(kernel.name) is not None for kernel in kernels)
            floor = floor_of(node, machine)
            if floor is not None:
                row.floor = (row.floor or 0.0) + floor
        _count((child for node in same for child in node.children), row.path, rows, machine)


def busy_and_span(kernels: Iterable[Kernel]) -> tuple[int, int]:
    """Return how long some work kept the GPU busy, and from its first start to its last end."""
    busy, first, reached = 0, None, 0
    for kernel in sorted(kernels, key=lambda kernel: kernel.start):
        first = kernel.start if first is None else first
        busy += max(0, kernel.end - max(kernel.start, reached))
        reached = max(reached, kernel.end)
    return busy, 0 if first is None else reached - first


def floor_of(node: Node, machine: Machine | None) -> float | None:
    """Return the least nanoseconds that the machine allows for a range's layers."""
    if machine is None:
        return None
    if node.span.domain == DOMAIN and node.span.category == "layer":
        passes = node.parent.span.name if node.parent is not None else ""
        return _layer_floor(node.span.payload, passes, machine)
    floors = [floor_of(child, machine) for child in node.children]
    known = [floor for floor in floors if floor is not None]
    return sum(known) if known else None


def _layer_floor(payload: object, passes: str, machine: Machine) -> float | None:
    """Return the floor of a layer's pass by the sizes it carries."""
    if not isinstance(payload, dict):
        return None
    sizes = [payload.get(field) for field in Shape._fields]
    dtype = DTYPES.get(payload.get("bytes", 0))
    if dtype is None or not all(isinstance(size, int) for size in sizes):
        return None
    shape = Shape(*sizes)
    floor = machine.floor_us(shape, dtype, passes != "inference", passes == "backward")
    return None if floor is None else 1e3 * shape.T * floor


def unnumbered(name: str) -> str:
    """Return the name of a stage without the number that tells it from others of its kind."""
    return name.rstrip("0123456789").rstrip()


def text_table(rows: Sequence[Row]) -> str:
    """Return the table as text; columns of the GPU only where it did something."""
    with_gpu = any(row.gpu for row in rows)
    with_floor = any(row.floor is not None for row in rows)
    head = ["stage", "calls", "total ms", "mean us", "self ms", "share"]
    if with_gpu:
        head += ["GPU ms", "gaps ms", "kernels", "GEMMs"]
    if with_floor:
        head += ["floor ms", "of floor"]
    lines = [head]
    for row in rows:
        line = [
            "  " * (len(row.path) - 1) + row.path[-1], str(row.calls), f"{row.total / 1e6:.2f}",
            f"{row.mean / 1e3:.1f}", f"{row.alone / 1e6:.2f}", f"{row.share:.1%}",
        ]  # fmt: skip
        if with_gpu:
            line += [f"{row.gpu / 1e6:.2f}", f"{row.gaps / 1e6:.2f}"]
            line += [str(row.kernels), str(row.gemms)]
        if with_floor and row.floor is not None and row.of_floor is not None:
            line += [f"{row.floor / 1e6:.3f}", f"{row.of_floor:.1%}"]
        lines.append(line + [""] * (len(head) - len(line)))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip()
        for line in lines
    )


def write_table(rows: Sequence[Row], path: Path) -> None:
    """Write the table as CSV, times in nanoseconds; a path is joined by slashes."""
    fields = [*asdict(Row(())), "mean", "of_floor"]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fields)
        writer.writeheader()
        for row in rows:
            line = asdict(row) | {"path": "/".join(row.path)}
            writer.writerow(line | {"mean": row.mean, "of_floor": row.of_floor})
