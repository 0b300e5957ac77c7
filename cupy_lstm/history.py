"""How a training went: what a callback is told, and what `fit` returns."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias


@dataclass(frozen=True)
class EpochRecord:
    """What a callback is told about the epoch that just ended.

    Attributes
    ----------
    epoch : int
        Its number, counted from 0.
    loss : float
        Mean loss over its batches, each weighted by the elements of its target; taken while the
        weights were changing, with dropout on.
    validation_loss : float or None
        The same over the validation batches, with the weights of the epoch's end and dropout off.
    learning_rate : float
        Learning rate of its first step.
    is_best : bool
        Whether it is the best epoch so far.
    """

    epoch: int
    loss: float
    validation_loss: float | None
    learning_rate: float
    is_best: bool


@dataclass
class History:
    """How a training went, one entry an epoch.

    Attributes
    ----------
    loss, validation_loss, learning_rate : list of float
        As in `EpochRecord`; without validation `validation_loss` is empty.
    best_epoch : int
        Index of the epoch with the smallest validation loss, or training loss without validation;
        a later one counts as better only if it improves by more than `min_delta`.
    stopped_early : bool
        Whether patience or a callback ended it before the last epoch.
    """

    loss: list[float] = field(default_factory=list)
    validation_loss: list[float] = field(default_factory=list)
    learning_rate: list[float] = field(default_factory=list)
    best_epoch: int = 0
    stopped_early: bool = False

    def add(self, record: EpochRecord) -> None:
        """Append an epoch."""
        self.loss.append(record.loss)
        self.learning_rate.append(record.learning_rate)
        if record.validation_loss is not None:
            self.validation_loss.append(record.validation_loss)
        if record.is_best:
            self.best_epoch = record.epoch


Callback: TypeAlias = Callable[[EpochRecord], object]
"""Called after every epoch; returning False ends the training."""
