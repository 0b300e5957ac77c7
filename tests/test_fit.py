"""The training loop: it learns, it repeats, it stops when it should, and leaves things in order."""

import sys

import numpy as np
import pytest

from cupy_lstm import LSTM
from cupy_lstm.clip import ClipGradByGlobalNorm
from cupy_lstm.layer import Layer
from cupy_lstm.linear import Linear
from cupy_lstm.loss import mse_loss, softmax_cross_entropy
from cupy_lstm.modes import is_recording
from cupy_lstm.optimizer import SGD, Adam
from cupy_lstm.schedule import CosineAnnealingDecay, StepDecay
from cupy_lstm.training import EpochRecord, History, fit
from cupy_lstm.windows import Batches, sliding_windows


def linear_problem(batch_size=8, seed=0):
    """Return a model, batches without noise, and the weight and bias that made them."""
    rng = np.random.default_rng(seed)
    weight, bias = rng.normal(size=(3, 2)), rng.normal(size=2)
    x = rng.normal(size=(40, 3))
    batches = Batches(x, x @ weight + bias, batch_size, shuffle=True, seed=seed)
    return Linear(3, 2, dtype="float64", seed=seed), batches, weight, bias


def quiet(*arguments, **options):
    return fit(*arguments, progress=False, **options)


def test_learns_a_linear_map():
    model, batches, weight, bias = linear_problem()
    optimizer = SGD(0.1, model.parameters(), momentum=0.5)
    history = quiet(model, mse_loss, optimizer, batches, epochs=60)
    # Without noise the only minimum is the map itself, and convergence is linear: to the last bits.
    assert history.loss[-1] < np.finfo("float64").eps * history.loss[0]
    # The loss is the square of the deviation, up to the spread of the inputs.
    near = np.sqrt(np.finfo("float64").eps) * history.loss[0]
    assert abs(model.weight.data - weight).max() < near > abs(model.bias.data - bias).max()
    assert len(history.loss) == 60 and not history.stopped_early
    assert batches.epoch == 60 and optimizer.state_dict()["steps"] == 60 * len(batches)


def test_learns_to_classify():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 2)).astype("float32")
    labels = (x[:, 0] > x[:, 1]).astype(int) + 2 * (x.sum(axis=1) > 0)
    model = Linear(2, 4, seed=0)
    quiet(
        model,
        softmax_cross_entropy,
        Adam(0.3, model.parameters()),
        Batches(x, labels, 16, shuffle=True, seed=0),
        epochs=80,
    )
    assert (model(x).argmax(axis=1) == labels).mean() > 0.95


class Forecaster(Layer):
    """The next value of a series from a window of it."""

    def __init__(self, seed=0):
        super().__init__()
        self.lstm = LSTM(1, 8, dropout=0.1, num_layers=2, seed=seed)
        self.head = Linear(8, 1, seed=seed)

    def __call__(self, windows):
        _, (hidden, _) = self.lstm(windows)
        return self.head(hidden[-1])

    def backward(self, gradient):
        dhidden = np.zeros((2, len(gradient), 8), "float32")
        dhidden[-1] = self.head.backward(gradient)
        return self.lstm.backward(None, (dhidden, None))[0]


def learn_to_forecast():
    time = np.arange(160)
    series = (np.sin(time / 4) + 0.5 * np.sin(time / 2.5)).astype("float32")[:, None]
    windows = sliding_windows(series, 13)
    x, y = windows[:, :-1], windows[:, -1]
    model = Forecaster()
    batches = Batches(x[:110], y[:110], 32, shuffle=True, seed=0)
    history = quiet(
        model,
        mse_loss,
        Adam(CosineAnnealingDecay(0.02, 40 * 4), model.parameters(), grad_clip=clip_at_one),
        batches,
        Batches(x[110:], y[110:], 64),
        epochs=40,
        patience=10,
    )
    persistence = ((y[110:] - x[110:, -1]) ** 2).mean()
    return model, history, persistence


clip_at_one = ClipGradByGlobalNorm(1.0)


def test_an_lstm_learns_to_forecast_and_two_runs_are_bit_equal():
    model, history, persistence = learn_to_forecast()
    assert min(history.validation_loss) < 0.1 * persistence
    again, same, _ = learn_to_forecast()
    assert history == same
    for name, weight in model.state_dict().items():
        assert np.array_equal(weight, again.state_dict()[name]), name


