"""Switches of the calling context: whether calls are recorded, and which engine they must use.

Both are context variables, so a thread or an asyncio task that sets one does not disturb the
others.
"""

from contextlib import ContextDecorator
from contextvars import ContextVar, Token
from typing import Generic, Self, TypeVar

from cupy_lstm.plan import ENGINES

Value = TypeVar("Value")

_recording: ContextVar[bool] = ContextVar("cupy_lstm_recording", default=True)
_engine: ContextVar[str] = ContextVar("cupy_lstm_engine", default="auto")


class _Setting(ContextDecorator, Generic[Value]):
    """Set a context variable on entry and restore it on exit; nests and can be used again."""

    def __init__(self, variable: ContextVar[Value], value: Value) -> None:
        self._variable = variable
        self._value = value
        self._tokens: list[Token[Value]] = []

    def __enter__(self) -> Self:
        self._tokens.append(self._variable.set(self._value))
        return self

    def __exit__(self, *exception: object) -> None:
        self._variable.reset(self._tokens.pop())

    def _recreate_cm(self) -> Self:
        # A decorated function may run in several threads at once: each call gets its own tokens.
        fresh = type(self).__new__(type(self))
        _Setting.__init__(fresh, self._variable, self._value)
        return fresh


class no_grad(_Setting[bool]):  # noqa: N801 - the field's name for it, used like a keyword
    """Keep nothing for a backward pass: inference without a tape.

    Usable as a context manager and as a decorator, nestable, and local to the current thread
    or asyncio task.

    Examples
    --------
    >>> from cupy_lstm import LSTM, no_grad
    >>> import numpy
    >>> lstm = LSTM(3, 4)
    >>> with no_grad():
    ...     y, _ = lstm(numpy.zeros((1, 2, 3), "float32"))
    """

    def __init__(self) -> None:
        super().__init__(_recording, False)


class engine(_Setting[str]):  # noqa: N801 - used like a keyword, as no_grad is
    """Force the engine that runs each layer's sweep over time.

    An engine that cannot serve a call raises a ValueError with the reason, instead of another
    engine stepping in. Local to the current thread or asyncio task.

    Parameters
    ----------
    name : str
        ``"auto"`` (the plan's choice) or one of `cupy_lstm.plan.ENGINES`.

    Raises
    ------
    ValueError
        If there is no such engine.
    """

    def __init__(self, name: str) -> None:
        if name not in ("auto", *ENGINES):
            raise ValueError(f"engine must be one of {('auto', *ENGINES)}, received {name!r}")
        super().__init__(_engine, name)


def is_recording() -> bool:
    """Say whether calls made here keep what a backward pass needs."""
    return _recording.get()


def forced_engine() -> str:
    """Return the name given to `engine`, or ``"auto"``."""
    return _engine.get()
