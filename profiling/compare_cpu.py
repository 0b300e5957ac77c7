"""Our LSTM and those of other libraries on a CPU: ``python profiling/compare_cpu.py``.

Needs an installed package and its extra `peers`; a peer that is missing is left out, and one that
is installed for another interpreter is found with ``--python paddle=/path/to/python``. With
``--bridge`` it is `cupy_lstm.torch.LSTM` that is compared, as ours.

How it is measured
------------------
Every library runs in a process of its own with the same number of threads, the same weights and
the same input, and one process computes at a time: each answers only when its threads sleep.
Before a case is timed, everybody runs it (compilation and first use of anything are not timed)
and the outputs, in training also the gradient of the input, are compared with ours.

Then come the rounds. In each, everybody calls for `--seconds`, in an order that rotates, and the
median of these calls counts. Times in the table are medians over the rounds. The ratio is the time
of the best peer (the one with the least median) over ours, in each round; the table has the median
of the rounds and their quartiles.

- *inference* is a call in each library's mode without gradients: `no_grad`, `inference_mode`.
- *training* is forward and backward from cleared gradients, with the gradients of all weights and
  of the input. ONNX Runtime has none.
- *stream* is one step at a time with the state carried; a library that has several ways to do
  that is timed in its fastest.
- Sequences with lengths are packed and padded inside the timed call where a library needs that.
- *of sgemm* is the arithmetic of the LSTM's matrix products (of valid steps; three times that in
  training) per time, over the rate of NumPy's matrix product of the same dtype, measured in our
  process in every round: the median over the rounds, each with its own rate.
- On a machine that others use, too, one thread with ``--threads 1 --clock cpu`` still compares: it
  counts the time for which the process was on a CPU. Threads that wait in a loop would count, too.
- *MB* is the memory of the case: the resident peak during a call above what there was before
  weights and input were made; only Linux keeps such a record. Repeated measurements agree to 0.1
  MB. A library that keeps a pool of memory from an earlier case shows less than it needs.
"""

import argparse
import datetime
import os
import platform
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from statistics import geometric_mean

from compare.case import Case
from compare.figures import Goal, summarize
from compare.libraries import LIBRARIES, Bridge
from compare.processes import OURS, Measurement, Process, prepare, take_turns
from compare.report import draw, gemm_line, goal_lines, read_csv, table, write_csv
from compare.worker import CLOCKS, serve

SEQUENCES = (
    Case(100, 1, 64, 64),
    Case(100, 1, 256, 256),
    Case(100, 1, 512, 512),
    Case(500, 16, 8, 64),
    Case(100, 8, 256, 256),
    Case(100, 32, 128, 128),
    Case(100, 32, 256, 256),
    Case(100, 64, 512, 512),
    Case(50, 64, 1024, 1024),
    Case(100, 32, 128, 128, L=2, D=2),
    Case(100, 32, 128, 128, L=2, D=2, lengths=True),
    Case(60, 128, 40, 100, L=2),
    Case(200, 256, 16, 32),
    Case(100, 32, 128, 128, time_major=False),
    Case(200, 256, 16, 32, time_major=False),
    Case(100, 8, 256, 256, dtype="float64"),
    Case(100, 32, 128, 128, dtype="float64"),
)
STEPS = (Case(100, 1, 256, 256),)
JOBS = {"inference": SEQUENCES, "training": SEQUENCES, "stream": STEPS}


def compute_bound(case: Case) -> bool:
    return case.B * case.H >= 2048 and case.H >= 256


def not_compute_bound(case: Case) -> bool:
    return not compute_bound(case)


def wide(case: Case) -> bool:
    return case.B >= 32 and case.H >= 256


GOALS = (
    Goal("geometric mean of the ratios", "inference", "ratio", 1.25, combine=geometric_mean),
    Goal("ratio, B*H >= 2048 and H >= 256", "inference", "ratio", 0.95, compute_bound),
    Goal("ratio, every other shape", "inference", "ratio", 1.0, not_compute_bound),
    Goal("share of sgemm, B >= 32 and H >= 256", "inference", "share", 0.88, wide),
    Goal("geometric mean of the ratios", "training", "ratio", 1.8, combine=geometric_mean),
    Goal("ratio, every shape", "training", "ratio", 1.0),
    Goal("share of sgemm, B >= 32 and H >= 256", "training", "share", 0.88, wide),
    Goal("memory of torch over ours", "training", "torch_memory_ratio", 1.0),
    Goal("ratio", "stream", "ratio", 2.0),
)

INSTALL_PEERS = "To install it: pip install 'cupy_lstm[peers]'"


