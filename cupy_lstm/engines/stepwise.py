"""The engine that always works: a loop over the steps in Python, on NumPy and CuPy alike.

Each step is one GEMM for all directions and the gates. What does not depend on the recurrence is
done for a chunk of steps at once: the input projection before the loop, the weight gradients
and the input gradient after it. Nothing is allocated inside the loop.
"""

import operator
from dataclasses import dataclass
from functools import reduce

import numpy

from cupy_lstm.backend import Array, array_module, sum_dtype
from cupy_lstm.gates import gates_for
from cupy_lstm.gemm import matmul, matmul_add
from cupy_lstm.notation import LayerGradients, LayerWeights, Shape, States, Wanted, layer_shape
from cupy_lstm.ranges import each_step, stage
from cupy_lstm.steps import (
    Directions,
    Tapes,
    copy_where,
    gather,
    padding_mask,
    scatter,
    scatter_add,
)
from cupy_lstm.workspace import PRODUCT_BYTES


@dataclass
class Tape:
    """What backward needs of a forward over a range of steps, in step order.

    Attributes
    ----------
    x : array [T,B,I]
        The input, by reference.
    h0 : array [D,B,P]
        Output before the first step.
    c : array [D,n+1,B,H]
        Cell state before the first step and after each.
    gates : array [D,n,B,4H]
        Activated gates; backward turns them into their gradients.
    """

    x: Array
    weights: LayerWeights
    lengths: Array | None
    reverse: Directions
    steps: range
    chunk: int
    h0: Array
    c: Array
    gates: Array


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
    """Run one layer forward over a range of steps.

    Parameters
    ----------
    x : array [T,B,I]
        Input in time order, any strides. Padding is never used, whatever it holds.
    weights : LayerWeights
        Weights of the layer, [D,...] each.
    states : tuple of array [D,B,P] and [D,B,H]
        h and c before the first of the steps.
    lengths : array [B] of int, or None
        Valid times of each row, clamped to 0..T by their use.
    reverse : Directions
        Which directions run from the end.
    y : array [T,B,D,P]
        Receives the outputs of these steps, zero in padding; any strides.
    cells : array [T,B,D,H], optional
        Receives the cell states of these steps, zero in padding.
    keep : bool
        Whether to return a tape.
    steps : range, optional
        Default: all of them.
    chunk : int
        Steps to take at once outside the recurrence.

    Returns
    -------
    states : tuple of array [D,B,P] and [D,B,H]
        h and c after the last step, new arrays.
    tape : Tape or None
        For `backward`.
    """
    T, B = x.shape[:2]
    steps = range(T) if steps is None else steps
    shape = layer_shape(T, B, weights)
    _, _, I, H, P, D = shape  # noqa: E741
    xp, n = array_module(x), min(chunk, len(steps))
    kept = len(steps) if keep else n
    z_kept = xp.empty((D, kept, B, 4 * H), sum_dtype(x.dtype))
    c_kept = xp.empty((D, kept + 1, B, H), sum_dtype(x.dtype))
    h_chunk = xp.empty((D, n + 1, B, P), x.dtype)
    x_chunk = xp.empty((D, n, B, I), x.dtype)
    recurrence = _Recurrence(weights, shape, n)
    bias = _bias_sum(weights)
    h, c = states[0].copy(), states[1].copy()
    for start in range(0, len(steps), n or 1):
        part = steps[start : start + n]
        first, k = start if keep else 0, len(part)
        padding = padding_mask(lengths, part, T, reverse)
        z, c_steps = z_kept[:, first : first + k], c_kept[:, first : first + k + 1]
        h_steps = h_chunk[:, : k + 1]
        h_steps[:, 0], c_steps[:, 0] = h, c
        with stage("input projection", shape, x.dtype):
            inputs = gather(x, part, reverse, padding, out=x_chunk[:, :k])
            matmul(_rows(inputs), weights.weight_ih.swapaxes(1, 2), out=_rows(z))
            if bias is not None:
                xp.add(z, bias, out=z)
        with stage("recurrence", shape, x.dtype):
            recurrence.run(z, h_steps, c_steps, padding)
        scatter(h_steps[:, 1:], part, reverse, padding, out=y)
        if cells is not None:
            scatter(c_steps[:, 1:], part, reverse, padding, out=cells)
        h[...], c[...] = h_steps[:, k], c_steps[:, k]
    if not keep:
        return (h, c), None
    c_kept[:, 0] = states[1]
    h0 = states[0].copy()
    return (h, c), Tape(x, weights, lengths, reverse, steps, chunk, h0, c_kept, z_kept)


