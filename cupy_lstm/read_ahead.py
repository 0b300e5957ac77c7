"""Reading ahead: what comes next is made while the last is used."""

from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

Item = TypeVar("Item")

THREAD = "cupy_lstm_reader"
"""What the names of the threads begin with."""


def read_ahead(items: Iterator[Item], count: int) -> Generator[Item, None, None]:
    """Yield items that a thread makes, so many of them ahead.

    The thread begins with the first item that is asked for, and has ended when the iterator is
    used up, closed or dropped, or has raised. What the making of an item raises is raised here, in
    its turn.

    Parameters
    ----------
    items : iterator
        Used in the thread alone.
    count : int
        Items that are made or waiting at most, beside the one in use; 0 for no thread.
    """
    if not count:
        yield from items
        return
    source: Iterator[Any] = items
    end: Any = object()
    reader = ThreadPoolExecutor(1, THREAD)
    try:
        waiting = deque(reader.submit(next, source, end) for _ in range(count))
        while (item := waiting.popleft().result()) is not end:
            waiting.append(reader.submit(next, source, end))
            yield item
    finally:
        reader.shutdown(wait=True, cancel_futures=True)
