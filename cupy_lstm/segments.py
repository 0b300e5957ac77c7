"""Truncated backpropagation through time: long series in segments, the states carried on.

A series is cut into segments of K steps. Each is a step of the optimiser: a call that begins with
the states in which the call before ended, and a backward pass over these K steps alone. States
come as far as the series is long, gradients K steps (Williams and Peng, 1990).
"""

from collections.abc import Iterator
from typing import Any

from cupy_lstm.backend import Array, array_module, is_array
from cupy_lstm.checks import checked_boolean, checked_integer
from cupy_lstm.interchange import adopted, array_beside
from cupy_lstm.layer import Layer
from cupy_lstm.lstm import LSTM
from cupy_lstm.windows import Batches, kind_of


class StatefulLSTM(Layer):
    """An LSTM that begins each call in the states in which the last one ended.

    No gradient goes back from one call into the one before.

    Parameters
    ----------
    lstm : LSTM
        With direction='forward': a reverse direction begins at an end that has not been seen.

    Attributes
    ----------
    lstm : LSTM
        As given.
    states : tuple (h, c) or None
        h [L,B,P] and c [L,B,H] after the last call; None before the first and after `reset`.

    Raises
    ------
    TypeError
        If `lstm` is no LSTM.
    ValueError
        If it is bidirectional.

    Examples
    --------
    >>> import numpy
    >>> from cupy_lstm import LSTM, StatefulLSTM
    >>> lstm = StatefulLSTM(LSTM(3, 4))
    >>> x = numpy.zeros((2, 10, 3), "float32")
    >>> lstm(x[:, :5], True).shape, lstm(x[:, 5:]).shape
    ((2, 5, 4), (2, 5, 4))
    """

    def __init__(self, lstm: LSTM) -> None:
        if not isinstance(lstm, LSTM):
            raise TypeError(f"lstm must be an LSTM, received {type(lstm).__name__}")
        if lstm.num_directions != 1:
            raise ValueError(
                "lstm must have direction='forward', this one is bidirectional: its reverse "
                "direction begins at the end of a series, which a segment has not seen"
            )
        super().__init__(lstm.dtype, lstm.xp)
        self.lstm = lstm
        self.states: tuple[Array, Array] | None = None

    def __call__(self, inputs: Array, begins: bool = False) -> Array:
        """Run over the next steps of every series.

        Parameters
        ----------
        inputs : array [B,K,I], or [K,B,I] if the LSTM is time-major
            The next steps.
        begins : bool
            Whether these are the first of their series: then the states are zero before them.

        Returns
        -------
        array [B,K,P], or [K,B,P]
            h of the last layer at every step.

        Raises
        ------
        TypeError, ValueError
            As of `LSTM`, or if the number of series changes and they do not begin. The states are
            unchanged then.
        """
        states = None if checked_boolean("begins", begins) else self.states
        if states is not None and getattr(inputs, "ndim", 0) == 3:
            rows, carried = inputs.shape[int(self.lstm.time_major)], states[0].shape[1]
            if rows != carried:
                raise ValueError(
                    f"inputs have {rows} series, but the states are those of {carried}: say "
                    "begins=True with the first steps of other series"
                )
        outputs, self.states = self.lstm(inputs, states)
        return outputs

    def backward(self, doutputs: Array) -> Array:
        """Backpropagate through the steps of the last call; see `LSTM.backward`.

        Returns
        -------
        array like the inputs
            Their gradient.
        """
        dinputs, _ = self.lstm.backward(doutputs)
        return dinputs

    def reset(self) -> None:
        """Forget the states: the next call begins with zero."""
        self.states = None

    def _set_place(self, name: str, dtype: Any) -> None:
        super()._set_place(name, dtype)
        self.reset()


class SegmentBatches:
    """Batches of long series in segments, in order; iterate as often as you like.

    Yields ``((inputs, begins), targets)``, what `fit` gives to a model that is called with the
    inputs and with whether its series begin: `StatefulLSTM`, or a layer around one. All segments
    of some series come before the first of others. Only a segment is copied at a time.

    Parameters
    ----------
    inputs : array [N,T,...]
        Series along the first axis, steps along the second.
    targets : array [N,T,...]
        What the model should say at every step.
    steps : int
        K, steps of a segment; the last one of a series may have fewer.
    batch_size : int
        B, series of a batch.
    shuffle : bool
        Whether to draw a new order of the series for every epoch.
    seed : int, optional
        Seed of the orders; default: a fresh one from the operating system.

    Attributes
    ----------
    seed, epoch : int
        Seed of the orders, and number of the next epoch, as of `Batches`.

    Raises
    ------
    TypeError
        If an argument has the wrong type, or the arrays live in different places.
    ValueError
        If the arrays differ in their series or steps, or a number is out of its range.
    """

    def __init__(
        self,
        inputs: Array,
        targets: Array,
        steps: int,
        batch_size: int,
        *,
        shuffle: bool = False,
        seed: int | None = None,
    ) -> None:
        inputs = adopted("inputs", inputs)
        if not is_array(inputs):
            raise TypeError(
                f"inputs must be an array of numpy or cupy, received {type(inputs).__name__}"
            )
        targets = array_beside("targets", targets, inputs, "the inputs")
        for name, array in (("inputs", inputs), ("targets", targets)):
            if array.ndim < 2 or 0 in array.shape[:2]:
                raise ValueError(
                    f"{name} must be series of steps [N,T,...], received shape {list(array.shape)}"
                )
        if inputs.shape[:2] != targets.shape[:2]:
            raise ValueError(
                f"targets have {targets.shape[0]} series of {targets.shape[1]} steps, but inputs "
                f"have {inputs.shape[0]} of {inputs.shape[1]}"
            )
        self.steps = checked_integer("steps", steps)
        self._inputs, self._targets = inputs, targets
        rows = array_module(inputs).arange(len(inputs))
        self._rows = Batches(rows, rows, batch_size, shuffle=shuffle, seed=seed)

    @property
    def seed(self) -> int:
        """Seed of the orders."""
        return self._rows.seed

    @seed.setter
    def seed(self, value: int) -> None:
        self._rows.seed = checked_integer("seed", value, 0)

    @property
    def epoch(self) -> int:
        """Number of the next epoch, counted from 0; set it to go on where a run ended."""
        return self._rows.epoch

    @epoch.setter
    def epoch(self, value: int) -> None:
        self._rows.epoch = value

    def settings(self) -> dict[str, object]:
        """Return what was chosen when it was made, by name, and the kinds of its arrays."""
        return self._rows.settings() | {
            "inputs": [kind_of(self._inputs)],
            "targets": kind_of(self._targets),
            "steps": self.steps,
        }

    def __len__(self) -> int:
        """Number of segments of an epoch, those of a batch of series counted as one."""
        length: int = self._inputs.shape[1]
        return len(self._rows) * -(-length // self.steps)

    def __iter__(self) -> Iterator[tuple[tuple[Array, bool], Array]]:
        """Begin the next epoch."""
        return self._segments(iter(self._rows))

    def _segments(self, batches: Iterator[Any]) -> Iterator[tuple[tuple[Array, bool], Array]]:
        for rows, _ in batches:
            for start in range(0, self._inputs.shape[1], self.steps):
                part = slice(start, start + self.steps)
                yield (self._inputs[rows, part], start == 0), self._targets[rows, part]
