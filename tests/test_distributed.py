"""Training on several processes, played by threads: shares, sums, agreement, what they learn."""

import multiprocessing
import sys
import threading
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from distributed_cases import ROWS, assert_same_training, data, train, weights
from teams import Member, Team, on_threads

from cupy_lstm import LSTM, SGD, Checkpoints, Linear, SegmentBatches, StatefulLSTM, fit, mse_loss
from cupy_lstm.announcements import watching_gradients
from cupy_lstm.distributed import (
    SingleProcess,
    aborting,
    launched,
    linear_scaling,
    on_first,
    share_of,
    summed_gradients,
)
from cupy_lstm.distributed import launcher as launchers
from cupy_lstm.distributed.agreement import summed
from cupy_lstm.modes import rows_from
from cupy_lstm.schedule import StepDecay


def members(size):
    team = Team(size)
    return [Member(team, rank) for rank in range(size)]


@pytest.mark.parametrize("size", [2, 3, 5, 30])
def test_shares_cover_a_batch_once_in_order(size):
    x, y = data()
    shares = [share_of(((x, x[:, 0]), y), member) for member in members(size)]
    working = [share for share in shares if share.weight]
    assert len(working) == min(size, ROWS)
    assert np.array_equal(np.concatenate([share.batch[1] for share in working]), y)
    assert np.array_equal(np.concatenate([share.batch[0][0] for share in working]), x)
    assert np.array_equal(np.concatenate([share.batch[0][1] for share in working]), x[:, 0])
    rows = [len(share.batch[1]) for share in working]
    assert max(rows) - min(rows) <= 1
    assert [share.first_row for share in working] == [0, *np.cumsum(rows)[:-1]]
    assert [share.weight for share in working] == [n / ROWS for n in rows]
    for share in shares[ROWS:]:
        assert len(share.batch[1]) == 1 and share.first_row == 0


def test_a_single_process_has_the_batch_itself():
    batch = [1, 2]
    assert share_of(batch, SingleProcess()) == (batch, 0, 1.0)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ((np.ones((3, 2)), np.float64(1)), "targets must be an array with rows"),
        ((np.ones((3, 2)), None), "received NoneType"),
        (((np.ones((3, 2)), [3, 4]), np.ones(3)), "has 2 rows, but the targets have 3"),
        ((np.ones((2, 3)), np.ones(3)), "an array of the batch has 2 rows, but the targets have 3"),
    ],
)
def test_batches_that_cannot_be_divided(batch, message):
    with pytest.raises(ValueError, match=message):
        share_of(batch, members(2)[1])


def test_what_has_no_rows_goes_to_all():
    x, y = data()
    share = share_of(((x, True, None, [*range(ROWS)]), y), members(2)[1])
    assert share.batch[0][1:] == (True, None, [*range(12, ROWS)])


def test_states_are_carried_by_the_rows_that_a_process_has():
    """Long series in segments: ``begins`` is for all, the states are of each one's rows."""

    def run(communicator):
        model = StatefulLSTM(LSTM(2, 3, seed=0, dtype="float64"))
        x = np.random.default_rng(0).standard_normal((5, 12, 2))
        batches = SegmentBatches(x, x.sum(axis=2, keepdims=True) * np.ones(3), 4, 5)
        optimizer = SGD(0.5, model.parameters())
        options = {"epochs": 3, "progress": False, "communicator": communicator}
        history = fit(model, mse_loss, optimizer, batches, **options)
        return history, model

    alone, single = run(SingleProcess())
    for history, model in on_threads(2, run):
        near = 64 * np.finfo("float64").eps
        assert np.allclose(history.loss, alone.loss, rtol=near, atol=0)
        assert model.states[0].shape[1] in (2, 3)
        for found, weight in zip(model.parameters(), single.parameters(), strict=True):
            assert abs(found.data - weight.data).max() <= near * abs(weight.data).max()


