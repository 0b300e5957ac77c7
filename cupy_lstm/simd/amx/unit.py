"""The matrix unit as kernels see it: tiles of 16 rows of 64 bytes, of which three are used.

Tile 0 has sums in float32, of some rows and 16 columns; 1 a part of those rows, 32 terms of each; 2
a part of those columns, two terms in a row. LLVM never uses tiles of its own accord, so they keep
what they have from one instruction here to the next.

More tiles would save loads. But where another program shares the core, a processor seems to have
few registers to rename tiles with: each tile that is written beside five or so costs more than it
saves, half of the rate with all eight.
"""

import ctypes
import os
import platform
import sys
from functools import cache
from typing import Any

import numba
from llvmlite import binding, ir
from numba import njit, types
from numba.extending import intrinsic

from cupy_lstm.simd.memory import write
from cupy_lstm.simd.vector import WORD, Lanes

SWITCH = "CUPY_LSTM_AMX"

SIDE, TERMS = 16, 32
"""Rows and columns of a product, and the terms of one instruction."""

PART = 1024
"""Bytes of a part of 32 terms of a tile, of rows or of columns."""

STEP = 3 * PART
"""Bytes of 32 terms of a tile, in three parts."""

_PRODUCTS = ((0, 2), (0, 1), (0, 0), (2, 0), (1, 0), (1, 1))
"""Which part of the rows is multiplied with which of the columns, in an order in which one follows
from the other by few loads. What is left out is at most 2^-21 of a product, on average about 2^-24,
as much as its rounding."""


def fits_unit(lanes: Lanes) -> bool:
    """Whether vectors of this kind are rows of its tiles."""
    return lanes.dtype == "float32" and lanes.count == SIDE


_ARCH_PRCTL, _REQUEST, _TILES = 158, 0x1023, 18
"""Linux's system call by which a process asks for the state of its tiles to be kept."""


@cache
def available() -> bool:
    """Whether this process may use the unit.

    It may under Linux on a processor that has one, unless CUPY_LSTM_AMX=0 says otherwise. The first
    call asks the system for it, for all threads and children to come.
    """
    if os.environ.get(SWITCH, "1") == "0" or sys.platform != "linux":
        return False
    features = binding.get_host_cpu_features()
    wanted = ("amx-tile", "amx-bf16", "avx512f")
    if platform.machine() != "x86_64" or not all(features.get(name) for name in wanted):
        return False
    # What Numba is told to compile for instead of this host: LLVM ends the process where it meets
    # an instruction that is not among it.
    told = numba.config.CPU_FEATURES
    if told is not None and not {f"+{name}" for name in wanted} <= set(told.split(",")):
        return False
    binding.initialize_native_asmparser()  # for instructions that are written as text
    system = ctypes.CDLL(None, use_errno=True).syscall
    return int(system(_ARCH_PRCTL, _REQUEST, _TILES)) == 0


def _instructions(lines: "list[str]", places: int) -> Any:
    """Return an intrinsic that takes some 64-bit integers to those instructions.

    They are written as the registers ``$0``, ``$1``, ...; ``$S`` is one that holds 64.
    """
    text = "\n".join(lines)
    strided = "$S" in text
    text = text.replace("$S", f"${places}")
    constraints = ["r"] * (places + strided) + ["~{memory}"]

    def typed(context: Any, *operands: Any) -> Any:
        def lower(context: Any, builder: Any, kinds: Any, operands: Any) -> Any:
            operands = [*operands, ir.Constant(WORD, 64)] if strided else operands
            kind = ir.FunctionType(ir.VoidType(), [WORD] * len(operands))
            builder.asm(kind, text, ",".join(constraints), operands, side_effect=True)
            return context.get_dummy_value()

        return types.void(*[types.int64] * places), lower

    return typed


def _multiply_lines() -> "list[str]":
    """Return the instructions that multiply 32 terms."""
    lines: list[str] = []
    loaded: tuple[int, int] = -1, -1
    ahead = iter(range(STEP, 2 * STEP, 64))
    for row, column in _PRODUCTS:
        if row != loaded[0]:
            lines.append(f"tileloadd {PART * row}($0,$S,1), %tmm1")
        if column != loaded[1]:
            lines.append(f"tileloadd {PART * column}($1,$S,1), %tmm2")
        lines.append("tdpbf16ps %tmm2, %tmm1, %tmm0")
        # The columns of the next terms come near meanwhile, a line each.
        lines += [f"prefetcht0 {next(ahead)}($1)" for _ in range(8)]
        loaded = row, column
    return lines


_CONFIGURE = _instructions(["ldtilecfg ($0)"], 1)
_RELEASE = _instructions(["tilerelease"], 0)
_CLEAR = _instructions(["tilezero %tmm0"], 0)
_LOAD = _instructions(["tileloadd ($0,$1,1), %tmm0"], 2)
_STORE = _instructions(["tilestored %tmm0, ($0,$1,1)"], 2)
_MULTIPLY = _instructions(_multiply_lines(), 2)


@intrinsic
def _load_configuration(context: Any, place: Any) -> Any:
    return _CONFIGURE(context, place)


@intrinsic
def release_tiles(context: Any) -> Any:
    """Give up the tiles, before a kernel ends: the system need not keep them then."""
    return _RELEASE(context)


@intrinsic
def clear_sums(context: Any) -> Any:
    """Set the sums to zero."""
    return _CLEAR(context)


@intrinsic
def load_sums(context: Any, place: Any, step: Any) -> Any:
    """Read the sums from a place, `step` bytes from row to row."""
    return _LOAD(context, place, step)


@intrinsic
def store_sums(context: Any, place: Any, step: Any) -> Any:
    """Write the sums to a place, `step` bytes from row to row."""
    return _STORE(context, place, step)


@intrinsic
def add_terms(context: Any, rows: Any, columns: Any) -> Any:
    """Add the products of 32 terms of a tile of rows and one of columns to the sums."""
    return _MULTIPLY(context, rows, columns)


@njit(nogil=True)
def take_tiles(place: int) -> None:
    """Set the tiles up, before anything else here; `place` is scratch of 64 bytes."""
    for word in range(0, 64, 8):
        write(place + word, 0)
    write(place, 1)
    write(place + 16, 0x004000400040)  # bytes of a row
    write(place + 48, 0x101010)  # rows
    _load_configuration(place)


@njit(nogil=True)
def add_products(rows: int, columns: int, groups: int) -> None:
    """Add the products of a tile of rows and one of columns, of `groups` times 32 terms."""
    for group in range(groups):
        add_terms(rows + group * STEP, columns + group * STEP)


NEAR_GROUPS = 4
"""Terms by 32 of a tile of rows that stay in the first cache while they are multiplied with one
tile of columns after the other."""


@njit(nogil=True)
def multiply_tiles(
    rows: int, groups: int, columns: int, count: int, sums: int, sums_step: int
) -> None:
    """Write the products of a tile of rows with `count` neighbouring tiles of columns.

    Parameters
    ----------
    rows, columns : int
        Addresses of what is split.
    groups : int
        Terms by 32.
    sums, sums_step : int
        Address of the products, and bytes from row to row.
    """
    for group in range(0, groups, NEAR_GROUPS):
        there = min(NEAR_GROUPS, groups - group)
        for tile in range(count):
            place = sums + 64 * tile
            if group == 0:
                clear_sums()
            else:
                load_sums(place, sums_step)
            add_products(rows + group * STEP, columns + (tile * groups + group) * STEP, there)
            store_sums(place, sums_step)
