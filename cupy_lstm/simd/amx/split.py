"""Numbers as sums of three bfloat16, in the order in which the matrix unit wants them.

A bfloat16 is the upper half of a float32, so cutting off the lower half leaves the first part, the
same of what is missing the second, and what is missing then fits into the third: exactly, but for
numbers below about 2^-110, since the unit takes parts below 2^-126 for zeros. Infinity and NaN are
their first part, with zeros behind.

The unit multiplies pairs of terms; ours are number k and k + 16 of 32, which lie at the same place
in two neighbouring vectors.

============= ====================================================================
split rows    [rows/16][K/32][3 parts][16 rows][16 pairs]: a left matrix
split columns [columns/16][K/32][3 parts][16 pairs][16 columns]: a right matrix
============= ====================================================================

What is beyond a last term or column is zero.
"""

from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from cupy_lstm.simd.amx.unit import PART, SIDE, STEP, TERMS
from cupy_lstm.simd.memory import BYTE, load, load_first, load_vector, pointer, store
from cupy_lstm.simd.vector import WORD, fused, splat, splat_number

UPPER, EXPONENT, QUIET = 0xFFFF0000, 0x7F800000, 0x00400000
"""Bits of a float32: its upper half, its exponent, and that of NaN which every operation sets."""


@intrinsic
def store_split(context: Any, first: Any, second: Any, place: Any, step: Any) -> Any:
    """Write the three parts of two vectors in pairs, `step` bytes from part to part.

    Returns
    -------
    int
        Not zero if some number is infinite or NaN.
    """

    def lower(context: Any, builder: Any, kinds: Any, operands: Any) -> Any:
        first_, second_, place, step = operands
        bits, count = first.bits, first.count
        half = ir.Constant(bits, [16] * count)
        upper, exponent, quiet = (
            ir.Constant(bits, [pattern] * count) for pattern in (UPPER, EXPONENT, QUIET)
        )
        found, columns = ir.Constant(WORD, 0), []
        for rest in (first_, second_):
            whole = builder.bitcast(rest, bits)
            missing = builder.fcmp_unordered("uno", rest, rest)
            endless = builder.icmp_unsigned("==", builder.and_(whole, exponent), exponent)
            mask = builder.bitcast(endless, ir.IntType(count))
            found = builder.or_(found, builder.zext(mask, WORD))
            parts = []
            for k in range(3):
                part = builder.and_(builder.bitcast(rest, bits), upper)
                if k == 0:  # a NaN whose digits are all in the lower half stays one
                    part = builder.select(missing, builder.or_(part, quiet), part)
                parts.append(part)
                rest = builder.fsub(rest, builder.bitcast(part, first.llvm))
                if k == 0:
                    rest = builder.select(endless, first.constant(0.0), rest)
            columns.append(parts)
        target = pointer(builder, place)
        for low, high in zip(*columns, strict=True):
            pair = builder.or_(builder.lshr(low, half), high)
            builder.store(pair, target, align=4)
            target = builder.gep(target, [step], source_etype=BYTE)
        return found

    return types.int64(first, second, types.int64, types.int64), lower


@intrinsic
def _joined(context: Any, lanes: Any, place: Any, step: Any, behind: Any) -> Any:
    """Return the first of two vectors whose parts are at a place, or, `behind`, the second."""
    vector = lanes.vector

    def lower(context: Any, builder: Any, kinds: Any, operands: Any) -> Any:
        _, place, step, behind = operands
        target, total = pointer(builder, place), vector.constant(0.0)
        half, upper = (ir.Constant(vector.bits, [n] * vector.count) for n in (16, UPPER))
        parts = []
        for _ in range(3):
            pair = builder.bitcast(load_vector(builder, vector, target), vector.bits)
            second, first = builder.and_(pair, upper), builder.shl(pair, half)
            parts.append(builder.bitcast(builder.select(behind, second, first), vector.llvm))
            target = builder.gep(target, [step], source_etype=BYTE)
        for part in reversed(parts):
            total = builder.fadd(total, part)
        return total

    return vector(lanes, types.int64, types.int64, types.boolean), lower


@intrinsic
def number(context: Any, lanes: Any, place: Any) -> Any:
    """Return the number at a place in every lane."""
    vector = lanes.vector

    def lower(context: Any, builder: Any, kinds: Any, operands: Any) -> Any:
        value = builder.load(pointer(builder, operands[1]), align=4, typ=vector.element)
        return splat_number(builder, vector, value)

    return vector(lanes, types.int64), lower


@njit(nogil=True)
def groups_of(terms: int) -> int:
    """Return a number of terms by 32, the last ones included."""
    return -(-terms // TERMS)


@njit(nogil=True)
def place_of_row(split: int, row: int, groups: int) -> int:
    """Return the address of a row of split rows of `groups` times 32 terms."""
    return split + row // SIDE * groups * STEP + row % SIDE * 64


@njit(nogil=True)
def split_row(lanes: Any, source: int, first: int, last: int, target: int) -> int:
    """Split the numbers `first` to `last` of a row, `first` a multiple of 32.

    Parameters
    ----------
    source, target : int
        Address of the row, and that of its place among split rows.

    Returns
    -------
    int
        Not zero if one of them is infinite or NaN.
    """
    odd = 0
    for k in range(first, last, TERMS):
        place = source + 4 * k
        odd |= store_split(
            load_first(lanes, place, last - k),
            load_first(lanes, place + 64, last - k - 16),
            target + k // TERMS * STEP,
            PART,
        )
    return odd


@njit(nogil=True)
def multiply_as_it_is(
    lanes: Any, row: int, terms: int, columns: int, out: int, added: bool
) -> None:
    """Multiply a row that is not split with a tile of split columns; write a vector, or add it.

    For infinite numbers: a part that is zero, times infinity, would be NaN.
    """
    total = load(lanes, out) if added else splat(lanes, 0.0)
    for k in range(terms):
        place = columns + k // TERMS * STEP + k % 16 * 64
        weight = _joined(lanes, place, PART, k % TERMS >= 16)
        total = fused(number(lanes, row + 4 * k), weight, total)
    store(out, total)