@pytest.mark.parametrize("size", [2, 3, 4])
def test_the_curve_is_that_of_one_process(size):
    results = on_threads(size, lambda communicator: train(communicator))
    for history, model in results:
        assert history == results[0][0]
        for name, weight in weights(model).items():
            assert np.array_equal(weight, weights(results[0][1])[name]), name
    assert_same_training(results[0][0], weights(results[0][1]))


def test_dividing_a_batch_divides_its_dropout():
    """Without the row's number, ranks would drop by the rows of their own."""
    x, _ = data()
    whole = LSTM(2, 4, 2, dropout=0.5, seed=0)
    y, _ = whole(x)
    parts = []
    for share in (share_of((x, x), member) for member in members(3)):
        lstm = LSTM(2, 4, 2, dropout=0.5, seed=0)
        with rows_from(share.first_row):
            parts.append(lstm(share.batch[0])[0])
    near = 64 * np.finfo("float32").eps * abs(y).max()
    assert abs(np.concatenate(parts) - y).max() <= near
    with pytest.raises(ValueError, match="first_row"):
        rows_from(-1)


def two_layers():
    lstm = LSTM(3, 4, 2, seed=0)
    y, _ = lstm(np.ones((2, 5, 3), "float32"))
    return lstm, y


def test_the_last_layer_s_sum_starts_before_the_first_layer_s_backward_ends():
    def run(communicator):
        lstm, y = two_layers()

        def note(parameters):
            communicator.log.append(parameters[0].name)

        with summed_gradients(communicator, lstm.parameters(), bucket_bytes=1):
            # The sums watch; a second watcher only writes down what is announced.
            from cupy_lstm.announcements import _watcher

            take = _watcher.get()
            with watching_gradients(lambda parameters: (note(parameters), take(parameters))):
                lstm.backward(y)
        return communicator.log

    parameters = two_layers()[0].parameters()
    sizes = [sum(p.size for p in parameters if f"_l{k}" in p.name) for k in (0, 1)]
    for log in on_threads(2, run):
        assert log == [
            "weight_ih_l1", ("start", sizes[1]), "weight_ih_l0", ("start", sizes[0]),
            ("wait", sizes[1]), ("wait", sizes[0]),
        ]  # fmt: skip


def test_small_gradients_wait_for_company():
    def run(communicator):
        lstm, y = two_layers()
        with summed_gradients(communicator, lstm.parameters()):
            lstm.backward(y)
        return communicator.log

    size = sum(p.size for p in two_layers()[0].parameters())
    assert on_threads(2, run) == [[("start", size), ("wait", size)]] * 2


@pytest.mark.parametrize("bucket_bytes", [1, 100, 2**20])
def test_sums_of_gradients(bucket_bytes):
    """Also of a frozen weight, of one that is used twice, and of one set behind our back."""

    def run(communicator):
        lstm = LSTM(3, 4, 2, seed=0)
        lstm.weight_hh_l0.trainable = False
        linear, silent = Linear(3, 3, seed=0), Linear(2, 2, dtype="float64", seed=0)
        parameters = [*lstm.parameters(), *linear.parameters(), *silent.parameters()]
        factor = np.float32(1 + communicator.rank)
        with summed_gradients(communicator, parameters, bucket_bytes):
            y, _ = lstm(np.ones((2, 5, 3), "float32"))
            lstm.backward(y * factor)
            for _ in range(2):
                linear.backward(linear(np.ones((2, 3), "float32")) * factor)
            silent.weight.buffer.make_gradient()[...] = factor
            silent.weight.has_gradient = True
        return [p.grad for p in parameters]

    alone = run(SingleProcess())
    for gradients in on_threads(3, run):
        for found, single in zip(gradients, alone, strict=True):
            if single is None:
                assert found is None
                continue
            assert found.dtype == single.dtype
            bound = 16 * np.finfo(single.dtype).eps * abs(6 * single).max()
            assert abs(found - 6 * single).max() <= bound  # 1 + 2 + 3


