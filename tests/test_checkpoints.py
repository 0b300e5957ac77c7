"""Checkpoints: a training goes on where it stood, and where it cannot, it says so and does nothing.

Kills have a file of their own. Here a loss that raises ends a training in the middle.
"""

import errno
import os
import re
import resource
import shutil
import signal
import stat
import subprocess
import sys
import textwrap
from functools import cache, partial, wraps
from pathlib import Path

import numpy as np
import pytest
from checkpoint_cases import BATCHES, EPOCHS, STEPS, Forecaster, Training, checksum, samples

from cupy_lstm import (
    SGD,
    Adam,
    AdamW,
    Batches,
    Checkpoints,
    ClipGradByNorm,
    CosineAnnealingDecay,
    Linear,
    engine,
    fit,
    huber_loss,
    mse_loss,
)
from cupy_lstm.io import checkpoint_folder, load_state_dict
from cupy_lstm.io.checkpoint_folder import CheckpointFolder
from cupy_lstm.io.lock import locked

pytest.importorskip("safetensors", reason="safetensors is not installed: no checkpoints")

TESTS = Path(__file__).resolve().parent


def interrupting(calls, loss=mse_loss):
    """Return a loss that is interrupted after so many calls, and passes for the other one."""
    left = iter(range(calls))

    @wraps(loss)
    def counted(prediction, target):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return loss(prediction, target)

    return counted


def interrupted(training, folder, calls, **options):
    with pytest.raises(KeyboardInterrupt):
        training.fit(folder, loss=interrupting(calls), **options)


def listed(folder):
    return sorted(path.name for path in folder.iterdir())


def files(folder):
    return sorted(path.name for path in folder.glob("epoch-*"))


@cache
def whole(**options):
    """What comes of a training that nothing ends early."""
    return Training().fit(**options)


# --- going on ------------------------------------------------------------------------------------

CALLS = STEPS + EPOCHS * 2  # with those of validation


@pytest.mark.parametrize("every", [None, 1, 3, 5])
@pytest.mark.parametrize("calls", [0, 1, 3, 4, 5, 9, 11, CALLS - 1])
def test_goes_on_bit_for_bit(tmp_path, every, calls):
    interrupted(Training(), tmp_path, calls, every=every)
    assert Training().fit(tmp_path, every=every) == whole()


def test_goes_on_with_the_next_batch(tmp_path):
    interrupted(Training(), tmp_path, 8, every=1)  # 4 batches, 2 of validation, 2 batches
    assert files(tmp_path)[-1].startswith("epoch-000001-batch-000002-")
    interrupted(Training(), tmp_path, 2 + 2 + 3, every=1)
    assert files(tmp_path)[-1].startswith("epoch-000002-batch-000003-")
    assert Training().fit(tmp_path, every=1) == whole()


@pytest.mark.parametrize("every", [None, 1])
def test_goes_on_in_the_same_objects(tmp_path, every):
    training = Training()
    interrupted(training, tmp_path, 9, every=every)
    assert training.fit(tmp_path, every=every) == whole()


@pytest.mark.parametrize("options", [{}, {"patience": None}, {"patience": 1, "min_delta": 0.02}])
def test_a_training_that_has_ended_is_not_repeated(tmp_path, options):
    expected = Training().fit(tmp_path, **options)
    assert expected == whole(**options)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("epoch-*")}
    records = []
    never = interrupting(0)
    found = Training().fit(tmp_path, loss=never, callbacks=[records.append], **options)
    assert found == expected and not records
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("epoch-*")} == before


def test_more_epochs_go_on_from_the_last_weights_not_the_best(tmp_path):
    def rising(prediction, target):  # the first epoch is the best
        value, gradient = mse_loss(prediction, target)
        return value, -gradient

    options = {"loss": rising, "patience": 9}
    first = Training().fit(tmp_path, epochs=2, **options)
    assert first["history"]["best_epoch"] == 0
    assert Training().fit(tmp_path, epochs=4, **options) == Training().fit(epochs=4, **options)


def test_more_patience_goes_on(tmp_path):
    options = {"epochs": 4, "min_delta": 9.0}  # nothing is better than the first
    stopped = Training().fit(tmp_path, patience=1, **options)
    assert len(stopped["history"]["loss"]) == 2 and stopped["history"]["stopped_early"]
    assert Training().fit(tmp_path, patience=3, **options) == whole(patience=3, **options)


def test_what_a_callback_has_ended_stays_ended(tmp_path):
    expected = Training().fit(tmp_path, callbacks=[lambda record: record.epoch < 1])
    assert len(expected["history"]["loss"]) == 2
    assert Training().fit(tmp_path, loss=interrupting(0)) == expected


