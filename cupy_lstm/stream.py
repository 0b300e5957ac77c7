"""Online inference: an LSTM fed as its steps arrive, which keeps the state between calls.

Made by `cupy_lstm.LSTM.stream`. Between calls everything that does not depend on the input stays
as it is: the copied weights, what an engine makes of them, the plans.
"""

from collections.abc import Sequence
from typing import Any

import numpy

from cupy_lstm.backend import (
    Array,
    array_module,
    is_array,
    location,
    on_device_of,
    require_current_device,
    require_same_place,
    sum_dtype,
)
from cupy_lstm.checks import checked_array, checked_pair
from cupy_lstm.interchange import adopted, array_beside
from cupy_lstm.notation import States
from cupy_lstm.snapshot import Snapshot, Step
from cupy_lstm.weights import LayerParameters, versions


class LSTMStream:
    """An LSTM that goes on where its last call ended; `LSTM.stream` makes it.

    It has a copy of the weights, and computes as the LSTM does in inference: without dropout,
    recording nothing, leaving what the LSTM has recorded alone. When a weight is set by
    `Parameter.set_value`, `set_state_dict`, an optimiser or `LSTM.to`, a call raises until
    `refresh` takes a new copy. Raw writes into ``parameter.data[...]`` are neither seen nor
    noticed.

    Streams of one LSTM are independent. One stream serves one thread at a time; threads that
    share it need a lock of their own around each call.

    On CuPy everything runs in the current stream of CUDA, and nothing synchronises: make, call and
    refresh it in one CUDA stream, or order those with events. The state stays where it is in
    memory. Calls with one step replay a CUDA graph of all layers where the engine ``"single"``
    serves them (see `cupy_lstm.plan`), which the second one records. A call can itself be
    captured, after one that was not, and given `out`: every replay then goes on from the state it
    finds. Such a graph must not be replayed after `refresh`, or when this object is gone.

    Attributes
    ----------
    batch : int
        B, rows of every call.
    time_major : bool
        Whether time is the first axis of calls with several steps: that of the LSTM when the
        stream was made.

    Examples
    --------
    >>> import numpy
    >>> from cupy_lstm import LSTM
    >>> stream = LSTM(3, 4).stream(2)
    >>> stream(numpy.zeros((2, 3), "float32")).shape
    (2, 4)
    >>> stream(numpy.zeros((2, 5, 3), "float32")).shape
    (2, 5, 4)
    """

    def __init__(self, layers: Sequence[LayerParameters], batch: int, time_major: bool) -> None:
        self.batch = batch
        self.time_major = time_major
        self._layers = layers
        self._snapshot = Snapshot(layers, batch)
        like, (P, H) = self._snapshot.like, self._state_sizes()
        xp, L = array_module(like), len(layers)
        with on_device_of(like):
            h, c = (
                xp.zeros((L, batch, P), like.dtype),
                xp.zeros((L, batch, H), sum_dtype(like.dtype)),
            )
        self._keep_in((h, c))
        self._step()

    def __call__(self, inputs: Array, *, out: Array | None = None) -> Array:
        """Run one step, or several, from the state the last call left.

        Parameters
        ----------
        inputs : array [B,I], or [B,n,I], or [n,B,I] if `time_major`
            One step, or n >= 0 of them. In the dtype and on the device of the weights, any
            strides, never written.
        out : array like the outputs, optional
            Receives them; any strides. It must not overlap `inputs`. On CuPy, views whose ranges
            of addresses meet count as overlapping.

        Returns
        -------
        array [B,P], or [B,n,P], or [n,B,P]
            h of the last layer at each step: a new array, or `out`.

        Raises
        ------
        RuntimeError
            If the weights changed since the snapshot.
        TypeError
            If an argument is no array, or is on another device than the weights.
        ValueError
            If shapes or dtypes do not fit, `out` is read-only or overlaps `inputs`, or a forced
            engine cannot serve the call. After an error the state is as it was; `out` may have
            been written.
        """
        snapshot = self._snapshot
        if snapshot.versions != versions(self._layers):
            raise RuntimeError(
                "the weights have changed since the snapshot of this stream: call "
                "stream.refresh() to go on with the new ones (the state is kept)"
            )
        like = snapshot.like
        require_current_device(like, "the weights")
        inputs = self._checked_inputs(inputs)
        if out is None and inputs.ndim == 2 and (step := self._step()) is not None:
            return step.run(inputs, None)
        shape = (*inputs.shape[:-1], snapshot.outputs)
        if out is None:
            out = target = array_module(inputs).empty(shape, like.dtype)
        else:
            target = _checked_out(out, shape, inputs, like)
        x, y = inputs, target
        if inputs.ndim == 3:
            x, y = self._over_time(inputs), self._over_time(target)
            if len(x) != 1:
                self._run(x, y[:, :, None])
                return out
            x, y = x[0], y[0]
        step = self._step()
        if step is None:
            self._run(x[None], y[None, :, None])
        else:
            step.run(x, y)
        return out

    def _run(self, x: Array, y: Array) -> None:
        """Run over x [n,B,I] into y [n,B,1,P], layer after layer."""
        xp, last = array_module(x), len(self._states) - 1
        states: list[States] = []
        for k, sweep in enumerate(self._snapshot.sweeps(len(x))):
            above = y if k == last else xp.empty((*x.shape[:2], 1, y.shape[3]), y.dtype)
            states.append(sweep.run(x, above, self._states[k]))
            x = above[:, :, 0]
        self._set(states)

    def _step(self) -> Step | None:
        """Return one step of all layers that goes on from the state, if the engine has one."""
        step = self._snapshot.step(self._memory)
        if step is not None and step.memory is not self._memory:
            for kept, values in zip(step.memory, self._memory, strict=True):
                kept[...] = values
            self._keep_in(step.memory)
        return step

    def _keep_in(self, memory: States) -> None:
        """Have the states h [L,B,P] and c [L,B,H] in these arrays from now on."""
        self._memory = h, c = memory
        self._states = [(h[k : k + 1], c[k : k + 1]) for k in range(len(h))]

    @property
    def state(self) -> States:
        """The state h [L,B,P] and c [L,B,H] as copies; it can be set.

        c is float32 for half types. A state that is set is checked and copied.

        Raises
        ------
        TypeError, ValueError
            On setting something that is no pair of arrays as wanted; nothing changes then.
        """
        h, c = zip(*self._states, strict=True)
        xp = array_module(h[0])
        with on_device_of(h[0]):
            return xp.concatenate(h), xp.concatenate(c)

    @state.setter
    def state(self, value: States) -> None:
        like, (P, H) = self._snapshot.like, self._state_sizes()
        L, B, sums = len(self._layers), self.batch, sum_dtype(like.dtype)
        h, c = checked_pair("state", value)
        h = checked_array("state[0] (h)", h, like, "the weights", (L, B, P))
        c = checked_array("state[1] (c)", c, like, "the weights", (L, B, H), sums)
        with on_device_of(like):
            self._set([(h[k : k + 1], c[k : k + 1]) for k in range(L)])

    def reset(self, rows: Any = None) -> None:
        """Set the state of all rows, or of some of them, to zero.

        Parameters
        ----------
        rows : int, sequence of int, or mask [B] of bool, optional
            Which rows, each from 0 to B-1; default all. Numbers are checked on the host, so an
            array of them must be there; a mask may be on the device of the weights, too.

        Raises
        ------
        TypeError
            If `rows` is something else, or numbers or a mask on a device where they cannot be.
        ValueError
            If there is no such row, or the shape of a mask does not fit.
        """
        like, B = self._snapshot.like, self.batch
        xp = array_module(like)
        with on_device_of(like):
            mask = True if rows is None else xp.asarray(_checked_rows(rows, B, like))[:, None]
            for state in self._states:
                for array in state:
                    # Assigned, never multiplied: a row may hold NaN.
                    xp.copyto(array, 0, where=mask)

    def refresh(self) -> None:
        """Copy the weights of the LSTM anew; the state stays.

        Raises
        ------
        RuntimeError
            If the LSTM has moved or has another dtype since the stream was made. The stream is
            left as it was then.
        """
        here, now = self._snapshot.like, self._layers[0].arrays().weight_ih
        if now.dtype != here.dtype or location(now) != location(here):
            raise RuntimeError(
                f"the LSTM is {now.dtype} on {location(now)}, but was {here.dtype} on "
                f"{location(here)} when this stream was made: make a new one with lstm.stream(...)"
            )
        snapshot = Snapshot(self._layers, self.batch)
        snapshot.step(self._memory)
        self._snapshot = snapshot
        self._step()

    def _set(self, states: Sequence[States]) -> None:
        """Copy states [1,B,...] of all layers to where they are kept."""
        for kept, given in zip(self._states, states, strict=True):
            for array, values in zip(kept, given, strict=True):
                array[...] = values

    def _state_sizes(self) -> tuple[int, int]:
        """Return P and H."""
        return self._snapshot.outputs, self._snapshot.like.shape[1] // 4

    def _checked_inputs(self, inputs: object) -> Array:
        like, B = self._snapshot.like, self.batch
        if (
            type(inputs) is type(like) is numpy.ndarray
            and inputs.shape == self._snapshot.inputs
            and inputs.dtype == like.dtype
        ):
            return inputs  # nearly always, and an online step waits for it
        array = array_beside("inputs", inputs, like, "the weights")
        checked_array("inputs", array, like, "the weights", (None,) * array.ndim)
        I = like.shape[2]  # noqa: E741
        if array.ndim not in (2, 3) or self._over_time(array).shape[1:] != (B, I):
            several = f"[steps, {B}, {I}]" if self.time_major else f"[{B}, steps, {I}]"
            raise ValueError(
                f"inputs has shape {list(array.shape)}, but must have shape [{B}, {I}] for one "
                f"step, or {several} for several"
            )
        return array

    def _over_time(self, array: Array) -> Array:
        """Return inputs or outputs as a view [n,B,F]."""
        if array.ndim == 2:
            return array[None]
        return array if self.time_major else array.swapaxes(0, 1)


