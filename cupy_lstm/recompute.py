"""Long sequences in little memory: keep the states now and then, and make the tapes again.

A tape of all T steps of a layer holds 5 H numbers for each of them. Here forward keeps h and c
before each *segment* of steps, and backward makes the tape of one segment after the other, the
last one first (Chen et al., 2016, "Training deep nets with sublinear memory cost"). Forward runs
each segment just as it will be run again, tape and all, so nothing but memory and time differs.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from cupy_lstm.backend import Array, array_module
from cupy_lstm.notation import LayerWeights, States
from cupy_lstm.steps import Directions


@dataclass
class Segments:
    """The tapes of all segments of one layer, the last one first; each is made when asked for.

    Attributes
    ----------
    engine : module
        Runs the layer.
    x : array [T,B,I]
        The input, by reference.
    steps : list of range
        The segments.
    before : list of (array [D,B,P], array [D,B,H])
        h and c before each of them.
    """

    engine: ModuleType
    x: Array
    weights: LayerWeights
    lengths: Array | None
    reverse: Directions
    chunk: int
    steps: list[range]
    before: list[States]

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[Any]:
        nowhere = _nowhere(self.x, self.weights)
        for steps, states in zip(reversed(self.steps), reversed(self.before), strict=True):
            yield self.run(steps, states, nowhere, None)[1]

    def run(
        self, steps: range, states: States, y: Array, cells: Array | None
    ) -> tuple[States, Any]:
        """Run a segment; return the states after it, and its tape."""
        result: tuple[States, Any] = self.engine.forward(
            self.x,
            self.weights,
            states,
            self.lengths,
            reverse=self.reverse,
            y=y,
            cells=cells,
            keep=True,
            steps=steps,
            chunk=self.chunk,
        )
        return result


def forward(
    engine: ModuleType,
    x: Array,
    weights: LayerWeights,
    states: States,
    lengths: Array | None,
    *,
    reverse: Directions,
    y: Array,
    cells: Array | None,
    chunk: int,
    segment: int,
) -> tuple[States, Segments]:
    """Run one layer forward over all steps, and keep the states before every segment.

    Parameters
    ----------
    engine : module
        Of `cupy_lstm.engines`.
    x, weights, states, lengths, reverse, y, cells, chunk
        As of `cupy_lstm.engines.stepwise.forward`.
    segment : int
        Steps of a segment; `Plan.steps_per_segment` says which numbers change no result.

    Returns
    -------
    states : tuple of array [D,B,P] and [D,B,H]
        h and c after the last step, new arrays.
    segments : Segments
        For the engine's `backward`.
    """
    T = len(x)
    parts = [range(T)[start : start + segment] for start in range(0, max(T, 1), segment)]
    segments = Segments(engine, x, weights, lengths, reverse, chunk, parts, [])
    states = states[0].copy(), states[1].copy()  # the caller may change his own
    for steps in parts:
        segments.before.append(states)
        states = segments.run(steps, states, y, cells)[0]
    return states, segments


def _nowhere(x: Array, weights: LayerWeights) -> Array:
    """Return an array [T,B,D,P] for outputs that nobody reads: all times are at one place."""
    xp, (T, B, _), (D, _, P) = array_module(x), x.shape, weights.weight_hh.shape
    place = xp.empty((B, D, P), x.dtype)
    nowhere: Array = xp.lib.stride_tricks.as_strided(place, (T, B, D, P), (0, *place.strides))
    return nowhere
