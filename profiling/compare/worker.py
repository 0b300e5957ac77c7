"""One library in a process of its own, which computes only while it is asked.

Requests are lines of JSON on the standard input: ``{"do": method of Worker, argument: value}``;
every one is answered with a line, once the library's threads sleep, so that none of them spins in
another's turn. By hand::

    $ python profiling/compare_cpu.py --worker torch
    {"version": "torch 2.13.0+cpu"}
    {"do": "prepare", "case": {"T": 100, "B": 1, "I": 64, "H": 64}, "mode": "inference"}
    {"variant": "LSTM", "error": 0.0, "memory_mb": 0.6}
    {"do": "turn", "seconds": 0.3}
    {"ms": 0.53}
"""

import contextlib
import ctypes
import gc
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from compare.case import SEED, Case
from compare.libraries import LIBRARIES, Run

GEMM_SIZE = 1536
GEMM_SECONDS = 0.15
CHOICE_SECONDS = 0.05
SETTLE_SECONDS = 2.0
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def serve(name: str, threads: int, engine: str, clock: str = "wall") -> None:
    """Answer requests about a library until the standard input ends."""
    # Libraries write to the standard output, too, so the answers go through a copy of it.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    try:
        worker = Worker(LIBRARIES[name](threads, engine), CLOCKS[clock])
    except (ImportError, ValueError) as error:  # ValueError: there is no such engine
        print(json.dumps({"missing": str(error)}), file=answers)
        return
    print(json.dumps({"version": worker.library.version}), file=answers)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = getattr(worker, request.pop("do"))(**request)
        except Exception as error:  # whatever a library raises; the next case may work
            answer = {"failed": f"{type(error).__name__}: {str(error).strip()}".splitlines()[0]}
        settle()
        print(json.dumps(answer), file=answers)


class Worker:
    """What can be asked of a process.

    Parameters
    ----------
    library : object
        One of `compare.libraries.LIBRARIES`, made.
    clock : callable
        Returns seconds.
    """

    def __init__(self, library: Any, clock: Callable[[], float]) -> None:
        self.library = library
        self.clock = clock
        self.run: Run | None = None

    def prepare(self, case: dict[str, Any], mode: str, expected: str = "") -> dict[str, Any]:
        """Build and warm up a case, check its outputs, choose the fastest way, measure memory.

        `expected` is a file of outputs: who is asked first writes it, the others compare theirs
        with it.
        """
        self.run = None
        if not hasattr(self.library, mode):
            return {"failed": f"it has no {mode}"}

        def build() -> dict[str, Run]:
            return getattr(self.library, mode)(Case(**case))

        variants = build()
        error = worst(difference(run(), expected) for run in variants.values())
        times = {
            name: min(call_ms(run, CHOICE_SECONDS, self.clock)) for name, run in variants.items()
        }
        fastest = min(times, key=times.__getitem__)
        variants.clear()
        self.run, memory_mb = measured_memory(lambda: build()[fastest])
        return {"variant": fastest, "error": error, "memory_mb": memory_mb}

    def turn(self, seconds: float) -> dict[str, float]:
        """Call for some time; return the median time of a call, in milliseconds."""
        assert self.run is not None, "prepare comes first"
        return {"ms": statistics.median(call_ms(self.run, seconds, self.clock))}

    def gemm(self, dtype: str) -> dict[str, float]:
        """Return the rate of NumPy's product of two square matrices, in GFLOP/s."""
        a, b = np.random.default_rng(SEED).random((2, GEMM_SIZE, GEMM_SIZE)).astype(dtype)
        ms = statistics.median(call_ms(lambda: (a @ b,), GEMM_SECONDS, self.clock))
        return {"gflops": 2 * GEMM_SIZE**3 / ms / 1e6}


def difference(outputs: Sequence[Any], expected: str) -> float:
    """Return the largest error against a file, relative to the largest value of its array."""
    if not expected:
        return 0.0
    arrays = [np.ravel(np.asarray(output)) for output in outputs]
    if not Path(expected).exists():
        np.savez(expected, *arrays)
    with np.load(expected) as stored:
        pairs = list(zip(arrays, stored.values(), strict=True))
    return worst(abs(ours - theirs).max() / abs(theirs).max() for ours, theirs in pairs)


def worst(errors: Iterable[float]) -> float:
    """Return the largest error, or NaN if one is: Python's max may pass it over."""
    return float(np.max(list(errors)))


def call_ms(run: Run, seconds: float, clock: Callable[[], float]) -> list[float]:
    """Call until `seconds` have passed; return the time of each call.

    At least once, and three times where that takes no longer than ten times `seconds`.
    """
    times: list[float] = []
    spent = 0.0
    while not times or spent < seconds * (1 if len(times) >= 3 else 10):
        start = clock()
        run()
        times.append((clock() - start) * 1e3)
        spent += times[-1] / 1e3
    return times


def settle() -> None:
    """Wait until the threads of this process sleep: some pools spin after their work."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while time.monotonic() < deadline:
        before = time.process_time()
        time.sleep(0.01)
        if time.process_time() - before < 0.001:
            break


def measured_memory(build: Callable[[], Run]) -> tuple[Run, float | None]:
    """Return a run, and what it holds at the peak of a call, in MB of resident memory.

    That is weights, input, outputs and whatever the call needs, not what building took. None
    where the system keeps no record of the peak that can be begun anew, as Linux does.
    """
    release_free_memory()
    try:
        before = resident_mb("VmRSS")
        run = build()
        release_free_memory()
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return build(), None
    run()
    return run, resident_mb("VmHWM") - before


def release_free_memory() -> None:
    """Give memory that nobody holds back to the system, as far as the C library can."""
    gc.collect()
    ours = sys.modules.get("cupy_lstm.simd.reserve")
    if ours is not None:
        ours.release()
    with contextlib.suppress(AttributeError, OSError, TypeError):  # glibc alone has it
        ctypes.CDLL(None).malloc_trim(0)


def resident_mb(field: str) -> float:
    """Return VmRSS or VmHWM of this process: what is resident now, what was at the peak."""
    status = Path("/proc/self/status").read_text(encoding="utf-8", errors="replace")
    return int(status.split(f"{field}:")[1].split()[0]) / 1024
