"""Layers upon layers: one-layer sweeps, dropout between them, states and gradients of all.

Pure functions of arrays over time in time order, [T,B,...], whatever their strides; nothing here
knows parameters, layouts or modes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any

from cupy_lstm import engines, recompute
from cupy_lstm.backend import Array, array_module, dtype_name
from cupy_lstm.device import facts_for
from cupy_lstm.dropout import Dropout
from cupy_lstm.notation import LayerGradients, LayerWeights, States, Wanted, layer_shape
from cupy_lstm.plan import remembered_plan
from cupy_lstm.ranges import stage
from cupy_lstm.steps import Directions, Tapes

Prepared = Callable[[int, ModuleType], Any]
"""Returns the weights of a layer as an engine has prepared them."""

Unset = Callable[[int], frozenset[str]]
"""Returns the weights of a layer whose gradients hold nothing: they are set, not added to."""


@dataclass
class LayerTape:
    """What the backward pass of a layer needs.

    Attributes
    ----------
    engine : module
        Ran it.
    x : array [T,B,I]
        Its input.
    weights : LayerWeights
    tapes : Tapes
        The engine's.
    """

    engine: ModuleType
    x: Array
    weights: LayerWeights
    tapes: Tapes[Any]


@dataclass
class Tape:
    """What the backward pass of a whole network needs.

    Attributes
    ----------
    layers : list of LayerTape
        Lowest first.
    dropout : Dropout or None
        Applied to the input of every layer but the first.
    """

    layers: list[LayerTape]
    dropout: Dropout | None


def forward(
    x: Array,
    layers: Sequence[LayerWeights],
    states: States,
    lengths: Array | None,
    *,
    reverse: Directions,
    y: Array,
    cells: Array | None,
    dropout: Dropout | None,
    keep: bool,
    engine: str,
    checkpoint_every: int | None = None,
    prepared: Prepared | None = None,
) -> tuple[States, Tape | None]:
    """Run all layers forward.

    Parameters
    ----------
    x : array [T,B,I]
        Input of the first layer.
    layers : sequence of LayerWeights
        Lowest first.
    states : tuple of array [L*D,B,P] and [L*D,B,H]
        Initial h and c.
    lengths : array [B] of int, or None
        Valid times of each row.
    reverse : Directions
        Which directions run from the end, the same in every layer.
    y : array [T,B,D,P]
        Receives the output of the last layer.
    cells : array [T,B,D,H] or None
        Receives the cell states of the last layer.
    dropout : Dropout or None
        Applied to the input of every layer but the first.
    keep : bool
        Whether to return a tape.
    engine : str
        Name of the engine to use, or ``"auto"``.
    checkpoint_every : int, optional
        A tape keeps only the states before every so many steps; `cupy_lstm.recompute`.
    prepared : callable, optional
        Without a tape: called with a layer's number and its engine, returns what the engine is
        given for the weights. Default: the weights.

    Returns
    -------
    states : tuple of array [L*D,B,P] and [L*D,B,H]
        Final h and c, new arrays.
    tape : Tape or None
        For `backward`.
    """
    xp, (T, B) = array_module(x), x.shape[:2]
    h, c = xp.empty_like(states[0]), xp.empty_like(states[1])
    tape, device = Tape([], dropout), facts_for(xp.__name__)
    dtype = dtype_name(x.dtype)
    every = checkpoint_every if keep else None
    for layer, weights in enumerate(layers):
        last = layer == len(layers) - 1
        shape = layer_shape(T, B, weights)
        plan = remembered_plan(shape, dtype, xp.__name__, keep, engine, device)
        runner = engines.load(plan.engine)
        if layer > 0 and dropout is not None:
            # The output of the layer below is nobody else's: its engine does not keep it.
            with stage("dropout", shape, x.dtype):
                dropout.apply(x, layer)
        out = y if last else xp.empty((T, B, shape.D, shape.P), x.dtype)
        rows = _rows_of(layer, shape.D)
        run = partial(runner.forward, keep=keep)
        if every is not None:
            segment = plan.steps_per_segment(every)
            run = partial(recompute.forward, runner, segment=segment)
        with stage("layer", shape, x.dtype, layer):
            (h[rows], c[rows]), kept = run(
                x,
                weights if prepared is None else prepared(layer, runner),
                (states[0][rows], states[1][rows]),
                lengths,
                reverse=reverse,
                y=out,
                cells=cells if last else None,
                chunk=plan.steps_per_chunk,
            )
        if keep:
            tapes = [kept] if every is None else kept
            tape.layers.append(LayerTape(runner, x, weights, tapes))
        if not last:
            x = out.reshape(T, B, shape.D * shape.P)
    return (h, c), tape if keep else None


def backward(
    tape: Tape,
    dy: Array | None,
    dstates: tuple[Array | None, Array | None],
    dcells: Array | None,
    *,
    wanted: Sequence[Wanted],
    gradients: Sequence[LayerGradients],
    dx: Array | None,
    unset: Unset | None = None,
    layer_done: Callable[[int], None] | None = None,
) -> States:
    """Run all layers backward.

    Parameters
    ----------
    tape : Tape
        Of `forward`; used up, its memory freed layer by layer.
    dy : array [T,B,D,P] or None
        Gradient of the outputs.
    dstates : tuple of array [L*D,B,P] or None, and array [L*D,B,H] or None
        Gradient of the final h and c.
    dcells : array [T,B,D,H] or None
        Gradient of the cell states of the last layer.
    wanted : sequence of Wanted
        Whose weight gradients are needed, for each layer.
    gradients : sequence of LayerGradients
        Arrays to add them into, for each layer; those that are `unset` are set.
    dx : array [T,B,I] or None
        Receives the gradient of the input: zeros, or anything where it is set, see
        `sets_input_gradient`. None where it is not needed.
    unset : callable, optional
        Asked for a layer before its turn; default: all gradients are added to.
    layer_done : callable, optional
        Called with a layer's number when its weight gradients are complete, the last layer
        first: an all-reduce can start while the layers below are still in backward.

    Returns
    -------
    tuple of array [L*D,B,P] and [L*D,B,H]
        Gradient of the initial h and c.
    """
    initial: list[States] = []
    for layer in reversed(range(len(tape.layers))):
        kept = tape.layers.pop()
        (T, B), dtype = kept.x.shape[:2], kept.x.dtype
        shape = layer_shape(T, B, kept.weights)
        rows = _rows_of(layer, shape.D)
        xp, sets, more = array_module(kept.x), _sets_gradients(kept), {}
        make = xp.empty_like if sets else xp.zeros_like
        target = dx if layer == 0 else make(kept.x)
        names: frozenset[str] = frozenset() if unset is None else unset(layer)
        if sets:
            more["unset"] = names | {"dx"}
        else:
            _clear(names, gradients[layer], wanted[layer])
        dh, dc = (None if gradient is None else gradient[rows] for gradient in dstates)
        with stage("layer", shape, dtype, layer):
            initial.append(
                kept.engine.backward(
                    kept.tapes,
                    dy,
                    (dh, dc),
                    dcells,
                    wanted=wanted[layer],
                    gradients=gradients[layer],
                    dx=target,
                    **more,
                )
            )
        del kept
        dcells = None
        if layer > 0 and target is not None:
            if tape.dropout is not None:
                with stage("dropout", shape, dtype):
                    tape.dropout.apply(target, layer)
            dy = target.reshape(T, B, shape.D, target.shape[2] // shape.D)
        if layer_done is not None:
            layer_done(layer)
    dh0, dc0 = zip(*reversed(initial), strict=True)
    xp = array_module(*dh0)
    return xp.concatenate(dh0), xp.concatenate(dc0)


def sets_input_gradient(tape: Tape) -> bool:
    """Whether `backward` sets the gradient of the input, instead of adding to it."""
    return _sets_gradients(tape.layers[0])


def _sets_gradients(layer: LayerTape) -> bool:
    return hasattr(layer.engine, "SETS_GRADIENTS")


def _clear(names: frozenset[str], gradients: LayerGradients, wanted: Wanted) -> None:
    """Set the gradients of these weights to zero, as far as they are wanted."""
    for name in names:
        getattr(gradients, name)[getattr(wanted, name)] = 0


def _rows_of(layer: int, D: int) -> slice:
    """Return where the states [L*D,B,...] of a layer lie."""
    return slice(layer * D, (layer + 1) * D)
