"""Forecasts of time series by an LSTM, as an estimator."""

import json
from collections.abc import Iterable, Mapping, Sequence
from math import inf
from numbers import Integral
from os import PathLike
from types import ModuleType
from typing import Any, Self

import numpy
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from cupy_lstm.backend import array_module, import_module, module_name
from cupy_lstm.checks import checked_integer, checked_optional_integer
from cupy_lstm.estimators.picture import HistoryPlot
from cupy_lstm.estimators.seeds import agreed_seeds
from cupy_lstm.estimators.storage import (
    parameters_as_json,
    parameters_from_json,
    read_estimator,
    write_estimator,
)
from cupy_lstm.forecast.backtest import judge
from cupy_lstm.forecast.evaluation import VALIDATION_FRACTION, origins_from
from cupy_lstm.forecast.learning import Learned, learn
from cupy_lstm.forecast.panel import Form, Panel, form_of_arrays, read_panel
from cupy_lstm.forecast.settings import checked_settings
from cupy_lstm.forecast.storage import learned_as_arrays, learned_as_json, restored
from cupy_lstm.history import Callback


class LSTMForecaster(HistoryPlot, BaseEstimator):
    """Forecast the next steps of one time series or several, with intervals.

    The last rows are kept for validation. From the others alone the scale of each series is
    learned, and an LSTM that looks back on `context` rows and forecasts all steps of the horizon
    at once, as the change since the last row. Training ends where the error on the validation
    part no longer falls; the errors there are also what the intervals are made of, as by split
    conformal prediction. They are a little too small for that, as epoch and view were chosen by
    them. Several series are learned together: one model over all of them, each scaled on its own,
    so that they need no common unit; it sees one series at a time, with its features.

    Parameters
    ----------
    horizon : int
        Steps to forecast.
    context : int, optional
        Rows to look back on; default: three times the horizon.
    hidden_size, num_layers : int
        Hidden features and layers of the LSTM.
    dropout : float
        Dropout between its layers.
    view : {"best", "changes", "levels"}
        What the model sees: rows as changes since the last one, which serves series that grow, or
        as levels, which serves those that come and go. ``"best"`` trains both, and keeps the one
        with the smaller error on the validation part.
    epochs : int
        Most passes over the training part.
    patience : int
        End the training after so many epochs without a smaller error on the validation part.
    batch_size : int, optional
        Windows of a step; default: 32 to 512, so that there are 64 steps an epoch.
    learning_rate : float
        Of Adam.
    validation_fraction : float
        Share of the rows of each series that is kept for validation, the last ones.
    level : float
        Share of true values that the interval should hold; see `predict_interval`.
    random_state : int, RandomState or None
        Of initial weights and order of the windows.
    callbacks : sequence of callable
        Given an `EpochRecord` after every epoch of the training of each view; False from one of
        them ends that training.
    progress : bool
        Whether to show progress bars.

    Attributes
    ----------
    history_ : History
        Of the training of the model that was kept.
    view_ : {"changes", "levels"}
        What that model sees.
    context_ : int
        Rows it looks back on.
    training_rows_ : list of int
        For each series how many rows, the first ones, the model and the scale were learned from.
    half_widths_ : array [S, horizon]
        Half width of the interval of each series at each step; on the host.
    network_ : ForecastModel
        The model itself.
    n_features_in_ : int
        Number of features.
    notes_ : dict
        What `save` was told beside, after `load`.

    Examples
    --------
    >>> import numpy
    >>> from cupy_lstm.estimators import LSTMForecaster
    >>> y = numpy.sin(numpy.arange(200) / 3)
    >>> forecaster = LSTMForecaster(horizon=4, epochs=5, random_state=0).fit(y)
    >>> forecaster.predict().shape
    (4,)
    """

    _learned: Learned
    _form: Form
    _fitted_parameters: dict[str, Any]

    def __init__(
        self,
        horizon: int = 12,
        *,
        context: int | None = None,
        hidden_size: int = 32,
        num_layers: int = 1,
        dropout: float = 0.0,
        view: str = "best",
        epochs: int = 300,
        patience: int = 30,
        batch_size: int | None = None,
        learning_rate: float = 5e-3,
        validation_fraction: float = VALIDATION_FRACTION,
        level: float = 0.9,
        random_state: Any = None,
        callbacks: Iterable[Callback] = (),
        progress: bool = False,
    ) -> None:
        self.horizon = horizon
        self.context = context
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.dropout = dropout
        self.view = view
        self.epochs = epochs
        self.patience = patience
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.validation_fraction = validation_fraction
        self.level = level
        self.random_state = random_state
        self.callbacks = callbacks
        self.progress = progress

    def fit(self, y: Any, X: Any = None) -> Self:
        """Learn from series, and from features of their steps.

        Parameters
        ----------
        y : array-like [n] or [n, S], or list of array-like [n_s]
            One series, several over the same steps, or a list of series of any lengths, oldest
            row first. Arrays of NumPy or CuPy, of which the latter stay on the GPU, or objects of
            pandas, whose index must be regular.
        X : array-like [n, F], or list of array-like [n_s, F], optional
            Features that are known when a row is; a list where `y` is one. The forecast sees them
            up to its origin.

        Returns
        -------
        LSTMForecaster
            Itself.

        Raises
        ------
        TypeError, ValueError
            If a parameter or an array is unfit; the forecaster is as it was then.
        FloatingPointError
            If the loss becomes infinite or not a number.

        Warns
        -----
        UserWarning
            If the validation part of a series holds too few forecasts for intervals of `level`:
            N errors vouch for N / (N + 1) at most.
        """
        seed = self.random_state
        if not isinstance(seed, Integral):
            (seed,) = agreed_seeds(seed, 1)
        parameters = self.get_params(deep=False)
        settings = checked_settings(parameters, checked_integer("random_state", seed, 0))
        panel, form = read_panel(y, X, settings.horizon)
        self._take(learn(panel, settings), form, parameters)
        return self

    def predict(self, y: Any = None, X: Any = None) -> Any:
        """Forecast what comes after the last row.

        Parameters
        ----------
        y : optional
            Newer rows of the same series, at least `context_`, in the form in which `fit` takes
            them, with the same names; default: what comes after the rows that `fit` was given.
        X : optional
            Features of these rows, where `fit` was given some.

        Returns
        -------
        array [horizon], array [horizon, S], or list of array [horizon]
            In the form of `y`, in the unit of each series; for objects of pandas with an index
            that goes on where theirs ended.

        Raises
        ------
        NotFittedError
            Before `fit`.
        TypeError, ValueError
            If the series are not like those of `fit`, the names and the order of their columns
            included where both came from pandas, are too short or live elsewhere.
        """
        last, form = self._last_rows(y, X)
        return form.shaped(self._learned.ahead(last))

    def predict_interval(self, y: Any = None, X: Any = None) -> tuple[Any, Any]:
        """Return the ends of the interval around each step of `predict`.

        An interval is as wide as the errors on the validation part were at its step: `level` of
        them lie inside. How many true values it will hold nobody can promise: what comes may be
        unlike that part, whose errors are those of neighbours in time, and are the least that
        the choice of epoch and view could make of them. `backtest` says what it held.

        Parameters
        ----------
        y, X : optional
            As of `predict`.

        Returns
        -------
        lower, upper
            Each in the form of `predict`.

        Raises
        ------
        TypeError, ValueError
            As `predict`.
        """
        last, form = self._last_rows(y, X)
        values = self._learned.ahead(last)
        reach = array_module(values).asarray(self.half_widths_)
        return form.shaped(values - reach), form.shaped(values + reach)

    def backtest(
        self,
        y: Any,
        X: Any = None,
        *,
        start: int | Sequence[int],
        period: int | Sequence[int] | None = None,
    ) -> Any:
        """Forecast what is known, from every row from `start` on, beside simple forecasts.

        Parameters
        ----------
        y, X
            Series and features, as of `fit`; the rows before `start` are looked back on.
        start : int, or sequence of int
            The first row to forecast, at least `context_`; negative numbers count from the end.
            For a judgement it must come after the rows that `fit` was given. A sequence holds one
            for each series.
        period : int, or sequence of int, optional
            Rows in a season, for the seasonal baselines; default: estimated on the rows before
            `start`.

        Returns
        -------
        Backtest, or list of Backtest
            A list, one for each series, unless `y` is one series. Waits for a GPU.

        Raises
        ------
        TypeError, ValueError
            As `predict`, or if `start` or `period` do not fit.
        """
        panel, form = self._checked_like_fit(y, X)
        count = len(panel.lengths)
        periods = [
            checked_optional_integer("period", season)
            for season in _for_each("period", period, count)
        ]
        horizon = self.half_widths_.shape[1]
        origins = [
            origins_from(first, rows, self.context_, horizon)
            for first, rows in zip(_for_each("start", start, count), panel.lengths, strict=True)
        ]
        judged = [
            judge(rows[:, 0], of_each, forecasts, half_widths, season)
            for rows, of_each, (_, forecasts), half_widths, season in zip(
                panel.rows(),
                origins,
                self._learned.rolled(panel, origins),
                self.half_widths_,
                periods,
                strict=True,
            )
        ]
        return judged[0] if form.kind == "one" else judged

    def score(self, y: Any, X: Any = None) -> float:
        """Return the skill of the forecasts from every row that has `context_` rows before it.

        Parameters
        ----------
        y, X
            Series and features, as of `fit`.

        Returns
        -------
        float
            1 - MAE / MAE of the naive forecast, which repeats the last value: 1 is perfect, 0 no
            better. The errors of several series are averaged in units of their scale. Waits for
            a GPU.

        Raises
        ------
        TypeError, ValueError
            As `predict`, or if a series is shorter than `context_` and horizon together.
        """
        panel, _ = self._checked_like_fit(y, X)
        context, horizon = self.context_, self.half_widths_.shape[1]
        origins = [origins_from(context, rows, context, horizon) for rows in panel.lengths]
        error = naive = 0.0
        for rows, of_each, (truth, forecasts), scale in zip(
            panel.rows(),
            origins,
            self._learned.rolled(panel, origins),
            self._learned.norms.scale[:, 0],
            strict=True,
        ):
            last = rows[array_module(rows).asarray(of_each) - 1, :1]
            error += float(abs(forecasts - truth).mean() / scale)
            naive += float(abs(last - truth).mean() / scale)
        if naive == 0:
            return 0.0 if error == 0 else -inf
        return 1 - error / naive

    def save(self, path: str | PathLike[str], *, notes: Mapping[str, Any] | None = None) -> None:
        """Write the forecaster into a safetensors file, complete or not at all.

        The parameters are those of the fit, whatever has been set since. What `callbacks` are is
        not written, nor the index of pandas that `predict` would go on from. Waits for a GPU.

        Parameters
        ----------
        path : str or path
            The file; one that is there is replaced.
        notes : mapping, optional
            What a reader shall know beside, such as names of columns: whatever JSON can hold.
            Default: `notes_`.

        Raises
        ------
        ImportError
            If safetensors is not installed.
        OSError
            If the file cannot be written; what was there stays then.
        TypeError
            If `notes` are nothing that JSON can hold.
        """
        check_is_fitted(self)
        description = {
            "class": type(self).__name__,
            "parameters": parameters_as_json(self._fitted_parameters),
            "form": self._form.kind,
            "notes": _checked_notes(self.notes_ if notes is None else notes),
        }
        write_estimator(
            path, learned_as_arrays(self._learned), description | learned_as_json(self._learned)
        )

    @classmethod
    def load(cls, path: str | PathLike[str], *, xp: str | ModuleType = "numpy") -> Self:
        """Return the forecaster that `save` or the command ``forecast`` has written.

        Parameters
        ----------
        path : str or path
            The file.
        xp : module or str
            ``numpy`` or ``cupy``: where the weights go.

        Raises
        ------
        ImportError
            If safetensors is not installed, or CuPy where it is asked for.
        OSError
            If the file cannot be read.
        ValueError
            If it is damaged or holds no forecaster.
        """
        arrays, description = read_estimator(path, cls.__name__)
        module = import_module(module_name(xp))
        try:
            loaded = cls(**parameters_from_json(description["parameters"]))
            checked_settings(loaded.get_params(deep=False), seed=0)
            form = form_of_arrays(description["form"], len(arrays["half_widths"]))
            loaded._take(restored(arrays, description, module), form, loaded.get_params(deep=False))
            loaded.notes_ = dict(description["notes"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is damaged: {error}") from None
        return loaded

    def to(self, xp: str | ModuleType) -> Self:
        """Move what was learned, in place.

        Parameters
        ----------
        xp : module or str
            ``numpy`` or ``cupy``: where series are from now on.

        Returns
        -------
        LSTMForecaster
            Itself.

        Raises
        ------
        ImportError, RuntimeError
            If CuPy is asked for and cannot be imported, or finds no GPU.
        NotFittedError
            Before `fit`.
        """
        check_is_fitted(self)
        self._learned = self._learned.to(import_module(module_name(xp)))
        return self

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "_learned")

    def _take(self, learned: Learned, form: Form, parameters: dict[str, Any]) -> None:
        """Take over what was learned, in which form, and with which parameters."""
        self._learned, self._form, self._fitted_parameters = learned, form, parameters
        self.history_ = learned.history
        self.network_ = learned.model
        self.view_ = learned.model.view
        self.context_ = learned.context
        self.training_rows_ = list(learned.training_rows)
        self.half_widths_ = learned.half_widths
        self.n_features_in_ = learned.norms.scale.shape[1] - 1
        self.notes_: dict[str, Any] = {}

    def _checked_like_fit(self, y: Any, X: Any) -> tuple[Panel, Form]:
        """Return series and features that what was learned serves."""
        check_is_fitted(self)
        panel, form = read_panel(y, X, self.half_widths_.shape[1], self._form.rhythms)
        self._learned.check(panel)
        return panel, form

    def _last_rows(self, y: Any, X: Any) -> tuple[Panel, Form]:
        check_is_fitted(self)
        if y is not None:
            panel, form = self._checked_like_fit(y, X)
            return panel.tail(self.context_), form
        if X is not None:
            raise ValueError("X came without y: features belong to the rows of series")
        return self._learned.last, self._form


def _checked_notes(notes: Mapping[str, Any]) -> dict[str, Any]:
    """Return notes that JSON can hold."""
    try:
        json.dumps(dict(notes))
    except (TypeError, ValueError) as error:
        raise TypeError(f"notes must hold what JSON can: {error}") from None
    return dict(notes)


def _for_each(name: str, value: Any, count: int) -> list[Any]:
    """Return one value for each series."""
    several = isinstance(value, Sequence | numpy.ndarray) and numpy.ndim(value) == 1
    values = list(value) if several else [value] * count
    if len(values) != count:
        raise ValueError(f"{name} must hold {count} numbers, one for each series")
    return values
