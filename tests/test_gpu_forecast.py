"""The forecast command on CuPy arrays, from end to end."""

import pandas
import pytest
from forecasting import FILES, SMALL, Bench, Outcome, table
from gpu_cases import eps
from gpu_on_cpu import record

from cupy_lstm.__main__ import main
from cupy_lstm.forecast import device, experiment, model

pytestmark = pytest.mark.gpu_on_cpu

NUMBERS = ["forecast", "lower", "upper"]


@pytest.fixture
def bench(tmp_path, capsys):
    return Bench(tmp_path, capsys)


@pytest.fixture
def double(monkeypatch):
    """Return a function that makes all models float64 from then on: the truth of the rule."""

    class Double(model.Forecaster):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            self.to(dtype="float64")

    def loss(prediction, target):
        return huber_loss(prediction, target.astype(prediction.dtype))

    def forecast(forecaster, windows):
        return in_its_dtype(forecaster.to(dtype="float64"), windows)

    huber_loss, in_its_dtype = experiment.huber_loss, model.Forecaster.forecast

    def begin():
        monkeypatch.setattr(experiment, "Forecaster", Double)
        monkeypatch.setattr(experiment, "huber_loss", loss)
        monkeypatch.setattr(model.Forecaster, "forecast", forecast)  # of a model that is loaded

    return begin


def run(bench, xp, *options, out=None):
    """Run the command on a module; return its folder and its outcome."""
    data, out = bench.write(table()), bench.folder / (out or xp)
    bench.capsys.readouterr()
    chosen = ["--xp", xp, "--out", out, "--data", data, "--time", "date", "--target", "load"]
    code = main(["forecast", *map(str, [*options, *chosen])])
    return out, Outcome(code, *bench.capsys.readouterr())


def assert_within_rule(found, truth, naive):
    """Apply the error rule to a forecast, with that of a float64 model and that of the host.

    Its last term is relative to what is computed in float32, the change since the last known row.
    """
    tables = [
        pandas.read_csv(folder / "forecast.csv", parse_dates=["origin"])
        for folder in (found, truth, naive)
    ]
    found, truth, naive = (one[NUMBERS] for one in tables)
    rest = [one.drop(columns=NUMBERS) for one in tables]
    assert rest[0].equals(rest[1])
    assert rest[0].equals(rest[2])
    origin = table().set_index("date")["load"][rest[0]["origin"]].to_numpy()
    changes = (truth["forecast"] - origin).abs().max()
    allowed = 2 * (naive - truth).abs().max() + 4 * eps("float32") * changes
    error = (found - truth).abs().max(skipna=False)
    assert (error <= allowed).all(), f"{error} but the rule allows {allowed}"


def test_a_run_on_the_gpu_is_a_run_on_the_host(cupy, bench, double):
    with record() as log:
        ours, outcome = run(bench, "cupy", *SMALL)
    assert outcome.code == 0, outcome.err
    assert "on CuPy on A100 on a CPU, compute capability 8.0" in outcome.out
    assert [e for e in log.launches if e.name.startswith("recurrence_backward")]
    assert {path.name for path in ours.iterdir()} == FILES
    theirs, outcome = run(bench, "numpy", *SMALL)
    assert outcome.code == 0
    double()
    truth, outcome = run(bench, "numpy", *SMALL, out="truth")
    assert outcome.code == 0
    assert_within_rule(ours, truth, theirs)


def test_a_saved_model_loads_on_either_side(cupy, bench, double):
    trained, outcome = run(bench, "cupy", *SMALL, "--quiet")
    assert outcome == Outcome(0, "", "")

    def loaded(xp, out):
        saved = trained / "model.safetensors"
        folder, outcome = run(bench, xp, "--predict", saved, "--quiet", out=out)
        assert outcome == Outcome(0, "", "")
        return folder

    ours, theirs = loaded("cupy", "ours"), loaded("numpy", "theirs")
    double()
    assert_within_rule(ours, loaded("numpy", "truth"), theirs)


def test_the_gpu_is_chosen_where_there_is_one(cupy):
    module, place = device.choose_module("auto")
    assert module == "cupy"
    assert place.startswith("CuPy on A100 on a CPU, compute capability 8.0")
