"""A SIMD vector as a Numba type: values that live in one register, and what is done with them.

A `Vector` value is an LLVM vector, so a kernel written with it says what happens in registers,
and LLVM maps it to whatever the host has: two registers of half the width where it must. A
`Lanes` is the kind of vector a kernel is compiled for; it is passed to it like an argument, costs
nothing at run time, and lets one source serve every width and both dtypes.
"""

import operator
from dataclasses import dataclass
from typing import Any

import numpy
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.datamodel import register_default
from numba.core.datamodel.models import OpaqueModel, PrimitiveModel
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import (
    NativeValue,
    intrinsic,
    lower_builtin,
    typeof_impl,
    unbox,
)

WORD = ir.IntType(64)


@dataclass(frozen=True)
class Lanes:
    """A kind of vector.

    Attributes
    ----------
    dtype : str
        ``"float32"`` or ``"float64"``.
    count : int
        Numbers in a vector, a power of two.
    rows : int
        Rows of the largest register tile: 6 where there are 32 registers, 3 where there are 16.
    """

    dtype: str
    count: int
    rows: int

    @property
    def itemsize(self) -> int:
        """Bytes of a number."""
        return numpy.dtype(self.dtype).itemsize


class VectorType(types.Type):
    """Type of a vector of `count` numbers of a scalar type."""

    def __init__(self, scalar: types.Float, count: int) -> None:
        self.scalar, self.count = scalar, count
        super().__init__(f"vector({scalar}, {count})")

    @property
    def llvm(self) -> ir.VectorType:
        """The type in LLVM."""
        return ir.VectorType(self.element, self.count)

    @property
    def element(self) -> ir.Type:
        """The scalar type in LLVM."""
        return ir.FloatType() if self.scalar == types.float32 else ir.DoubleType()

    @property
    def bits(self) -> ir.VectorType:
        """The integers of the same size, in LLVM."""
        return ir.VectorType(ir.IntType(self.scalar.bitwidth), self.count)

    @property
    def name_in_intrinsics(self) -> str:
        """How the names of LLVM's intrinsics spell the type."""
        return f"v{self.count}f{self.scalar.bitwidth}"

    def constant(self, value: float) -> ir.Constant:
        """Return a vector of equal numbers."""
        return ir.Constant(self.llvm, [ir.Constant(self.element, value)] * self.count)


class LanesType(types.Type):
    """Type of `Lanes`: all there is to know is in the type."""

    def __init__(self, lanes: Lanes) -> None:
        self.lanes = lanes
        self.vector = VectorType(getattr(types, lanes.dtype), lanes.count)
        super().__init__(f"lanes({lanes.dtype}, {lanes.count}, {lanes.rows})")


@register_default(VectorType)
class _VectorModel(PrimitiveModel):
    def __init__(self, manager: Any, vector: VectorType) -> None:
        super().__init__(manager, vector, vector.llvm)


register_default(LanesType)(OpaqueModel)


@typeof_impl.register(Lanes)
def _typeof_lanes(value: Lanes, context: Any) -> LanesType:
    return LanesType(value)


@unbox(LanesType)
def _unbox_lanes(kind: LanesType, value: Any, context: Any) -> NativeValue:
    return NativeValue(context.context.get_dummy_value())


# Arithmetic. A number beside a vector stands for a vector of it.

_OPERATIONS = {
    operator.add: "fadd",
    operator.sub: "fsub",
    operator.mul: "fmul",
    operator.truediv: "fdiv",
}


def _define_operation(function: Any, instruction: str) -> None:
    class Template(AbstractTemplate):
        def generic(self, operands: Any, keywords: Any) -> Any:
            vectors = [kind for kind in operands if isinstance(kind, VectorType)]
            if vectors and all(isinstance(kind, VectorType | types.Float) for kind in operands):
                return signature(vectors[0], *operands)
            return None

    infer_global(function)(Template)

    def lower(context: Any, builder: Any, kinds: Any, operands: Any) -> Any:
        pairs, vector = zip(operands, kinds.args, strict=True), kinds.return_type
        return getattr(builder, instruction)(
            *(
                value if isinstance(kind, VectorType) else splat_number(builder, vector, value)
                for value, kind in pairs
            )
        )

    for kinds in (VectorType, VectorType), (VectorType, types.Float), (types.Float, VectorType):
        lower_builtin(function, *kinds)(lower)


for _function, _instruction in _OPERATIONS.items():
    _define_operation(_function, _instruction)


def splat_number(builder: Any, vector: VectorType, number: Any) -> Any:
    """Return a vector of equal numbers."""
    if number.type != vector.element:
        narrow = isinstance(vector.element, ir.FloatType)
        number = (builder.fptrunc if narrow else builder.fpext)(number, vector.element)
    none = ir.Constant(vector.llvm, ir.Undefined)
    first = builder.insert_element(none, number, ir.Constant(ir.IntType(32), 0))
    zeros = ir.Constant(ir.VectorType(ir.IntType(32), vector.count), [0] * vector.count)
    return builder.shuffle_vector(first, none, zeros)