def test_callbacks_are_told_of_an_epoch_until_it_is_written_down(tmp_path):
    told = []

    def fails_once(record):
        told.append(record.epoch)
        if told == [0, 1]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Training().fit(tmp_path, callbacks=[fails_once])
    assert Training().fit(tmp_path, callbacks=[fails_once]) == whole()
    assert told == [0, 1, 1, 2]


def test_what_a_callback_changes_is_kept(tmp_path):
    def changes(training):
        def callback(record):
            training.optimizer.learning_rate /= 2
            training.model.head.weight.trainable = record.epoch != 0
            training.model.lstm.dropout = 0.1 * (record.epoch + 1)

        return [callback]

    def run(folder, calls=None):
        training = Training(rate=0.02)
        loss = mse_loss if calls is None else interrupting(calls)
        return training.fit(folder, loss=loss, callbacks=changes(training), every=1)

    expected = run(None)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, BATCHES + 2 + 2)
    assert run(tmp_path) == expected


def test_seeds_nobody_gave_are_kept(tmp_path):
    """Another weight, order and mask in every process; the first one's count."""
    training = Training(seed=7)
    training.model.lstm.dropout_seed = 2**64 - 1
    training.batches.seed = 2**70
    interrupted(training, tmp_path, 9, every=1)
    through = Training(seed=7)
    through.model.lstm.dropout_seed = 2**64 - 1
    through.batches.seed = 2**70
    assert Training(seed=8).fit(tmp_path, every=1) == through.fit()


def test_a_parameter_without_gradient_in_some_batches(tmp_path):
    """Once it has had one, its gradient is zero, which is not none for an optimiser."""

    class Sometimes(Forecaster):
        def backward(self, gradient):
            self.calls = getattr(self, "calls", 0) + 1
            if self.calls > 1 + self.before:
                return None
            return super().backward(gradient)

        before = 0

    class Later(Sometimes):
        before = -1

    Later.__qualname__ = Sometimes.__qualname__
    expected = Training(Sometimes()).fit()
    interrupted(Training(Sometimes()), tmp_path, 2, every=1)
    assert Training(Later()).fit(tmp_path, every=1) == expected


def test_any_iterable_that_says_the_same_every_time(tmp_path):
    x, y = samples()

    def run(folder, loss=mse_loss):
        training = Training()
        training.batches = [(x[:3], y[:3]), (x[3:6], y[3:6]), (x[6:9], y[6:9])]
        training.validation = None
        model, optimizer = training.model, training.optimizer
        with engine("stepwise"):
            history = fit(
                model, loss, optimizer, training.batches,
                epochs=3, progress=False, checkpoints=folder and Checkpoints(folder, every=2),
            )  # fmt: skip
        return history, [checksum(p.data) for p in model.parameters()]

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, interrupting(5))
    assert run(tmp_path) == run(None)


def test_the_same_batches_for_validation(tmp_path):
    def run(folder, **options):
        training = Training()
        training.validation = training.batches
        return training.fit(folder, every=1, **options)

    expected = run(None)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, loss=interrupting(2 * BATCHES + 2))
    assert run(tmp_path) == expected
    assert expected["orders"][0][1] == 2 * EPOCHS


def test_a_path_alone_is_enough(tmp_path, capsys):
    def run(folder):
        training = Training()
        with engine("stepwise"):
            return fit(
                training.model, mse_loss, training.optimizer, training.batches, epochs=2,
                checkpoints=folder,
            )  # fmt: skip

    expected = run(None)
    assert run(tmp_path / "one" / "two") == expected
    assert [name[:24] for name in files(tmp_path / "one" / "two")] == [
        "epoch-000001-batch-00000",
        "epoch-000002-batch-00000",
    ]
    capsys.readouterr()
    assert run(str(tmp_path / "one" / "two")) == expected
    assert "2/2" in capsys.readouterr().err


# --- what is written -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("every", "keep", "places"),
    [
        (None, 3, [(1, 0), (2, 0), (3, 0)]),
        (None, 2, [(2, 0), (3, 0)]),
        (None, 1, [(3, 0)]),
        (5, 9, [(1, 1), (2, 2), (3, 0)]),
        (6, 9, [(1, 2), (2, 4), (3, 0)]),
        (100, 3, [(3, 0)]),
    ],
)
def test_which_are_written_and_kept(tmp_path, every, keep, places):
    Training().fit(tmp_path, every=every, keep=keep)
    names = [re.match(r"epoch-(\d+)-batch-(\d+)-", name) for name in files(tmp_path)]
    assert [(int(name[1]), int(name[2])) for name in names] == places
    assert listed(tmp_path) == [".lock", *files(tmp_path)]


def test_a_checkpoint_is_a_safetensors_file(tmp_path):
    training = Training()
    training.fit(tmp_path, patience=None)
    tensors = load_state_dict(tmp_path / files(tmp_path)[-1])
    for name, weight in training.model.state_dict().items():
        assert np.array_equal(tensors[f"model.{name}"], weight)


