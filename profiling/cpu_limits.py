"""What bounds the engine simd on this CPU: ``python profiling/cpu_limits.py``.

Needs the extra `fast`. It measures the few things of which all of the engine's time is made, each
on its own, with the engine's own compiled parts:

- *tile*: the rate of the register tile, whose product with a panel of weights is all arithmetic,
  on one thread and on all of them at once, beside NumPy's matrix product;
- *matrix unit*: the same of the products of a CPU's matrix unit, where there is one;
- *reading*: how fast one thread reads packed weights for a single row, by their size. It falls
  where they no longer fit a core's caches, so that few rows wait for weights, not for arithmetic;
- *gates*: a vector of units, its five functions and its cell;
- *packing*: weights that are in no near cache, as a training call does twice, and once more the
  other way with the sums of their gradients;
- *handing over*: a call of threads that have nothing to do, while the others wait in their loop
  and while they sleep;
- *Python*: an inference call, a training call and a step of a stream, of a single unit.

Of these it makes a floor for the calls of `compare_cpu.py`, and runs the calls beside it: the floor
is arithmetic at the rate of the tile, or of the matrix unit where the engine uses that, or reading
where that takes longer, then gates, packing and Python; that of a stream's step is reading, handing
over, gates and Python. What a call needs beyond its floor is everything else: writing outputs and
what backward needs, filling tables, the last tile of a few rows, waiting for the slower thread.

Every figure is a median over rounds in which all of them take turns.
"""

import argparse
import statistics
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from compare.case import Case
from compare.worker import settle
from compare_cpu import JOBS
from numba import njit

from cupy_lstm import LSTM, no_grad
from cupy_lstm.simd import threads as simd_threads
from cupy_lstm.simd.amx.unit import (
    SIDE,
    add_products,
    available,
    clear_sums,
    fits_unit,
    release_tiles,
    take_tiles,
)
from cupy_lstm.simd.amx.unit import (
    TERMS as UNIT_TERMS,
)
from cupy_lstm.simd.compiled import host_lanes, kernel
from cupy_lstm.simd.functions import sigmoid, tanh
from cupy_lstm.simd.layout import worth_tiles
from cupy_lstm.simd.memory import load, store, write
from cupy_lstm.simd.packing import PackingJob, pack_by_units
from cupy_lstm.simd.programs import MeetingJob, meet_others
from cupy_lstm.simd.tile import multiply
from cupy_lstm.simd.vector import fused, itemsize, lane_count
from cupy_lstm.workspace import FEWEST_ROWS, MANY_UNITS

LANES = host_lanes("float32")
VECTOR = 4 * LANES.count
"""Bytes of a vector of float32."""

TERMS = 128
"""Of the sums of a tile, and of a product of one row with two panels."""

TILES = 20_000
"""Of a measurement: long beside the start of a thread."""

GROUPS = 8
"""Terms by 32 of a product in the matrix unit."""

SIZES_MB = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
GATE_VECTORS = 512
PACKED_MB = 16


@njit(nogil=True)
def run_tiles(lanes: Any, times: int, rows: int, terms: int, table: int, panel: int) -> None:
    """Multiply a tile of rows with one panel of four columns."""
    for _ in range(times):
        multiply(lanes, 4, rows, terms, table, panel, table + 512, table + 512, 0, panel, 0)


@njit(nogil=True)
def run_unit(times: int, groups: int, rows: int, columns: int, configuration: int) -> None:
    """Multiply a tile of rows with some tiles of columns in the matrix unit."""
    take_tiles(configuration)
    for _ in range(times):
        clear_sums()
        add_products(rows, columns, groups)
    release_tiles()


@njit(nogil=True)
def read_weights(lanes: Any, times: int, terms: int, pairs: int, table: int, panel: int) -> None:
    """Multiply one row with some pairs of panels."""
    step = 8 * terms * lane_count(lanes) * itemsize(lanes)
    for _ in range(times):
        for pair in range(pairs):
            place = panel + pair * step
            multiply(lanes, 8, 1, terms, table, place, table + 512, table + 512, 0, place, 0)


