"""The model of the estimators: an LSTM that reads a sequence, and a linear layer."""

from types import ModuleType
from typing import Any

import numpy

from cupy_lstm.backend import Array, array_module
from cupy_lstm.dropout import Dropout
from cupy_lstm.layer import Layer
from cupy_lstm.linear import Linear
from cupy_lstm.lstm import LSTM


class SequenceNetwork(Layer):
    """Map each sequence to a row of outputs, from the final h of the last layer.

    Parameters
    ----------
    features, outputs : int
        I, and O.
    hidden_size, num_layers, direction : optional
        As of `LSTM`; both directions' h are joined.
    dropout : float
        As of `LSTM`, and of the final h, too.
    dtype, xp : optional
        As of `Layer`.
    seed : int
        Seed of the weights and of dropout.
    """

    def __init__(
        self,
        features: int,
        outputs: int,
        *,
        hidden_size: int,
        num_layers: int = 1,
        direction: str = "forward",
        dropout: float = 0.0,
        dtype: Any = "float32",
        xp: str | ModuleType = "numpy",
        seed: int = 0,
    ) -> None:
        super().__init__(dtype, xp)
        lstm_seed, head_seed = numpy.random.SeedSequence(seed).generate_state(2).tolist()
        place = {"dtype": dtype, "xp": xp}
        self.lstm = LSTM(
            features,
            hidden_size,
            num_layers,
            direction,
            dropout=dropout,
            seed=lstm_seed,
            **place,
        )
        self.head = Linear(self.lstm.num_directions * hidden_size, outputs, seed=head_seed, **place)
        self._last_dropout: Dropout | None = None

    def __call__(self, x: Array, lengths: Array | None = None) -> Array:
        """Return outputs [B,O] for inputs [B,T,I] and valid lengths [B]."""
        lstm, xp = self.lstm, array_module(x)
        call = lstm.dropout_calls
        _, (h, _) = lstm(x, None, lengths)
        # The final states of the last layer, both directions beside each other.
        kept = xp.ascontiguousarray(xp.moveaxis(h[-lstm.num_directions :], 0, 1))
        kept = kept.reshape(len(x), self.head.in_features)
        self._last_dropout = None
        if self.training and lstm.dropout > 0:
            lstm.dropout_calls = call + 1
            self._last_dropout = Dropout(lstm.dropout, lstm.dropout_seed, call)
            self._drop(kept)
        return self.head(kept)

    def backward(self, gradient: Array) -> None:
        """Add the gradients of the weights, given that of the outputs, [B,O]."""
        lstm, xp = self.lstm, array_module(gradient)
        dkept = self.head.backward(gradient)
        self._drop(dkept)
        L, D, H = lstm.num_layers, lstm.num_directions, lstm.hidden_size
        dh = xp.zeros((L * D, len(dkept), H), dkept.dtype)
        dh[-D:] = xp.moveaxis(dkept.reshape(-1, D, H), 1, 0)
        lstm.backward(None, (dh, None))

    def _drop(self, array: Array) -> None:
        """Drop elements [B,D*H] of what the head reads, or of its gradient, in place."""
        if self._last_dropout is not None:
            # As if of the first step of the input of one more layer: a mask of its own.
            self._last_dropout.apply(array[None], self.lstm.num_layers)
