"""Processes that train together start from the same state: that of rank 0."""

from typing import Any

from cupy_lstm.backend import Array
from cupy_lstm.description import description, difference
from cupy_lstm.distributed.agreement import on_first
from cupy_lstm.distributed.communicator import aborting
from cupy_lstm.distributed.launcher import ALONE
from cupy_lstm.layer import Layer
from cupy_lstm.training_state import TrainingState


def replicate(state: TrainingState, loss: object) -> None:
    """Give all processes the state of rank 0: weights, optimiser, seeds, and where it stands.

    A process with another training ends all of them, with a message that says what differs.

    Parameters
    ----------
    state : TrainingState
        Of this process; overwritten unless it is that of rank 0.
    loss : object
        What is trained for, to be compared.

    Raises
    ------
    TypeError
        If the model is no layer, whose names and seeds are known.
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
        _require_alike(state, loss)
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


def _require_alike(state: TrainingState, loss: object) -> None:
    mine: dict[str, Any] = description(state, loss)
    shapes = {name: list(p.shape) for name, p in state.model.named_parameters()}
    mine |= {f"shape of {name}": shape for name, shape in shapes.items()}
    other = difference(on_first(state.communicator, lambda: mine), mine)
    if other is not None:
        raise ValueError(
            f"all processes must train the same, but rank {state.communicator.rank} differs from "
            f"rank 0: {other} (set {ALONE}=1 if each process shall train a model of its own)"
        )
