"""The engine that keeps the recurrent weights on the chip: one launch for all steps, on CuPy.

Where the recurrent weights of a direction fit on one multiprocessor, a block of threads holds them
and takes a few batch rows through the whole sequence, and blocks never wait for each other; else a
team of blocks does. The input projection is one GEMM before it, or, for a small input, part of the
kernel: then a pass is nothing but that kernel, and a CUDA graph can hold it. Where a bidirectional
sequence is run in chunks, the directions are at different times, and each has GEMMs of its own with
the input. What is launched is chosen by `cupy_lstm.persistent.tiers`; the kernels are in
``cuda/recurrence_*.cu``.
"""

from typing import Any

from cupy_lstm.backend import Array, array_module
from cupy_lstm.gemm import matmul
from cupy_lstm.kernels import Strided
from cupy_lstm.notation import LayerGradients, LayerWeights, States, Wanted, layer_shape
from cupy_lstm.persistent.launches import Pass
from cupy_lstm.persistent.places import Layout, groups
from cupy_lstm.persistent.products import Products, Tape, valid_times
from cupy_lstm.plan import LAUNCH_STEPS
from cupy_lstm.ranges import stage
from cupy_lstm.steps import Directions, Tapes

OVER_TIME = "time", "row", "direction", "unit"
"""The axes of an array [T,B,D,H], as the kernels call its strides."""


def forward(
    x: Array,
    weights: LayerWeights,
    states: States,
    lengths: Array | None,
    *,
    reverse: Directions,
    y: Array,
    cells: Array | None = None,
    keep: bool,
    steps: range | None = None,
    chunk: int,
) -> tuple[States, Tape | None]:
    """Run one layer forward over a range of steps; see `stepwise.forward`.

    Raises
    ------
    ValueError
        If the layer does not fit the device.
    """
    xp, (T, B) = array_module(x), x.shape[:2]
    steps = range(T) if steps is None else steps
    shape = layer_shape(T, B, weights)
    _, _, I, H, _, D = shape  # noqa: E741
    run, layout = Pass("forward", shape, x, keep), Layout.like(x)
    inside, n = run.tier.inside, min(chunk, len(steps), LAUNCH_STEPS)
    places = (len(steps) if keep else n) * B * D
    z_memory = xp.empty(places * 4 * H, "float32") if keep or not inside else None
    c_memory = xp.empty(places * H, "float32") if keep or cells is not None else None
    weights, lengths = _contiguous(weights), _as_lengths(lengths)
    h0, c0 = xp.ascontiguousarray(states[0]), xp.ascontiguousarray(states[1])
    before, after = (h0, c0), (xp.empty_like(h0), xp.empty_like(c0))
    values = {
        **{"weight_hh": weights.weight_hh, "weight_ih": weights.weight_ih if inside else None},
        **{"bias_ih": weights.bias_ih, "bias_hh": weights.bias_hh, "lengths": lengths},
        **_strided("x", x if inside else None, (*OVER_TIME[:2], "feature")),
        **_strided("y", y, OVER_TIME),
        **{"h_after": after[0], "c_after": after[1], "keep": int(keep), "reverse": _bits(reverse)},
        **{"T": T, "B": B, "I": I, "H": H, "D": D},
    }
    z = c_steps = None
    for part in _parts(steps, n, B):
        covered = steps if keep else part
        if z_memory is not None:
            z = layout.within(z_memory, len(covered), B, D, 4 * H)
        if c_memory is not None:
            c_steps = layout.within(c_memory, len(covered), B, D, H)
        if lengths is not None:
            _clear(y, part, range(T), T, reverse)
        if z is not None and not inside:
            with stage("input projection", shape, x.dtype):
                _project(layout, x, weights.weight_ih, part, covered, reverse, z)
        values |= {
            **{"h_before": before[0], "c_before": before[1]},
            **_strided("z", z),
            **_strided("c_steps", c_steps),
            **_strides("c", c_steps, OVER_TIME),
            **_places("z_time", "z_row", layout, covered, B),
            **{"z_start": covered.start, "z_stop": covered.stop},
            **{"start": part.start, "stop": part.stop},
        }
        with stage("recurrence", shape, x.dtype):
            run.launch(values)
        if cells is not None and c_steps is not None:
            _copy_cells(c_steps, lengths, part, covered, reverse, out=cells)
        before = after
    if not len(steps):
        after = h0.copy(), c0.copy()
    if not keep:
        return after, None
    h0, c0 = h0.copy(), c0.copy()
    return after, Tape(x, weights, lengths, reverse, steps, chunk, h0, c0, z, c_steps)


def backward(
    tapes: Tapes[Tape],
    dy: Array | None,
    dstates: tuple[Array | None, Array | None],
    dcells: Array | None = None,
    *,
    wanted: Wanted,
    gradients: LayerGradients,
    dx: Array | None,
) -> States:
    """Run one layer backward over the steps of some tapes; see `stepwise.backward`."""
    for tape in tapes:
        dstates = _backward_range(tape, dy, dstates, dcells, wanted, gradients, dx)
        del tape  # before the next one is made
    return dstates


