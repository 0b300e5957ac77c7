"""Modules, functions and launches: the part of the driver that runs kernels."""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod

from gpu_on_cpu.device import Kernel, Module
from gpu_on_cpu.driver import devices
from gpu_on_cpu.driver.entry_points import DRIVER
from gpu_on_cpu.driver.errors import DeviceMisuseError, Status, driver_error
from gpu_on_cpu.driver.memory import SPACE, Block
from gpu_on_cpu.driver.nvrtc import compiled_module
from gpu_on_cpu.driver.recorder import Launch
from gpu_on_cpu.driver.schedule import schedule
from gpu_on_cpu.driver.streams import new_handle, stream_of, submit

# Numbers of CUfunction_attribute.
MAX_THREADS = 0
STATIC_SHARED = 1
LOCAL_BYTES = 3
REGISTERS = 4
ARCHITECTURES = (5, 6)  # of the PTX, of the binary
MAX_DYNAMIC_SHARED = 8
CARVEOUT = 9
CLUSTER_REQUIRED = 10
CLUSTER_SHAPE = (11, 12, 13)
NON_PORTABLE_CLUSTER = 14

Three = tuple[int, int, int]


@dataclass(eq=False)
class Function:
    """A kernel as it was loaded on one device, with the attributes that can be set."""

    kernel: Kernel
    device: int
    attributes: dict[int, int] = field(default_factory=dict)

    @property
    def max_dynamic_shared(self) -> int:
        """Bytes of dynamic shared memory a launch may ask for."""
        profile = devices.device(self.device).profile
        default = profile.shared_per_block - self.kernel.static_shared_bytes
        return self.attributes.get(MAX_DYNAMIC_SHARED, default)

    def resident_blocks(self, threads: int, shared_bytes: int) -> int:
        """Return how many blocks one multiprocessor holds."""
        profile = devices.device(self.device).profile
        return profile.max_active_blocks(self.kernel.facts, threads, shared_bytes)


@dataclass(eq=False)
class Loaded:
    """A module as it was loaded on one device."""

    module: Module
    device: int


_modules: dict[int, Loaded] = {}
_functions: dict[int, Function] = {}


def _module(handle: int) -> Loaded:
    if handle not in _modules:
        raise driver_error(Status.INVALID_HANDLE, f"there is no module {handle:#x}")
    return _modules[handle]


def _function(handle: int) -> Function:
    if handle not in _functions:
        raise driver_error(Status.INVALID_HANDLE, f"there is no function {handle:#x}")
    return _functions[handle]


# --- modules and functions -----------------------------------------------------------------------


@DRIVER.provides("moduleLoadData")
def load_module(image: bytes) -> int:
    """Load what the stand-in for NVRTC returned as the compiled code."""
    handle = new_handle()
    _modules[handle] = Loaded(compiled_module(image), devices.current())
    return handle


@DRIVER.provides("moduleUnload")
def unload_module(handle: int) -> None:
    """Forget a module; its code and its functions stay."""
    _module(handle)
    del _modules[handle]


@DRIVER.provides("moduleGetFunction")
def function_of_module(handle: int, name: str) -> int:
    """Return a kernel by its name or mangled name."""
    loaded = _module(handle)
    try:
        kernel = loaded.module.kernel(name)
    except KeyError as error:
        raise driver_error(Status.NOT_FOUND, str(error.args[0])) from None
    function = new_handle()
    _functions[function] = Function(kernel, loaded.device)
    return function


@DRIVER.provides("moduleGetGlobal")
def variable_of_module(handle: int, name: str) -> int:
    """Return the address of a variable of a module."""
    loaded = _module(handle)
    try:
        address, size = loaded.module.symbol(name)
    except KeyError as error:
        raise driver_error(Status.NOT_FOUND, str(error.args[0])) from None
    SPACE.adopt(address, size, loaded.device, "module")
    return address


