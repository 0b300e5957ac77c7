"""The processes of the libraries, and the rounds in which they take turns."""

import json
import os
import subprocess
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from compare.case import Case

OURS = "ours"
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMBA_NUM_THREADS",
)
TOLERANCE = {"float32": 1e-4, "float64": 1e-10}


@dataclass(frozen=True)
class Measurement:
    """One turn of a library.

    Attributes
    ----------
    case, mode, library
        What was timed.
    variant : str
        The way that the library does it fastest.
    round : int
        Number of the round.
    ms : float
        Median time of a call; of a step, where one step is a call.
    gemm_gflops : float
        Rate of NumPy's matrix product in this round.
    memory_mb : float or None
        Memory the case held at the peak of a call, measured once.
    error : float
        Largest difference of the outputs from ours, relative to the largest value.
    """

    case: Case
    mode: str
    library: str
    variant: str
    round: int
    ms: float
    gemm_gflops: float
    memory_mb: float | None
    error: float


class Process:
    """A worker (see `compare.worker`) seen from outside; a context that ends it.

    Parameters
    ----------
    command : list of str
        What starts it.
    threads : int
        Threads its library may use.
    log : Path
        Where its standard error goes.

    Attributes
    ----------
    hello : dict
        ``version`` of the library, or why it is ``missing``.
    """

    def __init__(self, command: list[str], threads: int, log: Path) -> None:
        self.log = log
        pipe = subprocess.PIPE
        environment = os.environ | dict.fromkeys(THREAD_VARIABLES, str(threads))
        with log.open("w", encoding="utf-8") as errors:
            self.process = subprocess.Popen(
                command, stdin=pipe, stdout=pipe, stderr=errors, env=environment, text=True
            )
        self.hello: dict[str, str] = self._answer()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        if kind is not None:
            self.process.kill()
        self._close()

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Return the answer to a request; the process computes in between."""
        with suppress(BrokenPipeError):  # it has ended: so there will be no answer
            print(json.dumps({"do": do, **arguments}), file=self.process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        line = self.process.stdout.readline()
        if not line:
            self._close()
            end = self.log.read_text(encoding="utf-8", errors="replace").strip()[-2000:]
            raise SystemExit(f"{self.process.args} ended with {self.process.returncode}:\n{end}")
        return json.loads(line)

    def _close(self) -> None:
        with suppress(BrokenPipeError):
            self.process.stdin.close()  # which ends it
        self.process.stdout.close()
        self.process.wait()


def prepare(
    processes: dict[str, Process], case: Case, mode: str, expected: Path
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Let each process prepare a case, ours first; return the answers, and why some are missing.

    Raises
    ------
    SystemExit
        If ours cannot do it, or another's outputs differ: a figure would mean nothing.
    """
    ready, reasons = {}, []
    for library, process in processes.items():
        answer = process.ask("prepare", case=asdict(case), mode=mode, expected=str(expected))
        if "failed" not in answer:
            if not answer["error"] <= TOLERANCE[case.dtype]:
                raise SystemExit(
                    f"{case.name}, {mode}: the outputs of {library} differ from ours by "
                    f"{answer['error']:.1e}, more than {TOLERANCE[case.dtype]}"
                )
            ready[library] = answer
        elif library == OURS:
            raise SystemExit(f"{case.name}, {mode}: {answer['failed']}")
        else:
            reasons.append(f"{library} is left out of {mode} in {case.dtype}: {answer['failed']}")
    return ready, reasons


def take_turns(
    processes: dict[str, Process],
    ready: dict[str, dict[str, Any]],
    case: Case,
    mode: str,
    rounds: int,
    seconds: float,
    done: Callable[[], Any],
) -> list[Measurement]:
    """Run the rounds of a prepared case: everybody in turn, each round another one first."""
    libraries = list(ready)
    calls = case.T if mode == "stream" else 1
    measurements = []
    for number in range(rounds):
        gflops = processes[OURS].ask("gemm", dtype=case.dtype)["gflops"]
        first = number % len(libraries)
        for library in libraries[first:] + libraries[:first]:
            ms = processes[library].ask("turn", seconds=seconds)["ms"] / calls
            about = ready[library]
            measurements.append(
                Measurement(
                    case,
                    mode,
                    library,
                    about["variant"],
                    number,
                    ms,
                    gflops,
                    about["memory_mb"],
                    about["error"],
                )
            )
        done()
    return measurements
