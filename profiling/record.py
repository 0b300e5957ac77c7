"""Where a program's time goes: ``python profiling/record.py -- python program.py``.

It runs the command under a tool that records NVTX ranges and writes

- a table of the stages, `record.csv`, which is printed, too: how often, how long, alone (without
  the stages inside), and which share of all that is; with a GPU also how long it worked on what was
  launched there, where it waited, and with how many kernels; and how near that comes to the floor,
  the least time the machine allows for the arithmetic and the memory of the layers;
- a picture of the last outermost ranges, `record.png` (needs matplotlib);
- a trace for ui.perfetto.dev, `record.json`.

Tools are, the best one first: Nsight Systems where `nsys` is on the PATH, with the work of the GPU;
a library of our own that NVTX loads, compiled on the spot; a recorder in Python. The first two need
the package nvtx where the command runs. --read makes the same of a file there is: what one of these
has recorded, or any SQLite export of Nsight Systems.

`profiling/README.md` says how to read the table and the picture.
"""

import argparse
import sys
from pathlib import Path

from traces.machine import Machine, gpu_machine, host_machine
from traces.perfetto import write_trace
from traces.spans import Recording, forest
from traces.stages import stage_rows, text_table, write_table
from traces.timeline import draw_timeline
from traces.tools import INSTALL, TOOLS, chosen_tool, read_recording, record

from cupy_lstm.ranges import DETAIL, DOMAIN, SWITCH


def main(arguments: list[str] | None = None) -> int:
    options = parsed_options(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    status, path, tool = 0, options.read, None
    if path is None:
        environment = {SWITCH: DETAIL} if options.detail else {}
        tool = chosen_tool(options.tool)
        status, path = record(tool, options.command, options.out / "record", environment)
        print(f"\nrecorded by {TOOLS[tool]}")
    recording = read_recording(path)
    report(recording, options, tool)
    return status


def parsed_options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], usage="%(prog)s [options] (-- COMMAND | --read FILE)"
    )
    add = parser.add_argument
    add("--tool", choices=("auto", *TOOLS), default="auto", help="default the best there is")
    add("--detail", action="store_true", help="the finest ranges of this package, too: every step")
    add("--domain", default=DOMAIN, help=f"default {DOMAIN}; all: every domain there is")
    add("--skip", type=int, default=0, help="outermost ranges to leave out, say of first calls")
    add("--last", type=int, default=6, help="outermost ranges in the picture, default 6")
    add("--read", type=Path, metavar="FILE", help="a recording there is, .jsonl or .sqlite")
    add("--out", type=Path, default=Path(), metavar="DIR", help="of what is written, default here")
    add("command", nargs="*", metavar="COMMAND", help="to run, behind --")
    options = parser.parse_args(arguments)
    if bool(options.command) == (options.read is not None):
        parser.error("give a command behind --, or --read and a file, and not both")
    for name, least in (("last", 1), ("skip", 0)):
        if getattr(options, name) < least:
            parser.error(f"--{name} must be at least {least}, received {getattr(options, name)}")
    return options


def report(recording: Recording, options: argparse.Namespace, tool: str | None) -> None:
    """Print and write what is made of a recording; `tool` is None where it was there before."""
    if options.domain != "all":
        recording.spans = [span for span in recording.spans if span.domain == options.domain]
    for count, what in ((recording.unclosed, "never closed"), (recording.unopened, "never opened")):
        if count:
            print(f"{count} ranges were {what}")
    if not recording.spans:
        # The recorder in Python takes the place of the package.
        hint = "" if tool == "python" else f": is nvtx installed where the command runs? {INSTALL}"
        raise SystemExit(f"no range of the domain {options.domain} was recorded{hint}")
    nodes = forest(recording)[options.skip :]
    if not nodes:
        raise SystemExit(f"--skip {options.skip} leaves no range")
    machine = machine_of(recording)
    rows = stage_rows(nodes, machine)
    print(f"\n{text_table(rows)}\n")
    if machine is not None:
        print(f"floor of {machine.name}: {machine.source}")
    write_table(rows, options.out / "record.csv")
    write_trace(recording, options.out / "record.json")
    try:
        draw_timeline(nodes, options.out / "record.png", title_of(recording, options), options.last)
    except ImportError as error:
        print(f"no picture: {error} (pip install matplotlib)")


def machine_of(recording: Recording) -> Machine | None:
    """Return whose floor it is: the GPU's if it did something, else that of this CPU."""
    if recording.kernels:
        return None if recording.device is None else gpu_machine(recording.device)
    return host_machine()


def title_of(recording: Recording, options: argparse.Namespace) -> str:
    """Return what the picture shows."""
    what = " ".join(options.command) if options.command else str(options.read)
    where = recording.device.name if recording.kernels and recording.device else "CPU"
    return f"The last {options.last} outermost ranges of: {what[:100]}   ({where})"


if __name__ == "__main__":
    sys.exit(main())