@DRIVER.provides("funcGetAttribute")
def function_attribute(number: int, handle: int) -> int:
    """Return an attribute by its number; -1 for those the bed knows nothing of.

    Registers are those the kernel was given by the test, and no bytes are ever spilled: neither is
    known to a C++ compiler.
    """
    function = _function(handle)
    major, minor = devices.device(function.device).profile.compute_capability
    kernel = function.kernel
    cluster = kernel.cluster or (0, 0, 0)
    known = {
        MAX_THREADS: kernel.max_threads,
        STATIC_SHARED: kernel.static_shared_bytes,
        2: 0,
        LOCAL_BYTES: 0,
        REGISTERS: kernel.registers,
        7: 0,
        MAX_DYNAMIC_SHARED: function.max_dynamic_shared,
        CARVEOUT: -1,
        CLUSTER_REQUIRED: int(kernel.cluster is not None),
        NON_PORTABLE_CLUSTER: 0,
        **dict.fromkeys(ARCHITECTURES, 10 * major + minor),
        **dict(zip(CLUSTER_SHAPE, cluster, strict=True)),
    }
    return function.attributes.get(number, known.get(number, -1))


@DRIVER.provides("funcSetAttribute")
def set_function_attribute(handle: int, number: int, value: int) -> None:
    """Set an attribute, if the device allows it."""
    function = _function(handle)
    if number == MAX_DYNAMIC_SHARED:
        profile = devices.device(function.device).profile
        allowed = profile.shared_per_block_optin - function.kernel.static_shared_bytes
        if not 0 <= value <= allowed:
            raise driver_error(
                Status.INVALID_VALUE,
                f"{value} bytes of dynamic shared memory for {function.kernel.name}; "
                f"{profile.name} allows {allowed}",
            )
    elif number not in (CARVEOUT, NON_PORTABLE_CLUSTER):
        raise driver_error(Status.INVALID_VALUE, f"attribute {number} cannot be set")
    function.attributes[number] = value


@DRIVER.provides("occupancyMaxActiveBlocksPerMultiprocessor")
def resident_blocks(handle: int, threads: int, shared_bytes: int) -> int:
    """Return how many blocks of a kernel one multiprocessor holds."""
    return _function(handle).resident_blocks(threads, shared_bytes)


@DRIVER.provides("occupancyMaxPotentialBlockSize")
def best_block(handle: int, shared_bytes: int, limit: int) -> tuple[int, int]:
    """Return the smallest grid that fills the device, and the block size with most threads."""
    function = _function(handle)
    largest = min(limit or 1024, function.kernel.max_threads)
    sizes = range(32, largest + 1, 32)
    block = max(sizes, key=lambda size: (size * function.resident_blocks(size, shared_bytes), size))
    multiprocessors = devices.device(function.device).profile.sm_count
    return function.resident_blocks(block, shared_bytes) * multiprocessors, block


# --- launches ------------------------------------------------------------------------------------


@DRIVER.provides("launchKernel")
def launch_kernel(
    handle: int,
    grid_x: int,
    grid_y: int,
    grid_z: int,
    block_x: int,
    block_y: int,
    block_z: int,
    shared_bytes: int,
    stream: int,
    arguments: int,
    extra: int,
) -> None:
    """Launch a kernel on a stream."""
    grid, block = (grid_x, grid_y, grid_z), (block_x, block_y, block_z)
    _launch(handle, grid, block, shared_bytes, stream, arguments, cooperative=False)


@DRIVER.provides("launchCooperativeKernel")
def launch_cooperative_kernel(
    handle: int,
    grid_x: int,
    grid_y: int,
    grid_z: int,
    block_x: int,
    block_y: int,
    block_z: int,
    shared_bytes: int,
    stream: int,
    arguments: int,
) -> None:
    """Launch a kernel whose blocks all run at the same time."""
    grid, block = (grid_x, grid_y, grid_z), (block_x, block_y, block_z)
    _launch(handle, grid, block, shared_bytes, stream, arguments, cooperative=True)


def _launch(
    handle: int,
    grid: Three,
    block: Three,
    shared_bytes: int,
    stream: int,
    arguments: int,
    cooperative: bool,
) -> None:
    function = _function(handle)
    _require_launchable(function, grid, block, shared_bytes, stream, cooperative)
    entry = Launch(
        function.kernel.name, grid, block, shared_bytes, stream, function.device, cooperative
    )
    submit(stream, entry, _runner(function, entry, _copied(function.kernel, arguments)))


