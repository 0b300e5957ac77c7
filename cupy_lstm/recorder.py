"""What a layer remembers between its forward and its backward."""

import threading
from contextlib import AbstractContextManager
from types import ModuleType
from typing import Any

import numpy

from cupy_lstm.layer import Layer


class Recorder:
    """The tape of the last call, one for each thread, and a lock for the gradients.

    Threads that share a layer do not see each other's tapes; their backward passes take turns,
    since they add to the same gradients. Copies and pickles of a layer carry no tape.
    """

    def __init__(self) -> None:
        self._kept = threading.local()
        self._lock = threading.Lock()

    def keep(self, tape: Any, versions: object) -> None:
        """Remember a call, or forget the last one if `tape` is None.

        Parameters
        ----------
        tape : object
            Whatever `current` shall return.
        versions : object
            The versions of the call's weights; anything that compares.
        """
        self._kept.tape = tape
        self._kept.versions = versions

    def current(self, versions: object) -> Any:
        """Return the tape of this thread's last call.

        Parameters
        ----------
        versions : object
            The versions of the weights now.

        Raises
        ------
        RuntimeError
            If there is no tape, or the versions are not those of the call.
        """
        tape = getattr(self._kept, "tape", None)
        if tape is None:
            raise RuntimeError(
                "there is no call to go back through: backward needs a call made outside "
                "no_grad(), in this thread, that no backward, clear_tape() or later call has ended"
            )
        if self._kept.versions != versions:
            raise RuntimeError(
                "the weights have changed since the call that backward would go back through: "
                "call the layer again first"
            )
        return tape

    def clear(self) -> None:
        """Forget this thread's last call."""
        self._kept.tape = None

    def exclusive(self) -> AbstractContextManager[bool]:
        """Return a lock to hold while gradients are added to."""
        return self._lock

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        Recorder.__init__(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Recorder":
        return Recorder()


class RecordedLayer(Layer):
    """A layer with a backward pass of its own: it remembers its calls."""

    def __init__(self, dtype: Any, xp: str | ModuleType) -> None:
        super().__init__(dtype, xp)
        self._recorder = Recorder()

    def clear_tape(self) -> None:
        """Free what the last call of this thread remembered for `backward`."""
        self._recorder.clear()

    def _set_place(self, name: str, dtype: "numpy.dtype[Any]") -> None:
        super()._set_place(name, dtype)
        self._recorder.clear()
