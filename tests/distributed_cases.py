"""A model and data that processes train together, and how near they must come to one process."""

import numpy as np

from cupy_lstm import LSTM, Adam, Batches, ClipGradByGlobalNorm, Layer, Linear, fit, mse_loss

ROWS = 23
"""Not divisible by a batch, nor a batch by the number of processes."""


class Forecaster(Layer):
    """Two layers, both directions, dropout, and a head: every kind of parameter there is."""

    def __init__(self, dtype="float32", seed=0, dropout=0.3):
        super().__init__(dtype)
        options = {"dtype": dtype, "seed": seed}
        self.lstm = LSTM(2, 5, 2, "bidirect", dropout=dropout, proj_size=3, **options)
        self.head = Linear(12, 2, **options)

    def __call__(self, x):
        y, _ = self.lstm(x)
        self._shape = y.shape
        return self.head(np.concatenate([y[:, -1], y[:, 0]], axis=1))

    def backward(self, gradient):
        dy = np.zeros(self._shape, self.dtype)
        dy[:, -1], dy[:, 0] = np.split(self.head.backward(gradient), 2, axis=1)
        return self.lstm.backward(dy)


def data(dtype="float32"):
    """Return inputs [ROWS,6,2] and targets [ROWS,2]."""
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((ROWS, 6, 2)), rng.standard_normal((ROWS, 2))
    return x.astype(dtype), y.astype(dtype)


def train(communicator=None, dtype="float32", seed=0, batch_size=7, **options):
    """Train, and return the history with the weights and the model.

    The global norm is clipped and the loss scaled: both must act on the gradients of the whole
    batch. The last batch has 23 % 7 = 2 rows: with three processes one of them has none.
    """
    model = Forecaster(dtype, seed)
    optimizer = Adam(
        0.02, parameters=model.parameters(), grad_clip=ClipGradByGlobalNorm(0.5), loss_scale=64.0
    )
    x, y = data(dtype)
    history = fit(
        model,
        mse_loss,
        optimizer,
        Batches(x, y, batch_size, shuffle=True, seed=seed),
        Batches(x[:11] + np.asarray(1, dtype), y[:11], 5),
        **{"epochs": 4, "patience": 3, "progress": False, "communicator": communicator} | options,
    )
    return history, model


def curve(history):
    """Return all losses."""
    return np.array([history.loss, history.validation_loss])


def weights(model):
    """Return the weights by name, on the host."""
    return {name: parameter.numpy() for name, parameter in model.named_parameters()}


def assert_within_the_rule(found, naive, truth, dtype="float32"):
    """Assert that an error is at most twice that of one process, plus 4 eps of the largest."""
    bound = 2 * abs(naive - truth).max() + 4 * np.finfo(dtype).eps * abs(truth).max()
    assert abs(found - truth).max() <= bound, (abs(found - truth).max(), bound)


def assert_same_training(history, found_weights):
    """Assert that float32 training was that of one process, by the error rule."""
    truth, exact = train(dtype="float64")
    naive, single = train()
    assert_within_the_rule(curve(history), curve(naive), curve(truth))
    flat = [np.concatenate([w.ravel() for w in ws.values()])
            for ws in (found_weights, weights(single), weights(exact))]  # fmt: skip
    assert_within_the_rule(*flat)
    assert history.best_epoch == naive.best_epoch
