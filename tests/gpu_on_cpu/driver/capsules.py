"""Put Python functions in the place of the C functions that CuPy's modules import of each other.

A Cython module finds the C functions of another in its ``__pyx_capi__``: capsules that hold an
address and are named by the C signature. Here every such address is replaced, before anyone
imports it, by a small generated C function that calls a Python function and raises what that
raised. What nobody provides raises NotImplementedError, so no call ever reaches CUDA.

The capsules are private to CuPy, which is why one version of it is asked for.
"""

import atexit
import ctypes
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from gpu_on_cpu.driver.entry_points import LOCK
from gpu_on_cpu.driver.host_compiler import shared_library

OBJECT = "PyObject *"

# Type in a capsule's name -> the same type for C without Python's headers, and for ctypes.
TYPES = {
    "int": ("int", ctypes.c_int),
    "CUdevice": ("int", ctypes.c_int),
    "cudaMemcpyKind": ("int", ctypes.c_int),
    "unsigned int": ("unsigned int", ctypes.c_uint),
    "intptr_t": ("intptr_t", ctypes.c_ssize_t),
    "size_t": ("size_t", ctypes.c_size_t),
    "uintmax_t": ("size_t", ctypes.c_size_t),
    "float": ("float", ctypes.c_float),
    OBJECT: ("PyObject *", ctypes.py_object),
}

# The value that tells a caller to look for an exception is not in a capsule's name. In the sources
# it is NULL for objects, -1 for int and 0 for the rest, but for these:
FAILURES = {"streamGetPriority": "0", "deviceGetLimit": "-1"}

# CuPy's own versions of these work without a driver.
KEPT = ("check_status", "get_build_version")

PRELUDE = """
#include <stddef.h>
#include <stdint.h>
typedef struct _object PyObject;
extern PyObject _Py_NoneStruct;
extern void Py_IncRef(PyObject *);
extern void Py_DecRef(PyObject *);
extern PyObject *PyObject_Type(PyObject *);
extern void PyErr_SetObject(PyObject *, PyObject *);

static PyObject *raised;
static int disconnected;
void raise_after_return(PyObject *exception) { Py_IncRef(exception); raised = exception; }
void disconnect(void) { disconnected = 1; }

static int failed(void) {
    PyObject *exception = raised, *type;
    if (!exception) return 0;
    raised = 0;
    type = PyObject_Type(exception);
    PyErr_SetObject(type, exception);
    Py_DecRef(type);
    Py_DecRef(exception);
    return 1;
}
"""

# While the interpreter shuts down (`disconnected`) nothing is called any more.
GLUE = """
{result} (*call_{name})({declaration});
{result} glue_{name}({declaration}) {{
    {result} answer;
    if (disconnected) {{ {when_disconnected} }}
    answer = call_{name}({arguments});
    if (failed()) return {failure};
    return answer;
}}
"""


@dataclass(frozen=True)
class Signature:
    """A C function's types, read from the name of its capsule."""

    name: str
    result: str
    parameters: tuple[str, ...]  # without Cython's own
    optional: bool  # Cython passes one more: a pointer to a struct with optional arguments
    skips_dispatch: bool  # Cython passes one more: an int

    @classmethod
    def parse(cls, name: str, text: str) -> "Signature | None":
        """Return the signature, or None for a variable or for types that no table here has."""
        match = re.fullmatch(r"(.*?)\s*\((.*)\)", text)
        if not match:
            return None
        result, inside = match.groups()
        listed = [] if inside == "void" else re.split(r",\s*", inside)
        parameters = tuple(as_object(p) for p in listed if "__pyx_" not in p or "__pyx_obj" in p)
        if not {result := as_object(result), *parameters} <= set(TYPES):
            return None
        return cls(
            name,
            result,
            parameters,
            any("__pyx_optional_args" in p for p in listed),
            any("__pyx_skip_dispatch" in p for p in listed),
        )

    def c_types(self) -> list[str]:
        """Return the C types of all parameters."""
        types = [TYPES[parameter][0] for parameter in self.parameters]
        return types + ["int"] * self.skips_dispatch + ["void *"] * self.optional

    def callback_type(self) -> Any:
        """Return the ctypes type of the function."""
        types = [TYPES[parameter][1] for parameter in self.parameters]
        types += [ctypes.c_int] * self.skips_dispatch + [ctypes.c_void_p] * self.optional
        return ctypes.PYFUNCTYPE(TYPES[self.result][1], *types)

    def glue(self) -> str:
        """Return the C text of the function that takes the capsule's place."""
        is_object = self.result == OBJECT
        failure = FAILURES.get(self.name, "-1" if self.result == "int" else "0")
        types = self.c_types()
        return GLUE.format(
            name=self.name,
            result=TYPES[self.result][0],
            declaration=", ".join(f"{t} a{i}" for i, t in enumerate(types)) or "void",
            arguments=", ".join(f"a{i}" for i in range(len(types))),
            failure=failure,
            when_disconnected=(
                "Py_IncRef(&_Py_NoneStruct); return &_Py_NoneStruct;" if is_object else "return 0;"
            ),
        )


