"""Regression on sequences."""

from collections.abc import Iterable
from typing import Any, Self

import numpy
from sklearn.base import RegressorMixin
from sklearn.metrics import r2_score
from sklearn.utils import Tags, check_array

from cupy_lstm.backend import Array, is_array, require_same_place
from cupy_lstm.checks import checked_choice
from cupy_lstm.estimators.base import LSTMEstimator
from cupy_lstm.estimators.samples import check_count
from cupy_lstm.estimators.scaling import Scaling
from cupy_lstm.estimators.scores import r2_on_device
from cupy_lstm.estimators.sequences import FLOATS, Sequences, as_floats
from cupy_lstm.history import Callback
from cupy_lstm.interchange import adopted
from cupy_lstm.loss import huber_loss, mae_loss, mse_loss
from cupy_lstm.schedule import Schedule
from cupy_lstm.training import Loss

LOSSES: dict[str, Loss] = {"mse": mse_loss, "mae": mae_loss, "huber": huber_loss}


class LSTMRegressor(RegressorMixin, LSTMEstimator):
    """An LSTM that reads a sequence, and a linear layer that says one number or several.

    Inputs and targets are standardised inside: each feature, over all valid steps that are learnt
    from, and each output to mean 0 and standard deviation 1. Losses are in these units, predictions
    in those of the targets.

    Parameters
    ----------
    hidden_size : int
        Units of each layer and direction.
    num_layers : int
        Layers on top of each other.
    direction : str
        ``"forward"``, or ``"bidirectional"``: read from the end, too.
    dropout : float
        Probability of dropping an element between layers and before the linear one, in training.
    bptt_steps : int or None
        In training, gradients go back through the last so many steps of each sequence, and memory
        is needed for these alone; None: through all. Not with both directions.
    loss : str or callable
        ``"mse"``, ``"mae"``, ``"huber"``, or a function as of `cupy_lstm.fit`.
    learning_rate : float or Schedule
        Of AdamW, or a schedule of `cupy_lstm.schedule`.
    weight_decay : float
        Of AdamW.
    clip_norm : float or None
        Largest norm of all gradients of a step together; None: any.
    batch_size : int
        Sequences of a step.
    epochs : int
        Most passes over the sequences.
    patience : int or None
        End after so many epochs without an improvement of the validation loss (of the training
        loss without validation), and keep the weights of the best epoch. None: never; the weights
        are those of the last one.
    validation_fraction : float
        Share of the samples, drawn at random, that the training is watched on and does not learn
        from, not even how to standardise, rounded down; 0: none. Samples of weight 0 are not drawn
        (on a GPU, where weights are not looked at, they may be). Windows that overlap are nearly
        the same samples: for these, give 0 and choose the number of epochs by a split in time.
    standardize : bool
        Whether inputs are standardised; False for features whose scales mean something.
    dtype : dtype-like
        What the network computes in: float32 or float64, on CuPy float16 or bfloat16, too.
    random_state : int, RandomState or None
        Of initial weights, order of the samples, validation part and dropout.
    callbacks : sequence of callable
        Given an `EpochRecord` after every epoch; False from one of them ends the training.
    progress : bool
        Whether to show a progress bar.

    Attributes
    ----------
    network_ : SequenceNetwork
        The trained model, on standardised values.
    history_ : History
        Losses of the epochs, and which was the best.
    n_features_in_ : int
        I, or k of X[N,k].
    n_outputs_ : int
        O.

    Examples
    --------
    >>> import numpy
    >>> from cupy_lstm.estimators import LSTMRegressor
    >>> X = numpy.random.default_rng(0).standard_normal((200, 8, 2))
    >>> y = X[:, :, 0].mean(axis=1)
    >>> LSTMRegressor(random_state=0).fit(X, y).score(X, y) > 0.9
    True
    """

    n_outputs_: int
    _target_shape: tuple[int, ...]  # of one sample, () or (O,)
    _target_dtype: str

    def __init__(
        self,
        hidden_size: int = 64,
        *,
        num_layers: int = 1,
        direction: str = "forward",
        dropout: float = 0.0,
        bptt_steps: int | None = None,
        loss: str | Loss = "mse",
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
        self.loss = loss

    def partial_fit(
        self, X: Any, y: Any, sample_weight: Any = None, sequence_length: Any = None
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

        Returns
        -------
        estimator
            Itself.

        Raises
        ------
        TypeError, ValueError, FloatingPointError
            As `fit`, or if X or y differ in form from those of the first call.
        """
        return self._go_on(X, y, sample_weight, sequence_length)

    def predict(self, X: Any, sequence_length: Any = None) -> Array:
        """Return the prediction for each sequence.

        Parameters
        ----------
        X, sequence_length
            As of `fit`, where the weights are.

        Returns
        -------
        array [N] or [N,O]
            As y was in the fit, in float32 if that was, else float64; of the module of X.

        Raises
        ------
        TypeError, ValueError
            If X does not fit.
        NotFittedError
            If nothing was learnt yet.
        """
        outputs = self._outputs(X, sequence_length)
        values = self._scalings["targets"].undo(outputs, self._target_dtype)
        return values.reshape(-1, *self._target_shape)

    def score(
        self, X: Any, y: Any, sample_weight: Any = None, sequence_length: Any = None
    ) -> float:
        """Return the coefficient of determination R^2 of the predictions, the mean over outputs.

        On CuPy two sums an output come to the host.

        Parameters
        ----------
        X, y, sample_weight, sequence_length
            As of `fit`.

        Returns
        -------
        float
            1 at best; 0 for the mean of y.
        """
        predicted = self.predict(X, sequence_length)
        if isinstance(predicted, numpy.ndarray):
            return float(r2_score(y, predicted, sample_weight=sample_weight))
        return r2_on_device(y, predicted, sample_weight)

    def _checked_targets(self, y: Any, sequences: Sequences) -> Array:
        values = sequences.values
        if y is None:
            raise ValueError(
                f"{type(self).__name__} requires y to be passed, but the target y is None"
            )
        y = adopted("y", y)
        if is_array(y) or not isinstance(values, numpy.ndarray):
            require_same_place("y", y, values, "the sequences")
        if isinstance(values, numpy.ndarray):
            y = check_array(y, dtype=FLOATS, ensure_2d=False, input_name="y")
        y = as_floats("y", y)
        if y.ndim not in (1, 2) or not y.size:
            raise ValueError(
                f"y has shape {list(y.shape)}, but must have shape [samples] or [samples, outputs]"
            )
        check_count("y", y, sequences)
        return y

    def _learn_targets(self, y: Array, weights: Array, **known: Any) -> int:
        rows = y.reshape(len(y), -1)
        self._scalings["targets"] = Scaling.of(rows, weights)
        self._target_shape = y.shape[1:]
        self._target_dtype = y.dtype.name
        self.n_outputs_ = rows.shape[1]
        return self.n_outputs_

    def _encoded_targets(self, y: Array, sequences: Sequences) -> Array:
        if y.shape[1:] != self._target_shape:
            raise ValueError(
                f"y has shape {list(y.shape)}, but must have shape "
                f"{[len(y), *self._target_shape]}, as in the first fit"
            )
        return self._scalings["targets"].apply(y.reshape(len(y), -1), self.network_.dtype)

    def _described_targets(self) -> dict[str, Any]:
        return {"shape": self._target_shape, "dtype": self._target_dtype}

    def _restore_targets(self, description: dict[str, Any]) -> None:
        self._target_shape = tuple(description["shape"])
        self._target_dtype = description["dtype"]
        self.n_outputs_ = len(self._scalings["targets"].mean)

    def _loss_function(self) -> Loss:
        if callable(self.loss):
            return self.loss
        return LOSSES[checked_choice("loss", self.loss, tuple(LOSSES))]

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags
