"""What a stream has of its LSTM: a copy of the weights, and what engines make of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Protocol

from cupy_lstm import engines
from cupy_lstm.backend import Array, array_module, on_device_of
from cupy_lstm.device import facts_for
from cupy_lstm.engines import single
from cupy_lstm.modes import forced_engine
from cupy_lstm.notation import LayerWeights, States, layer_shape
from cupy_lstm.plan import plan_sweep
from cupy_lstm.stream_graph import StepGraph
from cupy_lstm.weights import LayerParameters, versions

PLANS_KEPT = 64
"""Numbers of steps whose plans a snapshot remembers at once."""


@dataclass(frozen=True)
class LayerSweep:
    """One layer's sweep over some number of steps: the engine and what it wants.

    Attributes
    ----------
    weights : LayerWeights, or what the engine's `prepare` has made of them
        Given to the engine as its weights.
    chunk : int
        Steps the engine takes at once.
    """

    engine: ModuleType
    weights: Any
    chunk: int

    def run(self, x: Array, y: Array, states: States) -> States:
        """Run over x [n,B,I] into y [n,B,1,P]; return the states after it."""
        after: States
        after, _ = self.engine.forward(
            x, self.weights, states, None, reverse=(False,), y=y, keep=False, chunk=self.chunk
        )
        return after


class Step(Protocol):
    """One step of all layers, ready to be run again and again.

    Attributes
    ----------
    memory : tuple of array [L,B,P], [L,B,H]
        The states, read and written by every step.
    """

    memory: States

    def run(self, x: Array, y: Array | None) -> Array:
        """Run one step from x [B,I] into y [B,P], any strides, or a new array; return that."""


class Snapshot:
    """The weights of an LSTM at one moment, and what the engines make of them.

    Attributes
    ----------
    versions : list of int
        The versions of the weights.
    like : array [1,4H,I]
        A weight of the first layer, for its dtype, its place and its shape.
    inputs : tuple of int
        B and I.
    outputs : int
        P.
    """

    def __init__(self, layers: Sequence[LayerParameters], batch: int) -> None:
        # The versions come first: a change while the copies are made is noticed then.
        self.versions = versions(layers)
        self._batch = batch
        with on_device_of(layers[0].arrays().weight_ih):
            self._weights = [copied(layer.arrays()) for layer in layers]
            self.like: Array = self._weights[0].weight_ih
            self.inputs = batch, self.like.shape[2]
            self.outputs: int = self._weights[0].weight_hh.shape[2]
            self._prepared: dict[tuple[str, int], Any] = {}
            self._sweeps: dict[tuple[int, str], list[LayerSweep]] = {}
            self._steps: dict[str, Step | None] = {}
            # What one step needs is prepared now, not while the first one waits.
            self.sweeps(1)

    def sweeps(self, steps: int) -> list[LayerSweep]:
        """Return the sweep of each layer over `steps` steps, with the engine that is forced."""
        key = steps, forced_engine()
        found = self._sweeps.get(key)
        if found is None:
            if len(self._sweeps) == PLANS_KEPT:
                self._sweeps.clear()
            found = [self._sweep(layer, *key) for layer in range(len(self._weights))]
            self._sweeps[key] = found
        return found

    def step(self, states: States) -> Step | None:
        """Return one step of all layers, with the engine that is forced; None if it has none.

        Parameters
        ----------
        states : tuple of array [L,B,P], [L,B,H]
            Those to go on from. A step may have memory of its own for them.
        """
        forced = forced_engine()
        if forced not in self._steps:
            with on_device_of(self.like):
                self._steps[forced] = _step_of(self.sweeps(1), states)
        return self._steps[forced]

    def _sweep(self, layer: int, steps: int, forced: str) -> LayerSweep:
        weights, like = self._weights[layer], self.like
        shape, module = layer_shape(steps, self._batch, weights), array_module(like).__name__
        plan = plan_sweep(shape, like.dtype.name, module, False, forced, facts_for(module))
        engine = engines.load(plan.engine)
        key = plan.engine, layer
        if key not in self._prepared:
            prepare = getattr(engine, "prepare", None)
            self._prepared[key] = weights if prepare is None else prepare(weights, self._batch)
        return LayerSweep(engine, self._prepared[key], plan.steps_per_chunk)


def _step_of(sweeps: Sequence[LayerSweep], states: States) -> Step | None:
    """Return one step of all layers, if one engine runs them and has it."""
    engine, weights = sweeps[0].engine, [sweep.weights for sweep in sweeps]
    if any(sweep.engine is not engine for sweep in sweeps):
        return None
    if engine is single:
        return StepGraph(weights, states)
    make: Callable[..., Step] | None = getattr(engine, "step_of", None)
    return None if make is None else make(weights, states)


def copied(weights: LayerWeights) -> LayerWeights:
    """Return copies of weights."""
    return LayerWeights(*(None if weight is None else weight.copy() for weight in weights))
