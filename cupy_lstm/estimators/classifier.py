"""Classification of sequences."""

from collections.abc import Iterable, Mapping
from typing import Any, Self

import numpy
from sklearn.base import ClassifierMixin
from sklearn.metrics import accuracy_score
from sklearn.utils import assert_all_finite, column_or_1d
from sklearn.utils.class_weight import compute_sample_weight
from sklearn.utils.multiclass import check_classification_targets

from cupy_lstm.backend import Array, HostArray, array_module, is_array, to_host
from cupy_lstm.estimators.base import LSTMEstimator
from cupy_lstm.estimators.samples import check_count
from cupy_lstm.estimators.scores import accuracy_on_device
from cupy_lstm.estimators.sequences import Sequences
from cupy_lstm.estimators.storage import labels_as_json, labels_from_json
from cupy_lstm.history import Callback
from cupy_lstm.interchange import adopted
from cupy_lstm.loss import softmax_cross_entropy
from cupy_lstm.schedule import Schedule
from cupy_lstm.training import Loss


class LSTMClassifier(ClassifierMixin, LSTMEstimator):
    """An LSTM that reads a sequence, and a linear layer with a softmax over its classes.

    Inputs are standardised inside: each feature, over all valid steps that are learnt from.

    Parameters
    ----------
    class_weight : dict of label to float, ``"balanced"`` or None
        Factor of the weights of all samples of a class; balanced: inverse to how many of them are
        learnt from. What a dict leaves out counts 1.
    hidden_size, num_layers, direction, dropout, bptt_steps : optional
        As of `LSTMRegressor`.
    learning_rate, weight_decay, clip_norm : optional
        As of `LSTMRegressor`.
    batch_size, epochs, patience, standardize, dtype, random_state, callbacks, progress : optional
        As of `LSTMRegressor`.
    validation_fraction : float
        As of `LSTMRegressor`, of each class alike; of each at least one sample is learnt from.

    Attributes
    ----------
    classes_ : array [C]
        The labels, sorted, on the host.
    network_, history_, n_features_in_
        As of `LSTMRegressor`.

    Examples
    --------
    >>> import numpy
    >>> from cupy_lstm.estimators import LSTMClassifier
    >>> X = numpy.random.default_rng(0).standard_normal((200, 8, 2))
    >>> y = numpy.where(X[:, :, 0].mean(axis=1) > 0, "up", "down")
    >>> LSTMClassifier(random_state=0).fit(X, y).score(X, y) > 0.9
    True
    """

    classes_: HostArray

    def __init__(
        self,
        hidden_size: int = 64,
        *,
        num_layers: int = 1,
        direction: str = "forward",
        dropout: float = 0.0,
        bptt_steps: int | None = None,
        class_weight: Mapping[Any, float] | str | None = None,
        learning_rate: float | Schedule = 0.003,
        weight_decay: float = 0.0,
        clip_norm: float | None = 1.0,
        batch_size: int = 32,
        epochs: int = 100,
        patience: int | None = 50,
        validation_fraction: float = 0.1,
        standardize: bool = True,
        dtype: Any = "float32",
        random_state: Any = None,
        callbacks: Iterable[Callback] = (),
        progress: bool = False,
    ) -> None:
        super().__init__(
            hidden_size=hidden_size,
            num_layers=num_layers,
            direction=direction,
            dropout=dropout,
            bptt_steps=bptt_steps,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            clip_norm=clip_norm,
            batch_size=batch_size,
            epochs=epochs,
            patience=patience,
            validation_fraction=validation_fraction,
            standardize=standardize,
            dtype=dtype,
            random_state=random_state,
            callbacks=callbacks,
            progress=progress,
        )
        self.class_weight = class_weight

    def partial_fit(
        self,
        X: Any,
        y: Any,
        classes: Any = None,
        sample_weight: Any = None,
        sequence_length: Any = None,
    ) -> Self:
        """Learn from more samples in one pass over them.

        The first call, of an estimator that is not fitted, standardises by its samples, and so do
        all later ones. There is no validation part: `history_.best_epoch` goes by the training
        loss, also beside validation losses of a `fit`. Weights count as they are, while `fit`
        scales them to a mean of 1. The optimiser goes on as it was made, by the first call or by
        `fit`: another learning rate, weight decay or clip norm is for the next `fit`.

        Parameters
        ----------
        X, y, sample_weight, sequence_length
            As of `fit`.
        classes : array-like [C], optional
            All labels that will come, for the first call; default: those of its samples.

        Returns
        -------
        estimator
            Itself.

        Raises
        ------
        TypeError, ValueError, FloatingPointError
            As `fit`, or if X differs in form from that of the first call, y holds a label that is
            none of the classes, or class_weight is ``"balanced"``, for which all samples are
            needed.
        """
        if self.class_weight == "balanced":
            raise ValueError(
                "class_weight='balanced' needs all samples at once: give partial_fit a "
                "sample_weight, or class_weight a dict"
            )
        begun = hasattr(self, "classes_") and classes is not None
        if begun and not numpy.array_equal(numpy.unique(classes), self.classes_):
            raise ValueError(
                f"classes must be those of the first call, {self.classes_}, received {classes}"
            )
        return self._go_on(X, y, sample_weight, sequence_length, classes=classes)

    def predict(self, X: Any, sequence_length: Any = None) -> Array:
        """Return the most probable label of each sequence.

        Parameters
        ----------
        X, sequence_length
            As of `fit`, where the weights are.

        Returns
        -------
        array [N]
            Of the module of X, but of NumPy where CuPy has no such labels, as words.

        Raises
        ------
        TypeError, ValueError
            If X does not fit.
        NotFittedError
            If nothing was learnt yet.
        """
        codes = self._outputs(X, sequence_length).argmax(axis=1)
        if self.classes_.dtype.kind in "biuf":
            return array_module(codes).asarray(self.classes_)[codes]
        return self.classes_[to_host(codes)]

    def predict_proba(self, X: Any, sequence_length: Any = None) -> Array:
        """Return the probability of each class for each sequence.

        Parameters
        ----------
        X, sequence_length
            As of `predict`.

        Returns
        -------
        array [N,C]
            In the order of `classes_`, of the module of X, float32 or float64.

        Raises
        ------
        TypeError, ValueError, NotFittedError
            As `predict`.
        """
        logits = self._outputs(X, sequence_length)
        wide = logits.astype("float64" if logits.dtype == "float64" else "float32", copy=False)
        exponentials = array_module(wide).exp(wide - wide.max(axis=1, keepdims=True))
        return exponentials / exponentials.sum(axis=1, keepdims=True)

    def score(
        self, X: Any, y: Any, sample_weight: Any = None, sequence_length: Any = None
    ) -> float:
        """Return the share of sequences whose label is predicted.

        On CuPy only the share comes to the host.

        Parameters
        ----------
        X, y, sample_weight, sequence_length
            As of `fit`.

        Returns
        -------
        float
            From 0 to 1.
        """
        predicted = self.predict(X, sequence_length)
        if isinstance(predicted, numpy.ndarray):
            return float(accuracy_score(y, predicted, sample_weight=sample_weight))
        return accuracy_on_device(y, predicted, sample_weight)

    def _checked_targets(self, y: Any, sequences: Sequences) -> HostArray:
        """Return the labels on the host: which there are decides on the sizes of the network."""
        if y is None:
            raise ValueError(
                f"{type(self).__name__} requires y to be passed, but the target y is None"
            )
        y = adopted("y", y)
        labels: HostArray = column_or_1d(to_host(y) if is_array(y) else y, warn=True)
        assert_all_finite(labels, input_name="y")
        check_classification_targets(labels)
        check_count("y", labels, sequences)
        return labels

    def _learn_targets(self, y: Array, weights: Array, **known: Any) -> int:
        classes = known.get("classes")
        self.classes_ = numpy.unique(y if classes is None else numpy.asarray(classes))
        return len(self.classes_)

    def _encoded_targets(self, y: Array, sequences: Sequences) -> Array:
        codes = numpy.searchsorted(self.classes_, y).clip(max=len(self.classes_) - 1)
        unknown = self.classes_[codes] != y
        if unknown.any():
            raise ValueError(f"y holds {y[unknown][0]!r}, which is none of {self.classes_}")
        return array_module(sequences.values).asarray(codes)

    def _strata(self, y: Array) -> HostArray:
        codes: HostArray = numpy.unique(y, return_inverse=True)[1]
        return codes

    def _sample_weights(
        self,
        y: Array,
        sample_weight: Any,
        sequences: Sequences,
        learnt_from: HostArray | None = None,
    ) -> Array | None:
        weights = super()._sample_weights(y, sample_weight, sequences)
        if self.class_weight is None:
            return weights
        indices = learnt_from if self.class_weight == "balanced" else None
        factors = compute_sample_weight(self.class_weight, y, indices=indices)
        factors = super()._sample_weights(y, factors, sequences)
        return factors if weights is None else factors * weights

    def _described_targets(self) -> dict[str, Any]:
        return labels_as_json(self.classes_)

    def _restore_targets(self, description: dict[str, Any]) -> None:
        self.classes_ = labels_from_json(description)

    def _loss_function(self) -> Loss:
        return softmax_cross_entropy
