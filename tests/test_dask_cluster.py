"""Models on worker processes, one of which is killed in the middle."""

import os
import signal
import time
from collections import Counter
from pathlib import Path

import dask
import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
from dask.distributed import Client, LocalCluster
from face import flat_equal, normal
from full import only_in_full

from cupy_lstm import LSTM, Linear, engine
from cupy_lstm.dask import predict

UNPICKLED = -1


class Logging:
    """Writes a line for each arrival and each chunk; the fatal one kills its process, once."""

    def watch(self, folder, fatal=0):
        self._log, self._fatal = str(folder / "log"), fatal
        return self

    def note(self, chunk):
        with Path(self._log).open("a") as log:
            log.write(f"{os.getpid()} {chunk}\n")
        if chunk == self._fatal > 0 and not Path(self._log + ".fatal").exists():
            Path(self._log + ".fatal").touch()
            os.kill(os.getpid(), signal.SIGKILL)

    def __call__(self, x, *arguments):
        self.note(int(x.flat[0]))  # the first number of a chunk is its name
        return super().__call__(x, *arguments)

    def __setstate__(self, state):
        vars(self).update(state)
        self.note(UNPICKLED)


class LoggingLinear(Logging, Linear):
    pass


class LoggingLSTM(Logging, LSTM):
    pass


class MeetingLinear(LoggingLinear):
    """Waits in each chunk until two processes have one."""

    def __call__(self, x):
        y = super().__call__(x)
        limit = time.monotonic() + 60
        while x.flat[0] and len(at_work(Path(self._log).parent)) < 2:
            assert time.monotonic() < limit, "nobody else has come"
            time.sleep(0.01)
        return y


def at_work(folder):
    """Return the processes that have called a watched model."""
    return {process for process, chunk in calls(folder) if chunk > 0}


def calls(folder):
    """Return (process, chunk) of each call of a watched model, in order."""
    lines = [tuple(map(int, line.split())) for line in (folder / "log").read_text().splitlines()]
    # Where the scheduler is sent the graph, a row of zeros has asked for the shape.
    (home,) = {process for process, chunk in lines if chunk == 0} or {None}
    return [line for line in lines if line[0] != home]


def named(rows, steps, chunk_rows, chunk_steps):
    """Return an array whose chunks begin with 1, 2, 3, ..., and the number of chunks."""
    x = normal(rows, steps, 3)
    chunks = np.arange(1, 1 + (rows // chunk_rows) * (steps // chunk_steps))
    x[::chunk_rows, ::chunk_steps, 0] = chunks.reshape(-1, steps // chunk_steps)
    return da.from_array(x, chunks=(chunk_rows, chunk_steps, 3)), len(chunks)


@pytest.fixture(scope="module")
def client():
    """Two processes of one thread each; they and their watchers end with the module."""
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        yield client


def test_results_are_those_of_one_process(client):
    """Through the client in force, and through the address of the cluster alone."""
    X = da.from_array(normal(6, 12, 3), chunks=(2, 4, 3))
    with engine("stepwise"):
        y, states = predict(LSTM(3, 8, 2, seed=0), X, return_states=True)
    expected = dask.compute(y, *states, scheduler="synchronous")
    assert flat_equal(dask.compute(y, *states), expected)
    with Client(client.scheduler.address, set_as_default=False) as other:
        assert flat_equal(other.compute([y, *states], sync=True), expected)


@only_in_full
def test_dataframes_are_those_of_one_process(client):
    frame = pd.DataFrame(normal(12, 3), columns=list("abc"))
    with engine("simd"):  # the same bits whatever the number of threads
        table = predict(LSTM(3, 8, 2, seed=0), dd.from_pandas(frame, npartitions=3))
    expected = table.compute(scheduler="synchronous")
    pd.testing.assert_frame_equal(table.compute(), expected, check_exact=True)


def test_a_worker_is_sent_the_model_once(client, tmp_path):
    X, chunks = named(32, 4, 1, 4)
    predict(MeetingLinear(3, 4, seed=0).watch(tmp_path), X).compute()
    seen = Counter(chunk for _, chunk in calls(tmp_path))
    assert seen == Counter([UNPICKLED, UNPICKLED, *range(1, chunks + 1)])
    assert len(at_work(tmp_path)) == 2


@pytest.mark.parametrize("kind", ["rows", "steps"])
def test_a_killed_worker_costs_its_own_chunks(client, tmp_path, kind):
    """Bit for bit the same comes out; what was lost is computed once more, and nothing else.

    Along time the chunks before a lost one are swept again, too: states are dropped once used.
    """
    X, chunks = named(16, 4, 1, 4) if kind == "rows" else named(4, 24, 2, 2)
    model = LoggingLinear(3, 4, seed=0) if kind == "rows" else LoggingLSTM(3, 8, seed=0)
    fatal = chunks // 2
    results, logs = [], []
    for killer in (0, fatal):
        client.wait_for_workers(2, timeout=60)
        folder = tmp_path / str(killer)
        folder.mkdir()
        with engine("stepwise"):
            results.append(predict(model.watch(folder, killer), X).compute())
        logs.append([call for call in calls(folder) if call[1] != UNPICKLED])
    assert np.array_equal(*results)

    quiet, killed = logs
    assert sorted(chunk for _, chunk in quiet) == list(range(1, chunks + 1))
    dead = next(process for process, chunk in killed if chunk == fatal)
    lost = {chunk for process, chunk in killed if process == dead}
    if kind == "steps":
        row = chunks // 2  # chunks along time
        lost = {chunk for one in lost for chunk in range((one - 1) // row * row + 1, one + 1)}
    again = Counter(chunk for _, chunk in killed) - Counter(range(1, chunks + 1))
    assert again[fatal] == 1 == max(again.values())
    assert set(again) <= lost
