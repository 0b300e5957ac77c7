"""What the program asked of the device, in order: launches, products, copies, waits.

::

    with record() as log:
        y, _ = lstm(x)
    assert not log.synchronisations and not log.host_copies
    assert [launch.name for launch in log.launches] == ["gates_forward"] * steps
"""

import gc
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar


@dataclass(frozen=True)
class Allocation:
    """Memory that was asked for: ``device``, ``asynchronous``, ``managed`` or ``pinned``."""

    address: int
    bytes: int
    device: int
    kind: str


@dataclass(frozen=True)
class Free:
    """Memory that was given back. On a device a plain free waits for all work; see the README."""

    address: int
    bytes: int
    device: int
    kind: str


@dataclass(frozen=True)
class Copy:
    """Bytes moved: ``kind`` is such as ``host to device`` or ``device 0 to device 1``."""

    kind: str
    bytes: int
    stream: int
    blocking: bool  # the host waits for it

    @property
    def touches_host(self) -> bool:
        """Whether an end of the copy is memory of the host."""
        return "host" in self.kind


@dataclass(frozen=True)
class Fill:
    """A memset."""

    bytes: int
    stream: int


@dataclass(frozen=True)
class Launch:
    """A kernel that was run; `graph` is the handle of the graph that held it, or None."""

    name: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared_bytes: int  # dynamic
    stream: int
    device: int
    cooperative: bool
    graph: int | None = None


@dataclass(frozen=True)
class Gemm:
    """A cuBLAS product, in its column-major terms: C[m,n] = alpha op(A)[m,k] op(B)[k,n] + beta C.

    `transposes` is two of the letters N, T, C. `dtypes` are those of A, B and C. Products of one
    call are counted by `batch`.
    """

    m: int
    n: int
    k: int
    batch: int
    transposes: str
    dtypes: tuple[str, str, str]
    alpha: float
    beta: float
    leading: tuple[int, int, int]
    strides: tuple[int, int, int]
    tf32: bool
    math_mode: int
    stream: int
    device: int

    @property
    def operations(self) -> int:
        """Multiplications and additions."""
        return 2 * self.m * self.n * self.k * self.batch


@dataclass(frozen=True)
class Synchronisation:
    """The host waited for the device: ``device``, ``stream`` or ``event``."""

    scope: str
    handle: int


@dataclass(frozen=True)
class Query:
    """The host asked whether a ``stream`` or an ``event`` has finished."""

    scope: str
    handle: int


@dataclass(frozen=True)
class EventRecord:
    """An event was recorded on a stream."""

    event: int
    stream: int


@dataclass(frozen=True)
class EventWait:
    """A stream was made to wait for an event."""

    event: int
    stream: int


@dataclass(frozen=True)
class HostFunction:
    """A function of the host was run in the order of a stream."""

    stream: int


@dataclass(frozen=True)
class GraphLaunch:
    """A graph was replayed; its launches and copies follow as entries of their own."""

    graph: int
    nodes: int
    stream: int


Entry = (
    Allocation
    | Free
    | Copy
    | Fill
    | Launch
    | Gemm
    | Synchronisation
    | Query
    | EventRecord
    | EventWait
    | HostFunction
    | GraphLaunch
)
Kind = TypeVar("Kind")


class Log(list[Entry]):
    """Entries in the order they happened."""

    def of(self, kind: type[Kind]) -> list[Kind]:
        """Return the entries of one type."""
        return [entry for entry in self if isinstance(entry, kind)]

    @property
    def launches(self) -> list[Launch]:
        """Kernels, CuPy's own included."""
        return self.of(Launch)

    @property
    def gemms(self) -> list[Gemm]:
        """Matrix products of cuBLAS."""
        return self.of(Gemm)

    @property
    def copies(self) -> list[Copy]:
        """All copies, those within the device included."""
        return self.of(Copy)

    @property
    def host_copies(self) -> list[Copy]:
        """Copies to, from or within the host."""
        return [copy for copy in self.copies if copy.touches_host]

    @property
    def allocations(self) -> list[Allocation]:
        """Memory asked for from CUDA; what a pool hands out again is not here."""
        return self.of(Allocation)

    @property
    def synchronisations(self) -> list[Synchronisation | Copy]:
        """Everything the host waited for: synchronisations and blocking copies."""
        return [
            entry
            for entry in self
            if isinstance(entry, Synchronisation) or (isinstance(entry, Copy) and entry.blocking)
        ]

    def counts(self) -> dict[str, int]:
        """Return how many entries there are of each type, and of each kernel by name."""
        names = (
            f"Launch {entry.name}" if isinstance(entry, Launch) else type(entry).__name__
            for entry in self
        )
        return dict(Counter(names))


_open: list[Log] = []


@contextmanager
def record(collect: bool = False) -> Iterator[Log]:
    """Give a `Log` that is filled until the block ends. Blocks may be nested.

    Where every entry counts, `collect` garbage first: what earlier code left in cycles would be
    freed in the block. It takes a while, so only there.
    """
    if collect:
        gc.collect()
    log = Log()
    _open.append(log)
    try:
        yield log
    finally:
        _open[:] = [other for other in _open if other is not log]


def note(entry: Entry) -> None:
    """Add an entry to every open log."""
    for log in _open:
        log.append(entry)