class _Recurrence:
    """The loop of a forward pass and its scratch."""

    def __init__(self, weights: LayerWeights, shape: Shape, chunk: int) -> None:
        xp, like = array_module(weights.weight_hh), weights.weight_hh
        self.weight_hh = like.swapaxes(1, 2)
        self.weight_ho = weights.weight_ho
        self.gates = gates_for(shape, chunk, like)
        self.product = xp.empty((shape.D, shape.B, 4 * shape.H), sum_dtype(like.dtype))
        projected = weights.weight_ho is not None
        self.m = xp.empty((shape.D, shape.B, shape.H), like.dtype) if projected else None

    def run(self, z: Array, h: Array, c: Array, padding: Array | None) -> None:
        """Run over z [D,n,B,4H]; h [D,n+1,B,P] and c [D,n+1,B,H] hold the state at 0."""
        # Gates that are shut or wide open overflow and underflow to the right values.
        with numpy.errstate(over="ignore", under="ignore"):
            for s in each_step(range(z.shape[1])):
                h_prev, h_next = h[:, s], h[:, s + 1]
                held = None if padding is None else padding[:, s]
                matmul_add(h_prev, self.weight_hh, z[:, s], self.product)
                if self.m is None:
                    self.gates.forward(z[:, s], c[:, s], c[:, s + 1], h_prev, h_next, held)
                    continue
                self.gates.forward(z[:, s], c[:, s], c[:, s + 1], None, self.m, held)
                matmul(self.m, self.weight_ho, out=h_next)
                if held is not None:
                    copy_where(held, h_prev, out=h_next)


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
    """Run one layer backward over the steps of some tapes, by exact backpropagation through time.

    Parameters
    ----------
    tapes : Tapes
        Of calls of `forward` over consecutive ranges of steps, the last range first; used up.
    dy : array [T,B,D,P] or None
        Gradient of the outputs, any strides; padding is not used.
    dstates : tuple of array [D,B,P] or None, and array [D,B,H] or None
        Gradient of h and c after the last step.
    dcells : array [T,B,D,H] or None
        Gradient of the cell states of all steps.
    wanted : Wanted
        Whose weight gradients are needed.
    gradients : LayerGradients
        Arrays to add them into.
    dx : array [T,B,I] or None
        Receives, added, the gradient of the input.

    Returns
    -------
    tuple of array [D,B,P] and [D,B,H]
        Gradient of h and c before the first step.
    """
    for tape in tapes:
        run = _Backward(tape, dstates, dcells is not None, wanted, gradients)
        with numpy.errstate(under="ignore"):
            run.all_chunks(dy, dcells, dx)
        dstates = run.dh, run.dc
        del run, tape  # before the next one is made
    return dstates