class Watched(Linear):
    """Write down in which mode each call was made."""

    def __init__(self):
        super().__init__(1, 1, dtype="float64", seed=0)
        self.calls = []

    def __call__(self, *inputs):
        self.calls.append((self.training, is_recording()))
        return super().__call__(sum(inputs))


ONE = np.ones((1, 1))


@pytest.mark.parametrize("came_in_training", [True, False])
def test_modes(came_in_training):
    model = Watched()
    model.train() if came_in_training else model.eval()
    optimizer = SGD(0.1, model.parameters())
    quiet(model, mse_loss, optimizer, [(ONE, ONE)] * 2, [(ONE, ONE)], epochs=2)
    assert model.calls == [(True, True), (True, True), (False, False)] * 2
    assert model.training is came_in_training
    with pytest.raises(RuntimeError, match="there is no call to go back through"):
        model.backward(ONE)


def test_several_inputs_are_several_arguments():
    model = Watched()
    optimizer = SGD(0.1, model.parameters())
    history = quiet(model, mse_loss, optimizer, [((ONE, ONE, ONE), ONE)], epochs=1)
    assert history.loss == [(3 * Linear(1, 1, dtype="float64", seed=0).weight.data.item() - 1) ** 2]


def test_a_weighted_sample_is_a_repeated_one():
    rng = np.random.default_rng(0)
    x, y, times = rng.normal(size=(12, 3)), rng.normal(size=(12, 2)), rng.integers(0, 4, 12)
    weighted = Batches(x, y, 12, weights=times * (12 / times.sum()))
    repeated = Batches(x.repeat(times, 0), y.repeat(times, 0), times.sum())
    losses, weights = [], []
    for batches in (weighted, repeated):
        model = Linear(3, 2, dtype="float64", seed=0)
        optimizer = SGD(0.1, model.parameters())
        history = quiet(model, mse_loss, optimizer, batches, batches, epochs=4)
        losses.append(history.loss + history.validation_loss)
        weights.append(model.weight.data)
    # Sums of at most 24 terms of order one, in another order, four steps one after another.
    assert abs(np.subtract(*losses)).max() <= 100 * np.finfo("float64").eps
    assert abs(np.subtract(*weights)).max() <= 100 * np.finfo("float64").eps


def test_losses_are_means_over_all_elements():
    model, batches, _, _ = linear_problem(batch_size=16)  # 16, 16 and 8 samples
    x, y = batches._inputs, batches._targets
    expected, _ = mse_loss(model(x), y)
    history = quiet(
        model, mse_loss, SGD(0.0, model.parameters()), batches, [(x[:3], y[:3])], epochs=2
    )
    few = 8 * np.finfo("float64").eps
    assert np.allclose(history.loss, expected, rtol=few, atol=0)
    assert np.allclose(history.validation_loss, mse_loss(model(x[:3]), y[:3])[0], rtol=few, atol=0)


def test_learning_rates_are_those_of_each_epoch_s_first_step():
    model, batches, _, _ = linear_problem(batch_size=10)
    optimizer = SGD(StepDecay(0.125, 6, 0.5), model.parameters())
    assert quiet(model, mse_loss, optimizer, batches, epochs=4).learning_rate == [
        0.125,
        0.125,
        0.0625,
        0.03125,
    ]


class Script:
    """Batches whose loss, as `stated_loss` gives it, is written down for every epoch."""

    def __init__(self, *losses):
        self.losses = iter(losses)

    def __iter__(self):
        yield ONE, np.full((1, 1), next(self.losses))


def stated_loss(prediction, target):
    return target.mean(), np.ones_like(prediction)


def scripted(validation, **options):
    """Train on a script; every epoch moves the bias by -1."""
    model = Linear(1, 1, dtype="float64", seed=0)
    training = options.pop("training", [9.0] * len(validation or ()))
    scripts = Script(*training), None if validation is None else Script(*validation)
    history = quiet(
        model, stated_loss, SGD(1.0, model.parameters()), *scripts, **{"epochs": 6} | options
    )
    return history, -model.bias.data.item()


FALLING = [6.0, 5, 4, 3, 2, 1]
DIP = [6.0, 3, 4, 5, 6, 7]
LATE = [6.0, 3, 4, 2, 3, 4]


