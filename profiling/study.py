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
import math
import os
import platform
import sys
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy
from studies.grid import BASE, DTYPES, SWEEPS, Point, engines_of, points
from studies.measure import (
    call_of,
    clock_of,
    memory_bytes,
    run_points,
    seconds,
    stages_of,
    write_points,
)
from studies.results import Result, result_of, write_results
from traces.machine import Machine, gpu_machine, host_machine
from traces.tools import INSTALL, TOOLS, chosen_tool, read_recording, record

import cupy_lstm
from cupy_lstm.backend import checked_dtype
from cupy_lstm.device import DeviceFacts, current_device
from cupy_lstm.plan import ENGINES
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
    tool = usable_tool(options.tool)
    device = found_device(options.module)
    module = "numpy" if device is None else "cupy"
    try:
        for dtype in options.dtype or ():
            checked_dtype(dtype, module)
    except (TypeError, ValueError, ImportError) as error:
        raise SystemExit(f"--dtype: {error}") from None
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
    stages, clock = recorded_stages(chosen, tool)
    measured = []
    for point in tqdm(chosen, unit="point"):
        call = call_of(point)
        measured.append((1e3 * seconds(point, call, options.seconds), memory_bytes(point, call)))
    if device is None:
        machine = machine.or_better(host_machine())
    results = [
        result_of(point, ms, memory, found, machine, device, clock)
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
    add("--engines", nargs="+", choices=ENGINES, help="default all that run here")
    add("--seconds", type=float, default=0.15, help="of calls for each point, default 0.15")
    add("--tool", choices=("auto", *TOOLS), default="auto", help="that records the stages")
    add("--out", type=Path, default=Path(), metavar="DIR", help="of what is written, default here")
    add("--worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    for name in ("steps", "batch", "hidden", "layers"):
        if min(getattr(options, name)) < 1:
            parser.error(f"--{name} must be at least 1, received {min(getattr(options, name))}")
    if not 0 <= options.seconds < math.inf:
        parser.error(f"--seconds must be a finite number from 0 on, received {options.seconds}")
    return options


def usable_tool(wanted: str) -> str:
    """Return the tool to use.

    Raises
    ------
    SystemExit
        If it cannot be used here, or nothing would be recorded: it needs nvtx, and there is none.
    """
    tool = chosen_tool(wanted)
    if tool != "python" and find_spec("nvtx") is None:
        raise SystemExit(f"stages recorded by {tool} need nvtx: {INSTALL}, or use --tool python")
    return tool


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


def recorded_stages(chosen: Sequence[Point], tool: str) -> tuple[list[dict[str, int]], str]:
    """Run all points in a process under a tool.

    Returns
    -------
    stages : list of dict of str to int
        Nanoseconds of each point's stages.
    clock : str
        Whose they are, as of `clock_of`.
    """
    print(f"stages recorded by {TOOLS[tool]}", flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_points(chosen, folder / "points.json")
        command = [sys.executable, __file__, "--worker", str(folder / "points.json")]
        status, path = record(tool, command, folder / "study", {SWITCH: DETAIL})
        if status:
            raise SystemExit(f"the recorded process ended with status {status}")
        recording = read_recording(path)
        return stages_of(recording, len(chosen)), clock_of(recording)


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
