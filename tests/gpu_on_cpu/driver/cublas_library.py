"""A libcublas of our own, with the functions of `cublas` and none else.

CuPy's extension for cuBLAS is linked to ``libcublas.so``. A library of that name, loaded before,
is taken instead; so all of CuPy's own code runs, such as what refuses cuBLAS during a capture. The
functions that CuPy wants and we lack answer CUBLAS_STATUS_NOT_SUPPORTED.
"""

import atexit
import ctypes
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from gpu_on_cpu.driver.cublas import EXECUTION_FAILED, NOT_SUPPORTED, SUCCESS, StatusError
from gpu_on_cpu.driver.entry_points import CUBLAS, LOCK
from gpu_on_cpu.driver.host_compiler import shared_library

# Parameters of each function: p is a pointer or a handle, i an int or enum, l a long long.
PARAMETERS = {
    "cublasCreate_v2": "p",
    "cublasDestroy_v2": "p",
    "cublasGetVersion_v2": "pp",
    "cublasSetStream_v2": "pp",
    "cublasGetStream_v2": "pp",
    "cublasSetPointerMode_v2": "pi",
    "cublasGetPointerMode_v2": "pp",
    "cublasSetMathMode": "pi",
    "cublasGetMathMode": "pp",
    "cublasSgemm_v2": "piiiiippipippi",
    "cublasDgemm_v2": "piiiiippipippi",
    "cublasSgemmEx": "piiiiippiipiippii",
    "cublasGemmEx": "piiiiippiipiippiiii",
    "cublasSgemmStridedBatched": "piiiiippilpilppili",
    "cublasDgemmStridedBatched": "piiiiippilpilppili",
    "cublasGemmStridedBatchedEx": "piiiiippiilpiilppiiliii",
}
C_TYPES = {"p": "void *", "i": "int", "l": "long long"}
CTYPES = {"p": ctypes.c_void_p, "i": ctypes.c_int, "l": ctypes.c_longlong}


PRELUDE = """
static int disconnected;  /* while the interpreter shuts down nothing is called any more */
void disconnect(void) { disconnected = 1; }
"""
TRAMPOLINE = """
int (*call_{name})({declaration});
int {name}({declaration}) {{ return disconnected ? 0 : call_{name}({arguments}); }}
"""

_kept_forever: list[object] = []
_raised: list[BaseException] = []


def trampoline(name: str, letters: str) -> str:
    """Return the C text of a function that calls what ``call_<name>`` points to."""
    return TRAMPOLINE.format(
        name=name,
        declaration=", ".join(f"{C_TYPES[letter]} a{i}" for i, letter in enumerate(letters)),
        arguments=", ".join(f"a{i}" for i in range(len(letters))),
    )


def load(extension: Path) -> None:
    """Compile and load the library that CuPy's extension module will ask for."""
    binary = extension.read_bytes()
    wanted = {name.decode() for name in re.findall(rb"\0(cublas[A-Z]\w+)(?=\0)", binary)}
    (soname,) = {name.decode() for name in re.findall(rb"\0(libcublas\.so\.\d+)(?=\0)", binary)}
    assert set(PARAMETERS) == set(CUBLAS)
    source = PRELUDE + "".join(
        trampoline(name, PARAMETERS[name])
        if name in PARAMETERS
        else f"int {name}(void) {{ return {NOT_SUPPORTED}; }}\n"
        for name in sorted(wanted | set(PARAMETERS))
    )
    path = shared_library(soname, source, symbol_version=soname)
    library = ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
    atexit.register(library.disconnect)
    for name, letters in PARAMETERS.items():
        # CuPy lets go of the interpreter around these calls; CFUNCTYPE takes hold of it again.
        function_type = ctypes.CFUNCTYPE(ctypes.c_int, *(CTYPES[letter] for letter in letters))
        callback = function_type(guarded(CUBLAS[name]))
        slot = ctypes.c_void_p.in_dll(library, f"call_{name}")
        slot.value = ctypes.cast(callback, ctypes.c_void_p).value
        _kept_forever.append(callback)


def guarded(function: Callable[..., None]) -> Callable[..., int]:
    """Return `function` as C calls it: with a status; what it raises is kept for CuPy's error."""

    def call(*arguments: Any) -> int:
        try:
            with LOCK:
                function(*(argument or 0 for argument in arguments))
            return SUCCESS
        except StatusError as status:
            return int(status.args[0])
        except BaseException as error:  # KeyboardInterrupt too belongs to the caller
            _raised.append(error)
            return EXECUTION_FAILED

    return call


def raise_what_was_raised(module: ModuleType) -> None:
    """Let CuPy's CUBLASError, when it is about to be raised, give way to the exception kept."""

    def new(cls: type, *arguments: object) -> BaseException:
        return _raised.pop() if _raised else RuntimeError.__new__(cls, *arguments)

    module.CUBLASError.__new__ = new
