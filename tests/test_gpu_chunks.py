"""Dask arrays with CuPy chunks, and batches from files that go to the GPU."""

import re
import sys
from pathlib import Path
from types import ModuleType

import dask
import dask.array as da
import numpy as np
import pytest
from cases import CASES, make_lstm
from dask.distributed import LocalCluster
from face import normal, raised
from gpu_cases import arrays_of, storage
from gpu_on_cpu import record

from cupy_lstm import LSTM, Linear, StreamedBatches, no_grad
from cupy_lstm.dask import predict

pytestmark = pytest.mark.gpu_on_cpu

PAGE = Path(__file__).resolve().parent.parent / "docs/dask.md"
CASE = next(case for case in CASES if case.id == "2-layers")


@pytest.fixture(autouse=True)
def synchronous():
    with dask.config.set(scheduler="synchronous"):
        yield


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_chunks_on_the_gpu_are_calls_one_after_the_other(cupy, dtype):
    arrays = arrays_of(CASE, dtype)
    lstm = make_lstm(CASE, arrays.weights, dtype, xp="cupy")
    x = cupy.asarray(arrays.x)  # [3,5,4]
    lengths, cells = [5, 1, 3], "float32" if np.dtype(storage(dtype)).itemsize == 2 else dtype
    states = tuple(cupy.ones((2, 3, 6), kind) for kind in (dtype, cells))
    X = da.from_array(x, chunks=((2, 1), (2, 3), 4), asarray=False)
    options = {"initial_states": states, "sequence_length": lengths}
    lazy = predict(lstm, X, **options, return_states=True)
    found = dask.compute(*lazy)
    with no_grad():
        parts, kept = [], []
        for rows in (slice(0, 2), slice(2, 3)):
            state, row = tuple(s[:, rows] for s in states), []
            for first, last in ((0, 2), (2, 5)):
                length = (np.array(lengths[rows]) - first).clip(0, last - first)
                y, state = lstm(x[rows, first:last], state, length)
                row.append(y)
            parts.append(cupy.concatenate(row, 1))
            kept.append(state)
        h, c = (cupy.concatenate(part, 1) for part in zip(*kept, strict=True))
    y, final = found
    for actual, expected, promised in (
        (y, cupy.concatenate(parts), lazy[0]),
        (final[0], h, lazy[1][0]),
        (final[1], c, lazy[1][1]),
    ):
        assert isinstance(actual, cupy.ndarray) and isinstance(promised._meta, cupy.ndarray)
        assert actual.dtype == promised.dtype == expected.dtype
        assert (actual.get() == expected.get()).all()


def test_rows_on_the_gpu(cupy):
    """The model and the chunks stay there: what is copied to the host is the model, for its key."""
    layer, x = Linear(3, 2, xp="cupy", seed=0), cupy.asarray(normal(6, 3))
    y = predict(layer, da.from_array(x, chunks=(4, 3), asarray=False))
    assert isinstance(y._meta, cupy.ndarray)
    with no_grad():
        expected = cupy.concatenate([layer(x[:4]), layer(x[4:])]).get()
    with record() as log:
        parts = y.to_delayed().ravel().tolist()
        found = dask.compute(*parts)
    assert not [copy for copy in log.host_copies if copy.kind.endswith("to host")]
    assert (np.concatenate([part.get() for part in found]) == expected).all()


def test_places_that_do_not_fit(cupy):
    host = da.zeros((2, 5, 3), dtype="float32")
    device = da.from_array(cupy.zeros((2, 5, 3), "float32"), asarray=False)
    message = raised(TypeError, lambda: predict(LSTM(3, 4, xp="cupy"), host))
    assert message == (
        "X has chunks of numpy, but the weights are on cupy: move one of them, for example with "
        "model.to('numpy') or X.map_blocks(cupy.asarray)"
    )
    message = raised(TypeError, lambda: predict(LSTM(3, 4), device))
    assert "model.to('cupy') or X.map_blocks(cupy.asnumpy)" in message
    state = cupy.zeros((1, 2, 4), "float32")
    message = raised(TypeError, lambda: predict(LSTM(3, 4), host, initial_states=(state, state)))
    assert message == "initial_states[0] (h) is not on numpy, where X and the weights are"


@pytest.mark.parametrize("ahead", [0, 2])
def test_batches_go_to_the_gpu_when_they_are_taken(cupy, ahead):
    """One copy an array, in the thread of the caller and on its stream; nothing is read back."""

    def split(windows):
        return windows[:, :-1], windows[:, -1]

    series = normal(40, 3)
    options = {"shuffle": True, "seed": 1, "ahead": ahead}
    expected = list(StreamedBatches(series, 5, split, 9, **options))
    stream = cupy.cuda.Stream(non_blocking=True)
    with record() as log, stream:
        found = list(StreamedBatches(series, 5, split, 9, **options, xp="cupy"))
    assert len(log.host_copies) == 2 * len(expected) == 2 * 4
    assert {(copy.kind, copy.stream) for copy in log.host_copies} == {
        ("host to device 0", stream.ptr)
    }
    for one, other in zip(found, expected, strict=True):
        for array, like in zip(one, other, strict=True):
            assert isinstance(array, cupy.ndarray)
            assert (array.get() == like).all()


def test_a_series_on_the_gpu_is_for_batches(cupy):
    message = raised(TypeError, lambda: StreamedBatches(cupy.zeros((9, 3)), 5, lambda w: (w, w), 2))
    assert message == "series is on cupy, device 0: Batches serves arrays that are there"


def test_the_example_of_dask_cuda(cupy, monkeypatch):
    """A cluster of threads in the place of its cluster: the scheduler and its messages are real."""

    clusters = []

    class LocalCUDACluster(LocalCluster):
        def __init__(self):
            options = {"threads_per_worker": 1, "processes": False, "dashboard_address": ":0"}
            super().__init__(n_workers=2, **options)
            clusters.append(self)

    stand_in = ModuleType("dask_cuda")
    stand_in.LocalCUDACluster = LocalCUDACluster
    monkeypatch.setitem(sys.modules, "dask_cuda", stand_in)
    first, _, last = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    names = {}
    exec(first.replace("1000", "40").replace("250", "20"), names)
    exec(last, names)
    found = names["on_gpus"](names["x"])
    assert isinstance(found, np.ndarray) and found.any()
    assert clusters[0].scheduler.transition_counter > 0, "it has not run there"
    alone = predict(names["lstm"], names["x"].map_blocks(cupy.asarray))
    assert isinstance(alone._meta, cupy.ndarray)
    assert (found == alone.compute(scheduler="synchronous").get()).all()
