"""Where a training stands: all that its steps change, to be written down and gone on from.

What is written is a pair: `tensors`, the arrays by name, and `facts`, everything else as JSON takes
it. Between them they hold the weights and what is frozen, the state of the optimiser, the keys of
the dropout masks, the order of the batches and the place in it, the states that layers carry from
batch to batch, the sums of the running epoch's loss, the history, and the best weights so far.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from itertools import islice
from math import inf, isfinite
from typing import Any

from cupy_lstm.backend import Array, array_module, is_array
from cupy_lstm.distributed.agreement import summed
from cupy_lstm.distributed.communicator import Communicator
from cupy_lstm.history import EpochRecord, History
from cupy_lstm.layer import Layer
from cupy_lstm.lstm import LSTM
from cupy_lstm.optimizer_base import Optimizer
from cupy_lstm.ranges import each_load
from cupy_lstm.segments import StatefulLSTM
from cupy_lstm.windows import kind_of


class MeanLoss:
    """Mean of a loss over the elements of all batches; stays on the device until it is read."""

    def __init__(self, communicator: Communicator, total: Array = 0.0, elements: int = 0) -> None:
        self._communicator = communicator
        self._total = total
        self._elements = elements

    def add(self, value: Array, target: Array) -> None:
        """Take in the mean loss of a batch."""
        total = array_module(target).asarray(value, "float64") * target.size
        self._total = self._total + total
        self._elements += target.size

    def sums(self) -> tuple[float, int]:
        """Return the sum over this process's elements, and their number; synchronises on CuPy."""
        self._total = float(self._total)
        return self._total, self._elements

    def gather(self) -> tuple[float, int]:
        """Return the sum over all processes' elements, and their number.

        From here on rank 0 has all of it, and the others nothing: so a training goes on, bit for
        bit, from what rank 0 has written down.
        """
        total, elements = summed(self._communicator, self.sums())
        gathered = total, int(elements)
        self._total, self._elements = gathered if self._communicator.rank == 0 else (0.0, 0)
        return gathered

    def read(self, kind: str, epoch: int) -> float:
        """Return the mean over all processes; synchronises on CuPy."""
        total, elements = self.gather()
        if not elements:
            raise ValueError(f"there are no {kind} batches")
        return _finite(kind, epoch, total / elements)


@dataclass
class Position:
    """How far a training has come.

    Attributes
    ----------
    epoch : int
        Epochs that are over.
    batch : int
        Batches of the running one that are over.
    steps : int
        Batches of all epochs that are over.
    learning_rate : float
        Of the first step of the running epoch.
    orders : dict
        Seed and epoch of the batches, and of those of validation, when the running epoch began.
    stopped : bool
        Whether a callback has ended the training.
    history : History
        The epochs that are over.
    """

    epoch: int = 0
    batch: int = 0
    steps: int = 0
    learning_rate: float = 0.0
    orders: dict[str, dict[str, int]] = field(default_factory=dict)
    stopped: bool = False
    history: History = field(default_factory=History)


