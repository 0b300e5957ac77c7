"""LSTMForecaster on arrays and objects of pandas: forms, figures, files."""

import numpy
import pandas
import pytest
from matplotlib.figure import Figure
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, TimeSeriesSplit, cross_val_score

from cupy_lstm.estimators import LSTMForecaster, LSTMRegressor
from cupy_lstm.forecast.backtest import Backtest

SMALL = {"horizon": 3, "context": 6, "hidden_size": 4, "epochs": 2, "random_state": 0}


def small(**changed):
    return LSTMForecaster(**(SMALL | changed))


def waves(rows=60, series=3, seed=0):
    """Return series [n, S] that grow and swing, each in a unit of its own."""
    steps = numpy.arange(rows)[:, None]
    noise = numpy.random.default_rng(seed).standard_normal((rows, series))
    unit = 10.0 ** numpy.arange(series)
    return unit * (5 + 0.1 * steps + numpy.sin(steps / 2 + numpy.arange(series)) + 0.1 * noise)


def same(found, expected):
    assert found.dtype == "float64"
    numpy.testing.assert_array_equal(found, expected)


# --- the conventions of scikit-learn -------------------------------------------------------------


def test_parameters_are_kept_as_they_are_given():
    forecaster = small(callbacks=[print], learning_rate=1)
    parameters = forecaster.get_params()
    assert parameters["callbacks"] == [print]
    assert parameters["learning_rate"] == 1
    copy = clone(forecaster.fit(waves(series=1)[:, 0]))
    assert copy.get_params() == forecaster.set_params(callbacks=[print]).get_params()
    with pytest.raises(NotFittedError):
        copy.predict()


def test_a_search_over_parameters_splits_by_time():
    y = waves(90, 1)[:, 0]
    X = waves(90, 2, seed=1)
    search = GridSearchCV(small(level=0.5), {"hidden_size": [2, 3]}, cv=TimeSeriesSplit(3))
    assert search.fit(y).best_estimator_.predict().shape == (3,)
    assert (search.cv_results_["rank_test_score"] > 0).all()
    search.fit(y, X)  # features split along
    assert search.best_estimator_.n_features_in_ == 2
    # What the search scored is what one would by hand.
    train, test = next(TimeSeriesSplit(3).split(y))
    by_hand = small(hidden_size=2, level=0.5).fit(y[train], X[train]).score(y[test], X[test])
    assert search.cv_results_["split0_test_score"][0] == by_hand
    frame = pandas.Series(y, pandas.date_range("2020-01-01", periods=90))
    least = small(hidden_size=2, level=0.5)
    scores = cross_val_score(least, frame, cv=TimeSeriesSplit(3))
    assert scores[0] == least.fit(y[train]).score(y[test])


def test_a_seed_repeats_a_training():
    y = waves(series=1)[:, 0]
    first = small().fit(y).predict()
    same(small().fit(y).predict(), first)
    assert (small(random_state=1).fit(y).predict() != first).all()
    generator = numpy.random.RandomState(5)
    drawn = small(random_state=generator)
    again = drawn.fit(y).predict()
    assert (drawn.fit(y).predict() != again).all()
    same(small(random_state=numpy.random.RandomState(5)).fit(y).predict(), again)


def test_callbacks_hear_of_both_views_and_can_stop_them():
    heard = []
    forecaster = small(epochs=5, callbacks=[lambda record: heard.append(record.epoch) or False])
    forecaster.fit(waves())
    assert heard == [0, 0]
    assert forecaster.history_.stopped_early
    heard.clear()
    assert forecaster.set_params(view="levels").fit(waves()).view_ == "levels"
    assert heard == [0]


def test_the_better_view_is_kept():
    histories = {
        view: small(view=view, epochs=4).fit(waves()).history_ for view in ("changes", "levels")
    }
    least = {view: min(history.validation_loss) for view, history in histories.items()}
    best = small(epochs=4).fit(waves())
    assert best.view_ == min(least, key=least.get)
    assert best.history_ == histories[best.view_]


def test_a_progress_bar_is_shown_where_it_is_wanted(capsys):
    small().fit(waves())
    assert capsys.readouterr().err == ""
    small(progress=True).fit(waves())
    assert "2/2" in capsys.readouterr().err


