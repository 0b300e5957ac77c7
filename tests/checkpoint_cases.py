"""A small training that has everything a checkpoint must bring back; how it ends early."""

import hashlib
from dataclasses import asdict
from functools import cache, wraps

import numpy as np
import pytest

from cupy_lstm import (
    LSTM,
    AdamW,
    Batches,
    Checkpoints,
    ClipGradByGlobalNorm,
    CosineAnnealingDecay,
    Layer,
    Linear,
    LinearWarmup,
    engine,
    fit,
    mse_loss,
)

BATCHES = 4
EPOCHS = 3
STEPS = BATCHES * EPOCHS


class Forecaster(Layer):
    """The sum of a window, by an LSTM with dropout."""

    def __init__(self, hidden_size=4, *, dropout=0.3, dtype="float32", xp="numpy", seed=0):
        super().__init__(dtype, xp)
        options = {"dtype": dtype, "xp": xp, "seed": seed}
        self.lstm = LSTM(1, hidden_size, 2, dropout=dropout, **options)
        self.head = Linear(hidden_size, 1, **options)

    def __call__(self, windows):
        _, (h, _) = self.lstm(windows)
        return self.head(h[-1])

    def backward(self, gradient):
        dh = self.head.backward(gradient)
        dstates = self.xp.stack([self.xp.zeros_like(dh), dh])
        return self.lstm.backward(None, (dstates, None))[0]


def samples(number=14, dtype="float32", xp=np):
    x = np.random.default_rng(0).standard_normal((number + 6, 3, 1)).astype(dtype)
    return xp.asarray(x), xp.asarray(x.sum(axis=1))


class Training:
    """The parts of a training, made anew as a script that is started again makes them."""

    def __init__(self, model=None, rate=None, *, xp=np, dtype="float32", seed=0):
        x, y = samples(dtype=dtype, xp=xp)
        self.model = model or Forecaster(seed=seed, xp=xp.__name__, dtype=dtype)
        rate = rate or LinearWarmup(CosineAnnealingDecay(0.05, STEPS), 3)
        clip = ClipGradByGlobalNorm(1.0)
        self.optimizer = AdamW(rate, self.model.parameters(), grad_clip=clip)
        # The last batch is smaller.
        self.batches = Batches(x[:14], y[:14], 4, shuffle=True, seed=seed)
        self.validation = Batches(x[14:], y[14:], 4, shuffle=True, seed=seed)

    def fit(self, folder=None, *, every=None, keep=3, loss=mse_loss, **options):
        """Train to the end, and return everything that came of it."""
        checkpoints = None if folder is None else Checkpoints(folder, every=every, keep=keep)
        options = {"epochs": EPOCHS, "patience": 2, "progress": False} | options
        with engine("stepwise"):
            self.history = fit(
                self.model,
                loss,
                self.optimizer,
                self.batches,
                self.validation,
                checkpoints=checkpoints,
                **options,
            )
        return self.outcome()

    def outcome(self):
        """Return the history and the whole state, arrays as checksums."""
        lstm = self.model.lstm
        return {
            **{name: checksum(value) for name, value in self.model.state_dict().items()},
            **{name: checksum(value) for name, value in self.optimizer.state_dict().items()},
            "history": asdict(self.history) if hasattr(self, "history") else None,
            "dropout": [lstm.dropout, lstm.dropout_seed, lstm.dropout_calls],
            "orders": [
                [data.seed, data.epoch]
                for data in (self.batches, self.validation)
                if isinstance(data, Batches)
            ],
        }


def checksum(value):
    if not hasattr(value, "dtype"):
        return value
    host = value.get() if hasattr(value, "get") else value
    return hashlib.sha256(host.tobytes()).hexdigest()


def interrupting(calls, loss=mse_loss):
    """Return a loss that is interrupted after so many calls, and passes for the other one."""
    left = iter(range(calls))

    @wraps(loss)
    def counted(prediction, target):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return loss(prediction, target)

    return counted


def interrupted(training, folder, calls, **options):
    with pytest.raises(KeyboardInterrupt):
        training.fit(folder, loss=interrupting(calls), **options)


def listed(folder):
    return sorted(path.name for path in folder.iterdir())


def files(folder):
    return sorted(path.name for path in folder.glob("epoch-*"))


@cache
def whole(**options):
    """What comes of a training that nothing ends early."""
    return Training().fit(**options)