def as_object(type_name: str) -> str:
    """Return `type_name`, or ``PyObject *`` for an extension class."""
    return OBJECT if "__pyx_obj_" in type_name else type_name.strip()


class OptionalArguments(ctypes.Structure):
    """What Cython passes for one optional integer: how many are given, and it."""

    _fields_ = (("given", ctypes.c_int), ("value", ctypes.c_int))


def replace(module: ModuleType, functions: Mapping[str, Callable[..., Any]]) -> None:
    """Replace every function of `module`, for its Python callers and for its C importers.

    Parameters
    ----------
    module : module
        A Cython module that nobody has imported C functions from yet.
    functions : mapping
        Name -> Python function.

    Raises
    ------
    RuntimeError
        If `functions` names what the module does not have: it is another version of CuPy.
    """
    exported = module.__pyx_capi__
    if unknown := set(functions) - set(exported) - set(vars(module)):
        raise RuntimeError(f"{module.__name__} has no {sorted(unknown)}: is it another CuPy?")
    signatures = [
        signature
        for name, capsule in exported.items()
        if name not in KEPT and (signature := Signature.parse(name, capsule_name(capsule)))
    ]
    source = PRELUDE + "".join(signature.glue() for signature in signatures)
    library = ctypes.PyDLL(str(shared_library(module.__name__ + ".glue.so", source)))
    library.raise_after_return.argtypes = [ctypes.py_object]
    library.raise_after_return.restype = None
    atexit.register(library.disconnect)
    for name, function in functions.items():
        setattr(module, name, function)
    for signature in signatures:
        name = signature.name
        function = functions.get(name) or missing(module, name)
        setattr(module, name, function)
        callback = signature.callback_type()(guarded(function, signature, library))
        slot = ctypes.c_void_p.in_dll(library, f"call_{name}")
        slot.value = ctypes.cast(callback, ctypes.c_void_p).value
        address = ctypes.cast(getattr(library, f"glue_{name}"), ctypes.c_void_p).value
        exported[name] = new_capsule(address, capsule_name(exported[name]), keep=callback)


def guarded(
    function: Callable[..., Any], signature: Signature, library: ctypes.PyDLL
) -> Callable[..., Any]:
    """Return `function` as C calls it: optional arguments unpacked, exceptions handed to C."""
    count = len(signature.parameters)
    nothing = None if signature.result == OBJECT else 0

    def call(*arguments: Any) -> Any:
        try:
            given = arguments[:count]
            if signature.optional and arguments[-1]:
                optional = OptionalArguments.from_address(arguments[-1])
                given += (optional.value,) * (optional.given > 0)
            with LOCK:
                return function(*given)
        except BaseException as error:  # KeyboardInterrupt too belongs to the caller
            library.raise_after_return(error)
            return nothing

    return call


def missing(module: ModuleType, name: str) -> Callable[..., Any]:
    """Return a function that says that the test bed has no such function."""
    sentence = f"{module.__name__.rpartition('.')[2]}.{name}: the test bed has no such function"

    def refuse(*_: Any) -> None:
        raise NotImplementedError(sentence)

    return refuse


_new = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)(
    ("PyCapsule_New", ctypes.pythonapi)
)
_name_of = ctypes.PYFUNCTYPE(ctypes.c_char_p, ctypes.py_object)(
    ("PyCapsule_GetName", ctypes.pythonapi)
)
_kept_forever: list[object] = []  # a capsule owns neither its name nor what it points to


def capsule_name(capsule: object) -> str:
    """Return the C signature that names a capsule."""
    return _name_of(capsule).decode()


def new_capsule(address: int | None, name: str, keep: object) -> object:
    """Return a capsule for a C function, and keep alive what it needs."""
    encoded = name.encode()
    _kept_forever.append((encoded, keep))
    return _new(address, encoded, None)
