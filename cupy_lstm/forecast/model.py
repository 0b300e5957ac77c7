"""The forecasting model: an LSTM over the last rows, a linear layer to all coming steps.

It forecasts the target's change since the last known row, in units of the target's typical
change over the training part, and it sees the rows in one of two views. As changes since the
last known row, a level that it never saw in training, as a growing series has it, is nothing
new to it; as levels, it knows whether a series that comes and goes is high or low.
"""

from types import ModuleType

import numpy

from cupy_lstm.backend import Array, HostArray, array_module, to_host
from cupy_lstm.layer import Layer
from cupy_lstm.linear import Linear
from cupy_lstm.lstm import LSTM
from cupy_lstm.modes import no_grad

BATCH = 1024
"""Windows forecast at once, which bounds the memory of a forecast over a long test part."""


class Forecaster(Layer):
    """Forecast the change of the first column over all steps of the horizon at once.

    Parameters
    ----------
    scale : array-like [F]
        Typical change of each column, positive.
    horizon : int
        Number of steps.
    hidden_size : int
        Hidden features of the LSTM.
    centre : array-like [F], optional
        Typical level of each column: the model then sees levels, else changes.
    xp : module or str
        ``numpy`` or ``cupy``.
    seed : int, optional
        Seed of the initial weights.
    """

    def __init__(
        self,
        scale: HostArray,
        horizon: int,
        hidden_size: int,
        *,
        centre: "HostArray | None" = None,
        xp: str | ModuleType = "numpy",
        seed: int | None = None,
    ) -> None:
        super().__init__("float32", xp)
        lstm_seed, head_seed = numpy.random.SeedSequence(seed).generate_state(2).tolist()
        self.scale = numpy.asarray(scale, "float64")
        self.centre = None if centre is None else numpy.asarray(centre, "float64")
        self.lstm = LSTM(len(self.scale), hidden_size, xp=xp, seed=lstm_seed)
        self.head = Linear(hidden_size, horizon, xp=xp, seed=head_seed)

    def __call__(self, windows: Array) -> Array:
        """Return the changes [B, horizon], float32, in units of the target's scale.

        Parameters
        ----------
        windows : array [B, context, F], float64
            Rows in their own units, oldest first.
        """
        xp = array_module(windows)
        origin = windows[:, -1:] if self.centre is None else xp.asarray(self.centre)
        seen = ((windows - origin) / xp.asarray(self.scale)).astype(self.dtype)
        _, (hidden, _) = self.lstm(seen)
        return self.head(hidden[-1])

    def backward(self, gradient: Array) -> None:
        """Add the gradients of the weights, given that of the result, [B, horizon]."""
        hidden = self.head.backward(gradient)
        self.lstm.backward(None, (hidden[None], None))

    def forecast(self, windows: Array) -> HostArray:
        """Return the forecast values [N, horizon], float64, in the target's unit, on the host.

        Parameters
        ----------
        windows : array [N, context, F], float64
            On the device of the weights.
        """
        blocks = []
        with no_grad():
            for start in range(0, len(windows), BATCH):
                block = windows[start : start + BATCH]
                change = to_host(self(block)).astype("float64") * self.scale[0]
                blocks.append(to_host(block[:, -1, :1]) + change)
        return numpy.concatenate(blocks)