def test_the_history_can_be_drawn():
    forecaster = small()
    with pytest.raises(NotFittedError):
        forecaster.plot_history()
    axes = Figure().subplots()
    assert forecaster.fit(waves()).plot_history(axes) is axes
    assert len(axes.lines[0].get_ydata()) == 2


# --- the forms of series -------------------------------------------------------------------------


def test_forecasts_come_in_the_form_of_the_series():
    y = waves()
    together = small().fit(y)
    values = together.predict()
    assert values.shape == (3, 3)
    lower, upper = together.predict_interval()
    assert lower.shape == upper.shape == (3, 3)
    listed = small().fit([y[:, 0], y[:, 1], y[:, 2]]).predict()
    assert isinstance(listed, list)
    same(numpy.stack(listed, axis=1), values)
    assert small().fit(y[:, 0]).predict().shape == (3,)
    assert small().fit(y[:, :1]).predict().shape == (3, 1)
    same(small().fit(y[:, :1]).predict()[:, 0], small().fit(y[:, 0]).predict())
    same(small().fit(y[:, 0].tolist()).predict(), small().fit(y[:, 0]).predict())
    whole = numpy.arange(60) % 7 * 3
    same(small().fit(whole).predict(), small().fit(whole.astype("float64")).predict())


def test_series_may_differ_in_length():
    y = waves()
    forecaster = small(level=0.8).fit([y[:, 0], y[20:, 1]])
    assert forecaster.training_rows_ == [45, 30]
    assert [values.shape for values in forecaster.predict()] == [(3,), (3,)]
    newer = forecaster.predict([y[-8:, 0], y[-6:, 1]])
    for found, expected in zip(newer, forecaster.predict(), strict=True):
        same(found, expected)


def test_each_series_is_scaled_on_its_own():
    """A unit that is a power of two changes nothing but the exponents of the forecasts."""
    y = waves(series=1)
    found = small().fit(numpy.concatenate([y, 1024 * y], axis=1)).predict()
    same(found[:, 1], 1024 * found[:, 0])
    assert (small().fit(y).predict()[:, 0] != found[:, 0]).any(), "they learned from one another"


INDEXES = {
    "months": (pandas.date_range("2001-01-01", periods=60, freq="MS"), ["2006-01-01"]),
    "months without a frequency": (
        pandas.DatetimeIndex(pandas.date_range("2001-01-31", periods=60, freq="ME").to_numpy()),
        ["2006-01-31", "2006-02-28"],
    ),
    "business days": (pandas.bdate_range("2024-01-01", periods=60), ["2024-03-25"]),
    "mornings in a zone": (
        pandas.date_range("2024-02-01 08:00", periods=60, freq="D", tz="Europe/Berlin"),
        ["2024-04-01T08:00+02:00"],
    ),
    "hours in a zone, without a frequency": (
        pandas.DatetimeIndex(
            list(pandas.date_range("2024-03-28 12:00", periods=60, freq="h", tz="Europe/Berlin"))
        ),
        ["2024-03-31T00:00+01:00", "2024-03-31T01:00+01:00", "2024-03-31T03:00+02:00"],
    ),
    "quarters": (pandas.period_range("2001Q1", periods=60, freq="Q"), ["2016Q1"]),
    "every other month": (
        pandas.period_range("2001-01", periods=60, freq="2M"),
        [pandas.Period("2011-01", "2M")],
    ),
    "rows": (pandas.RangeIndex(60), [60, 61, 62]),
    "years": (pandas.Index(range(1900, 1960), name="year"), [1960, 1961, 1962]),
}


@pytest.mark.parametrize("name", INDEXES)
def test_the_index_of_pandas_goes_on(name):
    index, expected = INDEXES[name]
    y = pandas.Series(waves(series=1)[:, 0], index, name="load")
    forecaster = small().fit(y)
    for found in (forecaster.predict(), *forecaster.predict_interval()):
        assert found.name == "load"
        assert found.index.name == index.name
        assert found.index.dtype == index.dtype
        labels = [type(index[-1])(label) for label in expected]
        assert found.index.tolist()[: len(labels)] == labels
        assert len(found) == 3
    same(forecaster.predict().to_numpy(), small().fit(y.to_numpy()).predict())
    newer = forecaster.predict(y[:30])
    assert newer.index.tolist() == index[30:33].tolist()


