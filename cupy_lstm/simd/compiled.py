"""The kernels, compiled for this host: which they are, for which vectors, and where they are kept.

A kernel is compiled once for a dtype, whatever the sizes of a layer, and kept on disk under a key
of the host, Numba's version and the text of all sources of kernels, because Numba alone looks at
one file only.
"""

import hashlib
import os
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any

import numba
from llvmlite import binding
from numba import types
from numba.core import caching
from numba.core.registry import cpu_target

from cupy_lstm.simd import (
    backward,
    forward,
    input_gradient,
    matrix,
    outer_products,
    packing,
    programs,
)
from cupy_lstm.simd.amx import backward as amx_backward
from cupy_lstm.simd.amx import forward as amx_forward
from cupy_lstm.simd.amx import packing as amx_packing
from cupy_lstm.simd.amx import products as amx_products
from cupy_lstm.simd.amx.unit import available, fits_unit
from cupy_lstm.simd.vector import Lanes, LanesType

KERNELS = (
    programs.meet_others,
    forward.forward_sweep,
    matrix.copy_rows,
    matrix.project_steps,
    backward.backward_sweep,
    outer_products.add_outer_products,
    input_gradient.add_input_gradient,
    packing.pack_by_units,
    packing.unpack_by_units,
    packing.pack_bias,
    packing.unpack_bias,
    packing.pack_gate_rows,
    packing.pack_columns,
    packing.pack_columns_transposed,
)
"""The kernels that programs call, each with a `Lanes` and the address of a job."""

TILE_KERNELS = (
    amx_packing.split_by_units,
    amx_packing.split_by_columns,
    amx_forward.forward_tiles,
    amx_backward.backward_tiles,
    amx_products.add_tile_products,
    amx_products.add_tile_input_gradient,
)
"""Those that use the matrix unit, of float32 only."""


def kernels_for(lanes: Lanes) -> tuple[Any, ...]:
    """Return the kernels that an engine on this host can need for a kind of vector."""
    return KERNELS + (TILE_KERNELS if fits_unit(lanes) and available() else ())


ROUTINES = {
    programs.begin: types.int64(types.int64),
    programs.finish: types.void(types.int64),
    programs.serve: types.void(types.int64, types.int64),
    programs.fill: types.void(types.int64, types.int64),
}
"""What Python itself calls, and what it takes."""


@cache
def host_lanes(dtype: str) -> Lanes:
    """Return the kind of vector that fits this host's registers."""
    return lanes_for(dtype, binding.get_host_cpu_features(), binding.get_default_triple())


