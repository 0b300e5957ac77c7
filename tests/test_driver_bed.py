"""The fake device under the real CuPy: what works, what is refused, and what is recorded.

Kernels of more than a few lines are tested with the compiler and the runtime below; here it is
about CuPy itself, launches, and the log of them.
"""

import cases
import numpy as np
import pytest
from gpu_on_cpu import order, profile, record

pytestmark = pytest.mark.gpu_on_cpu

ADD_ONE = """
extern "C" __global__ void add_one(float* x, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) x[i] += 1;
}
"""
GRID_SIZE = """
#include <cooperative_groups.h>
extern "C" __global__ void grid_size(int* n) {
    cooperative_groups::this_grid().sync();
    if (!blockIdx.x && !blockIdx.y && !threadIdx.x) *n = gridDim.x * gridDim.y;
}
"""


@pytest.fixture
def add_one(cupy):
    return cupy.RawKernel(ADD_ONE, "add_one")


def random(*shape, dtype="f4"):
    return np.random.default_rng(0).standard_normal(shape).astype(dtype)


# --- CuPy itself ---------------------------------------------------------------------------------


def test_it_is_the_real_cupy(cupy):
    assert cupy.__version__ == "14.2.0"
    assert type(cupy.empty(1)).__module__ == "cupy"
    with pytest.raises(TypeError, match="Implicit conversion"):
        np.asarray(cupy.zeros(3))


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "i4"])
def test_ufuncs_and_reductions(cupy, dtype):
    host = (8 * random(5, 7)).astype(dtype)
    x = cupy.asarray(host)
    np.testing.assert_array_equal((x * 2 + x).get(), host * 2 + host)
    np.testing.assert_array_equal(x.max(axis=0).get(), host.max(axis=0))
    total = host.astype("f8").sum()
    np.testing.assert_allclose(float(x.sum(dtype="f8")), total)
    np.testing.assert_array_equal(cupy.where(x > 0, x, 0).get(), np.where(host > 0, host, 0))


def test_indexing_and_layout(cupy):
    host = random(4, 5, 6)
    x = cupy.asarray(host)
    rows, columns = [2, 0, 3], [1, 1, 4]
    np.testing.assert_array_equal(x[rows, columns].get(), host[rows, columns])
    np.testing.assert_array_equal(x[host > 0].get(), host[host > 0])
    np.testing.assert_array_equal(x[::-2, :, 1::3].get(), host[::-2, :, 1::3])
    np.testing.assert_array_equal(cupy.ascontiguousarray(x.T).get(), host.T)
    x[1, 2:4] = -1
    host[1, 2:4] = -1
    np.testing.assert_array_equal(x.get(), host)


def test_raw_module_with_templates_and_a_variable(cupy):
    code = """
    __constant__ float factor;
    template <typename T> __global__ void scale(T* x, int n) {
        for (int i = threadIdx.x; i < n; i += blockDim.x) x[i] = x[i] * T(factor);
    }
    """
    names = ("scale<float>", "scale<double>")
    module = cupy.RawModule(code=code, name_expressions=names)
    cupy.ndarray(1, "f4", module.get_global("factor"))[:] = 3
    for name, dtype in zip(names, ("f4", "f8"), strict=True):
        x = cupy.arange(50, dtype=dtype)
        with record() as log:
            module.get_function(name)((1,), (32,), (x, np.int32(50)))
        assert [launch.name for launch in log.launches] == [name]
        np.testing.assert_array_equal(x.get(), 3 * np.arange(50))


def test_a_python_float_is_garbage_for_a_float_parameter(cupy):
    kernel = cupy.RawKernel('extern "C" __global__ void f(float* x, float a) { *x = a; }', "f")
    x = cupy.zeros(1, "f4")
    kernel((1,), (1,), (x, 1.5))  # CuPy hands over a double, and its low half is read
    assert float(x[0]) == 0


def test_what_does_not_compile_is_cupys_exception_with_the_line(cupy):
    code = 'extern "C" __global__ void k(float* x) {\n  x[0] = missing;\n}'
    with pytest.raises(cupy.cuda.compiler.CompileException, match=r":2:.*'?.missing"):
        cupy.RawKernel(code, "k").compile()


def test_a_kernel_that_fails_raises_at_the_launch_and_names_the_line(cupy):
    code = 'extern "C" __global__ void k(int* x) {\n  x[0] = 1 / x[0];\n}'
    kernel, x = cupy.RawKernel(code, "k"), cupy.zeros(1, "i4")
    with pytest.raises(RuntimeError, match=r"^k .*:2"):
        kernel((1,), (1,), (x,))
    x[0] = 1
    kernel((1,), (1,), (x,))
    assert int(x[0]) == 1