class TrainingState:
    """A training: its parts, and where it stands.

    Parameters
    ----------
    model : Model
        What is trained; a `Layer` if its state shall be captured.
    optimizer : Optimizer
        What trains it.
    batches, validation : iterable
        As of `fit`.
    min_delta : float
        How much smaller a loss must be to be better.
    keep_best : bool
        Whether to keep the weights of the best epoch.
    communicator : Communicator
        The processes that have this training together.

    Attributes
    ----------
    position : Position
        How far it has come.
    loss : MeanLoss
        Of the running epoch.
    """

    def __init__(
        self,
        model: Any,
        optimizer: Optimizer,
        batches: Any,
        validation: Any,
        *,
        min_delta: float,
        keep_best: bool,
        communicator: Communicator,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.batches = batches
        self.validation = validation
        self.position = Position()
        self.communicator = communicator
        self.loss = MeanLoss(communicator)
        self.min_delta = min_delta
        self._best_weights: list[Array] | None = None
        self.keep_best = keep_best

    @property
    def history(self) -> History:
        """The epochs that are over."""
        return self.position.history

    @property
    def carries_states(self) -> bool:
        """Whether layers carry states from batch to batch."""
        return any(True for _ in self._stateful())

    def remaining_batches(self) -> Iterator[Any]:
        """Begin an epoch, or go on within one: yield its batches that are not over."""
        position = self.position
        if not position.batch:
            position.learning_rate = self.optimizer.learning_rate
            position.orders = {name: _order(data) for name, data in self._ordered()}
            self.loss = MeanLoss(self.communicator)
        yield from islice(each_load(self.batches), position.batch, None)

    def end_step(self, value: Array, target: Array) -> None:
        """Take in the loss of a batch that was learnt from."""
        self.loss.add(value, target)
        self.position.batch += 1
        self.position.steps += 1

    def end_epoch(self, loss: float, validation_loss: float | None) -> EpochRecord:
        """Take in the losses of an epoch, and the weights if they are the best."""
        position = self.position
        watched = loss if validation_loss is None else validation_loss
        is_best = watched < self._best_loss() - self.min_delta
        record = EpochRecord(position.epoch, loss, validation_loss, position.learning_rate, is_best)
        position.history.add(record)
        if is_best and self.keep_best:
            self._best_weights = [p.row.copy() for p in self.model.parameters()]
        position.epoch += 1
        position.batch = 0
        return record

    def is_over(self, epochs: int, patience: int | None) -> bool:
        """Say whether there is nothing left to do."""
        done = self.position.epoch
        impatient = patience is not None and done - 1 - self.history.best_epoch >= patience
        return done >= epochs or self.position.stopped or impatient

    def restore_best(self) -> None:
        """Put the weights that were kept back into the model."""
        if self._best_weights is not None:
            for p, weight in zip(self.model.parameters(), self._best_weights, strict=True):
                p.set_value(weight)

    def capture(self) -> tuple[dict[str, Array], dict[str, Any]]:
        """Return the state as arrays, live ones, and as facts.

        On CuPy it synchronises within an epoch, whose loss it reads.

        Raises
        ------
        FloatingPointError
            If the loss of the running epoch is infinite or not a number so far.
        """
        position = self.position
        sums = self.loss.sums() if position.batch else (0.0, 0)
        if position.batch:
            _finite("training", position.epoch, sums[0] / max(1, sums[1]))
        else:
            position.orders = {name: _order(data) for name, data in self._ordered()}
        optimizer = self.optimizer.state_dict()
        parameters = dict(self.model.named_parameters())
        tensors = self._tensors()
        if self._best_weights is not None:
            best = zip(parameters, self._best_weights, strict=True)
            tensors |= {f"best.{name}": weight for name, weight in best}
        tensors |= self._carried()
        facts = {
            "position": asdict(position),
            "loss": sums,
            "optimizer": {key: value for key, value in optimizer.items() if not is_array(value)},
            "dropout": {name: _dropout(lstm) for name, lstm in self._lstms()},
            "frozen": [name for name, p in parameters.items() if not p.trainable],
            "with_gradient": [name for name, p in parameters.items() if p.has_gradient],
        }
        return tensors, facts

    def restore(self, tensors: Mapping[str, Array], facts: Mapping[str, Any]) -> None:
        """Go on from what `capture` returned in a training like this one.

        Raises
        ------
        ValueError
            If arrays are missing, unknown, or of another shape or dtype. Nothing is changed then.
        """
        best, carried = _below("best.", tensors), _below("carried.", tensors)
        expected = {name: kind_of(array) for name, array in self._tensors().items()}
        found = {
            name: kind_of(array)
            for name, array in tensors.items()
            if not name.startswith(("best.", "carried."))
        }
        for name in {**expected, **found}:
            if expected.get(name) != found.get(name):
                raise ValueError(
                    f"{name} is {found.get(name, 'missing')} there, but "
                    f"{expected.get(name, 'missing')} here"
                )
        self.model.set_state_dict(_below("model.", tensors))
        # After the weights: masters of half types are exact, and are not to be made of them anew.
        self.optimizer.set_state_dict(_below("optimizer.", tensors) | facts["optimizer"])
        parameters = dict(self.model.named_parameters())
        for name, p in parameters.items():
            p.trainable = name not in facts["frozen"]
            p.clear_gradient()
            p.has_gradient = name in facts["with_gradient"]
        for name, lstm in self._lstms():
            for key, value in facts["dropout"][name].items():
                setattr(lstm, key, value)
        for name, layer in self._stateful():
            xp, states = layer.xp, [carried.get(f"{name}.{state}") for state in "hc"]
            h, c = (None if state is None else xp.asarray(state).copy() for state in states)
            layer.states = None if h is None else (h, c)
        self.position = Position(**facts["position"])
        self.position.history = History(**facts["position"]["history"])
        sums = facts["loss"] if self.communicator.rank == 0 else (0.0, 0)
        self.loss = MeanLoss(self.communicator, *sums)
        self._best_weights = [best[name] for name in parameters] if best else None
        for name, data in self._ordered():
            for key, value in self.position.orders[name].items():
                setattr(data, key, value)

    def _tensors(self) -> dict[str, Array]:
        tensors = {f"model.{name}": array for name, array in self.model.state_dict().items()}
        for name, value in self.optimizer.state_dict().items():
            if is_array(value):
                tensors[f"optimizer.{name}"] = value
        return tensors

    def _carried(self) -> dict[str, Array]:
        """Return the states that layers carry from batch to batch; of several processes, none.

        Each has those of its own rows. After an epoch they are not needed: the next one begins
        with the first steps of its series.
        """
        if self.communicator.size > 1:
            return {}
        return {
            f"carried.{name}.{state}": array
            for name, layer in self._stateful()
            if layer.states is not None
            for state, array in zip("hc", layer.states, strict=True)
        }

    def _best_loss(self) -> float:
        watched = self.history.validation_loss or self.history.loss
        return watched[self.history.best_epoch] if watched else inf

    def _lstms(self) -> Iterator[tuple[str, LSTM]]:
        layers = named_layers(self.model)
        return ((name, layer) for name, layer in layers if isinstance(layer, LSTM))

    def _stateful(self) -> Iterator[tuple[str, StatefulLSTM]]:
        layers = named_layers(self.model)
        return ((name, layer) for name, layer in layers if isinstance(layer, StatefulLSTM))

    def _ordered(self) -> Iterator[tuple[str, Any]]:
        named = {"batches": self.batches, "validation": self.validation}
        return ((name, data) for name, data in named.items() if hasattr(data, "epoch"))


def named_layers(layer: Layer, name: str = "") -> Iterator[tuple[str, Layer]]:
    """Yield a layer and all below it with their names."""
    yield name, layer
    for child_name, child in layer.named_children():
        yield from named_layers(child, f"{name}.{child_name}" if name else child_name)


def _dropout(lstm: LSTM) -> dict[str, float]:
    return {key: getattr(lstm, key) for key in ("dropout", "dropout_seed", "dropout_calls")}


def _order(data: Any) -> dict[str, int]:
    return {key: getattr(data, key) for key in ("seed", "epoch") if hasattr(data, key)}


def _finite(kind: str, epoch: int, mean: float) -> float:
    """Return a mean loss, or raise if it is none."""
    if not isfinite(mean):
        raise FloatingPointError(
            f"the {kind} loss of epoch {epoch} is {mean}: try a smaller learning rate, clip "
            "the gradients, or look for infinities and NaN in the data"
        )
    return mean


def _below(prefix: str, tensors: Mapping[str, Array]) -> dict[str, Array]:
    return {
        name.removeprefix(prefix): array
        for name, array in tensors.items()
        if name.startswith(prefix)
    }
