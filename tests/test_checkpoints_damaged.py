"""Checkpoints that are damaged: passed over with a warning, and the training goes on."""

import re
import shutil

import pytest
from checkpoint_cases import Training, files, interrupted, whole

from cupy_lstm.io.checkpoint_folder import CheckpointFolder

pytest.importorskip("safetensors", reason="safetensors is not installed: no checkpoints")


def flip(path, position):
    contents = bytearray(path.read_bytes())
    contents[position] ^= 16
    path.write_bytes(contents)


def truncate(path, size):
    with path.open("r+b") as file:
        file.truncate(size)


def renamed(path):
    path.rename(path.with_name(path.name.replace("-batch-", "-batch-1")))
    # Its contents are sound: only the place is wrong, which nothing but the name says.


def made_a_folder(path):
    path.unlink()
    path.mkdir()


DAMAGES = {
    "first bit": lambda path: flip(path, 0),
    "a bit of the header": lambda path: flip(path, 100),
    "a bit of the facts": lambda path: flip(path, path.read_bytes().index(b"history")),
    "a bit of a weight": lambda path: flip(path, -500),
    "last bit": lambda path: flip(path, -1),
    "empty": lambda path: truncate(path, 0),
    "header alone": lambda path: truncate(path, 300),
    "half": lambda path: truncate(path, path.stat().st_size // 2),
    "one byte less": lambda path: truncate(path, path.stat().st_size - 1),
    "one byte more": lambda path: truncate(path, path.stat().st_size + 1),
    "of zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "contents of an older one": lambda path: shutil.copy(sorted(path.parent.glob("e*"))[0], path),
    "a folder": made_a_folder,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_one_is_passed_over(tmp_path, damage):
    interrupted(Training(), tmp_path, 3, every=1)
    newest = tmp_path / files(tmp_path)[-1]
    damage(newest)
    with pytest.warns(RuntimeWarning, match=f"{re.escape(str(newest))} is damaged and passed"):
        interrupted(Training(), tmp_path, 0, every=1)
    with pytest.warns(RuntimeWarning, match="passed over"):
        if damage is made_a_folder:  # where the same contents are to be written again
            with pytest.raises(OSError, match="earlier ones are as they were"):
                Training().fit(tmp_path, every=1)
        else:
            assert Training().fit(tmp_path, every=1) == whole()


def test_every_bit_counts(tmp_path):
    folder = CheckpointFolder(tmp_path, keep=1)
    folder.write(0, 1, {}, {})
    path = tmp_path / files(tmp_path)[0]
    contents = path.read_bytes()
    for position in range(len(contents)):
        for bit in range(8):
            spoilt = bytearray(contents)
            spoilt[position] ^= 1 << bit
            path.write_bytes(spoilt)
            with pytest.warns(RuntimeWarning, match="is damaged"):
                assert folder.newest() is None
    path.write_bytes(contents)
    assert folder.newest().path == path


def test_when_all_are_damaged_it_begins_anew(tmp_path):
    interrupted(Training(), tmp_path, 3, every=1)
    for name in files(tmp_path):
        flip(tmp_path / name, 9)
    with pytest.warns(RuntimeWarning) as warned:
        assert Training().fit(tmp_path, every=1) == whole()
    assert [files(tmp_path)[0] in str(one.message) for one in warned] == [False] * 3
    assert len(warned) == 3


def test_damaged_ones_do_not_push_out_sound_ones(tmp_path):
    interrupted(Training(), tmp_path, 3, every=1, keep=2)
    flip(tmp_path / files(tmp_path)[-1], 9)
    with pytest.warns(RuntimeWarning, match="batch-000003"):
        interrupted(Training(), tmp_path, 0, every=1, keep=1)
    folder = CheckpointFolder(tmp_path, keep=1)
    folder.write(0, 2, {}, {"new": True})
    with pytest.warns(RuntimeWarning, match="batch-000003"):
        assert folder.read(folder.newest()) == ({}, {"new": True})


def test_damaged_ones_are_not_counted(tmp_path):
    def places():
        return [int(name[19:25]) for name in files(tmp_path)]

    for batch in (1, 2, 3):
        CheckpointFolder(tmp_path, keep=9).write(0, batch, {}, {})
    flip(tmp_path / files(tmp_path)[-1], 9)
    folder = CheckpointFolder(tmp_path, keep=2)
    folder.write(0, 4, {}, {})
    assert places() == [2, 3, 4]
    folder.write(0, 5, {}, {})
    assert places() == [4, 5]
