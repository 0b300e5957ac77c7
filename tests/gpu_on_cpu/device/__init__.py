"""Compile an unmodified .cu with g++ and run it on the CPU, one fiber for each CUDA thread."""

from .errors import (
    CompileError,
    DeadlockError,
    DeviceError,
    DivergenceError,
    HangError,
    KernelError,
    LaunchError,
    MemoryFaultError,
    MisalignedError,
    OutOfBoundsError,
    ScopeError,
)
from .module import Kernel, Module, Parameter, compile_module
from .profiles import A100, B200, H100, L4, LAPTOP, PROFILES, T4, DeviceProfile, KernelFacts

__all__ = [
    "A100",
    "B200",
    "H100",
    "L4",
    "LAPTOP",
    "PROFILES",
    "T4",
    "CompileError",
    "DeadlockError",
    "DeviceError",
    "DeviceProfile",
    "DivergenceError",
    "HangError",
    "Kernel",
    "KernelError",
    "KernelFacts",
    "LaunchError",
    "MemoryFaultError",
    "MisalignedError",
    "Module",
    "OutOfBoundsError",
    "Parameter",
    "ScopeError",
    "compile_module",
]
