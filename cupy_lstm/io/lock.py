"""A folder that one process at a time works in."""

import contextlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cupy_lstm.io.files import make_folder

LOCK = ".lock"
"""Name of the file that is locked. It stays: one that is removed could be locked by two."""


@contextmanager
def locked(folder: Path, purpose: str) -> Iterator[None]:
    """Keep a folder, which is made if need be, for this process.

    The system gives the lock back when the process ends, however it ends, and those with it that
    were forked meanwhile: they have inherited it.

    Parameters
    ----------
    folder : Path
        The folder.
    purpose : str
        What it is locked for, for the message: ``"training"``.

    Raises
    ------
    RuntimeError
        If it is locked already.
    OSError
        If the folder cannot be made or written into, or the system has no flock (Windows).
    """
    descriptor = _opened(folder, purpose)
    try:
        _lock(descriptor, folder, purpose)
        yield
    finally:
        os.close(descriptor)


def _opened(folder: Path, purpose: str) -> int:
    """Return a descriptor of the file that is to be locked."""
    try:
        make_folder(folder)
        return os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise OSError(
            error.errno,
            f"the {purpose} needs a folder to write into, and this is none ({error.strerror})",
            str(folder),
        ) from error


def _lock(descriptor: int, folder: Path, purpose: str) -> None:
    """Lock a file, and write into it who did."""
    if sys.platform == "win32":
        raise OSError(f"{folder} cannot be locked: Windows has no flock")
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.read(descriptor, 32).decode("ascii", "replace").strip()
        raise RuntimeError(
            f"{folder} is in use by another {purpose} (process {owner or 'unknown'}): wait until "
            "that has ended, or take another folder"
        ) from None
    except OSError as error:
        raise OSError(
            error.errno, f"this folder cannot be locked ({error.strerror})", str(folder)
        ) from error
    with contextlib.suppress(OSError):  # a full disk: the number is for the message alone
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