@njit(nogil=True)
def run_gates(lanes: Any, times: int, vectors: int, z: int, c: int) -> None:
    """Compute the gates and cells of some vectors of units."""
    vector = lane_count(lanes) * itemsize(lanes)
    for _ in range(times):
        for k in range(vectors):
            place = z + 4 * k * vector
            i = sigmoid(lanes, load(lanes, place))
            f = sigmoid(lanes, load(lanes, place + vector))
            g = tanh(lanes, load(lanes, place + 2 * vector))
            o = sigmoid(lanes, load(lanes, place + 3 * vector))
            cell = fused(f, load(lanes, c + k * vector), i * g)
            store(c + k * vector, cell)
            store(place, o * tanh(lanes, cell))


@njit(nogil=True)
def fill_table(table: int, rows: int, source: int, source_step: int, target: int) -> None:
    """Write the addresses of rows to multiply, and of where the products go."""
    for r in range(rows):
        write(table + 8 * r, source + r * source_step)
        write(table + 512 + 8 * r, target + r * source_step)


class Operands:
    """Memory of one thread for these kernels."""

    def __init__(self, megabytes: float) -> None:
        numbers = int(megabytes * 2**18) + 64
        self.weights = np.random.default_rng(0).random(numbers, "float32")
        self.rows = np.random.default_rng(1).random((64, 1024), "float32")
        self.out = np.zeros((64, 1024), "float32")
        self.table = np.zeros(128, "int64")
        self.panel = self.weights.ctypes.data + -self.weights.ctypes.data % 64
        self.place = self.table.ctypes.data
        fill_table(self.place, 8, self.rows.ctypes.data, 4096, self.out.ctypes.data)


class Limits(NamedTuple):
    """What was found; see the head of this file.

    Attributes
    ----------
    tile_alone, tile, unit_alone, unit, gemm : float
        GFLOP/s: of the tile on one thread and on all, of the matrix unit the same, 0 without one,
        and of NumPy's product.
    reading : dict of float
        GB/s of a thread by MB of its weights.
    gates : float
        ns a vector.
    packing : float
        ns a number, on one thread.
    waiting, sleeping, python, training, stream : float
        us of a call.
    """

    tile_alone: float
    tile: float
    unit_alone: float
    unit: float
    gemm: float
    reading: dict[float, float]
    gates: float
    packing: float
    waiting: float
    sleeping: float
    python: float
    training: float
    stream: float


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def at_once(runs: list[Callable[[], None]]) -> None:
    """Make all calls at the same time, the first one here."""
    others = [threading.Thread(target=run) for run in runs[1:]]
    for other in others:
        other.start()
    runs[0]()
    for other in others:
        other.join()


def median(rounds: list[float]) -> float:
    return statistics.median(rounds)


