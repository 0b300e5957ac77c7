"""The forecaster on real series, beside the classical methods of statsmodels.

What is asserted is who wins in the table of docs/forecasting.md, and who is about level.
"""

import numpy
import pytest
from full import only_in_full
from statsmodels.datasets import co2, elnino, macrodata, sunspots
from statsmodels.tsa.ar_model import AutoReg
from statsmodels.tsa.holtwinters import ExponentialSmoothing
from statsmodels.tsa.statespace.sarimax import SARIMAX

from cupy_lstm.estimators import LSTMForecaster
from cupy_lstm.forecast.baselines import baselines

# Their optimisers say when they stop early; the forecasts are what is compared.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def errors(y, classical, every, **settings):
    """Return the mean absolute errors of LSTM, baselines, and other methods, on the last fifth.

    All from the same origins, of which one in `every` is taken, since fits take their time. The
    others may fit anew at each origin; the forecaster is left as the first four fifths of the rows
    have made it.
    """
    start = len(y) * 4 // 5
    forecaster = LSTMForecaster(random_state=0, **settings).fit(y[:start])
    judged = forecaster.backtest(y, start=start)
    origins, truth = judged.origins[::every], judged.truth[::every]
    methods = {"LSTM": judged.forecasts[::every]}
    for name, forecast in classical.items():
        forecasts = [forecast(y[:origin], truth.shape[1]) for origin in origins]
        methods[name] = numpy.stack(forecasts)
    simple = baselines(y, origins, truth.shape[1], judged.period)
    found = {name: abs(forecasts - truth).mean() for name, forecasts in methods.items()}
    found["best baseline"] = min(abs(forecasts - truth).mean() for forecasts in simple.values())
    return found


def autoregression(order, season=None):
    def forecast(known, horizon):
        model = AutoReg(known, order, seasonal=season is not None, period=season)
        return model.fit().forecast(horizon)

    return forecast


def mean_of_the_month(known, horizon):
    months = (len(known) + numpy.arange(horizon)) % 12
    return numpy.array([known[month::12].mean() for month in months])


def holt_winters(trend, season):
    def forecast(known, horizon):
        kind = "add" if season else None
        model = ExponentialSmoothing(known, trend=trend, seasonal=kind, seasonal_periods=season)
        return model.fit().forecast(horizon)

    return forecast


def test_co2_is_forecast_better_than_by_the_baselines_but_not_than_by_classical_methods():
    y = co2.load_pandas().data["co2"].resample("MS").mean().interpolate().to_numpy()
    start = len(y) * 4 // 5
    model = SARIMAX(y[:start], order=(1, 1, 1), seasonal_order=(0, 1, 1, 12)).fit(disp=False)
    classical = {
        "Holt-Winters": holt_winters("add", 12),
        "SARIMA": lambda known, horizon: model.apply(known).forecast(horizon),
    }
    found = errors(y, classical, 12, horizon=12, view="changes")
    assert found["SARIMA"] < found["Holt-Winters"] < found["LSTM"] < 0.8 * found["best baseline"]


def test_the_sea_is_forecast_better_by_a_seasonal_autoregression_and_worse_by_holt_winters():
    table = elnino.load_pandas().data.set_index("YEAR").to_numpy().ravel()
    y = table[numpy.isfinite(table)]
    settings = {"horizon": 12, "view": "levels", "epochs": 40}
    classical = {
        "Holt-Winters": holt_winters(None, 12),
        "autoregression": autoregression(3, 12),
        "mean of the month": mean_of_the_month,
    }
    found = errors(y, classical, 12, **settings)
    assert found["autoregression"] < 0.95 * found["LSTM"]
    assert found["mean of the month"] < 1.05 * found["LSTM"]
    assert found["LSTM"] < 0.9 * found["Holt-Winters"]
    assert found["LSTM"] < 0.7 * found["best baseline"]


def test_sunspots_are_forecast_better_by_an_autoregression():
    y = sunspots.load_pandas().data["SUNACTIVITY"].to_numpy()
    found = errors(y, {"autoregression": autoregression(9)}, 1, horizon=12)
    assert found["autoregression"] < 0.9 * found["LSTM"]
    assert found["LSTM"] == pytest.approx(found["best baseline"], rel=0.05)


@only_in_full
def test_ten_series_of_an_economy_learned_together_are_level_with_holt():
    columns = ["realgdp", "realcons", "realinv", "realgovt", "realdpi", "cpi", "m1"]
    y = macrodata.load_pandas().data[[*columns, "tbilrate", "unemp", "pop"]].to_numpy()
    start = len(y) * 4 // 5
    forecaster = LSTMForecaster(4, random_state=0).fit(y[:start])
    better = 0
    for number, judged in enumerate(forecaster.backtest(y, start=start, period=1)):
        holt = [holt_winters("add", None)(y[:origin, number], 4) for origin in judged.origins]
        better += judged.scores["LSTM"].mae < abs(numpy.stack(holt) - judged.truth).mean()
        assert judged.scores["LSTM"].mae < judged.scores["naive"].mae
    assert 5 <= better <= 8
