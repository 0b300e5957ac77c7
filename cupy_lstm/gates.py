"""The gates of the LSTM cell and their derivatives, on the host, in place.

The equations are those of `cupy_lstm.notation`. The sigmoid is 1 / (1 + exp(-z)), which keeps
its relative accuracy where a gate is nearly closed; the cheaper tanh(z/2) would not.

`HostGates` is for NumPy what `cupy_lstm.device_gates.DeviceGates` is for CuPy: same methods, same
meaning. `gates_for` returns the one that fits.
"""

from typing import Any, Protocol

import numpy

from cupy_lstm.backend import Array, array_module
from cupy_lstm.notation import Shape
from cupy_lstm.steps import copy_where


class Gates(Protocol):
    """The point-wise part of a sweep, for a chunk of steps at a time."""

    def forward(
        self,
        z: Array,
        c_prev: Array,
        c: Array,
        h_prev: Array | None,
        h: Array,
        padding: Array | None,
    ) -> None:
        """Run the cell of one step from its pre-activations.

        Parameters
        ----------
        z : array [D,B,4H]
            Pre-activations; become the activated gates.
        c_prev : array [D,B,H]
            Cell state before the step.
        c : array [D,B,H]
            Receives the cell state after it; rows in padding keep the one before.
        h_prev : array [D,B,H] or None
            What rows in padding put out; None if it does not matter, before a projection.
        h : array [D,B,H]
            Receives the cell output o * tanh(c).
        padding : array [D,B,1] of bool, or None
            Which rows are in padding.
        """

    def output(self, gates: Array, c: Array, m: Array) -> None:
        """Compute cell outputs again.

        Parameters
        ----------
        gates : array [D,n,B,4H]
            Activated gates.
        c : array [D,n,B,H]
            Cell states after the steps.
        m : array [D,n,B,H]
            Receives o * tanh(c).
        """

    def prepare(self, z: Array, c: Array, m: Array, padding: Array | None) -> None:
        """Take the chunk that the next calls of `backward` go back through.

        Parameters
        ----------
        z : array [D,n,B,4H]
            Activated gates; `backward` turns them into the gradient of the pre-activations.
        c : array [D,n+1,B,H]
            Cell states before the first step and after each.
        m : array [D,n,B,H]
            Receives the cell outputs, zero in padding.
        padding : array [D,n,B,1] of bool, or None
            Which rows are in padding.
        """

    def backward(
        self, s: int, dm: Array, carried: Array | None, dc: Array, dcells: Array | None
    ) -> Array:
        """Go back through step `s` of the chunk; a step in padding hands dc on as it came.

        Parameters
        ----------
        s : int
            Step within the chunk.
        dm : array [D,B,H]
            Gradient of the cell output.
        carried : array [D,B,H] or None
            Added to `dm`, which is written then.
        dc : array [D,B,H]
            Gradient of the cell state after the step; becomes that of the state before it.
        dcells : array [D,B,H] or None
            Added to `dc` first.

        Returns
        -------
        array [D,B,4H]
            Gradient of the pre-activations, zero in padding: a view of `dz`.
        """

    @property
    def dz(self) -> Array:
        """Gradient of the pre-activations of the chunk, [D,n,B,4H], once all steps are done."""


def gates_for(shape: Shape, chunk: int, array: Array) -> Gates:
    """Return the gates for sweeps of this shape, with chunks of so many steps.

    Parameters
    ----------
    shape : Shape
        Sizes of the sweep.
    chunk : int
        Most steps of a chunk.
    array : array
        Tells module and dtype.
    """
    if array_module(array) is numpy:
        return HostGates(shape, chunk, array.dtype)
    from cupy_lstm.device_gates import DeviceGates

    return DeviceGates(shape, chunk, array.dtype)


def split(gates: Array) -> tuple[Array, Array, Array, Array]:
    """Return views of the blocks i, f, g, o of an array [...,4H], each [...,H]."""
    H = gates.shape[-1] // 4
    return gates[..., :H], gates[..., H : 2 * H], gates[..., 2 * H : 3 * H], gates[..., 3 * H :]


