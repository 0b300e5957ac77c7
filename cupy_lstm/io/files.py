"""Write files whole: one, or several together; all of them, or none and no trace."""

import contextlib
import errno
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

NOT_FOR_FOLDERS = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EBADF, errno.EACCES)
"""What a system says that cannot sync a folder, or (Windows; no permission to list) open it."""

Writer = Callable[[Path], object]

SCRATCH = ".cupy_lstm-"
"""How the temporary folders begin that a process leaves behind if it is killed while it writes."""


def write_whole(path: Path, contents: bytes) -> None:
    """Write a file, complete or not at all; one that is there is replaced.

    Raises
    ------
    OSError
        If the file system refuses, or the path is that of a folder.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "cannot write a file, it is a folder", str(path))
    write_together(path.parent, {path.name: lambda place: place.write_bytes(contents)})


def write_together(folder: Path, writers: Mapping[str, Writer]) -> None:
    """Write files into a folder, which is made if need be.

    Each file is first written into a temporary folder inside; only when all are complete, and on
    the disk itself, are they renamed. If anything fails before the last rename, an interrupt
    included, the folder is left as it was. After it, the disk may still refuse their names.

    Parameters
    ----------
    folder : Path
        Where to.
    writers : mapping of str to function
        For each file name, a function that writes the file at the path it is given.

    Raises
    ------
    OSError
        If the file system refuses.
    """
    made = make_folder(folder)
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=SCRATCH) as scratch:
            for name, write in writers.items():
                write(Path(scratch) / name)
                _bring_to_disk(Path(scratch) / name)
            _rename(Path(scratch), folder, list(writers))
        _bring_names_to_disk(folder)
    except BaseException:
        _remove_empty(made)
        raise


def make_folder(folder: Path) -> list[Path]:
    """Make a folder, and those above it that are missing, so that they would outlive a power loss.

    Returns
    -------
    list of Path
        Those that were made, the innermost first.

    Raises
    ------
    OSError
        If the file system refuses; none are there then.
    """
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for place in made:
            _bring_names_to_disk(place.parent)
    except BaseException:
        _remove_empty(made)
        raise
    return made


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()


def _bring_names_to_disk(folder: Path) -> None:
    """Bring the names in a folder to the disk, where the system can do that."""
    try:
        _bring_to_disk(folder)
    except OSError as error:
        if error.errno not in NOT_FOR_FOLDERS:
            raise


def _bring_to_disk(path: Path) -> None:
    """Wait until a file, or the names in a folder, would outlive a loss of power."""
    descriptor = os.open(path, os.O_RDWR if path.is_file() else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _rename(scratch: Path, folder: Path, names: list[str]) -> None:
    """Move files from `scratch` to `folder`: all, or none."""
    try:
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                (folder / name).replace(scratch / f"{name}.before")
            (scratch / name).replace(folder / name)
    except BaseException:
        for name in names:
            before = scratch / f"{name}.before"
            if before.exists():
                before.replace(folder / name)
            elif not (scratch / name).exists():
                (folder / name).unlink()
        raise
