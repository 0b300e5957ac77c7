"""Dropout whose mask is a function of logical position: recomputed when needed, never stored.

The bits come from Philox4x64-10 (Salmon et al., 2011, as `numpy.random.Philox`) with the key
(seed, call). The counter is (block, t, layer, 0), lowest word first, with
block = row * ceil(F / 8) + feature // 8: each block of four 64-bit words holds the 32-bit values
of eight neighbouring features, lowest half first. An element is dropped where its value is below
p * 2^32. So a mask depends on no layout, engine or chunk, nor on how a batch is split: a part
that starts at row r of the whole batch says so with `first_row`.
"""

from dataclasses import dataclass
from functools import cache
from math import ceil
from typing import Any

import numpy

from cupy_lstm.backend import Array, HostArray, array_module
from cupy_lstm.checks import checked_integer, checked_probability, checked_word
from cupy_lstm.kernels import SCALARS, Kernel, Rows, vector_width

LANES = 8
"""32-bit values in one Philox block."""


@dataclass(frozen=True)
class Dropout:
    """Dropout between the layers of one call.

    Attributes
    ----------
    probability : float
        Of dropping an element, in [0, 1].
    seed, call : int
        Key of the mask, each in [0, 2^64).
    first_row : int
        Row of the whole batch that this call's row 0 is.

    Raises
    ------
    TypeError, ValueError
        If one of them has the wrong type or is out of its range.
    """

    probability: float
    seed: int
    call: int
    first_row: int = 0

    def __post_init__(self) -> None:
        checked_probability("probability", self.probability)
        checked_word("seed", self.seed)
        checked_word("call", self.call)
        checked_integer("first_row", self.first_row, 0)

    def apply(self, array: Array, layer: int) -> None:
        """Drop elements of an array [T,B,F] in place; scale the others by 1 / (1 - p).

        Parameters
        ----------
        array : array [T,B,F]
            Input of a layer, or its gradient; in time order.
        layer : int
            The layer whose input it is.
        """
        if self.probability == 1:
            array[...] = 0
            return
        T, B, F = array.shape
        scale = 1 / (1 - self.probability)
        if array_module(array) is not numpy:
            position = (self.seed, self.call, layer, self.first_row, self.threshold)
            blocks = -(-F // LANES)
            kernel = _kernel(array.dtype, vector_width(F, Rows(array)))
            kernel.launch(T * B * blocks, array, *position, scale, T, B, F)
            return
        for t in range(T):
            mask = self.kept(layer, t, B, F) * array.dtype.type(scale)
            numpy.multiply(array[t], mask, out=array[t])

    @property
    def threshold(self) -> int:
        """The smallest 32-bit value that is kept; 2^32 if none is."""
        return ceil(self.probability * 2**32)

    def kept(self, layer: int, t: int, B: int, F: int) -> HostArray:
        """Return which elements of time `t` are kept, bool [B,F] on the host."""
        blocks = -(-F // LANES)
        counter = layer << 128 | t << 64 | self.first_row * blocks
        # NumPy advances the counter before it draws.
        philox = numpy.random.Philox(
            key=self.call << 64 | self.seed, counter=(counter - 1) % 2**256
        )
        words = philox.random_raw(B * blocks * 4)
        values = words.astype("<u8", copy=False).view("<u4").reshape(B, blocks * LANES)[:, :F]
        # Wider than the values: the threshold can be 2^32, and nothing is kept then.
        kept: HostArray = values >= numpy.uint64(self.threshold)
        return kept


@cache
def _kernel(dtype: "numpy.dtype[Any]", width: int) -> Kernel:
    return Kernel("dropout.cu", "dropout", SCALARS[dtype.name], str(width))
