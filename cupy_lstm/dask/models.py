"""Models as they travel to the workers, and what a task does with one."""

import copy
from dataclasses import dataclass
from typing import Any, TypeAlias

from dask.base import tokenize
from dask.delayed import Delayed, delayed

from cupy_lstm.backend import Array, array_module, is_array
from cupy_lstm.layer import Layer
from cupy_lstm.lengths import checked_lengths
from cupy_lstm.modes import engine, forced_engine, no_grad
from cupy_lstm.parameter import unique_buffers
from cupy_lstm.segments import StatefulLSTM

States: TypeAlias = tuple[Array, Array]


@dataclass(frozen=True)
class Snapshot:
    """A model as it was when `predict` was called; the threads of a worker share it.

    Attributes
    ----------
    model : LSTM, Layer or estimator
        A copy, of a layer in eval mode and without gradients.
    method : str
        What is called for rows: of a layer ``__call__``.
    engine : str
        What the caller has forced, which a worker does not see by itself.
    """

    model: Any
    method: str
    engine: str

    @classmethod
    def of(cls, model: object, method: str) -> "Snapshot":
        """Return a snapshot of a model; later changes of the model do not reach it.

        Raises
        ------
        TypeError
            If it is neither a layer nor has the method, or holds a `StatefulLSTM`.
        """
        if not isinstance(model, Layer) and not callable(getattr(model, method, None)):
            raise TypeError(
                f"model must be an LSTM, a Layer, or have a method {method!r}, "
                f"received {type(model).__name__}"
            )
        if _is_stateful(model):
            raise TypeError(
                "model keeps states from one call to the next (StatefulLSTM), but chunks come in "
                "any order: give predict its LSTM, whose states it carries along time"
            )
        model = copy.deepcopy(model)
        if isinstance(model, Layer):
            method = "__call__"
            model.eval()
            model.clear_gradients(set_to_zero=False)
            for buffer in unique_buffers(model.parameters()):
                buffer.drop_gradient()
        return cls(model, method, forced_engine())

    def task(self) -> Delayed:
        """Return the snapshot as one task, which the tasks of all chunks depend on.

        So it lies in the graph once, is sent to each worker once, and again to one that takes the
        place of another. Its key is made of its content.
        """
        name = f"{type(self.model).__name__}-{tokenize(self)}"
        return delayed(self, name=name, traverse=False)

    def sweep(
        self,
        inputs: Array,
        states: States | None = None,
        lengths: Array | None = None,
        first: int = 0,
        is_last: bool = True,
    ) -> tuple[Array, States]:
        """Run an LSTM over a chunk of longer sequences; return its outputs and final states.

        Parameters
        ----------
        inputs : array [B,T,I], or [T,B,I]
            A chunk.
        states : tuple (h, c), optional
            Those the chunk before has ended with.
        lengths : array of int [B], optional
            Valid steps of the whole sequences.
        first : int
            How many steps of the sequences lie before this chunk.
        is_last : bool
            Whether none lie behind it; then lengths beyond it are an error.
        """
        if lengths is not None:
            steps, batch = inputs.shape[:2] if self.model.time_major else inputs.shape[1::-1]
            xp = array_module(lengths)
            if is_last:
                checked_lengths(lengths, batch, first + steps, inputs, check=False)
            # What is clamped, other chunks answer for: the first one for lengths below zero.
            if first:
                lengths = xp.maximum(lengths.astype("int64") - first, 0)
            if not is_last:
                lengths = xp.minimum(lengths, steps)
        with no_grad(), engine(self.engine):
            outputs, final_states = self.model(inputs, states, lengths)
        return outputs, final_states

    def predict(self, inputs: Any) -> Array:
        """Return what a layer or an estimator says of rows.

        For none it is called with made-up ones: many a model refuses an empty array, and shape and
        dtype of what it returns are wanted before there are any rows.

        Raises
        ------
        TypeError
            If that is no array.
        ValueError
            If it has not a row for each of them.
        """
        if len(inputs):
            return self._called(inputs)
        some = _rows_like(inputs)
        try:
            return self._called(some)[:0]
        except Exception as error:
            error.add_note(
                f"(the model was called with {len(some)} made-up rows to learn the shape and "
                "dtype of what it returns)"
            )
            raise

    def _called(self, inputs: Any) -> Array:
        with no_grad(), engine(self.engine):
            outputs = getattr(self.model, self.method)(inputs)
        if not is_array(outputs):
            raise TypeError(
                f"the model must return one array, received {type(outputs).__name__}: "
                "wrap it in a Layer that picks the output"
            )
        if not outputs.ndim or len(outputs) != len(inputs):
            raise ValueError(
                f"the model must return a row for each of {len(inputs)} rows, "
                f"received shape {list(outputs.shape)}"
            )
        return outputs


def _is_stateful(model: object) -> bool:
    """Say whether a model writes to itself when it is called, as one layer of this package does."""
    if not isinstance(model, Layer):
        return False
    children = (child for _, child in model.named_children())
    return isinstance(model, StatefulLSTM) or any(map(_is_stateful, children))


def _rows_like(nothing: Any) -> Any:
    """Return a row or two of the kind of an array or a dataframe that has none."""
    if is_array(nothing):
        return array_module(nothing).zeros((1, *nothing.shape[1:]), nothing.dtype)
    from dask.dataframe.utils import meta_nonempty  # there is no dataframe without this module

    return meta_nonempty(nothing)
