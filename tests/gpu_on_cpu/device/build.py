"""Compile with g++ and keep the results on disk, by the content of everything that went in."""

import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from .errors import CompileError
from .source import SourceError, rewrite

HERE = Path(__file__).resolve().parent
SANITIZER_VARIABLE = "GPU_ON_CPU_SANITIZER"
_INCLUDE = HERE / "include"
_RUNTIME = HERE / "runtime"
_LISTED = "headers.d"

_COMMON = ("-std=gnu++17", "-fPIC", "-fvisibility=default", f"-I{_INCLUDE}")
# Only the calls of UndefinedBehaviorSanitizer are compiled in; the functions they call are ours
# (runtime/faults.cpp), so a misaligned vector load ends the launch and names the line.
_CHECKS = (
    "-fsanitize=alignment,bounds,null,integer-divide-by-zero",
    "-fno-sanitize-recover=all",
)
# -ffp-contract=off: the same rounding on every host. -fno-strict-aliasing: kernels read floats
# through float4. -fno-gnu-unique: two modules may hold the same template. -fstack-clash-protection:
# a large frame touches each of its pages in turn, so the guard page under a stack first, instead
# of memory beyond it that is somebody else's.
_KERNEL_FLAGS = (
    "-O2",
    "-g1",
    "-w",
    "-ffp-contract=off",
    "-fno-strict-aliasing",
    "-fno-gnu-unique",
    "-fno-omit-frame-pointer",
    "-fstack-clash-protection",
    "--param=stack-clash-protection-guard-size=12",
    *_CHECKS,
)
_SANITIZER_FLAGS = {
    None: (),
    "asan": ("-fsanitize=address", "-fsanitize-recover=address"),
    "tsan": ("-fsanitize=thread",),
    "ubsan": ("-fsanitize=signed-integer-overflow,shift",),
}


def compiler() -> str | None:
    """Return the C++ compiler, or None where there is none."""
    return shutil.which(os.environ.get("GPU_ON_CPU_CXX", "g++"))


def cache_folder() -> Path:
    """Return where compiled modules are kept: GPU_ON_CPU_CACHE, or the user's cache folder."""
    chosen = os.environ.get("GPU_ON_CPU_CACHE")
    if chosen:
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "gpu_on_cpu"


def default_sanitizer() -> str | None:
    """Return the sanitizer this process was started for, see sanitize.run_sanitized."""
    return os.environ.get(SANITIZER_VARIABLE) or None


def build_runtime(sanitizer: str | None, portable_fibers: bool) -> Path:
    """Return the shared library that runs kernels, compiled if it is not in the cache."""
    flags = [*_COMMON, "-O2", "-g1", "-Wall", "-Wextra", "-fno-strict-aliasing"]
    if sanitizer == "asan":
        flags.append("-fsanitize=address")
    if sanitizer == "tsan":
        flags.append("-DBED_TSAN")  # the runtime itself is not instrumented, see fiber.h
    if portable_fibers:
        flags.append("-DBED_PORTABLE_FIBERS")

    def make(work: Path) -> Path:
        sources = map(str, sorted(_RUNTIME.glob("*.cpp")))
        _compile(["-shared", *flags, *sources, "-o", str(work / "made.so"), "-ldl", "-lrt"])
        return work / "made.so"

    return _cached("runtime", repr(flags), make)


def build_module(
    source: str,
    filename: str,
    options: Sequence[str],
    name_expressions: Sequence[str],
    sanitizer: str | None,
    runtime: Path,
) -> Path:
    """Return the shared library of one .cu, compiled if it is not in the cache.

    It is preprocessed, rewritten (see source.py) and compiled, in this order: macros may hold a
    kernel's name or a shared variable, and so may headers. What compiles the same text, for another
    architecture most of the time, takes a copy: a library of its own, with variables of its own.
    """
    if sanitizer not in _SANITIZER_FLAGS:
        known = ", ".join(str(name) for name in _SANITIZER_FLAGS)
        raise ValueError(f"sanitizer is {sanitizer!r}, known are {known}")
    # Name expressions may hold macros, so they are preprocessed too.
    expressions = "".join(_registration(f"e{i}", n) for i, n in enumerate(name_expressions))
    text = f'#line 1 "{filename}"\n{source}\n#line 1 "name expressions"\n{expressions}'
    before = ["-include", "cuda_on_cpu.h", *_COMMON, *_translated(options)]
    flags = [*_COMMON, *_KERNEL_FLAGS, *_SANITIZER_FLAGS[sanitizer]]

    def make(work: Path) -> Path:
        listed = ["-MD", "-MF", str(work / _LISTED)]
        whole = _compile(["-E", *before, *listed, "-x", "c++", "-"], text)
        try:
            rewritten, names = rewrite(whole)
        except SourceError as error:
            raise CompileError(str(error)) from None
        plain = (name for name in names if name not in name_expressions)
        registry = "".join(_registration(f"n{i}", name) for i, name in enumerate(plain))
        last = f'{rewritten}\n# 1 "names of kernels"\n{registry}'
        digest = hashlib.sha256(
            repr((_compiler_version(compiler()), last, flags, runtime)).encode()
        )
        compiled = cache_folder() / f"text-{digest.hexdigest()[:24]}.so"
        made = work / "made.so"
        if not compiled.exists():
            output = ["-o", str(made), "-x", "c++", "-", "-x", "none", str(runtime)]
            _compile(["-shared", "-Wl,-Bsymbolic", *flags, *output], last)
            made.replace(compiled)
        shutil.copyfile(compiled, made)
        return made

    key = repr((text, before, flags, str(runtime)))
    return _cached(Path(filename).stem, key, make)


