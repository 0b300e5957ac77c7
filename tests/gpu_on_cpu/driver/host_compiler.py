"""Small C libraries that join CuPy's compiled code to the Python functions of this folder."""

import hashlib
import subprocess
import tempfile
from pathlib import Path

from gpu_on_cpu.device.build import cache_folder, compiler


def shared_library(name: str, source: str, symbol_version: str | None = None) -> Path:
    """Return a shared library of this C source, compiled unless the cache has it.

    Parameters
    ----------
    name : str
        File name; where other libraries ask for the library by name, theirs.
    source : str
        C text; it includes no header of Python, which need not be installed.
    symbol_version : str, optional
        The version that every symbol carries.
    """
    key = hashlib.sha256(f"{name} {symbol_version} {source}".encode()).hexdigest()[:24]
    library = cache_folder() / f"glue-{key}" / name
    if not library.exists():
        library.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=library.parent) as folder:
            result = Path(folder) / name
            command = [compiler() or "g++", "-shared", "-fPIC", "-O1", "-x", "c", "-"]
            command += ["-o", str(result), f"-Wl,-soname,{name}"]
            if symbol_version:
                script = Path(folder) / "version.map"
                script.write_text(f"{symbol_version} {{ global: *; }};")
                command.append(f"-Wl,--version-script={script}")
            done = subprocess.run(command, input=source, text=True, capture_output=True)
            if done.returncode:
                raise RuntimeError(f"{command[0]} could not compile {name}:\n{done.stderr}")
            result.replace(library)  # whole or not at all, whoever compiles beside us
    return library
