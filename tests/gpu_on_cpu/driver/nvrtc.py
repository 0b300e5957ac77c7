"""The stand-in for NVRTC: every kernel, the user's and CuPy's own, is compiled with g++.

CuPy gets a token for the compiled code, and hands it to the driver when it loads the module.
"""

from typing import Any

from gpu_on_cpu.device import CompileError, Module, compile_module

VERSION = (12, 9)

_compiled: dict[bytes, Module] = {}


def compiled_module(token: bytes) -> Module:
    """Return the module that a token stands for."""
    return _compiled[token]


class Program:
    """What CuPy's private ``_NVRTCProgram`` does."""

    def __init__(
        self,
        src: str | bytes,
        name: str = "default_program",
        headers: tuple[str, ...] = (),
        include_names: tuple[str, ...] = (),
        name_expressions: tuple[str, ...] | None = None,
        method: str = "ptx",
    ) -> None:
        self.source = src.decode() if isinstance(src, bytes) else src
        self.name = name or "kernel.cu"
        self.name_expressions = tuple(name_expressions or ())

    def compile(
        self, options: tuple[str, ...] = (), log_stream: Any = None
    ) -> tuple[bytes, dict[str, str] | None]:
        """Return a token and the mangled name of every name expression.

        Raises
        ------
        cupy.cuda.compiler.CompileException
            With what g++ says.
        """
        if not self.source:  # CuPy asks for the version of the compiler
            return b"// g++", None
        try:
            module = compile_module(self.source, options, self.name_expressions, filename=self.name)
        except CompileError as error:
            from cupy.cuda.compiler import CompileException

            raise CompileException(str(error), self.source, self.name, options, "nvrtc") from None
        token = f"gpu_on_cpu {len(_compiled)} {module.path.name}".encode()
        _compiled[token] = module
        mapping = {name: module.lowered_name(name) for name in self.name_expressions}
        return token, mapping or None


def take_the_place_of_cupys() -> None:
    """Let CuPy compile with `Program`; it must be imported, and have compiled nothing yet."""
    from cupy.cuda import compiler

    compiler._NVRTCProgram = Program
    compiler._nvrtc_version = VERSION
