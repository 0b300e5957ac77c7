"""The CUDA kernels: finding their sources, compiling them when needed, launching them checked.

A built wheel carries `cuda/` as ``cupy_lstm/cuda``. An editable install has no such copy: there
the sources are next to the package, at the top of the source tree.

This is the only module that compiles CUDA. A kernel is a template in a real file; its parameters
are read from that file, so that every launch is checked against what the kernel really takes:
CuPy itself checks neither number nor type of the arguments, and ignores strides.
"""

import re
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy

from cupy_lstm.backend import Array

PACKAGE = Path(__file__).resolve().parent

# Other projects install a package called `cuda` too, so in site-packages a folder of that name
# beside this package can be theirs: only a folder with this file in it is ours.
LANDMARK = "cell.cuh"

OPTIONS = ("-std=c++17",)
BLOCK = 256
"""Threads of a block in kernels that give each item a thread."""

VECTOR_BYTES = 16
"""The widest load of a thread."""

UNASKED_SHARED_BYTES = 48 * 1024
"""Shared memory that every kernel may have; for more it must ask once on each device."""

_INCLUDE = re.compile(r'#include "(.*)"')
_DTYPES = {
    "float": "float32",
    "double": "float64",
    "__half": "float16",
    "bool": "bool",
    "int": "int32",
    "long long": "int64",
    "unsigned int": "uint32",
    "unsigned long long": "uint64",
}
SCALARS = {
    "float32": "float",
    "float64": "double",
    "float16": "__half",
    "bfloat16": "__nv_bfloat16",
}
"""The C++ type of each storage dtype."""

SUMMED = {"float": "float", "double": "double", "__half": "float", "__nv_bfloat16": "float"}
"""The C++ type of sums for each storage type, as `Sum` of scalar.cuh."""


def source_folder() -> Path:
    """Return the folder that holds the CUDA sources (``*.cu`` and ``*.cuh``).

    Returns
    -------
    pathlib.Path
        ``cupy_lstm/cuda`` of a built install, else ``cuda`` of the source tree.

    Raises
    ------
    FileNotFoundError
        If neither holds them; the message names both places.
    """
    candidates = (PACKAGE / "cuda", PACKAGE.parent / "cuda")
    for folder in candidates:
        if (folder / LANDMARK).is_file():
            return folder
    places = " nor in ".join(str(folder) for folder in candidates)
    raise FileNotFoundError(
        f"the CUDA sources of cupy_lstm (a folder with {LANDMARK}) are neither in {places}: "
        "install the package again"
    )


def source(name: str) -> str:
    """Return the text of one CUDA source file.

    Parameters
    ----------
    name : str
        File name, such as ``"cell.cuh"``.

    Raises
    ------
    FileNotFoundError
        If there is no such file (the message lists those there are), or no sources at all.
    """
    folder = source_folder()
    files = sorted(path.name for path in folder.glob("*.cu*"))
    if name not in files:
        raise FileNotFoundError(f"there is no CUDA source {name!r} in {folder}, only {files}")
    return (folder / name).read_text(encoding="utf-8")


@cache
def resolved(name: str) -> str:
    """Return a source with every ``#include "..."`` of ours replaced by its text, each once.

    CuPy's cache of compiled kernels is keyed by the source alone: a changed header that was
    found through ``-I`` would go unnoticed.
    """
    included: set[str] = set()

    def expand(file: str) -> str:
        included.add(file)
        lines = []
        for number, line in enumerate(source(file).splitlines(), 1):
            match = _INCLUDE.match(line)
            if match is None:
                lines.append("" if line.startswith("#pragma once") else line)
            elif match[1] not in included:
                lines += [f'#line 1 "{match[1]}"', expand(match[1]), f'#line {number + 1} "{file}"']
        return "\n".join(lines)

    return f'#line 1 "{name}"\n{expand(name)}\n'


class Parameter(NamedTuple):
    """A parameter of a kernel: its name, whether it is a pointer, and the dtype behind it."""

    name: str
    is_pointer: bool
    dtype: numpy.dtype[Any]