def _backward_range(
    tape: Tape,
    dy: Array | None,
    dstates: tuple[Array | None, Array | None],
    dcells: Array | None,
    wanted: Wanted,
    gradients: LayerGradients,
    dx: Array | None,
) -> States:
    """Run backward over the steps of one tape."""
    x, weights, lengths = tape.x, tape.weights, tape.lengths
    xp, (T, B) = array_module(x), x.shape[:2]
    shape = layer_shape(T, B, weights)
    _, _, I, H, _, D = shape  # noqa: E741
    run = Pass("backward", shape, x, True)
    layout, n = Layout.like(x), min(tape.chunk, len(tape.steps), LAUNCH_STEPS)
    dh, dc = (
        xp.zeros((D, B, H), "float32") if one is None else one.astype("float32", order="C")
        for one in dstates
    )
    dz_memory = xp.empty(n * B * D * 4 * H, x.dtype)
    h_memory = xp.empty(n * B * D * H, x.dtype)
    x_memory = None if lengths is None else xp.empty(n * B * I, x.dtype)
    values = {
        **{"weight_hh": weights.weight_hh, "lengths": lengths},
        **_strided("gates", tape.gates),
        **_strided("c_steps", tape.c),
        **{"h_first": tape.h0, "c_first": tape.c0, "dh": dh, "dc": dc},
        **_strided("dy", dy, OVER_TIME),
        **_strided("dcells", dcells, OVER_TIME),
        **_places("kept_time", "kept_row", layout, tape.steps, B),
        **{"kept_start": tape.steps.start, "kept_stop": tape.steps.stop},
        **{"reverse": _bits(tape.reverse), "T": T, "B": B, "H": H, "D": D},
    }
    for part in reversed(_parts(tape.steps, n, B)):
        if lengths is not None:
            dz_memory.fill(0)
            h_memory.fill(0)
        dz = layout.within(dz_memory, len(part), B, D, 4 * H)
        h_prev = layout.within(h_memory, len(part), B, D, H)
        values |= {
            **_strided("dz", dz),
            **_strided("h_prev", h_prev),
            **_places("time", "row_stride", layout, part, B),
            **{"start": part.start, "stop": part.stop},
        }
        with stage("recurrence", shape, x.dtype):
            run.launch(values)
        with stage("gradients", shape, x.dtype):
            products = Products(layout, part, tape, dz, wanted, gradients)
            products.add_input_gradients(dx, x_memory)
            products.add_recurrent_gradients(h_prev)
    return dh, dc


def _parts(steps: range, n: int, B: int) -> list[range]:
    """Return the steps in chunks of n; none where there are no rows."""
    return [steps[start : start + n] for start in range(0, len(steps) if B else 0, n or 1)]


def _project(
    layout: Layout,
    x: Array,
    weight_ih: Array,
    part: range,
    covered: range,
    reverse: Directions,
    z: Array,
) -> None:
    """Write x W_ih^T of a part of the steps into z [n,B,D,4H], which holds all `covered`."""
    xp, (T, B) = array_module(x), x.shape[:2]
    for directions, times, kept in groups(part, covered, T, reverse):
        weight = weight_ih[directions].reshape(1, -1, x.shape[2]).swapaxes(1, 2)
        out = z[kept, :, directions].reshape(len(part), B, -1)
        rows, out = layout.matrices(layout.as_rows(x[times]), out)
        matmul(rows, xp.broadcast_to(weight, (len(rows), *weight.shape[1:])), out=out)


def _clear(array: Array, part: range, covered: range, T: int, reverse: Directions) -> None:
    """Fill a part of the steps that an array covers with zeros: the kernels leave padding alone."""
    for directions, _, kept in groups(part, covered, T, reverse):
        array[kept, :, directions] = 0


def _copy_cells(
    c: Array,
    lengths: Array | None,
    part: range,
    covered: range,
    reverse: Directions,
    out: Array,
) -> None:
    """Copy c [n,B,D,H] of a part of the steps `covered` to out [T,B,D,H], zeros in padding."""
    for directions, times, kept in groups(part, covered, out.shape[0], reverse):
        out[times, :, directions] = c[kept, :, directions]
    if lengths is not None:
        for directions, times, _ in groups(part, covered, out.shape[0], reverse):
            padding = ~valid_times(lengths, times)[:, :, None, None]
            array_module(out).copyto(out[times, :, directions], 0, where=padding)


def _contiguous(weights: LayerWeights) -> LayerWeights:
    """Return weights as a kernel reads them; they nearly always are."""
    xp = array_module(weights.weight_hh)
    return LayerWeights(*(None if one is None else xp.ascontiguousarray(one) for one in weights))


def _as_lengths(lengths: Array | None) -> Array | None:
    """Return lengths as a kernel reads them; they nearly always are."""
    if lengths is None:
        return None
    return array_module(lengths).ascontiguousarray(lengths, dtype="int64")


def _strided(name: str, array: Array | None, axes: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return an array of any strides as an argument of a kernel, and the strides it has for it."""
    return {name: None if array is None else Strided(array), **_strides(name, array, axes)}


def _strides(name: str, array: Array | None, axes: tuple[str, ...]) -> dict[str, Any]:
    strides = (0,) * len(axes) if array is None else Strided(array).strides
    return {f"{name}_{axis}": stride for axis, stride in zip(axes, strides, strict=False)}


def _places(time: str, row: str, layout: Layout, steps: range, B: int) -> dict[str, Any]:
    """Return what leads to the next time and row in an array of ours that has these steps."""
    return dict(zip((time, row), layout.places(len(steps), B), strict=True))


def _bits(reverse: Directions) -> int:
    """Return a number with a bit for each reverse direction."""
    return sum(1 << d for d, backwards in enumerate(reverse) if backwards)
