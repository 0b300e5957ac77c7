"""Runs of the forecast command from end to end, in this process."""

import re
import subprocess
import sys
from pathlib import Path

import numpy
import pandas
import pytest
from forecasting import FILES, SMALL, Bench, Outcome, table
from safetensors.numpy import load_file

from cupy_lstm.estimators import LSTMForecaster
from cupy_lstm.forecast import device

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def bench(tmp_path, capsys):
    return Bench(tmp_path, capsys)


def printed_scores(text):
    """Return the method, MAE, RMSE and skill of every line of the printed table."""
    rows = re.findall(r"^([\w+ ]+?) +([\d.e+-]+) +([\d.e+-]+) +(-?[\d.]+)%$", text, re.MULTILINE)
    return {name: tuple(map(float, numbers)) for name, *numbers in rows}


def baseline(values, origin, step, period, drift):
    """Return one baseline's forecast, from the rows before `origin` only, by its definition."""
    known = values[:origin]
    last_season = known[-period:]
    forecast = last_season[(step - 1) % period]
    if drift:
        seasons = (step - 1) // period + 1
        forecast += seasons * numpy.mean(known[period:] - known[:-period])
    return forecast


BASELINES = {
    "naive": (1, False),
    "drift": (1, True),
    "seasonal naive": (6, False),
    "seasonal naive + drift": (6, True),
}


def test_printed_errors_are_those_of_the_table_it_writes(bench):
    frame = table()
    outcome = bench.run(*SMALL, data=frame)
    assert outcome.code == 0
    assert "season 6 (estimated)" in outcome.out
    written = pandas.read_csv(bench.out / "forecast.csv")
    assert list(written) == [
        "kind", "origin", "step", "time", "truth", "forecast", "lower", "upper"
    ]  # fmt: skip
    test = written[written["kind"] == "test"]
    # 120 rows: 72 training, 24 validation, 24 test; 21 origins leave room for 4 steps.
    assert len(test) == 21 * 4
    dates = frame["date"].dt.strftime("%Y-%m-%d").to_numpy()
    values = frame["load"].to_numpy()
    origins = numpy.arange(96, 117).repeat(4)
    steps = numpy.tile([1, 2, 3, 4], 21)
    assert (test["origin"] == dates[origins - 1]).all()
    assert (test["step"] == steps).all()
    assert (test["time"] == dates[origins + steps - 1]).all()
    assert (test["truth"] == values[origins + steps - 1]).all()

    forecasts = {"LSTM": test["forecast"]} | {
        name: numpy.array(
            [baseline(values, o, s, *kind) for o, s in zip(origins, steps, strict=True)]
        )
        for name, kind in BASELINES.items()
    }
    scores = printed_scores(outcome.out)
    assert scores.keys() == forecasts.keys()
    mae = {name: numpy.abs(f - test["truth"]).mean() for name, f in forecasts.items()}
    best = min(mae[name] for name in BASELINES)
    for name, forecast in forecasts.items():
        rmse = numpy.sqrt(((forecast - test["truth"]) ** 2).mean())
        expected = (mae[name], rmse, 100 * (1 - mae[name] / best))
        printed = (f"{mae[name]:.4g}", f"{rmse:.4g}", f"{expected[2]:.1f}")
        assert scores[name] == tuple(map(float, printed)), name
    assert list(scores) == sorted(mae, key=mae.get)

    inside = (test["lower"] <= test["truth"]) & (test["truth"] <= test["upper"])
    assert f"holds {inside.mean():.1%} of the true values" in outcome.out
    # Two epochs are far too few, and the run says so as plainly as it would a success.
    assert mae["LSTM"] > best
    assert "The LSTM does NOT beat the seasonal naive" in outcome.out


def test_future_follows_the_last_row(bench):
    bench.train()
    future = pandas.read_csv(bench.out / "forecast.csv").query("kind == 'future'")
    assert future["origin"].tolist() == ["2010-12-01"] * 4
    assert future["time"].tolist() == ["2011-01-01", "2011-02-01", "2011-03-01", "2011-04-01"]
    assert future["step"].tolist() == [1, 2, 3, 4]
    assert future["truth"].isna().all()
    assert (future["lower"] <= future["forecast"]).all()
    assert (future["forecast"] <= future["upper"]).all()


