"""Memory as kernels see it: loads and stores of vectors, whole or in part.

Memory is addressed by plain integers, in bytes. So a kernel has one signature whatever the
layout of the arrays it works on, and nothing is checked: whoever calls a kernel answers for its
addresses.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from cupy_lstm.simd.vector import WORD, VectorType, first_lanes

BYTE, POINTER = ir.IntType(8), ir.PointerType()


def pointer(builder: Any, address: Any) -> Any:
    """Emit the pointer to an address."""
    return builder.inttoptr(address, POINTER)


def load_vector(builder: Any, vector: VectorType, place: Any) -> Any:
    """Emit the load of a vector from a pointer of any alignment."""
    return builder.load(place, align=vector.scalar.bitwidth // 8, typ=vector.llvm)


def store_vector(builder: Any, vector: VectorType, value: Any, place: Any) -> None:
    """Emit the store of a vector to a pointer of any alignment."""
    builder.store(value, place, align=vector.scalar.bitwidth // 8)


def fetch_line(builder: Any, place: Any) -> None:
    """Emit what brings a cache line near, to the second cache, while other work goes on."""
    integer = ir.IntType(32)
    kind = ir.FunctionType(ir.VoidType(), [POINTER, integer, integer, integer])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    to_read, second, data = (ir.Constant(integer, number) for number in (0, 2, 1))
    builder.call(function, [place, to_read, second, data])


@intrinsic
def fetch(context: Any, address: Any) -> Any:
    """Bring the cache line of an address near while other work goes on; it need not exist."""

    def lower(context: Any, builder: Any, kinds: Any, operands: Any) -> Any:
        fetch_line(builder, pointer(builder, operands[0]))
        return context.get_dummy_value()

    return types.void(types.int64), lower


@intrinsic
def load(context: Any, lanes: Any, address: Any) -> Any:
    """Return the vector at an address."""
    vector = lanes.vector

    def lower(context: Any, builder: Any, kinds: Any, operands: Any) -> Any:
        return load_vector(builder, vector, pointer(builder, operands[1]))

    return vector(lanes, types.int64), lower


@intrinsic
def store(context: Any, address: Any, value: Any) -> Any:
    """Write a vector to an address."""

    def lower(context: Any, builder: Any, kinds: Any, operands: Any) -> Any:
        store_vector(builder, value, operands[1], pointer(builder, operands[0]))
        return context.get_dummy_value()

    return types.void(types.int64, value), lower


@intrinsic
def load_first(context: Any, lanes: Any, address: Any, count: Any) -> Any:
    """Return the first `count` numbers at an address as a vector, zeros behind; reads no more."""
    vector = lanes.vector

    def lower(context: Any, builder: Any, kinds: Any, operands: Any) -> Any:
        mask = first_lanes(builder, vector, operands[2])
        function = cgutils.get_or_insert_function(
            builder.module,
            ir.FunctionType(vector.llvm, [POINTER, ir.IntType(32), mask.type, vector.llvm]),
            f"llvm.masked.load.{vector.name_in_intrinsics}.p0",
        )
        align = ir.Constant(ir.IntType(32), vector.scalar.bitwidth // 8)
        place = pointer(builder, operands[1])
        return builder.call(function, [place, align, mask, vector.constant(0.0)])

    return vector(lanes, types.int64, types.int64), lower


@intrinsic
def store_first(context: Any, address: Any, value: Any, count: Any) -> Any:
    """Write the first `count` numbers of a vector to an address."""

    def lower(context: Any, builder: Any, kinds: Any, operands: Any) -> Any:
        mask = first_lanes(builder, value, operands[2])
        function = cgutils.get_or_insert_function(
            builder.module,
            ir.FunctionType(ir.VoidType(), [value.llvm, POINTER, ir.IntType(32), mask.type]),
            f"llvm.masked.store.{value.name_in_intrinsics}.p0",
        )
        align = ir.Constant(ir.IntType(32), value.scalar.bitwidth // 8)
        builder.call(function, [operands[1], pointer(builder, operands[0]), align, mask])
        return context.get_dummy_value()

    return types.void(types.int64, value, types.int64), lower


@intrinsic
def read(context: Any, address: Any) -> Any:
    """Return the 64-bit integer at an address."""

    def lower(context: Any, builder: Any, kinds: Any, operands: Any) -> Any:
        return builder.load(pointer(builder, operands[0]), align=8, typ=WORD)

    return types.int64(types.int64), lower


@intrinsic
def write(context: Any, address: Any, value: Any) -> Any:
    """Write a 64-bit integer to an address."""

    def lower(context: Any, builder: Any, kinds: Any, operands: Any) -> Any:
        builder.store(operands[1], pointer(builder, operands[0]), align=8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), lower


@intrinsic
def read_job(context: Any, kind: Any, address: Any) -> Any:
    """Return the named tuple of 64-bit integers at an address; `kind` is its class."""
    fields = len(kind.instance_class._fields)
    job = types.NamedUniTuple(types.int64, fields, kind.instance_class)

    def lower(context: Any, builder: Any, kinds: Any, operands: Any) -> Any:
        place = pointer(builder, operands[1])
        words = [
            builder.load(
                builder.gep(place, [ir.Constant(WORD, 8 * n)], source_etype=BYTE), align=8, typ=WORD
            )
            for n in range(fields)
        ]
        return context.make_tuple(builder, job, words)

    return job(kind, types.int64), lower


@intrinsic
def transpose(
    context: Any,
    lanes: Any,
    source: Any,
    source_step: Any,
    rows: Any,
    columns: Any,
    target: Any,
    target_step: Any,
) -> Any:
    """Write the transpose of a square block of numbers, as many rows and columns as lanes.

    Parameters
    ----------
    source, source_step : int
        Address of the block, and bytes from row to row.
    rows, columns : int
        Rows and columns there are; zeros stand for the others, which are not read. Rows of the
        transpose that stand for no column are not written.
    target, target_step : int
        Address of the transpose, and bytes from row to row.
    """
    vector = lanes.vector
    count = vector.count

    def lower(context: Any, builder: Any, kinds: Any, operands: Any) -> Any:
        _, source, source_step, rows, columns, target, target_step = operands
        align = ir.Constant(ir.IntType(32), vector.scalar.bitwidth // 8)
        zero = ir.Constant(WORD, 0)
        block = []
        for r in range(count):
            index = ir.Constant(WORD, r)
            place = builder.add(source, builder.mul(source_step, index))
            there = builder.icmp_signed("<", index, rows)
            mask = first_lanes(builder, vector, builder.select(there, columns, zero))
            function = cgutils.get_or_insert_function(
                builder.module,
                ir.FunctionType(vector.llvm, [POINTER, ir.IntType(32), mask.type, vector.llvm]),
                f"llvm.masked.load.{vector.name_in_intrinsics}.p0",
            )
            block.append(
                builder.call(function, [pointer(builder, place), align, mask, vector.constant(0.0)])
            )
        # Shuffling the first half of the rows into the second, once for every bit of a row's
        # number, moves that bit to the number of the column.
        index_type = ir.VectorType(ir.IntType(32), count)
        halves = [
            ir.Constant(index_type, [n // 2 + (n % 2) * count for n in range(start, start + count)])
            for start in (0, count)
        ]
        for _ in range(count.bit_length() - 1):
            pairs = zip(block[: count // 2], block[count // 2 :], strict=True)
            block = [
                builder.shuffle_vector(low, high, half) for low, high in pairs for half in halves
            ]
        for c, row in enumerate(block):
            index = ir.Constant(WORD, c)
            with builder.if_then(builder.icmp_signed("<", index, columns)):
                place = builder.add(target, builder.mul(target_step, index))
                store_vector(builder, vector, row, pointer(builder, place))
        return context.get_dummy_value()

    return types.void(lanes, *[types.int64] * 6), lower
