"""Compiled modules, their kernels, and how one is launched."""

import ctypes
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from . import build, errors
from .native import Aligned, LaunchRequest, SharedSlot, line_at, size_at, symbol_at
from .profiles import DeviceProfile, KernelFacts

_ORDERS = {"forward": 0, "reverse": 1, "random": 2}
# By the numbers of ErrorKind in runtime/state.h.
_ERRORS = {
    1: errors.DeadlockError,
    2: errors.DivergenceError,
    3: errors.OutOfBoundsError,
    4: errors.MisalignedError,
    5: errors.ScopeError,
    6: errors.MemoryFaultError,
    7: errors.HangError,
    8: errors.KernelError,
}
_launching = threading.Lock()  # the runtime holds one launch at a time


def compile_module(
    source: str,
    options: Sequence[str] = (),
    name_expressions: Sequence[str] = (),
    *,
    sanitizer: str | None = None,
    filename: str = "kernel.cu",
    portable_fibers: bool = False,
) -> "Module":
    """Compile a .cu, unmodified, for the CPU.

    Parameters
    ----------
    source : str
        The text of the .cu. ``#line`` directives in it are honoured in every error.
    options : sequence of str
        Options of NVRTC. ``-D``, ``-U``, ``-I``, ``-std=``, ``-arch=`` and ``-ftz=`` are used, the
        others mean nothing here.
    name_expressions : sequence of str
        Template instantiations to make available, such as ``"gates<float>"``.
    sanitizer : {"asan", "tsan", "ubsan"}, optional
        By default what `sanitize.run_sanitized` chose for this process, else none.
    filename : str
        The name the source has in errors.
    portable_fibers : bool
        Switch threads with ucontext instead of assembly.

    Raises
    ------
    CompileError
        With the compiler's text.
    """
    sanitizer = sanitizer or build.default_sanitizer()
    runtime = build.build_runtime(sanitizer, portable_fibers)
    names = tuple(dict.fromkeys(name_expressions))
    library = build.build_module(source, filename, options, names, sanitizer, runtime)
    flush = any(word.replace("--ftz", "-ftz") == "-ftz=true" for word in options)
    return Module(library, runtime, flush)


class Module:
    """One compiled .cu.

    Attributes
    ----------
    kernels : mapping of str to Kernel
        By plain name (``extern "C"``) or name expression.
    """

    def __init__(self, library: Path, runtime: Path, flush_to_zero: bool) -> None:
        self.path = library
        self.runtime = ctypes.CDLL(str(runtime))
        self.library = ctypes.CDLL(str(library))
        self.flush_to_zero = flush_to_zero
        self.runtime.bed_request_bytes.restype = ctypes.c_size_t
        assert self.runtime.bed_request_bytes() == ctypes.sizeof(LaunchRequest)
        self.kernels: Mapping[str, Kernel] = self._read()
        self._by_symbol = {kernel.symbol: kernel for kernel in self.kernels.values()}

    def lowered_name(self, expression: str) -> str:
        """Return the mangled name of a name expression."""
        return self.kernels[expression].symbol

    def kernel(self, name: str) -> "Kernel":
        """Return the kernel with this plain or mangled name."""
        try:
            return self._by_symbol[name]
        except KeyError:
            known = ", ".join(self._by_symbol)
            raise KeyError(f"no kernel {name!r} in this module; it has {known}") from None

    def symbol(self, name: str) -> tuple[int, int]:
        """Return address and bytes of a global ``__device__`` or ``__constant__`` variable."""
        try:
            address = ctypes.addressof(ctypes.c_char.in_dll(self.library, name))
        except ValueError:
            raise KeyError(f"no global variable {name!r} in this module") from None
        return address, size_at(address)

    @property
    def fiber_kind(self) -> str:
        """``"assembly"`` or ``"ucontext"``."""
        self.runtime.bed_fiber_kind.restype = ctypes.c_char_p
        return self.runtime.bed_fiber_kind().decode()

    def _read(self) -> "dict[str, Kernel]":
        describe = self.library.bed_describe
        describe.restype = ctypes.c_size_t
        describe.argtypes = (ctypes.c_char_p, ctypes.c_size_t)
        buffer = ctypes.create_string_buffer(describe(None, 0) + 1)
        describe(buffer, len(buffer))
        lines = [line.split("\t") for line in buffer.value.decode().splitlines()]
        slots = sorted((int(f[2]), f[1], int(f[3]), int(f[4])) for f in lines if f[0] == "shared")
        facts = {f[1]: f[2:] for f in lines if f[0] == "facts"}
        found = {f[1]: (int(f[2]), int(f[3]), f[4]) for f in lines if f[0] == "kernel"}
        symbols = {name: symbol_at(entry[0]) or name for name, entry in found.items()}
        # A type local to a function carries the function's mangled name, so this tells whose
        # facts and whose shared variables they are.
        owners = {name: _owner_prefix(symbol) for name, symbol in symbols.items()}
        kernels = {}
        for name, (function, invoke, signature) in found.items():
            mine = next((v for k, v in facts.items() if k.startswith(owners[name])), None)
            others = [p for p in owners.values() if p != owners[name]]
            used = [
                (0, 1) if owner.startswith(tuple(others)) else (size, alignment)
                for _, owner, size, alignment in slots
            ]
            kernels[name] = Kernel(
                self, name, symbols[name], function, invoke, signature, mine, used
            )
        return kernels


