"""The stored files of other libraries, and what an LSTM made of one must give."""

from pathlib import Path

import numpy as np
from cases import assert_within_rule
from oracle import Result, lstm_oracle

FOLDER = Path(__file__).parent / "interop"


class Stored:
    """One ``.npz`` of the folder: weights in a library's names, inputs, and its outputs."""

    def __init__(self, name):
        with np.load(FOLDER / f"{name}.npz", allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
        self.weights = {k.removeprefix("w."): a for k, a in arrays.items() if k.startswith("w.")}
        self.x, self.lengths = arrays["x"], arrays.get("lengths")
        self.states = (arrays["h0"], arrays["c0"]) if "h0" in arrays else None
        self.outputs = {name: arrays[name] for name in "yhc" if name in arrays}

    def layers(self):
        """Return the weights of layers of Keras, which have places instead of names."""
        found = {}
        for name, array in self.weights.items():
            found.setdefault(name.partition(".")[0], []).append(array)
        return list(found.values())

    def assert_given_by(self, lstm):
        """Fail unless the LSTM, in float32, gives what the library gave in float64."""
        y, (h, c) = lstm(self.x, self.states, sequence_length=self.lengths)
        assert_outputs(lstm, (y, h, c), self.outputs, self.x, self.states, self.lengths)


def naive_outputs(lstm, x, states=None, lengths=None, dtype=np.float32) -> Result:
    """Return the outputs of the oracle in some arithmetic, with the weights of an LSTM."""
    return lstm_oracle(
        x,
        lstm.state_dict(),
        bidirectional=lstm.num_directions == 2,
        time_major=lstm.time_major,
        states=states,
        lengths=lengths,
        dtype=dtype,
    )


def assert_outputs(lstm, actual, truth, x, states=None, lengths=None):
    """Hold y, h and c against a truth that has some of them, under the error rule."""
    yardstick = naive_outputs(lstm, x, states, lengths)
    for name, array in zip("yhc", actual, strict=True):
        if name in truth:
            assert_within_rule(name, array, truth[name], getattr(yardstick, name))


def same_weights(first, second):
    """Say whether two LSTMs have the same weights, bit for bit and in the same order."""
    first, second = first.state_dict(), second.state_dict()
    return list(first) == list(second) and all(
        a.dtype == b.dtype and np.array_equal(a, b)
        for a, b in zip(first.values(), second.values(), strict=True)
    )