@pytest.mark.parametrize(
    ("losses", "options", "epochs", "best", "weights_of"),
    [
        (FALLING, {}, 6, 5, 5),
        (DIP, {}, 6, 1, 5),  # without patience the last weights stay
        (DIP, {"patience": 1}, 3, 1, 1),
        (DIP, {"patience": 3}, 5, 1, 1),
        (DIP, {"patience": 4}, 6, 1, 1),
        (DIP, {"patience": 99}, 6, 1, 1),
        (LATE, {"patience": 1}, 3, 1, 1),
        (LATE, {"patience": 2}, 6, 3, 3),
        (FALLING, {"patience": 1}, 6, 5, 5),
        (FALLING, {"patience": 1, "min_delta": 1.0}, 2, 0, 0),
        (FALLING, {"patience": 2, "min_delta": 1.0}, 6, 4, 4),
        (FALLING, {"patience": 2, "min_delta": 2.0}, 3, 0, 0),
        ([2.0] * 6, {"patience": 3}, 4, 0, 0),
    ],
)
def test_patience(losses, options, epochs, best, weights_of):
    for validation in (True, False):
        by_loss = {"validation": losses} if validation else {"validation": None, "training": losses}
        history, moved = scripted(**by_loss, **options)
        watched = history.validation_loss if validation else history.loss
        assert watched == losses[:epochs]
        assert (history.best_epoch, history.stopped_early) == (best, epochs < 6)
        assert moved == weights_of + 1
        assert len(history.loss) == epochs and (validation or history.validation_loss == [])


def test_callbacks_get_records_in_order():
    records = []
    history, _ = scripted(LATE, epochs=4, callbacks=[records.append, lambda r: records.append(r)])
    assert records[::2] == records[1::2]
    assert records[::2] == [
        EpochRecord(0, 9.0, 6.0, 1.0, True),
        EpochRecord(1, 9.0, 3.0, 1.0, True),
        EpochRecord(2, 9.0, 4.0, 1.0, False),
        EpochRecord(3, 9.0, 2.0, 1.0, True),
    ]
    assert history == History([9.0] * 4, LATE[:4], [1.0] * 4, best_epoch=3, stopped_early=False)


@pytest.mark.parametrize("false", [False, np.False_])
@pytest.mark.parametrize(("options", "weights_of"), [({}, 2), ({"patience": 6}, 1)])
def test_a_callback_ends_the_training(false, options, weights_of):
    after = []
    history, moved = scripted(
        DIP, callbacks=[lambda r: false if r.epoch == 2 else None, after.append], **options
    )
    assert len(history.loss) == len(after) == 3 and history.stopped_early
    assert moved == weights_of + 1


@pytest.mark.parametrize("verdict", [None, True, np.True_, 0, [], ""])
def test_only_false_ends_the_training(verdict):
    history, _ = scripted(DIP, callbacks=[lambda r: verdict])
    assert len(history.loss) == 6 and not history.stopped_early


def test_a_callback_that_raises_leaves_the_epoch_s_state():
    model, batches, _, _ = linear_problem()
    other, same, _, _ = linear_problem()
    optimizer, twin = Adam(0.1, model.parameters()), Adam(0.1, other.parameters())

    def interrupt(record):
        if record.epoch == 2:
            raise KeyboardInterrupt

    model.eval()
    with pytest.raises(KeyboardInterrupt):
        quiet(model, mse_loss, optimizer, batches, epochs=9, patience=9, callbacks=[interrupt])
    assert not model.training and is_recording()
    quiet(other, mse_loss, twin, same, epochs=3)
    # Going on from here is going on from there.
    for net, its, data in ((model, optimizer, batches), (other, twin, same)):
        assert data.epoch == 3
        quiet(net, mse_loss, its, data, epochs=2)
    for name, weight in model.state_dict().items():
        assert np.array_equal(weight, other.state_dict()[name])


@pytest.mark.parametrize(
    ("training", "validation", "message"),
    [
        ([9, np.nan, 9], [9, 9, 9], "the training loss of epoch 1 is nan: try a smaller learning"),
        ([9, 9, np.inf], [9, 9, 9], "the training loss of epoch 2 is inf"),
        ([9, 9, 9], [-np.inf, 9, 9], "the validation loss of epoch 0 is -inf"),
    ],
)
def test_losses_that_are_not_finite(training, validation, message):
    records = []
    with pytest.raises(FloatingPointError, match=message):
        scripted(validation, training=training, epochs=3, callbacks=[records.append])
    assert len(records) == int(message.split("epoch ")[1][0])


