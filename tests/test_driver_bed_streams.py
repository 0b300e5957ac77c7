"""Streams, events and graphs of the fake device, and what it refuses while it captures."""

import numpy as np
import pytest
from gpu_on_cpu import DeviceMisuseError, record

pytestmark = pytest.mark.gpu_on_cpu

ADD_ONE = """
extern "C" __global__ void add_one(float* x, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) x[i] += 1;
}
"""


@pytest.fixture
def add_one(cupy):
    return cupy.RawKernel(ADD_ONE, "add_one")


@pytest.fixture
def stream(cupy):
    with cupy.cuda.Stream(non_blocking=True) as stream:
        yield stream


# --- streams and events --------------------------------------------------------------------------


def test_streams_and_events_are_recorded_in_order(cupy, add_one):
    x = cupy.zeros(4, "f4")
    first, second = (cupy.cuda.Stream(non_blocking=True) for _ in range(2))
    event = cupy.cuda.Event()
    with record(collect=True) as log:
        add_one((1,), (4,), (x, np.int32(4)), stream=first)
        event.record(first)
        second.wait_event(event)
        add_one((1,), (4,), (x, np.int32(4)), stream=second)
        second.synchronize()
        event.synchronize()
        cupy.cuda.Device().synchronize()
        assert second.done
        assert event.done
    names = [type(entry).__name__ for entry in log]
    waits = ["Synchronisation"] * 3
    assert names == ["Launch", "EventRecord", "EventWait", "Launch", *waits, "Query", "Query"]
    assert [launch.stream for launch in log.launches] == [first.ptr, second.ptr]
    assert [wait.scope for wait in log.synchronisations] == ["stream", "event", "device"]
    assert x.get().tolist() == [2] * 4


def test_times_between_events(cupy, stream):
    start, end = stream.record(), stream.record()
    assert cupy.cuda.get_elapsed_time(start, end) >= 0
    never = cupy.cuda.Event()
    with pytest.raises(cupy.cuda.runtime.CUDARuntimeError, match="was not recorded"):
        cupy.cuda.get_elapsed_time(start, never)


def test_functions_of_the_host_run_in_the_order_of_the_stream(cupy, stream):
    seen = []
    stream.launch_host_func(seen.append, 1)
    stream.add_callback(lambda stream, status, argument: seen.append(argument), 2)
    assert seen == [1, 2]
    with pytest.raises(ZeroDivisionError):
        stream.launch_host_func(lambda _: 1 / 0, None)


# --- graphs --------------------------------------------------------------------------------------


def test_a_graph_runs_when_it_is_launched_and_with_what_is_there_then(cupy, add_one, stream):
    x, n = cupy.zeros(4, "f4"), np.int32(4)
    stream.begin_capture()
    assert stream.is_capturing()
    with record() as log:
        add_one((1,), (4,), (x, n))
        cupy.multiply(x, 2, out=x)
        x[:2].data.memset_async(0, 4)
    graph = stream.end_capture()
    assert not log.launches
    assert x.get().tolist() == [0] * 4
    other = cupy.cuda.Stream(non_blocking=True)
    for expected in ([0, 2, 2, 2], [0, 6, 6, 6]):
        with record(collect=True) as log:
            graph.launch(other)
        assert x.get().tolist() == expected
        assert [type(entry).__name__ for entry in log] == [
            "GraphLaunch",
            "Launch",
            "Launch",
            "Fill",
        ]
        assert {entry.stream for entry in log} == {other.ptr}
        assert log.launches[0].graph == log[0].graph
    assert "add_one" in graph.debug_dot_str()


def test_what_is_refused_while_capturing_does_not_spoil_the_capture(cupy, stream):
    x = cupy.ones((2, 2), "f4")
    product = cupy.empty_like(x)
    stream.begin_capture()
    with pytest.raises(NotImplementedError, match="cuBLAS API during stream capture"):
        cupy.matmul(x, x, out=product)
    with pytest.raises(RuntimeError, match="capturing, so D2H transfers are disallowed"):
        x.get()
    with pytest.raises(RuntimeError, match="capturing, so H2D transfers are disallowed"):
        x.set(np.ones((2, 2), "f4"))
    with pytest.raises(DeviceMisuseError, match="allocated during a capture: allocate before it"):
        cupy.empty(3)
    cupy.add(x, x, out=product)
    stream.end_capture().launch()
    assert product.get().tolist() == [[2, 2], [2, 2]]


