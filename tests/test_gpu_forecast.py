"""The forecast command on CuPy arrays, from end to end."""

import numpy
import pandas
import pytest
from forecasting import FILES, SMALL, Bench, Outcome, table
from gpu_cases import eps
from gpu_on_cpu import record
from gpu_on_cpu.driver.recorder import Copy

from cupy_lstm.__main__ import main
from cupy_lstm.estimators import LSTMForecaster
from cupy_lstm.forecast import device, learning

pytestmark = pytest.mark.gpu_on_cpu

NUMBERS = ["forecast", "lower", "upper"]


@pytest.fixture
def bench(tmp_path, capsys):
    return Bench(tmp_path, capsys)


@pytest.fixture
def double(monkeypatch):
    """Return a function that makes all models float64 from then on: the truth of the rule."""

    class Double(learning.ForecastModel):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            self.to(dtype="float64")

    def loss(prediction, target):
        return huber_loss(prediction, target.astype(prediction.dtype))

    def forecast(model, sight, origins):  # of a model that is loaded, too
        return in_its_dtype(model.to(dtype="float64"), sight, origins)

    huber_loss, in_its_dtype = learning.huber_loss, learning.forecast_from

    def begin():
        monkeypatch.setattr(learning, "ForecastModel", Double)
        monkeypatch.setattr(learning, "huber_loss", loss)
        monkeypatch.setattr(learning, "forecast_from", forecast)

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


def reads(log):
    return sorted(copy.bytes for copy in log.of(Copy) if copy.kind == "device 0 to host")


def test_arrays_of_cupy_stay_on_their_gpu(cupy, double):
    frame = table()
    y = frame[["load", "heat"]].to_numpy()
    X = numpy.stack([frame["heat"], frame["heat"] ** 2], axis=1)
    epochs, settings = 2, {"context": 8, "hidden_size": 5, "random_state": 0}

    def fitted(xp):
        forecaster = LSTMForecaster(4, epochs=epochs, view="changes", **settings)
        return forecaster.fit(xp.asarray(y[:96]), xp.asarray(X[:96]))

    fitted(cupy)
    with record() as log:
        forecaster = fitted(cupy)
    errors = 2 * 2 * 21 * 4 * 8  # truth and forecast of the validation part: two series, float64
    assert sum(reads(log)[-4:]) == errors
    # Beside them two losses an epoch, and what the checks of the input say.
    assert len(reads(log)) == 4 + 2 * epochs + 4
    assert all(size <= 2 * 3 * 8 for size in reads(log)[:-4])

    newer = cupy.asarray(y), cupy.asarray(X)
    forecaster.predict(*newer)
    with record() as log:
        forecasts = forecaster.predict(*newer)
        lower, upper = forecaster.predict_interval(*newer)
    assert reads(log) == [1] * 4  # whether values are finite and in proportion
    for array in (forecasts, lower, upper):
        assert isinstance(array, cupy.ndarray)
        assert array.shape == (4, 2)
    judged = forecaster.backtest(*newer, start=8)
    assert all(isinstance(one.forecasts, cupy.ndarray) for one in judged)
    scale = forecaster.to("numpy")._learned.norms.scale[:, 0]
    error, naive = (
        sum(one.scores[name].mae / unit for one, unit in zip(judged, scale, strict=True))
        for name in ("LSTM", "naive")
    )
    assert forecaster.to("cupy").score(*newer) == pytest.approx(1 - error / naive, rel=1e-12)
    naive = fitted(numpy).predict(y, X)
    moved = forecaster.to("numpy").predict(y, X)
    double()
    truth = fitted(numpy).predict(y, X)
    reach = abs(truth - y[-1]).max(axis=0)
    allowed = 2 * abs(naive - truth).max(axis=0) + 4 * eps("float32") * reach
    assert (abs(forecasts.get() - truth).max(axis=0) <= allowed).all()
    assert (abs(moved - truth).max(axis=0) <= allowed).all()


def test_a_forecaster_and_its_series_must_be_in_one_place(cupy):
    y = table()["load"].to_numpy()
    forecaster = LSTMForecaster(4, context=8, hidden_size=5, epochs=1, random_state=0).fit(y)
    with pytest.raises(TypeError, match="y is on cupy, device 0, but the weights are on numpy"):
        forecaster.predict(cupy.asarray(y))
    with pytest.raises(TypeError, match=r"X.* is on cupy, device 0, but the series are on numpy"):
        forecaster.fit(y, cupy.asarray(y)[:, None])