def test_what_the_bed_lacks_says_so(cupy):
    from cupy import cublas

    with pytest.raises(NotImplementedError, match="the test bed has no such function"):
        cupy.cuda.runtime.mallocArray(0, 1, 1)
    with pytest.raises(RuntimeError, match="CUBLAS_STATUS_NOT_SUPPORTED"):
        cublas.gemv("N", 1.0, cupy.ones((3, 3)), cupy.ones(3), 0.0, cupy.ones(3))


# --- launches ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("grid", "block", "shared", "error"),
    [
        ((1,), (2048,), 0, "INVALID_VALUE: add_one on A100"),
        ((1, 65536), (1,), 0, "INVALID_VALUE: add_one on A100"),
        ((1,), (1,), 48 * 1024 + 1, "49152 are allowed"),
    ],
)
def test_launches_that_a_device_refuses(cupy, add_one, grid, block, shared, error):
    x = cupy.zeros(4, "f4")
    with pytest.raises(cupy.cuda.driver.CUDADriverError, match=error) as raised:
        add_one(grid, block, (x, np.int32(4)), shared_mem=shared)
    assert raised.value.status == 1


def test_more_shared_memory_must_be_asked_for_and_has_an_end(cupy):
    code = """extern "C" __global__ void k(int* x, int n) {
        extern __shared__ int shared[];
        shared[n - 1] = n;
        *x = shared[n - 1];
    }"""
    for name, most in (("T4", 64), ("A100", 163), ("H100", 227)):
        with profile(name):
            kernel, x, n = cupy.RawKernel(code, "k"), cupy.zeros(1, "i4"), most * 1024 // 4
            kernel.max_dynamic_shared_size_bytes = 4 * n
            kernel((1,), (1,), (x, np.int32(n)), shared_mem=4 * n)
            assert int(x[0]) == n
            with pytest.raises(cupy.cuda.driver.CUDADriverError, match=f"allows {4 * n}"):
                kernel.max_dynamic_shared_size_bytes = 4 * n + 1
            assert kernel.attributes["max_dynamic_shared_size_bytes"] == 4 * n


def test_occupancy_and_cooperative_launches(cupy):
    module = cupy.RawModule(code=GRID_SIZE, enable_cooperative_groups=True)
    kernel, n = module.get_function("grid_size"), cupy.zeros(1, "i4")
    resident = cupy.cuda.driver.occupancyMaxActiveBlocksPerMultiprocessor(
        kernel.kernel.ptr, 1024, 0
    )
    assert resident == 2
    with record() as log:
        kernel((2, 3), (64,), (n,))
    assert int(n[0]) == 6
    assert log.launches[0].cooperative
    # CuPy shrinks a grid of one dimension, with a warning, and raises for others.
    with pytest.warns(UserWarning, match="grid size will be reduced"):
        kernel((1000,), (1024,), (n,))
    assert int(n[0]) == 2 * 108
    with pytest.raises(ValueError, match=r"exceeds the limit \(216\)"):
        kernel((1000, 2), (1024,), (n,))
    arguments = np.array([n.data.ptr], np.uint64)
    pointer = np.array([arguments.ctypes.data], np.uint64)
    with pytest.raises(cupy.cuda.driver.CUDADriverError, match="217 blocks, but 2 on each of 108"):
        cupy.cuda.driver.launchCooperativeKernel(
            kernel.kernel.ptr, 217, 1, 1, 1024, 1, 1, 0, 0, pointer.ctypes.data
        )


def test_clusters_need_a_card_that_has_them_and_a_plain_launch(cupy):
    code = 'extern "C" __global__ void __cluster_dims__(2, 1, 1) k(int* x) { x[blockIdx.x] = 1; }'
    plain, cooperative = (
        cupy.RawModule(code=code, enable_cooperative_groups=flag).get_function("k")
        for flag in (False, True)
    )
    with profile("H100"):
        x = cupy.zeros(4, "i4")
        plain((4,), (1,), (x,))
        assert int(x.sum()) == 4
        for kernel, blocks in ((plain, 3), (cooperative, 4)):
            with pytest.raises(cupy.cuda.driver.CUDADriverError, match="INVALID_CLUSTER_SIZE"):
                kernel((blocks,), (1,), (x,))
    with pytest.raises(cupy.cuda.driver.CUDADriverError, match="INVALID_CLUSTER_SIZE: k on A100"):
        plain((4,), (1,), (cupy.zeros(4, "i4"),))


