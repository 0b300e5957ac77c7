"""A training on a file that does not fit into the memory it may use."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from full import only_in_full

STEPS, FEATURES = 4_000_000, 8

SCRIPT = """
import re, resource, sys
from pathlib import Path
import numpy as np
from cupy_lstm import (
    LSTM, Adam, Layer, Linear, StreamedBatches, engine, fit, mse_loss, no_grad, open_series,
)

path, shuffle = sys.argv[1], sys.argv[2] == "shuffled"

class LastStep(Layer):
    def __init__(self):
        super().__init__()
        self.lstm, self.head = LSTM(8, 4, seed=0), Linear(4, 1, seed=0)
    def __call__(self, x):
        _, (h, _) = self.lstm(x)
        return self.head(h[-1])
    def backward(self, gradient):
        return self.lstm.backward(dfinal_states=(self.head.backward(gradient)[None], None))

def split(windows):
    return windows[:, :-1], windows[:, -1, :1]

def train(series, epochs):
    model = LastStep()
    batches = StreamedBatches(
        series, 50, split, 250, stride=800, shuffle=shuffle, seed=0, buffer=250
    )
    adam = Adam(0.01, model.parameters())
    history = fit(model, mse_loss, adam, batches, epochs=epochs, progress=False)
    model.eval()
    with no_grad():
        return history.loss, sum(len(model(inputs)) for inputs, _ in batches)

def used():
    \"\"\"Bytes of memory that may be written and belong to this process alone.\"\"\"
    return 1024 * int(re.search(r"VmData:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

series = open_series(path)
whole = series.shape[0] * series.shape[1] * 4
with engine("stepwise"):
    train(series[: 800 * 600], 1)  # what libraries, kernels and threads take is no part of it
    resource.setrlimit(resource.RLIMIT_DATA, (used() + whole // 2, -1))
    losses, predicted = train(series, 1)
assert predicted == series.shape[0] // 800 and losses[0] < 1, (losses, predicted)
try:
    np.empty(whole, "uint8")
except MemoryError:
    print("trained")
"""


def npy(path, steps):
    array = np.lib.format.open_memmap(path, "w+", "float32", (STEPS, FEATURES))
    array[:] = steps
    array.flush()


def zarr(path, steps):
    import zarr

    array = zarr.create_array(path, shape=(STEPS, FEATURES), chunks=(20_000, 8), dtype="float32")
    array[:] = steps


def parquet(path, steps):
    import pyarrow
    import pyarrow.parquet

    columns = {f"x{feature}": steps[:, feature] for feature in range(FEATURES)}
    plain = {"compression": "none", "use_dictionary": False}
    pyarrow.parquet.write_table(pyarrow.table(columns), path, row_group_size=20_000, **plain)


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA bounds memory on Linux only")
@pytest.mark.parametrize(
    ("kind", "order"),
    [
        pytest.param(npy, "shuffled"),
        pytest.param(npy, "in order", marks=only_in_full),
        pytest.param(zarr, "in order", marks=only_in_full),
        pytest.param(parquet, "shuffled", marks=only_in_full),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_a_series_of_twice_the_memory_trains(tmp_path, kind, order):
    some = np.random.default_rng(0).standard_normal((1000, FEATURES), "float32") / 2
    steps = np.tile(some, (STEPS // 1000, 1))
    path = tmp_path / f"series.{kind.__name__}"
    kind(path, steps)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, path, order],
        capture_output=True,
        text=True,
        env=os.environ | {"ARROW_DEFAULT_MEMORY_POOL": "system"},
        cwd=Path(__file__).parent,
    )
    assert (done.returncode, done.stdout) == (0, "trained\n"), done.stderr
