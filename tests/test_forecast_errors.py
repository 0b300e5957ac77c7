"""Whatever is wrong with data, options or a model is one sentence, exit code 2, and no file."""

import json
import struct

import numpy
import pandas
import pytest
from forecasting import SMALL, Bench, table
from safetensors.numpy import load_file, save_file

from cupy_lstm.estimators import LSTMForecaster
from cupy_lstm.estimators.storage import FORMAT

COLUMNS = ["--time", "date", "--target", "load"]


@pytest.fixture
def bench(tmp_path, capsys):
    return Bench(tmp_path, capsys)


def expect_refusal(bench, outcome, *words):
    """Assert exit code 2, nothing printed but one sentence with all the words, no file."""
    assert outcome.code == 2
    assert outcome.out == ""
    assert outcome.err.count("\n") == 1
    assert outcome.err.endswith("\n")
    assert "Traceback" not in outcome.err
    for word in words:
        assert word in outcome.err
    assert not bench.out.exists()


def changed(column, row, value):
    def change(frame):
        frame[column] = frame[column].astype(object)
        frame.loc[row, column] = value
        return frame

    return change


def swapped(frame):
    frame.loc[[4, 5], "date"] = frame.loc[[5, 4], "date"].to_numpy()
    return frame


def repeated_date(frame):
    frame.loc[5, "date"] = frame.loc[4, "date"]
    return frame


TABLES = {
    "missing value": (
        changed("load", 16, None),
        ["column 'load' has 1 missing values, the first in row 17 (2002-05-01)"],
    ),
    "missing value in a feature": (changed("heat", 0, None), ["column 'heat'", "row 1 "]),
    "infinite value": (
        changed("load", 3, "inf"),
        ["column 'load' is infinite in row 4 (2001-04-01)"],
    ),
    "text among numbers": (
        changed("load", 3, "n/k"),
        ["column 'load' is not a number in row 4 (2001-04-01): 'n/k'"],
    ),
    "dates among the values": (
        lambda frame: frame.assign(load=frame["date"]),
        ["column 'load' is not a number in row 1", "'2001-01-01'"],
    ),
    "constant column": (
        lambda frame: frame.assign(load=3.0),
        ["column 'load' is constant over the training part, the first 72 rows"],
    ),
    "constant in training only": (
        lambda frame: frame.assign(load=[1.0] * 80 + [2.0] * 40),
        ["column 'load' is constant over the training part"],
    ),
    "values too large": (
        lambda frame: frame.assign(load=frame["load"] * 1e200),
        ["the values of column 'load' are too large or too small"],
    ),
    "values too small": (
        lambda frame: frame.assign(load=frame["load"] * 1e-300),
        ["the values of column 'load' are too large or too small"],
    ),
    "far away in the test part": (
        lambda frame: frame.assign(load=frame["load"].where(frame.index < 100, 1e300)),
        ["column 'load' is 1e+300 in row 101 (2009-05-01), which is out of all proportion"],
    ),
    "not a date": (changed("date", 7, "soon"), ["column 'date'", "row 8 is 'soon'"]),
    "mixed time zones": (
        changed("date", 7, "2001-08-01T00:00+02:00"),
        ["column 'date' cannot be read as dates: the rows differ in their form or time zone"],
    ),
    "no date": (changed("date", 7, None), ["column 'date' has no time in row 8"]),
    "truth values as time": (
        lambda frame: frame.assign(date=frame.index % 2 == 0),
        ["column 'date' holds true and false"],
    ),
    "infinite time": (
        lambda frame: frame.assign(date=[*range(119), "inf"]),
        ["column 'date' holds an infinite time"],
    ),
    "unsorted": (swapped, ["column 'date' is not sorted", "row 6 (2001-05-01)"]),
    "repeated time": (repeated_date, ["holds 2001-05-01 twice, in rows 5 and 6"]),
    "truth values as target": (
        lambda frame: frame.assign(load=frame.index % 2 == 0),
        ["column 'load' holds true and false, not numbers"],
    ),
    "times beyond int64": (
        lambda frame: frame.assign(date=[10**30 + row * 10**20 for row in range(120)]),
        ["column 'date' cannot be read as dates: row 1 is"],
    ),
    "nanoseconds": (
        lambda frame: frame.assign(
            date=[f"2000-01-01T00:00:00.{row:09d}" for row in range(1, 121)]
        ),
        ["column 'date' counts nanoseconds"],
    ),
    "end of the calendar": (
        lambda frame: frame.assign(date=[f"{year}-01-01" for year in range(9880, 10000)]),
        ["column 'date' goes to 9999-01-01; times must lie before 9000-01-01"],
    ),
    "missing row": (
        lambda frame: frame.drop(index=30),
        ["column 'date' are not regularly spaced", "row 31 (2003-08-01) follows row 30"],
    ),
    "missing row among numbers": (
        lambda frame: frame.assign(date=[*range(50), *range(51, 121)]),
        ["not regularly spaced", "row 51 (51) follows row 50 (49)"],
    ),
    "too short": (
        lambda frame: frame.head(19),
        ["19 rows are too few for a context of 8 and a horizon of 4: 20 rows would do"],
    ),
    "one row": (lambda frame: frame.head(1), ["has 1 rows, too few"]),
    "no rows": (lambda frame: frame.head(0), ["has 0 rows, too few"]),
}


