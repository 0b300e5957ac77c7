"""Truncated backpropagation through time: segments of series, and the states carried on."""

import re

import numpy as np
import pytest
from teams import on_threads

from cupy_lstm import (
    LSTM,
    SGD,
    Adam,
    Checkpoints,
    Layer,
    Linear,
    SegmentBatches,
    StatefulLSTM,
    engine,
    fit,
    lstm_backward,
    lstm_forward,
    mse_loss,
    no_grad,
)
from cupy_lstm.distributed import SingleProcess

N, T, K = 6, 23, 5


def series(features=3, outputs=2):
    rng = np.random.default_rng(0)
    return (rng.standard_normal((N, T, size), "float32") for size in (features, outputs))


class Tagger(Layer):
    """An output at every step."""

    def __init__(self):
        super().__init__()
        self.lstm = StatefulLSTM(LSTM(3, 8, 2, seed=0))
        self.head = Linear(8, 2, seed=0)

    def __call__(self, x, begins):
        return self.head(self.lstm(x, begins))

    def backward(self, gradient):
        return self.lstm.backward(self.head.backward(gradient))


@pytest.mark.parametrize("time_major", [False, True])
def test_segments_are_one_long_call(time_major):
    """The outputs and final states of segments are those of the whole series, to the last bit."""
    x, _ = series()
    x = x.swapaxes(0, 1) if time_major else x
    axis = 0 if time_major else 1
    lstm = LSTM(3, 8, 2, time_major=time_major, proj_size=4, seed=0)
    stateful = StatefulLSTM(lstm)
    with engine("simd"), no_grad():  # each row and step of it is computed alone
        whole, final = lstm(x)
        for _ in range(2):  # and the second time they begin anew
            starts = range(0, T, K)
            parts = [
                stateful(x.take(range(start, min(start + K, T)), axis), start == 0)
                for start in starts
            ]
            assert np.array_equal(np.concatenate(parts, axis), whole)
            for carried, one in zip(stateful.states, final, strict=True):
                assert np.array_equal(carried, one)


def test_gradients_stay_within_a_segment():
    x, _ = series()
    lstm = LSTM(3, 8, seed=0)
    stateful = StatefulLSTM(lstm)
    stateful(x[:, :K], True)
    before = tuple(state.copy() for state in stateful.states)
    y = stateful(x[:, K : 2 * K])
    dx = stateful.backward(y)
    weights = [layer.arrays() for layer in lstm._layers]
    own, _, tape = lstm_forward(x[:, K : 2 * K], weights, before)
    expected, _, gradients = lstm_backward(tape, own)
    assert np.array_equal(dx, expected)
    assert np.array_equal(lstm.weight_hh_l0.grad, gradients[0].weight_hh[0])


def test_batches_are_segments_in_order():
    x, y = series()
    batches = SegmentBatches(x, y, K, 4)
    found = list(batches)
    assert len(found) == len(batches) == 2 * 5
    assert [begins for (_, begins), _ in found] == ([True] + [False] * 4) * 2
    for half, rows in ((found[:5], slice(0, 4)), (found[5:], slice(4, 6))):
        assert np.array_equal(np.concatenate([inputs for (inputs, _), _ in half], 1), x[rows])
        assert np.array_equal(np.concatenate([targets for _, targets in half], 1), y[rows])


def test_series_are_shuffled_and_their_steps_are_not():
    x = np.arange(N * T).reshape(N, T)
    batches = SegmentBatches(x, x, K, 2, shuffle=True, seed=1)
    orders = []
    for _ in range(2):
        parts = list(batches)
        rows = [np.concatenate([a for (a, _), _ in parts[i : i + 5]], 1) for i in (0, 5, 10)]
        whole = np.concatenate(rows)
        assert np.array_equal(np.sort(whole[:, 0]), x[:, 0])
        assert (np.diff(whole, axis=1) == 1).all()
        orders.append(whole[:, 0].tolist())
    assert orders[0] != orders[1]
    batches.epoch = 0
    again = list(batches)
    assert again[0][0][0][:, 0].tolist() == orders[0][:2]


