"""Training on several processes under a real mpiexec: numbers, and ends that are no ends."""

import json
import re

import numpy as np
import pytest
from distributed_cases import (
    Forecaster,
    assert_same_training,
    assert_within_the_rule,
    curve,
    data,
    train,
)
from mpi_jobs import TESTS, run_job


@pytest.fixture(scope="module", params=[2, 3])
def job(request, tmp_path_factory):
    """Return the arrays and facts of each rank."""
    folder = tmp_path_factory.mktemp("job")
    done = run_job(request.param, TESTS / "mpi_checks.py", folder)
    assert done.returncode == 0, done.stderr
    ranks = range(request.param)
    facts = [json.loads((folder / f"{rank}.json").read_text()) for rank in ranks]
    arrays = [dict(np.load(folder / f"{rank}.npz")) for rank in ranks]
    return arrays, facts


def named(arrays, prefix):
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}


def test_every_process_has_its_number(job):
    _, facts = job
    size = len(facts)
    assert [f["rank"] for f in facts] == [f["local_rank"] for f in facts] == [*range(size)]
    assert {f["size"] for f in facts} == {size}
    assert {f["kind"] for f in facts} == {"MpiCommunicator"}


def test_what_the_first_says(job):
    _, facts = job
    assert all(f["said"] == {"rank": 0, "text": "µ"} for f in facts)
    size = len(facts)
    assert all(f["summed"] == [size * (size - 1) / 2, size / 2] for f in facts)
    failures = [f["failure"] for f in facts]
    assert failures[0] == "ZeroDivisionError: division by zero"
    assert set(failures[1:]) == {"RuntimeError: rank 0 raised ZeroDivisionError: division by zero"}


def test_arrays_on_a_gpu_are_refused(job):
    _, facts = job
    assert all("takes NumPy arrays, received one on a GPU" in f["refusal"] for f in facts)


def test_all_processes_and_both_runs_are_bit_equal(job):
    arrays, _ = job
    for other in arrays:
        for name, first in named(other, "first/").items():
            assert np.array_equal(first, other[f"second/{name}"]), name
            assert np.array_equal(first, arrays[0][f"first/{name}"]), name
        assert np.array_equal(other["sum/first"], arrays[0]["sum/second"])


def test_the_curve_is_that_of_one_process(job):
    arrays, _ = job

    class Told:
        loss, validation_loss = arrays[0]["first/curve"]
        best_epoch = int(np.argmin(arrays[0]["first/curve"][1]))

    assert_same_training(Told, named(arrays[0], "first/weights/"))


def test_gradients_are_summed(job):
    """Against float64, no farther off than one process that does all."""
    arrays, _ = job
    ranks = len(arrays)

    def alone(dtype):
        model = Forecaster(dtype, dropout=0.0)
        model(data(dtype)[0])
        model.backward(np.full((23, 2), ranks * (ranks + 1) / 2, dtype))
        return {name: p.grad for name, p in model.named_parameters()}

    naive, truth = alone("float32"), alone("float64")
    for bucket_bytes in (1, 2**20):
        found = named(arrays[-1], f"gradients/{bucket_bytes}/")
        assert found.keys() == truth.keys()
        for name, gradient in found.items():
            assert_within_the_rule(gradient, naive[name], truth[name])


def test_a_large_sum(job):
    arrays, _ = job
    parts = [np.random.default_rng(rank).standard_normal(300_001) for rank in range(len(arrays))]
    near = len(parts) * np.finfo("float64").eps * sum(map(abs, parts))
    assert (abs(arrays[0]["sum/first"] - sum(parts)) <= near).all()


FORECAST = """
import sys
from cupy_lstm.__main__ import main
from cupy_lstm.forecast import learning

fit = learning.fit
def told(*parts, communicator, **options):
    print("fit on", communicator.size, file=sys.stderr)
    return fit(*parts, communicator=communicator, **options)
learning.fit = told
code = main(["forecast", *sys.argv[1:]])

# Without a seed of ours: even which samples validate is drawn by the first.
from cupy_lstm.estimators import LSTMForecaster, LSTMRegressor
from cupy_lstm.estimators.seeds import agreed_seeds
from distributed_cases import data

x, y = data()
regressor = LSTMRegressor(hidden_size=4, epochs=3, batch_size=8, progress=False).fit(x, y)
forecaster = LSTMForecaster(horizon=3, hidden_size=4, epochs=2, progress=False).fit(y[:, 0])
print("seeds", bytes(str(agreed_seeds(None, 3)), "ascii").hex(), file=sys.stderr)
print("predicted", regressor.predict(x).tobytes().hex(), file=sys.stderr)
print("forecast", forecaster.predict().tobytes().hex(), file=sys.stderr)
sys.exit(code)
"""


