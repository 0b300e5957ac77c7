"""What all batches share: a pass over them is an epoch, each in an order of its own."""

import secrets
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

from cupy_lstm.checks import checked_integer


class Epochs(ABC):
    """Samples in batches; iterate as often as you like, each time is the next epoch.

    Parameters
    ----------
    samples : int
        How many there are.
    batch_size : int
        Samples of a batch.
    shuffle : bool
        Whether to draw a new order for every epoch.
    seed : int or None
        Seed of the orders; None: a fresh one from the operating system.
    drop_last : bool
        Whether to leave out a last batch of fewer samples.
    """

    def __init__(
        self, samples: int, batch_size: int, shuffle: bool, seed: int | None, drop_last: bool
    ) -> None:
        self.batch_size = checked_integer("batch_size", batch_size)
        self.seed = secrets.randbits(64) if seed is None else checked_integer("seed", seed, 0)
        self._samples = samples
        self._shuffle = shuffle
        self._drop_last = drop_last
        self._epoch = 0

    @property
    def epoch(self) -> int:
        """Number of the next epoch, counted from 0; set it to go on where a run ended."""
        return self._epoch

    @epoch.setter
    def epoch(self, value: int) -> None:
        self._epoch = checked_integer("epoch", value, minimum=0)

    def __len__(self) -> int:
        """Number of batches of an epoch."""
        whole, rest = divmod(self._samples, self.batch_size)
        return whole + bool(rest and not self._drop_last)

    def __iter__(self) -> Iterator[Any]:
        """Begin the next epoch."""
        epoch, self._epoch = self._epoch, self._epoch + 1
        return self._batches(epoch)

    @abstractmethod
    def _batches(self, epoch: int) -> Iterator[Any]:
        """Yield the batches of an epoch."""
