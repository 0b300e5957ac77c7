"""Memory of the fake device: what is in it, who may touch it, and what the bed finds."""

import numpy as np
import pytest
from gpu_on_cpu import DeviceMisuseError, check_freed_memory, profile, record

pytestmark = pytest.mark.gpu_on_cpu

PUT = 'extern "C" __global__ void put(float* x, int i) { x[i] = 1; }'
ADD_ONE = 'extern "C" __global__ void add_one(float* x) { x[threadIdx.x] += 1; }'


@pytest.fixture
def put(cupy):
    return cupy.RawKernel(PUT, "put")


@pytest.fixture
def add_one(cupy):
    return cupy.RawKernel(ADD_ONE, "add_one")


@pytest.fixture
def stream(cupy):
    with cupy.cuda.Stream(non_blocking=True) as stream:
        yield stream


# --- its content and its bounds -------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_fresh_memory_is_nan(cupy, dtype):
    x = cupy.ones(1000, dtype)
    del x  # its place must not come back with ones in it
    assert np.isnan(cupy.empty(1000, dtype).get()).all()


@pytest.mark.parametrize(("index", "side"), [(3, "behind"), (-1, "in front of")])
def test_a_write_beside_an_array_is_found(cupy, put, index, side):
    x = cupy.zeros(3, "f4")
    with pytest.raises(DeviceMisuseError, match=f"kernel put wrote 4 bytes {side} 12 bytes"):
        put((1,), (1,), (x, np.int32(index)))
    put((1,), (1,), (x, np.int32(2)))
    assert x.get().tolist() == [0, 0, 1]


def test_use_after_free_is_found(cupy, put):
    x = cupy.zeros(3, "f4")
    address = np.int64(x.data.ptr)
    del x
    with pytest.raises(DeviceMisuseError, match="argument 0 of put: use after free of 12 bytes"):
        put((1,), (1,), (address, np.int32(0)))
    y = cupy.zeros(3, "f4")
    with pytest.raises(DeviceMisuseError, match="source of a copy: use after free"):
        cupy.cuda.runtime.memcpy(y.data.ptr, int(address), 12, 4)


def test_a_write_to_freed_memory_is_found_later(cupy, put):
    x, y = cupy.zeros(3, "f4"), cupy.zeros(3, "f4")
    offset = (y.data.ptr - x.data.ptr) // 4
    del y
    put((1,), (1,), (x, np.int32(offset)))  # by way of x, so no argument tells
    with pytest.raises(DeviceMisuseError, match="wrote to memory after it was freed"):
        check_freed_memory()
    check_freed_memory()  # said once


def test_a_pointer_of_the_host_is_no_argument(cupy, put):
    host = np.zeros(3, "f4")
    with pytest.raises(DeviceMisuseError, match=r"argument 0 of put: 0x[0-9a-f]+ is no memory"):
        put((1,), (1,), (np.int64(host.ctypes.data), np.int32(0)))


def test_a_copy_out_of_range_is_found(cupy):
    x, host = cupy.zeros(3, "f4"), np.zeros(4, "f4")
    with pytest.raises(DeviceMisuseError, match=r"16 bytes at .* are not inside of 12 bytes"):
        cupy.cuda.runtime.memcpy(x.data.ptr, host.ctypes.data, 16, 1)
    with pytest.raises(DeviceMisuseError, match="fill: 16 bytes at"):
        cupy.cuda.runtime.memset(x.data.ptr, 0, 16)
    with pytest.raises(cupy.cuda.runtime.CUDARuntimeError, match="given one from host to"):
        cupy.cuda.runtime.memcpy(x.data.ptr, host.ctypes.data, 12, 3)


def test_freed_twice_and_never_allocated(cupy):
    address = cupy.cuda.runtime.malloc(64)
    with pytest.raises(cupy.cuda.runtime.CUDARuntimeError, match="InvalidValue"):
        cupy.cuda.runtime.free(address + 8)
    cupy.cuda.runtime.free(address)
    with pytest.raises(DeviceMisuseError, match="freed twice: 64 bytes"):
        cupy.cuda.runtime.free(address)