@pytest.mark.parametrize("name", TABLES)
def test_unfit_tables(bench, name):
    change, words = TABLES[name]
    frame = table().assign(date=table()["date"].dt.strftime("%Y-%m-%d"))
    outcome = bench.run(*SMALL, "--quiet", "--features", "heat", data=change(frame))
    expect_refusal(bench, outcome, *words)


def test_large_whole_numbers_are_times_of_their_own(bench):
    """Stamps in nanoseconds are further from zero than float64 tells apart."""
    frame = table().assign(date=[10**18 + row for row in range(120)])
    bench.train(data=frame)


def test_a_loss_that_is_no_number_is_a_sentence(bench, monkeypatch):
    def diverge(*arguments, **options):
        raise FloatingPointError("the training loss of epoch 3 is nan")

    monkeypatch.setattr("cupy_lstm.forecast.learning.fit", diverge)
    outcome = bench.run(*SMALL, "--quiet", data=table())
    expect_refusal(bench, outcome, "the training loss of epoch 3 is nan")


def test_as_many_rows_as_the_message_asks_for_are_enough(bench):
    with pytest.warns(UserWarning, match="column 'load' holds 1 forecasts, too few for intervals"):
        bench.train(data=table(rows=20))


FILES = {
    "missing": ("none.csv", None, ["cannot read", "none.csv: No such file or directory"]),
    "empty": ("empty.csv", b"", ["empty.csv is empty"]),
    "binary": ("image.csv", bytes(range(128, 256)) * 9, ["image.csv cannot be read as CSV"]),
    "ragged": ("ragged.csv", b"date,load\n1,2\n3,4,5\n", ["cannot be read as CSV"]),
    "first row too long": ("long.csv", b"date,load\n1,2,3\n4,5,6\n", ["cannot be read as CSV"]),
    "no CSV": (
        "page.csv",
        b"<html>\n<p>moved</p>\n</html>\n",
        ["has no column 'date'", "'<html>'"],
    ),
    "a name twice": (
        "twice.csv",
        b"date,load,load\n1,2,3\n2,3,4\n",
        ["twice.csv has 2 columns called 'load'"],
    ),
    "extension": ("data.xlsx", b"PK", ["must be a file that ends in .csv or .parquet"]),
    "no extension": ("data", b"date,load\n", ["must be a file that ends in .csv or .parquet"]),
    "no Parquet": ("data.parquet", b"PAR1 and so on", ["cannot be read as Parquet"]),
}


@pytest.mark.parametrize("name", FILES)
def test_unfit_files(bench, name):
    file, content, words = FILES[name]
    path = bench.folder / file
    if content is not None:
        path.write_bytes(content)
    expect_refusal(bench, bench.run("--data", path, *COLUMNS), *words)


