"""Switches of the calling context: whether calls are recorded, by which engine, on which rows.

All are context variables, so a thread or an asyncio task that sets one does not disturb the
others.
"""

import inspect
from collections.abc import Callable
from contextlib import ContextDecorator
from contextvars import ContextVar
from typing import Generic, Self, TypeVar

from cupy_lstm.checks import checked_integer
from cupy_lstm.plan import checked_engine

Value = TypeVar("Value")
Function = TypeVar("Function", bound=Callable[..., object])

_recording: ContextVar[tuple[bool, ...]] = ContextVar("cupy_lstm_recording", default=(True,))
_engine: ContextVar[tuple[str, ...]] = ContextVar("cupy_lstm_engine", default=("auto",))
_first_row: ContextVar[tuple[int, ...]] = ContextVar("cupy_lstm_first_row", default=(0,))


class _Setting(ContextDecorator, Generic[Value]):
    """Put a value on top of a context variable's stack on entry, and take it off on exit.

    The stack is in the context and not in the object: one object may serve several threads and
    tasks at once.
    """

    def __init__(self, stack: ContextVar[tuple[Value, ...]], value: Value) -> None:
        self._stack = stack
        self._value = value

    def __enter__(self) -> Self:
        self._stack.set((*self._stack.get(), self._value))
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.set(self._stack.get()[:-1])

    def __call__(self, function: Function) -> Function:
        """Return `function` with the switch set while it runs."""
        for kind, is_kind in (
            ("coroutine", inspect.iscoroutinefunction),
            ("generator", inspect.isgeneratorfunction),
            ("generator", inspect.isasyncgenfunction),
        ):
            if is_kind(function):
                raise TypeError(
                    f"{type(self).__name__}(...) cannot decorate the {kind} function "
                    f"{function.__name__!r}, whose body runs after the call returns: "
                    f"write 'with {type(self).__name__}(...):' inside it"
                )
        return super().__call__(function)


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
    TypeError, ValueError
        If there is no such engine.
    """

    def __init__(self, name: str) -> None:
        super().__init__(_engine, checked_engine("engine", name))


class rows_from(_Setting[int]):  # noqa: N801 - used like a keyword
    """Say which row of a whole batch the first row of a call is, where a batch is divided.

    Dropout is drawn by the row of the whole batch, so that dividing changes nothing. Local to the
    current thread or asyncio task.

    Parameters
    ----------
    first_row : int
        Row of the whole batch, from 0.

    Raises
    ------
    TypeError, ValueError
        If it is no integer, or negative.
    """

    def __init__(self, first_row: int) -> None:
        super().__init__(_first_row, checked_integer("first_row", first_row, minimum=0))


def is_recording() -> bool:
    """Say whether calls made here keep what a backward pass needs."""
    return _recording.get()[-1]


def forced_engine() -> str:
    """Return the name given to `engine`, or ``"auto"``."""
    return _engine.get()[-1]


def first_row() -> int:
    """Return the number given to `rows_from`, or 0."""
    return _first_row.get()[-1]