@pytest.mark.parametrize("bucket_bytes", [1, 2**20])
def test_gradients_of_one_s_own_are_summed(bucket_bytes):
    """Added after the layer's; those of a frozen weight are left out, as for one process."""

    def run(communicator):
        linear = Linear(3, 3, seed=0)
        linear.bias.trainable = False
        with summed_gradients(communicator, linear.parameters(), bucket_bytes):
            linear.backward(linear(np.ones((2, 3), "float32")))
            linear.weight.add_gradient(np.full((3, 3), 5, "float32"))
            linear.bias.add_gradient(np.ones(3, "float32"))
        return linear.weight.grad, linear.bias.grad

    alone, _ = run(SingleProcess())
    for weight, bias in on_threads(2, run):
        assert np.array_equal(weight, 2 * alone)
        assert bias is None


def test_an_error_in_backward_starts_no_more_sums():
    def run(communicator):
        with (
            pytest.raises(ZeroDivisionError),
            summed_gradients(communicator, Linear(2, 2).parameters()),
        ):
            raise ZeroDivisionError
        return communicator.log

    assert on_threads(2, run) == [[], []]


def test_all_start_from_the_first():
    """Seeds differ between the processes, and so do weights, orders and dropout until then."""

    def run(communicator):
        return train(communicator, seed=communicator.rank)

    results = on_threads(3, run)
    assert results[0][0] == results[1][0] == results[2][0]
    assert_same_training(results[2][0], weights(results[2][1]))


def test_what_the_optimizer_remembers_is_replicated():
    def run(communicator):
        model = Linear(2, 1, seed=0)
        optimizer = SGD(0.1, model.parameters(), momentum=0.5)
        for _ in range(1 + 2 * communicator.rank):
            model.weight.add_gradient(np.ones((2, 1), "float32"))
            optimizer.step()
        batch = np.ones((2, 2), "float32"), np.zeros((2, 1), "float32")
        options = {"epochs": 1, "progress": False, "communicator": communicator}
        fit(model, mse_loss, optimizer, [batch], **options)
        return optimizer.state_dict()

    first, second = on_threads(2, run)
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert np.array_equal(value, second[name]), name
    assert first["steps"] == 2


def test_patience_and_callbacks_are_those_of_the_first():
    called = []

    def run(communicator):
        def stop(record):
            called.append((threading.current_thread(), record.epoch))
            return record.epoch < 1

        return train(communicator, callbacks=[stop])[0]

    histories = on_threads(2, run)
    assert [len(history.loss) for history in histories] == [2, 2]
    assert [epoch for _, epoch in called] == [0, 1]
    histories = on_threads(3, lambda communicator: train(communicator, epochs=30, patience=1)[0])
    assert histories[0] == histories[1] == histories[2]
    assert histories[0].stopped_early


def halve(model, optimizer):
    optimizer.learning_rate /= 2


def freeze(model, optimizer):
    model.bias.trainable = False


def set_weight(model, optimizer):
    model.weight.set_value(np.full((2, 1), 3, "float32"))


def train_linear(communicator, change, epochs=4, **options):
    """Change something once, after the second epoch; return what there is at the end."""
    model = Linear(2, 1, seed=0)
    optimizer = SGD(0.125, model.parameters(), momentum=0.5)

    def callback(record):
        if record.epoch == 1:
            change(model, optimizer)

    rng = np.random.default_rng(0)
    batch = rng.standard_normal((8, 2), "float32"), rng.standard_normal((8, 1), "float32")
    # Only the first one's callbacks are called: the others may have none.
    callbacks = [callback] if communicator.rank == 0 else []
    options |= {"callbacks": callbacks, "communicator": communicator, "progress": False}
    fit(model, mse_loss, optimizer, [batch] * 3, epochs=epochs, **options)
    found = np.concatenate([model.weight.numpy().ravel(), model.bias.numpy()])
    return found, optimizer.learning_rate, model.bias.trainable


