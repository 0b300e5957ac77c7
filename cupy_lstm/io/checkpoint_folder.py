"""Checkpoints as files: whole or not there, sound or passed over, and not too many of them.

A checkpoint is a safetensors file of arrays, with facts as JSON beside them. Its name says where
the training stood, and ends in the beginning of the SHA-256 of the contents: one flipped bit is
seen.
"""

import hashlib
import json
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from cupy_lstm.backend import Array, HostArray
from cupy_lstm.io.files import SCRATCH, write_whole
from cupy_lstm.io.lock import locked
from cupy_lstm.io.optional import IO_EXTRA, optional_module
from cupy_lstm.io.tensors import read_tensors, tensors_as_bytes

FORMAT = "cupy_lstm training 1"
"""Key of the facts in a file's metadata; a change of fields makes it the next number."""

NAME = re.compile(r"epoch-(\d+)-batch-(\d+)-([0-9a-f]{16})\.safetensors")


class Checkpoint(NamedTuple):
    """What the name of a file says; sorts by age.

    Attributes
    ----------
    epoch, batch : int
        Epochs that were over, and batches of the running one.
    checksum : str
        Beginning of the SHA-256 of the contents.
    path : Path
        The file.
    """

    epoch: int
    batch: int
    checksum: str
    path: Path


class CheckpointFolder:
    """The checkpoints of a training.

    Parameters
    ----------
    folder : Path
        Where they are.
    keep : int
        How many of them stay, the newest sound ones.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = folder
        self._keep = keep
        self._sound: set[Checkpoint] = set()  # those whose contents were seen

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Keep the folder, which is made if need be, to this process; all else is done inside.

        Raises
        ------
        ImportError
            If safetensors is not installed.
        RuntimeError
            If another training has it.
        OSError
            If it cannot be made, written into or locked.
        """
        optional_module("safetensors", "a checkpoint", IO_EXTRA)
        with locked(self.folder, "training"):
            for scratch in self.folder.glob(f"{SCRATCH}*"):  # of one that was killed as it wrote
                shutil.rmtree(scratch)
            yield

    def newest(self) -> Checkpoint | None:
        """Return the newest checkpoint that is sound, and warn of newer ones that are not."""
        for checkpoint in reversed(self._checkpoints()):
            damage = _damage(checkpoint)
            if damage is None:
                return checkpoint
            warnings.warn(
                f"the checkpoint {checkpoint.path} is damaged and passed over: {damage}",
                RuntimeWarning,
                stacklevel=2,
            )
        return None

    def read(self, checkpoint: Checkpoint) -> tuple[dict[str, HostArray], dict[str, Any]]:
        """Return the arrays and the facts of a checkpoint that is sound.

        Raises
        ------
        ValueError
            If another version has written it, or another program.
        """
        tensors, metadata = read_tensors(checkpoint.path)
        if FORMAT not in metadata:
            raise ValueError(f"{checkpoint.path} was not written by this version of cupy_lstm")
        facts: dict[str, Any] = json.loads(metadata[FORMAT])
        return tensors, facts

    def write(
        self, epoch: int, batch: int, tensors: Mapping[str, Array], facts: Mapping[str, Any]
    ) -> None:
        """Write a checkpoint, then remove those that are too old.

        Parameters
        ----------
        epoch, batch : int
            Epochs that are over, and batches of the running one.
        tensors : mapping of str to array
            On the host or on a GPU, which is waited for then.
        facts : mapping of str to object
            As JSON takes them.

        Raises
        ------
        OSError
            If the file system refuses; the checkpoints that were there stay.
        """
        contents = tensors_as_bytes(tensors, {FORMAT: json.dumps(facts)})
        checksum = hashlib.sha256(contents).hexdigest()[:16]
        name = f"epoch-{epoch:06d}-batch-{batch:06d}-{checksum}.safetensors"
        checkpoint = Checkpoint(epoch, batch, checksum, self.folder / name)
        try:
            write_whole(checkpoint.path, contents)
        except OSError as error:
            reason = error.strerror or error
            raise OSError(
                error.errno,
                f"the checkpoint could not be written ({reason}); earlier ones are as they were",
                str(checkpoint.path),
            ) from error
        self.remove_before(checkpoint)

    def remove_before(self, newest: Checkpoint) -> None:
        """Remove what is too old when `newest`, which is sound, is the newest one."""
        # What claims to be newer is damaged: it takes the place of none.
        older = [c for c in self._checkpoints() if c[:2] <= newest[:2] and c != newest]
        self._sound.add(newest)
        kept = 1
        for checkpoint in reversed(older):
            if kept == self._keep:
                checkpoint.path.unlink()
                self._sound.discard(checkpoint)
            elif checkpoint in self._sound or _damage(checkpoint) is None:
                self._sound.add(checkpoint)
                kept += 1

    def _checkpoints(self) -> list[Checkpoint]:
        """Return the checkpoints by their names, the oldest first."""
        found = ((path, NAME.fullmatch(path.name)) for path in self.folder.iterdir())
        return sorted(Checkpoint(int(m[1]), int(m[2]), m[3], path) for path, m in found if m)


def _damage(checkpoint: Checkpoint) -> str | None:
    """Return what is wrong with a file; None if nothing is."""
    try:
        with checkpoint.path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        return str(error.strerror)
    if found.startswith(checkpoint.checksum):
        return None
    return f"its checksum is {found[:16]}"