def test_frames_and_lists_of_pandas():
    index = pandas.date_range("2001-01-01", periods=60, freq="MS", name="month")
    frame = pandas.DataFrame(waves(), index, ["a", "b", "c"])
    X = pandas.DataFrame(waves(seed=1), index, ["p", "q", "r"])
    found = small().fit(frame, X).predict()
    assert list(found.columns) == ["a", "b", "c"]
    assert found.index.name == "month"
    same(found.to_numpy(), small().fit(frame.to_numpy(), X.to_numpy()).predict())
    listed = small(level=0.8).fit([frame["a"], frame["b"].iloc[10:50]]).predict()
    assert [series.name for series in listed] == ["a", "b"]
    assert listed[1].index[0] == index[50]


def test_truth_values_are_numbers_wherever_they_come_from():
    y, X = waves()[:, 0], waves(seed=1)[:, :1] > 8
    expected = small().fit(y, X.astype("float64")).predict()
    same(small().fit(y, X).predict(), expected)
    same(small().fit(y, pandas.DataFrame(X)).predict(), expected)


def test_columns_keep_their_names_and_order(tmp_path):
    frame = pandas.DataFrame(waves()[:, :2], columns=["a", "b"])
    X = pandas.DataFrame(waves(seed=1)[:, :2], columns=["p", "q"])
    forecaster = small().fit(frame, X)
    forecaster.save(tmp_path / "a")
    expected = forecaster.predict(frame, X).to_numpy()
    for same_forecaster in (forecaster, LSTMForecaster.load(tmp_path / "a")):
        same(same_forecaster.predict(frame, X).to_numpy(), expected)
        same(same_forecaster.predict(frame.to_numpy(), X.to_numpy()), expected)
        for y, features, message in (
            (frame[["b", "a"]], X, "column 'b' is where fit was given 'a'"),
            (frame, X[["q", "p"]], "column 'q' is where fit was given 'p'"),
            (frame.rename(columns={"b": "c"}), X, "column 'c' is where fit was given 'b'"),
        ):
            with pytest.raises(ValueError, match=message):
                same_forecaster.predict(y, features)
            with pytest.raises(ValueError, match=message):
                same_forecaster.backtest(y, features, start=40)
    listed = small().fit([frame["a"], frame["b"]])
    with pytest.raises(ValueError, match="column 'b' is where fit was given 'a'"):
        listed.predict([frame["b"], frame["a"]])
    alone = small().fit(frame["a"])
    same(alone.predict(frame["a"].rename("z")).to_numpy(), alone.predict().to_numpy())


@pytest.mark.parametrize(
    ("index", "rows", "expected"),
    [
        (pandas.bdate_range("2024-01-01", periods=60), slice(50, 55), "2024-03-18"),
        (pandas.date_range("2001-01-31", periods=60, freq="ME"), slice(25, 27), "2003-04-30"),
        (pandas.date_range("2024-01-01", periods=60, freq="D"), slice(0, 1), "2024-01-02"),
        (
            pandas.bdate_range("2024-01-01", periods=60, tz="Europe/Berlin"),
            slice(50, 55),
            "2024-03-18",
        ),
    ],
    ids=["business days", "ends of months", "one row", "business days in a zone"],
)
def test_newer_rows_go_on_as_the_series_of_the_fit_did(index, rows, expected):
    """Rows that are too few to show a weekend or the end of a long month."""
    index = pandas.DatetimeIndex(list(index))
    assert index.freq is None
    y = pandas.Series(waves(series=1)[:, 0], index)
    found = small(context=1).fit(y).predict(y[rows]).index
    assert found[0] == pandas.Timestamp(expected, tz=index.tz)
    other = y[rows].set_axis(pandas.RangeIndex(len(y[rows])), axis=0)
    if len(other) > 1:
        assert small(context=1).fit(y).predict(other).index.tolist()[0] == len(other)


def test_nothing_of_the_caller_is_written():
    y, X = waves(), waves(seed=1)
    y.setflags(write=False)
    X.setflags(write=False)
    forecaster = small().fit(y, X)
    forecaster.predict(y, X)
    forecaster.backtest(y, X, start=40)
    kept = forecaster.predict()
    y.setflags(write=True)
    y[:] = 0
    same(forecaster.predict(), kept)


# --- figures -------------------------------------------------------------------------------------


