"""A table of shapes: what the plan says of each, and, where there is a device, what it takes."""

import csv
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from cupy_lstm.device import DeviceFacts
from cupy_lstm.notation import Shape
from cupy_lstm.plan import plan_sweep

SIZES = (
    16, 32, 48, 64, 80, 96, 112, 128, 144, 160, 192, 256, 320, 384, 512, 640, 768, 896, 1024, 1280,
    1536, 1792, 2048,
)  # fmt: skip
"""H of the shapes; I is the same."""

BATCHES = (4, 16, 64, 256)
STEPS = 1024


@dataclass(frozen=True)
class Row:
    """One pass of one shape.

    Attributes
    ----------
    passes : {"forward", "both"}
        Inference, or forward with a tape and backward.
    kind : {"predicted", "measured"}
        Whether the time is the model's or a device's.
    us : float or None
        Microseconds a step; None where the model has none.
    floor_us : float or None
        The least the device allows.
    what : str
        Whose time it is.
    engine : str
        What ran it.
    tier : str
        Of the engine persistent, empty for any other.
    """

    device: str
    dtype: str
    T: int
    B: int
    I: int  # noqa: E741 - declared notation
    H: int
    D: int
    passes: str
    kind: str
    what: str
    engine: str
    tier: str
    us: float | None
    floor_us: float | None
    flops: int
    memory_bytes: int
    weight_bytes: int
    shared_bytes: int
    barriers: int
    launches: int


COUNTS = ("flops", "memory_bytes", "weight_bytes", "shared_bytes", "barriers", "launches")


def predicted(device: DeviceFacts, dtype: str, shape: Shape, passes: str) -> Row:
    """Return what the plan counts and the model predicts."""
    found = plan_sweep(shape, dtype, "cupy", passes == "both", device=device)
    costs = [found.cost(), found.cost(backward=True)][: 1 + found.training]
    times = [cost.predicted_us for cost in costs]
    floors = [cost.floor_us for cost in costs]
    T, B, I, H, _, D = shape  # noqa: E741
    return Row(
        device.name, dtype, T, B, I, H, D, passes, "predicted", "cupy_lstm", found.engine,
        found.tier or "", _total(times), _total(floors),
        *(sum(getattr(cost, name) for cost in costs) for name in COUNTS),
    )  # fmt: skip


def table(
    device: DeviceFacts, dtypes: Iterable[str], batches: Iterable[int], sizes: Iterable[int] = SIZES
) -> list[Row]:
    """Return the rows of all shapes, both passes."""
    batches, sizes = tuple(batches), tuple(sizes)
    return [
        predicted(device, dtype, Shape(STEPS, B, H, H, H, 1), passes)
        for dtype in dtypes
        for passes in ("forward", "both")
        for B in batches
        for H in sizes
    ]


def write_csv(rows: Sequence[Row], path: Path) -> None:
    """Write a line a row."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, asdict(rows[0]))
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)


def read_csv(path: Path) -> list[Row]:
    """Read what `write_csv` has written."""
    kinds = {"T": int, "B": int, "I": int, "H": int, "D": int, "us": _number, "floor_us": _number}
    kinds |= dict.fromkeys(COUNTS, int)
    with path.open(newline="", encoding="utf-8") as file:
        return [
            Row(**{name: kinds.get(name, str)(value) for name, value in line.items()})
            for line in csv.DictReader(file)
        ]


def _total(times: Sequence[float | None]) -> float | None:
    """Return the sum, None where one is not known."""
    known = [time for time in times if time is not None]
    return sum(known) if len(known) == len(times) else None


def _number(text: str) -> float | None:
    return float(text) if text else None
