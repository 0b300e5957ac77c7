"""Learning-rate schedules and gradient clipping."""

import copy
import math
import pickle

import numpy as np
import pytest

from cupy_lstm import ParamAttr
from cupy_lstm.buffer import Buffer
from cupy_lstm.clip import ClipGradByGlobalNorm, ClipGradByNorm, ClipGradByValue
from cupy_lstm.parameter import Parameter
from cupy_lstm.schedule import CosineAnnealingDecay, LinearWarmup, StepDecay, rate_at

COSINE = CosineAnnealingDecay(0.1, 4, 0.01)


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        (StepDecay(0.1, 2, 0.5), [0.1, 0.1, 0.05, 0.05, 0.025, 0.025, 0.0125]),
        (StepDecay(1.0, 3), [1, 1, 1, 0.1, 0.1, 0.1, 0.01]),
        (StepDecay(1, 1, 0), [1, 0, 0]),
        (COSINE, [0.1, 0.086820, 0.055, 0.023180, 0.01, 0.023180, 0.055, 0.086820, 0.1]),
        (CosineAnnealingDecay(2, 1), [2, 0, 2, 0]),
        (LinearWarmup(0.1, 4), [0, 0.025, 0.05, 0.075, 0.1, 0.1, 0.1]),
        (LinearWarmup(0.1, 2, 0.2, 0.4), [0.2, 0.3, 0.1, 0.1]),
        (LinearWarmup(StepDecay(0.1, 2, 0.5), 2), [0, 0.05, 0.1, 0.1, 0.05, 0.05, 0.025]),
        (LinearWarmup(lambda step: 1 / (1 + step), 2, 0.5), [0.5, 0.75, 1, 0.5, 1 / 3]),
    ],
)
def test_schedules(schedule, rates):
    found = [schedule(step) for step in range(len(rates))]
    assert all(type(rate) is float for rate in found)
    # The rates of the cosine were written down with six decimals.
    assert np.abs(np.subtract(found, rates)).max() <= (5e-7 if schedule is COSINE else 1e-16)


def test_schedules_are_values():
    schedule = LinearWarmup(CosineAnnealingDecay(0.1, 7), 3)
    assert schedule == LinearWarmup(CosineAnnealingDecay(0.1, 7), 3)
    assert schedule == copy.deepcopy(schedule) == pickle.loads(pickle.dumps(schedule))
    with pytest.raises(AttributeError):
        schedule.warmup_steps = 4


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: StepDecay(-0.1, 2), ValueError, r"learning_rate must lie in \[0, inf\), received"),
        (lambda: StepDecay("1", 2), TypeError, "learning_rate must be a number, received '1'"),
        (lambda: StepDecay(0.1, 0), ValueError, "step_size must be at least 1, received 0"),
        (lambda: StepDecay(0.1, 1.5), TypeError, "step_size must be an integer, received 1.5"),
        (lambda: StepDecay(0.1, 2, -1), ValueError, r"gamma must lie in \[0, inf\), received -1"),
        (lambda: CosineAnnealingDecay(math.nan, 2), ValueError, "learning_rate must lie in"),
        (lambda: CosineAnnealingDecay(0.1, 0), ValueError, "T_max must be at least 1, received 0"),
        (lambda: CosineAnnealingDecay(0.1, 2, -1), ValueError, "eta_min must lie in"),
        (lambda: LinearWarmup(None, 2), TypeError, "learning_rate must be a number, received None"),
        (lambda: LinearWarmup(0.1, 0), ValueError, "warmup_steps must be at least 1, received 0"),
        (lambda: LinearWarmup(0.1, 2, math.inf), ValueError, "start_lr must lie in"),
        (lambda: LinearWarmup(0.1, 2, 0, -1), ValueError, "end_lr must lie in"),
        (lambda: rate_at(lambda step: -1.0, 3), ValueError, r"learning_rate\(3\) must lie in"),
        (lambda: rate_at(lambda step: None, 3), TypeError, r"learning_rate\(3\) must be a number"),
    ],
)
def test_bad_schedules(make, error, message):
    with pytest.raises(error, match=message):
        make()


def pairs_of(*gradients, need_clip=None, dtype="float64"):
    """Return a parameter with each gradient; those not to be clipped are marked so."""
    pairs = []
    for index, gradient in enumerate(gradients):
        attr = ParamAttr(need_clip=need_clip is None or need_clip[index])
        array = np.array(gradient, dtype)
        pairs.append((Parameter(Buffer(np.zeros((1, *array.shape), dtype)), 0, "w", attr), array))
    return pairs


