"""Arrays of other libraries on a GPU: nothing is copied, the host waits for nothing.

cuDF and Numba's device arrays are represented by objects with their interfaces over CuPy's arrays;
neither library is run here, for both need a GPU.
"""

import gc
import weakref

import numpy as np
import pytest
from exchange import HOST_STAND_INS, DLPack, Wrapped
from face import normal, raised
from gpu_on_cpu import record
from gpu_on_cpu.driver.recorder import Copy, EventRecord, EventWait

from cupy_lstm import LSTM, Batches, LSTMCell, sliding_windows
from cupy_lstm.interchange import adopted

pytestmark = pytest.mark.gpu_on_cpu

X = normal(2, 5, 3)


class CudaInterface(Wrapped):
    """It has the CUDA array interface alone, as a device array of Numba."""

    def __init__(self, array, stream=None, **changes):
        super().__init__(array)
        self._changes = {"stream": stream} | changes

    @property
    def __cuda_array_interface__(self):
        return self._array.__cuda_array_interface__ | self._changes


class Series(CudaInterface):
    """A column as cuDF has it: read through its interface, and never moved to the host unasked."""

    def __array__(self, dtype=None, copy=None):
        raise TypeError("implicit conversion to a host array is not allowed")


class Frame:
    """Columns as cuDF has them: a copy in one piece on request, nothing else."""

    def __init__(self, array):
        self._array = array

    def to_cupy(self):
        return self._array.copy()

    def __array__(self, dtype=None, copy=None):
        raise TypeError("implicit conversion to a host array is not allowed: call .to_cupy()")


DEVICE_STAND_INS = (DLPack, CudaInterface, Series)
each_stand_in = pytest.mark.parametrize("wrap", DEVICE_STAND_INS)


@pytest.fixture
def lstm(cupy):
    return LSTM(3, 4, xp="cupy", seed=0)


@each_stand_in
def test_every_argument_takes_them_and_nothing_is_copied(cupy, lstm, wrap):
    x, n = cupy.array(X), cupy.array([5, 2])
    states = cupy.array(normal(1, 2, 4)), cupy.array(normal(1, 2, 4, seed=1))
    copies, results = [], []
    for change in (lambda array: array, wrap):
        given = change(x), tuple(map(change, states)), change(n)
        lstm(x, states, n)  # kernels are compiled
        with record() as log:
            y, final = lstm(*given)
            dx, first = lstm.backward(change(y), tuple(map(change, final)))
        assert not log.synchronisations
        copies.append([entry for entry in log if isinstance(entry, Copy)])
        results.append([array.get() for array in (y, *final, dx, *first)])
    assert copies[0] == copies[1]
    assert all(map(np.array_equal, *results))
    assert adopted("x", wrap(x)).data.ptr == x.data.ptr


@each_stand_in
def test_streams_windows_and_batches_take_them(cupy, lstm, wrap):
    x = cupy.array(X)
    plain, other = lstm.stream(2), lstm.stream(2)
    out = cupy.empty((2, 4), "float32")
    given = wrap(out)
    assert other(wrap(x[:, 0]), out=given) is given
    assert np.array_equal(out.get(), plain(x[:, 0]).get())
    other.reset(wrap(cupy.array([True, False])))
    plain.reset([0])
    assert np.array_equal(other(wrap(x[:, 1])).get(), plain(x[:, 1]).get())
    assert np.array_equal(sliding_windows(wrap(x[0]), 2).get(), sliding_windows(X[0], 2))
    ((inputs, targets),) = Batches(wrap(x), wrap(x[:, 0]), 2)
    assert np.array_equal(inputs.get(), X)
    assert np.array_equal(targets.get(), X[:, 0])


@each_stand_in
def test_memory_lives_as_long_as_an_array_over_it(cupy, wrap):
    value = wrap(cupy.array(X))
    alive = weakref.ref(value._array)
    array = adopted("x", value)
    del value
    gc.collect()
    assert alive() is not None
    assert np.array_equal(array.get(), X)
    del array
    gc.collect()
    assert alive() is None


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_dtypes_of_dlpack(cupy, dtype):
    lstm = LSTM(3, 4, xp="cupy", dtype=dtype, seed=0)
    x = cupy.array(X).astype(lstm.dtype)
    y, _ = lstm(DLPack(x))
    assert y.dtype == lstm.dtype
    assert y.get().tobytes() == lstm(x)[0].get().tobytes()


@pytest.mark.parametrize("wrap", [CudaInterface, DLPack])
def test_any_strides(cupy, lstm, wrap):
    reverse = cupy.array(X[::-1, :, ::-1])[::-1, :, ::-1]
    assert min(reverse.strides) < 0
    for x in (reverse, cupy.array(X.transpose(2, 1, 0)).transpose(2, 1, 0)):
        assert np.array_equal(lstm(wrap(x))[0].get(), lstm(cupy.array(X))[0].get())


# --- streams -------------------------------------------------------------------------------------


