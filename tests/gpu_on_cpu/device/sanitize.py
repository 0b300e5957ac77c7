"""Run a script whose kernels are compiled with a sanitizer, in a process of its own.

A sanitizer's library must be in the process before Python is, so this cannot be done from inside.
"""

import functools
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .build import SANITIZER_VARIABLE, compiler, source_line

_LIBRARIES = {"asan": "libasan.so", "tsan": "libtsan.so"}
_EXIT_CODE = 66
_TESTS = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class SanitizedRun:
    """What became of the script.

    Attributes
    ----------
    returncode : int
        66 where ThreadSanitizer found something; AddressSanitizer lets the script go on and end.
    output : str
        Everything the script and the sanitizer wrote.
    reports : tuple of str
        One line for each finding, such as
        ``"ThreadSanitizer: data race at exchange.cu:14"``.
    """

    returncode: int
    output: str
    reports: tuple[str, ...]

    @property
    def clean(self) -> bool:
        """Whether the script ended well and the sanitizer found nothing."""
        return self.returncode == 0 and not self.reports


def missing(sanitizer: str) -> str | None:
    """Return why `sanitizer` cannot run here, or None."""
    gxx = compiler()
    if gxx is None:
        return "g++ was not found"
    if not Path(_library(gxx, sanitizer)).is_absolute():
        return f"g++ has no {_LIBRARIES[sanitizer]}"
    return None


def run_sanitized(
    script: str | Path,
    sanitizer: str,
    *arguments: str,
    environment: Mapping[str, str] | None = None,
    timeout: float = 300,
) -> SanitizedRun:
    """Run Python on `script` so that `compile_module` compiles with `sanitizer`.

    Parameters
    ----------
    script : str or Path
        A file, or the text of a program. It finds ``gpu_on_cpu`` on its path.
    sanitizer : {"asan", "tsan"}
        AddressSanitizer: accesses out of bounds, to the byte. ThreadSanitizer: accesses of two
        CUDA threads that nothing orders.
    *arguments : str
        For the script.
    """
    gxx = compiler()
    if gxx is None or (reason := missing(sanitizer)):
        raise RuntimeError(f"cannot run under {sanitizer}: {reason if gxx else 'no g++'}")
    path = os.pathsep.join(filter(None, [str(_TESTS), os.environ.get("PYTHONPATH", "")]))
    variables = {
        **os.environ,
        SANITIZER_VARIABLE: sanitizer,
        "LD_PRELOAD": _library(gxx, sanitizer),
        "PYTHONPATH": path,
        # Python's own pool would hide the ends of its objects; the leaks are Python's.
        "PYTHONMALLOC": "malloc",
        "ASAN_OPTIONS": f"detect_leaks=0:halt_on_error=0:exitcode={_EXIT_CODE}",
        "TSAN_OPTIONS": f"exitcode={_EXIT_CODE}:history_size=4:suppress_equal_addresses=0",
        # The threads of a linear algebra library are not instrumented.
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
        **(environment or {}),
    }
    program = [str(script)] if isinstance(script, Path) else ["-c", script]
    command = [*_without_randomised_addresses(), sys.executable, *program, *arguments]
    done = subprocess.run(
        command,
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
    )
    output = _with_lines(done.stdout)
    return SanitizedRun(done.returncode, output, reports_in(output))


_IN_LIBRARY = re.compile(r"(?:<null> <null> )?\((/\S+\.so)\+(0x[0-9a-f]+)\)")


def _with_lines(output: str) -> str:
    """Write the source line where the sanitizer knew no more than an address.

    It reads its tables once; a module that was compiled and loaded later is not in them.
    """
    lines = {place: source_line(*place) for place in set(_IN_LIBRARY.findall(output))}
    return _IN_LIBRARY.sub(lambda match: lines[match[1], match[2]], output)


def reports_in(output: str) -> tuple[str, ...]:
    """Return the findings in what a sanitizer wrote: what, and the first line of a .cu in it."""
    found = []
    for report in re.split(r"^(?===\d+==ERROR|WARNING: )", output, flags=re.MULTILINE):
        summary = re.search(r"^SUMMARY: (\w+: [a-z-]+(?: race)?)(.*)", report, re.MULTILINE)
        if summary:
            place = re.search(r"[^\s/]+\.cuh?:\d+", report)
            found.append(summary[1] + (f" at {place[0]}" if place else summary[2]))
    return tuple(found)


@functools.cache
def _library(gxx: str, sanitizer: str) -> str:
    command = [gxx, f"-print-file-name={_LIBRARIES[sanitizer]}"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


@functools.cache
def _without_randomised_addresses() -> tuple[str, ...]:
    # ThreadSanitizer of GCC 12 does not find its way in some kernels' randomised address space.
    setarch = shutil.which("setarch")
    if not setarch:
        return ()
    command = (setarch, platform.machine(), "-R")
    worked = subprocess.run([*command, "true"], capture_output=True).returncode == 0
    return command if worked else ()
