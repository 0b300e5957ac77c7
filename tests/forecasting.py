"""What the tests of the forecast command share: a small table, and a run in this process."""

from dataclasses import dataclass

import numpy
import pandas

from cupy_lstm.__main__ import main

FILES = {"forecast.csv", "forecast.png", "model.safetensors"}
SMALL = ["--horizon", "4", "--context", "8", "--hidden-size", "5", "--epochs", "2"]


def table(rows=120, seed=0):
    """Return months with a growing seasonal column ``load`` and a ``heat`` that it follows."""
    steps = numpy.arange(rows)
    noise = numpy.random.default_rng(seed).standard_normal((2, rows))
    heat = 10 + 8 * numpy.sin(2 * numpy.pi * steps / 6) + noise[0]
    return pandas.DataFrame(
        {
            "date": pandas.date_range("2001-01-01", periods=rows, freq="MS"),
            "load": 100 + 0.3 * steps + 2 * heat + noise[1],
            "heat": heat,
        }
    )


@dataclass(frozen=True)
class Outcome:
    """Exit code and output of a run."""

    code: int
    out: str
    err: str


class Bench:
    """Runs the command in a folder of its own."""

    def __init__(self, folder, capsys):
        self.folder = folder
        self.out = folder / "out"
        self.capsys = capsys

    def write(self, frame, name="data.csv"):
        path = self.folder / name
        if name.endswith(".parquet"):
            frame.to_parquet(path)
        else:
            frame.to_csv(path, index=False)
        return path

    def run(self, *options, data=None, out=None):
        """Forecast; `data` is a table with the columns of `table`, or nothing."""
        chosen = [*map(str, options), "--xp", "numpy", "--out", str(out or self.out)]
        if data is not None:
            chosen += ["--data", str(self.write(data)), "--time", "date", "--target", "load"]
        self.capsys.readouterr()
        try:
            code = main(["forecast", *chosen])
        except SystemExit as error:  # argparse leaves this way
            code = error.code
        return Outcome(code, *self.capsys.readouterr())

    def train(self, *options, data=None, out=None):
        """Train quickly and quietly, and expect it to work."""
        if "--series" not in options:
            data = table() if data is None else data
        outcome = self.run(*SMALL, "--quiet", *options, data=data, out=out)
        assert outcome == Outcome(0, "", "")
        return (out or self.out) / "model.safetensors"
