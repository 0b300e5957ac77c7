"""Whether the files of a forecast could be written, asked before the work is done."""

import tempfile
from collections.abc import Iterable
from pathlib import Path

from cupy_lstm.forecast.errors import DataError


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