def test_a_backtest_forecasts_from_what_was_known():
    y, X = waves(), waves(seed=1)[:, :2]
    forecaster = small().fit(y[:45], X[:45])
    judged = forecaster.backtest(y, X, start=45, period=4)
    assert [type(one) for one in judged] == [Backtest] * 3
    for number, one in enumerate(judged):
        assert one.origins.tolist() == list(range(45, 58))
        for origin, values, truth in zip(one.origins, one.forecasts, one.truth, strict=True):
            known = forecaster.predict(y[:origin], X[:origin])[:, number]
            # Float32 sums of other batch sizes differ in their last bits.
            reach = 2**-20 * abs(values - y[origin - 1, number]).max()
            numpy.testing.assert_allclose(values, known, rtol=0, atol=reach)
            same(truth, y[origin : origin + 3, number])
        assert one.period == 4
        assert set(one.scores) == {
            "LSTM", "naive", "drift", "seasonal naive", "seasonal naive + drift"
        }  # fmt: skip
        assert one.scores["LSTM"].mae == abs(one.forecasts - one.truth).mean()
        last = numpy.stack([y[origin - 1, number].repeat(3) for origin in one.origins])
        assert one.scores["naive"].mae == pytest.approx(abs(last - one.truth).mean(), rel=1e-12)
        assert list(one.scores) == sorted(one.scores, key=lambda name: one.scores[name].mae)
        inside = abs(one.forecasts - one.truth) <= forecaster.half_widths_[number]
        assert one.coverage == inside.mean()


def test_starts_and_periods_may_differ_from_series_to_series():
    y = waves()
    series = [y[:, 0], y[10:, 1]]
    forecaster = small(level=0.8).fit([part[:40] for part in series])
    for kind in (list, numpy.array):
        judged = forecaster.backtest(series, start=kind([-12, 40]), period=kind([3, 7]))
        assert [one.origins[0] for one in judged] == [48, 40]
        assert [one.period for one in judged] == [3, 7]
    alone = small().fit(y[:45, 0]).backtest(y[:, 0], start=-15)
    assert isinstance(alone, Backtest)
    assert alone.origins[0] == 45


def test_the_score_is_the_skill_against_the_naive_forecast():
    y = waves()[:, 0]
    forecaster = small().fit(y[:45])
    judged = forecaster.backtest(y[30:], start=6)
    expected = 1 - judged.scores["LSTM"].mae / judged.scores["naive"].mae
    assert forecaster.score(y[30:]) == pytest.approx(expected, rel=1e-12)
    both = numpy.stack([y, 1024 * y], axis=1)
    twice = small().fit(both[:45])
    parts = twice.backtest(both[30:], start=6)
    assert twice.score(both[30:]) == pytest.approx(
        1 - parts[0].scores["LSTM"].mae / parts[0].scores["naive"].mae, rel=1e-12
    )
    assert forecaster.score(numpy.full(20, 7.0)) == -numpy.inf


def test_an_interval_holds_the_share_of_validation_errors_that_it_should():
    y = waves(200)
    narrow, wide = (small(level=level).fit(y) for level in (0.5, 0.9))
    for forecaster in (narrow, wide):
        lower, upper = forecaster.predict_interval()
        values, reach = forecaster.predict(), forecaster.half_widths_.T
        same(lower, values - reach)
        same(upper, values + reach)
        first = forecaster.backtest(y, start=150)[0]  # the validation part
        share = (abs(first.forecasts - first.truth) <= forecaster.half_widths_[0]).mean(axis=0)
        rank = numpy.ceil(49 * forecaster.level) / 48
        numpy.testing.assert_array_equal(share, [rank] * 3)
    assert (narrow.half_widths_ < wide.half_widths_).all()


def test_too_few_errors_for_the_level_are_warned_of():
    y = waves(series=1)[:, 0]  # 13 forecasts in the validation part
    assert small(level=13 / 14).fit(y).half_widths_.shape == (1, 3)
    with pytest.warns(UserWarning, match=r"y holds 13 forecasts, too few .* level 0.95.* 0.93 at"):
        forecaster = small(level=0.95).fit(y)
    judged = forecaster.backtest(y, start=45)
    same(forecaster.half_widths_[0], abs(judged.forecasts - judged.truth).max(axis=0))