def test_the_order_of_threads_can_be_chosen(cupy):
    code = 'extern "C" __global__ void k(int* x) { x[1 + atomicAdd(x, 1)] = threadIdx.x; }'
    kernel = cupy.RawKernel(code, "k")

    def run():
        x = cupy.zeros(9, "i4")
        kernel((1,), (8,), (x,))
        return x.get()[1:].tolist()

    with order("forward"):
        assert run() == list(range(8))
    with order("reverse"):
        assert run() == list(range(8))[::-1]
    shuffled = []
    for _ in range(2):
        with order("random", seed=5):
            shuffled.append([run(), run()])
    assert shuffled[0] == shuffled[1]
    assert shuffled[0][0] != shuffled[0][1]
    with pytest.raises(ValueError, match="order must be one of"), order("sideways"):
        pass


# --- what is recorded ----------------------------------------------------------------------------


def test_hidden_synchronisation_is_seen(cupy):
    x = cupy.ones(3, "f4")
    for hidden in (lambda: float(x.sum()), lambda: bool(x[0] > 0), lambda: x.get()):
        with record() as log:
            hidden()
        assert len(log.host_copies) == 1
        assert log.synchronisations
    with record() as log:
        x + x
    assert not log.host_copies
    assert not log.synchronisations
    (allocation,) = log.allocations
    assert (allocation.bytes, allocation.device, allocation.kind) == (12, 0, "device")


def test_a_copy_the_host_waits_for_is_a_synchronisation(cupy):
    x, host = cupy.zeros(4, "f4"), np.empty(4, "f4")
    runtime, pinned = cupy.cuda.runtime, cupy.cuda.alloc_pinned_memory(16)
    with record() as log:
        runtime.memcpy(host.ctypes.data, x.data.ptr, 16, runtime.memcpyDeviceToHost)
        runtime.memcpyAsync(host.ctypes.data, x.data.ptr, 16, runtime.memcpyDeviceToHost, 0)
        runtime.memcpyAsync(pinned.ptr, x.data.ptr, 16, runtime.memcpyDeviceToHost, 0)
        runtime.memcpyAsync(x.data.ptr, host.ctypes.data, 16, runtime.memcpyHostToDevice, 0)
    assert [copy.blocking for copy in log.host_copies] == [True, True, False, False]
    assert log.synchronisations == log.host_copies[:2]


def test_logs_may_be_nested_and_count(cupy, add_one):
    x = cupy.zeros(4, "f4")
    with record() as outer:
        add_one((1,), (4,), (x, np.int32(4)))
        with record() as inner:
            add_one((2,), (2,), (x, np.int32(4)), shared_mem=8)
    assert len(inner) == 1
    assert outer.counts() == {"Launch add_one": 2}
    (launch,) = inner.launches
    assert (launch.grid, launch.block, launch.shared_bytes) == ((2, 1, 1), (2, 1, 1), 8)


# --- this project's LSTM -------------------------------------------------------------------------

LSTM_CASES = [
    case
    for case in cases.CASES
    if case.id in ("plain-states", "projection-bidirectional-lengths", "dropout-time-major-lengths")
]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", LSTM_CASES, ids=lambda case: case.id)
def test_lstm_never_waits_and_copies_nothing_to_the_host(cupy, case, dtype):
    def on_device(value):
        if isinstance(value, tuple):
            return tuple(map(on_device, value))
        return None if value is None else cupy.asarray(value)

    host = cases.build(case, dtype)
    names = ("x", "states", "lengths")
    moved = {name: on_device(getattr(host, name)) for name in names}
    upstream = {name: on_device(gradient) for name, gradient in host.upstream.items()}
    arrays = cases.Arrays(**moved, weights=host.weights, upstream=upstream)
    lstm = cases.make_lstm(case, host.weights, dtype)
    lstm.to("cupy")
    with record() as log:
        result = cases.backward(lstm, case, arrays, cases.forward(lstm, case, arrays))
    assert not log.synchronisations
    assert not log.host_copies
    assert log.launches
    assert log.gemms
    for name, array in vars(result).items():
        if hasattr(array, "get") and name != "grads":
            setattr(result, name, array.get())
    result.grads = {name: gradient.get() for name, gradient in result.grads.items()}
    cases.assert_case(case, dtype, result)