def test_memory_ends(cupy):
    with pytest.raises(cupy.cuda.runtime.CUDARuntimeError, match="cudaErrorMemoryAllocation"):
        cupy.empty(1 << 40)
    with (
        pytest.raises(cupy.cuda.memory.OutOfMemoryError),
        cupy.cuda.using_allocator(cupy.cuda.MemoryPool().malloc),
    ):
        cupy.empty(1 << 40)


def test_allocators_of_cupy_are_respected(cupy):
    pool = cupy.cuda.MemoryPool()
    allocators = {"device": pool.malloc, "managed": cupy.cuda.malloc_managed}
    for kind, allocator in (allocators | {"asynchronous": cupy.cuda.malloc_async}).items():
        with cupy.cuda.using_allocator(allocator), record() as log:
            x = cupy.ones(5) + 1
        assert {entry.kind for entry in log.allocations} == {kind}
        assert float(x.sum()) == 10
    with cupy.cuda.using_allocator(pool.malloc), record() as log:
        del x
        for _ in range(5):
            cupy.ones(5)
    assert log.allocations == []  # the pool had enough


def test_a_flag_in_mapped_host_memory_needs_no_synchronisation(cupy, stream):
    pinned = cupy.cuda.alloc_pinned_memory(4)
    flag = np.frombuffer(pinned, "i4", 1)
    flag[:] = 0
    memory = cupy.cuda.UnownedMemory(pinned.ptr, 4, pinned)
    on_device = cupy.ndarray(1, "i4", cupy.cuda.MemoryPointer(memory, 0))
    kernel = cupy.RawKernel('extern "C" __global__ void k(int* flag) { *flag = 7; }', "k")
    with record(collect=True) as log:
        kernel((1,), (1,), (on_device,))
        assert flag[0] == 7
    assert [type(entry).__name__ for entry in log] == ["Launch"]


# --- two devices, and other ones -----------------------------------------------------------------


def test_a_second_device_works_by_itself(cupy, add_one):
    with cupy.cuda.Device(1):
        x = cupy.zeros(4, "f4")
        with record() as log:
            add_one((1,), (4,), (x,))
            y = x @ x
        assert {launch.device for launch in log.launches} == {1}
        assert x.device.id == y.device.id == 1
        assert float(y) == 4
    copied = cupy.asarray(x)  # to device 0
    assert copied.device.id == 0
    assert copied.get().tolist() == [1] * 4


def test_memory_of_another_device_is_refused(cupy, add_one):
    with cupy.cuda.Device(1):
        there = cupy.zeros(4, "f4")
    with pytest.raises(DeviceMisuseError, match="argument 0 of add_one: device 0 was given 16"):
        add_one((1,), (4,), (there,))
    with pytest.raises(ValueError, match="different from the current device"):
        there + 1
    here = cupy.zeros((4, 4), "f4")
    with pytest.raises((DeviceMisuseError, ValueError), match=r"device 0|different"):
        cupy.matmul(here, there)


def test_a_stream_of_another_device_is_refused(cupy, add_one):
    with cupy.cuda.Device(1):
        theirs = cupy.cuda.Stream()
    x = cupy.zeros(4, "f4")
    with pytest.raises(cupy.cuda.driver.CUDADriverError, match="its stream is of device 1"):
        add_one((1,), (4,), (x,), stream=theirs)


@pytest.mark.parametrize(
    ("name", "capability", "multiprocessors"),
    [("T4", "75", 40), ("A100", "80", 108), ("LAPTOP", "86", 16), ("H100", "90", 132)],
)
def test_every_profile_is_a_device(cupy, name, capability, multiprocessors):
    architecture = 'extern "C" __global__ void k(int* x) { *x = __CUDA_ARCH__; }'
    with profile(name) as number:
        device = cupy.cuda.Device()
        assert device.id == number
        assert device.compute_capability == capability
        assert device.attributes["MultiProcessorCount"] == multiprocessors
        x = cupy.zeros(1, "i4")
        cupy.RawKernel(architecture, "k")((1,), (1,), (x,))
        assert int(x[0]) == 10 * int(capability)
    assert cupy.cuda.Device().id == 0


def test_a_profile_that_is_not_there(cupy):
    with pytest.raises(ValueError, match="no device has the profile 'GTX 480'"), profile("GTX 480"):
        pass
