"""The training loop."""

from collections.abc import Callable, Iterable, Iterator, Sized
from functools import partial
from typing import Any, Protocol, TypeAlias

import numpy

from cupy_lstm.backend import Array, is_array, sum_dtype
from cupy_lstm.checkpoints import CheckpointsLike, Saver, checked_checkpoints, opened
from cupy_lstm.checks import checked_integer, checked_number
from cupy_lstm.distributed.agreement import on_first
from cupy_lstm.distributed.communicator import Communicator, SingleProcess, aborting
from cupy_lstm.distributed.gradients import summed_gradients
from cupy_lstm.distributed.shares import share_of
from cupy_lstm.history import Callback, EpochRecord, History
from cupy_lstm.modes import no_grad, rows_from
from cupy_lstm.optimizer_base import Optimizer
from cupy_lstm.parameter import Parameter
from cupy_lstm.progress import progress_bar
from cupy_lstm.ranges import each_load
from cupy_lstm.replicas import replicate
from cupy_lstm.training_state import MeanLoss, TrainingState
from cupy_lstm.windows import Inputs

Loss: TypeAlias = Callable[..., tuple[Array, Array]]
"""A function of (prediction, target) to (mean over all elements, gradient of the prediction).

It is also given ``weights=``, where batches have them.
"""


class Model(Protocol):
    """What `fit` trains: a `Layer` that is called with inputs and returns one prediction."""

    training: bool

    def __call__(self, *args: Any, **kwargs: Any) -> Array:
        """Return the prediction for the inputs of a batch."""

    def backward(self, gradient: Array, /) -> Any:
        """Add to the gradients of the parameters, given that of the last prediction."""

    def parameters(self) -> list[Parameter]:
        """Return every parameter once."""

    def train(self) -> Any:
        """Switch to training."""

    def eval(self) -> Any:
        """Switch to inference."""


BatchesLike: TypeAlias = Iterable[tuple[Inputs, Array] | tuple[Inputs, Array, Array]]
"""`Batches`, or anything else that yields (inputs, targets) each time it is iterated.

With a weight for each sample, (inputs, targets, weights).
"""


