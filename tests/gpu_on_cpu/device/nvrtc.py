"""Compile for a real architecture with NVRTC, which needs no driver and no device.

What the CPU cannot show is read from the result: registers, spills and shared memory of each
kernel, and every memory instruction of its PTX.
"""

import importlib.util
import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .errors import CompileError

_SCOPES = ("cta", "cluster", "gpu", "sys")
_SEMANTICS = ("weak", "relaxed", "acquire", "release", "acq_rel", "volatile")


@dataclass(frozen=True)
class ResourceUsage:
    """What ptxas reports of one kernel: registers per thread, the rest in bytes."""

    registers: int
    stack_frame: int
    spill_stores: int
    spill_loads: int
    static_shared_bytes: int


@dataclass(frozen=True)
class Access:
    """One memory instruction of a kernel's PTX.

    Attributes
    ----------
    kernel : str
        Mangled name.
    opcode : str
        As it is written: ``"ld.global.nc.v4.f32"``.
    kind : {"ld", "st", "atom", "red"}
    space : str
        global, shared, local, or generic where the address may be anywhere.
    bytes : int
        Of one thread.
    non_coherent : bool
        Through the read-only path (``.nc``), which does not see what the kernel writes.
    semantics : str
        weak, relaxed, acquire, release, acq_rel or volatile.
    scope : str or None
        cta, cluster, gpu or sys, where the instruction has one.
    parameters : frozenset of int
        The kernel's parameters from which the address is computed.
    place : str
        File and line of the source, such as ``"gates.cu:40"``.
    """

    kernel: str
    opcode: str
    kind: str
    space: str
    bytes: int
    non_coherent: bool
    semantics: str
    scope: str | None
    parameters: frozenset[int]
    place: str

    @property
    def writes(self) -> bool:
        """Whether memory changes."""
        return self.kind != "ld"


@dataclass(frozen=True)
class OfflineModule:
    """What NVRTC made of one source.

    Attributes
    ----------
    ptx : str
    cubin : bytes
        Complete: a NUL byte is appended to what CuPy returns, which lacks the last byte.
    names : dict of str to str
        Mangled name of each name expression.
    resources : dict of str to ResourceUsage
        By mangled name.
    """

    ptx: str
    cubin: bytes
    names: dict[str, str]
    resources: dict[str, ResourceUsage]

    def accesses(self, kernel: str) -> tuple[Access, ...]:
        """Return the memory instructions of a kernel, by mangled name or name expression."""
        return tuple(_accesses(self.ptx, self.names.get(kernel, kernel)))


def missing(arch: str) -> str | None:
    """Return why nothing can be compiled here for `arch`, such as ``"sm_80"``, or None."""
    if importlib.util.find_spec("cupy") is None:
        return "CuPy is not installed"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that there is no toolkit is no news
            from cupy_backends.cuda.libs import nvrtc

            known = nvrtc.getSupportedArchs()
    except Exception as error:  # the library is loaded at its first use
        return f"NVRTC cannot be loaded: {error}"
    if int(arch.removeprefix("sm_")) not in known:
        version = ".".join(map(str, nvrtc.getVersion()))
        return f"NVRTC {version} does not compile for {arch}, but for sm_{min(known)} and later"
    return None


def compile_offline(
    source: str,
    arch: str,
    options: Sequence[str] = (),
    name_expressions: Sequence[str] = (),
    filename: str = "kernel.cu",
) -> OfflineModule:
    """Compile `source` for `arch`, such as ``"sm_80"``, as CuPy does.

    Raises
    ------
    CompileError
        With NVRTC's text.
    """
    given = tuple(word for word in options if not word.startswith("-arch"))
    flags = ("-std=c++17", f"-arch={arch}", "-ftz=true", "-lineinfo", "--ptxas-options=-v", *given)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from cupy._core.core import assemble_cupy_compiler_options
        from cupy_backends.cuda.libs import nvrtc

        complete = assemble_cupy_compiler_options(flags)
    # The calls of CuPy's own wrapper, which the driver half of the bed takes away from it.
    program = nvrtc.createProgram(source, filename, (), ())
    try:
        for expression in name_expressions:
            nvrtc.addNameExpression(program, expression)
        try:
            nvrtc.compileProgram(program, complete)
        except nvrtc.NVRTCError as error:
            log = nvrtc.getProgramLog(program)
            raise CompileError(f"{filename}: {error}\n{log}") from None
        names = {name: nvrtc.getLoweredName(program, name) for name in name_expressions}
        ptx = nvrtc.getPTX(program)
        return OfflineModule(
            ptx.decode() if isinstance(ptx, bytes) else ptx,
            nvrtc.getCUBIN(program) + b"\0",
            names,
            _resources(nvrtc.getProgramLog(program)),
        )
    finally:
        nvrtc.destroyProgram(program)


# --- lint ----------------------------------------------------------------------------------------


def stale_reads(accesses: Iterable[Access], aliases: Sequence[frozenset[int]] = ()) -> list[Access]:
    """Return the ``ld.global.nc`` of a buffer that the same kernel writes.

    Parameters
    ----------
    aliases : sequence of frozenset of int
        Parameters that may be given the same buffer, which the PTX cannot tell.
    """
    accesses = list(accesses)
    written: set[int] = set()
    for access in accesses:
        if access.writes and access.space in ("global", "generic"):
            written |= access.parameters
    for group in aliases:
        if written & group:
            written |= group
    return [a for a in accesses if a.non_coherent and (a.parameters & written)]


