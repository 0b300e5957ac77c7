"""Batches from stored series: the same as from memory, read ahead, within bounds of memory."""

import copy
import itertools
import pickle
import sys
import threading
import time
import tracemalloc

import numpy as np
import pytest
from face import normal, raised

from cupy_lstm import (
    LSTM,
    Adam,
    Batches,
    Checkpoints,
    Layer,
    Linear,
    ParquetSeries,
    StreamedBatches,
    fit,
    mse_loss,
    open_series,
    sliding_windows,
)
from cupy_lstm.read_ahead import THREAD, read_ahead

SERIES = normal(300, 3)
LENGTH = 8


def split(windows):
    """Two inputs and a target, which is one feature."""
    return (windows[:, :-1], windows[:, 0]), windows[:, -1, :1]


def threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith(THREAD)]


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    assert not threads()


def arrays(batches):
    """Return the arrays of an epoch, batch for batch."""
    return [(*inputs, targets) for inputs, targets in batches]


def assert_same_batches(first, second):
    assert len(first) == len(second) > 0
    for one, other in zip(first, second, strict=True):
        for array, like in zip(one, other, strict=True):
            assert type(array) is type(like) and array.dtype == like.dtype
            assert array.flags.c_contiguous and array.flags.writeable
            assert np.array_equal(array, like)


def npy(folder):
    np.save(folder / "series.npy", SERIES)
    return folder / "series.npy"


def zarr(folder):
    import zarr

    array = zarr.create_array(folder / "series.zarr", shape=(300, 3), chunks=(64, 2), dtype="f4")
    array[:] = SERIES
    return folder / "series.zarr"


def parquet(folder, rows=70, **columns):
    import pyarrow
    import pyarrow.parquet

    columns = columns or dict(zip("abc", SERIES.T, strict=True))
    path = folder / "series.parquet"
    pyarrow.parquet.write_table(pyarrow.table(columns), path, row_group_size=rows)
    return path


@pytest.fixture(params=[npy, zarr, parquet], ids=lambda kind: kind.__name__)
def stored(request, tmp_path):
    return open_series(request.param(tmp_path))


@pytest.mark.parametrize("buffer", [10, 50, 1000])
@pytest.mark.parametrize("stride", [1, 3, 11])
def test_in_order_it_is_batches(stored, stride, buffer):
    inputs, targets = split(sliding_windows(SERIES, LENGTH, stride))
    for drop_last in (False, True):
        memory = Batches(inputs, targets, 32, drop_last=drop_last)
        streamed = StreamedBatches(
            stored, LENGTH, split, 32, stride=stride, drop_last=drop_last, buffer=buffer
        )
        assert len(streamed) == len(memory)
        if len(memory):
            assert_same_batches(arrays(streamed), arrays(memory))


def test_shuffled_within_the_buffer_it_is_batches(stored):
    inputs, targets = split(sliding_windows(SERIES, LENGTH))
    memory = Batches(inputs, targets, 32, shuffle=True, seed=7)
    streamed = StreamedBatches(stored, LENGTH, split, 32, shuffle=True, seed=7, buffer=293)
    for epoch in (0, 1, 5, 0):
        memory.epoch = streamed.epoch = epoch
        assert_same_batches(arrays(streamed), arrays(memory))
        assert memory.epoch == streamed.epoch == epoch + 1