def _checked_out(out: object, shape: tuple[int, ...], inputs: Array, like: Array) -> Array:
    """Return `out` as an array that outputs of this shape can go into, or raise."""
    array = checked_array("out", out, like, "the weights", shape)
    if isinstance(array, numpy.ndarray):
        if not array.flags.writeable:
            raise ValueError("out is read-only: pass an array that can be written")
        overlap = numpy.shares_memory(array, inputs)
    else:
        # Ranges of addresses only: CuPy compares single addresses on the GPU, and waits for it.
        overlap = array_module(array).may_share_memory(array, inputs)
    if overlap:
        raise ValueError("out overlaps inputs in memory: pass an array of its own")
    return array


def _checked_rows(rows: object, B: int, like: Array) -> Array:
    """Return rows as a mask [B] of bool, on the host or where `like` is."""
    wanted = f"rows must be an integer, a sequence of integers or a mask [{B}] of bool"
    array: Array = adopted("rows", rows, like)
    if not is_array(array):
        try:
            array = numpy.asarray(rows)
        except ValueError:
            raise TypeError(f"{wanted}, received {rows!r}") from None
        if array.shape == (0,):
            array = array.astype("int64")
    if array.dtype == bool and array.ndim > 0:
        if array.shape != (B,):
            raise ValueError(
                f"rows has shape {list(array.shape)}, but a mask must have shape [{B}]"
            )
        if not isinstance(array, numpy.ndarray):
            require_same_place("rows", array, like, "the weights")
        return array
    if array.dtype.kind not in "iu" or array.ndim > 1:
        raise TypeError(f"{wanted}, received {rows!r}")
    if not isinstance(array, numpy.ndarray):
        raise TypeError(
            f"rows is on {location(array)}, but numbers of rows must be on the host, where they "
            f"are checked: pass those, or a mask [{B}] of bool"
        )
    numbers = numpy.atleast_1d(array)
    wrong = numpy.flatnonzero((numbers < 0) | (numbers >= B))
    if wrong.size:
        place = f"[{wrong[0]}]" if array.ndim else ""
        raise ValueError(f"rows{place} is {numbers[wrong[0]]}, but rows go from 0 to {B - 1}")
    mask = numpy.zeros(B, bool)
    mask[numbers] = True
    return mask