SOME = (True, False, True)
ROOT = math.sqrt(25.25)  # norm of (3, 4) and (0.5, 0) together


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("clip", "expected"),
    [
        (ClipGradByValue(1.0), [[1, 1], [-30, 40], [0.5, 0]]),
        (ClipGradByValue(3.5, -0.25), [[3, 3.5], [-30, 40], [0.5, 0]]),
        (ClipGradByValue(max=0.25, min=0.125), [[0.25, 0.25], [-30, 40], [0.25, 0.125]]),
        (ClipGradByNorm(1.0), [[0.6, 0.8], [-30, 40], [0.5, 0]]),
        (ClipGradByNorm(0.25), [[0.15, 0.2], [-30, 40], [0.25, 0]]),
        (ClipGradByNorm(5.0), [[3, 4], [-30, 40], [0.5, 0]]),
        (ClipGradByGlobalNorm(1.0), [[3 / ROOT, 4 / ROOT], [-30, 40], [0.5 / ROOT, 0]]),
        (ClipGradByGlobalNorm(6.0), [[3, 4], [-30, 40], [0.5, 0]]),
    ],
    ids=str,
)
def test_clipping(clip, expected, dtype):
    pairs = pairs_of([3, 4], [-30, 40], [0.5, 0], need_clip=SOME, dtype=dtype)
    kept = [gradient.copy() for _, gradient in pairs]
    clipped = list(clip(pairs))
    assert [p for p, _ in clipped] == [p for p, _ in pairs]
    for (_, found), wanted in zip(clipped, expected, strict=True):
        assert found.dtype == dtype
        assert (abs(found - wanted) <= 2 * np.finfo(dtype).eps * np.abs(wanted)).all()
    for (_, gradient), before in zip(pairs, kept, strict=True):
        assert np.array_equal(gradient, before)


@pytest.mark.parametrize("clip", [ClipGradByNorm(2.0), ClipGradByGlobalNorm(2.0)], ids=str)
@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_norms_neither_overflow_nor_vanish(clip, size):
    ((_, found),) = clip(pairs_of([3 * size, 4 * size], dtype="float32"))
    expected = np.array([1.2, 1.6]) if size > 1 else np.array([3, 4]) * size
    assert (abs(found - expected) <= 2 * np.finfo("float32").eps * expected).all()


@pytest.mark.parametrize(
    "clip", [ClipGradByValue(1.0), ClipGradByNorm(1.0), ClipGradByGlobalNorm(1.0)], ids=str
)
def test_zeros_empty_gradients_and_nothing(clip):
    assert list(clip([])) == []
    (_, zeros), (_, empty) = clip(pairs_of([0, 0], np.zeros((0, 2))))
    assert zeros.tolist() == [0, 0] and empty.shape == (0, 2)
    pairs = pairs_of([3, 4], need_clip=[False])
    assert clip(pairs)[0][1] is pairs[0][1]


def test_global_norm_mixes_dtypes():
    pairs = pairs_of([3], dtype="float32") + pairs_of([4], dtype="float64")
    found = [gradient for _, gradient in ClipGradByGlobalNorm(1.0)(pairs)]
    assert [g.dtype for g in found] == ["float32", "float64"]
    assert found[0][0] == np.float32(0.6) and found[1][0] == 0.8


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: ClipGradByValue(-1), ValueError, "min must not be larger than max"),
        (lambda: ClipGradByValue(1, 2), ValueError, "min must not be larger than max, .* 2 > 1"),
        (lambda: ClipGradByValue(math.inf), ValueError, "max must lie in"),
        (lambda: ClipGradByValue(1, -math.inf), ValueError, "min must lie in"),
        (lambda: ClipGradByValue("1"), TypeError, "max must be a number, received '1'"),
        (lambda: ClipGradByNorm(0), ValueError, r"clip_norm must lie in \(0, inf\), received 0"),
        (lambda: ClipGradByNorm(None), TypeError, "clip_norm must be a number, received None"),
        (lambda: ClipGradByGlobalNorm(-1), ValueError, "clip_norm must lie in"),
        (lambda: ClipGradByGlobalNorm(True), TypeError, "clip_norm must be a number"),
    ],
)
def test_bad_clips(make, error, message):
    with pytest.raises(error, match=message):
        make()
