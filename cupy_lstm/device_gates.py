"""The gates of the LSTM cell and their derivatives on a GPU: one kernel a step.

The kernels are in ``cuda/gates.cu``. See `cupy_lstm.gates.Gates` for what the methods mean.
"""

from functools import cache
from typing import Any

from cupy_lstm.backend import Array, import_module
from cupy_lstm.kernels import SCALARS, Kernel, Rows, vector_width
from cupy_lstm.notation import Shape


@cache
def _kernel(function: str, scalar: str, width: int) -> Kernel:
    return Kernel("gates.cu", function, scalar, str(width))


class DeviceGates:
    """The gates in CUDA, as `HostGates` is in NumPy; nothing is allocated in the loop."""

    def __init__(self, shape: Shape, chunk: int, dtype: Any) -> None:
        self._shape = (shape.D, chunk, shape.B, 4 * shape.H)
        self._H = shape.H
        self._dtype = dtype
        self._scalar = SCALARS[dtype.name]
        self._rounded_dz: Array | None = None

    def forward(
        self,
        z: Array,
        c_prev: Array,
        c: Array,
        h_prev: Array | None,
        h: Array,
        padding: Array | None,
    ) -> None:
        """Run the cell of one step; see `Gates`."""
        self._run("gates_forward", (z, c_prev, c, h_prev, h), padding, z)

    def output(self, gates: Array, c: Array, m: Array) -> None:
        """Compute cell outputs again; see `Gates`."""
        self._output(gates, c, m, None)

    def prepare(self, z: Array, c: Array, m: Array, padding: Array | None) -> None:
        """Compute the cell outputs of a chunk again; see `Gates`."""
        self._gates, self._c, self._padding = z, c, padding
        if z.dtype == self._dtype:
            self.dz = z
        else:
            if self._rounded_dz is None:
                self._rounded_dz = import_module("cupy").empty(self._shape, self._dtype)
            self.dz = self._rounded_dz[:, : z.shape[1]]
        self._output(z, c[:, 1:], m, padding)

    def backward(
        self, s: int, dm: Array, carried: Array | None, dc: Array, dcells: Array | None
    ) -> Array:
        """Go back through one step; see `Gates`."""
        dz, c = self.dz[:, s], self._c
        padding = None if self._padding is None else self._padding[:, s]
        arrays = (self._gates[:, s], dz, c[:, s], c[:, s + 1], dm, carried, dc, dcells)
        self._run("gates_backward", arrays, padding, dz)
        return dz

    def _output(self, gates: Array, c: Array, m: Array, padding: Array | None) -> None:
        D, n, B, features = gates.shape
        # The steps of a chunk follow each other in memory: the kernel sees n * B rows.
        self._run("gates_output", (gates, c, m), padding, gates.reshape(D, n * B, features))

    def _run(
        self, function: str, arrays: tuple[Array | None, ...], padding: Array | None, like: Array
    ) -> None:
        """Launch a kernel over the rows of `like` [D,rows,4H]."""
        D, rows, _ = like.shape
        if like.size == 0:
            return
        pointers = [None if array is None else Rows(array) for array in arrays]
        width = vector_width(self._H, *pointers)
        pointers.append(None if padding is None else Rows(padding))
        strides = [0 if pointer is None else pointer.stride for pointer in pointers]
        kernel = _kernel(function, self._scalar, width)
        kernel.launch(D * rows * (self._H // width), *pointers, *strides, D, rows, self._H)
