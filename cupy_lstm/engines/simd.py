"""The engine for CPUs: one compiled sweep over all steps, in SIMD vectors.

Weights are packed once a call, or once for many (`prepare`); each thread takes a slice of the batch
through all steps, or some units of all rows where rows are few or the weights large; the sums of a
step and its gates stay in registers and the nearest cache, and padding costs nothing.
The parts are in `cupy_lstm.simd`.
"""

from collections.abc import Mapping, Sequence

import numpy

from cupy_lstm.backend import HostArray
from cupy_lstm.notation import LayerGradients, LayerWeights, States, Wanted
from cupy_lstm.ranges import detailed
from cupy_lstm.simd import ready
from cupy_lstm.simd.backward_pass import BackwardPass
from cupy_lstm.simd.forward_pass import ForwardPass
from cupy_lstm.simd.layout import Layout, has_rows, layout_of, row_major
from cupy_lstm.simd.scratch import address
from cupy_lstm.simd.step import ReadyStep
from cupy_lstm.simd.tape import Tape
from cupy_lstm.simd.targets import Targets
from cupy_lstm.simd.threads import crew
from cupy_lstm.simd.weights import Prepared, named, numbers_in_order
from cupy_lstm.steps import Directions, Tapes

SETS_GRADIENTS = True


def prepare(weights: LayerWeights, batch: int | None = None) -> Prepared:
    """Return the weights of a layer to be given to any number of calls of `forward`.

    They must not change from here on. What calls with so many rows need is made now, the rest when
    a call needs it.
    """
    prepared = Prepared(weights)
    if batch is not None:
        with crew() as team:
            prepared.packed(batch, team, team.size)
    return prepared


def step_of(layers: Sequence[Prepared], states: States) -> ReadyStep:
    """Return one step of all layers, whose weights are prepared, from these states on.

    See `cupy_lstm.snapshot.Step`.
    """
    with crew() as team:
        packed = [layer.packed(states[0].shape[1], team, team.size) for layer in layers]
    return ReadyStep([layer.weights for layer in layers], packed, states)


def forward(
    x: HostArray,
    weights: LayerWeights | Prepared,
    states: States,
    lengths: HostArray | None,
    *,
    reverse: Directions,
    y: HostArray,
    cells: HostArray | None = None,
    keep: bool,
    steps: range | None = None,
    chunk: int,
) -> tuple[States, Tape | None]:
    """Run one layer forward over a range of steps; see `cupy_lstm.engines.stepwise.forward`.

    Weights may be given as `prepare` returns them. The results do not depend on the number of
    threads.
    """
    T, B = x.shape[:2]
    steps = range(T) if steps is None else steps
    arrays = {"x": row_major(x), "y": y if has_rows(y) else numpy.empty(y.shape, y.dtype)}
    if cells is not None:
        arrays["cells"] = cells if has_rows(cells) else numpy.empty(cells.shape, cells.dtype)
    usual = lengths is None and len(steps) == T
    with crew() as workers:
        if isinstance(weights, Prepared):
            raw, passes, memory = weights.weights, weights.passes, arrays
        else:
            raw = numbers_in_order(weights)
            passes, memory = ready.SHARED, arrays | named(raw)
        team = workers.team(len(steps) * B * (raw.weight_ih.size + raw.weight_hh.size))
        key = (*_key_of(arrays), team, reverse, keep, chunk)
        if passes is ready.SHARED:
            key = ("forward", *_sizes_of(raw), *key)
        run = passes.take(key) if usual else None
        if run is None:
            run = ForwardPass(
                layout_of(T, B, raw),
                team,
                memory,
                lengths,
                reverse,
                steps,
                keep=keep,
                packed=weights.packed(B, workers, team) if isinstance(weights, Prepared) else None,
                chunk=chunk,
            )
        run.begin(states)
        places = {name: address(array) for name, array in memory.items()}
        tape, block = None, None
        if keep:
            block = run.new_tape()
            places["tape"] = address(block)
            tape = Tape(x, raw, run.rows, block)
        after = run.run(workers, places, (memory, block))
        if usual:
            passes.give_back(key, run)
    for target, name in ((y, "y"), (cells, "cells")):
        if target is not None and arrays[name] is not target and B:
            for d, times in enumerate(run.times()):
                target[times, :, d] = arrays[name][times, :, d]
    return after, tape