def _registration(unique: str, name: str) -> str:
    return (
        f"static ::bed::registry::Kernel bed_kernel_{unique};"
        f" static bool bed_known_{unique} ="
        f' ::bed::registry::add_kernel(bed_kernel_{unique}, "{name}", {name});\n'
    )


def _compile(arguments: list[str], text: str | None = None) -> str:
    gxx = compiler()
    if gxx is None:
        raise CompileError("g++ was not found: install it, or set GPU_ON_CPU_CXX")
    done = _run([gxx, *arguments], text)
    if done.returncode:
        raise CompileError(f"g++ failed\n{done.stderr[:8000]}")
    return done.stdout


def _run(command: list[str], text: str | None = None) -> subprocess.CompletedProcess[str]:
    # A sanitizer preloaded into this process must not slow the compiler; and messages in English.
    environment = {k: v for k, v in os.environ.items() if k != "LD_PRELOAD"} | {"LC_ALL": "C"}
    return subprocess.run(command, input=text, text=True, capture_output=True, env=environment)


def source_line(library: str, address: str) -> str:
    """Return file:line of an instruction of a library, the first that is not the bed's own."""
    command = ["addr2line", "-i", "-e", library, address]
    try:
        done = _run(command)
    except FileNotFoundError:
        return f"{library}+{address} (addr2line would name the line)"
    # Inlined calls come innermost first.
    lines = [line.split(" (")[0] for line in done.stdout.splitlines()]
    outside = [line for line in lines if "cuda_on_cpu" not in line]
    return (outside or lines or [f"{library}+{address}"])[0].rsplit("/", 1)[-1]


def _translated(options: Sequence[str]) -> list[str]:
    """Return the NVRTC options that mean something to g++."""
    kept = []
    words = iter(options)
    for word in words:
        name, _, value = word.partition("=")
        if word in ("-D", "-I", "-U"):
            kept.append(word + next(words))
        elif word[:2] in ("-D", "-I", "-U"):
            kept.append(word)
        elif name == "--define-macro":
            kept.append("-D" + value)
        elif name == "--include-path":
            kept.append("-I" + value)
        elif name in ("-std", "--std"):
            kept.append("-std=" + value.replace("c++", "gnu++"))
        elif name in ("-arch", "--gpu-architecture"):
            digits = "".join(c for c in value if c.isdigit())
            kept.append(f"-D__CUDA_ARCH__={digits}0")
    return kept


@functools.cache
def _own_files() -> tuple[Path, ...]:
    return tuple(
        sorted(p for folder in (_INCLUDE, _RUNTIME) for p in folder.rglob("*") if p.is_file())
    )


@functools.cache
def _content(path: Path) -> bytes:
    return path.read_bytes()


@functools.cache
def _compiler_version(path: str | None) -> str:
    return _run([path, "--version"]).stdout if path else ""


def _cached(name: str, key: str, make: Callable[[Path], Path]) -> Path:
    """Return what `make` makes in a folder it is given, unless the cache has it.

    `key` is everything that goes in but the headers; `make` leaves their names in a file.
    """
    digest = hashlib.sha256(f"{_compiler_version(compiler())} {key}".encode())
    for path in _own_files():
        digest.update(_content(path))
    known = digest.hexdigest()
    folder = cache_folder()
    record = folder / f"{name}-{known[:24]}.headers"

    def library(sums: str) -> Path:
        # Another name for other headers: the loader would take the same path for the same library.
        return folder / f"{name}-{hashlib.sha256((known + sums).encode()).hexdigest()[:24]}.so"

    if record.exists():
        sums = record.read_text()
        if _unchanged(sums) and library(sums).exists():
            return library(sums)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as work:
        made = make(Path(work))
        sums = _sums(_dependencies(Path(work, _LISTED)))
        # Whole or not at all, whoever compiles beside us; the record comes last.
        made.replace(library(sums))
        Path(work, "record").write_text(sums)
        Path(work, "record").replace(record)
    return library(sums)


def _dependencies(listed: Path) -> list[Path]:
    """Return the headers a module included that are neither the bed's own nor the system's."""
    if not listed.exists():
        return []
    words = listed.read_text().replace("\\\n", " ").split()[1:]
    paths = {Path(word) for word in words if not word.startswith("/usr/")}
    return sorted(p for p in paths if p.is_file() and HERE not in p.resolve().parents)


def _sums(paths: Sequence[Path]) -> str:
    return "".join(f"{hashlib.sha256(p.read_bytes()).hexdigest()} {p}\n" for p in paths)


def _unchanged(sums: str) -> bool:
    """Tell whether every header a cached module was made of is as it was then."""
    for line in sums.splitlines():
        digest, _, path = line.partition(" ")
        file = Path(path)
        if not file.is_file() or hashlib.sha256(file.read_bytes()).hexdigest() != digest:
            return False
    return True