def lanes_for(dtype: str, features: "dict[str, bool]", triple: str) -> Lanes:
    """Return the kind of vector that fits a host.

    Parameters
    ----------
    dtype : str
        ``"float32"`` or ``"float64"``.
    features : dict of bool
        Features of the host by LLVM's names.
    triple : str
        LLVM's name of the host.
    """
    size = 4 if dtype == "float32" else 8
    if features.get("avx512f"):
        return Lanes(dtype, 64 // size, 6)
    if features.get("avx2"):
        return Lanes(dtype, 32 // size, 3)
    # NEON has 32 registers of 16 bytes, SSE has 16.
    return Lanes(dtype, 16 // size, 6 if triple.startswith(("aarch64", "arm64")) else 3)


_compiling = Lock()
if hasattr(os, "register_at_fork"):
    # A child of a thread that does not compile would wait for ever for one that does.
    os.register_at_fork(
        before=_compiling.acquire,
        after_in_parent=_compiling.release,
        after_in_child=_compiling.release,
    )
_compiled: dict[Any, Any] = {}


def kernel(function: Any, lanes: Lanes) -> int:
    """Return the address of a kernel of `kernels_for` a kind of vector.

    It is compiled, or read from disk, once.
    """
    key = function.__name__, lanes
    if key not in _compiled:
        with _compiling:
            if key not in _compiled:
                signature = types.void(LanesType(lanes), types.int64)
                result = _compile(function, signature, lanes.dtype)
                name = result.fndesc.llvm_func_name
                _compiled[key] = result.library.get_pointer_to_function(name)
    address: int = _compiled[key]
    return address


def routine(function: Any) -> Any:
    """Return a function of `ROUTINES`, ready to be called; compiled, or read from disk, once."""
    key = function.__name__
    if key not in _compiled:
        with _compiling:
            if key not in _compiled:
                _compile(function, ROUTINES[function])
                _compiled[key] = function
    return _compiled[key]


def _compile(function: Any, signature: Any, dtype: str = "") -> Any:
    """Compile a function; say so for kernels of a dtype, which take a while."""
    kept = _kept(function, signature)
    if dtype and (kept is None or not kept.holds()):
        _announce(dtype, "nowhere" if kept is None else kept.cache_path)
    if kept is not None:
        function._cache = kept
    try:
        function.compile(signature)
    except Exception:  # a full disk, or half a file, costs the copy, not the kernel
        function._cache = caching.NullCache()
        function.compile(signature)
    return function.overloads[signature.args]


_announced: set[str] = set()


def _announce(dtype: str, place: str) -> None:
    """Say once that there is something to wait for."""
    if dtype in _announced:
        return
    _announced.add(dtype)
    print(
        f"cupy_lstm: compiling the {dtype} kernels of the CPU, a few seconds, once "
        f"(kept in {place})",
        file=sys.stderr,
    )


@cache
def source_hash() -> str:
    """Return a hash of all sources of kernels; an empty one where they are no files."""
    digest = hashlib.sha256()
    paths = [path for path in sorted(Path(__file__).parent.rglob("*.py")) if path.is_file()]
    for path in paths:
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest() if paths else ""


class _AllSources:
    """A cache of Numba's that is stale as soon as any source of a kernel has changed."""

    def get_source_stamp(self) -> str:
        return source_hash()


class _UserProvided(_AllSources, caching.UserProvidedCacheLocator):
    pass


class _InTree(_AllSources, caching.InTreeCacheLocator):
    pass


class _UserWide(_AllSources, caching.UserWideCacheLocator):
    pass


class _KernelCacheImpl(caching.CompileResultCacheImpl):
    _locator_classes = [_UserProvided, _InTree, _UserWide]  # noqa: RUF012 - Numba's own name


class _KernelCache(caching.FunctionCache):
    """Numba's cache, with files of its own for each version, signature and kind of host.

    Numba gives all of them one index, which it writes before the code it names. Of two processes
    that compile at once, one could then find code of an older version under the name of the new
    one, or of another signature: kernels that do not fit their jobs.
    """

    _impl_class = _KernelCacheImpl

    def __init__(self, function: Any, signature: Any) -> None:
        super().__init__(function)
        self._index = self._index_key(signature, cpu_target.target_context.codegen())
        base = self._impl.filename_base  # the function, its line, and the version of Python
        self._ours = f"{base}-{source_hash()[:12]}-"
        name, _, line = base.rpartition("-")
        self._all = f"{name}-*.{line.partition('.')[2]}-*.nb[ic]"
        key = hashlib.sha256(repr((self._index, numba.__version__)).encode()).hexdigest()[:12]
        self._cache_file = caching.IndexDataCacheFile(
            self._cache_path, self._ours + key, self._impl.locator.get_source_stamp()
        )

    def holds(self) -> bool:
        """Whether the kernel can be read from disk; a damaged index is emptied."""
        try:
            return self._index in self._cache_file._load_index()
        except Exception:  # what unpickling half a file raises is not foreseeable
            with suppress(OSError):
                self.flush()
            return False

    def load_overload(self, signature: Any, target: Any) -> Any:
        """Return what is kept; None where it is damaged, too: then it is compiled and kept anew."""
        try:
            return super().load_overload(signature, target)
        except Exception:
            return None

    def save_overload(self, signature: Any, result: Any) -> None:
        """Keep what was compiled, and remove what other versions have left of this kernel."""
        super().save_overload(signature, result)
        for path in Path(self._cache_path).glob(self._all):
            if not path.name.startswith(self._ours):
                with suppress(OSError):
                    path.unlink()


def _kept(function: Any, signature: Any) -> _KernelCache | None:
    """Return where a kernel is kept; None where no folder can be written."""
    if not source_hash():  # as in a frozen application: nothing tells versions apart
        return None
    try:
        return _KernelCache(function.py_func, signature)
    except RuntimeError:
        return None


source_hash()  # now: the files may be others when the first kernel is compiled
