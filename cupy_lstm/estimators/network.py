"""The model of the estimators: an LSTM that reads a sequence, and a linear layer."""

from types import ModuleType
from typing import Any

import numpy

from cupy_lstm.backend import Array, array_module
from cupy_lstm.checks import checked_integer
from cupy_lstm.dropout import Dropout
from cupy_lstm.layer import Layer
from cupy_lstm.linear import Linear
from cupy_lstm.lstm import LSTM
from cupy_lstm.modes import no_grad


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
    bptt_steps : int or None
        In training gradients go back through the last steps of each sequence alone, so many; the
        states come through all (truncated backpropagation, Williams and Peng, 1990). None: all.
    dtype, xp : optional
        As of `Layer`.
    seed : int
        Seed of the weights and of dropout.

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong type or an impossible value, or `bptt_steps` is given for both
        directions.
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
        bptt_steps: int | None = None,
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
        if bptt_steps is not None:
            bptt_steps = checked_integer("bptt_steps", bptt_steps)
            if self.lstm.num_directions != 1:
                raise ValueError(
                    "bptt_steps must be None where direction is 'bidirectional': the reverse "
                    "direction reads the last steps first"
                )
        self.bptt_steps = bptt_steps
        self._last_dropout: Dropout | None = None

    def options(self) -> dict[str, Any]:
        """Return what it was built of, beside the numbers of features and outputs: JSON values."""
        lstm = self.lstm
        return {
            "hidden_size": lstm.hidden_size,
            "num_layers": lstm.num_layers,
            "direction": "forward" if lstm.num_directions == 1 else "bidirectional",
            "dropout": float(lstm.dropout),
            "bptt_steps": self.bptt_steps,
            "dtype": self.dtype.name,
        }

    def __call__(self, x: Array, lengths: Array | None = None) -> Array:
        """Return outputs [B,O] for inputs [B,T,I] and valid lengths [B]."""
        lstm, xp = self.lstm, array_module(x)
        call = lstm.dropout_calls
        h = self._final_h(x, lengths)
        # The final states of the last layer, both directions beside each other.
        kept = xp.ascontiguousarray(xp.moveaxis(h[-lstm.num_directions :], 0, 1))
        kept = kept.reshape(len(x), self.head.in_features)
        self._last_dropout = None
        if self.training and lstm.dropout > 0:
            lstm.dropout_calls = max(lstm.dropout_calls, call + 1)
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

    def _final_h(self, x: Array, lengths: Array | None) -> Array:
        """Return h [L*D,B,H] after the last valid step of each sequence."""
        lstm, last, xp, T = self.lstm, self.bptt_steps, array_module(x), x.shape[1]
        states = None
        if self.training and last is not None and last < T:
            before = None if lengths is None else xp.maximum(lengths - last, 0)
            with no_grad():
                _, states = lstm(x[:, : T - last], None, before)
            if before is None:
                x = x[:, T - last :]
            else:
                steps = before[:, None] + xp.arange(last)
                x = xp.take_along_axis(x, steps[..., None], axis=1)
                lengths = xp.minimum(lengths, last)
        return lstm(x, states, lengths)[1][0]

    def _drop(self, array: Array) -> None:
        """Drop elements [B,D*H] of what the head reads, or of its gradient, in place."""
        if self._last_dropout is not None:
            # As if of the first step of the input of one more layer: a mask of its own.
            self._last_dropout.apply(array[None], self.lstm.num_layers)