@pytest.mark.parametrize("change", [halve, freeze, set_weight])
def test_what_a_callback_changes_reaches_all(change):
    alone, *others = train_linear(SingleProcess(), change)
    first, second = on_threads(2, lambda c: train_linear(c, change))
    assert np.array_equal(first[0], second[0])
    assert [*first[1:]] == [*second[1:]] == others
    assert abs(first[0] - alone).max() <= 16 * np.finfo("float32").eps * abs(alone).max()


def test_what_a_callback_changed_is_gone_on_with(tmp_path):
    """What rank 0 has read from a checkpoint is no difference between the processes."""

    def run(epochs, folder):
        options = {"epochs": epochs, "checkpoints": tmp_path / folder}
        return on_threads(2, lambda c: train_linear(c, halve, **options))

    whole = run(4, "whole")
    run(3, "ended")
    for found, expected in zip(run(4, "ended"), whole, strict=True):
        assert np.array_equal(found[0], expected[0])
        assert found[1] == expected[1] == 0.0625


def test_a_callback_that_raises_raises_everywhere():
    def run(communicator):
        def fail(record):
            raise KeyError("no such thing")

        train(communicator, callbacks=[fail])

    first, second = on_threads(2, run)
    assert isinstance(first, KeyError)
    assert isinstance(second, RuntimeError)
    assert str(second) == "rank 0 raised KeyError: 'no such thing'"


def test_what_the_first_says():
    said = {"text": "µ", "numbers": [1, 0.1, float("inf"), 2**70], "nothing": None}

    def run(communicator):
        return on_first(communicator, lambda: said if communicator.rank == 0 else 1 / 0)

    assert on_threads(3, run) == [said] * 3
    assert on_first(SingleProcess(), lambda: said) is said


def test_what_cannot_be_said_raises_everywhere():
    first, second = on_threads(2, lambda c: on_first(c, lambda: np.bool_(True)))
    assert isinstance(first, TypeError)
    assert isinstance(second, RuntimeError) and "rank 0 raised TypeError" in str(second)


def test_numbers_are_added_up():
    assert on_threads(3, lambda c: summed(c, [c.rank, 0.5])) == [[3.0, 1.5]] * 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 3}, "batches.batch_size was 7 there, and is 3 here"),
        ({"dtype": "float64"}, "batches.inputs was"),
        ({"patience": None}, "patience was 'some' there, and is 'none' here"),
    ],
)
def test_a_process_that_trains_something_else_ends_all(change, message, capsys):
    log = []

    def run(communicator):
        log.append(communicator.log)
        train(communicator, **(change if communicator.rank else {}))

    _, error = on_threads(2, run)
    assert isinstance(error, ValueError)
    assert message in str(error)
    assert any("abort" in entries for entries in log)
    assert "rank 1 of 2 failed, which ends all" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("every", "message"),
    [
        (("no checkpoints", 2), "checkpoints was 'none' there, and is 'some' here"),
        ((2, "no checkpoints"), "checkpoints was 'some' there, and is 'none' here"),
        ((2, None), "checkpoints.every was 2 there, and is None here"),
    ],
)
def test_all_write_checkpoints_alike(every, message, tmp_path):
    def run(communicator):
        mine = every[communicator.rank]
        found = None if mine == "no checkpoints" else Checkpoints(tmp_path / "folder", every=mine)
        train(communicator, checkpoints=found)

    _, error = on_threads(2, run)
    assert isinstance(error, ValueError) and message in str(error)


def test_a_single_process_is_not_aborted(capsys):
    with pytest.raises(ZeroDivisionError), aborting(SingleProcess()):
        raise ZeroDivisionError
    assert capsys.readouterr().err == ""


def test_scaled_learning_rates():
    three = members(3)[0]
    assert linear_scaling(0.5, three) == 1.5
    schedule = linear_scaling(StepDecay(0.5, 2, 0.5), three)
    assert [schedule(step) for step in range(4)] == [1.5, 1.5, 0.75, 0.75]


