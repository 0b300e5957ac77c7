"""Cells over sequences: `RNN` in one direction, `BiRNN` in both, as in Paddle."""

from types import ModuleType
from typing import Any

import numpy

from cupy_lstm.backend import Array, array_module
from cupy_lstm.cell import (
    Gradients,
    LSTMCell,
    States,
    checked_inputs,
    checked_sweep_gradients,
    sweep,
    sweep_back,
)
from cupy_lstm.checks import checked_array, checked_boolean, checked_pair
from cupy_lstm.lengths import CheckedLengths, checked_lengths
from cupy_lstm.recorder import RecordedLayer
from cupy_lstm.weights import versions


class _CellLayer(RecordedLayer):
    """What `RNN` and `BiRNN` share: their cells' place, their layout, their tape."""

    def __init__(self, cells: dict[str, LSTMCell], time_major: bool) -> None:
        for argument, cell in cells.items():
            if not isinstance(cell, LSTMCell):
                raise TypeError(f"{argument} must be an LSTMCell, received {type(cell).__name__}")
        first = next(iter(cells.values()))
        for argument, cell in cells.items():
            for field in ("input_size", "dtype", "xp"):
                if getattr(cell, field) != getattr(first, field):
                    raise ValueError(
                        f"the cells must agree in {field}: {argument} has "
                        f"{getattr(cell, field)}, the first has {getattr(first, field)}"
                    )
        super().__init__(first.dtype, first.xp)
        self.time_major = time_major
        vars(self).update(cells)
        self._cells = list(cells.values())

    @property
    def time_major(self) -> bool:
        """Whether the first axis of inputs and outputs is time."""
        return self._time_major

    @time_major.setter
    def time_major(self, value: bool) -> None:
        self._time_major = checked_boolean("time_major", value)

    @property
    def dtype(self) -> "numpy.dtype[Any]":
        """Dtype of the cells, which may be moved on their own."""
        return self._cells[0].dtype

    @property
    def xp(self) -> ModuleType:
        """The array module the cells live in."""
        return self._cells[0].xp

    def __repr__(self) -> str:
        words = [repr(cell) for cell in self._cells]
        words += [
            f"{flag}=True" for flag in ("is_reverse", "time_major") if getattr(self, flag, False)
        ]
        return f"{type(self).__name__}({', '.join(words)})"

    def _versions(self) -> object:
        return versions([cell._layer for cell in self._cells])


class RNN(_CellLayer):
    """A cell run over sequences, with the interface of `paddle.nn.RNN` (LSTM cells only).

    Parameters
    ----------
    cell : LSTMCell
        Its parameters are those of the layer.
    is_reverse : bool
        Whether to run from the end; outputs stay aligned with the inputs.
    time_major : bool
        Whether the first axis of inputs and outputs is time.

    Raises
    ------
    TypeError
        If `cell` is no LSTMCell.
    ValueError
        If a flag is no bool.
    """

    def __init__(self, cell: LSTMCell, is_reverse: bool = False, time_major: bool = False) -> None:
        super().__init__({"cell": cell}, time_major)
        self.is_reverse = is_reverse

    @property
    def is_reverse(self) -> bool:
        """Whether the cell runs from the end."""
        return self._is_reverse

    @is_reverse.setter
    def is_reverse(self, value: bool) -> None:
        self._is_reverse = checked_boolean("is_reverse", value)

    def __call__(
        self, inputs: Array, initial_states: States | None = None, sequence_length: Any = None
    ) -> tuple[Array, States]:
        """Run the cell over a batch of sequences.

        Parameters
        ----------
        inputs : array [B,T,I], or [T,B,I] if `time_major`
            Kept by reference until `backward`, never written.
        initial_states : tuple (h, c), optional
            h [B,P] and c [B,H]. Default zeros.
        sequence_length : array-like of int [B], optional
            As of `LSTM`; in reverse a row starts at its last valid step.

        Returns
        -------
        outputs : array [B,T,P], or [T,B,P]
            h at every step, zero in padding.
        final_states : tuple (h, c)
            h [B,P] and c [B,H].

        Raises
        ------
        TypeError, ValueError
            As `LSTM`.
        """
        (cell,) = self._cells
        outputs, states, tape = sweep(
            cell,
            inputs,
            initial_states,
            sequence_length,
            self.is_reverse,
            self.time_major,
            "initial_states",
        )
        self._recorder.keep(tape, self._versions())
        return outputs, states

    def backward(
        self, doutputs: Array | None = None, dfinal_states: Gradients | None = None
    ) -> tuple[Array, States]:
        """Backpropagate through the last call and add to the gradients of the cell.

        Parameters
        ----------
        doutputs : array like the outputs, optional
            Their gradient.
        dfinal_states : tuple (dh, dc), optional
            dh [B,P] and dc [B,H]; either may be None.

        Returns
        -------
        dinputs : array like the inputs
            Zero in padding.
        dinitial_states : tuple (dh0, dc0)
            dh0 [B,P] and dc0 [B,H].

        Raises
        ------
        RuntimeError, TypeError, ValueError
            As `LSTM.backward`.
        """
        (cell,) = self._cells
        tape = self._recorder.current(self._versions())
        gradients = checked_sweep_gradients(cell, tape, doutputs, dfinal_states, "dfinal_states")
        results = sweep_back(cell, tape, *gradients)
        self._recorder.clear()
        return results


