"""Estimators in the conventions of scikit-learn: fit and predict on sequences.

From below: `sequences` takes in every form of input, `scaling` standardises, `samples` holds what
a training learns from, `network` is the model, `storage` its file, `picture` draws a training,
`scores` are those on a GPU. `fitted` is an estimator as an object; on it stands `base`, whose
`LSTMEstimator._train` is the one place that calls `cupy_lstm.training.fit`; on that a module for
each estimator. `forecaster` stands on `cupy_lstm.forecast`, whose `learning` calls `fit` for it.
All need the extra `sklearn`.
"""

from cupy_lstm.io.optional import optional_module

optional_module("sklearn", "cupy_lstm.estimators", "'cupy_lstm[sklearn]'")

from cupy_lstm.estimators.classifier import LSTMClassifier  # noqa: E402
from cupy_lstm.estimators.forecaster import LSTMForecaster  # noqa: E402
from cupy_lstm.estimators.regressor import LSTMRegressor  # noqa: E402

__all__ = ["LSTMClassifier", "LSTMForecaster", "LSTMRegressor"]
