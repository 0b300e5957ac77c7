"""What a training learns from: inputs, targets and weights of samples, all in one place."""

from dataclasses import dataclass, replace
from typing import Any

import numpy

from cupy_lstm.backend import Array, HostArray, array_module, is_array, require_same_place
from cupy_lstm.estimators.sequences import Sequences
from cupy_lstm.interchange import adopted
from cupy_lstm.windows import Batches


@dataclass(frozen=True)
class Samples:
    """Samples as the network and the loss take them.

    Attributes
    ----------
    inputs : array [N,T,I]
        Standardised, in the dtype of the network.
    lengths : int64 array [N] or None
        Valid steps.
    targets : array [N] or [N,O]
        As the loss takes them.
    weights : float64 array [N] or None
        Factor of the loss of each sample; None: 1.
    """

    inputs: Array
    lengths: Array | None
    targets: Array
    weights: Array | None

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.inputs)

    def normalised(self) -> "Samples":
        """Return them with weights of mean 1, so that only their ratios count."""
        if self.weights is None:
            return self
        return replace(self, weights=self.weights * (len(self) / self.weights.sum()))

    def batches(self, batch_size: int, *, shuffle: bool = False, seed: int = 0) -> Batches:
        """Return them in batches for `cupy_lstm.training.fit`."""
        inputs = (self.inputs,) if self.lengths is None else (self.inputs, self.lengths)
        return Batches(
            inputs, self.targets, batch_size, shuffle=shuffle, seed=seed, weights=self.weights
        )


def split_rows(
    count: int,
    fraction: float,
    seed: int,
    strata: HostArray | None = None,
    counting: HostArray | None = None,
) -> tuple[HostArray, HostArray]:
    """Return the numbers of the samples to learn from, and of those to validate on.

    Parameters
    ----------
    count : int
        Number of samples.
    fraction : float
        Share of the second part of the samples that count, rounded down to whole ones.
    seed : int
        Seed of the choice.
    strata : array [count] of int, optional
        Group of each sample: every group is shared out by the same fraction, as far as that goes,
        and at least one of its samples is to learn from.
    counting : bool array [count], optional
        Which samples have a weight; the others are all in the first part. None: all have.
    """
    order = numpy.random.default_rng(seed).permutation(count)
    if counting is not None:
        order = order[counting[order]]
    wanted = int(fraction * len(order))
    if strata is not None:
        order = order[numpy.argsort(strata[order], kind="stable")]
        first_of_group = numpy.unique(strata[order], return_index=True)[1]
        order = numpy.delete(order, first_of_group)
        wanted = min(wanted, len(order))
    chosen = ((numpy.arange(wanted) + 0.5) * len(order) / max(wanted, 1)).astype(int)
    is_chosen = numpy.zeros(count, bool)
    is_chosen[order[chosen]] = True
    return numpy.flatnonzero(~is_chosen), numpy.flatnonzero(is_chosen)


def checked_weights(sample_weight: Any, sequences: Sequences) -> Array:
    """Return weights of samples, or one for all, as a float64 array [N] where the sequences are.

    Raises
    ------
    TypeError
        If they are no numbers, or not where the sequences are.
    ValueError
        If they are not one for each sequence; on the host, if one is negative or infinite or not
        a number, or all are zero.
    """
    values, count = sequences.values, len(sequences)
    weights: Any = adopted("sample_weight", sample_weight, values, "the sequences")
    if not is_array(weights):
        weights = numpy.asarray(weights)
    if isinstance(values, numpy.ndarray) or not isinstance(weights, numpy.ndarray):
        require_same_place("sample_weight", weights, values, "the sequences")
    if weights.dtype.kind not in "biuf":
        raise TypeError(f"sample_weight must hold numbers, received dtype {weights.dtype}")
    if not weights.ndim:
        weights = array_module(weights).full(count, weights)
    if weights.shape != (count,):
        raise ValueError(
            f"sample_weight has shape {list(weights.shape)}, but must have shape [{count}], one "
            "weight for each sample. Sample weights must be 1D array or scalar"
        )
    if isinstance(weights, numpy.ndarray) and not (
        numpy.isfinite(weights).all() and (weights >= 0).all() and weights.any()
    ):
        raise ValueError(
            "sample_weight must hold finite weights that are not negative, and not all zero"
        )
    return array_module(values).asarray(weights, dtype="float64")


def check_count(argument: str, array: Array, sequences: Sequences) -> None:
    """Raise a ValueError unless there is one row of `array` for each sequence."""
    if len(array) != len(sequences):
        raise ValueError(f"{argument} has {len(array)} samples, but X has {len(sequences)}")