def test_a_season_and_a_trend_are_learnt(bench):
    frame = table(240)
    outcome = bench.run("--horizon", "4", "--context", "12", "--epochs", "60", data=frame)
    assert outcome.code == 0
    scores = printed_scores(outcome.out)
    assert min(scores, key=lambda name: scores[name][0]) == "LSTM"
    assert "The LSTM beats every baseline" in outcome.out


def test_two_runs_are_bit_equal_and_a_seed_matters(bench):
    contents = []
    for number, seed in enumerate((0, 0, 1)):
        out = bench.folder / str(number)
        bench.train("--seed", seed, out=out)
        contents.append({name: (out / name).read_bytes() for name in FILES})
    assert contents[0] == contents[1]
    assert contents[0]["model.safetensors"] != contents[2]["model.safetensors"]


def test_the_model_file_is_a_forecaster_that_says_how_it_was_made(bench):
    forecaster = LSTMForecaster.load(bench.train("--seed", 7, "--features", "heat"))
    parameters = forecaster.get_params()
    assert (parameters["horizon"], parameters["context"], parameters["hidden_size"]) == (4, 8, 5)
    assert (parameters["random_state"], parameters["level"]) == (7, 0.9)
    assert forecaster.notes_["source"] == str(bench.folder / "data.csv")
    assert (forecaster.notes_["targets"], forecaster.notes_["features"]) == (["load"], ["heat"])
    assert (forecaster.notes_["time"], forecaster.notes_["spacing"]) == ("date", "month")
    assert forecaster.training_rows_ == [72]
    future = pandas.read_csv(bench.out / "forecast.csv").query("kind == 'future'")
    frame = table()
    again = forecaster.predict(frame[["load"]].to_numpy(), frame[["heat"]].to_numpy())[:, 0]
    numpy.testing.assert_allclose(future["forecast"], again, rtol=1e-14)
    reach = ((future["upper"] - future["lower"]) / 2).to_numpy()
    numpy.testing.assert_allclose(reach, forecaster.half_widths_[0], rtol=1e-12)


def test_several_targets_are_learned_together_and_reported_one_by_one(bench):
    frame = table()
    path = bench.write(frame)
    columns = ["--data", path, "--time", "date", "--target", "load, heat"]
    outcome = bench.run(*SMALL, *columns)
    assert outcome.code == 0
    assert "season 6, 6 (estimated)" in outcome.out
    assert [line for line in outcome.out.splitlines() if line in ("load", "heat")] == [
        "load",
        "heat",
    ]
    assert outcome.out.count("The 90% interval of the LSTM") == 2
    written = pandas.read_csv(bench.out / "forecast.csv")
    assert list(written)[:3] == ["target", "kind", "origin"]
    for name in ("load", "heat"):
        ours = written[written["target"] == name]
        assert len(ours) == 21 * 4 + 4
        test = ours[ours["kind"] == "test"]
        assert set(test["truth"]) <= set(frame[name])
        mae = (test["forecast"] - test["truth"]).abs().mean()
        assert re.search(rf"^LSTM +{mae:.4g} ", outcome.out, re.MULTILINE)
    assert (bench.out / "forecast.png").read_bytes().startswith(PNG)
    lines = (bench.out / "forecast.csv").read_text().splitlines()
    assert bench.run("--quiet", "--predict", bench.out / "model.safetensors", *columns).code == 0
    again = (bench.out / "forecast.csv").read_text().splitlines()
    assert again == [line for line in lines if ",test," not in line]


def test_the_test_part_teaches_nothing(bench):
    frame = table()
    first = bench.train("--features", "heat", data=frame).read_bytes()
    frame.loc[96:, ["load", "heat"]] = numpy.random.default_rng(5).normal(size=(24, 2)) * 1e6
    assert bench.train("--features", "heat", data=frame).read_bytes() == first


