"""Checkpoints: files that a training goes on from after whatever has ended it."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from os import PathLike
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeAlias

from cupy_lstm.checks import checked_integer
from cupy_lstm.description import description, difference
from cupy_lstm.distributed.agreement import on_first
from cupy_lstm.layer import Layer
from cupy_lstm.replicas import replicate, require_alike
from cupy_lstm.training_state import TrainingState

if TYPE_CHECKING:
    from cupy_lstm.io.checkpoint_folder import CheckpointFolder


class Checkpoints:
    """Where and how often a training writes down how far it has come.

    A checkpoint holds weights, the state of the optimiser, keys of the dropout masks, the place in
    the data, history, and best weights so far; not what callbacks remember. It is a safetensors
    file with a checksum in its name, written whole or not at all. On CuPy arrays are copied to the
    host where one is written, and only there.

    Parameters
    ----------
    folder : str or path
        A folder for this training alone; made if it is not there.
    every : int, optional
        Batches from one checkpoint to the next, counted from the beginning of the training, so
        that one may fall into the middle of an epoch; default: one after every epoch. In any case
        there is one at the end.
    keep : int
        How many are kept, the newest ones; damaged ones do not count.

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong type or an impossible value.
    """

    def __init__(
        self, folder: str | PathLike[str], *, every: int | None = None, keep: int = 3
    ) -> None:
        if not isinstance(folder, str | PathLike):
            raise TypeError(f"folder must be a path, received {folder!r}")
        self.folder = Path(folder)
        self.every = None if every is None else checked_integer("every", every)
        self.keep = checked_integer("keep", keep)

    def __repr__(self) -> str:
        return f"Checkpoints({str(self.folder)!r}, every={self.every}, keep={self.keep})"


CheckpointsLike: TypeAlias = Checkpoints | str | PathLike[str]
"""`Checkpoints`, or a folder alone."""


def checked_checkpoints(argument: str, value: object) -> Checkpoints | None:
    """Return `value` as Checkpoints; None stays None.

    Raises
    ------
    TypeError
        If it is something else than Checkpoints or a path.
    """
    if value is None or isinstance(value, Checkpoints):
        return value
    if isinstance(value, str | PathLike):
        return Checkpoints(value)
    raise TypeError(f"{argument} must be Checkpoints or a folder, received {value!r}")


class Saver:
    """Writes the checkpoints of a training when they are due; without a folder, none.

    Parameters
    ----------
    state : TrainingState
        What to write.
    folder : CheckpointFolder, optional
        Where to.
    every : int, optional
        Batches between two of them; default: those of an epoch.
    made_of : mapping, optional
        Description of the training.
    """

    def __init__(
        self,
        state: TrainingState,
        folder: "CheckpointFolder | None" = None,
        every: int | None = None,
        made_of: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        self._state = state
        self._folder = folder
        self._every = every
        self._made_of = dict(made_of)
        self._written: tuple[int, int] | None = None

    def resume(self, epochs: int) -> None:
        """Go on from the newest checkpoint, if there is one.

        Raises
        ------
        ValueError
            If it is of another training, further than `epochs`, or holds states of one process
            where there are several. Nothing is changed then.
        """
        if self._folder is None or (newest := self._folder.newest()) is None:
            return
        tensors, facts = self._folder.read(newest)
        instead = "take another folder, or remove this one to begin anew"
        other = difference(facts["made_of"], self._made_of)
        if other is not None:
            raise ValueError(f"{newest.path} is of another training: {other}; {instead}")
        if facts["position"]["epoch"] > epochs:
            raise ValueError(
                f"epochs is {epochs}, but {newest.path} is further than that already; {instead}"
            )
        if facts["position"]["batch"] and _has_states_of_many(self._state):
            raise ValueError(
                f"{newest.path} is within an epoch of one process, whose states (StatefulLSTM) "
                f"several cannot go on from: go on with one, or {instead}"
            )
        try:
            self._state.restore(tensors, facts)
        except ValueError as error:
            raise ValueError(f"{newest.path} is of another training: {error}; {instead}") from None
        self._written = self._place()
        self._folder.remove_before(newest)  # it may have been killed before it did so

    def after_step(self) -> None:
        """Write a checkpoint if one is due after a batch."""
        if self._every is not None and self._state.position.steps % self._every == 0:
            self._write()

    def after_epoch(self) -> None:
        """Write a checkpoint if one is due after an epoch."""
        if self._every is None:
            self._write()

    def finish(self) -> None:
        """Write the last one, if it is not there yet."""
        self._write()

    def _write(self) -> None:
        if self._folder is None:
            return
        if self._state.position.batch:
            self._state.loss.gather()
        on_first(self._state.communicator, partial(self._write_into, self._folder))

    def _write_into(self, folder: "CheckpointFolder") -> None:
        if self._written == self._place():
            return
        tensors, facts = self._state.capture()
        facts["made_of"] = self._made_of
        folder.write(*self._place(), tensors, facts)
        self._written = self._place()

    def _place(self) -> tuple[int, int]:
        return self._state.position.epoch, self._state.position.batch


@contextmanager
def opened(
    checkpoints: Checkpoints | None, state: TrainingState, loss: object, epochs: int
) -> Iterator[Saver]:
    """Go on from the newest checkpoint, and yield what writes the next ones.

    The folder is locked until the training ends. Without checkpoints nothing is read or written.
    Of several processes rank 0 alone reads and writes, and all go on from its state.

    Raises
    ------
    TypeError
        If the model is no layer.
    ImportError
        If safetensors is not installed.
    RuntimeError
        If another training uses the folder.
    OSError
        If the folder cannot be made or written into.
    ValueError
        If the newest checkpoint is of another training, or `every` is given where each of several
        processes carries states of its own. Nothing is changed then.
    """
    options = {
        "checkpoints": "none" if checkpoints is None else "some",
        "checkpoints.every": None if checkpoints is None else checkpoints.every,
    }
    # Before anything is read: a state that rank 0 goes on from is no difference.
    require_alike(state, loss, options)
    if checkpoints is None:
        replicate(state)
        yield Saver(state)
        return
    if not isinstance(state.model, Layer):
        kind = type(state.model).__name__
        raise TypeError(f"model must be a Layer to be written into checkpoints, received {kind}")
    if checkpoints.every is not None and _has_states_of_many(state):
        raise ValueError(
            "a checkpoint within an epoch cannot hold the states that every process carries for "
            "its own rows (StatefulLSTM): leave out every= of Checkpoints, for one after each epoch"
        )
    # The package io is loaded for those who want it.
    from cupy_lstm.io.checkpoint_folder import CheckpointFolder

    folder = CheckpointFolder(checkpoints.folder, checkpoints.keep)
    saver = Saver(state, folder, checkpoints.every, description(state, loss))
    with ExitStack() as stack:

        def begin() -> None:
            stack.enter_context(folder.opened())
            saver.resume(epochs)

        on_first(state.communicator, begin)
        replicate(state)
        yield saver


def _has_states_of_many(state: TrainingState) -> bool:
    """Say whether each of several processes carries states of its own rows."""
    return state.communicator.size > 1 and state.carries_states