@pytest.mark.parametrize("stride", [1, 3])
@pytest.mark.parametrize("buffer", [1, 16, 40, 90])
def test_shuffled_in_blocks_every_window_comes_once(buffer, stride):
    series = np.arange(300.0)
    streamed = StreamedBatches(
        series, LENGTH, lambda w: (w, w), 7, stride=stride, shuffle=True, seed=3, buffer=buffer
    )
    orders = [np.concatenate([inputs for inputs, _ in streamed]) for _ in range(2)]
    for windows in orders:
        first = windows[:, 0]
        assert np.array_equal(windows, first[:, None] + np.arange(LENGTH))
        assert np.array_equal(np.sort(first), np.arange(0, 293, stride))
        assert not np.array_equal(np.sort(first), first)
        assert most_open(first // (max(1, buffer // 16) * stride)) <= 16
    assert not np.array_equal(*orders)
    streamed.epoch = 1
    assert np.array_equal(np.concatenate([inputs for inputs, _ in streamed]), orders[1])


def most_open(blocks):
    """Return how many blocks have begun and not ended, at most, in a sequence of their numbers."""
    begins = {block: place for place, block in reversed(list(enumerate(blocks)))}
    ends = {block: place for place, block in enumerate(blocks)}
    return max(
        sum(begins[block] <= place <= ends[block] for block in ends) for place in range(len(blocks))
    )


class LastStep(Layer):
    def __init__(self):
        super().__init__()
        self.lstm = LSTM(3, 8, seed=0)
        self.head = Linear(8, 1, seed=0)

    def __call__(self, x):
        _, (h, _) = self.lstm(x)
        return self.head(h[-1])

    def backward(self, gradient):
        return self.lstm.backward(dfinal_states=(self.head.backward(gradient)[None], None))


@pytest.mark.parametrize("ahead", [0, 3])
def test_a_training_is_the_same_bit_for_bit(stored, ahead):
    def next_step(windows):
        return windows[:, :-1], windows[:, -1, :1]

    inputs, targets = next_step(sliding_windows(SERIES, LENGTH))
    weights = []
    for batches in (
        Batches(inputs, targets, 64, shuffle=True, seed=1),
        StreamedBatches(stored, LENGTH, next_step, 64, shuffle=True, seed=1, ahead=ahead),
    ):
        model = LastStep()
        fit(model, mse_loss, Adam(0.01, model.parameters()), batches, epochs=2, progress=False)
        weights.append([parameter.data for parameter in model.parameters()])
    assert all(map(np.array_equal, *weights))


def test_a_training_goes_on_within_an_epoch(tmp_path):
    """From a checkpoint, shuffled in blocks, bit for bit."""

    def train(stop_at=None, folder=None):
        calls = itertools.count(1)

        def loss(prediction, target):
            if next(calls) == stop_at:
                raise KeyboardInterrupt
            return mse_loss(prediction, target)

        model = LastStep()
        batches = StreamedBatches(
            SERIES, 8, lambda w: (w[:, :-1], w[:, -1, :1]), 16, shuffle=True, seed=3, buffer=100
        )
        checkpoints = folder and Checkpoints(folder, every=5)
        adam = Adam(0.01, model.parameters())
        fit(model, loss, adam, batches, epochs=2, checkpoints=checkpoints, progress=False)
        return [parameter.data for parameter in model.parameters()]

    with pytest.raises(KeyboardInterrupt):
        train(stop_at=28, folder=tmp_path)
    assert all(map(np.array_equal, train(folder=tmp_path), train()))


def test_a_split_may_convert_and_weigh():
    def weighed(windows):
        return windows[:, :-1].astype("float64"), windows[:, -1], windows[:, 0, 0]

    inputs, targets, weights = next(iter(StreamedBatches(SERIES, 4, weighed, 5)))
    assert (inputs.dtype, targets.dtype, weights.shape) == ("float64", "float32", (5,))


def test_batches_are_made_ahead_but_no_more_than_that():
    made = []

    def source():
        for number in range(10):
            made.append(number)
            yield number

    items = read_ahead(source(), 3)
    assert not made and not threads(), "nothing begins before the first is asked for"
    assert next(items) == 0
    wait_for(lambda: len(made) == 4)
    time.sleep(0.05)
    assert made == [0, 1, 2, 3]
    assert list(items) == list(range(1, 10)) and not threads()


def wait_for(condition):
    limit = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.001)


def test_making_and_using_overlap():
    """The third item is made while the first is used, which waits for that."""
    third = threading.Event()

    def source():
        yield 1
        yield 2
        third.set()
        yield 3

    items = read_ahead(source(), 2)
    assert next(items) == 1
    assert third.wait(20)
    assert list(items) == [2, 3]


def test_samples_in_a_npy_file_need_no_more_than_batches(tmp_path):
    """A map of a file is an array: only the rows of a batch are read."""
    np.save(tmp_path / "x.npy", SERIES)
    mapped = open_series(tmp_path / "x.npy")
    assert isinstance(mapped, np.memmap) and not mapped.flags.writeable
    for inputs, targets in Batches(mapped, mapped[:, 0], 64, shuffle=True, seed=0):
        assert type(inputs) is type(targets) is np.ndarray
    for x, expected in zip(
        Batches(mapped, mapped, 64, shuffle=True, seed=0),
        Batches(SERIES, SERIES, 64, shuffle=True, seed=0),
        strict=True,
    ):
        assert all(map(np.array_equal, x, expected))


class Broken:
    """A series that cannot be read beyond a step."""

    shape, dtype = (1000, 3), np.dtype("float32")

    def __getitem__(self, steps):
        if steps.stop > 500:
            raise OSError("the disk is gone")
        return np.zeros((steps.stop - steps.start, 3), "float32")