def fit(
    model: Model,
    loss: Loss,
    optimizer: Optimizer,
    batches: BatchesLike,
    validation: BatchesLike | None = None,
    *,
    epochs: int = 100,
    patience: int | None = None,
    min_delta: float = 0.0,
    callbacks: Iterable[Callback] = (),
    checkpoints: CheckpointsLike | None = None,
    progress: bool = True,
    communicator: Communicator | None = None,
) -> History:
    """Train a model.

    Each batch is a call in training mode, the loss, a backward and a step of the optimiser.
    Validation runs after each epoch in eval mode under `no_grad`. On CuPy the losses are read
    back once an epoch, at its end; no batch waits for the device.

    Parameters
    ----------
    model : Layer
        Called as ``model(*inputs)``, returns the prediction; ``model.backward(gradient)`` takes
        the gradient of it. `fit` leaves it in the mode in which it came.
    loss : callable
        One of `cupy_lstm.loss`, or any function of (prediction, target) to (loss, gradient), that
        takes ``weights=``, too, where the batches have them.
    optimizer : Optimizer
        Made for the parameters that shall change.
    batches : iterable of (inputs, targets)
        `Batches`, or another iterable that can be iterated once an epoch; inputs are an array or
        a tuple of arrays. Batches of (inputs, targets, weights) weigh the loss of each sample.
    validation : iterable of (inputs, targets), optional
        Batches the model does not learn from.
    epochs : int
        Largest number of passes over `batches`.
    patience : int, optional
        End the training after so many epochs without an improvement of the validation loss (of
        the training loss without validation). With patience, however many epochs ran, the model
        ends with the weights of the best one; without, with those of the last.
    min_delta : float
        What counts as an improvement: more than this.
    callbacks : iterable of callable
        Called in order with an `EpochRecord` after every epoch; False from one of them ends the
        training after that epoch. If one raises, the model, the optimiser and `batches` are as
        that epoch left them.
    checkpoints : Checkpoints, str or path, optional
        A folder, or where and how often, to write down how far the training has come. The same
        call in a program that is started again goes on from there, and ends bit for bit where it
        would have ended; a training that has come to its end is not repeated. See `Checkpoints`.
    progress : bool
        Whether to show a progress bar with the losses; needs tqdm, and without it shows nothing.
    communicator : Communicator, optional
        Processes that train this model together, usually ``launched()`` of
        `cupy_lstm.distributed`: every one calls `fit` with the same arguments and computes its rows
        of every batch. All start from the weights, optimiser and seeds of rank 0, end with the same
        weights, and return the same history; progress, callbacks and checkpoints are those of rank
        0, and what a callback changes there (weights, what is frozen, the learning rate) reaches
        the others. Default: this process alone.

    Returns
    -------
    History
        Losses and learning rates of the epochs, and which was the best.

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong type or an impossible value, or there are no batches, or the
        checkpoint that is there is of another training.
    RuntimeError
        If another training uses the folder of checkpoints. Also in the other processes, if a
        callback or a checkpoint raised in that of rank 0; any other error in one of several
        processes ends all of them.
    OSError
        If a checkpoint cannot be written; those that were there stay.
    ImportError
        If checkpoints are asked for and safetensors is not installed.
    FloatingPointError
        If the training or validation loss of an epoch is infinite or not a number. The weights
        are left as they are then.
    """
    epochs = checked_integer("epochs", epochs)
    if patience is not None:
        patience = checked_integer("patience", patience)
    min_delta = checked_number("min_delta", min_delta)
    checkpoints = checked_checkpoints("checkpoints", checkpoints)
    callbacks = _checked_parts(model, loss, optimizer, callbacks)
    _check_batches("batches", batches)
    if validation is not None:
        _check_batches("validation", validation)

    state = TrainingState(
        model,
        optimizer,
        batches,
        validation,
        min_delta=min_delta,
        keep_best=patience is not None,
        communicator=_checked_communicator(communicator),
    )
    communicator = state.communicator
    came_in_training = model.training
    try:
        with (
            opened(checkpoints, state, loss, epochs) as saver,
            progress_bar(epochs, progress and communicator.rank == 0, state.position.epoch) as show,
        ):
            while not on_first(communicator, partial(state.is_over, epochs, patience)):
                _train(state, loss, saver)
                record = _end_epoch(state, loss)
                show(record)
                _call_back(state, callbacks, record)
                saver.after_epoch()
            saver.finish()
    finally:
        model.train() if came_in_training else model.eval()
    state.restore_best()
    state.history.stopped_early = len(state.history.loss) < epochs
    return state.history


def _train(state: TrainingState, loss: Loss, saver: Saver) -> None:
    """Learn from the batches of an epoch, or from what is left of them."""
    model, optimizer, communicator = state.model, state.optimizer, state.communicator
    model.train()
    with aborting(communicator):
        for batch in state.remaining_batches():
            share = share_of(batch, communicator)
            with rows_from(share.first_row):
                prediction, target, weights = _predict(model, share.batch)
            scale = optimizer.loss_scale * share.weight
            value, gradient = _scaled(loss, prediction, target, weights, scale)
            optimizer.clear_grad()
            with summed_gradients(communicator, optimizer.parameters):
                model.backward(gradient)
            optimizer.step()
            state.end_step(value, target if share.weight else target[:0])
            saver.after_step()


def _end_epoch(state: TrainingState, loss: Loss) -> EpochRecord:
    """Validate, and read the losses of an epoch."""
    validation, epoch = state.validation, state.position.epoch
    validated = None if validation is None else _validate(state, loss)
    training_loss = state.loss.read("training", epoch)
    validation_loss = validated.read("validation", epoch) if validated else None
    return state.end_epoch(training_loss, validation_loss)


