"""The machine code of a kernel by classes of opcodes: compiled and read without a GPU.

NVRTC compiles for any architecture; nvdisasm reads what it made (``pip install
nvidia-cuda-nvdisasm``, or that of a CUDA toolkit on the path).
"""

import re
import shutil
import subprocess
import tempfile
import warnings
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import NamedTuple

from cupy_lstm import kernels

CLASSES = {
    "HMMA": ("HMMA",),
    "FFMA": ("FFMA", "FFMA2"),
    "FADD, FMUL": ("FADD", "FMUL", "FADD2", "FMUL2"),
    "MUFU": ("MUFU",),
    "LDS": ("LDS",),
    "STS": ("STS",),
    "LDG": ("LDG",),
    "STG": ("STG",),
    "SHFL": ("SHFL",),
    "BAR": ("BAR", "UCGABAR_ARV", "UCGABAR_WAIT"),
    "MEMBAR": ("MEMBAR",),
    "LDL, STL": ("LDL", "STL"),
}
"""Opcodes by what they keep busy; every other one is `OTHER`. HMMA is the product of the tensor
cores, LDL and STL are spills, UCGABAR the barrier of a cluster."""

OTHER = "other"

MISSING = "there is no nvdisasm here: pip install nvidia-cuda-nvdisasm"


class Instruction(NamedTuple):
    """One instruction: its place in bytes, its opcode without suffixes, where it jumps to."""

    address: int
    opcode: str
    target: int | None


class Loop(NamedTuple):
    """What a loop holds, from its first instruction to the jump back."""

    start: int
    stop: int
    counts: Counter[str]


def find_nvdisasm() -> str | None:
    """Return the path of nvdisasm, or None."""
    try:
        for file in files("nvidia-cuda-nvdisasm") or ():
            if file.name in ("nvdisasm", "nvdisasm.exe"):
                return str(file.locate())
    except PackageNotFoundError:
        pass
    return shutil.which("nvdisasm")


def compile_cubin(
    file: str, expression: str, architecture: str, options: Sequence[str] = ()
) -> bytes:
    """Return the machine code of one kernel instantiation, compiled as CuPy would.

    Parameters
    ----------
    file, expression, options : str, str, sequence of str
        Of `cupy_lstm.kernels.Kernel`.
    architecture : str
        Such as ``"sm_90"``.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is no toolkit is no news
        from cupy._core.core import assemble_cupy_compiler_options
        from cupy_backends.cuda.libs import nvrtc

        all_options = (*kernels.OPTIONS, f"-arch={architecture}", "-ftz=true", *options)
        complete = assemble_cupy_compiler_options(all_options)
    program = nvrtc.createProgram(kernels.resolved(file), file, (), ())
    try:
        nvrtc.addNameExpression(program, expression)
        try:
            nvrtc.compileProgram(program, complete)
        except nvrtc.NVRTCError:
            raise RuntimeError(nvrtc.getProgramLog(program)) from None
        # CuPy cuts the last byte off, as if it ended a text.
        return bytes(nvrtc.getCUBIN(program)) + b"\0"
    finally:
        nvrtc.destroyProgram(program)


def disassemble(cubin: bytes, nvdisasm: str) -> str:
    """Return the machine code as text."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(cubin)
        command = [nvdisasm, "--print-code", str(path)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def instructions(text: str) -> list[Instruction]:
    """Read what `disassemble` returns."""
    labels: dict[str, int] = {}
    found: list[tuple[int, str, str | None]] = []
    waiting: list[str] = []
    for line in text.splitlines():
        if label := re.match(r"(\.L_[\w$]+):", line):
            waiting.append(label[1])
        match = re.match(r"\s*/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*)(.*)", line)
        if match is None:
            continue
        address = int(match[1], 16)
        labels.update(dict.fromkeys(waiting, address))
        waiting.clear()
        jump = re.search(r"`\((\.L_[\w$]+)\)", match[3]) if match[2] == "BRA" else None
        found.append((address, match[2], jump[1] if jump else None))
    return [
        Instruction(address, opcode, None if label is None else labels.get(label))
        for address, opcode, label in found
    ]


def classify(code: Sequence[Instruction]) -> Counter[str]:
    """Count instructions by class; in the order of `CLASSES`."""
    by_opcode = {opcode: name for name, opcodes in CLASSES.items() for opcode in opcodes}
    counts = Counter(by_opcode.get(one.opcode, OTHER) for one in code if one.opcode != "NOP")
    return Counter({name: counts[name] for name in (*CLASSES, OTHER) if counts[name]})


def loops(code: Sequence[Instruction]) -> list[Loop]:
    """Return the loops of a kernel, the longest first: every jump back ends one."""
    found: dict[int, int] = {}
    for one in code:
        if one.target is not None and one.target < one.address:
            found[one.target] = max(one.address, found.get(one.target, 0))
    spans = sorted(found.items(), key=lambda span: span[0] - span[1])
    return [
        Loop(start, stop, classify([one for one in code if start <= one.address <= stop]))
        for start, stop in spans
    ]


def step_loop(code: Sequence[Instruction]) -> Counter[str]:
    """Return what the loop over the steps holds, each instruction once: the one with a barrier."""
    return next((loop.counts for loop in loops(code) if loop.counts["BAR"]), Counter())


def once_a_step(code: Sequence[Instruction]) -> Counter[str]:
    """Return the same without the loops inside: that of the tiles of a team is not one of them."""
    found = loops(code)
    step = next((loop for loop in found if loop.counts["BAR"]), None)
    if step is None:
        return Counter()
    inside = [one for one in found if step.start <= one.start and one.stop <= step.stop]
    inner = [one for one in inside if not one.counts["BAR"]]
    return classify(
        [
            one
            for one in code
            if step.start <= one.address <= step.stop
            and not any(loop.start <= one.address <= loop.stop for loop in inner)
        ]
    )
