"""The forecasting model: an LSTM over the last rows, a linear layer to all coming steps.

It forecasts the change of a series since its last known row, in units of the typical change of
that series, and it sees the rows in one of two views. As changes since the last known row, a
level that it never saw in training, as a growing series has it, is nothing new to it; as levels,
it knows whether a series that comes and goes is high or low. Centres and scales come with the
rows, so one model serves series of any size.
"""

from types import ModuleType
from typing import Literal, TypeAlias

import numpy

from cupy_lstm.backend import Array
from cupy_lstm.layer import Layer
from cupy_lstm.linear import Linear
from cupy_lstm.lstm import LSTM

View: TypeAlias = Literal["changes", "levels"]


class ForecastModel(Layer):
    """Forecast the change of the first column over all steps of the horizon at once.

    Parameters
    ----------
    columns : int
        Number of columns: that of the series and those of its features.
    horizon : int
        Number of steps.
    hidden_size, num_layers : int
        Hidden features and layers of the LSTM.
    dropout : float
        Dropout between its layers.
    view : {"changes", "levels"}
        What it sees.
    xp : module or str
        ``numpy`` or ``cupy``.
    seed : int, optional
        Seed of the initial weights.
    """

    def __init__(
        self,
        columns: int,
        horizon: int,
        hidden_size: int,
        *,
        num_layers: int = 1,
        dropout: float = 0.0,
        view: View,
        xp: str | ModuleType = "numpy",
        seed: int | None = None,
    ) -> None:
        super().__init__("float32", xp)
        lstm_seed, head_seed = numpy.random.SeedSequence(seed).generate_state(2).tolist()
        self.view = view
        self.lstm = LSTM(columns, hidden_size, num_layers, dropout=dropout, xp=xp, seed=lstm_seed)
        self.head = Linear(hidden_size, horizon, xp=xp, seed=head_seed)

    def __call__(self, windows: Array, centre: Array, scale: Array) -> Array:
        """Return the changes [B, horizon], float32, in units of the scale of each series.

        Parameters
        ----------
        windows : array [B, context, C], float64
            Rows in their own units, oldest first.
        centre, scale : array [B, C], float64
            Typical level and typical change of each column in the series of each window.
        """
        origin = windows[:, -1:] if self.view == "changes" else centre[:, None]
        seen = ((windows - origin) / scale[:, None]).astype(self.dtype)
        _, (hidden, _) = self.lstm(seen)
        return self.head(hidden[-1])

    def backward(self, gradient: Array) -> None:
        """Add the gradients of the weights, given that of the result, [B, horizon]."""
        hidden = self.head.backward(gradient)
        final = self.xp.zeros((self.lstm.num_layers, *hidden.shape), self.dtype)
        final[-1] = hidden
        self.lstm.backward(None, (final, None))