def main() -> None:
    options = parsed_options()
    if options.bridge:
        LIBRARIES[OURS] = Bridge
    if options.worker:
        serve(options.worker, options.threads, options.engine, options.clock)
        return
    if options.redraw:
        redraw(options)
        return
    try:
        import matplotlib  # noqa: F401 - missed before the measurements, not after
        import tqdm
    except ImportError as error:
        raise SystemExit(f"{error}. {INSTALL_PEERS}") from None
    options.out.mkdir(parents=True, exist_ok=True)
    measurements: list[Measurement] = []
    left_out: dict[str, None] = {}
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        processes = started_processes(options, folder, stack)
        versions = {library: process.hello["version"] for library, process in processes.items()}
        run = machine(options)
        print(heading(run, versions))
        with tqdm.tqdm(total=len(options.jobs) * options.rounds, unit="round") as bar:
            for index, (case, mode) in enumerate(options.jobs):
                bar.set_description(f"{mode}, {case.name}")
                expected = folder / f"{index}.npz"
                ready, reasons = prepare(processes, case, mode, expected)
                left_out |= dict.fromkeys(reasons)
                measurements += take_turns(
                    processes, ready, case, mode, options.rounds, options.seconds, bar.update
                )
    write_csv(measurements, versions, run, options.out / "compare_cpu.csv")
    report(measurements, versions, run, options)
    print("", *left_out, sep="\n\n")


def report(
    measurements: list[Measurement],
    versions: dict[str, str],
    run: str,
    options: argparse.Namespace,
) -> None:
    """Print the tables, and draw the picture."""
    figures = summarize(measurements)
    tables = [table(figures, mode, [*versions]) for mode in options.modes]
    print("", *tables, gemm_line(measurements), goal_lines(figures, GOALS), sep="\n\n")
    draw(figures, heading(run, versions), options.out / "compare_cpu.png")


def redraw(options: argparse.Namespace) -> None:
    """Print and draw what an earlier run wrote."""
    measurements, versions, run = read_csv(options.redraw)
    chosen = {(case.name, mode) for case, mode in options.jobs}
    print(heading(run, versions))
    report(
        [entry for entry in measurements if (entry.case.name, entry.mode) in chosen],
        versions,
        run,
        options,
    )


def parsed_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--threads", type=int, default=2, help="of each library, default 2")
    add("--engine", default="auto", help="the one of ours, default the plan's choice")
    add("--clock", choices=CLOCKS, default="wall", help="cpu: for a machine that is not idle")
    add("--bridge", action="store_true", help="cupy_lstm.torch.LSTM as ours")
    add("--rounds", type=int, default=7, help="default 7")
    add("--seconds", type=float, default=0.3, help="length of a turn, default 0.3")
    add("--quick", action="store_true", help="3 rounds of 0.05 s: a trial")
    add("--modes", nargs="+", choices=JOBS, default=[*JOBS], help="default all")
    add("--cases", nargs="+", metavar="TEXT", default=[""], help="whose names hold one of these")
    add("--python", action="append", default=[], metavar="LIBRARY=PATH", help="interpreter of one")
    add("--out", type=Path, default=Path(), metavar="DIR", help="of CSV and PNG, default here")
    add("--redraw", type=Path, metavar="CSV", help="measure nothing, draw what a run has written")
    add("--worker", choices=LIBRARIES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.seconds = 3, 0.05
    if options.threads < 1 or options.rounds < 1:
        parser.error("--threads and --rounds must be at least 1")
    options.python = dict(pair.partition("=")[::2] for pair in options.python)
    for library, path in options.python.items():
        if library not in LIBRARIES or not Path(path).is_file():
            parser.error(
                f"--python {library}={path}: must be one of {', '.join(LIBRARIES)}, '=', and the "
                "path of an interpreter"
            )
    jobs = [(case, mode) for mode in options.modes for case in JOBS[mode]]
    options.jobs = [job for job in jobs if any(text in job[0].name for text in options.cases)]
    if not options.jobs:
        names = dict.fromkeys(case.name for case, _ in jobs)
        parser.error("no case has such a name; they are:\n" + "\n".join(names))
    return options


def started_processes(
    options: argparse.Namespace, folder: Path, stack: ExitStack
) -> dict[str, Process]:
    """Start a process for each library that is installed, and say which are not."""
    processes = {}
    for library in LIBRARIES:
        command = [options.python.get(library, sys.executable), __file__, "--worker", library]
        command += ["--threads", str(options.threads), "--engine", options.engine]
        command += ["--clock", options.clock]
        command += ["--bridge"] if options.bridge else []
        process = stack.enter_context(Process(command, options.threads, folder / library))
        missing = process.hello.get("missing")
        if missing is None:
            processes[library] = process
        elif library == OURS:
            raise SystemExit(f"Ours cannot start: {missing}. To install it: pip install -e .")
        else:
            print(f"{library} is left out: {missing}. {INSTALL_PEERS}")
    if len(processes) == 1:
        raise SystemExit("There is no other library to compare with.")
    return processes


def heading(run: str, versions: dict[str, str]) -> str:
    return f"{run}; {', '.join(versions.values())}"


def machine(options: argparse.Namespace) -> str:
    """Return the date, the machine and the settings."""
    return (
        f"{datetime.date.today()}, {cpu_model()} with {os.cpu_count()} logical cores, "
        f"{platform.system()}, Python {platform.python_version()}, {options.threads} threads, "
        f"engine {options.engine}, {options.rounds} rounds of {options.seconds} s, "
        f"{options.clock} clock"
    )


def cpu_model() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    fields = (line.partition(":") for line in text.splitlines())
    return next((v.strip() for name, _, v in fields if name.strip() == "model name"), "a CPU")


if __name__ == "__main__":
    main()
