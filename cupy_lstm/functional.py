"""The LSTM as pure functions: no parameters, no modes, no state.

`lstm_forward` and `lstm_backward` check their arguments and do everything `cupy_lstm.LSTM` does;
that class adds parameters and remembers the tape.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy

from cupy_lstm import network
from cupy_lstm.backend import Array, array_module, require_current_device, sum_dtype
from cupy_lstm.checks import checked_array, checked_optional_integer, checked_pair
from cupy_lstm.dropout import Dropout
from cupy_lstm.lengths import checked_lengths
from cupy_lstm.modes import forced_engine, is_recording
from cupy_lstm.notation import LayerGradients, LayerWeights, States, Wanted
from cupy_lstm.ranges import stage
from cupy_lstm.steps import Directions
from cupy_lstm.weight_checks import check_targets, checked_reverse, checked_weights

Upstream = tuple[Array | None, tuple[Array | None, Array | None], Array | None]
"""The gradients a backward pass starts from: of the outputs, the final states and the cells."""


@dataclass
class Tape:
    """What `lstm_backward` needs of one `lstm_forward`; good for one backward pass.

    Attributes
    ----------
    x : array [T,B,I]
        The input in time order, by reference: do not change it before the backward pass.
    weights : sequence of LayerWeights
        The weights of the call, by reference.
    reverse : Directions
        Which directions run from the end.
    time_major : bool
        Layout of inputs and outputs.
    used : bool
        Whether a backward pass has used it up.
    """

    x: Array
    weights: Sequence[LayerWeights]
    reverse: Directions
    time_major: bool
    network: network.Tape
    used: bool = False


def lstm_forward(
    inputs: Array,
    weights: Sequence[LayerWeights],
    initial_states: tuple[Array, Array] | None = None,
    sequence_length: Any = None,
    *,
    reverse: Directions = (False,),
    time_major: bool = False,
    dropout: Dropout | None = None,
    return_cells: bool = False,
    check_lengths: bool = False,
    checkpoint_every: int | None = None,
) -> tuple[Any, ...]:
    """Run an LSTM of any number of layers over a batch of sequences.

    Parameters
    ----------
    inputs : array [B,T,I], or [T,B,I] if `time_major`
        float32 or float64, NumPy or CuPy, or float16 or bfloat16, CuPy; any strides; kept by
        reference, never written. Arrays of other libraries are taken in, here and in all that
        follows but the weights; `cupy_lstm.interchange` says how. With half types c, cells and the
        gradients of weights are float32.
    weights : sequence of LayerWeights
        One for each layer, lowest first: `cupy_lstm.notation` has the shapes and the equations.
    initial_states : tuple (h, c), optional
        h [L*D,B,P] and c [L*D,B,H]; index layer * D + direction. Default zeros.
    sequence_length : array-like of int [B], optional
        Valid steps of each row, 0 to T; may be on the host for CuPy inputs too. Steps beyond
        are padding: never used, zero in the outputs, without gradient.
    reverse : tuple of bool
        For each of the D directions whether it runs from the end: ``(False, True)`` for both.
    time_major : bool
        Whether the first axis is time.
    dropout : Dropout, optional
        Applied to the input of every layer but the first.
    return_cells : bool
        Whether to return the cell states of all steps, too.
    check_lengths : bool
        Whether lengths on a GPU are read back and checked, which synchronises; unchecked ones
        act as if clamped to [0, T].
    checkpoint_every : int, optional
        What the tape keeps of each layer: its input, and h and c before every so many steps,
        rounded up as `cupy_lstm.plan.Plan.steps_per_segment` says. Backward makes the rest again,
        in the time of one more forward; the results are the same to the last bit. Default: the
        tape keeps everything.

    Returns
    -------
    outputs : array [B,T,D*P], or [T,B,D*P]
        h of the last layer at every step.
    final_states : tuple (h, c)
        h [L*D,B,P] and c [L*D,B,H] after each row's last valid step.
    cells : array [B,T,D*H], or [T,B,D*H]
        Only with `return_cells`: c of the last layer at every step.
    tape : Tape or None
        For `lstm_backward`; None inside `cupy_lstm.no_grad`.

    Raises
    ------
    TypeError
        If an argument is no array, or is on another device than the weights.
    ValueError
        If shapes, dtypes or lengths do not fit.
    """
    reverse = checked_reverse(reverse)
    weights = checked_weights(weights, len(reverse))
    if dropout is not None and not isinstance(dropout, Dropout):
        raise TypeError(f"dropout must be a Dropout or None, received {type(dropout).__name__}")
    return run_forward(
        inputs,
        weights,
        initial_states,
        sequence_length,
        reverse=reverse,
        time_major=time_major,
        dropout=dropout,
        return_cells=return_cells,
        check_lengths=check_lengths,
        checkpoint_every=checked_optional_integer("checkpoint_every", checkpoint_every),
        keep=is_recording(),
    )


def run_forward(
    inputs: Array,
    weights: Sequence[LayerWeights],
    initial_states: tuple[Array, Array] | None,
    sequence_length: Any,
    *,
    reverse: Directions,
    time_major: bool,
    dropout: Dropout | None,
    return_cells: bool,
    check_lengths: bool,
    checkpoint_every: int | None,
    keep: bool,
    prepared: network.Prepared | None = None,
) -> tuple[Any, ...]:
    """Do what `lstm_forward` does, with weights and options that are known to fit.

    Parameters
    ----------
    keep : bool
        Whether to return a tape.
    prepared : callable, optional
        Returns the weights as an engine has prepared them; see `cupy_lstm.network.forward`.

    Other Parameters
    ----------------
    inputs, weights, initial_states, sequence_length, reverse, time_major, dropout, return_cells,
    check_lengths, checkpoint_every
        As of `lstm_forward`; inputs, states and lengths are checked here.
    """
    reference = weights[0].weight_ih
    require_current_device(reference, "the weights")
    I = reference.shape[2]  # noqa: E741
    axes = ("steps", "batch", I) if time_major else ("batch", "steps", I)
    inputs = checked_array("inputs", inputs, reference, "the weights", axes)
    x = inputs if time_major else inputs.swapaxes(0, 1)
    T, B, _ = x.shape
    D, H, P = len(reverse), reference.shape[1] // 4, weights[0].weight_hh.shape[2]
    L, sums = len(weights), sum_dtype(x.dtype)
    xp = array_module(x)
    if initial_states is None:
        states: States = (
            xp.zeros((L * D, B, P), x.dtype),
            xp.zeros((L * D, B, H), sums),
        )
    else:
        h0, c0 = checked_pair("initial_states", initial_states)
        states = (
            checked_array("initial_states[0] (h)", h0, reference, "the weights", (L * D, B, P)),
            checked_array(
                "initial_states[1] (c)", c0, reference, "the weights", (L * D, B, H), sums
            ),
        )
    lengths = checked_lengths(sequence_length, B, T, x, check_lengths)

    outputs = _empty(x, D * P, time_major, x.dtype)
    cells = _empty(x, D * H, time_major, sums) if return_cells else None
    with stage("forward" if keep else "inference"):
        final_states, tape = network.forward(
            x,
            weights,
            states,
            lengths,
            reverse=reverse,
            y=_over_time(outputs, D, time_major),
            cells=None if cells is None else _over_time(cells, D, time_major),
            dropout=dropout,
            keep=keep,
            engine=forced_engine(),
            checkpoint_every=checkpoint_every,
            prepared=prepared,
        )
    kept = None if tape is None else Tape(x, weights, reverse, time_major, tape)
    if return_cells:
        return outputs, final_states, cells, kept
    return outputs, final_states, kept


def lstm_backward(
    tape: Tape,
    doutputs: Array | None = None,
    dfinal_states: tuple[Array | None, Array | None] | None = None,
    dcells: Array | None = None,
    *,
    wanted: Sequence[Wanted] | None = None,
    inputs_wanted: bool = True,
    gradients: Sequence[LayerGradients] | None = None,
    layer_done: Callable[[int], None] | None = None,
) -> tuple[Array | None, tuple[Array, Array], Sequence[LayerGradients]]:
    """Backpropagate exactly through a recorded `lstm_forward`.

    Parameters
    ----------
    tape : Tape
        Used up.
    doutputs : array like the outputs, optional
        Their gradient; what it holds in padding is ignored.
    dfinal_states : tuple (dh, dc), optional
        Gradients of the final states; either may be None.
    dcells : array [B,T,D*H], or [T,B,D*H], optional
        Gradient of the cell states of all steps.
    wanted : sequence of Wanted, optional
        Whose weight gradients to compute; default all.
    inputs_wanted : bool
        Whether to compute the gradient of the inputs.
    gradients : sequence of LayerGradients, optional
        Arrays to add the weight gradients into; default new ones.
    layer_done : callable, optional
        Called with a layer's number when its weight gradients are complete.

    Returns
    -------
    dinputs : array like the inputs, or None
        Zero in padding; None if it is not wanted.
    dinitial_states : tuple (dh0, dc0)
        Gradients of the initial states, whether they were given or not.
    gradients : sequence of LayerGradients
        The arrays that were added into.

    Raises
    ------
    RuntimeError
        If the tape has been used.
    TypeError, ValueError
        If a gradient has the wrong device, dtype or shape; the tape is still good then.
    """
    upstream = checked_upstream(tape, doutputs, dfinal_states, dcells)
    x, xp = tape.x, array_module(tape.x)
    if wanted is None:
        wanted = [_for_each_weight(weights, lambda _: slice(None)) for weights in tape.weights]
    if gradients is None:
        gradients = [
            _for_each_weight(weights, lambda weight: xp.zeros(weight.shape, sum_dtype(x.dtype)))
            for weights in tape.weights
        ]
    check_targets(tape.weights, wanted, gradients)
    dinputs, dinitial_states = run_backward(
        tape,
        upstream,
        wanted=wanted,
        inputs_wanted=inputs_wanted,
        gradients=gradients,
        layer_done=layer_done,
    )
    return dinputs, dinitial_states, gradients


def run_backward(
    tape: Tape,
    upstream: Upstream,
    *,
    wanted: Sequence[Wanted],
    gradients: Sequence[LayerGradients],
    inputs_wanted: bool = True,
    unset: network.Unset | None = None,
    layer_done: Callable[[int], None] | None = None,
) -> tuple[Array | None, tuple[Array, Array]]:
    """Do what `lstm_backward` does, with what `checked_upstream` returned and fitting gradients.

    Parameters
    ----------
    unset : callable, optional
        Returns the weights whose gradients are set; see `cupy_lstm.network.backward`.

    Other Parameters
    ----------------
    tape, upstream, wanted, gradients, inputs_wanted, layer_done
        As of `lstm_backward`.
    """
    doutputs, (dh, dc), dcells = upstream
    x, D = tape.x, len(tape.reverse)
    (T, B, _), xp = x.shape, array_module(x)
    rows = (T, B) if tape.time_major else (B, T)
    dinputs = None
    if inputs_wanted:
        make = xp.empty if network.sets_input_gradient(tape.network) else xp.zeros
        dinputs = make((*rows, x.shape[2]), x.dtype)
    tape.used = True
    with stage("backward"):
        dinitial_states = network.backward(
            tape.network,
            None if doutputs is None else _over_time(doutputs, D, tape.time_major),
            (dh, dc),
            None if dcells is None else _over_time(dcells, D, tape.time_major),
            wanted=wanted,
            gradients=gradients,
            dx=dinputs if dinputs is None or tape.time_major else dinputs.swapaxes(0, 1),
            unset=unset,
            layer_done=layer_done,
        )
    # Summed in float32 for half types, and returned in the dtypes of the states.
    dh0, dc0 = dinitial_states
    return dinputs, (dh0.astype(x.dtype, copy=False), dc0)


def checked_upstream(
    tape: Tape,
    doutputs: Array | None,
    dfinal_states: tuple[Array | None, Array | None] | None,
    dcells: Array | None,
) -> Upstream:
    """Return the gradients a backward pass starts from, checked as `lstm_backward` says."""
    if not isinstance(tape, Tape):
        raise TypeError(
            "tape must be the Tape of a recorded lstm_forward (inside no_grad() none is kept), "
            f"received {type(tape).__name__}"
        )
    if tape.used:
        raise RuntimeError("the tape of this forward has been used: run the forward again")
    x, L, D = tape.x, len(tape.weights), len(tape.reverse)
    require_current_device(x, "the inputs")
    H, P = tape.weights[0].weight_ih.shape[1] // 4, tape.weights[0].weight_hh.shape[2]
    T, B, _ = x.shape
    rows = (T, B) if tape.time_major else (B, T)
    dstates: tuple[Array | None, Array | None] = (None, None)
    if dfinal_states is not None:
        dstates = checked_pair("dfinal_states", dfinal_states, "(dh, dc)")
    upstream = (
        ("doutputs", doutputs, (*rows, D * P), x.dtype),
        ("dfinal_states[0] (dh)", dstates[0], (L * D, B, P), x.dtype),
        ("dfinal_states[1] (dc)", dstates[1], (L * D, B, H), sum_dtype(x.dtype)),
        ("dcells", dcells, (*rows, D * H), sum_dtype(x.dtype)),
    )
    if all(value is None for _, value, _, _ in upstream):
        raise ValueError("backward needs the gradient of some output, received None for all")
    doutputs, dh, dc, dcells = (
        None if value is None else checked_array(argument, value, x, "the inputs", shape, dtype)
        for argument, value, shape, dtype in upstream
    )
    return doutputs, (dh, dc), dcells


def _for_each_weight(weights: LayerWeights, function: Callable[[Array], Any]) -> Any:
    return LayerGradients(*(None if weight is None else function(weight) for weight in weights))


def _empty(x: Array, features: int, time_major: bool, dtype: "numpy.dtype[Any]") -> Array:
    """Return a new array for `features` over the times and rows of x [T,B,I]."""
    T, B, _ = x.shape
    return array_module(x).empty((T, B, features) if time_major else (B, T, features), dtype)


def _over_time(array: Array, D: int, time_major: bool) -> Array:
    """Return an array of the caller's layout as a view [T,B,D,F]."""
    array = array if time_major else array.swapaxes(0, 1)
    T, B, features = array.shape
    # Splitting the last axis never copies, whatever the strides of the others.
    return array.reshape(T, B, D, features // D)