def narrow_scopes(accesses: Iterable[Access], least: str) -> list[Access]:
    """Return what is relaxed, acquire or release at a scope narrower than `least`."""
    wanted = _SCOPES.index(least)
    return [a for a in accesses if a.scope is not None and _SCOPES.index(a.scope) < wanted]


def widths(accesses: Iterable[Access], parameter: int, kind: str = "ld") -> dict[int, int]:
    """Return how many instructions move how many bytes: ``{16: 4, 4: 1}``."""
    counts: dict[int, int] = {}
    for access in accesses:
        if access.kind == kind and parameter in access.parameters:
            counts[access.bytes] = counts.get(access.bytes, 0) + 1
    return counts


# --- reading ptxas and PTX -----------------------------------------------------------------------

_PTXAS = re.compile(
    r"Compiling entry function '(?P<name>[^']+)'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores,"
    r" (?P<loads>\d+) bytes spill loads.*?"
    r"Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
    re.DOTALL,
)


def _resources(log: str) -> dict[str, ResourceUsage]:
    found = {}
    for match in _PTXAS.finditer(log):
        shared = re.search(r"(\d+)(?:\+\d+)? bytes smem", match["rest"])
        found[match["name"]] = ResourceUsage(
            int(match["registers"]),
            int(match["stack"]),
            int(match["stores"]),
            int(match["loads"]),
            int(shared[1]) if shared else 0,
        )
    return found


_INSTRUCTION = re.compile(r"^\s*(?:@!?%\w+\s+)?([a-z][\w.:]*)\s+(.*);\s*$")
_LOCATION = re.compile(r"^\s*\.loc\s+(\d+)\s+(\d+)")
_FILE = re.compile(r'^\s*\.file\s+(\d+)\s+"([^"]*)"', re.MULTILINE)
_ADDRESS = re.compile(r"\[([^\]]+)\]")
_REGISTER = re.compile(r"%\w+")


def _accesses(ptx: str, kernel: str) -> Iterable[Access]:
    body = _body(ptx, kernel)
    origins = _origins(body, kernel)
    files = {number: path.rsplit("/", 1)[-1] for number, path in _FILE.findall(ptx)}
    place = ""
    for text in body:
        if location := _LOCATION.match(text):
            place = f"{files.get(location[1], '')}:{location[2]}"
            continue
        match = _INSTRUCTION.match(text)
        if not match or match[1].split(".")[0] not in ("ld", "st", "atom", "red"):
            continue
        opcode, operands = match[1], match[2]
        words = opcode.split(".")
        address = _ADDRESS.search(operands)
        if "param" in words or not address:
            continue
        parameters = frozenset().union(
            *(origins.get(name, frozenset()) for name in _REGISTER.findall(address[1]))
        )
        atomic = words[0] in ("atom", "red")
        semantics = next((w for w in words if w in _SEMANTICS), "relaxed" if atomic else "weak")
        scope = next((w for w in words if w in _SCOPES), "gpu" if atomic else None)
        yield Access(
            kernel=kernel,
            opcode=opcode,
            kind=words[0],
            space=_space(words),
            bytes=_bytes(words),
            non_coherent="nc" in words,
            semantics=semantics,
            scope=scope,
            parameters=parameters,
            place=place,
        )


def _body(ptx: str, kernel: str) -> list[str]:
    start = re.search(rf"\.entry\s+{re.escape(kernel)}\s*\(", ptx)
    if not start:
        raise KeyError(f"no kernel {kernel!r} in the PTX")
    end = ptx.find("\n}", start.end())
    # Inline PTX may put a scope's braces and several instructions on a line.
    text = re.sub(r"^\s*[{}]", "", ptx[start.start() : end], flags=re.MULTILINE)
    return re.sub(r";[ \t]*(?=\S)", ";\n", text).splitlines()


def _origins(body: Sequence[str], kernel: str) -> dict[str, frozenset[int]]:
    """Return for each register the parameters its value is computed from.

    A register may be assigned in several places, so this is repeated until nothing changes. What
    is loaded from memory has no origin.
    """
    parameter = re.compile(rf"\[{re.escape(kernel)}_param_(\d+)")
    origins: dict[str, frozenset[int]] = {}
    steps: list[tuple[str, list[str]]] = []
    for text in body:
        match = _INSTRUCTION.match(text)
        if not match:
            continue
        kind, operands = match[1].split(".")[0], match[2]
        names = _REGISTER.findall(operands)
        loaded = parameter.search(operands)
        if kind == "ld" and loaded:
            for name in names:
                origins[name] = origins.get(name, frozenset()) | {int(loaded[1])}
        elif kind in ("mov", "add", "sub", "cvta", "cvt", "mad", "selp", "or", "and", "mapa"):
            steps.append((names[0], names[1:]))
    changed = True
    while changed:
        changed = False
        for target, sources in steps:
            known = origins.get(target, frozenset())
            more = known.union(*(origins.get(name, frozenset()) for name in sources))
            if more != known:
                origins[target] = more
                changed = True
    return origins


def _space(words: Sequence[str]) -> str:
    for word in words:
        space = word.split("::")[0]
        if space in ("global", "shared", "local", "const"):
            return space
    return "generic"


def _bytes(words: Sequence[str]) -> int:
    bits = int(re.sub(r"\D", "", words[-1]) or 0)
    vector = next((int(w[1:]) for w in words if re.fullmatch(r"v[248]", w)), 1)
    return vector * bits // 8