def signature(file: str, function: str, template: tuple[str, ...]) -> list[Parameter]:
    """Return the parameters of a kernel instantiation, read from its source.

    Parameters
    ----------
    file, function : str
        Where the kernel is, and what it is called.
    template : tuple of str
        Template arguments: ``("float", "4")``.
    """
    text = re.sub(r"//.*", "", source(file))
    bounds = r"(?:PLACED\s+)?(?:__launch_bounds__\s*\([^)]*\)\s*)?"
    found = re.search(
        rf"template\s*<([^>]*)>\s*__global__\s+void\s+{bounds}{function}\s*\(([^)]*)\)", text
    )
    if found is None:
        raise ValueError(f"there is no kernel template {function!r} in {file}")
    names = [declaration.split()[-1] for declaration in found[1].split(",")]
    types = dict(zip(names, template, strict=True))
    parameters = []
    for declaration in found[2].split(","):
        words = declaration.replace("*", " * ").split()
        kind = " ".join(word for word in words[:-1] if word not in ("const", "__restrict__", "*"))
        for name, argument in types.items():
            kind = re.sub(rf"\b{name}\b", argument, kind)
        summed = re.fullmatch(r"Sum<(.*)>", kind)
        dtype = SUMMED[summed[1]] if summed else kind
        parameters.append(Parameter(words[-1], "*" in words, dtype_of(dtype)))
    return parameters


def dtype_of(kind: str) -> "numpy.dtype[Any]":
    """Return the dtype of a C++ scalar type."""
    if kind == "__nv_bfloat16":
        import ml_dtypes

        kind16: numpy.dtype[Any] = numpy.dtype(ml_dtypes.bfloat16)
        return kind16
    return numpy.dtype(_DTYPES[kind])


