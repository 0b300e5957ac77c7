"""What an estimator is made of and has learnt, as an object: moved, saved, loaded."""

from collections.abc import Iterable
from dataclasses import asdict
from os import PathLike
from types import ModuleType
from typing import Any, Self

import numpy
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from cupy_lstm.backend import HostArray, import_module, module_name
from cupy_lstm.estimators.network import SequenceNetwork
from cupy_lstm.estimators.picture import HistoryPlot
from cupy_lstm.estimators.scaling import Scaling
from cupy_lstm.estimators.storage import (
    parameters_as_json,
    parameters_from_json,
    read_estimator,
    write_estimator,
)
from cupy_lstm.history import Callback, History
from cupy_lstm.optimizer import AdamW
from cupy_lstm.schedule import Schedule


class NetworkEstimator(HistoryPlot, BaseEstimator):
    """The parameters of an estimator, and the network it has learnt.

    A subclass says what is known of its targets, by `_described_targets` and `_restore_targets`.
    Its constructor lists its parameters, where scikit-learn reads them, and passes those of this
    class on.

    Attributes
    ----------
    network_ : SequenceNetwork
        The trained model, in evaluation mode.
    history_ : History
        How the training went.
    n_features_in_ : int
        I, or k of X[N,k].
    """

    network_: SequenceNetwork
    n_features_in_: int
    _columns: int | None  # as of `Sequences`
    _scalings: dict[str, Scaling]  # of "inputs" and, in a regression, of "targets"
    _optimizer: AdamW | None  # None: of a model that was loaded or moved
    _order_seed: int

    def __init__(
        self,
        *,
        hidden_size: int,
        num_layers: int,
        direction: str,
        dropout: float,
        bptt_steps: int | None,
        learning_rate: float | Schedule,
        weight_decay: float,
        clip_norm: float | None,
        batch_size: int,
        epochs: int,
        patience: int | None,
        validation_fraction: float,
        standardize: bool,
        dtype: Any,
        random_state: Any,
        callbacks: Iterable[Callback],
        progress: bool,
    ) -> None:
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.direction = direction
        self.dropout = dropout
        self.bptt_steps = bptt_steps
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.clip_norm = clip_norm
        self.batch_size = batch_size
        self.epochs = epochs
        self.patience = patience
        self.validation_fraction = validation_fraction
        self.standardize = standardize
        self.dtype = dtype
        self.random_state = random_state
        self.callbacks = callbacks
        self.progress = progress

    def _described_targets(self) -> dict[str, Any]:
        """Return as JSON what is known of the targets beside their scaling."""
        raise NotImplementedError

    def _restore_targets(self, description: dict[str, Any]) -> None:
        """Take over what `_described_targets` returned."""
        raise NotImplementedError

    def _new_network(
        self, features: int, outputs: int, xp: str | ModuleType, seed: int
    ) -> SequenceNetwork:
        return SequenceNetwork(
            features,
            outputs,
            hidden_size=self.hidden_size,
            num_layers=self.num_layers,
            direction=self.direction,
            dropout=self.dropout,
            bptt_steps=self.bptt_steps,
            dtype=self.dtype,
            xp=xp,
            seed=seed,
        ).eval()

    def to(self, xp: str | ModuleType) -> Self:
        """Move what was learnt, in place; what the optimiser knew for `partial_fit` is lost.

        Parameters
        ----------
        xp : module or str
            ``numpy`` or ``cupy``: where X is from now on.

        Returns
        -------
        estimator
            Itself.

        Raises
        ------
        ImportError, RuntimeError
            If CuPy is asked for and cannot be imported, or finds no GPU.
        NotFittedError
            If nothing was learnt yet.
        """
        check_is_fitted(self, "network_")
        module = import_module(module_name(xp))
        self.network_.to(xp)
        self._scalings = {name: scaling.to(module) for name, scaling in self._scalings.items()}
        self._optimizer = None
        return self

    def save(self, path: str | PathLike[str]) -> None:
        """Write what was learnt into a safetensors file, complete or not at all.

        All parameters are kept but callbacks, and a `random_state` that is a generator; those of
        the network are the ones that it was built with, whatever was set since. What the optimiser
        knows is not kept. Waits for the GPU where the weights are there.

        Parameters
        ----------
        path : str or path
            The file; one that is there is replaced.

        Raises
        ------
        ImportError
            If safetensors is not installed.
        OSError
            If the file cannot be written; what was there stays then.
        ValueError
            If a parameter is a function, other than a schedule of `cupy_lstm.schedule`, or labels
            are neither numbers nor strings.
        NotFittedError
            If nothing was learnt yet.
        """
        check_is_fitted(self, "network_")
        tensors = {f"network.{name}": w for name, w in self.network_.state_dict().items()}
        for name, scaling in self._scalings.items():
            tensors |= {f"{name}.mean": scaling.mean, f"{name}.scale": scaling.scale}
        description = {
            "class": type(self).__name__,
            "parameters": parameters_as_json(self.get_params(deep=False) | self.network_.options()),
            "n_features_in": self.n_features_in_,
            "feature_names_in": list(getattr(self, "feature_names_in_", [])),
            "columns": self._columns,
            "order_seed": self._order_seed,
            "history": asdict(self.history_),
            "targets": self._described_targets(),
        }
        write_estimator(path, tensors, description)

    @classmethod
    def load(cls, path: str | PathLike[str], *, xp: str | ModuleType = "numpy") -> Self:
        """Return the estimator that `save` has written.

        Parameters
        ----------
        path : str or path
            The file.
        xp : module or str
            ``numpy`` or ``cupy``: where the weights go, and X will be.

        Raises
        ------
        ImportError
            If safetensors is not installed, or CuPy where it is asked for.
        OSError
            If the file cannot be read.
        ValueError
            If it is no such file, is damaged, or holds an estimator of another class.
        """
        tensors, description = read_estimator(path, cls.__name__)
        module = import_module(module_name(xp))
        try:
            loaded = cls(**parameters_from_json(description["parameters"]))
            loaded._restore(tensors, description, module)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is damaged: {error!r}") from None
        return loaded

    def _restore(
        self, tensors: dict[str, HostArray], description: dict[str, Any], xp: ModuleType
    ) -> None:
        weights = {
            name.removeprefix("network."): weight
            for name, weight in tensors.items()
            if name.startswith("network.")
        }
        hidden_size = self.hidden_size
        # Before anything is allocated whose size only the description vouches for.
        if weights["lstm.weight_hh_l0"].shape != (4 * hidden_size, hidden_size):
            raise ValueError("its weights do not have the size that its parameters say")
        if f"lstm.weight_hh_l{self.num_layers - 1}" not in weights:
            raise ValueError("it lacks layers that its parameters say there are")
        self._scalings = {
            name: Scaling(xp.asarray(tensors[f"{name}.mean"]), xp.asarray(tensors[f"{name}.scale"]))
            for name in ("inputs", "targets")
            if f"{name}.mean" in tensors
        }
        features, outputs = len(tensors["inputs.mean"]), weights["head.weight"].shape[1]
        self.network_ = self._new_network(features, outputs, xp, seed=0)
        missing, unexpected = self.network_.set_state_dict(weights)
        if missing:
            raise ValueError(f"it lacks {', '.join(missing)}")
        if unexpected:
            raise ValueError(f"it holds {', '.join(unexpected)}, which its parameters do not say")
        self._optimizer = None
        self._columns, self._order_seed = description["columns"], description["order_seed"]
        self.n_features_in_ = description["n_features_in"]
        if description["feature_names_in"]:
            self.feature_names_in_ = numpy.array(description["feature_names_in"], object)
        self.history_ = History(**description["history"])
        self._restore_targets(description["targets"])
