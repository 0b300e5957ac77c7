"""One step of all layers as a CUDA graph: what a stream on CuPy replays at every call."""

from collections.abc import Sequence
from typing import Any

from cupy_lstm.backend import Array, import_module
from cupy_lstm.engines.single import LayerStep
from cupy_lstm.notation import LayerWeights, States


class StepGraph:
    """One step of all layers, on arrays that never move: the first time launched, then replayed.

    A graph keeps addresses, no memory. All that it reads and writes belongs to this object, and is
    never replaced: the weights, the input and the outputs, and the states, which it shares with
    the stream.

    Where the caller's current stream is being captured, the kernels become part of what the caller
    captures. A replay of that goes on from the state that it finds, as a call does.

    Parameters
    ----------
    layers : sequence of LayerWeights
        Weights of every layer, of one direction; not to be changed.
    memory : tuple of array [L,B,P], [L,B,H]
        The states, read and written by every step.
    """

    def __init__(self, layers: Sequence[LayerWeights], memory: States) -> None:
        self.memory = h, c = memory
        xp, like, batch = import_module("cupy"), layers[0].weight_ih, h.shape[1]
        self._x = xp.empty((1, batch, like.shape[2]), like.dtype)
        self._h, self._c = h, c
        self._y = xp.empty_like(h)  # h of every layer after the step
        self._layers = [LayerStep(weights, batch) for weights in layers]
        for layer in self._layers:
            layer.compile()
        self._launched = False
        self._graph: Any = None

    def run(self, x: Array, y: Array | None) -> Array:
        """Run one step from x [B,I] into y [B,P], any strides, or a new array; return that.

        On the current stream.
        """
        stream = import_module("cupy").cuda.get_current_stream()
        self._x[0] = x
        if not self._launched or stream.is_capturing():
            # The driver may load a kernel when it is first launched: nothing to do in a capture.
            self._launch()
            self._launched = True
        else:
            if self._graph is None:
                self._graph = self._captured()
            self._graph.launch(stream)
        if y is None:
            return self._y[-1].copy()
        y[...] = self._y[-1]
        return y

    def _launch(self) -> None:
        """Launch the kernels of all layers."""
        x = self._x
        for k, layer in enumerate(self._layers):
            here = slice(k, k + 1)
            h, c, y = self._h[here], self._c[here], self._y[here]
            layer.run(x, (h, c), (y, c))
            x = y
        # Only now: the units of a layer read all of its h, at any time of their kernel.
        self._h[...] = self._y

    def _captured(self) -> Any:
        """Return the graph of one step."""
        # The default stream cannot be captured, and the caller's is not ours to capture. This one
        # exists to record: nothing ever runs on it.
        recorder = import_module("cupy").cuda.Stream(non_blocking=True)
        with recorder:
            recorder.begin_capture()
            try:
                self._launch()
            finally:
                graph = recorder.end_capture()
        return graph