def test_the_validation_part_scales_nothing(bench):
    def norms(path):
        arrays = load_file(path)
        return arrays["scale"].tolist(), arrays["centre"].tolist()

    frame = table()
    first = norms(bench.train(data=frame))
    frame.loc[72:95, "load"] += numpy.random.default_rng(5).normal(size=24)
    assert norms(bench.train(data=frame)) == first


@pytest.mark.parametrize("features", [[], ["--features", "heat"]])
@pytest.mark.parametrize("kind", ["data.csv", "data.parquet"])
def test_predict_repeats_the_future_forecast(bench, features, kind):
    path = bench.write(table(), kind)
    columns = ["--data", path, "--time", "date", "--target", "load", *features]
    assert bench.run(*SMALL, "--quiet", *columns) == Outcome(0, "", "")
    model = bench.out / "model.safetensors"
    later = bench.folder / "later"
    for options in (columns, columns[:2]):
        outcome = bench.run("--predict", model, *options, out=later)
        assert (outcome.code, outcome.err) == (0, "")
        assert "forecasting 4 steps from the last 8 rows" in outcome.out
        lines = (bench.out / "forecast.csv").read_text().splitlines()
        assert (later / "forecast.csv").read_text().splitlines() == [lines[0], *lines[-4:]]
        assert {path.name for path in later.iterdir()} == {"forecast.csv", "forecast.png"}


def test_predict_goes_on_from_newer_rows(bench):
    model = bench.train()
    newer = table(123)
    outcome = bench.run("--predict", model, "--quiet", data=newer)
    assert outcome == Outcome(0, "", "")
    written = pandas.read_csv(bench.out / "forecast.csv")
    assert written["origin"].tolist() == ["2011-03-01"] * 4
    assert written["time"].tolist() == ["2011-04-01", "2011-05-01", "2011-06-01", "2011-07-01"]


@pytest.mark.parametrize(
    ("series", "rows", "season", "future"),
    [
        ("co2", "526 rows from 1958-03-01 to 2001-12-01, one every month", 12, "2002-01-01"),
        ("sunspots", "309 rows from 1700 to 2008, one every step of 1", 11, 2009),
    ],
)
def test_built_in_series(bench, series, rows, season, future):
    outcome = bench.run("--series", series, "--epochs", "2")
    assert outcome.code == 0
    assert rows in outcome.out
    assert f"horizon 12, context 36, season {season} (estimated), seed 0" in outcome.out
    assert "2/2" in outcome.err, "the progress bar"
    written = pandas.read_csv(bench.out / "forecast.csv")
    assert str(written["time"].iloc[-12]) == str(future)
    lines = (bench.out / "forecast.csv").read_text().splitlines()
    assert bench.run("--quiet", "--predict", bench.out / "model.safetensors").code == 0
    assert (bench.out / "forecast.csv").read_text().splitlines()[1:] == lines[-12:]


def test_the_period_can_be_given(bench):
    outcome = bench.run(*SMALL, "--period", "5", data=table())
    assert "season 5, seed 0" in outcome.out


def test_times_may_be_numbers(bench):
    frame = table().assign(date=2000 + numpy.arange(120) / 4)
    bench.train(data=frame)
    written = pandas.read_csv(bench.out / "forecast.csv")
    assert written["time"].tolist()[-4:] == [2030.0, 2030.25, 2030.5, 2030.75]


def test_names_that_mean_something_to_matplotlib(bench):
    name = "_$price {^$ \N{CJK UNIFIED IDEOGRAPH-4EF7}"
    path = bench.write(table().rename(columns={"load": name}))
    outcome = bench.run(*SMALL, "--quiet", "--data", path, "--time", "date", "--target", name)
    assert outcome == Outcome(0, "", "")
    assert (bench.out / "forecast.png").read_bytes().startswith(PNG)


@pytest.mark.parametrize(
    ("rows", "names"),
    [
        (120, ["training", "validation", "test", "validation", "test"]),
        # The lower panel begins one row before the test part, too few to name them.
        (195, ["training", "validation", "test", "test"]),
        # It lies within the test part.
        (240, ["training", "validation", "test", "test"]),
    ],
)
def test_parts_are_named_where_there_is_room(bench, monkeypatch, rows, names):
    seen = []

    def note(self, text, *arguments, **options):
        seen.append(text)

    monkeypatch.setattr("matplotlib.axes.Axes.annotate", note)
    bench.train(data=table(rows))
    assert seen == names