def test_a_loss_that_is_not_finite_is_not_written(tmp_path):
    interrupted(Training(), tmp_path, 2, every=1)
    before = files(tmp_path)

    @wraps(mse_loss)
    def spoilt(prediction, target):
        value, gradient = mse_loss(prediction, target)
        return value * np.nan, gradient

    with pytest.raises(FloatingPointError, match="the training loss of epoch 0 is nan"):
        Training().fit(tmp_path, every=1, loss=spoilt)
    assert files(tmp_path) == before
    assert Training().fit(tmp_path, every=1) == whole()


def test_files_are_on_the_disk_before_they_have_their_name(tmp_path, monkeypatch):
    log = []
    fsync, replace = os.fsync, Path.replace

    def noted_fsync(descriptor):
        log.append(Path(f"/proc/self/fd/{descriptor}").readlink())
        fsync(descriptor)

    def noted_replace(path, target):
        done = replace(path, target)
        log.append(("renamed", Path(target)))
        return done

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(Path, "replace", noted_replace)
    folder = CheckpointFolder(tmp_path, keep=1)
    folder.write(1, 2, {}, {})
    path = tmp_path / files(tmp_path)[0]
    written, renamed, named = log
    assert written.name == path.name and written.parent != tmp_path
    assert (renamed, named) == (("renamed", path), tmp_path)
    log.clear()
    with CheckpointFolder(tmp_path / "new" / "folder", keep=1).opened():
        assert log == [tmp_path / "new", tmp_path]


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EINVAL, errno.EOPNOTSUPP])
def test_a_disk_that_refuses_names(tmp_path, monkeypatch, number):
    """Some file systems cannot sync a folder; an error of the disk is another thing."""
    fsync = os.fsync

    def refusing(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", refusing)
    folder = CheckpointFolder(tmp_path, keep=1)
    if number in (errno.EIO, errno.ENOSPC):
        with pytest.raises(OSError, match="the checkpoint could not be written"):
            folder.write(1, 2, {}, {})
        with pytest.raises(OSError, match="needs a folder"), locked(tmp_path / "a" / "b", "test"):
            pass
        assert not (tmp_path / "a").exists()
    else:
        folder.write(1, 2, {}, {})
        assert folder.newest()[:2] == (1, 2)


def test_targets_without_elements(tmp_path):
    """A checkpoint after batches that have nothing to learn from, yet."""

    def loss(prediction, target):
        return mse_loss(prediction, target) if target.size else (0.0, np.zeros_like(prediction))

    x, y = samples()
    training = Training()
    training.batches = [(x, y[:, :0]), (x, y)]
    training.fit(tmp_path, every=1, epochs=1, keep=9, loss=loss, patience=None)
    assert [name[:25] for name in files(tmp_path)] == [
        "epoch-000000-batch-000001", "epoch-000000-batch-000002", "epoch-000001-batch-000000"
    ]  # fmt: skip


# --- checkpoints of another training -------------------------------------------------------------


def changed(training, part, **options):
    """Replace one part of a training by another one."""
    x, y = samples()
    kept = training.optimizer.settings()
    settings = {"kind": AdamW} | {name: kept[name] for name in ("learning_rate", "grad_clip")}
    if part == "model":
        training.model = Forecaster(**options)
    elif part == "batches":
        number = options.pop("samples", 14)
        options = {"batch_size": 4, "shuffle": True, "seed": 0} | options
        training.batches = Batches(x[:number], y[:number], **options)
    elif part == "validation":
        training.validation = None
    elif part == "optimizer":
        settings |= options
    training.optimizer = settings.pop("kind")(parameters=training.model.parameters(), **settings)
    return training


class Renamed(Forecaster):
    """The same by another name."""


OTHERS = {
    "size": (("model", {"hidden_size": 5}), {}, r"model\.lstm\.weight_ih_l0 is float32 \[16, 1\]"),
    "dtype": (("model", {"dtype": "float64"}), {}, "float64"),
    "dropout": (("model", {"dropout": 0.4}), {}, r"model\.lstm\.dropout was 0\.3 there, .* 0\.4 h"),
    "kind": (("optimizer", {"kind": Adam}), {}, r"optimizer\.type was 'AdamW' .* 'Adam' here"),
    "memory": (("optimizer", {"kind": SGD, "momentum": 0.9}), {}, r"optimizer\.type"),
    "beta": (("optimizer", {"beta1": 0.8}), {}, r"optimizer\.beta1 was 0\.9 there"),
    "clip": (("optimizer", {"grad_clip": ClipGradByNorm(1.0)}), {}, r"optimizer\.grad_clip\.type"),
    "rate": (("optimizer", {"learning_rate": 0.5}), {}, r"optimizer\.learning_rate"),
    "schedule": (
        ("optimizer", {"learning_rate": CosineAnnealingDecay(0.05, STEPS)}),
        {},
        r"optimizer\.learning_rate\.type was 'LinearWarmup' there, and is 'CosineAnn",
    ),
    "batch size": (("batches", {"batch_size": 5}), {}, r"batches\.batch_size was 4 .* 5 here"),
    "samples": (("batches", {"samples": 13}), {}, r"batches\.inputs was \['float32 \[14, 3, 1\]'"),
    "order": (("batches", {"shuffle": False}), {}, r"batches\.shuffle was True there"),
    "weights": (
        ("batches", {"weights": np.ones(14, "float32")}),
        {},
        r"batches\.weights was None there, and is 'float32 \[14\]' here",
    ),
    "drop": (("batches", {"drop_last": True}), {}, r"batches\.drop_last was False there"),
    "validation": (("validation", {}), {}, r"validation"),
    "loss": (None, {"loss": huber_loss}, r"loss was 'mse_loss' there, and is 'huber_loss' here"),
    "loss's arguments": (None, {"loss": partial(huber_loss, delta=2.0)}, r"loss\.function"),
    "patience": (None, {"patience": None}, r"patience was 'some' there, and is 'none' here"),
    "min_delta": (None, {"min_delta": 0.5}, r"min_delta was 0\.0 there, and is 0\.5 here"),
    "epochs": (None, {"epochs": 1}, r"epochs is 1, but .* is further than that already"),
}


@pytest.fixture(scope="module")
def of_another(tmp_path_factory):
    folder = tmp_path_factory.mktemp("other")
    interrupted(Training(), folder, 2 * (BATCHES + 2) + 1, every=None)
    return folder


@pytest.mark.parametrize(("change", "options", "message"), OTHERS.values(), ids=OTHERS)
def test_of_another_training(of_another, change, options, message):
    training = Training() if change is None else changed(Training(), change[0], **change[1])
    before, there = training.outcome(), {p: p.read_bytes() for p in of_another.glob("epoch-*")}
    training.model.eval()
    with pytest.raises(ValueError, match=message) as raised:
        training.fit(of_another, **options)
    assert str(of_another / files(of_another)[-1]) in str(raised.value)
    assert "take another folder" in str(raised.value)
    assert training.outcome() == before and not training.model.training
    assert {p: p.read_bytes() for p in of_another.glob("epoch-*")} == there


def test_of_another_class(of_another):
    with pytest.raises(ValueError, match=r"model\.itself\.type was 'Forecaster' .* 'Renamed' here"):
        Training(Renamed()).fit(of_another)


def test_of_another_version(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_folder, "FORMAT", "cupy_lstm training 99")
        Training().fit(tmp_path)
    with pytest.raises(ValueError, match="was not written by this version of cupy_lstm"):
        Training().fit(tmp_path)


# --- damage --------------------------------------------------------------------------------------


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


# --- what refuses --------------------------------------------------------------------------------


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


# --- arguments -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((3,), {}, TypeError, "folder must be a path, received 3"),
        (("f",), {"every": 0}, ValueError, "every must be at least 1, received 0"),
        (("f",), {"every": 1.5}, TypeError, "every must be an integer, received 1.5"),
        (("f",), {"keep": 0}, ValueError, "keep must be at least 1, received 0"),
    ],
)
def test_settings(arguments, options, error, message):
    with pytest.raises(error, match=message):
        Checkpoints(*arguments, **options)


def test_settings_are_shown_and_nothing_is_made(tmp_path):
    given = Checkpoints(tmp_path / "new", every=5)
    assert repr(given) == f"Checkpoints({str(tmp_path / 'new')!r}, every=5, keep=3)"
    assert not given.folder.exists()


def test_what_cannot_be_checkpointed(tmp_path):
    model = Linear(1, 1, seed=0)
    optimizer, x = SGD(0.1, model.parameters()), np.ones((1, 1), "float32")
    with pytest.raises(TypeError, match="checkpoints must be Checkpoints or a folder, received 3"):
        fit(model, mse_loss, optimizer, [(x, x)], checkpoints=3)

    class Wrapped:
        training = True

        def __getattr__(self, name):
            return getattr(model, name)

        def __call__(self, x):
            return model(x)

    with pytest.raises(TypeError, match=r"model must be a Layer .* received Wrapped"):
        fit(Wrapped(), mse_loss, optimizer, [(x, x)], checkpoints=tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_without_safetensors(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(
        ImportError, match=r"a checkpoint needs safetensors: pip install 'cupy_lstm"
    ):
        Training().fit(tmp_path / "new")
    assert not (tmp_path / "new").exists()