def multiply_add(builder: Any, vector: VectorType, a: Any, b: Any, c: Any) -> Any:
    """Emit a * b + c, fused where the host can."""
    name = f"llvm.fmuladd.{vector.name_in_intrinsics}"
    function = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(vector.llvm, [vector.llvm] * 3), name
    )
    return builder.call(function, [a, b, c])


def first_lanes(builder: Any, vector: VectorType, count: Any) -> Any:
    """Emit the mask of the first `count` lanes."""
    word = ir.VectorType(ir.IntType(32), vector.count)
    none = ir.Constant(word, ir.Undefined)
    narrow = builder.trunc(count, ir.IntType(32))
    first = builder.insert_element(none, narrow, ir.Constant(ir.IntType(32), 0))
    limit = builder.shuffle_vector(first, none, ir.Constant(word, [0] * vector.count))
    return builder.icmp_signed("<", ir.Constant(word, list(range(vector.count))), limit)


@intrinsic
def splat(context: Any, lanes: Any, number: Any) -> Any:
    """Return a vector of equal numbers."""
    vector = lanes.vector

    def lower(context: Any, builder: Any, kinds: Any, operands: Any) -> Any:
        return splat_number(builder, vector, operands[1])

    return vector(lanes, types.float64), lower


@intrinsic
def fused(context: Any, a: Any, b: Any, c: Any) -> Any:
    """Return a * b + c, rounded once where the host can."""

    def lower(context: Any, builder: Any, kinds: Any, operands: Any) -> Any:
        return multiply_add(builder, a, *operands)

    return a(a, a, a), lower


@intrinsic
def magnitude(context: Any, value: Any) -> Any:
    """Return the absolute values."""

    def lower(context: Any, builder: Any, kinds: Any, operands: Any) -> Any:
        name = f"llvm.fabs.{value.name_in_intrinsics}"
        kind = ir.FunctionType(value.llvm, [value.llvm])
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), operands)

    return value(value), lower


@intrinsic
def with_sign(context: Any, value: Any, sign: Any) -> Any:
    """Return the absolute values of one vector with the signs of another."""

    def lower(context: Any, builder: Any, kinds: Any, operands: Any) -> Any:
        name = f"llvm.copysign.{value.name_in_intrinsics}"
        kind = ir.FunctionType(value.llvm, [value.llvm] * 2)
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), operands)

    return value(value, value), lower


@intrinsic
def at_most(context: Any, value: Any, limit: Any) -> Any:
    """Return the vector with larger numbers brought down to a limit, NaN left as it is."""

    def lower(context: Any, builder: Any, kinds: Any, operands: Any) -> Any:
        bound = splat_number(builder, value, operands[1])
        return builder.select(builder.fcmp_ordered("<", bound, operands[0]), bound, operands[0])

    return value(value, types.float64), lower


@intrinsic
def at_least(context: Any, value: Any, limit: Any) -> Any:
    """Return the vector with smaller numbers brought up to a limit, NaN left as it is."""

    def lower(context: Any, builder: Any, kinds: Any, operands: Any) -> Any:
        bound = splat_number(builder, value, operands[1])
        return builder.select(builder.fcmp_ordered(">", bound, operands[0]), bound, operands[0])

    return value(value, types.float64), lower


@intrinsic
def power_of_two(context: Any, shifted: Any) -> Any:
    """Return 2^n for numbers 1.5 * 2^m + n, where m is the width of the mantissa.

    The low bits of such a number are n. Where n is one above the largest exponent the result is
    infinite, one below the smallest it is zero.
    """

    def lower(context: Any, builder: Any, kinds: Any, operands: Any) -> Any:
        width = shifted.scalar.bitwidth
        mantissa, bias = (23, 127) if width == 32 else (52, 1023)
        integers = [ir.Constant(shifted.bits, [n] * shifted.count) for n in (bias, mantissa)]
        bits = builder.bitcast(operands[0], shifted.bits)
        return builder.bitcast(
            builder.shl(builder.add(bits, integers[0]), integers[1]), shifted.llvm
        )

    return shifted(shifted), lower


def _constant_of(name: str, value: Any) -> Any:
    def constant(context: Any, lanes: Any) -> Any:
        def lower(context: Any, builder: Any, kinds: Any, operands: Any) -> Any:
            return ir.Constant(WORD, value(lanes.lanes))

        return types.int64(lanes), lower

    constant.__name__ = name
    return intrinsic(constant)


lane_count = _constant_of("lane_count", lambda lanes: lanes.count)
itemsize = _constant_of("itemsize", lambda lanes: lanes.itemsize)
tile_rows = _constant_of("tile_rows", lambda lanes: lanes.rows)


@intrinsic
def keep_first(context: Any, value: Any, count: Any) -> Any:
    """Return the vector with zeros behind its first `count` numbers."""

    def lower(context: Any, builder: Any, kinds: Any, operands: Any) -> Any:
        mask = first_lanes(builder, value, operands[1])
        return builder.select(mask, operands[0], value.constant(0.0))

    return value(value, types.int64), lower