def snapshot(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize(
    ("failure", "code", "words"),
    [
        (OSError(28, "No space left on device"), 2, "cannot write into"),
        (KeyboardInterrupt(), 130, "interrupted, nothing was written"),
    ],
)
@pytest.mark.parametrize(
    ("place", "call"),
    [
        ("matplotlib.figure.Figure.savefig", 1),
        ("pathlib.Path.write_bytes", 1),
        *(("pathlib.Path.replace", call) for call in (1, 2, 3)),
    ],
)
def test_a_failure_leaves_all_files_or_none(
    bench, monkeypatch, place, call, failure, code, words, before
):
    if before:
        bench.out.mkdir()
        for name in FILES:
            (bench.out / name).write_text(f"an earlier {name}")
    path = bench.write(table())
    earlier = snapshot(bench.out) if before else None
    name = place.rpartition(".")[2]
    original = getattr(Path, name, None)
    calls = []

    def fail(*arguments, **options):
        calls.append(name)
        if len(calls) == call:
            raise failure
        return original(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(place, fail)
        columns = ["--data", path, "--time", "date", "--target", "load"]
        outcome = bench.run(*SMALL, "--quiet", *columns, out=bench.out)
    assert len(calls) >= call
    assert (outcome.code, outcome.out) == (code, "")
    assert words in outcome.err
    assert (snapshot(bench.out) if bench.out.exists() else None) == earlier


def test_an_interrupted_training_leaves_nothing(bench, monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("cupy_lstm.forecast.learning.huber_loss", interrupt)
    outcome = bench.run(*SMALL, "--quiet", data=table())
    assert outcome.code == 130
    assert not bench.out.exists()


class FakeCuPy:
    """A CuPy whose GPU is listed, and works or not."""

    def __init__(self, works):
        self.works = works

    def arange(self, count):
        if not self.works:
            raise RuntimeError("the device fell off the bus\nand more")
        return self

    def sum(self):
        return self

    def get(self):
        return 1


def test_choice_of_the_array_module(monkeypatch):
    def find(cupy, gpus):
        monkeypatch.setattr(device, "find_cupy", lambda: (cupy, "not installed: do this"))
        monkeypatch.setattr(device, "find_gpus", lambda _: (gpus, "" if gpus else "no driver"))

    assert device.choose_module("numpy") == ("numpy", "NumPy")
    find(FakeCuPy(works=True), ["a GPU"])
    assert device.choose_module("auto") == ("cupy", "CuPy on a GPU")
    assert device.choose_module("cupy") == ("cupy", "CuPy on a GPU")
    for cupy, gpus, why in (
        (FakeCuPy(works=False), ["a GPU"], "RuntimeError: the device fell off the bus"),
        (FakeCuPy(works=True), [], "no driver"),
        (None, [], "CuPy is not installed: do this"),
    ):
        find(cupy, gpus)
        assert device.choose_module("auto")[0] == "numpy"
        with pytest.raises(device.DataError, match=re.escape(f"does not work here: {why}") + "$"):
            device.choose_module("cupy")


def test_command_line(tmp_path):
    def run(*arguments):
        command = [sys.executable, "-m", "cupy_lstm", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True)

    usage = run("forecast", "--help")
    assert usage.returncode == 0, usage.stderr
    for option in ("--data", "--horizon", "--predict", "--xp", "--out"):
        assert option in usage.stdout
    file, out = tmp_path / "none.csv", tmp_path / "out"
    columns = ["--time", "a", "--target", "b"]
    refused = run("forecast", "--data", file, *columns, "--out", out)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr == f"cupy_lstm forecast: cannot read {file}: No such file or directory\n"
    nothing = run()
    assert (nothing.returncode, nothing.stdout) == (2, "")
    assert nothing.stderr.count("\n") == 1
    assert not out.exists()
