"""The gradients of the engine persistent that are products over all steps and rows of a chunk.

Nothing here depends on the recurrence: dz of every step is there, and h before it.
"""

from dataclasses import dataclass

from cupy_lstm.backend import Array, array_module
from cupy_lstm.gemm import matmul_add
from cupy_lstm.notation import LayerGradients, LayerWeights, Wanted
from cupy_lstm.persistent.places import Layout, groups
from cupy_lstm.steps import Directions


@dataclass
class Tape:
    """What backward needs of a forward over a range of steps.

    Attributes
    ----------
    x : array [T,B,I]
        The input, by reference.
    h0, c0 : array [D,B,H]
        State before the first step.
    gates : array [n,B,D,4H]
        Activated gates, at the times of the steps.
    c : array [n,B,D,H]
        Cell state after each step. Not set in padding, as the gates.
    """

    x: Array
    weights: LayerWeights
    lengths: Array | None
    reverse: Directions
    steps: range
    chunk: int
    h0: Array
    c0: Array
    gates: Array | None
    c: Array | None


class Products:
    """What dz of a chunk means for weights and input: products over all steps and rows at once.

    Attributes
    ----------
    dz : array [k,B,D,4H]
    by_gate : array [D,4H,k*B]
        The same as the left operand of weight gradients.
    """

    def __init__(
        self,
        layout: Layout,
        part: range,
        tape: Tape,
        dz: Array,
        wanted: Wanted,
        gradients: LayerGradients,
    ) -> None:
        self.layout, self.part, self.tape, self.dz = layout, part, tape, dz
        self.wanted, self.gradients = wanted, gradients
        self.by_gate = self._rows(dz).transpose(1, 2, 0)

    def add_input_gradients(self, dx: Array | None, x_memory: Array | None) -> None:
        """Add to the gradients of weight_ih and, if it is wanted, of the input."""
        x, some, xp = self.tape.x, self.wanted.weight_ih, array_module(self.dz)
        part, gradient = self.part, self.gradients.weight_ih
        for directions, times, _ in groups(part, part, x.shape[0], self.tape.reverse):
            both = None if some is None else _common(directions, some)
            if both is not None and gradient is not None:
                (rows,) = self.layout.matrices(self._input(times, x_memory))
                out = gradient[both]
                matmul_add(
                    self.by_gate[both],
                    xp.broadcast_to(rows, (len(out), *rows.shape[1:])),
                    out=out,
                    product=out,
                )
            if dx is not None:
                self._add_to_input(directions, dx[times])

    def _input(self, times: slice, memory: Array | None) -> Array:
        """Return x at some times as the rows of one matrix, with zeros in place of padding."""
        x, lengths, xp = self.tape.x[times], self.tape.lengths, array_module(self.dz)
        if memory is None:
            return self.layout.as_rows(x, whole=True)
        out = self.layout.within(memory, *x.shape)
        out.fill(0)
        # Assigned, never multiplied: what lies in the padding may be NaN.
        xp.copyto(out, x, where=valid_times(lengths, times)[:, :, None])
        return out

    def _add_to_input(self, directions: slice, dx: Array) -> None:
        """Add the gradient of the input to dx [k,B,I].

        Where the directions come one after another, dx of a half type is rounded after each, as in
        `stepwise`: to keep the sums in float32 would take memory for the whole sequence.
        """
        xp, weight = array_module(dx), self.tape.weights.weight_ih[directions]
        dz = self.dz[:, :, directions]
        out = self.layout.as_rows(dx)
        rows, matrices = self.layout.matrices(dz.reshape(*dz.shape[:2], -1), out)
        weight = weight.reshape(1, -1, dx.shape[2])
        weight = xp.broadcast_to(weight, (len(rows), *weight.shape[1:]))
        matmul_add(rows, weight, out=matrices, product=matrices)
        if out is not dx:
            dx[...] = out

    def add_recurrent_gradients(self, h_prev: Array) -> None:
        """Add to the gradients of weight_hh and of the biases."""
        wanted, gradients = self.wanted, self.gradients
        some, gradient = wanted.weight_hh, gradients.weight_hh
        if some is not None and gradient is not None:
            right, out = self._rows(h_prev).swapaxes(0, 1)[some], gradient[some]
            matmul_add(self.by_gate[some], right, out=out, product=out)
        biases = (wanted.bias_ih, gradients.bias_ih), (wanted.bias_hh, gradients.bias_hh)
        if any(some is not None for some, _ in biases):
            sums = self._rows(self.dz).sum(axis=0, dtype="float32")
            for some, gradient in biases:
                if some is not None and gradient is not None:
                    out = gradient[some]
                    out += sums[some]  # not gradient[some] +=, which may copy out to itself

    def _rows(self, array: Array) -> Array:
        """Return an array [k,B,D,F] of ours as [k*B,D,F], in its order."""
        array = array.swapaxes(0, 1) if self.layout.batch_major else array
        return array.reshape(-1, *array.shape[2:])


def _common(one: slice, other: slice) -> slice | None:
    """Return the directions that are in both slices, None if there are none."""
    start, stop = max(one.start, other.start or 0), one.stop
    if other.stop is not None:
        stop = min(stop, other.stop)
    return slice(start, stop) if start < stop else None


def valid_times(lengths: Array, times: slice) -> Array:
    """Return which times are no padding, bool [k,B]."""
    valid: Array = array_module(lengths).arange(times.start, times.stop)[:, None] < lengths
    return valid