def _require_launchable(
    function: Function, grid: Three, block: Three, shared_bytes: int, stream: int, cooperative: bool
) -> None:
    """Raise what the driver would for a launch that the device cannot do."""
    kernel, profile = function.kernel, devices.device(function.device).profile
    threads = prod(block)
    place = f"{kernel.name} on {profile.name}"
    if {function.device, stream_of(stream).device} != {devices.current()}:
        raise driver_error(
            Status.INVALID_HANDLE,
            f"{kernel.name} was loaded on device {function.device}, its stream is of device "
            f"{stream_of(stream).device}, and device {devices.current()} is current",
        )
    if (
        not all(map(int.__le__, (1, 1, 1), grid))
        or not all(map(int.__le__, grid, (2**31 - 1, 65535, 65535)))
        or not all(map(int.__le__, block, (1024, 1024, 64)))
        or not 1 <= threads <= profile.max_threads_per_block
    ):
        raise driver_error(Status.INVALID_VALUE, f"{place}: a grid of {grid} blocks of {block}")
    if shared_bytes > function.max_dynamic_shared:
        raise driver_error(
            Status.INVALID_VALUE,
            f"{place}: {shared_bytes} bytes of dynamic shared memory, "
            f"{function.max_dynamic_shared} are allowed; more needs the attribute "
            "max_dynamic_shared_size_bytes",
        )
    resident = function.resident_blocks(threads, shared_bytes)
    if not resident:
        raise driver_error(
            Status.LAUNCH_OUT_OF_RESOURCES,
            f"{place}: not one block fits ({threads} threads of at most {kernel.max_threads}, "
            f"{kernel.registers} registers each, {kernel.static_shared_bytes + shared_bytes} "
            "bytes of shared memory)",
        )
    if cooperative and prod(grid) > resident * profile.sm_count:
        raise driver_error(
            Status.COOPERATIVE_LAUNCH_TOO_LARGE,
            f"{place}: {prod(grid)} blocks, but {resident} on each of {profile.sm_count} "
            "multiprocessors are resident",
        )
    if kernel.cluster and (
        cooperative
        or not profile.cluster_launch
        or prod(kernel.cluster) > profile.max_cluster
        or any(blocks % size for blocks, size in zip(grid, kernel.cluster, strict=True))
    ):
        raise driver_error(
            Status.INVALID_CLUSTER_SIZE,
            f"{place}: clusters of {kernel.cluster} in {grid} blocks"
            + " of a cooperative launch" * cooperative,
        )


def _copied(kernel: Kernel, arguments: int) -> list[ctypes.Array[ctypes.c_char]]:
    """Copy the values of all arguments, as the driver does when a launch is asked for."""
    count = len(kernel.parameters)
    pointers = (ctypes.c_void_p * count).from_address(arguments) if count else ()
    return [
        ctypes.create_string_buffer(ctypes.string_at(pointer, parameter.size), parameter.size)
        for pointer, parameter in zip(pointers, kernel.parameters, strict=True)
    ]


def _runner(
    function: Function, launch: Launch, values: list[ctypes.Array[ctypes.c_char]]
) -> Callable[[], None]:
    def run() -> None:
        used = _memory_used(function, values)
        chosen = schedule()
        function.kernel.launch(
            launch.grid,
            launch.block,
            launch.shared_bytes,
            [ctypes.addressof(value) for value in values],
            cooperative=launch.cooperative,
            order=chosen.order,
            seed=chosen.next_seed(),
            profile=devices.device(function.device).profile,
        )
        for block in used:
            block.check_guards(f"kernel {launch.name}")

    return run


def _memory_used(function: Function, values: list[ctypes.Array[ctypes.c_char]]) -> list[Block]:
    """Return the blocks that the arguments point into.

    A structure may hold pointers anywhere, and garbage: CuPy passes indexers it has not filled. Its
    first word is checked like a pointer if it is one; the others only tell whose guards to look at.

    Raises
    ------
    DeviceMisuseError
        If what a pointer points to was freed, belongs to another device, or is no such memory.
    """
    used: dict[int, Block] = {}
    for number, (value, parameter) in enumerate(
        zip(values, function.kernel.parameters, strict=True)
    ):
        what = f"argument {number} of {function.kernel.name}"
        words = len(value) // 8
        for index, address in enumerate((ctypes.c_uint64 * words).from_buffer(value)):
            block = SPACE.find(address)
            if block is not None and index == 0:
                # An empty view may begin right behind its memory.
                start = address - (address == block.end)
                SPACE.check(start, 1 if block.bytes else 0, what, function.device)
            elif block is None and parameter.kind == "p" and address:
                raise DeviceMisuseError(f"{what}: {address:#x} is no memory of any device")
            if block is not None and block.live:
                used[block.address] = block
    return list(used.values())