def test_dates_in_a_parquet_file_are_no_values(bench):
    path = bench.write(table().assign(load=table()["date"]), "data.parquet")
    outcome = bench.run("--data", path, *COLUMNS)
    expect_refusal(bench, outcome, "column 'load' holds dates, not numbers")


def test_a_folder_is_no_file(bench):
    (bench.folder / "data.csv").mkdir()
    outcome = bench.run("--data", bench.folder / "data.csv", *COLUMNS)
    expect_refusal(bench, outcome, "cannot read", "Is a directory")


OPTIONS = {
    "unknown column": (
        ["--time", "day", "--target", "load"],
        ["has no column 'day'; its columns are 'date', 'load', 'heat'"],
    ),
    "unknown feature": ([*COLUMNS, "--features", "heat,rain"], ["has no column 'rain'"]),
    "target is time": (
        ["--time", "date", "--target", "date"],
        ["target and the time are the same"],
    ),
    "feature twice": ([*COLUMNS, "--features", "heat,heat"], ["'heat' is named twice"]),
    "target as feature": ([*COLUMNS, "--features", "load"], ["'load' is named twice"]),
    "time as feature": ([*COLUMNS, "--features", "date"], ["'date' is named twice"]),
    "no time": (["--target", "load"], ["--data needs --time"]),
    "no target": (["--time", "date"], ["--data needs --target"]),
    "file and series": ([*COLUMNS, "--series", "co2"], ["--data and --series exclude each other"]),
    "horizon 0": ([*COLUMNS, "--horizon", "0"], ["--horizon", "from 1 to 1000000, received '0'"]),
    "context -3": (
        [*COLUMNS, "--context", "-3"],
        ["--context", "from 1 to 1000000, received '-3'"],
    ),
    "epochs 1.5": (
        [*COLUMNS, "--epochs", "1.5"],
        ["--epochs", "from 1 to 1000000, received '1.5'"],
    ),
    "seed -1": (
        [*COLUMNS, "--seed", "-1"],
        ["--seed", "from 0 to 9223372036854775808, received '-1'"],
    ),
    "too long a horizon": ([*COLUMNS, "--horizon", "25"], ["120 rows are too few", "167 rows"]),
    "huge context": ([*COLUMNS, "--context", "1000000"], ["120 rows are too few"]),
    "more than huge": ([*COLUMNS, "--hidden-size", "9" * 99], ["--hidden-size", "to 1000000"]),
    "too long a season": ([*COLUMNS, "--period", "72"], ["--period is 72", "has 72 rows"]),
    "unknown option": ([*COLUMNS, "--lr", "1"], ["unrecognized arguments: --lr 1"]),
    "unknown module": ([*COLUMNS, "--xp", "torch"], ["--xp", "invalid choice: 'torch'"]),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_unfit_options(bench, name):
    options, words = OPTIONS[name]
    path = bench.write(table())
    expect_refusal(bench, bench.run("--quiet", "--data", path, *options), *words)


@pytest.mark.parametrize("option", ["--time", "--target", "--features"])
def test_columns_need_a_file(bench, option):
    expect_refusal(bench, bench.run(option, "date"), f"{option} names a column of --data")


def test_unwritable_folders(bench):
    blocker = bench.folder / "blocker"
    blocker.write_text("mine")
    for folder in (blocker, blocker / "below"):
        outcome = bench.run("--series", "sunspots", out=folder)
        expect_refusal(bench, outcome, f"cannot write into {folder}: Not a directory")
    assert blocker.read_text() == "mine"
    taken = bench.folder / "taken"
    (taken / "forecast.png").mkdir(parents=True)
    outcome = bench.run("--series", "sunspots", out=taken)
    expect_refusal(bench, outcome, "forecast.png: it is a folder")


def test_too_little_memory(bench, monkeypatch):
    def exhaust(*arguments, **options):
        raise MemoryError("cannot allocate 8 TiB")

    monkeypatch.setattr("cupy_lstm.forecast.learning.ForecastModel", exhaust)
    outcome = bench.run(*SMALL, "--quiet", data=table())
    expect_refusal(bench, outcome, "not enough memory: cannot allocate 8 TiB")


def test_missing_packages(bench, monkeypatch):
    monkeypatch.setattr("cupy_lstm.forecast.options.find_spec", lambda name: None)
    expect_refusal(
        bench,
        bench.run("--series", "co2"),
        "pandas, matplotlib, tqdm, safetensors, scikit-learn, statsmodels must be installed: "
        "pip install 'cupy_lstm[forecast]'",
    )
    expect_refusal(bench, bench.run("--data", "x.parquet", *COLUMNS), "scikit-learn, pyarrow must")


def rewritten(model, arrays=None, notes=None, **changes):
    """Write the model again, with other arrays, notes or other parts of its description."""
    size = struct.unpack("<Q", model.read_bytes()[:8])[0]
    metadata = json.loads(model.read_bytes()[8 : 8 + size])["__metadata__"]
    description = json.loads(metadata[FORMAT])
    description["notes"] |= notes or {}
    metadata[FORMAT] = json.dumps(description | changes)
    save_file(load_file(model) if arrays is None else arrays(load_file(model)), model, metadata)


def without(name):
    return lambda arrays: {key: value for key, value in arrays.items() if key != name}


def other(name, change):
    return lambda arrays: arrays | {name: numpy.ascontiguousarray(change(arrays[name]))}


DAMAGED_ARRAYS = {
    "weight missing": (without("head.bias"), ["head.bias"]),
    "first weight missing": (without("lstm.weight_hh_l0"), ["lstm.weight_hh_l0"]),
    "no layers": (without("lstm.weight_ih_l0"), ["lstm.weight_ih_l0"]),
    "no scale": (without("scale"), ["scale"]),
    "weight unknown": (lambda arrays: arrays | {"z": numpy.ones(1)}, ["unknown: z"]),
    "weight infinite": (other("head.bias", lambda a: a / 0), ["head.bias holds infinity or NaN"]),
    "weight of double precision": (
        other("head.bias", lambda a: a.astype("f8")),
        ["bias has dtype float32, received float64"],
    ),
    "scale of single precision": (
        other("scale", lambda a: a.astype("f4")),
        ["scale, centre, last_rows and half_widths must be float64"],
    ),
    "other size": (
        other("last_rows", lambda a: numpy.repeat(a, 2, axis=2)),
        ["the shapes of scale, centre, last_rows and half_widths do not fit"],
    ),
    "other horizon": (
        other("half_widths", lambda a: numpy.repeat(a, 2, axis=1)),
        ["weights do not have the size that its other arrays say"],
    ),
    "other hidden size": (
        other("head.weight", lambda a: a[:-1]),
        ["weights do not have the size that its other arrays say"],
    ),
    "no axes": (other("last_rows", lambda a: a[0, 0, 0].reshape(())), ["is damaged"]),
    "negative scale": (other("scale", lambda a: -a), ["scale must be positive"]),
    "negative half width": (other("half_widths", lambda a: -a), ["half_widths not negative"]),
}

MODELS = {
    "missing": (lambda model: model.unlink(), ["cannot read", "No such file"]),
    "empty": (lambda model: model.write_bytes(b""), ["no safetensors file, or a damaged one"]),
    "text": (lambda model: model.write_text("model" * 99), ["no safetensors file, or a damaged"]),
    "truncated": (
        lambda model: model.write_bytes(model.read_bytes()[:-9]),
        ["no safetensors file, or a damaged one"],
    ),
    "not ours": (
        lambda model: save_file({"a": numpy.ones(3)}, model),
        ["holds no estimator that this version of cupy_lstm has written"],
    ),
    "not of the command": (
        lambda model: LSTMForecaster.load(model).save(model, notes={}),
        ["was not written by this command: LSTMForecaster.load reads it"],
    ),
    "no parameters": (lambda model: rewritten(model, parameters=None), ["is damaged"]),
    "unknown parameter": (
        lambda model: rewritten(model, parameters={"depth": 3}),
        ["is damaged", "unexpected keyword argument 'depth'"],
    ),
    "unknown view": (lambda model: rewritten(model, view="shades"), ["no view 'shades'"]),
    "unknown form": (lambda model: rewritten(model, form="heap"), ["cannot have the form 'heap'"]),
    "rows of too many series": (
        lambda model: rewritten(model, training_rows=[72, 72]),
        ["training_rows must be 1 numbers"],
    ),
    "labels of too many columns": (
        lambda model: rewritten(model, labels=[["load", "heat"]]),
        ["labels must be 1 times 1 words"],
    ),
    "a label that is no word": (
        lambda model: rewritten(model, labels=[[3]]),
        ["labels must be 1 times 1 words"],
    ),
    "no history": (lambda model: rewritten(model, history={"loss": 1, "gain": 2}), ["is damaged"]),
    "unknown note": (
        lambda model: rewritten(model, notes={"extra": 1}),
        ["its notes lack fields or have unknown ones"],
    ),
    "unknown series": (
        lambda model: rewritten(model, notes={"built_in": "gdp"}),
        ["its notes contradict themselves"],
    ),
    "columns that are no names": (
        lambda model: rewritten(model, notes={"features": 3}),
        ["its notes contradict themselves"],
    ),
    "more columns than it forecasts": (
        lambda model: rewritten(model, notes={"targets": ["load", "heat"]}),
        ["its notes contradict what it has learned"],
    ),
    "step that is no number": (
        lambda model: rewritten(model, notes={"step": float("nan")}),
        ["its notes contradict themselves"],
    ),
    **{
        name: (lambda model, arrays=arrays: rewritten(model, arrays), ["is damaged", *words])
        for name, (arrays, words) in DAMAGED_ARRAYS.items()
    },
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return the bytes of a model, trained once."""

    class Silent:
        @staticmethod
        def readouterr():
            return "", ""

    return Bench(tmp_path_factory.mktemp("trained"), Silent).train().read_bytes()


@pytest.fixture
def model(trained, tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(trained)
    return path


@pytest.mark.filterwarnings("ignore:divide by zero")
@pytest.mark.parametrize("name", MODELS)
def test_unfit_models(bench, model, name):
    damage, words = MODELS[name]
    damage(model)
    expect_refusal(bench, bench.run("--predict", model, data=table()), *words)


PREDICTIONS = {
    "training option": (table(), ["--hidden-size", "9"], ["--hidden-size is for training"]),
    "seed": (table(), ["--seed", "0"], ["--seed is for training"]),
    "feature": (table(), ["--features", "heat"], ["--features is ['heat'], but", "with []"]),
    "too few rows": (table(7), [], ["looks back on 8 rows, but", "has 7"]),
    "missing column": (table().drop(columns="load"), [], ["has no column 'load'"]),
    "other spacing": (
        table().assign(date=pandas.date_range("2001-01-01", periods=120)),
        [],
        ["spaced by day, but the model was trained on a spacing of month"],
    ),
}


@pytest.mark.parametrize("name", PREDICTIONS)
def test_unfit_predictions(bench, model, name):
    frame, options, words = PREDICTIONS[name]
    expect_refusal(bench, bench.run("--predict", model, *options, data=frame), *words)


def test_a_model_of_a_file_is_not_for_a_built_in_series(bench, model):
    outcome = bench.run("--predict", model, "--series", "co2")
    expect_refusal(bench, outcome, "trained to forecast 'load', but --series co2 is of 'co2_ppm'")
    expect_refusal(bench, bench.run("--predict", model), "--data is needed", "data.csv")


def test_other_column_names_are_refused(bench, model):
    path = bench.write(table())
    for options in (["--time", "heat"], ["--target", "heat"]):
        outcome = bench.run("--predict", model, "--data", path, *options)
        expect_refusal(bench, outcome, f"{options[0]} is 'heat', but the model was trained with")