class Parameter:
    """One parameter of a kernel: ``kind`` is p, b, f, i, u or s (a struct)."""

    def __init__(self, text: str) -> None:
        self.kind = text[0]
        self.size, self.alignment = (int(part) for part in text[1:].split("/"))

    def __repr__(self) -> str:
        return f"Parameter({self.kind}{self.size})"


class Kernel:
    """One kernel of a module.

    Attributes
    ----------
    parameters : tuple of Parameter
    registers : int
        Per thread, for the occupancy rules. g++ cannot know it: set it from
        `nvrtc.resource_usage` where it matters.
    static_shared_bytes : int
        Of variables declared in the kernel itself and in device functions of its module.
    max_threads, min_blocks : int
        Of ``__launch_bounds__``, else 1024 and 0.
    cluster : tuple of int or None
        Of ``__cluster_dims__``.
    switches : int
        How often the last launch went from one thread to another.
    """

    def __init__(
        self,
        module: Module,
        name: str,
        symbol: str,
        function: int,
        invoke: int,
        signature: str,
        facts: Sequence[str] | None,
        slots: Sequence[tuple[int, int]],
    ) -> None:
        self.module, self.name, self.symbol = module, name, symbol
        self._function, self._invoke = function, invoke
        self.parameters = tuple(Parameter(word) for word in signature.split())
        self.file, self.line = (facts[0], int(facts[1])) if facts else ("kernel.cu", 0)
        self.max_threads = int(facts[2]) if facts and int(facts[2]) else 1024
        self.min_blocks = int(facts[3]) if facts else 0
        dims = tuple(int(word) for word in facts[4:7]) if facts else (0, 0, 0)
        self.cluster = dims if dims[0] else None
        self.registers = 32
        self.switches = 0
        self._slots = (SharedSlot * max(1, len(slots)))(*slots)
        self._slot_count = len(slots)
        self.static_shared_bytes = 0
        for size, alignment in slots:
            start = -(-self.static_shared_bytes // alignment) * alignment
            self.static_shared_bytes = start + size

    @property
    def facts(self) -> KernelFacts:
        """What the kernel asks of a device."""
        return KernelFacts(self.registers, self.static_shared_bytes, self.max_threads)

    def launch(
        self,
        grid: Sequence[int],
        block: Sequence[int],
        shared_bytes: int,
        argument_pointers: Sequence[int],
        *,
        cooperative: bool = False,
        cluster: Sequence[int] | None = None,
        order: str = "forward",
        seed: int = 0,
        profile: DeviceProfile,
    ) -> None:
        """Run the kernel to its end.

        Parameters
        ----------
        grid, block : sequence of 1 to 3 int
        shared_bytes : int
            Dynamic shared memory of each block.
        argument_pointers : sequence of int
            The address of each argument's value. The values are copied first.
        cooperative : bool
            All blocks run at once and may wait for each other.
        cluster : sequence of int, optional
            Blocks in a cluster; by default what the kernel declares.
        order : {"forward", "reverse", "random"}
            Which thread goes first.
        seed : int
            Of the random order.
        profile : DeviceProfile
            The device whose limits hold.

        Raises
        ------
        LaunchError
            Or one of its kinds, see `errors`; the message names the .cu and the line.
        """
        if order not in _ORDERS:
            raise ValueError(f"order must be one of {', '.join(_ORDERS)}, received {order!r}")
        shape = _Shape(_three(grid), _three(block), _three(cluster or self.cluster or (1, 1, 1)))
        if len(argument_pointers) != len(self.parameters):
            raise errors.LaunchError(
                f"{self}: {len(argument_pointers)} arguments for {len(self.parameters)} parameters"
            )
        self._check(shape, shared_bytes, cooperative, cluster is not None, profile)
        request = LaunchRequest(
            function=self._function,
            invoke=self._invoke,
            arguments=(ctypes.c_void_p * (len(self.parameters) + 1))(),
            grid=shape.grid,
            block=shape.block,
            cluster=shape.cluster,
            dynamic_shared=shared_bytes,
            cooperative=cooperative,
            order=_ORDERS[order],
            seed=seed,
            blocks_in_flight=4 if order == "random" else 1,
            slots=self._slots,
            slot_count=self._slot_count,
            flush_to_zero=self.module.flush_to_zero,
            hang_seconds=float(os.environ.get("GPU_ON_CPU_HANG_SECONDS", "60")),
        )
        values = []
        for i, (pointer, parameter) in enumerate(
            zip(argument_pointers, self.parameters, strict=True)
        ):
            value = Aligned(parameter.size, parameter.alignment)
            ctypes.memmove(value.address, pointer, parameter.size)
            values.append(value)
            request.arguments[i] = value.address
        message = ctypes.create_string_buffer(8192)
        with _launching:
            kind = self.module.runtime.bed_launch(ctypes.byref(request), message, len(message))
        self.switches = request.switches
        if kind:
            text = message.value.decode(errors="replace")
            if request.fault_address:
                text += " at " + line_at(request.fault_address)
            raise _ERRORS[kind](f"{self}: {text}")

    def __str__(self) -> str:
        return f"{self.name} ({self.file}:{self.line})"

    def _check(
        self,
        shape: "_Shape",
        shared_bytes: int,
        cooperative: bool,
        cluster_asked: bool,
        profile: DeviceProfile,
    ) -> None:
        """Refuse what the device of `profile` would refuse."""
        grid, block, cluster = shape.grid, shape.block, shape.cluster
        threads, blocks, in_cluster = _product(block), _product(grid), _product(cluster)

        def refuse(why: str) -> None:
            raise errors.LaunchError(f"{self}: {why}")

        if min(*grid, *block, *cluster) < 1:
            refuse(f"grid {grid}, block {block} and cluster {cluster} must be at least 1")
        if threads > profile.max_threads_per_block or block[2] > 64:
            refuse(f"{threads} threads in a block of {block}; {profile.name} allows 1024, z 64")
        if threads > self.max_threads:
            refuse(f"{threads} threads in a block; __launch_bounds__ promises {self.max_threads}")
        if grid[0] >= 2**31 or max(grid[1:]) > 65535:
            refuse(f"grid {grid} is larger than (2147483647, 65535, 65535)")
        shared = self.static_shared_bytes + shared_bytes
        if shared > profile.shared_per_block_optin:
            refuse(
                f"{shared} bytes of shared memory ({self.static_shared_bytes} static);"
                f" {profile.name} has {profile.shared_per_block_optin} a block"
            )
        active = profile.max_active_blocks(self.facts, threads, shared_bytes)
        if active == 0:
            refuse(
                f"{self.registers} registers in each of {threads} threads;"
                f" {profile.name} has {profile.registers_per_block} a block"
            )
        if cluster_asked or self.cluster:
            if cluster_asked and self.cluster and cluster != self.cluster:
                refuse(f"cluster {cluster}; the kernel declares {self.cluster}")
            if not profile.cluster_launch:
                refuse(f"a cluster; {profile.name} cannot launch clusters")
            if in_cluster > profile.max_cluster:
                refuse(f"{in_cluster} blocks in a cluster; portable are {profile.max_cluster}")
            if any(g % c for g, c in zip(grid, cluster, strict=True)):
                refuse(f"grid {grid} is no multiple of the cluster {cluster}")
        if cooperative and blocks > active * profile.sm_count:
            refuse(
                f"a cooperative grid of {blocks} blocks is not resident: {profile.name} holds"
                f" {active} on each of {profile.sm_count} SMs, {active * profile.sm_count} in all"
            )


class _Shape:
    def __init__(
        self, grid: tuple[int, ...], block: tuple[int, ...], cluster: tuple[int, ...]
    ) -> None:
        self.grid, self.block, self.cluster = grid, block, cluster


def _three(extent: Sequence[int]) -> tuple[int, ...]:
    return tuple((*(int(n) for n in extent), 1, 1, 1)[:3])


def _product(extent: Sequence[int]) -> int:
    return extent[0] * extent[1] * extent[2]


def _owner_prefix(symbol: str) -> str:
    encoding = symbol[2:] if symbol.startswith("_Z") else f"{len(symbol)}{symbol}"
    return f"Z{encoding}E"
