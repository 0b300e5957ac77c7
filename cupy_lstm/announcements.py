"""Who is told, in the middle of a backward pass, that gradients are complete.

The watcher is a context variable, as the switches of `cupy_lstm.modes` are: other threads and
tasks are not disturbed.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeAlias

Watcher: TypeAlias = Callable[[Sequence[Any]], None]
"""Called with the `Parameter` objects that a layer has added gradients to."""

_watcher: ContextVar[Watcher | None] = ContextVar("cupy_lstm_watcher", default=None)


@contextmanager
def watching_gradients(watcher: Watcher) -> Iterator[None]:
    """Have `watcher` called whenever the gradients of a layer are complete, the last layer first.

    A parameter that is added to several times in a backward pass is announced each time.
    """
    token = _watcher.set(watcher)
    try:
        yield
    finally:
        _watcher.reset(token)


def announce_gradients(parameters: Sequence[Any]) -> None:
    """Tell the watcher, if there is one, that a layer has added to these gradients."""
    watcher = _watcher.get()
    if watcher is not None:
        watcher(parameters)
