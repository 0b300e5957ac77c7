"""Matrix products as cuBLAS defines them, computed by NumPy.

C[m,n] = alpha op(A)[m,k] op(B)[k,n] + beta C, all matrices column-major: element (i, j) is at
i + j * leading dimension. Half types are multiplied and added in float32. C is not read where beta
is 0, so NaN in fresh memory does not spread.
"""

import ctypes
from dataclasses import dataclass

import numpy as np

from gpu_on_cpu.driver.errors import DeviceMisuseError
from gpu_on_cpu.driver.memory import SPACE

COLUMN_MAJOR_TRANSPOSES = {0: "N", 1: "T", 2: "C"}


@dataclass(frozen=True)
class Matrix:
    """A strided batch of column-major matrices in memory."""

    name: str
    address: int
    dtype: np.dtype
    rows: int
    columns: int
    leading: int
    stride: int  # in elements, from one matrix of the batch to the next
    batch: int

    @property
    def elements(self) -> int:
        """How many elements from the first to the last, gaps included."""
        if 0 in (self.rows, self.columns, self.batch):
            return 0
        return (self.batch - 1) * self.stride + (self.columns - 1) * self.leading + self.rows

    def require_memory(self, device: int) -> None:
        """Raise unless all of it is inside of live memory of the device, and aligned."""
        if self.address % self.dtype.itemsize:
            raise DeviceMisuseError(f"matrix {self.name} at {self.address:#x} is not aligned")
        if self.elements:
            size = self.elements * self.dtype.itemsize
            SPACE.check(self.address, size, f"matrix {self.name} of a product", device)

    def view(self) -> np.ndarray:
        """Return the matrices as an array [batch, rows, columns]."""
        itemsize = self.dtype.itemsize
        raw = (ctypes.c_char * (self.elements * itemsize)).from_address(self.address)
        flat = np.frombuffer(raw, np.uint8).view(self.dtype)
        strides = (self.stride * itemsize, itemsize, self.leading * itemsize)
        return np.lib.stride_tricks.as_strided(flat, (self.batch, self.rows, self.columns), strides)


def rounded_to_tf32(values: np.ndarray) -> np.ndarray:
    """Round float32 to the 10 explicit bits of TF32's mantissa, ties to even."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = bits + np.uint32(0xFFF) + ((bits >> np.uint32(13)) & np.uint32(1))
    finite = np.isfinite(values)
    return np.where(finite, (rounded & np.uint32(0xFFFFE000)).view(np.float32), values)


def multiply(
    transposes: str, alpha: float, a: Matrix, b: Matrix, beta: float, c: Matrix, tf32: bool
) -> None:
    """Compute all products of a batch.

    Parameters
    ----------
    transposes : str
        What op is for A and for B: two of N, T, C.
    alpha, beta : float
        In the type of the computation.
    a, b, c : Matrix
        The matrices as they are stored, before op.
    tf32 : bool
        Whether float32 operands are rounded to TF32 first.
    """
    if c.elements == 0:
        return
    compute = np.dtype(np.float64 if c.dtype == np.float64 else np.float32)
    result = c.view()
    if a.elements == 0 or alpha == 0:  # no product at all, so no NaN of an operand arrives
        product = np.zeros(result.shape, compute)
    else:
        operands = []
        for letter, matrix in zip(transposes, (a, b), strict=True):
            values = matrix.view()
            _require_apart(matrix, values, result)
            values = (values if letter == "N" else values.swapaxes(1, 2)).astype(compute)
            operands.append(rounded_to_tf32(values) if tf32 else values)
        with np.errstate(all="ignore"):
            product = compute.type(alpha) * (operands[0] @ operands[1])
    with np.errstate(all="ignore"):
        if beta:
            product = product + compute.type(beta) * result.astype(compute)
        result[...] = product.astype(c.dtype)


def _require_apart(matrix: Matrix, values: np.ndarray, result: np.ndarray) -> None:
    if np.may_share_memory(values, result) and np.shares_memory(values, result):
        raise DeviceMisuseError(f"matrix {matrix.name} shares elements with its result")
