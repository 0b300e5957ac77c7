"""One LSTM cell: a single step, and what `RNN` and `BiRNN` run over a sequence."""

from types import ModuleType
from typing import Any

from cupy_lstm.backend import Array, require_current_device, sum_dtype
from cupy_lstm.checks import (
    checked_array,
    checked_integer,
    checked_name,
    checked_pair,
    checked_projection,
    seeded_generator,
)
from cupy_lstm.functional import Tape, checked_upstream, lstm_backward, lstm_forward
from cupy_lstm.parameter import Parameter
from cupy_lstm.recorder import RecordedLayer
from cupy_lstm.weights import LayerParameters, attributes, require_unique_names, versions

States = tuple[Array, Array]
Gradients = tuple[Array | None, Array | None]


class LSTMCell(RecordedLayer):
    """One step of an LSTM, with the interface of `paddle.nn.LSTMCell`.

    Parameters
    ----------
    input_size : int
        I, features of the input.
    hidden_size : int
        H, units.
    weight_ih_attr, weight_hh_attr, bias_ih_attr, bias_hh_attr : optional
        As of `LSTM`.
    name : str, optional
        Accepted as Paddle does; it names nothing.
    proj_size : int
        P, size of a projection of the output; 0 for none (P = H).
    dtype : dtype-like
        float32 or float64, or float16 or bfloat16 on CuPy.
    xp : module or str
        ``numpy`` or ``cupy``: where the weights live.
    seed : int, optional
        Seed of the first weights; default: a fresh one.

    Attributes
    ----------
    weight_ih, weight_hh, bias_ih, bias_hh : Parameter
        [4H,I], [4H,P], [4H], [4H]; gate rows i, f, g, o. An absent bias is None.
    weight_ho : Parameter
        [H,P], only with a projection.

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong type or an impossible value.
    ImportError
        If `xp` is CuPy and cannot be imported.
    """

    weight_ih: Parameter
    weight_hh: Parameter
    bias_ih: Parameter | None
    bias_hh: Parameter | None
    weight_ho: Parameter

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        weight_ih_attr: Any = None,
        weight_hh_attr: Any = None,
        bias_ih_attr: Any = None,
        bias_hh_attr: Any = None,
        name: str | None = None,
        *,
        proj_size: int = 0,
        dtype: Any = "float32",
        xp: str | ModuleType = "numpy",
        seed: int | None = None,
    ) -> None:
        super().__init__(dtype, xp)
        self.input_size = checked_integer("input_size", input_size)
        self.hidden_size = checked_integer("hidden_size", hidden_size)
        self.proj_size = checked_projection(proj_size, self.hidden_size)
        checked_name(name)
        attrs = attributes(
            weight_ih_attr, weight_hh_attr, bias_ih_attr, bias_hh_attr, self.proj_size > 0
        )
        require_unique_names(attrs, 1)
        self._layer = LayerParameters(
            self.input_size,
            self.hidden_size,
            self.output_size,
            attrs,
            [""],
            seeded_generator(seed),
            self.xp,
            self.dtype,
        )
        vars(self).update(self._layer.named())
        self._absent = [name for name, value in self._layer.named().items() if value is None]

    @property
    def output_size(self) -> int:
        """P: `proj_size`, or `hidden_size` without a projection."""
        return self.proj_size or self.hidden_size

    @property
    def state_shape(self) -> tuple[tuple[int], tuple[int]]:
        """Shapes of h and c without the batch axis."""
        return (self.output_size,), (self.hidden_size,)

    def __call__(self, inputs: Array, states: States | None = None) -> tuple[Array, States]:
        """Run one step.

        Parameters
        ----------
        inputs : array [B,I]
            Kept by reference until `backward`, never written.
        states : tuple (h, c), optional
            h [B,P] and c [B,H]. Default zeros.

        Returns
        -------
        output : array [B,P]
            h after the step.
        states : tuple (h, c)
            h, the same array, and c after the step.

        Raises
        ------
        TypeError
            If an argument is no array, or is on another device than the weights.
        ValueError
            If shapes or dtypes do not fit.
        """
        reference = self._layer.arrays().weight_ih
        size = ("batch", self.input_size)
        inputs = checked_array("inputs", inputs, reference, "the weights", size)
        _, (h, c), tape = sweep(self, inputs[None], states, None, False, True, "states")
        self._recorder.keep(tape, versions([self._layer]))
        return h, (h, c)

    def backward(
        self, doutputs: Array | None = None, dfinal_states: Gradients | None = None
    ) -> tuple[Array, States]:
        """Go back through the last call and add to the gradients of the parameters.

        Parameters
        ----------
        doutputs : array [B,P], optional
            Gradient of the output.
        dfinal_states : tuple (dh, dc), optional
            Gradients of the states returned beside it; either may be None. The output and h are
            one array: their gradients add up.

        Returns
        -------
        dinputs : array [B,I]
            Gradient of the input.
        dstates : tuple (dh, dc)
            Gradients of the states before the step, whether they were given or not.

        Raises
        ------
        RuntimeError
            If there is no recorded call to go back through, or the weights changed since.
        TypeError, ValueError
            If a gradient has the wrong device, dtype or shape, or none is given.
        """
        tape = self._recorder.current(versions([self._layer]))
        if doutputs is not None:
            shape = (tape.x.shape[1], self.output_size)
            doutputs = checked_array("doutputs", doutputs, tape.x, "the inputs", shape)[None]
        gradients = checked_sweep_gradients(self, tape, doutputs, dfinal_states, "dfinal_states")
        dinputs, dstates = sweep_back(self, tape, *gradients)
        self._recorder.clear()
        return dinputs[0], dstates

    def get_initial_states(self, batch_ref: Array, batch_dim_idx: int = 0) -> States:
        """Return zero states for the batch size of `batch_ref`, as ``(h [B,P], c [B,H])``."""
        B = batch_ref.shape[batch_dim_idx]
        dtypes = (self.dtype, sum_dtype(self.dtype))
        h, c = (
            self.xp.zeros((B, *shape), dtype)
            for shape, dtype in zip(self.state_shape, dtypes, strict=True)
        )
        return h, c

    def __repr__(self) -> str:
        projection = f", proj_size={self.proj_size}" if self.proj_size else ""
        return f"LSTMCell({self.input_size}, {self.hidden_size}{projection})"