@pytest.mark.parametrize(
    "forbidden",
    [
        lambda cupy, stream, x: stream.synchronize(),
        lambda cupy, stream, x: cupy.cuda.Device().synchronize(),
        lambda cupy, stream, x: stream.done,
        lambda cupy, stream, x: stream.record().synchronize(),
        lambda cupy, stream, x: stream.add_callback(lambda *_: None, None),
        lambda cupy, stream, x: stream.wait_event(cupy.cuda.Event()),
        lambda cupy, stream, x: cupy.cuda.runtime.memcpy(
            x.data.ptr, np.ones(4, "f4").ctypes.data, 16, 1
        ),
        lambda cupy, stream, x: cupy.cuda.runtime.memcpyAsync(
            x.data.ptr, np.ones(4, "f4").ctypes.data, 16, 1, stream.ptr
        ),
    ],
    ids=["stream", "device", "query", "event", "callback", "isolation", "copy", "pageable"],
)
def test_what_spoils_a_capture(cupy, add_one, stream, forbidden):
    x = cupy.zeros(4, "f4")
    stream.begin_capture()
    with pytest.raises(cupy.cuda.runtime.CUDARuntimeError, match="Captur"):
        forbidden(cupy, stream, x)
    with pytest.raises(RuntimeError, match="invalidated"):
        stream.is_capturing()
    with pytest.raises(cupy.cuda.runtime.CUDARuntimeError, match="StreamCaptureInvalidated"):
        stream.end_capture()
    assert not stream.is_capturing()


def test_allocation_spoils_a_capture_that_is_not_relaxed(cupy, stream):
    stream.begin_capture(cupy.cuda.runtime.streamCaptureModeGlobal)
    with pytest.raises(cupy.cuda.runtime.CUDARuntimeError, match="StreamCaptureUnsupported"):
        cupy.empty(3)
    with pytest.raises(cupy.cuda.runtime.CUDARuntimeError, match="StreamCaptureInvalidated"):
        stream.end_capture()


def test_the_legacy_stream_during_a_capture(cupy, add_one):
    x, blocking = cupy.zeros(4, "f4"), cupy.cuda.Stream()
    blocking.begin_capture()
    with pytest.raises(cupy.cuda.runtime.CUDARuntimeError, match="StreamCaptureImplicit"):
        add_one((1,), (4,), (x, np.int32(4)))
    with pytest.raises(cupy.cuda.runtime.CUDARuntimeError, match="Invalidated"):
        blocking.end_capture()
    free = cupy.cuda.Stream(non_blocking=True)
    free.begin_capture()
    add_one((1,), (4,), (x, np.int32(4)))  # does not wait for that one
    free.end_capture()
    assert x.get().tolist() == [1] * 4


@pytest.mark.parametrize("joined", [True, False])
def test_a_capture_takes_other_streams_along_and_must_wait_for_them(cupy, add_one, stream, joined):
    x, other = cupy.zeros(4, "f4"), cupy.cuda.Stream(non_blocking=True)
    stream.begin_capture()
    other.wait_event(stream.record())
    add_one((1,), (4,), (x, np.int32(4)), stream=other)
    if joined:
        stream.wait_event(other.record())
        stream.end_capture().launch()
        assert x.get().tolist() == [1] * 4
    else:
        with pytest.raises(cupy.cuda.runtime.CUDARuntimeError, match="does not wait for"):
            stream.end_capture()
    assert not other.is_capturing()


def test_a_graph_does_not_keep_memory_alive(cupy, add_one, stream):
    x = cupy.zeros(4, "f4")
    stream.begin_capture()
    add_one((1,), (4,), (x, np.int32(4)))
    graph = stream.end_capture()
    del x
    with pytest.raises(DeviceMisuseError, match="use after free"):
        graph.launch()
