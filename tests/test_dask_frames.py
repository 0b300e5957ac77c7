"""Models over dask dataframes: columns are features, rows are samples or the steps of a series."""

import dask
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
from face import normal, raised

from cupy_lstm import LSTM, Layer, Linear, no_grad
from cupy_lstm.dask import predict

X = normal(20, 3)
FRAME = pd.DataFrame(X, columns=list("abc"), index=pd.date_range("2026-01-01", periods=20))


@pytest.fixture(autouse=True)
def synchronous():
    with dask.config.set(scheduler="synchronous"):
        yield


@pytest.fixture
def frame():
    """Three partitions, one of them without rows."""
    parts = [FRAME[:9], FRAME[9:9], FRAME[9:]]
    return dd.from_map(lambda part: part, parts, meta=FRAME.iloc[:0])


@pytest.mark.parametrize("time_major", [False, True])
def test_a_series_is_read_in_order(frame, time_major):
    lstm = LSTM(3, 4, 2, time_major=time_major, seed=0)
    batch = 1 if time_major else 0
    states, outputs = (normal(2, 1, 4), normal(2, 1, 4, seed=1)), []
    found, final = predict(lstm, frame, initial_states=states, return_states=True)
    with no_grad():
        for rows in (slice(0, 9), slice(9, 20)):
            y, states = lstm(np.expand_dims(X[rows], batch), states)
            outputs.append(y.squeeze(batch))
    expected = pd.DataFrame(
        np.concatenate(outputs), columns=["y0", "y1", "y2", "y3"], index=FRAME.index
    )
    pd.testing.assert_frame_equal(found.compute(), expected, check_exact=True, check_freq=False)
    assert found.npartitions == frame.npartitions and found.dtypes.eq("float32").all()
    assert all(map(np.array_equal, dask.compute(*final), states))


def test_divisions_stay():
    frame = dd.from_pandas(FRAME, npartitions=4)
    for model in (LSTM(3, 4), Linear(3, 2)):
        assert predict(model, frame).divisions == frame.divisions


class First(Layer):
    """One number a row."""

    def __call__(self, x):
        return 2 * x[:, 0]


def test_a_layer_is_given_values(frame):
    linear = Linear(3, 2, seed=0)
    with no_grad():
        values = np.concatenate([linear(X[:9]), linear(X[9:])])
    expected = pd.DataFrame(values, columns=["y0", "y1"], index=FRAME.index)
    found = predict(linear, frame).compute()
    pd.testing.assert_frame_equal(found, expected, check_exact=True, check_freq=False)
    series = predict(First(), frame)
    expected = pd.Series(2 * X[:, 0], index=FRAME.index, name="y")
    assert series.dtype == "float32"
    pd.testing.assert_series_equal(series.compute(), expected, check_exact=True, check_freq=False)


def test_an_estimator_is_given_the_frame():
    """Of scikit-learn: it knows the columns by name, and warns where they are missing."""
    from sklearn.linear_model import LogisticRegression

    labels = np.where(X[:, 0] > 0, "up", "down")
    model = LogisticRegression().fit(FRAME, labels)
    frame = dd.from_pandas(FRAME, npartitions=3)
    found = predict(model, frame)
    assert (found.compute() == model.predict(FRAME)).all()
    probabilities = predict(model, frame, method="predict_proba").compute()
    assert np.array_equal(probabilities, model.predict_proba(FRAME))
    assert list(probabilities.columns) == ["y0", "y1"]
    chosen = frame[frame.a > 1]  # of some partitions no row is left
    assert (predict(model, chosen).compute() == model.predict(FRAME[FRAME.a > 1])).all()


@pytest.mark.parametrize(
    ("model", "options", "error", "message"),
    [
        (LSTM(2, 4), {}, ValueError, "X has 3 columns, the LSTM reads 2"),
        (LSTM(3, 4, dtype="float64"), {}, ValueError, "X has dtype float32, but the weights have"),
        (Linear(3, 4, dtype="float64"), {}, ValueError, "X has dtype float32, but the weights hav"),
        (LSTM(3, 4, direction="bidirect"), {}, ValueError, "X has 3 chunks along time"),
        (LSTM(3, 4), {"sequence_length": [3]}, ValueError, "a dataframe is one series"),
        (LSTM(3, 4), {"initial_states": (X, X)}, ValueError, "must have shape [1, 1, 4]"),
    ],
    ids=["columns", "dtype", "dtype of a layer", "both directions", "lengths", "states"],
)
def test_what_does_not_fit(frame, model, options, error, message):
    assert message in raised(error, lambda: predict(model, frame, **options))


def test_outputs_of_three_axes_make_no_frame(frame):
    class Cube(Layer):
        def __call__(self, x):
            return x[:, :, None]

    assert "X.to_dask_array" in raised(ValueError, lambda: predict(Cube(), frame))


def test_columns_of_words_are_no_features():
    frame = dd.from_pandas(FRAME.assign(a="word"), npartitions=2)
    for model in (LSTM(3, 4), Linear(3, 4)):
        assert "X has dtype object, but the weights" in raised(
            ValueError, lambda model=model: predict(model, frame)
        )