def checked_inputs(cell: LSTMCell, inputs: Array, time_major: bool) -> Array:
    """Return the inputs of a sweep, [B,T,I], or [T,B,I] if `time_major`, checked."""
    weight = cell._layer.arrays().weight_ih
    require_current_device(weight, "the weights")
    axes = ("steps", "batch") if time_major else ("batch", "steps")
    return checked_array("inputs", inputs, weight, "the weights", (*axes, cell.input_size))


def sweep(
    cell: LSTMCell,
    inputs: Array,
    states: object,
    sequence_length: object,
    reverse: bool,
    time_major: bool,
    argument: str,
) -> tuple[Array, States, Tape | None]:
    """Run a cell over a sequence: the body of `RNN` and `BiRNN`.

    Parameters
    ----------
    cell : LSTMCell
        Whose weights to use.
    inputs, sequence_length, time_major
        As of `LSTM`.
    states : tuple (h [B,P], c [B,H]), or None
        Without the leading axis of `LSTM`'s states.
    reverse : bool
        Whether to run from the end.
    argument : str
        What the caller's argument for `states` is called.

    Returns
    -------
    outputs : array [B,T,P], or [T,B,P]
        h at every step.
    states : tuple (h, c)
        h [B,P] and c [B,H].
    tape : Tape or None
        For `sweep_back`.
    """
    weights = cell._layer.arrays()
    initial = None
    if states is not None:
        inputs = checked_inputs(cell, inputs, time_major)
        B = inputs.shape[1 if time_major else 0]
        h, c = checked_pair(argument, states)
        (P,), (H,), like = *cell.state_shape, weights.weight_ih
        sums = sum_dtype(like.dtype)
        h = checked_array(f"{argument}[0] (h)", h, like, "the weights", (B, P))
        c = checked_array(f"{argument}[1] (c)", c, like, "the weights", (B, H), sums)
        initial = h[None], c[None]
    outputs, (h, c), tape = lstm_forward(
        inputs, [weights], initial, sequence_length, reverse=(reverse,), time_major=time_major
    )
    return outputs, (h[0], c[0]), tape


def checked_sweep_gradients(
    cell: LSTMCell, tape: Tape, doutputs: Array | None, dstates: object, argument: str
) -> tuple[Array | None, Gradients]:
    """Return the gradients that `sweep_back` starts from, checked."""
    dh: Array | None = None
    dc: Array | None = None
    if dstates is not None:
        dh, dc = checked_pair(argument, dstates, "(dh, dc)")
        (P,), (H,), B = *cell.state_shape, tape.x.shape[1]
        if dh is not None:
            dh = checked_array(f"{argument}[0]", dh, tape.x, "the inputs", (B, P))[None]
        if dc is not None:
            sums = sum_dtype(tape.x.dtype)
            dc = checked_array(f"{argument}[1]", dc, tape.x, "the inputs", (B, H), sums)[None]
    doutputs, gradients, _ = checked_upstream(tape, doutputs, (dh, dc), None)
    return doutputs, gradients


def sweep_back(
    cell: LSTMCell, tape: Tape, doutputs: Array | None, dstates: Gradients
) -> tuple[Array, States]:
    """Go back through a `sweep` and add to the gradients of the cell's parameters.

    Returns
    -------
    dinputs : array like the inputs
        Gradient of the inputs.
    dstates : tuple (dh, dc)
        dh [B,P] and dc [B,H] of the initial states.
    """
    layer = cell._layer
    with cell._recorder.exclusive():
        dinputs, (dh, dc), _ = lstm_backward(
            tape, doutputs, dstates, wanted=[layer.wanted()], gradients=[layer.gradients()]
        )
        layer.mark_gradients()
    return dinputs, (dh[0], dc[0])