@pytest.mark.parametrize("ahead", [0, 1, 5])
def test_an_error_of_the_reader_comes_in_its_turn(ahead):
    batches = StreamedBatches(Broken(), 10, split, 20, buffer=100, ahead=ahead)
    seen = 0
    with pytest.raises(OSError, match="the disk is gone") as caught:
        for _ in batches:
            seen += 1
    assert seen == 400 // 20
    assert any(entry.name == "__getitem__" for entry in caught.traceback)


@pytest.mark.parametrize("way", ["break", "raise", "close", "drop"])
def test_whoever_leaves_early_leaves_no_thread(way):
    batches = StreamedBatches(SERIES, LENGTH, split, 4)
    if way in ("break", "raise"):
        try:
            for _ in batches:
                assert threads()
                if way == "break":
                    break
                raise KeyError
        except KeyError:
            pass
    else:
        iterator = iter(batches)
        next(iterator)
        assert threads()
        if way == "close":
            iterator.close()
        else:
            del iterator
    assert not threads()


def test_a_failing_training_leaves_no_thread():
    def failing(prediction, target):
        raise KeyError("loss")

    model = LastStep()
    adam = Adam(0.01, model.parameters())
    batches = StreamedBatches(SERIES, 4, lambda w: (w[:, :-1], w[:, -1]), 4)
    with pytest.raises(KeyError, match="loss"):
        fit(model, failing, adam, batches, progress=False)
    assert not threads()


@pytest.mark.parametrize("shuffle", [False, True])
def test_what_is_read_goes_when_it_is_used(shuffle):
    """At most the steps of `buffer` windows are held, beside a block and a batch."""
    length, buffer, batch = 50, 3200, 8
    blocks = 16 if shuffle else 1

    class Stored:
        """As from a file: each slice is memory of its own."""

        shape, dtype, read = (4 * buffer + length - 1, 256), np.dtype("float32"), 0

        def __getitem__(self, steps):
            part = np.ones((steps.stop - steps.start, 256), "float32")
            self.read += len(part)
            return part

    stored = Stored()
    batches = StreamedBatches(
        stored, length, lambda w: (w[:, 0], w[:, 1]), batch, shuffle=shuffle, buffer=buffer, ahead=0
    )
    stored.read = 0
    tracemalloc.start()
    for _ in batches:
        pass
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    held = buffer + blocks * (length - 1)
    part = buffer // blocks + length - 1 if shuffle else 0
    numbers = 8 * 8 * buffer  # of windows, in a few arrays of integers
    assert peak <= 256 * 4 * (held + part + 2 * batch * length) + numbers
    assert stored.read == 4 * held  # that is 1 + (length - 1) / (buffer / blocks) each


ERRORS = [
    ({"series": [1, 2]}, TypeError, "received list without shape, dtype"),
    ({"series": np.array(1.0)}, ValueError, "series has no axes"),
    ({"length": 301}, ValueError, "series has 300 steps, a window of length 301 needs more"),
    ({"length": 0}, ValueError, "length must be at least 1"),
    ({"split": None}, TypeError, "split must be callable, received None"),
    ({"split": lambda w: w}, TypeError, "split must return a tuple (inputs, targets), received nd"),
    ({"split": lambda w: (w, 3)}, TypeError, "split must return arrays of numpy, received int"),
    ({"split": lambda w: (w[:, 0, 9], w)}, IndexError, "out of bounds"),
    ({"stride": 0}, ValueError, "stride must be at least 1"),
    ({"buffer": 0}, ValueError, "buffer must be at least 1"),
    ({"ahead": -1}, ValueError, "ahead must be at least 0"),
    ({"batch_size": 2.0}, TypeError, "batch_size must be an integer"),
    ({"shuffle": 1}, ValueError, "shuffle must be True or False"),
    ({"seed": -1}, ValueError, "seed must be at least 0"),
    ({"xp": "torch"}, ValueError, "xp must be one of ('numpy', 'cupy')"),
]


@pytest.mark.parametrize(("wrong", "error", "message"), ERRORS, ids=[e[2][:28] for e in ERRORS])
def test_bad_arguments(wrong, error, message):
    right = {"series": SERIES, "length": LENGTH, "split": split, "batch_size": 32}
    assert message in raised(error, lambda: StreamedBatches(**(right | wrong)))


def test_what_a_checkpoint_needs():
    batches = StreamedBatches(SERIES, LENGTH, split, 32, seed=5, shuffle=True)
    assert batches.settings() == {
        "series": "float32 [300, 3]",
        "length": LENGTH,
        "split": split,
        "stride": 1,
        "batch_size": 32,
        "shuffle": True,
        "drop_last": False,
        "buffer": 16384,
    }
    assert batches.seed == 5
    assert StreamedBatches(SERIES, LENGTH, split, 32).seed != batches.seed
    with pytest.raises(ValueError, match="epoch must be at least 0"):
        batches.epoch = -1


