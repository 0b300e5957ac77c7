"""How time depends on the sizes, and how near it is to the floor: ``python profiling/study.py``.

From a base, one size at a time is varied: T, B, H, the layers, the dtype; and all of that for every
engine that there is, in inference and in training. On a GPU where CuPy finds one, else on the CPU.

First all points run a few times in a process of their own, under the tool that
`profiling/record.py` would choose, for the time of each stage. Then each is timed without any tool:
the shortest of the calls in --seconds, on a GPU the median between two events of the device. And
its memory is counted.

It writes `study.csv`, and the pictures `roofline.png`, `time_over_H.png`, `scaling.png` and
`stages.png`; `profiling/README.md` says how to read them.
"""

import argparse
import datetime
import os
import platform
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy
from studies.grid import BASE, DTYPES, SWEEPS, Point, engines_of, points
from studies.measure import call_of, memory_bytes, run_points, seconds, stages_of, write_points
from studies.results import Result, result_of, write_results
from traces.machine import Machine, gpu_machine, host_machine
from traces.tools import TOOLS, chosen_tool, read_recording, record

import cupy_lstm
from cupy_lstm.device import DeviceFacts, current_device
from cupy_lstm.ranges import DETAIL, SWITCH

MISSING = "the study needs matplotlib and tqdm: pip install 'cupy_lstm[forecast]'"


def main(arguments: list[str] | None = None) -> int:
    options = parsed_options(arguments)
    if options.worker is not None:
        run_points(options.worker)
        return 0
    try:
        from studies.pictures import Pictures
        from tqdm import tqdm
    except ImportError as error:
        raise SystemExit(f"{error}: {MISSING}") from None
    device = found_device(options.module)
    module = "numpy" if device is None else "cupy"
    machine = host_machine() if device is None else gpu_machine(device)
    base = BASE | {"dtype": (options.dtype or DTYPES[module])[0]}
    chosen, left_out = points(
        base, swept(options, module), module, options.engines or engines_of(module), device
    )
    if not chosen:
        raise SystemExit("no engine can serve any point:\n" + "\n".join(left_out))
    for reason in left_out:
        print(f"left out: {reason}")
    options.out.mkdir(parents=True, exist_ok=True)
    stages = recorded_stages(chosen, options)
    measured = []
    for point in tqdm(chosen, unit="point"):
        call = call_of(point)
        measured.append((1e3 * seconds(point, call, options.seconds), memory_bytes(point, call)))
    if device is None:
        machine = machine.or_better(host_machine())
    results = [
        result_of(point, ms, memory, found, machine, device)
        for point, (ms, memory), found in zip(chosen, measured, stages, strict=True)
    ]
    heading = described(machine, device)
    print(heading, summary(results), sep="\n")
    write_results(results, machine, options.out / "study.csv")
    paths = Pictures(results, base, machine, heading).draw_all(options.out)
    print(f"wrote {options.out / 'study.csv'}, {', '.join(map(str, paths))}")
    return 0


def parsed_options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--module", choices=("auto", *DTYPES), default="auto", help="default cupy with a GPU")
    add("--steps", nargs="+", type=int, default=SWEEPS["T"], help="T of its sweep")
    add("--batch", nargs="+", type=int, default=SWEEPS["B"], help="B of its sweep")
    add("--hidden", nargs="+", type=int, default=SWEEPS["H"], help="H of its sweep, I is the same")
    add("--layers", nargs="+", type=int, default=SWEEPS["L"], help="L of its sweep")
    add("--dtype", nargs="+", help="of its sweep; the first one is that of all others")
    add("--engines", nargs="+", help="default all that run here")
    add("--seconds", type=float, default=0.15, help="of calls for each point, default 0.15")
    add("--tool", choices=("auto", *TOOLS), default="auto", help="that records the stages")
    add("--out", type=Path, default=Path(), metavar="DIR", help="of what is written, default here")
    add("--worker", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def swept(options: argparse.Namespace, module: str) -> dict[str, Sequence[Any]]:
    """Return the values of each sweep."""
    return {
        "T": options.steps,
        "B": options.batch,
        "H": options.hidden,
        "L": options.layers,
        "dtype": options.dtype or DTYPES[module],
    }


def found_device(module: str) -> DeviceFacts | None:
    """Return the GPU to use, None for the CPU.

    Raises
    ------
    SystemExit
        If a GPU is asked for and there is none.
    """
    if module == "numpy":
        return None
    try:
        return current_device()
    except Exception as error:  # CuPy or its driver is missing, each in its own way
        if module == "cupy":
            raise SystemExit(f"--module cupy needs CuPy and a GPU: {error}") from None
        return None


def recorded_stages(chosen: Sequence[Point], options: argparse.Namespace) -> list[dict[str, int]]:
    """Run all points in a process under a tool; return the nanoseconds of each one's stages."""
    tool = chosen_tool(options.tool)
    print(f"stages recorded by {TOOLS[tool]}", flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_points(chosen, folder / "points.json")
        command = [sys.executable, __file__, "--worker", str(folder / "points.json")]
        status, path = record(tool, command, folder / "study", {SWITCH: DETAIL})
        if status:
            raise SystemExit(f"the recorded process ended with status {status}")
        return stages_of(read_recording(path), len(chosen))


def described(machine: Machine | None, device: DeviceFacts | None) -> str:
    """Return the date, the machine with its rates, and the versions."""
    words = [str(datetime.date.today())]
    if device is None:
        words.append(f"{cpu_model()}, {os.cpu_count()} logical cores")
    else:
        words.append(device.name)
    if machine is not None:
        flops = next(iter(machine.flops.items()))
        words.append(f"{flops[1] / 1e9:.0f} GFLOP/s {flops[0]}")
        words.append(f"{machine.bandwidth / 1e9:.0f} GB/s")
    versions = f"cupy_lstm {cupy_lstm.__version__}, NumPy {numpy.__version__}"
    return ", ".join([*words, versions])


def cpu_model() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    fields = (line.partition(":") for line in text.splitlines())
    return next((v.strip() for name, _, v in fields if name.strip() == "model name"), "a CPU")


def summary(results: Sequence[Result]) -> str:
    """Return a line a point."""
    lines = [f"{'point':58}{'ms':>10}{'us a step':>11}{'of floor':>10}{'MB':>9}"]
    for result in results:
        point = result.point
        words = f"{point.passes}, {point.engine}, {point.dtype}, T {point.T} B {point.B} "
        words += f"H {point.H} L {point.L}"
        floor = "" if result.floor is None else f"{result.floor / result.ms:.0%}"
        lines.append(
            f"{words:58}{result.ms:10.3f}{result.us_a_step:11.2f}{floor:>10}"
            f"{result.memory / 1e6:9.2f}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
