"""A folder that one process at a time works in."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOCK = ".lock"
"""Name of the file that is locked; it stays behind, unlocked."""


@contextmanager
def locked(folder: Path, purpose: str) -> Iterator[None]:
    """Keep a folder for oneself; it is made if need be.

    The system gives the lock back when the process ends, however it ends.

    Parameters
    ----------
    folder : Path
        The folder.
    purpose : str
        What it is locked for, for the message: ``"training"``.

    Raises
    ------
    RuntimeError
        If somebody else has locked it.
    OSError
        If the folder cannot be made or written into.
    """
    if sys.platform == "win32":
        raise OSError("folders are locked with flock, which Windows does not have")
    import fcntl

    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(descriptor, 32).decode("ascii", "replace").strip()
            raise RuntimeError(
                f"{folder} is in use by another {purpose}, process {owner or 'unknown'}: wait for "
                "its end, or take another folder"
            ) from None
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        yield
    finally:
        os.close(descriptor)
