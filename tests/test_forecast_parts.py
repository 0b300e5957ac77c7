"""The parts of the forecast command: spacings, seasons, intervals, model, files, verdict."""

import numpy
import pytest
from statsmodels.datasets import elnino

from cupy_lstm.forecast.baselines import MAX_PERIOD, baselines, estimate_period
from cupy_lstm.forecast.errors import DataError
from cupy_lstm.forecast.evaluation import (
    Score,
    change_scale,
    check_rows,
    coverage,
    interval_half_widths,
    origins_between,
    score,
    split_rows,
    training_rows,
)
from cupy_lstm.forecast.model import ForecastModel
from cupy_lstm.forecast.norms import Norms
from cupy_lstm.forecast.panel import read_panel
from cupy_lstm.forecast.report import score_lines
from cupy_lstm.forecast.sight import BATCH, OriginBatches, Sight, forecast_from
from cupy_lstm.forecast.spacing import infer_spacing, show_time
from cupy_lstm.io.files import write_together


def dates(*texts):
    return numpy.array(texts, "datetime64[us]")


SPACINGS = {
    "months": (
        dates("2023-11-01", "2023-12-01", "2024-01-01"),
        "month",
        ["2024-02-01", "2024-03-01"],
    ),
    "ends of months": (
        dates("2023-11-30", "2023-12-31", "2024-01-31"),
        "month",
        ["2024-02-29", "2024-03-31"],
    ),
    "the 30th or the end": (
        dates("2023-01-30", "2023-02-28", "2023-03-30"),
        "month",
        ["2023-04-30", "2023-05-30"],
    ),
    "middles of quarters, with a clock": (
        dates("2023-02-15T12:30", "2023-05-15T12:30", "2023-08-15T12:30"),
        "3 months",
        ["2023-11-15T12:30:00", "2024-02-15T12:30:00"],
    ),
    "years": (dates("2021-07-01", "2022-07-01"), "year", ["2023-07-01", "2024-07-01"]),
    "decades": (dates("1990-01-01", "2000-01-01"), "10 years", ["2010-01-01", "2020-01-01"]),
    "leap days": (dates("2016-02-29", "2020-02-29"), "4 years", ["2024-02-29", "2028-02-29"]),
    "business days": (
        dates("2024-01-04", "2024-01-05", "2024-01-08"),
        "business day",
        ["2024-01-09", "2024-01-10"],
    ),
    "business days before a weekend": (
        dates("2024-01-05", "2024-01-08", "2024-01-09", "2024-01-10", "2024-01-11", "2024-01-12"),
        "business day",
        ["2024-01-15", "2024-01-16"],
    ),
    "days": (dates("2024-02-27", "2024-02-28"), "day", ["2024-02-29", "2024-03-01"]),
    "weeks": (dates("2024-02-01", "2024-02-08"), "7 days", ["2024-02-15", "2024-02-22"]),
    "hours": (
        dates("2024-01-01T22:00", "2024-01-01T23:00"),
        "hour",
        ["2024-01-02", "2024-01-02T01:00:00"],
    ),
    "odd minutes": (
        dates("2024-01-01T00:00", "2024-01-01T00:37"),
        "37 minutes",
        ["2024-01-01T01:14:00", "2024-01-01T01:51:00"],
    ),
    "a trembling clock": (
        dates("2024-01-01T00:00:00", "2024-01-01T00:00:19", "2024-01-01T00:00:40"),
        "20 seconds",
        ["2024-01-01T00:01:00", "2024-01-01T00:01:20"],
    ),
    "whole numbers": (numpy.array([3, 5, 7]), "step of 2", ["9", "11"]),
    "nearly whole steps": (numpy.array([0, 10, 20, 31]), "step of 10.3333", ["41", "52"]),
    "decimal years": (
        numpy.array([1958.2027, 1958.2877, 1958.3699]),
        "step of 0.0836",
        ["1958.4535", "1958.5371"],
    ),
}