def backward(
    tapes: Tapes[Tape],
    dy: HostArray | None,
    dstates: tuple[HostArray | None, HostArray | None],
    dcells: HostArray | None = None,
    *,
    wanted: Wanted,
    gradients: LayerGradients,
    dx: HostArray | None,
    unset: frozenset[str] = frozenset(),
) -> States:
    """Run one layer backward over the steps of some tapes; see `stepwise.backward`.

    Parameters
    ----------
    unset : frozenset of str
        The weights whose gradients are set, as far as they are wanted, and ``dx`` if that is; the
        others are added to.

    Other Parameters
    ----------------
    tapes, dy, dstates, dcells, wanted, gradients, dx
        As of `stepwise.backward`.
    """
    upstream = {
        name: row_major(array)
        for name, array in (("dy", dy), ("dcells", dcells))
        if array is not None
    }
    targets = Targets(wanted, gradients, unset, dx)
    left = len(tapes)
    for tape in tapes:  # not enumerate(tapes), which holds on to the last one
        if left == len(tapes):
            targets.begin_dx(tape.rows)
        left -= 1
        dstates = _backward_range(tape, upstream, dstates, targets, last=left == 0)
        del tape  # before the next one is made
    targets.finish()
    return dstates


def _backward_range(
    tape: Tape,
    upstream: Mapping[str, HostArray],
    dstates: tuple[HostArray | None, HostArray | None],
    targets: Targets,
    last: bool,
) -> States:
    """Run backward over the steps of one tape, which may be the last one."""
    x, rows = row_major(tape.x), tape.rows
    T, B = x.shape[:2]
    if not any(some.total for some in rows) and not (last and targets.sums is not None):
        return _unchanged(layout_of(T, B, tape.weights), dstates)
    written = {name: one for name, one in targets.written.items() if last or name == "dx"}
    arrays = {"x": x, **upstream, **written}
    usual, first = rows[0].are_even and len(rows[0].times) == T, targets.sums is None
    with crew() as workers:
        raw = numbers_in_order(tape.weights)
        team = workers.team(2 * B * len(rows[0].times) * (raw.weight_ih.size + raw.weight_hh.size))
        reverse = tuple(some.times.step < 0 for some in rows)
        key = (
            "backward",
            *_sizes_of(raw),
            *_key_of(arrays),
            team,
            reverse,
            targets.weights,
            targets.unset,
        )
        memory = arrays | named(raw._replace(bias_ih=None, bias_hh=None))
        run = ready.SHARED.take(key) if usual else None
        if run is None:
            run = BackwardPass(
                layout_of(T, B, raw),
                team,
                memory,
                rows,
                targets.weights,
                targets.unset,
                first=first,
                last=last,
            )
        if first:
            targets.begin(run.sums, rows)
        places = {name: address(array) for name, array in memory.items()}
        places["tape"], places["sums"] = address(tape.block), address(targets.sums)
        before = run.run(workers, places, (memory, tape, targets.sums), dstates)
        if usual:
            ready.SHARED.give_back(key, run)
    return before


def _key_of(arrays: Mapping[str, HostArray]) -> tuple[object, ...]:
    """Return what of arrays, x among them, a pass is made for."""
    strides = [array.strides for array in arrays.values()]
    return (arrays["x"].shape, *arrays, *strides, detailed())


def _sizes_of(weights: LayerWeights) -> tuple[object, ...]:
    """Return what of weights a pass is made for."""
    absent = [weight is None for weight in weights]
    weight_ih, weight_hh = weights.weight_ih, weights.weight_hh
    return (weight_ih.shape, weight_hh.shape, weight_ih.dtype.char, *absent)


def _unchanged(layout: Layout, dstates: tuple[HostArray | None, HostArray | None]) -> States:
    """Return copies of gradients of the states; zeros for none."""
    _, B, _, H, P, D = layout.shape
    dh, dc = (
        numpy.zeros((D, B, size), layout.dtype) if given is None else given.copy()
        for size, given in zip((P, H), dstates, strict=True)
    )
    return dh, dc
