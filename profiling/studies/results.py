"""What is known of a point: what was measured, and what the model says."""

import csv
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from traces.machine import Machine

from cupy_lstm.cost import step_flops, step_memory_bytes
from cupy_lstm.device import DeviceFacts
from studies.grid import Point


@dataclass(frozen=True)
class Result:
    """A point, measured; times in milliseconds a call.

    Attributes
    ----------
    ran : str
        The engine of the first layer.
    floor : float or None
        The least the machine allows.
    predicted : float or None
        What the model of the GPU says; None on a CPU, and for engines it does not know.
    flops, moved : int
        Of the matrix products, and bytes that must pass through the memory.
    memory : int
        The most bytes at once.
    stages : dict of str to int
        Nanoseconds of a call in each stage.
    clock : {"host", "GPU"}
        Whose nanoseconds: those of the host are, for a GPU, what it took to ask for the work.
    """

    point: Point
    ran: str
    ms: float
    floor: float | None
    predicted: float | None
    flops: int
    moved: int
    memory: int
    stages: dict[str, int]
    clock: str = "host"

    @property
    def us_a_step(self) -> float:
        """Microseconds of a step, all layers together."""
        return 1e3 * self.ms / self.point.T

    @property
    def intensity(self) -> float:
        """FLOPs for each byte."""
        return self.flops / self.moved

    @property
    def gflops(self) -> float:
        """10^9 FLOPs a second."""
        return self.flops / self.ms / 1e6

    def shares(self) -> dict[str, float]:
        """Return the stages' shares of them all."""
        whole = sum(self.stages.values())
        return {name: time / whole for name, time in self.stages.items()} if whole else {}


def result_of(
    point: Point,
    ms: float,
    memory: int,
    stages: dict[str, int],
    machine: Machine | None,
    device: DeviceFacts | None,
    clock: str = "host",
) -> Result:
    """Put together what is known of a point."""
    passes = (False, True) if point.training else (False,)
    plans = point.plans(device)
    floors, predictions, flops, moved = [], [], 0, 0
    for plan in plans:
        for backward in passes:
            sizes = plan.shape, point.dtype, point.training, backward
            floors.append(machine.floor_us(*sizes) if machine else None)
            predictions.append(plan.cost(backward).predicted_us)
            flops += point.T * step_flops(plan.shape, backward)
            moved += point.T * step_memory_bytes(*sizes)
    floor, predicted = (_milliseconds(times, point.T) for times in (floors, predictions))
    ran = plans[0].engine
    return Result(point, ran, ms, floor, predicted, flops, moved, memory, stages, clock)


def _milliseconds(us_a_step: Sequence[float | None], steps: int) -> float | None:
    """Return the sum over all steps, None where a part is not known."""
    known = [time for time in us_a_step if time is not None]
    return steps * sum(known) / 1e3 if len(known) == len(us_a_step) else None


def exponent(results: Sequence[Result], name: str) -> float:
    """Return p of the power law time ~ size^p that fits best, by least squares of logarithms."""
    sizes = [getattr(result.point, name) for result in results]
    slope, _ = np.polyfit(np.log(sizes), np.log([result.ms for result in results]), 1)
    return float(slope)


def write_results(results: Sequence[Result], machine: Machine | None, path: Path) -> None:
    """Write a line a point: sizes, times, counts, and a column for the share of each stage."""
    names = list(dict.fromkeys(name for result in results for name in result.stages))
    rows = []
    for result in results:
        shares = result.shares()
        rows.append(
            {
                "machine": machine.name if machine else "", **asdict(result.point),
                "ran": result.ran, "ms": result.ms, "us_a_step": result.us_a_step,
                "floor_ms": result.floor, "predicted_ms": result.predicted,
                "of_floor": None if result.floor is None else result.floor / result.ms,
                "flops": result.flops, "moved_bytes": result.moved,
                "memory_bytes": result.memory, "stage_clock": result.clock,
                **{f"share of {name}": shares.get(name, 0.0) for name in names},
            }
        )  # fmt: skip
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