@pytest.mark.parametrize("name", SPACINGS)
def test_spacing_is_found_and_continued(name):
    times, words, expected = SPACINGS[name]
    spacing = infer_spacing(times, "column 'when'")
    assert str(spacing) == words
    future = spacing.after(times[-1], 2)
    assert future.dtype == times.dtype
    if times.dtype.kind == "f":
        numpy.testing.assert_allclose(future, numpy.array(expected, float), rtol=0, atol=1e-9)
    else:
        assert [show_time(time) for time in future] == expected


@pytest.mark.parametrize(
    "times",
    [
        dates("2024-01-01", "2024-01-02", "2024-01-04"),
        dates("2024-01-01", "2024-02-01", "2024-04-01", "2024-05-01"),
        dates("2024-01-04", "2024-01-05", "2024-01-08", "2024-01-10"),
        numpy.array([0.0, 1.0, 2.0, 3.2]),
        numpy.array([1, 2, 4, 8]),
    ],
)
def test_irregular_times_are_refused(times):
    with pytest.raises(DataError, match=r"column 'when' are not regularly spaced: row \d"):
        infer_spacing(times, "column 'when'")


@pytest.mark.parametrize(
    ("times", "seconds"),
    [
        (dates("2023-01-01", "2023-02-01"), 30.436875 * 86400),
        (dates("2024-01-04", "2024-01-05", "2024-01-08"), 1.4 * 86400),
        (dates("2024-01-01T00:00", "2024-01-01T00:37"), 37 * 60),
        (numpy.array([3, 5]), 2),
    ],
)
def test_length_of_a_spacing(times, seconds):
    assert infer_spacing(times, "column 'when'").length == pytest.approx(seconds, rel=1e-12)


@pytest.mark.parametrize("rows", [20, 21, 22, 23, 24, 97])
def test_parts_hold_their_forecasts_and_cover_all_rows(rows):
    split = split_rows(rows, context=8, horizon=4)
    assert 8 + 4 <= split.validation == training_rows(split.test, 0.25)
    assert split.validation + 4 <= split.test <= split.end - 4
    assert split.end == rows
    assert abs(5 * split.validation - 3 * rows) < 10
    assert abs(5 * split.test - 4 * rows) < 5


def test_origins_leave_room_for_their_steps():
    assert origins_between(8, 14, 4).tolist() == [8, 9, 10]
    assert origins_between(8, 12, 4).tolist() == [8]


def test_too_few_rows_are_told_how_many_would_do():
    checks = (split_rows, lambda rows, *sizes: check_rows("y", rows, 0.1, *sizes))
    for check in checks:
        for context, horizon in ((1, 1), (8, 4), (3, 19), (40, 2), (5, 30)):
            for rows in range(1, 500):
                try:
                    check(rows, context, horizon)
                    break
                except DataError as error:
                    message = str(error)
            assert f"{rows} rows would do" in message


def test_baselines_read_nothing_from_their_origin_on():
    series = numpy.random.default_rng(0).normal(size=60)
    origins = numpy.array([20, 33])
    expected = baselines(series, origins, 9, 5)
    series[33:] = numpy.nan
    for name, forecast in baselines(series, origins, 9, 5).items():
        numpy.testing.assert_array_equal(forecast[1], expected[name][1])


def test_baselines_are_exact_where_they_should_be():
    steps = numpy.arange(80)
    season = numpy.array([0.0, 2.0, 5.0, 1.0])[steps % 4]
    origins = numpy.arange(40, 70)
    truth = {
        "naive": numpy.full(80, 3.0),
        "drift": 0.5 * steps,
        "seasonal naive": season,
        "seasonal naive + drift": season + 0.5 * steps,
    }
    for name, series in truth.items():
        forecast = baselines(series, origins, 10, 4)[name]
        expected = series[origins[:, None] + numpy.arange(10)]
        numpy.testing.assert_allclose(forecast, expected, rtol=0, atol=1e-12)


