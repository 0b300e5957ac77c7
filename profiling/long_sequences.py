"""What `checkpoint_every` saves and costs: ``python profiling/long_sequences.py``.

One training call, forward and backward, with the whole tape and with states kept every so many
steps. Memory is the peak of all arrays NumPy makes for a call, beside its input and the gradient
of its output, and does not depend on the machine. Time is that of this process's threads on the
CPU, the least of some calls of each, by turns; it is given as a ratio.
"""

import argparse
import time
import tracemalloc
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from cupy_lstm import LSTM, engine
from cupy_lstm.plan import ENGINES, SERVES, why_not
from cupy_lstm.simd import reserve

MIB = 2**20


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    sizes = {"steps": 4000, "batch": 16, "input": 32, "hidden": 64, "layers": 2, "calls": 3}
    for name, default in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--every", type=int, nargs="+", default=[1000, 300, 100])
    parser.add_argument("--direction", default="forward")
    options = parser.parse_args(arguments)
    print(
        f"T={options.steps} B={options.batch} I={options.input} H={options.hidden} "
        f"L={options.layers}, {options.direction}, float32\n"
    )
    print("| engine | checkpoint_every | peak, MiB | of the whole tape's | CPU time |")
    print("|---|---|---|---|---|")
    for name in ENGINES:
        if "numpy" in SERVES[name] and not why_not(name, "numpy"):
            with engine(name):
                measure(name, options)
    return 0


def measure(name: str, options: argparse.Namespace) -> None:
    """Print the rows of an engine."""
    lstm = LSTM(options.input, options.hidden, options.layers, options.direction, seed=0)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((options.batch, options.steps, options.input), "float32")
    dy = np.ones((*x.shape[:2], options.hidden * lstm.num_directions), "float32")

    def call(every: int | None) -> Callable[[], None]:
        def run() -> None:
            lstm.checkpoint_every = every
            lstm(x)
            lstm.backward(dy)

        return run

    calls: dict[int | None, Callable[[], None]] = {
        every: call(every) for every in (None, *options.every)
    }
    calls[None]()  # makes the gradients, and compiles
    peaks = {every: peak_of(run) for every, run in calls.items()}
    times: dict[int | None, list[float]] = {every: [] for every in calls}
    for _ in range(options.calls):
        for every, run in calls.items():
            start = time.process_time()
            run()
            times[every].append(time.process_time() - start)
    for every in calls:
        print(
            f"| {name} | {every or 'all is kept'} | {peaks[every] / MIB:.1f} | "
            f"{peaks[every] / peaks[None]:.2f} | {min(times[every]) / min(times[None]):.2f} |",
            flush=True,
        )


def peak_of(run: Callable[[], Any]) -> int:
    """Return the most bytes there are at once in a call."""
    reserve.release()  # what comes from there would not be seen
    tracemalloc.start()
    try:
        run()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


if __name__ == "__main__":
    raise SystemExit(main())
