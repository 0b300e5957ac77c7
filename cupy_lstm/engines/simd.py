"""The engine for CPUs: one compiled sweep over all steps, in SIMD vectors.

Weights are packed once a call, or once for many (`prepare`); each thread takes a slice of the batch
through all steps, or some units of all rows where rows are few or the weights large; the sums of a
step and its gates stay in registers and the nearest cache, and padding costs nothing.
The parts are in `cupy_lstm.simd`.
"""

from collections.abc import Sequence

from cupy_lstm.backend import HostArray
from cupy_lstm.notation import LayerGradients, LayerWeights, States, Wanted
from cupy_lstm.simd.gradients import Products, Sums
from cupy_lstm.simd.layout import has_rows, layout_of, row_major
from cupy_lstm.simd.ready import run_ready
from cupy_lstm.simd.stages import Stages
from cupy_lstm.simd.step import ReadyStep
from cupy_lstm.simd.sweeps import BackwardSweep, ForwardSweep, Tape
from cupy_lstm.simd.threads import crew
from cupy_lstm.simd.weights import Prepared, pack
from cupy_lstm.steps import Directions, Tapes


def prepare(weights: LayerWeights, batch: int | None = None) -> Prepared:
    """Return the weights of a layer to be given to any number of calls of `forward`.

    They must not change from here on. What calls with so many rows need is made now, the rest when
    a call needs it.
    """
    prepared = Prepared(weights)
    if batch is not None:
        with crew() as team:
            prepared.packed(batch, team)
    return prepared


def step_of(layers: Sequence[Prepared], states: States) -> ReadyStep:
    """Return one step of all layers, whose weights are prepared, from these states on.

    See `cupy_lstm.snapshot.Step`.
    """
    with crew() as team:
        packed = [layer.packed(states[0].shape[1], team) for layer in layers]
    return ReadyStep(packed, states)


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

    Weights may be given as `prepare` returns them; then the sweep of a call that keeps nothing,
    over all steps, without lengths and cells, serves the next one of its sizes, too. The results
    do not depend on the number of threads.
    """
    T, B = x.shape[:2]
    with crew() as team:
        if isinstance(weights, Prepared):
            whole = lengths is None and cells is None and steps is None
            if whole and not keep and x.size and has_rows(x) and has_rows(y):
                return run_ready(weights, team, x, y, states, reverse, chunk), None
            packed = weights.packed(B, team)
            stages = Stages(layout_of(T, B, weights.weights), team)
        else:
            stages = Stages(layout_of(T, B, weights), team)
            packed = pack(weights, stages)
        steps = range(T) if steps is None else steps
        run = ForwardSweep(stages.layout, x, packed, states, lengths, reverse, steps, keep)
        if len(steps) and B:
            run.sweep(stages, y, cells, max(1, min(chunk, len(steps))))
    return run.final_states(), run.tape() if keep else None


def backward(
    tapes: Tapes[Tape],
    dy: HostArray | None,
    dstates: tuple[HostArray | None, HostArray | None],
    dcells: HostArray | None = None,
    *,
    wanted: Wanted,
    gradients: LayerGradients,
    dx: HostArray | None,
) -> States:
    """Run one layer backward over the steps of some tapes; see `stepwise.backward`."""
    dy, dcells = (None if one is None else row_major(one) for one in (dy, dcells))
    sums: Sums = {}
    left = len(tapes)
    for tape in tapes:  # not enumerate(tapes), which holds on to the last one
        left -= 1
        last = left == 0
        dstates = _backward_range(tape, dy, dstates, dcells, wanted, gradients, dx, sums, last)
        del tape  # before the next one is made
    return dstates


def _backward_range(
    tape: Tape,
    dy: HostArray | None,
    dstates: tuple[HostArray | None, HostArray | None],
    dcells: HostArray | None,
    wanted: Wanted,
    gradients: LayerGradients,
    dx: HostArray | None,
    sums: Sums,
    last: bool,
) -> States:
    """Run backward over the steps of one tape, which may be the last one."""
    with crew() as team:
        run = BackwardSweep(tape, dstates)
        if any(rows.total for rows in tape.rows) or (last and sums):
            stages = Stages(run.layout, team)
            run.add_to(stages, dy, dcells)
            products = Products(stages, tape.weights, tape.rows, tape.gates, tape.c, sums)
            products.add_stages(
                wanted, gradients, dx, x=tape.x, h0=tape.h0, dh_steps=run.dh_steps, last=last
            )
            stages.run()
            products.finish()
    return run.initial_states()
