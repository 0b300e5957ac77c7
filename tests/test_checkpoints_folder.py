"""Folders of checkpoints that refuse: another training is there, or nothing can be written."""

import os
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from checkpoint_cases import Training, files, listed, whole

pytest.importorskip("safetensors", reason="safetensors is not installed: no checkpoints")

TESTS = Path(__file__).resolve().parent


def test_two_trainings_in_one_folder(tmp_path):
    other = Training()
    before = other.outcome()

    def begin_another(record):
        with pytest.raises(
            RuntimeError, match=f"in use by another training .process {os.getpid()}"
        ):
            other.fit(tmp_path)

    assert Training().fit(tmp_path, callbacks=[begin_another]) == whole()
    assert other.outcome() == before
    assert other.fit(tmp_path) == whole()


def test_two_processes_in_one_folder(tmp_path):
    """The first one is killed: its lock is free then."""
    code = f"""
    import sys, time
    sys.path.insert(0, {str(TESTS)!r})
    from checkpoint_cases import Training
    from pathlib import Path
    def wait(record):
        print("trains", flush=True)
        time.sleep(600)
    Training().fit(Path({str(tmp_path)!r}), every=1, callbacks=[wait])
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "trains\n"
            with pytest.raises(RuntimeError, match=f"training .process {process.pid}.: wait until"):
                Training().fit(tmp_path)
        finally:
            process.send_signal(signal.SIGKILL)
    assert Training().fit(tmp_path) == whole()


def limited(size):
    """Return a callback after which no file may be larger than `size`; the limit is lifted later.

    As on a full disk, a write fails in the middle.
    """

    def callback(record):
        if record.epoch == 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    return callback


@pytest.mark.parametrize("size", [0, 1, 1000, 5000])
def test_a_write_that_fails(tmp_path, size):
    try:
        with pytest.raises(
            OSError, match=r"checkpoint could not be written .*ones are as they were"
        ):
            Training().fit(tmp_path, callbacks=[limited(size)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
    assert [name[:12] for name in files(tmp_path)] == ["epoch-000001"]
    assert listed(tmp_path) == [".lock", *files(tmp_path)]
    assert Training().fit(tmp_path) == whole()


def test_a_folder_that_vanishes(tmp_path):
    folder = tmp_path / "there"

    def remove(record):
        shutil.rmtree(folder)
        folder.write_text("a file where the folder was")

    training = Training()
    training.model.eval()
    with pytest.raises(OSError, match="checkpoint could not be written") as raised:
        training.fit(folder, callbacks=[remove])
    assert str(folder) in str(raised.value)
    assert not training.model.training
    assert folder.read_text() == "a file where the folder was"


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/checkpoints", "/sys/checkpoints"])
def test_a_place_that_cannot_be_written_into(tmp_path, place):
    (tmp_path / "file").write_text("")
    if place.startswith("/") and not Path(place).parent.is_dir():
        pytest.skip(f"{Path(place).parent} is not there: nothing that refuses even root")
    training = Training()
    before = training.outcome()
    with pytest.raises(OSError, match="the training needs a folder to write into") as raised:
        training.fit(tmp_path / place)
    assert str(tmp_path / place) in str(raised.value)
    assert training.outcome() == before
    assert listed(tmp_path) == ["file"]


@pytest.mark.skipif(
    shutil.which("unshare") is None
    or subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode != 0,
    reason="file systems cannot be mounted here: no full and no read-only one to try",
)
def test_a_full_and_a_read_only_file_system(tmp_path):
    """In a process with mounts of its own, which end with it."""
    code = f"""
    import os, subprocess, sys
    from pathlib import Path
    sys.path.insert(0, {str(TESTS)!r})
    from checkpoint_cases import Training
    from cupy_lstm import mse_loss

    expected = Training().fit()
    full, sealed = Path("full"), Path("sealed")

    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", full], check=True)
    def fill(record):
        with open(full / "filler", "wb", buffering=0) as file:
            try:
                while file.write(bytes(4096)):
                    pass
            except OSError as error:
                print(error.strerror)
    try:
        Training().fit(full, callbacks=[lambda record: record.epoch == 1 and fill(record) or None])
    except OSError as error:
        print(error.errno, error.strerror)
    print(sorted(path.name[:12] for path in full.iterdir()))
    os.remove(full / "filler")
    print(Training().fit(full) == expected)

    Training().fit(sealed, epochs=1)
    subprocess.run(["mount", "--bind", sealed, sealed], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", sealed], check=True)
    before = sorted(path.name for path in sealed.iterdir())
    try:
        Training().fit(sealed)
    except OSError as error:
        print(error.errno, error.strerror)
    print(before == sorted(path.name for path in sealed.iterdir()))
    """
    for name in ("full", "sealed"):
        (tmp_path / name).mkdir()
    done = subprocess.run(
        ["unshare", "--mount", sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "No space left on device",
        "28 the checkpoint could not be written (No space left on device); "
        "earlier ones are as they were",
        "['.lock', 'epoch-000001', 'filler']",
        "True",
        "30 the training needs a folder to write into, and this is none (Read-only file system)",
        "True",
    ]
