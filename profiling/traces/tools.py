"""Running a command under a tool that records its ranges: Nsight Systems, or one of our own."""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from traces.log import read_log
from traces.nsys import read_export
from traces.spans import Recording

HERE = Path(__file__).parent
SOURCE = HERE / "injection.c"
STANDIN = HERE / "standin"
LOG = "NVTX_RANGES_LOG"
INSTALL = "pip install 'cupy_lstm[nvtx]'"

TOOLS = {
    "nsys": "Nsight Systems: ranges, and the work of the GPU",
    "injection": "a library of our own that NVTX loads: the ranges of every language",
    "python": "a recorder in Python in place of the package nvtx: the ranges of Python alone",
}
"""The tools by name, the best first."""


def why_not(tool: str) -> str:
    """Return why a tool cannot be used here, or an empty text."""
    if tool == "nsys":
        return "" if shutil.which("nsys") else "there is no nsys on the PATH"
    if tool == "injection":
        if not sys.platform.startswith("linux"):
            return "it is written for Linux"
        if find_spec("nvtx") is None or headers() is None:
            return f"it needs nvtx and its headers: {INSTALL}"
        return "" if compiler() else "there is no C compiler: cc, gcc or clang"
    return ""


def chosen_tool(wanted: str) -> str:
    """Return the tool that is wanted, or for ``"auto"`` the best there is.

    Raises
    ------
    SystemExit
        If the one that is wanted cannot be used here.
    """
    if wanted == "auto":
        return next(tool for tool in TOOLS if not why_not(tool))
    obstacle = why_not(wanted)
    if obstacle:
        raise SystemExit(f"--tool {wanted} cannot be used here: {obstacle}")
    return wanted


def headers() -> Path | None:
    """Return the folder that nvtx3/ lies in, of the wheel nvidia-nvtx; None without it."""
    found = find_spec("nvidia")
    places = found.submodule_search_locations if found else None
    for place in places or ():
        for path in sorted(Path(place).glob("*/include/nvtx3/nvToolsExtPayload.h"), reverse=True):
            return path.parent.parent
    return None


def compiler() -> str | None:
    """Return the C compiler: $CC, or the first there is."""
    names = (os.environ.get("CC", ""), "cc", "gcc", "clang")
    return next((path for name in names if name and (path := shutil.which(name))), None)


def built_injection() -> Path:
    """Return the injection library, compiled if it is not yet, or its source has changed.

    Raises
    ------
    SystemExit
        If it does not compile.
    """
    include, command = headers(), compiler()
    key = hashlib.sha256(SOURCE.read_bytes() + str((include, command)).encode()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"cupy_lstm-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise SystemExit(f"{folder} belongs to somebody else: no library is loaded from there")
    library = folder / f"injection-{key}.so"
    if not library.exists():
        # Several may build it at once: each its own file, the last one stays.
        part = library.with_suffix(f".{os.getpid()}")
        flags = ["-std=c11", "-O2", "-shared", "-fPIC", "-fvisibility=hidden", "-pthread"]
        done = subprocess.run(
            [str(command), *flags, "-isystem", str(include), str(SOURCE), "-o", str(part)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise SystemExit(f"{SOURCE.name} does not compile with {command}:\n{done.stderr}")
        part.replace(library)
    return library


def record(
    tool: str, command: Sequence[str], stem: Path, environment: Mapping[str, str] | None = None
) -> tuple[int, Path]:
    """Run a command under a tool.

    Parameters
    ----------
    tool : str
        One of `TOOLS`.
    command : sequence of str
        The program and its arguments.
    stem : Path
        Of the files that are written; one that is there is replaced.
    environment : mapping of str to str, optional
        Set for the command, beside what is set here.

    Returns
    -------
    status : int
        The command's.
    path : Path
        What was recorded, for `read_recording`.

    Raises
    ------
    SystemExit
        If the command cannot be started.
    """
    env = {**os.environ, **(environment or {})}
    if tool == "nsys":
        path, report = stem.with_suffix(".sqlite"), stem.with_suffix(".nsys-rep")
        for old in (path, report):
            old.unlink(missing_ok=True)
        command = [
            "nsys", "profile", "--trace=cuda,nvtx", "--sample=none", "--cpuctxsw=none",
            "--cuda-graph-trace=node", "--export=sqlite", "--force-overwrite=true",
            f"--output={report}", *command,
        ]  # fmt: skip
    else:
        path = stem.with_suffix(".jsonl")
        path.write_text("", encoding="utf-8")
        env[LOG] = str(path.resolve())
        if tool == "injection":
            env["NVTX_INJECTION64_PATH"] = str(built_injection())
        else:
            others = env.get("PYTHONPATH", "")
            env["PYTHONPATH"] = os.pathsep.join(filter(None, (str(STANDIN), others)))
    try:
        status = subprocess.run(command, env=env, check=False).returncode
    except OSError as error:
        raise SystemExit(f"cannot start {command[0]}: {error.strerror}") from None
    if not path.exists():
        raise SystemExit(f"{command[0]} wrote no {path.name}, its status is {status}")
    return status, path


def read_recording(path: Path) -> Recording:
    """Read a log of ranges (.jsonl) or an export of Nsight Systems (.sqlite)."""
    return read_log(path) if path.suffix == ".jsonl" else read_export(path)