def test_the_forecast_command_and_the_estimators(tmp_path):
    """Every process trains; one speaks and writes."""
    (tmp_path / "series.csv").write_text(
        "time,value\n" + "".join(f"{n},{np.sin(n / 3) + n / 50}\n" for n in range(120))
    )
    columns = ["--time", "time", "--target", "value"]
    options = ["--data", "series.csv", *columns, "--horizon", "3", "--epochs", "2"]
    done = run_job(2, "-c", FORECAST, *options, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("training on") == done.stdout.count("trained in") == 1
    assert done.stderr.count("fit on 2") == 8  # two views, twice, on two processes
    for word in ("seeds", "predicted", "forecast"):
        first, second = re.findall(rf"^{word} ([0-9a-f]+)$", done.stderr, re.MULTILINE)
        assert first == second, word
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"series.csv", "forecast.csv", "forecast.png", "model.safetensors"}
    done = run_job(2, "-m", "cupy_lstm", "forecast", "--data", "no.csv", *columns, folder=tmp_path)
    assert done.returncode != 0
    assert "cupy_lstm forecast: " in done.stderr and "no.csv" in done.stderr


FAILING = """
import os, signal, sys, time
from distributed_cases import train
from cupy_lstm.distributed import launched

communicator = launched()
def fail(record_or_batch=None):
    if communicator.rank == 1:
        {failure}

class Batches(list):
    def __iter__(self):
        fail()
        return super().__iter__()
{body}
"""


def fail(processes, failure, body):
    """Run a job in which rank 1 fails, and must not keep the others; return what it said."""
    done = run_job(processes, "-c", FAILING.format(failure=failure, body=body))
    assert done.returncode != 0
    return done.stdout + done.stderr


IN_A_BATCH = """
from cupy_lstm import SGD, Linear, fit, mse_loss
import numpy as np
model = Linear(1, 1, seed=0)
ones = np.ones((4, 1), "float32")
try:
    fit(model, mse_loss, SGD(0.1, model.parameters()), Batches([(ones, ones)]),
        communicator=communicator, progress=False)
except ValueError:
    time.sleep(600)  # whoever catches it must not keep the others waiting
"""

OUTSIDE = """
fail()
train(communicator)
"""


@pytest.mark.parametrize(
    ("failure", "body", "said"),
    [
        ('raise ValueError("row 7 is bad")', IN_A_BATCH, "rank 1 of 2 failed, which ends all"),
        ('raise ValueError("row 7 is bad")', OUTSIDE, "rank 1 failed, which ends all"),
        ("os.kill(os.getpid(), signal.SIGKILL)", IN_A_BATCH, "signal 9"),
    ],
    ids=["an error in a batch", "an error outside", "a kill"],
)
def test_a_process_that_fails_ends_the_job(failure, body, said):
    words = fail(2, failure, body)
    assert said in words
    if "ValueError" in failure:
        assert "ValueError: row 7 is bad" in words and "Traceback" in words


def test_a_killed_job_goes_on_bit_for_bit(tmp_path):
    """Killed in the middle of an epoch; 4 batches make one, and a checkpoint comes every 3."""

    def run(name, fatal):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        done = run_job(2, TESTS / "mpi_resume.py", folder, fatal)
        assert (done.returncode == 0) == (fatal == 0), done.stderr
        return [dict(np.load(path)) for path in sorted(folder.glob("*.npz"))]

    whole = run("whole", 0)
    assert run("killed", 7) == []
    resumed = run("killed", 0)
    assert [int(rank.pop("steps")) for rank in whole] == [16, 16]
    assert [int(rank.pop("steps")) for rank in resumed] == [10, 10], "6 were written down"
    for found, expected in zip(resumed, whole, strict=True):
        assert found.keys() == expected.keys()
        for name, array in expected.items():
            assert np.array_equal(found[name], array), name


def test_a_launcher_of_another_library():
    """The variable of one, the MPI library of another: each process would train alone."""
    done = run_job(1, "-c", "from cupy_lstm.distributed import launched; launched()", PMI_SIZE="4")
    assert done.returncode != 0
    assert "PMI_SIZE says that mpiexec of MPICH or Intel MPI started 4 processes" in done.stderr
    assert "finds 1: start them with the mpiexec of that library" in done.stderr


def test_one_process_under_mpiexec_is_alone():
    code = "from cupy_lstm.distributed import launched; print(type(launched()).__name__)"
    assert run_job(1, "-c", code).stdout.strip() == "SingleProcess"


def test_the_single_run_of_comparison_is_deterministic():
    first, second = train(), train()
    assert np.array_equal(curve(first[0]), curve(second[0]))
