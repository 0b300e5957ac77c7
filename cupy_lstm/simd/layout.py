"""Arrays as kernels see them: whole vectors, and rows whose numbers lie side by side."""

from collections.abc import Hashable, Mapping
from math import prod
from typing import Any, TypeVar

import numpy

from cupy_lstm.backend import HostArray
from cupy_lstm.notation import LayerWeights, Shape, layer_shape
from cupy_lstm.simd.amx.unit import SIDE, STEP, TERMS, available, fits_unit
from cupy_lstm.simd.compiled import host_lanes
from cupy_lstm.simd.reserve import piece
from cupy_lstm.simd.scratch import CACHE_LINE, address, next_line
from cupy_lstm.workspace import FEWEST_ROWS, MANY_UNITS

NEAR_BYTES = 3 * 2**20
"""Bytes of the split weights of a direction that the caches of two cores hold."""

Name = TypeVar("Name", bound=Hashable)

NAMES = {numpy.dtype(name): name for name in ("float32", "float64")}
"""The dtypes there are kernels for; NumPy takes long to name a dtype."""


class Layout:
    """Sizes of a layer in whole vectors, and arrays of them.

    Attributes
    ----------
    shape : Shape
        Sizes of the layer.
    lanes : Lanes
        Kind of vector.
    tiles, product_tiles : bool
        Whether the products of sweeps, and those of weights' and inputs' gradients, are those of
        the matrix unit, `cupy_lstm.simd.amx`.
    blocks : int
        Vectors of H.
    h_width, c_width, x_width, gate_width : int
        Numbers in h, c, x and the gates of a row, the space behind the last one included.
    """

    def __init__(
        self, shape: Shape, dtype: "numpy.dtype[Any]", tiles: bool, product_tiles: bool
    ) -> None:
        self.shape, self.lanes = shape, host_lanes(NAMES[dtype])
        self.tiles, self.product_tiles = tiles, product_tiles
        self.dtype, self.itemsize = dtype, dtype.itemsize
        self.h_width, self.c_width, self.x_width = (
            self.in_vectors(size) for size in (shape.P, shape.H, shape.I)
        )
        self.blocks = self.c_width // self.lanes.count
        self.gate_width = 4 * self.c_width

    def work(self, slots: int) -> int:
        """Return the multiply-adds of the forward products of so many rows at one time each."""
        _, _, I, H, P, _ = self.shape  # noqa: E741
        return slots * 4 * H * (I + P)

    def in_vectors(self, size: int) -> int:
        """Return a size rounded up to whole vectors."""
        return -(-size // self.lanes.count) * self.lanes.count

    def empty(self, *sizes: int) -> HostArray:
        """Return an array that begins with a cache line."""
        size = 1
        for part in sizes:
            size *= part
        total = size * self.itemsize + CACHE_LINE
        memory = piece(total)[:total].view(self.dtype)
        place = address(memory)
        skipped = (next_line(place) - place) // self.itemsize
        return memory[skipped : skipped + size].reshape(sizes)

    def split_columns(self, blocks: int, terms: int) -> tuple[int, ...]:
        """Return the sizes of an array for the split columns of a matrix of so many vectors."""
        return blocks, -(-terms // TERMS), STEP // self.itemsize

    def split_rows(self, rows: int, terms: int) -> tuple[int, ...]:
        """Return the sizes of an array for split rows."""
        return -(-rows // SIDE), -(-terms // TERMS), STEP // self.itemsize

    def one_after_the_other(
        self, arrays: "Mapping[Name, tuple[int, ...]]"
    ) -> "tuple[int, dict[Name, tuple[int, tuple[int, ...]]]]":
        """Divide one piece of memory among arrays of these sizes, each from a cache line on.

        Returns
        -------
        int
            Numbers in all.
        dict
            For each array how many numbers lie before it, and its sizes.
        """
        line, size, found = CACHE_LINE // self.itemsize, 0, {}
        for name, sizes in arrays.items():
            found[name] = size, sizes
            size += -(-prod(sizes) // line) * line
        return size, found

    def zeros(self, *sizes: int) -> HostArray:
        """Return an array of zeros that begins with a cache line."""
        array = self.empty(*sizes)
        array.fill(0)
        return array


def layout_of(T: int, B: int, weights: LayerWeights) -> Layout:
    """Return the layout of a layer with these weights."""
    shape, dtype = layer_shape(T, B, weights), weights.weight_hh.dtype
    tiles = has_tiles(weights)
    sweeps = tiles and worth_tiles(B, shape.I, shape.H)
    products = tiles and B >= FEWEST_ROWS and shape.H >= MANY_UNITS and shape.I >= MANY_UNITS // 2
    return Layout(shape, dtype, sweeps, products)


def has_tiles(weights: LayerWeights) -> bool:
    """Whether there is a matrix unit for a layer with these weights.

    Not with a projection, whose outputs can be infinite.
    """
    lanes = host_lanes(NAMES[weights.weight_hh.dtype])
    return weights.weight_ho is None and fits_unit(lanes) and available()


def uses_tiles(B: int, weights: LayerWeights) -> bool:
    """Whether sweeps of B rows are for the matrix unit."""
    H, I = weights.weight_hh.shape[2], weights.weight_ih.shape[2]  # noqa: E741
    return has_tiles(weights) and worth_tiles(B, I, H)


def worth_tiles(B: int, I: int, H: int) -> bool:  # noqa: E741
    """Whether the matrix unit computes a step sooner than vectors.

    It does from about 16 rows, of which it takes as long as of one, and from 128 units on, where
    products take longer than what surrounds them. Its weights are half as large again as those of
    vectors, so it does not where those do not fit the caches. It must not depend on how many
    threads there are, nor on the number of steps.
    """
    return B >= SIDE and H >= MANY_UNITS and 6 * 4 * H * (I + H) <= NEAR_BYTES


def has_rows(array: HostArray) -> bool:
    """Whether the numbers of a row lie side by side."""
    side_by_side = array.shape[-1] == 1 or array.strides[-1] == array.itemsize
    return side_by_side and array.flags.aligned


def row_major(array: HostArray) -> HostArray:
    """Return the array, copied if the numbers of a row do not lie side by side."""
    return array if has_rows(array) else numpy.array(array, order="C")


def is_in_order(array: HostArray) -> bool:
    """Whether an array is one aligned piece of memory."""
    return array.flags.c_contiguous and array.flags.aligned


def in_order(array: HostArray) -> HostArray:
    """Return the array, copied if it is not one aligned piece of memory."""
    return array if is_in_order(array) else numpy.array(array, order="C")
