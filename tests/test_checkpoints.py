"""Checkpoints: a training goes on where it stood; what is written; arguments.

A loss that raises ends a training in the middle. Kills, damage, other trainings and folders that
refuse have files of their own.
"""

import errno
import os
import re
import stat
import sys
from functools import wraps
from pathlib import Path

import numpy as np
import pytest
from checkpoint_cases import (
    BATCHES,
    EPOCHS,
    STEPS,
    Forecaster,
    Training,
    checksum,
    files,
    interrupted,
    interrupting,
    listed,
    samples,
    whole,
)

from cupy_lstm import (
    SGD,
    Checkpoints,
    Linear,
    engine,
    fit,
    mse_loss,
)
from cupy_lstm.io import load_state_dict
from cupy_lstm.io.checkpoint_folder import CheckpointFolder
from cupy_lstm.io.lock import locked

pytest.importorskip("safetensors", reason="safetensors is not installed: no checkpoints")

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