def test_features_are_seen_up_to_the_origin():
    y = waves(series=1)[:, 0]
    X = waves(series=2, seed=1)
    forecaster = small().fit(y[:45], X[:45])
    assert forecaster.n_features_in_ == 2
    first = forecaster.backtest(y, X, start=45).forecasts
    X[50] += 3
    second = forecaster.backtest(y, X, start=45).forecasts
    same(second[:6], first[:6])  # from origins up to row 50
    assert (second[6:12] != first[6:12]).all()  # its row is in their windows


def test_a_feature_that_leads_is_learned_from():
    """The series is its feature three steps ago, so the forecast can be all but exact."""
    lead = numpy.random.default_rng(0).standard_normal(600)
    y = numpy.concatenate([numpy.zeros(3), lead[:-3]])
    settings = {"epochs": 15, "hidden_size": 16, "learning_rate": 0.02, "view": "levels"}
    known = small(**settings).fit(y[:500], lead[:500, None]).score(y[480:], lead[480:, None])
    blind = small(**settings).fit(y[:500]).score(y[480:])
    # The best blind forecast of white noise is its mean: MAE 1 / sqrt(2) of that of the naive one.
    assert blind < 1 - 0.5**0.5 + 0.1
    assert known > 0.8


def test_a_feature_may_be_constant():
    """It is zero to the model then: one constant is as good as another."""
    y, X = waves()[:, :2], waves(series=1, seed=1)
    listed = [y[:, 0], y[:, 1]]

    def forecast(first, second):
        beside = [numpy.append(X, numpy.full((60, 1), value), axis=1) for value in (first, second)]
        return small().fit(listed, beside).predict()

    for found, expected in zip(forecast(3, 5), forecast(0, -8), strict=True):
        same(found, expected)
        assert numpy.isfinite(found).all()


# --- files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["one", "columns", "list"])
def test_a_forecaster_comes_back_as_it_was(tmp_path, kind):
    y = waves()
    series = {"one": y[:, 0], "columns": y, "list": [y[:, 0], y[5:, 1]]}[kind]
    forecaster = small(num_layers=2, dropout=0.5, callbacks=[print]).fit(series)
    forecaster.save(tmp_path / "a", notes={"unit": "MW"})
    again = LSTMForecaster.load(tmp_path / "a")
    assert again.get_params() == forecaster.get_params() | {"callbacks": ()}
    assert again.notes_ == {"unit": "MW"}
    for name in ("context_", "training_rows_", "history_", "view_", "n_features_in_"):
        assert getattr(again, name) == getattr(forecaster, name)
    for arguments in ((), (series,)):
        pairs = zip(
            numpy.atleast_2d(again.predict(*arguments)),
            numpy.atleast_2d(forecaster.predict(*arguments)),
            strict=True,
        )
        for found, expected in pairs:
            same(found, expected)
    assert type(again.predict()) is type(forecaster.predict())
    again.save(tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == (tmp_path / "a").read_bytes()
    with pytest.raises(ValueError, match="holds the estimator LSTMForecaster, not LSTMRegressor"):
        LSTMRegressor.load(tmp_path / "a")


def test_a_forecaster_of_pandas_forecasts_arrays_after_it_is_loaded(tmp_path):
    index = pandas.date_range("2001-01-01", periods=60, freq="MS")
    y = pandas.Series(waves()[:, 0], index)
    forecaster = small().fit(y)
    forecaster.save(tmp_path / "a")
    again = LSTMForecaster.load(tmp_path / "a")
    same(again.predict(), forecaster.predict().to_numpy())
    pandas.testing.assert_series_equal(again.predict(y), forecaster.predict())


def test_a_file_holds_the_parameters_of_the_fit(tmp_path):
    forecaster = small().fit(waves())
    forecaster.save(tmp_path / "a")
    forecaster.set_params(level=2.0, horizon=9, hidden_size=7, view="no view")
    forecaster.save(tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == (tmp_path / "a").read_bytes()
    again = LSTMForecaster.load(tmp_path / "b")
    assert (again.level, again.horizon) == (0.9, 3)
    same(again.predict(), forecaster.predict())


def test_notes_are_what_json_can_hold(tmp_path):
    forecaster = small().fit(waves())
    with pytest.raises(TypeError, match=r"notes must hold what JSON can: .* float32"):
        forecaster.save(tmp_path / "a", notes={"share": numpy.float32(1)})
    assert not list(tmp_path.iterdir())