class BiRNN(_CellLayer):
    """Two cells run over the same sequences from both ends, as `paddle.nn.BiRNN`.

    Parameters
    ----------
    cell_fw, cell_bw : LSTMCell
        The cells of the forward and of the reverse direction; hidden sizes may differ.
    time_major : bool
        Whether the first axis of inputs and outputs is time.

    Raises
    ------
    TypeError
        If a cell is no LSTMCell.
    ValueError
        If the cells differ in input size, dtype or array module, or the flag is no bool.
    """

    def __init__(self, cell_fw: LSTMCell, cell_bw: LSTMCell, time_major: bool = False) -> None:
        super().__init__({"cell_fw": cell_fw, "cell_bw": cell_bw}, time_major)

    def __call__(
        self,
        inputs: Array,
        initial_states: tuple[States, States] | None = None,
        sequence_length: Any = None,
    ) -> tuple[Array, tuple[States, States]]:
        """Run both cells over a batch of sequences.

        Parameters
        ----------
        inputs : array [B,T,I], or [T,B,I] if `time_major`
            Kept by reference until `backward`, never written.
        initial_states : tuple ((h, c), (h, c)), optional
            Of the forward and the reverse cell, h [B,P] and c [B,H]. Default zeros.
        sequence_length : array-like of int [B], optional
            As of `LSTM`.

        Returns
        -------
        outputs : array [B,T,P_fw+P_bw], or [T,B,P_fw+P_bw]
            h of both cells at every step, zero in padding.
        final_states : tuple ((h, c), (h, c))
            Of the forward and the reverse cell.

        Raises
        ------
        TypeError, ValueError
            As `LSTM`.
        """
        both: tuple[Any, Any] = (None, None)
        if initial_states is not None:
            both = checked_pair("initial_states", initial_states, "((h, c), (h, c))")
        inputs = checked_inputs(self._cells[0], inputs, self.time_major)
        rows = inputs.shape[:2] if self.time_major else inputs.shape[1::-1]
        # Once for both sweeps: else the second would report what the first has found.
        lengths = CheckedLengths(checked_lengths(sequence_length, rows[1], rows[0], inputs, False))
        outputs, states, tapes = zip(
            *(
                sweep(
                    cell,
                    inputs,
                    both[d],
                    lengths,
                    bool(d),
                    self.time_major,
                    f"initial_states[{d}]",
                )
                for d, cell in enumerate(self._cells)
            ),
            strict=True,
        )
        recorded = None if tapes[0] is None else tapes
        self._recorder.keep(recorded, self._versions())
        return array_module(*outputs).concatenate(outputs, axis=2), (states[0], states[1])

    def backward(
        self,
        doutputs: Array | None = None,
        dfinal_states: tuple[Gradients | None, Gradients | None] | None = None,
    ) -> tuple[Array, tuple[States, States]]:
        """Backpropagate through the last call and add to the gradients of both cells.

        Parameters
        ----------
        doutputs : array like the outputs, optional
            Their gradient.
        dfinal_states : tuple ((dh, dc), (dh, dc)), optional
            Of the forward and the reverse cell; any of them may be None.

        Returns
        -------
        dinputs : array like the inputs
            Zero in padding.
        dinitial_states : tuple ((dh0, dc0), (dh0, dc0))
            Of the forward and the reverse cell.

        Raises
        ------
        RuntimeError, TypeError, ValueError
            As `LSTM.backward`.
        """
        tapes = self._recorder.current(self._versions())
        halves: tuple[Any, Any] = (None, None)
        sizes = [cell.output_size for cell in self._cells]
        if doutputs is not None:
            x = tapes[0].x
            rows = x.shape[:2] if self.time_major else x.shape[1::-1]
            doutputs = checked_array("doutputs", doutputs, x, "the inputs", (*rows, sum(sizes)))
            halves = doutputs[..., : sizes[0]], doutputs[..., sizes[0] :]
        both: list[Any] = [None, None]
        if dfinal_states is not None:
            both = list(checked_pair("dfinal_states", dfinal_states, "((dh, dc), (dh, dc))"))
        for d, states in enumerate(both):
            if states is not None:
                both[d] = checked_pair(f"dfinal_states[{d}]", states, "(dh, dc)")
        silent = [pair is None or all(gradient is None for gradient in pair) for pair in both]
        if doutputs is None and all(silent):
            raise ValueError("backward needs the gradient of some output, received None for all")
        if doutputs is None:
            for d, cell in enumerate(self._cells):
                if silent[d]:
                    # The other cell has gradients, and this one's input gradient is zero.
                    shape = (tapes[d].x.shape[1], cell.output_size)
                    both[d] = array_module(tapes[d].x).zeros(shape, cell.dtype), None
        # Everything is checked before anything is added to a gradient.
        gradients = [
            checked_sweep_gradients(cell, tapes[d], halves[d], both[d], f"dfinal_states[{d}]")
            for d, cell in enumerate(self._cells)
        ]
        dinputs, dstates = zip(
            *(
                sweep_back(cell, tape, *gradient)
                for cell, tape, gradient in zip(self._cells, tapes, gradients, strict=True)
            ),
            strict=True,
        )
        self._recorder.clear()
        return dinputs[0] + dinputs[1], (dstates[0], dstates[1])
