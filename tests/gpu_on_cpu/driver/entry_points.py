"""The tables of functions that stand in for those of CUDA, by the names CuPy gives them.

Each file of this folder fills them with a decorator, one concept a file::

    @RUNTIME.provides("malloc")
    def allocate(size): ...

A function is called with the arguments CuPy gives, integers for every handle and address, and
answers or raises as CuPy's own would; what it raises reaches the caller of CuPy unchanged.
"""

import threading
from collections.abc import Callable
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])

LOCK = threading.RLock()
"""Held by whoever is inside one of these functions: the fake device does one thing at a time."""


class EntryPoints(dict[str, Callable[..., Any]]):
    """Functions by the name they are called by."""

    def provides(self, *names: str) -> Callable[[Function], Function]:
        """Enter the decorated function under every one of these names."""

        def enter(function: Function) -> Function:
            for name in names:
                assert name not in self, f"{name} is provided twice"
                self[name] = function
            return function

        return enter


RUNTIME = EntryPoints()
"""What ``cupy_backends.cuda.api.runtime`` offers: the CUDA runtime without its ``cuda`` prefix."""

DRIVER = EntryPoints()
"""What ``cupy_backends.cuda.api.driver`` offers: the CUDA driver without its ``cu`` prefix."""

CUBLAS = EntryPoints()
"""C functions of libcublas, by the names in the library."""