def test_a_communicator_is_one():
    model = Linear(1, 1)
    with pytest.raises(TypeError, match=r"communicator must be a Communicator .* received str"):
        fit(model, mse_loss, SGD(0.1, model.parameters()), [(1, 1)], communicator="mpi")


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        ({"OMPI_COMM_WORLD_SIZE": "1"}, None),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, ("OMPI_COMM_WORLD_SIZE", 4)),
        ({"PMI_SIZE": "2"}, ("PMI_SIZE", 2)),
        ({"PMI_SIZE": "x"}, None),
        ({"PMI_SIZE": "2", "CUPY_LSTM_ALONE": "1"}, None),
        ({"PMI_SIZE": "2", "CUPY_LSTM_ALONE": "0"}, ("PMI_SIZE", 2)),
        ({"SLURM_NTASKS": "8"}, None),  # a batch script, which srun has not started
        ({"SLURM_STEP_NUM_TASKS": "8"}, ("SLURM_STEP_NUM_TASKS", 8)),
    ],
)
def test_launchers(environment, expected):
    assert launchers.launcher_of(environment) == expected


@pytest.fixture
def no_launcher(monkeypatch):
    for variable in (launchers.ALONE, *launchers.LAUNCHERS):
        monkeypatch.delenv(variable, raising=False)


def test_without_a_launcher_a_process_is_alone(no_launcher):
    assert isinstance(launched(), SingleProcess)
    assert "mpi4py.MPI" not in sys.modules


@pytest.mark.parametrize("variable", launchers.LAUNCHERS)
def test_a_launcher_without_mpi4py(no_launcher, variable, monkeypatch):
    monkeypatch.setenv(variable, "4")
    monkeypatch.setattr(launchers, "find_spec", lambda name: None)
    if variable.startswith("SLURM"):
        assert isinstance(launched(), SingleProcess)
        return
    with pytest.raises(ImportError, match=r"started 4 processes, .* 'cupy_lstm\[mpi\]'"):
        launched()


def test_srun_s_processes_may_be_independent(no_launcher, monkeypatch):
    """srun sets PMI_SIZE, too; below an mpiexec, its variable counts what that one started."""
    monkeypatch.setattr(launchers, "find_spec", lambda name: None)
    monkeypatch.setenv("PMI_SIZE", "4")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    assert isinstance(launched(), SingleProcess)
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    with pytest.raises(ImportError, match="started 4 processes"):
        launched()


def launched_in_a_child(queue):
    queue.put(type(launched()).__name__)


def test_a_child_of_a_process_has_no_number(no_launcher, monkeypatch):
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "4")
    context = multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    child = context.Process(target=launched_in_a_child, args=(queue,))
    child.start()
    assert queue.get() == "SingleProcess"
    child.join()


@pytest.mark.parametrize("processes", [4, 2])
def test_a_launcher_s_processes(no_launcher, processes, monkeypatch):
    """For CuPy each takes its own GPU; a library that finds other processes is refused."""
    monkeypatch.setenv("PMI_SIZE", str(processes))
    taken = []

    class Device:
        def __init__(self, number):
            self.use = partial(taken.append, number)

    runtime = SimpleNamespace(getDeviceCount=lambda: 3)
    cupy = SimpleNamespace(cuda=SimpleNamespace(Device=Device, runtime=runtime))
    members = SimpleNamespace(size=4, local_rank=4)
    monkeypatch.setattr(launchers, "find_spec", lambda name: name)
    monkeypatch.setattr(launchers, "import_module", {"cupy": cupy}.get)
    monkeypatch.setattr(launchers, "MpiCommunicator", lambda: members)
    monkeypatch.setattr(launchers, "NcclCommunicator", lambda: "through NCCL")
    launchers._communicator.cache_clear()
    if processes == 2:
        with pytest.raises(RuntimeError, match=r"started 2 processes, but .* finds 4"):
            launched("cupy")
    else:
        assert launched("cupy") == "through NCCL" and taken == [1]
        assert launched() is members
    launchers._communicator.cache_clear()
