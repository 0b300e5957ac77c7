"""Lengths on the GPU: used clamped, found bad without waiting, reported by the next call."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from cases import DROPOUT_KEY, results
from gpu_cases import on_host
from gpu_on_cpu import record
from oracle import Result

from cupy_lstm import LSTM, RNN, BiRNN, LSTMCell, no_grad

pytestmark = pytest.mark.gpu_on_cpu

STEPS = 5
REMEDY = (
    "; that row was run as if clamped to [0, steps] "
    "(check_lengths=True finds it at once, and waits)"
)


def bad(row, length, steps=STEPS):
    """Return the sentence of a bad length of an earlier call."""
    limit = "a length cannot be negative" if length < 0 else f"its inputs had {steps} steps"
    return f"sequence_length[{row}] of an earlier call was {length}, but {limit}" + REMEDY


def error_of(call):
    with pytest.raises(ValueError) as caught:
        call()
    return str(caught.value)


@pytest.fixture
def lstm(cupy):
    layer = LSTM(3, 4, 2, "bidirect", xp="cupy", seed=0)
    yield layer
    layer(random(cupy, 1, STEPS, 3))  # nothing is left for the next test


def random(cupy, *shape):
    return cupy.asarray(np.random.default_rng(0).standard_normal(shape, "float32"))


def test_a_bad_length_is_reported_by_the_next_call_and_then_forgotten(cupy, lstm):
    x, lengths = random(cupy, 3, STEPS, 3), cupy.array([5, 7, 2])
    with record() as log:
        y, _ = lstm(x, None, lengths)
        lstm.backward(y)
    assert not log.synchronisations
    assert not log.host_copies
    with record() as log:
        assert error_of(lambda: lstm(x)) == bad(1, 7)
    assert not log.synchronisations
    assert not log.launches
    lstm(x, None, cupy.array([5, 5, 0]))
    lstm(x)


def test_a_negative_length_is_told_apart(cupy, lstm):
    x = random(cupy, 3, STEPS, 3)
    lstm(x, None, cupy.array([5, 5, -7]))
    assert error_of(lambda: lstm(x, None, cupy.array([1, 1, 1]))) == bad(2, -7)


@pytest.mark.parametrize("rows", [1, 2, 255, 256, 257, 700])
def test_the_first_bad_row_is_reported(cupy, lstm, rows):
    x = random(cupy, rows, STEPS, 3)
    for wrong in {0, rows // 2, rows - 1}:
        lengths = np.full(rows, STEPS)
        lengths[wrong:] = STEPS + 1 + np.arange(rows - wrong)
        lstm(x, None, cupy.asarray(lengths))
        assert error_of(lambda: lstm(x)) == bad(wrong, STEPS + 1)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "int32", "uint32", "int64", "uint64"])
def test_every_integer_dtype(cupy, lstm, dtype):
    x = random(cupy, 2, STEPS, 3)
    lstm(x, None, cupy.array([3, 100], dtype))
    assert error_of(lambda: lstm(x)) == bad(1, 100)


def test_the_ends_are_allowed_and_what_lies_beyond_is_not(cupy, lstm):
    x = random(cupy, 1, STEPS, 3)
    for length in (0, STEPS):
        lstm(x, None, cupy.array([length]))
    lstm(x)
    for length in (-1, STEPS + 1, -(2**63), 2**63 - 1):
        lstm(x, None, cupy.array([length]))
        assert error_of(lambda: lstm(x)) == bad(0, length)


def test_a_report_that_nobody_has_read_stays(cupy):
    """Two calls can be under way before the host looks; the first report is the one to tell."""
    from cupy_lstm.lengths import _check_later, raise_reported

    for lengths, steps in (([1, 9], 4), ([8, 1], 3)):
        _check_later(cupy.array(lengths), steps)
    assert error_of(lambda: raise_reported(0)) == bad(1, 9, 4)
    raise_reported(0)


def test_reading_a_report_leaves_what_the_next_one_may_be_writing(cupy):
    """The next kernel may have written length and steps, and be about to write its row."""
    from cupy_lstm.lengths import _report, raise_reported

    report = _report(0)
    report[:] = (2, 9, 4)
    assert error_of(lambda: raise_reported(0)) == bad(1, 9, 4)
    assert report.tolist() == [0, 9, 4]


def test_first_calls_of_many_threads_share_one_report(cupy, monkeypatch):
    """A report of which two threads had one each could be freed while a kernel writes there."""
    from cupy_lstm import lengths

    allocate, allocated, start = cupy.cuda.alloc_pinned_memory, [], threading.Barrier(8)

    def slow(size):
        time.sleep(0.01)  # every other thread asks meanwhile
        allocated.append(size)
        return allocate(size)

    def ask(_):
        start.wait()
        return lengths._report(0)

    monkeypatch.setattr(lengths, "_reports", {})
    monkeypatch.setattr(cupy.cuda, "alloc_pinned_memory", slow)
    with ThreadPoolExecutor(8) as pool:
        first, *others = pool.map(ask, range(8))
    assert allocated == [3 * 8]
    assert all(other is first for other in others)


@pytest.mark.parametrize("lengths", [[7, 9, 6], [-1, -5, -(2**62)], [9, 3, -2]])
def test_results_are_those_of_clamped_lengths(cupy, lengths):
    lstm = LSTM(3, 4, 2, "bidirect", dropout=0.5, proj_size=2, xp="cupy", seed=0)
    x, runs = random(cupy, 3, STEPS, 3), []
    for given in (lengths, np.clip(lengths, 0, STEPS)):
        lstm.dropout_seed, lstm.dropout_calls = DROPOUT_KEY["seed"], DROPOUT_KEY["call"]
        lstm.clear_gradients()
        y, (h, c), cells = lstm(x, None, cupy.asarray(given), return_cells=True)
        dx, (dh, dc) = lstm.backward(y, (h, c), cells)
        grads = {name: p.grad for name, p in lstm.named_parameters()}
        runs.append(results(on_host(Result(y, h, c, cells, dx, dh, dc, grads))))
        if given is lengths:
            assert "of an earlier call" in error_of(lambda: lstm(x))
    for name, array in runs[0].items():
        assert array.tobytes() == runs[1][name].tobytes(), name


def test_check_lengths_finds_them_at_once_and_leaves_no_report(cupy, lstm):
    x = random(cupy, 3, STEPS, 3)
    with record() as log:
        text = error_of(lambda: lstm(x, None, cupy.array([5, 7, 2]), check_lengths=True))
    assert text == "sequence_length[1] is 7, but inputs have 5 steps"
    assert log.synchronisations
    text = error_of(lambda: lstm(x, None, cupy.array([5, 1, -2]), check_lengths=True))
    assert text == "sequence_length[2] is -2, but a length cannot be negative"
    lstm(x, None, cupy.array([5, 1, 2]), check_lengths=True)
    lstm(x)


@pytest.mark.parametrize("kind", ["list", "numpy"])
def test_lengths_of_the_host_are_checked_by_the_host(cupy, lstm, kind):
    x, convert = random(cupy, 3, STEPS, 3), {"list": list, "numpy": np.array}[kind]
    assert error_of(lambda: lstm(x, None, convert([5, 7, 2]))) == (
        "sequence_length[1] is 7, but inputs have 5 steps"
    )
    with record() as log:
        y, _ = lstm(x, None, convert([5, 3, 2]))
    assert not [entry for entry in log.launches if "check_lengths" in entry.name]
    expected, _ = lstm(x, None, cupy.array([5, 3, 2]))
    assert y.get().tobytes() == expected.get().tobytes()


def test_the_caller_may_fill_his_lengths_anew(cupy, lstm):
    x, lengths = random(cupy, 3, STEPS, 3), cupy.array([5, 3, 2])
    y, _ = lstm(x, None, lengths)
    expected, _ = lstm.backward(y)
    y, _ = lstm(x, None, lengths)
    lengths[...] = 1
    found, _ = lstm.backward(y)
    assert found.get().tobytes() == expected.get().tobytes()


def test_a_call_that_reports_changes_nothing(cupy):
    lstm = LSTM(3, 4, 2, dropout=0.5, xp="cupy", seed=0)
    x = random(cupy, 3, STEPS, 3)
    y, _ = lstm(x, None, cupy.array([5, 7, 2]))
    calls = lstm.dropout_calls
    assert error_of(lambda: lstm(x)) == bad(1, 7)
    assert lstm.dropout_calls == calls
    lstm.backward(y)  # of the call before


def test_without_a_tape_too(cupy, lstm):
    x = random(cupy, 3, STEPS, 3)
    with no_grad():
        lstm(x, None, cupy.array([5, 7, 2]))
        assert error_of(lambda: lstm(x)) == bad(1, 7)


def test_every_face_with_lengths_reports(cupy):
    x = random(cupy, 3, STEPS, 3)
    options = {"xp": "cupy", "seed": 0}
    for layer in (
        RNN(LSTMCell(3, 4, **options)),
        RNN(LSTMCell(3, 4, **options), is_reverse=True),
        BiRNN(LSTMCell(3, 4, **options), LSTMCell(3, 4, **options)),
    ):
        layer(x, None, cupy.array([5, 7, 2]))
        assert error_of(lambda layer=layer: layer(x)) == bad(1, 7)


def test_a_report_belongs_to_its_device(cupy):
    layers, inputs = [], []
    for device in (0, 1):
        with cupy.cuda.Device(device):
            layers.append(LSTM(3, 4, xp="cupy", seed=0))
            inputs.append(random(cupy, 3, STEPS, 3))
    with cupy.cuda.Device(1):
        layers[1](inputs[1], None, cupy.array([5, 7, 2]))
    layers[0](inputs[0])
    with cupy.cuda.Device(1):
        assert error_of(lambda: layers[1](inputs[1])) == bad(1, 7)


@pytest.mark.parametrize("shape", [(2,), (3, 2), (1, 3), ()])
def test_a_wrong_shape_is_seen_by_the_host(cupy, lstm, shape):
    x = random(cupy, 3, STEPS, 3)
    text = error_of(lambda: lstm(x, None, cupy.ones(shape, "int64")))
    assert text.startswith(f"sequence_length has shape {list(shape)}, but must have shape [3]")
    lstm(x, None, cupy.ones((3, 1), "int64"))


def test_numbers_that_are_no_integers(cupy, lstm):
    x = random(cupy, 3, STEPS, 3)
    text = error_of(lambda: lstm(x, None, cupy.ones(3)))
    assert text == "sequence_length must hold integers, received dtype float64"