def _scaled(
    loss: Loss, prediction: Array, target: Array, weights: Array | None, scale: float
) -> tuple[Array, Array]:
    """Return a loss and its gradient times `scale`, in float32 until the gradient is rounded."""
    dtype, sums = prediction.dtype, sum_dtype(prediction.dtype)
    if target.dtype == dtype:
        target = target.astype(sums, copy=False)
    weighting = {} if weights is None else {"weights": weights.astype(sums, copy=False)}
    value, gradient = loss(prediction.astype(sums, copy=False), target, **weighting)
    if scale != 1:
        gradient = gradient * scale
    return value, gradient.astype(dtype, copy=False)


def _validate(state: TrainingState, loss: Loss) -> MeanLoss:
    mean = MeanLoss(state.communicator)
    state.model.eval()
    with no_grad(), aborting(state.communicator):
        for batch in each_load(state.validation):
            share = share_of(batch, state.communicator)
            if share.weight:
                prediction, target, weights = _predict(state.model, share.batch)
                value, _ = _scaled(loss, prediction, target, weights, 1)
                mean.add(value, target)
    return mean


def _predict(model: Model, batch: object) -> tuple[Array, Array, Array | None]:
    """Return the prediction for a batch, its target, and the weights of its samples.

    Raises
    ------
    TypeError
        If the batch is no pair or triple, or the model returns no array.
    """
    if not isinstance(batch, tuple | list) or len(batch) not in (2, 3):
        raise TypeError(
            "a batch must be a pair (inputs, targets) or a triple (inputs, targets, weights), "
            f"received {type(batch).__name__}"
        )
    inputs, target, *weights = batch
    prediction = model(*inputs) if isinstance(inputs, tuple) else model(inputs)
    if not is_array(prediction):
        raise TypeError(
            f"the model must return one array, received {type(prediction).__name__}: "
            "wrap it in a Layer that picks the output to train on"
        )
    return prediction, target, weights[0] if weights else None


def _call_back(state: TrainingState, callbacks: list[Callback], record: EpochRecord) -> None:
    """Call all callbacks on rank 0; every process takes over what they decide and change."""

    def call() -> list[bool]:
        verdicts = [callback(record) for callback in callbacks]
        return [any(_means_stop(verdict) for verdict in verdicts), bool(callbacks)]

    state.position.stopped, called = on_first(state.communicator, call)
    if called:
        replicate(state)


def _means_stop(verdict: object) -> bool:
    return isinstance(verdict, bool | numpy.bool_) and not verdict


def _checked_communicator(communicator: Communicator | None) -> Communicator:
    if communicator is None:
        return SingleProcess()
    if not hasattr(communicator, "start_sum"):
        raise TypeError(
            "communicator must be a Communicator of cupy_lstm.distributed or None, "
            f"received {type(communicator).__name__}"
        )
    return communicator


def _checked_parts(
    model: Model, loss: Loss, optimizer: Optimizer, callbacks: Iterable[Callback]
) -> list[Callback]:
    """Raise if a part is none, and return the callbacks as a list."""
    if not callable(model) or not hasattr(model, "backward"):
        raise TypeError(f"model must be a layer with a backward, received {type(model).__name__}")
    if not callable(loss):
        raise TypeError(f"loss must be callable, received {loss!r}")
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer must be an Optimizer, received {optimizer!r}")
    if not {id(p) for p in model.parameters()} & {id(p) for p in optimizer.parameters}:
        raise ValueError("optimizer holds no parameter of the model: give it model.parameters()")
    if not isinstance(callbacks, Iterable):
        raise TypeError(f"callbacks must be an iterable of callables, received {callbacks!r}")
    found = list(callbacks)
    for index, callback in enumerate(found):
        if not callable(callback):
            raise TypeError(f"callbacks[{index}] must be callable, received {callback!r}")
    return found


def _check_batches(argument: str, batches: object) -> None:
    if not isinstance(batches, Iterable):
        raise TypeError(
            f"{argument} must be an iterable of (inputs, targets), "
            f"received {type(batches).__name__}"
        )
    if isinstance(batches, Iterator):
        raise TypeError(
            f"{argument} must be something that can be iterated every epoch, such as Batches or a "
            f"list, received a {type(batches).__name__}, which is used up by the first"
        )
    if isinstance(batches, Sized) and not len(batches):
        raise ValueError(f"{argument} is empty")