def test_a_parquet_file_is_read_by_row_groups(tmp_path, monkeypatch):
    path = parquet(tmp_path)
    series = open_series(path, columns=["c", "a"])
    assert isinstance(series, ParquetSeries)
    assert (series.shape, series.dtype, len(series)) == ((300, 2), "float32", 300)
    read, once = [], series._read
    monkeypatch.setattr(series, "_read", lambda group: read.append(group) or once(group))
    # The two that were used last are kept.
    for first, stop, groups in ((0, 70, [0]), (69, 71, [1]), (0, 300, [2, 3, 4]), (69, 71, [0, 1])):
        assert np.array_equal(series[first:stop], SERIES[first:stop, [2, 0]])
        assert read == groups
        read.clear()
    assert series[5:5].shape == series[9:2].shape == (0, 2)
    assert np.array_equal(series[-3:], SERIES[-3:, [2, 0]])


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda series: pickle.loads(pickle.dumps(series))]
)
def test_a_parquet_file_travels_without_its_rows(tmp_path, copied):
    series = open_series(parquet(tmp_path))
    assert np.array_equal(series[:80], SERIES[:80]) and series._kept
    other = copied(series)
    assert not other._kept
    assert np.array_equal(other[:], SERIES)


def test_columns_of_different_numbers_are_promoted(tmp_path):
    series = open_series(parquet(tmp_path, a=np.arange(5, dtype="int16"), b=np.ones(5, "f4")))
    assert series.dtype == "float32"
    assert np.array_equal(series[:], np.stack([np.arange(5), np.ones(5)], 1))


@pytest.mark.parametrize(
    ("columns", "chosen", "message"),
    [
        ({"a": [1.0], "b": ["x"]}, None, "column 'b' is of type string, a series is of numbers"),
        ({"a": [1.0]}, ["b"], "columns has 'b', "),
        ({"a": [1.0]}, [], "columns is empty"),
        ({"a": [[1.0]]}, None, "column 'a' is of type list"),
    ],
)
def test_columns_that_are_no_series(tmp_path, columns, chosen, message):
    path = parquet(tmp_path, **columns)
    assert message in raised(ValueError, lambda: open_series(path, chosen))


def test_nulls_are_an_error_with_their_place(tmp_path):
    series = open_series(parquet(tmp_path, rows=2, a=[1.0, 2.0, None, 4.0]))
    assert series[:2].ravel().tolist() == [1, 2]
    message = "column 'a' has 1 nulls in rows 2 to 3: fill them first"
    assert raised(ValueError, lambda: series[1:3]) == message
    assert "without a stride" in raised(ValueError, lambda: series[::2])
    assert raised(TypeError, lambda: series[0]) == "steps must be a slice, received int"


def test_what_cannot_be_opened(tmp_path):
    (tmp_path / "series.csv").write_text("1")
    (tmp_path / "empty").mkdir()
    np.save(tmp_path / "objects.npy", np.array([{}]))
    np.save(tmp_path / "series.npy", SERIES)
    np.save(tmp_path / "strings.npy", np.array(["a", "b"]))
    np.save(tmp_path / "structured.npy", np.zeros(3, [("a", "f4")]))
    np.save(tmp_path / "number.npy", np.float32(3))
    (tmp_path / "parts.parquet").mkdir()
    for name, error, message in (
        ("nothing.npy", FileNotFoundError, "where there is nothing"),
        ("series.csv", ValueError, "path must be a .npy or .parquet file or the folder of a Zarr"),
        ("empty", ValueError, "which holds no Zarr array"),
        ("objects.npy", ValueError, "objects"),
        ("strings.npy", ValueError, r"which holds <U1 \[2\]: a series is of numbers, with steps"),
        ("structured.npy", ValueError, r"which holds .* \[3\]: a series is of numbers"),
        ("number.npy", ValueError, r"which holds float32 \[\]: a series is of numbers"),
        ("parts.parquet", ValueError, "a folder, as Dask and Spark write: a series is one Parq"),
    ):
        with pytest.raises(error, match=message):
            open_series(tmp_path / name)
    assert "columns are for a .parquet" in raised(
        ValueError, lambda: open_series(tmp_path / "series.npy", ["a"])
    )


@pytest.mark.parametrize(("kind", "package"), [(zarr, "zarr"), (parquet, "pyarrow")])
def test_without_its_package_a_file_is_a_sentence(tmp_path, monkeypatch, kind, package):
    path = kind(tmp_path)
    monkeypatch.setitem(sys.modules, package, None)
    if package == "pyarrow":
        monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    assert f"pip install {package}" in raised(ImportError, lambda: open_series(path))