def test_season_is_estimated():
    generator = numpy.random.default_rng(1)
    steps = numpy.arange(700)
    noise = generator.normal(size=700)
    assert estimate_period(numpy.sin(2 * numpy.pi * steps / 7) + 0.3 * noise, 12) == 7
    assert estimate_period(numpy.sin(2 * numpy.pi * steps / 24) + 0.01 * steps, 6) == 24
    sea = elnino.load_pandas().data.set_index("YEAR").to_numpy().ravel()
    sea = sea[numpy.isfinite(sea)]
    assert estimate_period(sea[: len(sea) * 4 // 5], 12) == 12  # four years do a little better
    assert estimate_period(noise.cumsum(), 12) == 1
    assert estimate_period(numpy.array([1.0, 2.0]), 1) == 1
    long = numpy.sin(2 * numpy.pi * numpy.arange(5000) / 1000)
    assert estimate_period(long, 3) <= MAX_PERIOD


def test_scale_is_the_root_mean_square_change():
    values = numpy.array([[0.0, 5.0], [1.0, 5.0], [3.0, 5.0]])
    # Changes over one step: 1 and 2; over two steps: 3.
    expected = numpy.sqrt(((1 + 4) / 2 + 9) / 2)
    numpy.testing.assert_allclose(change_scale(values, 2), [expected, 0.0], rtol=1e-15)


def test_errors():
    assert score(numpy.array([[1.0, 2.0]]), numpy.array([[4.0, -2.0]])) == Score(
        3.5, numpy.sqrt(12.5)
    )


def test_interval_of_each_step_is_the_conformal_quantile():
    errors = numpy.array([[1, -2], [-3, 4], [5, -6], [7, 80], [-9, 10], [0, 0]], "float64")
    truth = numpy.full((6, 2), 100.0)
    # Rank ceil(7 * 0.5) = 4 of six absolute errors; rank ceil(7 * 0.9) = 7 is more than there are.
    assert interval_half_widths(truth, truth + errors, 0.5).tolist() == [5.0, 6.0]
    assert interval_half_widths(truth, truth + errors, 0.9).tolist() == [9.0, 80.0]


def test_coverage_counts_ends_as_inside():
    truth = numpy.array([[0.0, 0.0], [1.0, 3.0], [2.0, -2.0]])
    half_widths = numpy.array([1.0, 2.0])
    assert coverage(truth, numpy.zeros((3, 2)), half_widths) == 4 / 6


def test_interval_covers_what_it_promises():
    generator = numpy.random.default_rng(0)
    seen, unseen = generator.standard_t(3, size=(2, 2000, 3))
    half_widths = interval_half_widths(seen, numpy.zeros_like(seen), 0.9)
    # Over 6000 draws, the share inside is within 4 standard deviations of the promise.
    spread = 4 * numpy.sqrt(0.9 * 0.1 * (1 / 2000 + 1 / 6000))
    assert abs(coverage(unseen, numpy.zeros_like(unseen), half_widths) - 0.9) < spread


@pytest.mark.parametrize("view", ["changes", "levels"])
@pytest.mark.parametrize("layers", [1, 2])
def test_gradients_of_the_model(view, layers):
    generator = numpy.random.default_rng(0)
    model = ForecastModel(2, 3, 4, num_layers=layers, view=view, seed=1).to(dtype="float64")
    windows = generator.normal(size=(5, 6, 2))
    norms = generator.normal(size=(5, 2)), generator.uniform(0.5, 2, size=(5, 2))
    weights = generator.normal(size=(5, 3))
    model(windows, *norms)
    model.backward(weights)
    step = 1e-6
    for name, parameter in model.named_parameters():
        numeric = numpy.zeros_like(parameter.data)
        for index in numpy.ndindex(numeric.shape):
            value = parameter.data[index]
            sums = []
            for sign in (1, -1):
                parameter.data[index] = value + sign * step
                sums.append((model(windows, *norms) * weights).sum())
            parameter.data[index] = value
            numeric[index] = (sums[0] - sums[1]) / (2 * step)
        # The truncation of a central difference is of order step^2, its rounding eps / step.
        numpy.testing.assert_allclose(parameter.grad, numeric, rtol=0, atol=1e-8, err_msg=name)


def sight_of(*series, context=6, scale=2.0, centre=0.0):
    """Return what a model sees of some series without features, all of the same norms."""
    panel, _ = read_panel(list(series), None, 3)
    norms = Norms(*numpy.full((2, len(series), 1), [[[scale]], [[centre]]]))
    return Sight(panel, norms, context)


def test_a_model_of_changes_does_not_see_the_level():
    # Whole numbers, so that the level comes and goes without rounding.
    series = numpy.random.default_rng(0).integers(-50, 50, size=20).astype("float64")
    origins = numpy.arange(6, 18)

    def forecast(view, level):
        model = ForecastModel(1, 3, 4, view=view, seed=1)
        return forecast_from(model, sight_of(series + level), origins)

    assert (forecast("changes", 1000) == forecast("changes", 0) + 1000).all()
    assert (forecast("levels", 1) != forecast("levels", 0) + 1).any()


def test_a_model_of_levels_sees_them_from_the_centre_of_the_series():
    series = numpy.random.default_rng(0).integers(-50, 50, size=20).astype("float64")
    model, origins = ForecastModel(1, 3, 4, view="levels", seed=1), numpy.arange(6, 18)
    moved = forecast_from(model, sight_of(series + 1000, centre=1000.0), origins)
    assert (moved == forecast_from(model, sight_of(series), origins) + 1000).all()


def test_a_long_forecast_is_made_in_blocks():
    sight = sight_of(numpy.random.default_rng(0).normal(size=BATCH + 9))
    model, origins = ForecastModel(1, 2, 3, view="changes", seed=1), numpy.arange(6, BATCH + 9)
    whole = forecast_from(model, sight, origins)
    assert whole.shape == (BATCH + 3, 2)
    numpy.testing.assert_array_equal(whole[BATCH:], forecast_from(model, sight, origins[BATCH:]))


def test_windows_never_reach_into_another_series():
    first, second = numpy.arange(10.0), numpy.arange(100.0, 112.0)
    sight = sight_of(first, second, context=4)
    rows = sight.origins([numpy.arange(4, 8), numpy.arange(4, 10)])
    batches = OriginBatches(sight, rows, 3, 4)
    for repeat in range(2):
        seen = []
        for (windows, _, _), changes in batches:
            seen += [(w[:, 0].tolist(), c.tolist()) for w, c in zip(windows, changes, strict=True)]
        # In units of a scale of 2, steps of 1 are changes of a half.
        expected = [
            ([float(start + k) for k in range(4)], [0.5, 1.0, 1.5])
            for start in (*range(4), *range(100, 106))
        ]
        assert seen == expected
        assert batches.epoch == repeat + 1


def test_files_get_the_usual_permissions(tmp_path):
    (tmp_path / "usual").write_text("")
    write_together(tmp_path / "a" / "b", {"new": lambda path: path.write_text("new")})
    written = tmp_path / "a" / "b" / "new"
    assert written.read_text() == "new"
    assert written.stat().st_mode == (tmp_path / "usual").stat().st_mode
    assert [path.name for path in written.parent.iterdir()] == ["new"]


@pytest.mark.parametrize(
    ("scores", "words"),
    [
        (
            (1.0, 2.0),
            "beats every baseline: its mean absolute error on the test part is 50.0% below",
        ),
        ((1.0, 4.0), "of the best one (naive), though by RMSE naive is better."),
        ((2.0, 2.0), "does NOT beat the naive forecast"),
        ((3.0, 2.0), "error on the test part is 50.0% above. Use that baseline instead."),
    ],
)
def test_verdict(scores, words):
    lines = score_lines(
        {"LSTM": Score(*scores), "naive": Score(2.0, 3.0), "drift": Score(4.0, 5.0)}, "LSTM"
    )
    assert words in lines[-1]


def test_verdict_where_a_baseline_is_exact():
    lines = score_lines({"LSTM": Score(1.0, 1.0), "drift": Score(0.0, 0.0)}, "LSTM")
    assert lines[-1] == (
        "The drift forecast is exact on the test part: this series needs no model."
    )
    assert lines[1].split() == ["LSTM", "1", "1", "-"]