class Kernel:
    """One instantiation of a kernel template, compiled for a device when it is first needed.

    Parameters
    ----------
    file, function : str
        Where the kernel is, and what it is called.
    template : str
        Template arguments.
    options : tuple of str
        More options of the compiler, such as ``-DCLUSTER=4``.
    cooperative : bool
        Whether all blocks of a launch run at the same time; such a kernel may wait for them.
    """

    def __init__(
        self,
        file: str,
        function: str,
        *template: str,
        options: tuple[str, ...] = (),
        cooperative: bool = False,
    ) -> None:
        self.file = file
        self.options = OPTIONS + options
        self.cooperative = cooperative
        self.expression = f"{function}<{', '.join(template)}>"
        self.parameters = signature(file, function, template)
        self._functions: dict[int, Any] = {}
        self._asked: set[int] = set()  # devices where it may use all shared memory there is
        self._resident: dict[tuple[int, int, int], int] = {}

    def launch(self, items: int, *arguments: Any) -> None:
        """Run on the current device and stream, with one thread for each item.

        Parameters
        ----------
        items : int
            Work items; nothing runs for zero.
        *arguments : array, Rows, numpy.uintp, int, float or None
            In the order of the kernel's parameters. Arrays or addresses for pointers, None for a
            null pointer; numbers are converted to the exact type.

        Raises
        ------
        TypeError, ValueError
            If an argument does not fit its parameter: count, dtype, device, contiguity.
        """
        device, converted = self._checked(arguments)
        if items:
            blocks = min(-(-items // BLOCK), 2**31 - 1)
            self.function(device)((blocks,), (BLOCK,), converted)

    def launch_blocks(
        self, grid: tuple[int, int], threads: int, shared_bytes: int, *arguments: Any
    ) -> None:
        """Run on the current device and stream with these blocks.

        Parameters
        ----------
        grid : tuple of int
            Blocks along x and y; nothing runs if there are none.
        threads : int
            Of a block.
        shared_bytes : int
            Dynamic shared memory of a block; as much as the device lets a block ask for.
        *arguments
            As for `launch`.

        Raises
        ------
        TypeError, ValueError
            As for `launch`.
        RuntimeError
            If the launch is cooperative and the device does not hold all blocks at once.
        """
        device, converted = self._checked(arguments)
        if 0 in grid:
            return
        function = self.function(device)
        if shared_bytes > UNASKED_SHARED_BYTES and device not in self._asked:
            # For all there is: threads with layers of different sizes share a kernel. Which part
            # of the L1 cache becomes shared memory is left to the driver, which gives a launch at
            # least what it asks for; a preference (the carve-out) would be a hint to it, no more.
            function.max_dynamic_shared_size_bytes = _most_shared_bytes(device)
            self._asked.add(device)
        if self.cooperative:
            self._check_residency(device, grid, threads, shared_bytes)
        function(grid, (threads,), converted, shared_mem=shared_bytes)

    def _check_residency(
        self, device: int, grid: tuple[int, int], threads: int, shared_bytes: int
    ) -> None:
        """Raise if the blocks do not all fit on the device: CuPy would only launch fewer."""
        key = device, threads, shared_bytes
        if key not in self._resident:
            import cupy

            each = cupy.cuda.driver.occupancyMaxActiveBlocksPerMultiprocessor(
                self.function(device).kernel.ptr, threads, shared_bytes
            )
            most = cupy.cuda.Device(device).attributes["MultiProcessorCount"]
            self._resident[key] = each * most
        if grid[0] * grid[1] > self._resident[key]:
            raise RuntimeError(
                f"{self.expression} needs {grid[0] * grid[1]} blocks at the same time, but device "
                f"{device} holds {self._resident[key]}: force another engine, such as "
                "cupy_lstm.engine('stepwise')"
            )

    def _checked(self, arguments: tuple[Any, ...]) -> tuple[int, list[Any]]:
        """Return the current device, and the arguments as the kernel takes them."""
        if len(arguments) != len(self.parameters):
            raise TypeError(
                f"{self.expression} takes {len(self.parameters)} arguments, "
                f"received {len(arguments)}"
            )
        import cupy

        device: int = cupy.cuda.device.get_device_id()
        return device, [
            self._converted(parameter, argument, device)
            for parameter, argument in zip(self.parameters, arguments, strict=True)
        ]

    def function(self, device: int) -> Any:
        """Return the compiled kernel for a device, a ``cupy.RawKernel``."""
        if device not in self._functions:
            import cupy

            module = cupy.RawModule(
                code=resolved(self.file),
                options=self.options,
                name_expressions=(self.expression,),
                enable_cooperative_groups=self.cooperative,
            )
            try:
                self._functions[device] = module.get_function(self.expression)
            except RuntimeError as error:
                if "CUDA headers" not in str(error):
                    raise
                raise RuntimeError(
                    f"{self.file} cannot be compiled without the headers of the CUDA toolkit: "
                    "pip install 'cupy_lstm[cuda12x]' (or cuda13x for CUDA 13)"
                ) from error
        return self._functions[device]

    def _converted(self, parameter: Parameter, argument: Any, device: int) -> Any:
        name, is_pointer, dtype = parameter
        where = f"argument {name} of {self.expression}"
        if not is_pointer:
            kinds = (int, float) if dtype.kind == "f" else (int, numpy.integer)
            if isinstance(argument, bool) or not isinstance(argument, kinds):
                raise TypeError(f"{where} must be a {dtype.name}, received {argument!r}")
            return dtype.type(argument)
        if argument is None:
            return numpy.uintp(0)
        if isinstance(argument, numpy.uintp):
            return argument
        strided = isinstance(argument, Rows | Strided)
        array = argument.array if strided else argument
        if array.dtype != dtype:
            raise TypeError(f"{where} must have dtype {dtype}, received {array.dtype}")
        if array.device.id != device:
            raise ValueError(
                f"{where} is on device {array.device.id}, but the current device is {device}"
            )
        if not strided and not array.flags.c_contiguous:
            raise ValueError(f"{where} must be contiguous, received strides {array.strides}")
        return array


def _most_shared_bytes(device: int) -> int:
    """Return the most shared memory a block of a device can ask for."""
    import cupy

    most: int = cupy.cuda.Device(device).attributes["MaxSharedMemoryPerBlockOptin"]
    return most


class Rows:
    """An array [D,...] that is contiguous within each direction, for a kernel to step through.

    Attributes
    ----------
    array : array [D,...]
        Passed to the kernel as the pointer to its first element.
    stride : int
        Elements from one direction to the next.
    """

    def __init__(self, array: Array) -> None:
        shape, strides, itemsize = array.shape, array.strides, array.itemsize
        expected = itemsize
        for size, stride in zip(shape[:0:-1], strides[:0:-1], strict=True):
            # The stride of an axis of one element says nothing, nor do those of an empty array.
            if stride != expected and size != 1 and array.size:
                raise ValueError(f"each direction must be contiguous, received strides {strides}")
            expected *= size
        self.array = array
        self.stride = (strides[0] if shape[0] > 1 else expected) // itemsize

    def is_aligned(self, width: int) -> bool:
        """Say whether vectors of `width` elements can be loaded anywhere a row begins."""
        aligned: bool = self.array.data.ptr % (width * self.array.itemsize) == 0
        return aligned and self.stride % width == 0


class Strided:
    """An array of any strides, for a kernel that is given them beside it.

    Attributes
    ----------
    array : array
        Passed to the kernel as the pointer to its first element.
    strides : tuple of int
        Elements from one index of an axis to the next.
    """

    def __init__(self, array: Array) -> None:
        self.array = array
        self.strides = tuple(stride // array.itemsize for stride in array.strides)


def vector_width(features: int, *rows: Rows | None) -> int:
    """Return how many neighbouring elements of all these rows one instruction can move."""
    given = [one for one in rows if one is not None]
    largest = max(one.array.itemsize for one in given)
    for width in (8, 4, 2):
        fits = width * largest <= VECTOR_BYTES and features % width == 0
        if fits and all(one.is_aligned(width) for one in given):
            return width
    return 1