def test_fit_is_the_loop_written_out():
    x, y = series()
    model, other = Tagger(), Tagger()
    batches = SegmentBatches(x, y, K, 4, shuffle=True, seed=3)
    fit(model, mse_loss, SGD(0.1, model.parameters()), batches,
        SegmentBatches(x, y, T, N), epochs=2, progress=False)  # fmt: skip
    optimizer = SGD(0.1, other.parameters())
    batches.epoch = 0
    for _ in range(2):
        states = None
        for (part, begins), target in batches:
            hidden, states = other.lstm.lstm(part, None if begins else states)
            _, gradient = mse_loss(other.head(hidden), target)
            optimizer.clear_grad()
            other.lstm.lstm.backward(other.head.backward(gradient))
            optimizer.step()
    for name, weight in model.state_dict().items():
        assert np.array_equal(weight, other.state_dict()[name]), name


def test_a_checkpoint_is_of_its_segments(tmp_path):
    """What was chosen is compared where a training goes on."""

    def train(folder, steps=K, batch_size=4, **options):
        model = Tagger()
        batches = SegmentBatches(*series(), steps, batch_size, seed=0, **options)
        adam = Adam(0.01, model.parameters())
        fit(model, mse_loss, adam, batches, epochs=1, checkpoints=folder, progress=False)

    train(tmp_path)
    for options, message in (
        ({"steps": K + 1}, "batches.steps was 5 there, and is 6 here"),
        ({"batch_size": 5}, "batches.batch_size was 4 there, and is 5 here"),
        ({"shuffle": True}, "batches.shuffle was False there, and is True here"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            train(tmp_path, **options)
    x, y = series()
    assert SegmentBatches(x, y, K, 4).settings() == {
        "inputs": ["float32 [6, 23, 3]"],
        "targets": "float32 [6, 23, 2]",
        "weights": None,
        "batch_size": 4,
        "shuffle": False,
        "drop_last": False,
        "steps": K,
    }


@pytest.mark.parametrize("stop", [1, 4, 7])
def test_a_training_goes_on_within_a_series(tmp_path, stop):
    """The states that are carried are in the checkpoint."""

    def train(folder=None, killed_after=None, seed=3):
        model = Tagger()
        optimizer = Adam(0.01, model.parameters())
        batches = SegmentBatches(*series(), 5, 2, shuffle=True, seed=seed)
        step, done = optimizer.step, []

        def counted():
            if len(done) == killed_after:
                raise KeyboardInterrupt
            done.append(step())

        optimizer.step = counted
        checkpoints = None if folder is None else Checkpoints(folder, every=1)
        fit(
            model,
            mse_loss,
            optimizer,
            batches,
            epochs=2,
            checkpoints=checkpoints,
            progress=False,
        )
        return model

    expected = train()
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, killed_after=stop)
    resumed = train(tmp_path, seed=None)  # the seed in use is in the checkpoint
    for name, weight in expected.state_dict().items():
        assert np.array_equal(weight, resumed.state_dict()[name]), name
    for one, other in zip(expected.lstm.states, resumed.lstm.states, strict=True):
        assert np.array_equal(one, other)


def test_several_processes_keep_no_states_within_an_epoch(tmp_path):
    """That is refused before the first batch; after each epoch they are not needed."""

    def train(communicator, folder=None, epochs=2, loss=mse_loss, **options):
        model = StatefulLSTM(LSTM(3, 2, seed=0))
        batches = SegmentBatches(*series(), 8, 4, shuffle=True, seed=0)
        adam = Adam(0.01, model.parameters())
        checkpoints = None if folder is None else Checkpoints(folder, **options)
        options = {"checkpoints": checkpoints, "communicator": communicator, "progress": False}
        fit(model, loss, adam, batches, epochs=epochs, **options)
        return [parameter.data for parameter in model.parameters()]

    never = tmp_path / "never"
    refused = on_threads(2, lambda communicator: train(communicator, never, every=6))
    assert [type(error) for error in refused] == [ValueError] * 2
    assert all("leave out every= of Checkpoints" in str(error) for error in refused)
    assert not never.exists()

    expected = on_threads(2, train)
    on_threads(2, lambda communicator: train(communicator, tmp_path / "run", epochs=1))
    resumed = on_threads(2, lambda communicator: train(communicator, tmp_path / "run"))
    for found, whole in zip(resumed, expected, strict=True):
        assert all(map(np.array_equal, found, whole))

    def interrupting(prediction, target):
        next(left)
        return mse_loss(prediction, target)

    left = iter(range(2))
    interrupting.__qualname__ = mse_loss.__qualname__
    with pytest.raises(StopIteration):
        train(SingleProcess(), tmp_path / "one", loss=interrupting, every=1)
    first, second = on_threads(2, lambda communicator: train(communicator, tmp_path / "one"))
    assert "is within an epoch of one process" in str(first) == str(second)[-len(str(first)) :]


def test_it_learns_what_lies_before_the_segment():
    """The first value of a series, asked for at every step: only carried states know it."""
    rng = np.random.default_rng(0)
    x = np.zeros((64, 12, 3), "float32")
    x[:, 0, 0] = rng.choice([-1, 1], 64)
    x[:, 0, 1] = 1
    y = np.repeat(x[:, :1, :1], 12, 1).repeat(2, 2)
    losses = []
    for forgetful in (False, True):
        model = Tagger()
        batches = [
            ((part, begins or forgetful), target)
            for (part, begins), target in SegmentBatches(x, y, 4, 64)
        ]
        optimizer = Adam(0.02, model.parameters())
        history = fit(model, mse_loss, optimizer, batches, epochs=40, progress=False)
        losses.append(min(history.loss))
    assert losses[0] < 0.1 < 0.5 < losses[1]  # two of three segments can know nothing: 2 / 3


def test_a_failed_call_changes_no_state():
    x, _ = series()
    stateful = StatefulLSTM(LSTM(3, 8))
    stateful(x)
    states = stateful.states
    with pytest.raises(ValueError) as raised:
        stateful(x[:4])
    assert str(raised.value) == (
        "inputs have 4 series, but the states are those of 6: say begins=True with the first "
        "steps of other series"
    )
    with pytest.raises(ValueError, match="inputs has shape"):
        stateful(x[..., :2])
    assert stateful.states is states
    assert stateful(x[:4], True).shape == (4, T, 8)
    stateful.reset()
    assert stateful.states is None


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda x: StatefulLSTM(3), TypeError, "lstm must be an LSTM, received int"),
        (lambda x: StatefulLSTM(LSTM(3, 4, direction="bidirect")), ValueError,
         "lstm must have direction='forward', this one is bidirectional: its reverse direction "
         "begins at the end of a series, which a segment has not seen"),
        (lambda x: StatefulLSTM(LSTM(3, 4))(x, 1), ValueError,
         "begins must be True or False, received 1"),
        (lambda x: SegmentBatches([1], x, 2, 2), TypeError,
         "inputs must be an array of numpy or cupy, received list"),
        (lambda x: SegmentBatches(x, x[:, :9], 2, 2), ValueError,
         "targets have 6 series of 9 steps, but inputs have 6 of 23"),
        (lambda x: SegmentBatches(x, x[:, 0, 0], 2, 2), ValueError,
         "targets must be series of steps [N,T,...], received shape [6]"),
        (lambda x: SegmentBatches(x, x, 0, 2), ValueError, "steps must be at least 1, received 0"),
        (lambda x: SegmentBatches(x, x, 2, 0), ValueError,
         "batch_size must be at least 1, received 0"),
    ],
)  # fmt: skip
def test_wrong_arguments(make, error, message):
    x, _ = series()
    with pytest.raises(error) as raised:
        make(x)
    assert str(raised.value) == message


@pytest.mark.gpu_on_cpu
def test_on_a_gpu(cupy):
    """States and segments stay on the device, and nothing waits for it."""
    from gpu_on_cpu import record

    x, y = (cupy.asarray(array) for array in series())
    model = StatefulLSTM(LSTM(3, 2, xp="cupy"))
    with record() as log:
        for (part, begins), _ in SegmentBatches(x, y, K, 4):
            model.backward(model(part, begins))
    assert not log.synchronisations
    assert not log.host_copies
    assert isinstance(model.states[0], cupy.ndarray)
    host = model.to("numpy")
    assert host.states is None
