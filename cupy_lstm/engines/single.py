"""The engine of single steps on CuPy: one kernel a layer and step, and no product of cuBLAS.

So a CUDA graph can hold it. A projection needs all units first: it is a second kernel. The kernels
are in ``cuda/step.cu``. There is no tape, it serves inference.
"""

from functools import cache

from cupy_lstm.backend import Array, array_module
from cupy_lstm.kernels import SCALARS, VECTOR_BYTES, Kernel, Strided
from cupy_lstm.notation import LayerWeights, States, layer_shape
from cupy_lstm.plan import NO_TAPE
from cupy_lstm.ranges import each_step, stage
from cupy_lstm.steps import Directions

ROWS = (1, 4, 8)
"""Batch rows that share a weight once it is loaded: the forms that are compiled."""

# As in step.cu: lanes of a warp, units of a block, warps that share a sum of a projection.
_WARP, _UNITS, _PARTS = 32, 4, 8


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
) -> tuple[States, None]:
    """Run one layer forward over a range of steps, a launch each; see `stepwise.forward`.

    Raises
    ------
    ValueError
        If a tape is asked for.
    """
    if keep:
        raise ValueError(f"the engine 'single' cannot serve this call: {NO_TAPE}")
    xp, (T, B) = array_module(x), x.shape[:2]
    steps = range(T) if steps is None else steps
    layer, x = LayerStep(weights, B, reverse), _readable(x)
    lengths = None if lengths is None else xp.ascontiguousarray(lengths, dtype="int64")
    before = _readable(xp.ascontiguousarray(states[0])), xp.ascontiguousarray(states[1])
    turns = [(xp.empty_like(before[0]), xp.empty_like(before[1])) for _ in steps[:2]]
    with stage("recurrence", layer_shape(T, B, weights), x.dtype):
        for n, step in enumerate(each_step(steps)):
            after = turns[n % 2]
            layer.run(x, before, after, y=y, cells=cells, lengths=lengths, step=step)
            before = after
    return before if steps else (states[0].copy(), states[1].copy()), None


class LayerStep:
    """One step of one layer, which allocates nothing and can be captured in a CUDA graph.

    Parameters
    ----------
    weights : LayerWeights
        Weights of the layer, [D,...] each.
    batch : int
        B.
    reverse : Directions
        Which directions run from the end.
    """

    def __init__(self, weights: LayerWeights, batch: int, reverse: Directions = (False,)) -> None:
        xp, like = array_module(weights.weight_hh), weights.weight_hh
        self._weights = LayerWeights(
            *(None if one is None else _aligned(xp.ascontiguousarray(one)) for one in weights)
        )
        self._shape = layer_shape(1, batch, weights)
        _, B, _, H, P, D = self._shape
        self._reverse = sum(1 << d for d, backwards in enumerate(reverse) if backwards)
        self._wide = tuple(
            int(_fills_vectors(one.shape[2], one.itemsize)) for one in self._weights[:2]
        )
        rows = next((n for n in ROWS if n >= B), ROWS[-1])
        tiles = -(-B // rows)
        self._grid = tiles * -(-H // _UNITS), D
        self._kernel = _kernel("step_gates", like.dtype.name, rows)
        if weights.weight_ho is not None:
            self._m = xp.empty((D, B, H), like.dtype)  # the cell output, before the projection
            self._output_grid = tiles * -(-P // _WARP), D
            self._projection = _kernel("step_projection", like.dtype.name, rows)

    def compile(self) -> None:
        """Compile the kernels for the device of the weights, the current one, if they are not."""
        device = self._weights.weight_hh.device.id
        self._kernel.function(device)
        if self._weights.weight_ho is not None:
            self._projection.function(device)

    def run(
        self,
        x: Array,
        before: States,
        after: States,
        *,
        y: Array | None = None,
        cells: Array | None = None,
        lengths: Array | None = None,
        step: int = 0,
    ) -> None:
        """Run one step.

        Parameters
        ----------
        x : array [T,B,I]
            Input in time order. Its rows are contiguous, and where they fill vectors of 16 bytes
            they begin at multiples of that.
        before, after : tuple of array [D,B,P] and [D,B,H]
            The states, contiguous. h after must not be h before; c may be.
        y : array [T,B,D,P], optional
            Receives the output of this step, zero in padding; any strides.
        cells : array [T,B,D,H], optional
            Receives the cell state of this step, zero in padding.
        lengths : array [B] of int64, optional
            Valid times of each row.
        step : int
            Which of the T steps.
        """
        weights, T = self._weights, x.shape[0]
        _, B, I, H, P, _ = self._shape  # noqa: E741
        projected = weights.weight_ho is not None
        m, gates_y = (self._m, None) if projected else (after[0], y)
        self._kernel.launch_blocks(
            self._grid,
            _UNITS * _WARP,
            0,
            *weights[:4],
            *(Strided(x), lengths, *before, m, after[1], _strided(gates_y), _strided(cells)),
            *(*Strided(x).strides[:2], *_strides(gates_y), *_strides(cells)),
            *(*self._wide, self._reverse),
            *(step, T, B, I, H, P),
        )
        if projected:
            self._projection.launch_blocks(
                self._output_grid,
                _PARTS * _WARP,
                0,
                *(weights.weight_ho, lengths, m, before[0], after[0], _strided(y), *_strides(y)),
                *(self._reverse, step, T, B, H, P),
            )


@cache
def _kernel(function: str, dtype: str, rows: int) -> Kernel:
    return Kernel("step.cu", function, SCALARS[dtype], str(rows))


def _fills_vectors(features: int, itemsize: int) -> bool:
    """Say whether rows of so many elements are whole vectors, the widest that can be loaded."""
    return features * itemsize % VECTOR_BYTES == 0


def _readable(array: Array) -> Array:
    """Return an input [T,B,I] or a state [D,B,P] as the kernel reads it: itself, or a copy.

    How it is read must not depend on where it lies: that would change the order of its sums.
    """
    F, itemsize = array.shape[2], array.itemsize
    dense = F == 1 or array.strides[2] == itemsize
    strides = [n for size, n in zip(array.shape[:2], array.strides, strict=False) if size > 1]
    aligned = not any(place % VECTOR_BYTES for place in (array.data.ptr, *strides))
    if dense and (aligned or not _fills_vectors(F, itemsize)):
        return array
    return array.copy("C")


def _aligned(array: Array) -> Array:
    """Return a contiguous array that begins with a whole vector: itself, or a copy."""
    return array.copy() if array.data.ptr % VECTOR_BYTES else array


def _strided(array: Array | None) -> Strided | None:
    return None if array is None else Strided(array)


def _strides(array: Array | None) -> tuple[int, ...]:
    return (0,) * 4 if array is None else Strided(array).strides
