"""Checkpoints of another training: refused, and what differs is named."""

from functools import partial

import numpy as np
import pytest
from checkpoint_cases import (
    BATCHES,
    STEPS,
    Forecaster,
    Training,
    files,
    interrupted,
    samples,
)

from cupy_lstm import (
    SGD,
    Adam,
    AdamW,
    Batches,
    ClipGradByNorm,
    CosineAnnealingDecay,
    huber_loss,
)
from cupy_lstm.io import checkpoint_folder

pytest.importorskip("safetensors", reason="safetensors is not installed: no checkpoints")


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
