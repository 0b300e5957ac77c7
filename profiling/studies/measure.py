"""What is measured of a point: its time, its memory, and, under a tool, its stages."""

import json
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from traces.spans import Node, Recording, forest
from traces.stages import busy_and_span, unnumbered

from cupy_lstm import LSTM, engine, no_grad
from cupy_lstm.ranges import STAGES
from cupy_lstm.simd import reserve
from studies.grid import Point

DOMAIN = "study"
"""NVTX domain of the ranges around a point's calls."""

LEAST_CALLS = 2
RECORDED_CALLS = 3

OTHER = "other"
"""What lies in a pass or a layer, but in no stage of it."""


def call_of(point: Point) -> Callable[[], Any]:
    """Return the call to measure, run once: what is compiled or cached is so then."""
    lstm = LSTM(
        point.H, point.H, point.L, time_major=True, dtype=point.dtype, xp=point.module, seed=0
    )
    host = np.random.default_rng(0).standard_normal((point.T, point.B, point.H))
    x = lstm.xp.asarray(host).astype(point.dtype)

    def inference() -> Any:
        with engine(point.engine), no_grad():
            return lstm(x)[0]

    def training() -> Any:
        with engine(point.engine):
            y, _ = lstm(x)
            return lstm.backward(y)[0]

    call = training if point.training else inference
    call()
    return call


def seconds(point: Point, call: Callable[[], Any], budget: float) -> float:
    """Return how long a call takes, from calls for about `budget` seconds.

    On a CPU the shortest time, since whatever else runs there only adds to it; on a GPU the median
    between two events of the device.
    """
    if point.module == "cupy":
        from cupyx.profiler import benchmark

        times = benchmark(call, n_repeat=10_000, n_warmup=2, max_duration=budget).gpu_times
        return float(np.median(times))
    taken: list[float] = []
    until = perf_counter() + budget
    while len(taken) < LEAST_CALLS or perf_counter() < until:
        begun = perf_counter()
        call()
        taken.append(perf_counter() - begun)
    return min(taken)


def memory_bytes(point: Point, call: Callable[[], Any]) -> int:
    """Return the most bytes that a call has at once, its outputs included, its input not."""
    if point.module == "cupy":
        import cupy

        pool = cupy.cuda.MemoryPool()
        with cupy.cuda.using_allocator(pool.malloc):
            call()
        return int(pool.total_bytes())  # it only ever grows
    reserve.release()  # what comes from there would not be seen
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def write_points(points: Sequence[Point], path: Path) -> None:
    """Write points for `run_points`."""
    path.write_text(json.dumps([asdict(point) for point in points]), encoding="utf-8")


def run_points(path: Path) -> None:
    """Run a few calls of each point, each point in a range: what a tool records."""
    import nvtx

    domain = nvtx.get_domain(DOMAIN)
    for number, fields in enumerate(json.loads(path.read_text(encoding="utf-8"))):
        point = Point(**fields)
        call = call_of(point)
        attributes = domain.get_event_attributes(message=str(number))
        domain.push_range(attributes)
        try:
            for _ in range(RECORDED_CALLS):
                call()
        finally:
            domain.pop_range()
        if point.module == "cupy":
            import cupy

            cupy.cuda.Device().synchronize()


def clock_of(recording: Recording) -> str:
    """Return whose time `stages_of` returns: ``"GPU"``, or ``"host"`` where it did nothing."""
    return "GPU" if recording.kernels else "host"


def stages_of(recording: Recording, count: int) -> list[dict[str, int]]:
    """Return for each point the nanoseconds of a call in each stage, in itself alone.

    Those of the GPU's work where there is any, else of the host. The shortest of the calls counts,
    stage by stage.
    """
    with_gpu = clock_of(recording) == "GPU"
    found: list[dict[str, int]] = [{} for _ in range(count)]
    for node in forest(recording):
        if node.span.domain == DOMAIN:
            calls: list[dict[str, int]] = [{} for _ in range(RECORDED_CALLS)]
            passes = max(1, len(node.children) // RECORDED_CALLS)
            for number, child in enumerate(node.children):
                call = calls[min(number // passes, RECORDED_CALLS - 1)]
                _add_stages(child, call, with_gpu)
            names = dict.fromkeys(name for call in calls for name in call)
            found[int(node.span.name)] = {
                name: min(call.get(name, 0) for call in calls) for name in names
            }
    return found


def _add_stages(node: Node, stages: dict[str, int], with_gpu: bool) -> None:
    """Add what a range and those inside it are alone."""
    name = unnumbered(node.span.name)
    kind = STAGES.get(name)
    if kind is None or kind.category in ("pass", "layer"):
        name = OTHER
    elif kind.category == "step":
        name = "recurrence"  # in which all steps lie
    own = busy_and_span(node.kernels)[0] if with_gpu else node.alone
    stages[name] = stages.get(name, 0) + own
    for child in node.children:
        _add_stages(child, stages, with_gpu)