class HostGates:
    """The gates in NumPy: few calls on whole arrays, nothing allocated in the loop over steps.

    Everything in the derivatives that depends on no gradient is computed for a chunk at once.
    With tanh'(c) = 1 - tanh(c)^2 and dc the whole gradient of c, the chain rule gives::

        dz_i = dc * g * i * (1 - i)          dz_g = dc * i * (1 - g^2)
        dz_f = dc * c_prev * f * (1 - f)     dz_o = dm * tanh(c) * o * (1 - o)
        dc  += dm * o * (1 - tanh(c)^2)      dc_prev = dc * f

    so the gates of a chunk can become the factors of dc and dm in dz before its loop.
    """

    def __init__(self, shape: Shape, chunk: int, dtype: "numpy.dtype[Any]") -> None:
        self._shape = (shape.D, chunk, shape.B, shape.H)
        self._dtype = dtype
        self._scratch = numpy.empty((shape.D, shape.B, shape.H), dtype)
        self._factors: Array = None  # allocated by the first backward pass
        self._forget: Array = None
        self._dc_factor: Array = None
        self.dz: Array = None

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
        i, f, g, o = split(z)
        scratch = self._scratch
        # The exponential runs over whole rows, which is faster than over the blocks that need it.
        numpy.tanh(g, out=scratch)
        numpy.negative(z, out=z)
        # Where this overflows 1 / inf is the right zero; the caller silences the warning.
        numpy.exp(z, out=z)
        numpy.add(z, 1, out=z)
        numpy.divide(1, z, out=z)
        g[...] = scratch
        numpy.multiply(i, scratch, out=scratch)
        numpy.multiply(f, c_prev, out=c)
        numpy.add(c, scratch, out=c)
        numpy.tanh(c, out=scratch)
        numpy.multiply(o, scratch, out=h)
        if padding is not None:
            copy_where(padding, c_prev, out=c)
            if h_prev is not None:
                copy_where(padding, h_prev, out=h)

    def output(self, gates: Array, c: Array, m: Array) -> None:
        """Compute cell outputs again; see `Gates`."""
        numpy.tanh(c, out=m)
        numpy.multiply(m, split(gates)[3], out=m)

    def prepare(self, z: Array, c: Array, m: Array, padding: Array | None) -> None:
        """Turn the gates of a chunk into factors; see `Gates`."""
        if self._factors is None:
            self._factors = numpy.empty((2, *self._shape), self._dtype)
        k = z.shape[1]
        forget, dc_factor = self._factors[:, :, :k]
        self.dz, self._forget, self._dc_factor = z, forget, dc_factor
        i, f, g, o = split(z)
        product = m
        numpy.multiply(i, g, out=product)
        numpy.multiply(g, g, out=g)
        numpy.subtract(1, g, out=g)
        numpy.multiply(g, i, out=g)
        numpy.subtract(1, i, out=i)
        numpy.multiply(i, product, out=i)

        forget[...] = f
        numpy.subtract(1, f, out=f)
        numpy.multiply(f, forget, out=f)
        numpy.multiply(f, c[:, :-1], out=f)

        tanh_c = dc_factor
        numpy.tanh(c[:, 1:], out=tanh_c)
        numpy.multiply(o, tanh_c, out=m)
        numpy.multiply(tanh_c, tanh_c, out=dc_factor)
        numpy.subtract(1, dc_factor, out=dc_factor)
        numpy.multiply(dc_factor, o, out=dc_factor)
        numpy.subtract(1, o, out=o)
        numpy.multiply(o, m, out=o)
        if padding is not None:
            for factors, value in ((z, 0), (m, 0), (dc_factor, 0), (forget, 1)):
                numpy.copyto(factors, value, where=padding)

    def backward(
        self, s: int, dm: Array, carried: Array | None, dc: Array, dcells: Array | None
    ) -> Array:
        """Go back through one step; see `Gates`."""
        dz, scratch = self.dz[:, s], self._scratch
        if carried is not None:
            numpy.add(dm, carried, out=dm)
        if dcells is not None:
            numpy.add(dc, dcells, out=dc)
        numpy.multiply(dm, self._dc_factor[:, s], out=scratch)
        numpy.add(dc, scratch, out=dc)
        blocks = dz.reshape(*dc.shape[:-1], 4, dc.shape[-1])
        by_dc, by_dm = blocks[..., :3, :], blocks[..., 3, :]
        numpy.multiply(by_dc, dc[..., None, :], out=by_dc)
        numpy.multiply(by_dm, dm, out=by_dm)
        numpy.multiply(dc, self._forget[:, s], out=dc)
        return dz
