"""Processes that train together are in the same state: that of rank 0."""

from collections.abc import Mapping
from typing import Any

from cupy_lstm.backend import Array
from cupy_lstm.description import description, difference
from cupy_lstm.distributed.agreement import on_first
from cupy_lstm.distributed.communicator import aborting
from cupy_lstm.distributed.launcher import ALONE
from cupy_lstm.layer import Layer
from cupy_lstm.training_state import TrainingState


def require_alike(state: TrainingState, loss: object, options: Mapping[str, Any]) -> None:
    """End all processes if one of them has another training, saying what differs.

    Parameters
    ----------
    state : TrainingState
        Of this process.
    loss : object
        What is trained for.
    options : mapping of str to bool, int, str or None
        What else all must have in common, by name.

    Raises
    ------
    TypeError
        If the model is no layer, whose names and seeds are known.
    ValueError
        In the process that differs from rank 0.
    """
    communicator = state.communicator
    if communicator.size == 1:
        return
    if not isinstance(state.model, Layer):
        raise TypeError(
            "model must be a Layer to be trained on several processes, received "
            f"{type(state.model).__name__}"
        )
    with aborting(communicator):
        mine = description(state, loss) | dict(options)
        shapes = {name: list(p.shape) for name, p in state.model.named_parameters()}
        mine |= {f"shape of {name}": shape for name, shape in shapes.items()}
        other = difference(on_first(communicator, lambda: mine), mine)
        if other is not None:
            raise ValueError(
                f"all processes must train the same, but rank {communicator.rank} differs from "
                f"rank 0: {other} (set {ALONE}=1 if each process shall train a model of its own)"
            )


def replicate(state: TrainingState) -> None:
    """Give all processes the state of rank 0: weights, optimiser, seeds, and where it stands.

    Parameters
    ----------
    state : TrainingState
        Of this process; overwritten unless it is that of rank 0.
    """
    communicator = state.communicator
    if communicator.size == 1:
        return
    with aborting(communicator):
        tensors, facts = state.capture()
        names, facts = on_first(communicator, lambda: [list(tensors), facts])
        received = {name: _received(state, name, tensors) for name in names}
        if communicator.rank > 0:
            state.restore(received, facts)


def _received(state: TrainingState, name: str, tensors: dict[str, Array]) -> Array:
    """Return the array that rank 0 has under a name; best weights are like the weights."""
    array = tensors[name.replace("best.", "model.", 1) if name not in tensors else name]
    if state.communicator.rank > 0:
        array = array.copy()
    # As bytes: neither MPI nor NCCL knows every dtype.
    state.communicator.broadcast(array.reshape(-1).view("uint8"))
    return array