def measured(rounds: int, count: int) -> Limits:
    """Measure everything in turns, on `count` threads."""
    operands = [Operands(max(SIZES_MB)) for _ in range(count)]
    square = np.random.default_rng(2).random((1024, 1024), "float32")
    z, c = np.zeros((2, 4 * GATE_VECTORS * LANES.count), "float32")
    tiny = LSTM(1, 1, seed=0)
    x, stream = np.zeros((1, 1, 1), "float32"), tiny.stream(1)
    counter = np.zeros(1, "int64")
    job = np.array(MeetingJob(counter.ctypes.data, 0), "int64")
    part = [(kernel(meet_others, LANES), job.ctypes.data)]
    task = simd_threads.Task([part] * count)
    weights, packed = np.zeros((2, PACKED_MB << 18), "float32")
    rows = len(weights) // (4 * 512)
    blocks = rows // LANES.count
    packing = np.array(
        PackingJob(weights.ctypes.data, 0, rows, 512, 0, blocks, packed.ctypes.data, 512, 0),
        "int64",
    )
    pack = simd_threads.Task([[(kernel(pack_by_units, LANES), packing.ctypes.data)]])

    def tiles(one: Operands) -> Callable[[], None]:
        return lambda: run_tiles(LANES, TILES, LANES.rows, TERMS, one.place, one.panel)

    def reading(size: float) -> float:
        pairs = int(size * 2**20 / (8 * TERMS * VECTOR))
        times, one = max(1, int(64 / size)), operands[0]
        spent = seconds(lambda: read_weights(LANES, times, TERMS, pairs, one.place, one.panel))
        return times * pairs * 8 * TERMS * VECTOR / spent / 1e9

    def call(run: Callable[[], object], times: int = 200) -> float:
        return seconds(lambda: [run() for _ in range(times)]) / times * 1e6

    def handed(pause: float, times: int) -> float:
        with simd_threads.crew() as crew:
            spent = []
            for _ in range(times):
                if pause:
                    time.sleep(pause)
                spent.append(seconds(lambda: crew.run(task)) * 1e6)
        return median(spent)

    def inference() -> None:
        with no_grad():
            tiny(x)

    def training() -> None:
        tiny.clear_gradients(set_to_zero=False)
        tiny.backward(tiny(x)[0])

    def unit(one: Operands) -> Callable[[], None]:
        rows, scratch = one.rows.ctypes.data, one.out.ctypes.data
        return lambda: run_unit(TILES // 4, GROUPS, rows, one.panel, scratch + -scratch % 64)

    flops = TILES * 2 * LANES.rows * TERMS * 4 * LANES.count / 1e9
    unit_flops = TILES // 4 * GROUPS * 2 * SIDE * SIDE * UNIT_TERMS / 1e9
    in_unit: dict[str, Callable[[], float]] = {
        "unit alone": lambda: unit_flops / seconds(unit(operands[0])),
        "unit": lambda: (
            count * unit_flops / seconds(lambda: at_once([unit(one) for one in operands]))
        ),
    }
    measures: dict[str, Callable[[], float]] = {
        "alone": lambda: flops / seconds(tiles(operands[0])),
        "tile": lambda: count * flops / seconds(lambda: at_once([tiles(one) for one in operands])),
        "gemm": lambda: 2 * 1024**3 / seconds(lambda: square @ square) / 1e9,
        "gates": lambda: (
            seconds(lambda: run_gates(LANES, 50, GATE_VECTORS, z.ctypes.data, c.ctypes.data))
            / (50 * GATE_VECTORS)
            * 1e9
        ),
        "packing": lambda: seconds(lambda: pack.run([])) / len(weights) * 1e9,
        "waiting": lambda: handed(0.0, 200),
        "sleeping": lambda: handed(0.003, 20),
        "python": lambda: call(inference),
        "training": lambda: call(training),
        "stream": lambda: call(lambda: stream(x[0])),
        **(in_unit if has_unit() else {}),
        **{f"{size}": (lambda size=size: reading(size)) for size in SIZES_MB},
    }
    for measure in measures.values():
        measure()  # compiles
    found = {name: [] for name in measures}
    for _ in range(rounds):
        for name, measure in measures.items():
            found[name].append(measure())
            settle()  # the threads of NumPy's product spin after it
    figures = {name: median(values) for name, values in found.items()}
    return Limits(
        tile_alone=figures["alone"],
        tile=figures["tile"],
        unit_alone=figures.get("unit alone", 0.0),
        unit=figures.get("unit", 0.0),
        gemm=figures["gemm"],
        reading={size: figures[f"{size}"] for size in SIZES_MB},
        gates=figures["gates"],
        packing=figures["packing"],
        waiting=figures["waiting"],
        sleeping=figures["sleeping"],
        python=figures["python"],
        training=figures["training"],
        stream=figures["stream"],
    )


def has_unit() -> bool:
    """Whether there is a matrix unit for this kind of vector."""
    return fits_unit(LANES) and available()


def floor_ms(case: Case, limits: Limits, count: int, mode: str) -> tuple[float, str]:
    """Return the floor of a call, or of a stream's step, and what most of it is."""
    python = {"inference": limits.python, "training": limits.training, "stream": limits.stream}
    parts = {"arithmetic": 0.0, "reading": 0.0, "gates": 0.0, "Python": python[mode] * 1e-3}
    parts |= {"packing": 0.0, "handing over": limits.waiting * 1e-3 if mode == "stream" else 0.0}
    passes = 2 if mode == "training" else 1
    for features in case.features:
        units = -(-case.H // LANES.count) * LANES.count
        slots = case.B * case.D * (1 if mode == "stream" else case.T)
        in_step = slots if mode != "stream" else 0
        flops = 2 * 4 * units * in_step
        sweep = limits.unit and worth_tiles(case.B, features, case.H)
        rate = (limits.unit if sweep else limits.tile) * 1e6
        parts["arithmetic"] += flops * features / rate
        # Of all steps, or of one: the weights of a step are read once for all rows.
        steps = 1 if mode == "stream" else case.T
        step = 2 * 4 * units * case.B * case.D * case.H / rate
        numbers = case.D * 4 * units * (case.H + (features if mode == "stream" else 0))
        share = numbers * 4 / 2**20 / count
        read = share * 2**20 / (interpolated(limits.reading, share) * 1e6)
        parts["arithmetic" if step >= read else "reading"] += passes * steps * max(step, read)
        busy = max(1, min(count, case.B * case.D * units // 64))
        # Backward has one of the five functions.
        vectors = slots * units / LANES.count * (1.2 if mode == "training" else 1.0)
        parts["gates"] += vectors * limits.gates * 1e-6 / busy
        if mode == "training":
            sums = limits.unit and case.H >= MANY_UNITS and case.B >= FEWEST_ROWS
            rate = (limits.unit if sums and features >= MANY_UNITS // 2 else limits.tile) * 1e6
            parts["arithmetic"] += flops * (2 * features + case.H) / rate
            numbers = 3 * case.D * 4 * units * (features + case.H)
            parts["packing"] += numbers * limits.packing * 1e-6 / count
    return sum(parts.values()), max(parts, key=lambda name: parts[name])


def interpolated(reading: dict[float, float], megabytes: float) -> float:
    return float(np.interp(np.log(megabytes), np.log([*reading]), [*reading.values()]))


def call_ms(case: Case, rounds: int, mode: str) -> float:
    """Return the median time of a call, or of a stream's step, in milliseconds."""
    lstm = LSTM(case.I, case.H, case.L, case.direction, time_major=case.time_major, seed=0)
    x, dy = case.draw_arrays()
    stream = lstm.stream(case.B) if mode == "stream" else None

    def run() -> None:
        if stream is not None:
            stream(x[0])
        elif mode == "training":
            lstm.clear_gradients(set_to_zero=False)
            lstm(x)
            lstm.backward(dy)
        else:
            with no_grad():
                lstm(x)

    run()
    return median([seconds(run) * 1e3 for _ in range((400 if stream else 4) * rounds)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15, help="default 15")
    parser.add_argument("--cases", nargs="+", metavar="TEXT", default=[""], help="as compare_cpu")
    options = parser.parse_args()
    count = simd_threads.thread_count()
    limits = measured(options.rounds, count)
    print(f"float32, vectors of {LANES.count}, tiles of {LANES.rows} rows, {count} threads\n")
    print(f"tile, GFLOP/s        one thread {limits.tile_alone:.0f}, all {limits.tile:.0f}")
    if limits.unit:
        print(f"matrix unit          one thread {limits.unit_alone:.0f}, all {limits.unit:.0f}")
    print(f"NumPy's product      {limits.gemm:.0f} GFLOP/s")
    rates = ", ".join(f"{size:g} MB {rate:.0f}" for size, rate in limits.reading.items())
    print(f"reading, GB/s        {rates}")
    print(f"gates                {limits.gates:.0f} ns a vector")
    print(f"packing              {limits.packing:.2f} ns a number")
    print(f"handing over, us     {limits.waiting:.1f} waiting, {limits.sleeping:.0f} asleep")
    calls = f"{limits.python:.0f} a call, {limits.training:.0f} in training"
    print(f"Python, us           {calls}, {limits.stream:.0f} a stream's step")
    for mode, cases in JOBS.items():
        print(f"\n{mode:44} {'floor ms':>9} {'ms':>9} {'of floor':>9}  most of the floor")
        for case in cases:
            plain = case.dtype == "float32" and not case.lengths
            if plain and any(text in case.name for text in options.cases):
                floor, most = floor_ms(case, limits, count, mode)
                spent = call_ms(case, options.rounds, mode)
                print(f"{case.name:44} {floor:9.3f} {spent:9.3f} {floor / spent:9.0%}  {most}")


if __name__ == "__main__":
    main()