class _Backward:
    """A backward pass over a tape, chunk by chunk from the last one down, and its workspace.

    Where the arrays are of a half type, gradients are summed in float32 and rounded to be the
    operands of a GEMM.

    Attributes
    ----------
    dh, dc : array [D,B,P], [D,B,H]
        Gradient of the states, after the chunk, then before it.
    x : array [D,n,B,I]
        Input of a chunk, then its gradient.
    h : array [D,n+1,B,P]
        Outputs before the chunk's first step and after each.
    dh_steps : array [D,n,B,P]
        Gradient of the outputs, then the whole gradient of h after each step.
    rounded_dh : array [D,n,B,P]
        The same as an operand.
    dcells : array [D,n,B,H] or None
        Gradient of the cell states from outside.
    m : array [D,n,B,H] or None
        Cell outputs before the projection, where there is one.
    """

    def __init__(
        self,
        tape: Tape,
        dstates: tuple[Array | None, Array | None],
        with_cells: bool,
        wanted: Wanted,
        gradients: LayerGradients,
    ) -> None:
        self.tape, self.weights = tape, tape.weights
        self.wanted, self.gradients = wanted, gradients
        xp, dtype, sums = array_module(tape.x), tape.x.dtype, sum_dtype(tape.x.dtype)
        T, B = tape.x.shape[:2]
        self.shape = shape = layer_shape(T, B, tape.weights)
        _, _, I, H, P, D = shape  # noqa: E741
        self.n = n = min(tape.chunk, len(tape.steps))
        self.gates = gates_for(shape, n, tape.x)
        dh, dc = dstates
        self.dh = xp.zeros((D, B, P), sums) if dh is None else dh.astype(sums, order="C")
        self.dc = xp.zeros((D, B, H), sums) if dc is None else dc.copy()
        self.x = xp.empty((D, n, B, I), dtype)
        self.h = xp.empty((D, n + 1, B, P), dtype)
        self.dh_steps = self.rounded_dh = xp.empty((D, n, B, P), sums)
        self.dcells = xp.empty((D, n, B, H), sums) if with_cells else None
        self.m = self.dm = None
        if tape.weights.weight_ho is not None:
            self.m = xp.empty((D, n, B, H), dtype)
            self.dm = xp.empty((D, B, H), sums)
            if dtype != sums:
                self.rounded_dh = xp.empty((D, n, B, P), dtype)
        # Scratch for a weight gradient, or a part of it, before it is added.
        row = D * max(I, P)
        size = min(4 * H * row, max(row, PRODUCT_BYTES // sums.itemsize))
        self.product = xp.empty(size, sums)

    def all_chunks(self, dy: Array | None, dcells: Array | None, dx: Array | None) -> None:
        """Go back through all steps of the tape."""
        tape = self.tape
        for start in reversed(range(0, len(tape.steps), self.n or 1)):
            part = tape.steps[start : start + self.n]
            padding = padding_mask(tape.lengths, part, tape.x.shape[0], tape.reverse)
            with stage("recomputation", self.shape, self.x.dtype):
                h_prev = self.prepare(start, len(part), padding)
            dh_steps, dcell_steps = self.dh_steps[:, : len(part)], None
            if dy is None:
                dh_steps[...] = 0
            else:
                gather(dy, part, tape.reverse, padding, out=dh_steps)
            if dcells is not None and self.dcells is not None:
                dcell_steps = self.dcells[:, : len(part)]
                gather(dcells, part, tape.reverse, padding, out=dcell_steps)
            with stage("recurrence", self.shape, self.x.dtype):
                self.recur(dh_steps, dcell_steps, padding)
            self.add_input_gradients(part, padding, dx)
            with stage("weight gradients", self.shape, self.x.dtype):
                self.add_recurrent_gradients(h_prev, self.rounded_dh[:, : len(part)])

    def prepare(self, start: int, k: int, padding: Array | None) -> Array:
        """Go to the chunk of k steps from `start`; return h before each step [D,k,B,P].

        The outputs are computed again from gates and c. So nobody's change to y matters, and a
        row that was in padding one step before gets its true previous h: the initial state.
        """
        tape, weight_ho, xp = self.tape, self.weights.weight_ho, array_module(self.h)
        h = self.h[:, : k + 1]
        m = h[:, 1:] if self.m is None else self.m[:, :k]
        # The step before is still as forward left it: chunks are taken from the last one down.
        before = slice(start - 1, start)
        if start == 0:
            h[:, 0] = tape.h0
        else:
            self.gates.output(tape.gates[:, before], tape.c[:, start : start + 1], m[:, :1])
            if weight_ho is None:
                h[:, 0] = m[:, 0]
            else:
                matmul(m[:, 0], weight_ho, out=h[:, 0])
            held = padding_mask(tape.lengths, tape.steps[before], tape.x.shape[0], tape.reverse)
            if held is not None:
                xp.copyto(h[:, 0], tape.h0, where=held[:, 0])
        z, c = tape.gates[:, start : start + k], tape.c[:, start : start + k + 1]
        self.gates.prepare(z, c, m, padding)
        if weight_ho is not None:
            matmul(_rows(m), weight_ho, out=_rows(h[:, 1:]))
        if padding is not None:
            xp.copyto(h[:, 1:], tape.h0[:, None], where=padding)
        return h[:, :-1]

    def recur(self, dh_steps: Array, dcell_steps: Array | None, padding: Array | None) -> None:
        """Run the recurrence back over the chunk."""
        xp, weights = array_module(dh_steps), self.weights
        weight_hh, weight_ho = weights.weight_hh, weights.weight_ho
        for s in each_step(reversed(range(dh_steps.shape[1]))):
            dh = dh_steps[:, s]
            dcells = None if dcell_steps is None else dcell_steps[:, s]
            if weight_ho is None:
                dz = self.gates.backward(s, dh, self.dh, self.dc, dcells)
            else:
                xp.add(dh, self.dh, out=dh)
                if self.rounded_dh is not self.dh_steps:
                    self.rounded_dh[:, s] = dh
                matmul(self.rounded_dh[:, s], weight_ho.swapaxes(1, 2), out=self.dm)
                dz = self.gates.backward(s, self.dm, None, self.dc, dcells)
            matmul(dz, weight_hh, out=self.dh)
            if padding is not None:
                copy_where(padding[:, s], dh, out=self.dh)

    def add_input_gradients(self, part: range, padding: Array | None, dx: Array | None) -> None:
        """Add what the chunk's dz means for weight_ih and for the input."""
        tape, x_steps, dz = self.tape, self.x[:, : len(part)], self.gates.dz
        if self.wanted.weight_ih is not None:
            with stage("weight gradients", self.shape, self.x.dtype):
                x = gather(tape.x, part, tape.reverse, padding, out=x_steps)
                self._add_product(dz, x, self.wanted.weight_ih, self.gradients.weight_ih)
        if dx is not None:
            with stage("input gradient", self.shape, self.x.dtype):
                matmul(_rows(dz), self.weights.weight_ih, out=_rows(x_steps))
                scatter_add(x_steps, part, tape.reverse, out=dx)

    def add_recurrent_gradients(self, h_prev: Array, dh: Array) -> None:
        """Add what the chunk's dz, h before and dh after each step mean for the other weights."""
        wanted, gradients, dz = self.wanted, self.gradients, self.gates.dz
        if wanted.weight_hh is not None:
            self._add_product(dz, h_prev, wanted.weight_hh, gradients.weight_hh)
        if wanted.weight_ho is not None and self.m is not None:
            self._add_product(self.m[:, : dz.shape[1]], dh, wanted.weight_ho, gradients.weight_ho)
        biases = (wanted.bias_ih, gradients.bias_ih), (wanted.bias_hh, gradients.bias_hh)
        if any(some is not None for some, _ in biases):
            sums = dz.sum(axis=(1, 2), dtype=self.dc.dtype)
            for some, gradient in biases:
                if some is not None and gradient is not None:
                    out = gradient[some]
                    out += sums[some]  # not gradient[some] +=, which may copy out to itself

    def _add_product(self, left: Array, right: Array, some: slice, gradient: Array) -> None:
        """Add left^T right, summed over steps and rows, to some directions of a gradient."""
        left, right, out = _rows(left)[some].swapaxes(1, 2), _rows(right)[some], gradient[some]
        D, M, N = out.shape
        block = max(1, self.product.size // (D * N))
        for row in range(0, M, block):
            part = out[:, row : row + block]
            product = self.product[: part.size].reshape(part.shape)
            matmul_add(left[:, row : row + block], right, part, product)


def _rows(array: Array) -> Array:
    """Return [D,n,B,F] as [D,n*B,F], one row for every step and batch row."""
    D, n, B, F = array.shape
    return array.reshape(D, n * B, F)


def _bias_sum(weights: LayerWeights) -> Array | None:
    """Return the sum of both biases as [D,1,1,4H], None where there is none."""
    sums = sum_dtype(weights.weight_hh.dtype)
    biases = [
        bias.astype(sums, copy=False)
        for bias in (weights.bias_ih, weights.bias_hh)
        if bias is not None
    ]
    # Not sum(): that begins with 0, one addition more.
    return reduce(operator.add, biases)[:, None, None, :] if biases else None
