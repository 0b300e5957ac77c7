"""What the estimators share: from any sequences and targets to a trained network, and back."""

import copy
from math import inf
from typing import Any, Self

import numpy
from sklearn.utils.validation import check_is_fitted, validate_data

from cupy_lstm import training
from cupy_lstm.backend import Array, HostArray, array_module, require_same_place
from cupy_lstm.checks import checked_boolean, checked_number
from cupy_lstm.clip import ClipGradByGlobalNorm
from cupy_lstm.distributed.launcher import launched
from cupy_lstm.estimators.fitted import NetworkEstimator
from cupy_lstm.estimators.samples import Samples, checked_weights, split_rows
from cupy_lstm.estimators.scaling import Scaling
from cupy_lstm.estimators.seeds import agreed_seeds
from cupy_lstm.estimators.sequences import Sequences, as_sequences
from cupy_lstm.history import EpochRecord, History
from cupy_lstm.modes import no_grad
from cupy_lstm.optimizer import AdamW

BLOCK = 1024
"""Sequences predicted at once, which bounds the memory of a prediction."""


class LSTMEstimator(NetworkEstimator):
    """The base of the estimators; a subclass says what targets mean.

    What a fit learns beside the network, as scalings and balanced weights, it learns from the
    samples that the network learns from: the validation part decides on nothing but the epoch.

    A subclass fills in `_checked_targets`, `_learn_targets`, `_encoded_targets`, `_loss_function`,
    `_described_targets` and `_restore_targets`, and if need be `_strata` and `_sample_weights`.
    """

    # --- what a subclass says -------------------------------------------------------------------

    def _checked_targets(self, y: Any, sequences: Sequences) -> Array:
        """Return the targets as an array [N, ...], or raise."""
        raise NotImplementedError

    def _learn_targets(self, y: Array, weights: Array, **known: Any) -> int:
        """Learn what targets there are, from checked ones and what is known of them beforehand.

        Return how many outputs they need.
        """
        raise NotImplementedError

    def _encoded_targets(self, y: Array, sequences: Sequences) -> Array:
        """Return checked targets as the loss takes them, where the sequences are."""
        raise NotImplementedError

    def _loss_function(self) -> training.Loss:
        """Return the loss."""
        raise NotImplementedError

    def _strata(self, y: Array) -> HostArray | None:
        """Return the group of each sample that a validation part shall have its share of."""
        return None

    def _sample_weights(
        self,
        y: Array,
        sample_weight: Any,
        sequences: Sequences,
        learnt_from: HostArray | None = None,
    ) -> Array | None:
        """Return the weight of each sample, float64, where the sequences are; None: all 1.

        What depends on how many samples there are counts those numbered `learnt_from`; None: all.
        """
        return None if sample_weight is None else checked_weights(sample_weight, sequences)

    # --- fitting --------------------------------------------------------------------------------

    def fit(self, X: Any, y: Any, sample_weight: Any = None, sequence_length: Any = None) -> Self:
        """Learn from sequences and their targets, anew.

        Parameters
        ----------
        X : array [N,T,I] or [N,k], or list of N arrays [T_n,I] or [T_n]
            Sequences; [N,k] are k steps of one value. Arrays of NumPy train on the CPU, those of
            CuPy on their GPU.
        y : array-like [N] or [N,O]
            The target of each sequence.
        sample_weight : array-like [N] or float, optional
            Weight of each sample: 2 counts as two of it, and 0 as none.
        sequence_length : array-like of int [N], optional
            Valid steps of each row of an array X; what lies beyond is never used.

        Returns
        -------
        estimator
            Itself; unchanged if anything was wrong.

        Raises
        ------
        TypeError, ValueError
            If a parameter, X or y does not fit.
        FloatingPointError
            If the loss becomes infinite or not a number: the learning rate is too large, or, on
            a GPU, where values are not looked at, X or y holds such a value, or there is no weight
            above zero.
        """
        fraction = checked_number("validation_fraction", self.validation_fraction, high=1)
        fresh = copy.copy(self)
        sequences = as_sequences(X, sequence_length)
        seeds = agreed_seeds(self.random_state, 3, array_module(sequences.values))
        y = fresh._checked_targets(y, sequences)
        weights = fresh._sample_weights(y, sample_weight, sequences)
        counting = weights > 0 if isinstance(weights, numpy.ndarray) else None
        rows, others = split_rows(len(sequences), fraction, seeds[2], fresh._strata(y), counting)
        if not len(others):
            parts = [(sequences, y, weights)]
        else:
            weights = fresh._sample_weights(y, sample_weight, sequences, rows)
            parts = [_taken(part, sequences, y, weights) for part in (rows, others)]
        samples = fresh._begin(X, *parts[0], seeds[0], seeds[1]).normalised()
        validation = fresh._samples(*parts[1]).normalised() if len(others) else None
        del parts  # copies, which need not be there through the training
        fresh.history_ = fresh._train(
            samples, validation, epochs=self.epochs, patience=self.patience
        )
        self.__dict__ = fresh.__dict__
        return self

    def _go_on(
        self, X: Any, y: Any, sample_weight: Any, sequence_length: Any, **known: Any
    ) -> Self:
        """Learn from more samples in one pass; begin if nothing was learnt yet."""
        fresh = copy.copy(self)
        sequences = as_sequences(X, sequence_length)
        if hasattr(self, "network_"):
            self._check_form(X, sequences)
            y = fresh._checked_targets(y, sequences)
            weights = fresh._sample_weights(y, sample_weight, sequences)
            trained = copy.deepcopy((self.network_, self._optimizer))  # which share parameters
            fresh.network_, fresh._optimizer = trained
            samples = fresh._samples(sequences, y, weights)
            if fresh._optimizer is None:
                fresh._optimizer = fresh._new_optimizer()
        else:
            seeds = agreed_seeds(self.random_state, 2, array_module(sequences.values))
            y = fresh._checked_targets(y, sequences)
            weights = fresh._sample_weights(y, sample_weight, sequences)
            samples = fresh._begin(X, sequences, y, weights, *seeds, **known)
            fresh.history_ = History()
        fresh.history_ = history = copy.deepcopy(fresh.history_)
        epoch = len(history.loss)
        more = fresh._train(samples, None, epochs=1, patience=None, first_epoch=epoch)
        loss, rate = more.loss[0], more.learning_rate[0]
        is_best = loss < min(history.loss, default=inf)
        history.add(EpochRecord(epoch, loss, None, rate, is_best))
        self.__dict__ = fresh.__dict__
        return self

    def _begin(
        self,
        X: Any,
        sequences: Sequences,
        y: Array,
        weights: Array | None,
        network_seed: int,
        order_seed: int,
        **known: Any,
    ) -> Samples:
        """Learn what inputs and targets look like, make a network, and return the samples.

        X is what the estimator was given, for the names of its columns.
        """
        xp, features = array_module(sequences.values), sequences.values.shape[-1]
        shares = xp.ones(len(sequences)) if weights is None else weights
        if isinstance(shares, numpy.ndarray) and not shares.any():
            raise ValueError(
                "every sample has weight zero, by sample_weight or class_weight: there is nothing "
                "to learn from"
            )
        self._scalings = {"inputs": Scaling.none(features, xp)}
        if checked_boolean("standardize", self.standardize):
            steps = shares[:, None] * sequences.valid()
            if isinstance(steps, numpy.ndarray) and not steps.any():
                raise ValueError(
                    "sequence_length leaves no valid step of a sample that is learnt from: there "
                    "is nothing to standardise by; give longer sequences, or standardize=False"
                )
            self._scalings["inputs"] = Scaling.of(sequences.values, steps)
        outputs = self._learn_targets(y, shares, **known)
        self.network_ = self._new_network(features, outputs, xp, network_seed)
        self._optimizer = self._new_optimizer()
        self._order_seed = order_seed
        self._columns = sequences.columns
        if sequences.columns is None:
            self.n_features_in_ = features
            self.__dict__.pop("feature_names_in_", None)
        else:
            validate_data(self, X, skip_check_array=True)
        return self._samples(sequences, y, weights)

    def _samples(self, sequences: Sequences, y: Array, weights: Array | None) -> Samples:
        dtype = self.network_.dtype
        return Samples(
            self._scalings["inputs"].apply(sequences.values, dtype),
            sequences.lengths,
            self._encoded_targets(y, sequences),
            weights,
        )

    def _new_optimizer(self) -> AdamW:
        return AdamW(
            self.learning_rate,
            self.network_.parameters(),
            weight_decay=self.weight_decay,
            grad_clip=None if self.clip_norm is None else ClipGradByGlobalNorm(self.clip_norm),
        )

    def _train(
        self,
        samples: Samples,
        validation: Samples | None,
        *,
        epochs: int,
        patience: int | None,
        first_epoch: int = 0,
    ) -> History:
        """Train the network: every training of an estimator goes through here."""
        assert self._optimizer is not None
        batches = samples.batches(self.batch_size, shuffle=True, seed=self._order_seed)
        batches.epoch = first_epoch
        return training.fit(
            self.network_,
            self._loss_function(),
            self._optimizer,
            batches,
            None if validation is None else validation.batches(BLOCK),
            epochs=epochs,
            patience=patience,
            callbacks=self.callbacks,
            progress=self.progress,
            communicator=launched(self.network_.xp),
        )

    # --- what was learnt ------------------------------------------------------------------------

    def _outputs(self, X: Any, sequence_length: Any) -> Array:
        """Return the outputs of the network, [N,O] in its dtype, where X is."""
        check_is_fitted(self, "network_")
        sequences = as_sequences(X, sequence_length)
        self._check_form(X, sequences)
        network, scaling, blocks = self.network_, self._scalings["inputs"], []
        with no_grad():
            for start in range(0, len(sequences), BLOCK):
                rows = sequences.rows(start, start + BLOCK)
                blocks.append(network(scaling.apply(rows.values, network.dtype), rows.lengths))
        return array_module(*blocks).concatenate(blocks)

    def _check_form(self, X: Any, sequences: Sequences) -> None:
        """Raise unless sequences are of the form of those of the fit, and where the weights are."""
        if (sequences.columns is None) != (self._columns is None):
            forms = ("X[samples, steps, features]", "X[samples, steps]")
            fitted, found = forms[self._columns is not None], forms[sequences.columns is not None]
            raise ValueError(f"the estimator was fitted on {fitted}, but received {found}")
        if sequences.columns is not None:
            validate_data(self, X, skip_check_array=True, reset=False)
        elif sequences.values.shape[-1] != self.n_features_in_:
            raise ValueError(
                f"X has {sequences.values.shape[-1]} features, but {type(self).__name__} is "
                f"expecting {self.n_features_in_} features as input"
            )
        weight = self.network_.head.weight.row
        require_same_place("X", sequences.values, weight, "the weights")


def _taken(
    rows: HostArray, sequences: Sequences, y: Array, weights: Array | None
) -> tuple[Sequences, Array, Array | None]:
    """Return copies of some of the samples: sequences, targets and weights."""
    taken, there = sequences.take(rows), array_module(sequences.values).asarray(rows)
    y = y[rows if isinstance(y, numpy.ndarray) else there]
    return taken, y, None if weights is None else weights[there]
