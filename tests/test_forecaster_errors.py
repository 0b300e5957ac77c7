"""What LSTMForecaster refuses, and how it says so."""

import re

import numpy
import pandas
import pytest
from sklearn.exceptions import NotFittedError
from test_forecaster import same, small, waves

# --- errors --------------------------------------------------------------------------------------

GOOD = waves()
PARAMETERS = {
    "horizon": (0, "horizon must be at least 1, received 0"),
    "context": (2.5, "context must be an integer"),
    "hidden_size": ("8", "hidden_size must be an integer"),
    "num_layers": (0, "num_layers must be at least 1"),
    "dropout": (1.0, r"dropout must lie in \[0, 1\)"),
    "view": ("both", "view must be one of .*, received 'both'"),
    "epochs": (0, "epochs must be at least 1"),
    "patience": (True, "patience must be an integer"),
    "batch_size": (0, "batch_size must be at least 1"),
    "learning_rate": (0, r"learning_rate must lie in \(0"),
    "validation_fraction": (0, r"validation_fraction must lie in \(0, 1\)"),
    "level": (1, r"level must lie in \(0, 1\)"),
    "random_state": (-1, "random_state must be at least 0"),
    "callbacks": ([3], "must be callable"),
    "progress": ("yes", "progress must be True or False"),
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_unfit_parameters(name):
    value, message = PARAMETERS[name]
    with pytest.raises((TypeError, ValueError), match=message):
        small(**{name: value}).fit(GOOD)


def spoiled(row, column, value):
    y = GOOD.copy()
    y[row, column] = value
    return y


MONTHS = pandas.date_range("2001-01-01", periods=60, freq="MS")
DATA = {
    "nan": (spoiled(3, 1, numpy.nan), None, r"y\[:, 1\] is nan in row 4: fill in"),
    "infinite": (GOOD, spoiled(3, 1, numpy.inf), r"X\[:, 1\] is inf in row 4"),
    "nan of pandas": (
        pandas.Series(spoiled(3, 0, numpy.nan)[:, 0], MONTHS, name="load"),
        None,
        r"column 'load' is nan in row 4 \(2001-04-01\)",
    ),
    "constant": (spoiled(slice(45), 2, 5.0), None, r"y\[:, 2\] is constant .* first 45 rows"),
    "constant series of a list": (
        [GOOD[:, 0], numpy.ones(40)],
        None,
        r"y\[1\] is constant over the training part, the first 30 rows",
    ),
    "out of proportion": (spoiled(50, 0, 1e300), None, r"y\[:, 0\] is 1e\+300 in row 51"),
    "too large": (GOOD * 1e200, None, "too large or too small: change their unit"),
    "too short": (
        [GOOD[:, 0], GOOD[:11, 1]],
        None,
        r"y\[1\] has 11 rows, too few for a context of 6 and a horizon of 3: 12 rows would do",
    ),
    "text": (numpy.array(["a"] * 60), None, "y must hold numbers, its dtype is <U1"),
    "text of pandas": (pandas.Series(["a"] * 60), None, "y must hold numbers"),
    "no array": ("abc", None, "y must be an array of numpy or cupy or of pandas, received str"),
    "no axes": (numpy.float64(3), None, "y must"),
    "three axes": (GOOD[:, :, None], None, r"y must have 1 or 2 axes, its shape is \(60, 3, 1\)"),
    "empty": (GOOD[:0], None, r"y is empty, its shape is \(0, 3\)"),
    "empty list": ([], None, "y is empty"),
    "features of one axis": (GOOD, GOOD[:, 0], r"X must have 2 axes, its shape is \(60,\)"),
    "features of other rows": (GOOD, GOOD[:50], r"X\[:, 0\] has 50 rows, but y\[:, 0\] has 60"),
    "one table of features for a list": (
        [GOOD[:, 0], GOOD[:, 1]],
        GOOD,
        "X must be a list of 2 arrays as y is",
    ),
    "features of other counts": (
        [GOOD[:, 0], GOOD[:, 1]],
        [GOOD, GOOD[:, :2]],
        "X must have the same number of columns for each series",
    ),
    "another index of features": (
        pandas.Series(GOOD[:, 0], MONTHS),
        pandas.DataFrame(GOOD, MONTHS.shift(1)),
        "the index of X is not that of y",
    ),
    "unsorted index": (
        pandas.Series(GOOD[:, 0], MONTHS[::-1]),
        None,
        "the index of y does not increase",
    ),
    "irregular index": (
        pandas.Series(GOOD[:, 0], MONTHS.delete(3).union([pandas.Timestamp("2006-01-01")])),
        None,
        "the times in the index of y are not regularly spaced: row 4",
    ),
    "index with a gap": (
        pandas.Series(GOOD[:, 0], pandas.period_range("2001", periods=61, freq="M").delete(3)),
        None,
        "the index of y leaves out periods",
    ),
    "index of words": (
        pandas.Series(GOOD[:, 0], [f"{n:02}" for n in range(60)]),
        None,
        "the index of y cannot be continued",
    ),
}


@pytest.mark.parametrize("name", DATA)
def test_unfit_series(name):
    y, X, message = DATA[name]
    forecaster = small().fit(GOOD[:, 0])
    before = forecaster.predict()
    with pytest.raises((TypeError, ValueError), match=message):
        forecaster.fit(y, X)
    same(forecaster.predict(), before)


def test_what_a_forecast_refuses():
    forecaster = small().fit(GOOD, GOOD[:, :2])
    for y, X, message in (
        (GOOD[:, :2], GOOD[:, :2], "y holds 2 series, but fit was given 3"),
        (GOOD, GOOD, "X has 3 features, but fit was given 2"),
        (GOOD, None, "X has 0 features, but fit was given 2"),
        (None, GOOD, "X came without y"),
        (GOOD[:5], GOOD[:5, :2], r"y\[:, 0\] has 5 rows, but the model looks back on 6"),
        (spoiled(50, 0, 1e300), GOOD[:, :2], "out of all proportion"),
    ):
        with pytest.raises(ValueError, match=message):
            forecaster.predict(y, X)
    for start, message in (
        (5, "start is row 5 of 60, but a forecast needs 6 rows before it and 3 from it on"),
        (58, "start is row 58 of 60"),
        (60, "start is row 60 of 60"),
        (110, "start is row 110 of 60"),
        (-61, "start must be at least -60"),
        (1.5, "start must be an integer"),
        ([40, 41], "start must hold 3 numbers, one for each series"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            forecaster.backtest(GOOD, GOOD[:, :2], start=start)
    with pytest.raises(ValueError, match="period is 40, but the first forecast begins at row 40"):
        forecaster.backtest(GOOD, GOOD[:, :2], start=40, period=40)
    for period, message in (
        (0, "period must be at least 1, received 0"),
        (2.5, "period must be an integer"),
        ([4, 4, True], "period must be an integer, received True"),
        ([4, 4], "period must hold 3 numbers"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            forecaster.backtest(GOOD, GOOD[:, :2], start=40, period=period)
    with pytest.raises(ValueError, match=re.escape("start is row 6 of 8")):
        forecaster.score(GOOD[:8], GOOD[:8, :2])


def test_nothing_works_before_fit(tmp_path):
    for call in (
        lambda f: f.predict(),
        lambda f: f.predict_interval(GOOD),
        lambda f: f.backtest(GOOD, start=40),
        lambda f: f.score(GOOD),
        lambda f: f.save(tmp_path / "a"),
        lambda f: f.to("numpy"),
    ):
        with pytest.raises(NotFittedError):
            call(small())
    assert not list(tmp_path.iterdir())