def test_a_real_divergence_is_named():
    model, batches, _, _ = linear_problem()
    diverging = SGD(1e30, model.parameters())
    with (
        np.errstate(over="ignore", invalid="ignore"),
        pytest.raises(FloatingPointError, match=r"the training loss of epoch \d+ is (inf|nan)"),
    ):
        quiet(model, mse_loss, diverging, batches)


def test_progress_shows_the_losses(capsys):
    pytest.importorskip("tqdm", reason="tqdm is not installed: no progress bar to look at")
    model, batches, _, _ = linear_problem()
    optimizer = SGD(0.1, model.parameters())
    fit(model, mse_loss, optimizer, batches, batches, epochs=3)
    shown = capsys.readouterr()
    assert "3/3" in shown.err and "loss=" in shown.err and "validation=" in shown.err
    assert shown.out == ""
    fit(model, mse_loss, optimizer, batches, epochs=1, progress=False)
    assert capsys.readouterr() == ("", "")


def test_without_tqdm_there_is_no_progress(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    model, batches, _, _ = linear_problem()
    history = fit(model, mse_loss, SGD(0.1, model.parameters()), batches, epochs=2)
    assert len(history.loss) == 2 and capsys.readouterr() == ("", "")


class Unsized:
    """An iterable of nothing that cannot say so before."""

    def __iter__(self):
        return iter(())


MODEL = Linear(1, 1, dtype="float64", seed=0)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"epochs": 0}, ValueError, "epochs must be at least 1, received 0"),
        ({"epochs": 1.0}, TypeError, "epochs must be an integer, received 1.0"),
        ({"patience": 0}, ValueError, "patience must be at least 1, received 0"),
        ({"patience": True}, TypeError, "patience must be an integer, received True"),
        ({"min_delta": -0.1}, ValueError, r"min_delta must lie in \[0, inf\), received -0.1"),
        ({"batches": 3}, TypeError, "batches must be an iterable of .* received int"),
        ({"batches": iter([(ONE, ONE)])}, TypeError, "every epoch, .* received a list_iterator"),
        ({"validation": iter([])}, TypeError, "validation must be something that can be iterated"),
        ({"validation": 3}, TypeError, "validation must be an iterable of .* received int"),
        ({"batches": []}, ValueError, "batches is empty"),
        ({"batches": Batches(ONE, ONE, 2, drop_last=True)}, ValueError, "batches is empty"),
        ({"batches": Unsized()}, ValueError, "there are no training batches"),
        ({"validation": []}, ValueError, "validation is empty"),
        ({"callbacks": [3]}, TypeError, r"callbacks\[0\] must be callable, received 3"),
        ({"callbacks": print}, TypeError, "callbacks must be an iterable"),
        ({"loss": "mse"}, TypeError, "loss must be callable, received 'mse'"),
        ({"optimizer": None}, TypeError, "optimizer must be an Optimizer, received None"),
        ({"model": LSTM(1, 1, dtype="float64")}, ValueError, "optimizer holds no parameter of"),
        ({"batches": [ONE]}, TypeError, "a batch must be a pair .* received ndarray"),
        ({"batches": [(ONE,) * 4]}, TypeError, "a batch must be a pair .* received tuple"),
        ({"model": lambda x: x}, TypeError, "model must be a layer .* received function"),
    ],
)
def test_bad_arguments(options, error, message):
    options = {
        "model": MODEL,
        "loss": mse_loss,
        "optimizer": SGD(0.1, MODEL.parameters()),
        "batches": [(ONE, ONE)],
        "progress": False,
    } | options
    before = MODEL.weight.data.copy()
    with pytest.raises(error, match=message):
        fit(**options)
    assert MODEL.training
    assert np.array_equal(MODEL.weight.data, before)


def test_a_model_must_return_one_array():
    lstm = LSTM(1, 1, seed=0)
    steps = np.ones((1, 2, 1), "float32")
    with pytest.raises(TypeError, match="the model must return one array, received tuple"):
        fit(lstm, mse_loss, SGD(0.1, lstm.parameters()), [(steps, steps)], progress=False)
