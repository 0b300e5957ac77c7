"""Write several files together: all of them, or none and no trace."""

import contextlib
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from cupy_lstm.forecast.errors import DataError

Writer = Callable[[Path], None]


def check_folder(folder: Path, names: Iterable[str]) -> None:
    """Raise if files called `names` could not be written into `folder`, which need not exist.

    Raises
    ------
    DataError
        If the folder, or the nearest one above it that exists, is none or is not writable, or
        if one of the names is taken by a folder.
    """
    existing = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    try:
        # Permission bits say too little: root passes them, and a read-only disk has them too.
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise DataError(f"cannot write into {folder}: {error.strerror}") from None
    for name in names:
        if (folder / name).is_dir():
            raise DataError(f"cannot write {folder / name}: it is a folder")


def write_together(folder: Path, writers: Mapping[str, Writer]) -> None:
    """Write files into a folder, which is made if need be.

    Each file is first written into a temporary folder inside; only when all are complete are
    they renamed. If anything fails before the last rename, an interrupt included, the folder is
    left as it was.

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
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".cupy_lstm-") as scratch:
            for name, write in writers.items():
                write(Path(scratch) / name)
            _rename(Path(scratch), folder, list(writers))
    except BaseException:
        for place in made:
            with contextlib.suppress(OSError):
                place.rmdir()
        raise


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
