"""The engine that keeps the recurrent weights on the chip: one launch for all steps, on CuPy.

A block of threads holds the recurrent weights of one direction and takes a few batch rows through
the whole sequence; blocks never wait for each other. The input projection is one GEMM before it,
or, for a small input, part of the kernel: then a pass is nothing but that kernel, and a CUDA graph
can hold it. Where a bidirectional sequence is run in chunks, the directions are at different times,
and each has GEMMs of its own with the input. The kernels are in ``cuda/recurrence_block*.cu``.
"""

from functools import cache

from cupy_lstm.backend import Array, array_module
from cupy_lstm.device import device_facts
from cupy_lstm.gemm import matmul
from cupy_lstm.kernels import SCALARS, Kernel, Strided
from cupy_lstm.notation import LayerGradients, LayerWeights, Shape, States, Wanted, layer_shape
from cupy_lstm.persistent.blocks import Blocks, blocks_for
from cupy_lstm.persistent.places import Layout, groups
from cupy_lstm.persistent.products import Products, Tape, valid_times
from cupy_lstm.plan import LAUNCH_STEPS
from cupy_lstm.steps import Directions

FILES = {
    "recurrence_forward": "recurrence_block.cu",
    "recurrence_backward": "recurrence_block_backward.cu",
}


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
    blocks, layout = _blocks(shape, x, keep), Layout.like(x)
    inside, n = blocks.inside, min(chunk, len(steps), LAUNCH_STEPS)
    places = (len(steps) if keep else n) * B * D
    z_memory = xp.empty(places * 4 * H, "float32") if keep or not inside else None
    c_memory = xp.empty(places * H, "float32") if keep or cells is not None else None
    weights, lengths = _contiguous(weights), _as_lengths(lengths)
    h0, c0 = xp.ascontiguousarray(states[0]), xp.ascontiguousarray(states[1])
    before, after = (h0, c0), (xp.empty_like(h0), xp.empty_like(c0))
    tile = blocks.tile
    kernel = _kernel("recurrence_forward", x.dtype.name, tile.forward_terms, tile.threads)
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
            _project(layout, x, weights.weight_ih, part, covered, reverse, z)
        kernel.launch_blocks(
            blocks.grid,
            blocks.threads,
            blocks.forward.shared_bytes,
            weights.weight_hh,
            weights.weight_ih if inside else None,
            *(weights.bias_ih, weights.bias_hh),
            Strided(x) if inside else None,
            lengths,
            *_strided(z, y, c_steps),
            *(*before, *after),
            *(*_strides(x, 3), *_strides(y, 4), *_strides(c_steps, 4)),
            *layout.places(len(covered), B),
            *(covered.start, covered.stop, part.start, part.stop),
            *(_bits(reverse), int(keep)),
            *(T, B, I, H, D),
        )
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
    tape: Tape,
    dy: Array | None,
    dstates: tuple[Array | None, Array | None],
    dcells: Array | None = None,
    *,
    wanted: Wanted,
    gradients: LayerGradients,
    dx: Array | None,
) -> States:
    """Run one layer backward over the steps of a tape; see `stepwise.backward`."""
    x, weights, lengths = tape.x, tape.weights, tape.lengths
    xp, (T, B) = array_module(x), x.shape[:2]
    shape = layer_shape(T, B, weights)
    _, _, I, H, _, D = shape  # noqa: E741
    blocks = _blocks(shape, x, True)
    layout, n = Layout.like(x), min(tape.chunk, len(tape.steps), LAUNCH_STEPS)
    dh, dc = (
        xp.zeros((D, B, H), "float32") if one is None else one.astype("float32", order="C")
        for one in dstates
    )
    dz_memory = xp.empty(n * B * D * 4 * H, x.dtype)
    h_memory = xp.empty(n * B * D * H, x.dtype)
    x_memory = None if lengths is None else xp.empty(n * B * I, x.dtype)
    tile = blocks.tile
    kernel = _kernel("recurrence_backward", x.dtype.name, tile.backward_terms, tile.threads)
    for part in reversed(_parts(tape.steps, n, B)):
        if lengths is not None:
            dz_memory.fill(0)
            h_memory.fill(0)
        dz = layout.within(dz_memory, len(part), B, D, 4 * H)
        h_prev = layout.within(h_memory, len(part), B, D, H)
        kernel.launch_blocks(
            blocks.grid,
            blocks.threads,
            blocks.backward.shared_bytes,
            weights.weight_hh,
            lengths,
            *_strided(tape.gates, tape.c),
            *(tape.h0, tape.c0),
            *_strided(dcells, dy, dz, h_prev),
            *(dh, dc),
            *_strides(dy, 4),
            *_strides(dcells, 4),
            *layout.places(len(tape.steps), B),
            *layout.places(len(part), B),
            *(tape.steps.start, tape.steps.stop, part.start, part.stop),
            _bits(tape.reverse),
            *(T, B, H, D),
        )
        products = Products(layout, part, tape, dz, wanted, gradients)
        products.add_input_gradients(dx, x_memory)
        products.add_recurrent_gradients(h_prev)
    return dh, dc


def _blocks(shape: Shape, x: Array, training: bool) -> Blocks:
    """Return the blocks that serve a layer on the device of its input."""
    blocks = blocks_for(shape, x.dtype.name, device_facts(x.device.id), training)
    if isinstance(blocks, str):
        raise ValueError(f"the engine 'persistent' cannot serve this call: {blocks}")
    return blocks


@cache
def _kernel(function: str, dtype: str, terms: int, threads: int) -> Kernel:
    return Kernel(FILES[function], function, SCALARS[dtype], str(terms), str(threads))


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


def _strided(*arrays: Array | None) -> list[Strided | None]:
    return [None if array is None else Strided(array) for array in arrays]


def _strides(array: Array | None, axes: int) -> tuple[int, ...]:
    return (0,) * axes if array is None else Strided(array).strides


def _bits(reverse: Directions) -> int:
    """Return a number with a bit for each reverse direction."""
    return sum(1 << d for d, backwards in enumerate(reverse) if backwards)