def test_a_producer_with_dlpack_is_told_the_current_stream(cupy, lstm):
    own = cupy.cuda.Stream(non_blocking=True)
    value = DLPack(cupy.array(X))
    lstm(value)
    with own:
        lstm(value)
    assert value.streams == [1, own.ptr]  # 1 is the default stream, as DLPack numbers them


def test_the_gpu_waits_for_the_stream_of_a_cuda_array_and_the_host_does_not(cupy, lstm):
    x = cupy.array(X)
    theirs, ours = (cupy.cuda.Stream(non_blocking=True) for _ in range(2))
    lstm(x)
    with record(collect=True) as log, ours:
        lstm(CudaInterface(x, theirs.ptr))
    assert not log.synchronisations
    events = [entry for entry in log if isinstance(entry, EventRecord | EventWait)]
    assert [(type(entry), entry.stream) for entry in events] == [
        (EventRecord, theirs.ptr),
        (EventWait, ours.ptr),
    ]
    assert [type(entry) for entry in log][:2] == [EventRecord, EventWait]


def test_no_waiting_within_one_stream(cupy, lstm):
    x, ours = cupy.array(X), cupy.cuda.Stream(non_blocking=True)
    lstm(x)
    with record() as log:
        lstm(CudaInterface(x))
        lstm(CudaInterface(x, 1))  # the default stream, as this interface numbers them
        with ours:
            lstm(CudaInterface(x, ours.ptr))
    assert not [entry for entry in log if isinstance(entry, EventRecord | EventWait)]
    assert not log.synchronisations


def test_results_go_out_without_a_copy_in_the_current_stream(cupy, lstm):
    ours, theirs = (cupy.cuda.Stream(non_blocking=True) for _ in range(2))
    with record() as log:
        with ours:
            y, _ = lstm(cupy.array(X))
            capsule_of = y.__dlpack__(stream=theirs.ptr)
        del capsule_of
    waits = [entry.stream for entry in log if isinstance(entry, EventWait)]
    assert waits == [theirs.ptr]
    assert cupy.from_dlpack(y).data.ptr == y.data.ptr


# --- cuDF, by its interfaces ---------------------------------------------------------------------


def test_columns_and_tables(cupy):
    """As a pipeline of cuDF would call it; not run on cuDF itself."""
    cell, x = LSTMCell(3, 4, xp="cupy", seed=0), cupy.array(X[0])
    frame = Frame(x)
    assert np.array_equal(cell(frame.to_cupy())[0].get(), cell(x)[0].get())
    assert raised(TypeError, lambda: cell(frame)) == (
        "inputs is a Frame of test_gpu_interchange that cannot be read as an array: implicit "
        "conversion to a host array is not allowed: call .to_cupy()"
    )
    lstm = LSTM(3, 4, xp="cupy", seed=0)
    lengths = Series(cupy.array([5, 2]))
    expected = lstm(cupy.array(X), sequence_length=[5, 2])[0]
    assert np.array_equal(lstm(cupy.array(X), sequence_length=lengths)[0].get(), expected.get())


def test_a_column_with_missing_values(cupy, lstm):
    column = Series(cupy.array(X), mask=object())
    assert raised(TypeError, lambda: lstm(column)) == (
        "inputs is a Series of test_gpu_interchange that cannot be read as an array: CuPy "
        "currently does not support masked arrays."
    )


# --- elsewhere -----------------------------------------------------------------------------------


@pytest.mark.parametrize("wrap", HOST_STAND_INS)
def test_the_host_stays_the_host(cupy, lstm, wrap):
    assert raised(TypeError, lambda: lstm(wrap(X))) == (
        "inputs is on numpy, but the weights are on cupy, device 0: move one of them, for example "
        "with .to('numpy')"
    )
    y, _ = lstm(cupy.array(X), sequence_length=wrap(np.array([5, 2])))  # the one exception
    assert np.array_equal(y.get(), lstm(cupy.array(X), sequence_length=[5, 2])[0].get())


@each_stand_in
def test_a_gpu_stays_the_gpu(cupy, wrap):
    assert raised(TypeError, lambda: LSTM(3, 4)(wrap(cupy.array(X)))) == (
        "inputs is on GPU 0, but the weights are on numpy: move one of them, for example with "
        ".to('cupy')"
    )


@each_stand_in
def test_another_gpu(cupy, lstm, wrap):
    with cupy.cuda.Device(1):
        x, n = cupy.array(X), cupy.array([5, 2])
    for call, owner in (
        (lambda: lstm(wrap(x)), "inputs is on {}, but the weights are on {}"),
        (
            lambda: lstm(cupy.array(X), sequence_length=wrap(n)),
            "sequence_length is on {}, but the inputs are on {}",
        ),
    ):
        with record() as log:
            text = raised(TypeError, call)
        assert text == f"{owner.format('GPU 1', 'GPU 0')}: copy it to that device first"
        assert not log.synchronisations
        assert not [e for e in log if isinstance(e, Copy) and "device 1" in e.kind]
    windows = sliding_windows(wrap(x[0]), 2)  # where nothing else has a place
    assert (windows.device.id, windows.data.ptr) == (1, x.data.ptr)
