"""The test bed for kernels, tested: what a kernel finds on it, and how it gets there."""

import ctypes
import re

import numpy as np
import pytest
from gpu_on_cpu import device
from gpu_on_cpu.device import build
from gpu_on_cpu.kernels.samples import HERE, load, run

pytestmark = pytest.mark.skipif(build.compiler() is None, reason="the test bed needs g++")

ORDERS = [
    {"order": "forward"},
    {"order": "reverse"},
    {"order": "random", "seed": 1},
    {"order": "random", "seed": 2},
]
in_every_order = pytest.mark.parametrize(
    "order", ORDERS, ids=lambda o: o["order"] + str(o.get("seed", ""))
)


@pytest.fixture(scope="module", params=["assembly", "ucontext"])
def facilities(request):
    module = load("facilities.cu", portable_fibers=request.param == "ucontext")
    assert module.fiber_kind == request.param
    return module.kernels


# --- what a kernel finds -------------------------------------------------------------------------


@in_every_order
def test_indices_in_three_dimensions(facilities, order):
    grid, block = (2, 3, 2), (4, 2, 3)
    out = np.full((12, 24, 6), -1, np.int32)
    run(facilities["indices"], grid, block, out, **order)
    z, y, x = np.mgrid[:2, :3, :2].reshape(3, 12, 1)
    tz, ty, tx = np.mgrid[:3, :2, :4].reshape(3, 1, 24)
    assert np.array_equal(out, np.stack(np.broadcast_arrays(x, y, z, tx, ty, tz), axis=-1))


@in_every_order
def test_barriers_that_vote(facilities, order):
    out = np.zeros(3, np.int32)
    run(facilities["votes"], (1,), (65,), out, **order)
    assert out.tolist() == [32, 0, 0]
    run(facilities["votes"], (1,), (64,), out, **order)
    assert out.tolist() == [32, 0, 1]
    run(facilities["votes"], (1,), (100,), out, **order)
    assert out.tolist() == [50, 1, 0]


@in_every_order
def test_dynamic_shared_memory(facilities, order):
    x, y = np.arange(70, dtype=np.int32), np.zeros(70, np.int32)
    run(facilities["reversed"], (1,), (70,), x, y, shared_bytes=x.nbytes, **order)
    assert np.array_equal(y, x[::-1])


def test_unwritten_shared_memory_is_nan(facilities):
    floats, ints = np.zeros(2, np.float32), np.zeros(2, np.int32)
    for _ in range(2):  # each block anew, not only the first
        run(facilities["unwritten"], (3,), (2,), floats, ints)
        assert np.isnan(floats).all()
        assert (ints == -1).all()


@in_every_order
def test_the_whole_grid_meets(facilities, order):
    cells, out = np.zeros(5, np.int32), np.zeros(5, np.int32)
    run(facilities["all_blocks_meet"], (5,), (40,), cells, out, cooperative=True, **order)
    assert out.tolist() == [5 * 20 + 10] * 5


@in_every_order
def test_warp_functions(facilities, order):
    v = np.arange(32)
    out = np.zeros((32, 14), np.int32)
    run(facilities["warp_functions"], (1,), (32,), v.astype(np.int32), out, **order)
    mask = [sum(1 << int(k) for k in v[v % 3 == r]) for r in range(3)]
    expected = [
        np.full(32, 5),
        v // 8 * 8 + 1,
        np.where(v < 3, v, v - 3),
        np.where(v % 16 + 3 < 16, v + 3, v),
        v ^ 9,
        np.full(32, 0xAAAAAAAA),
        np.full(32, 1 + 2),
        np.array([mask[k % 3] for k in v]),
        np.full(32, 0xFFFFFFFF + 1),
        np.full(32, v.sum()),
        np.full(32, -40),
        np.full(32, 31),
        np.where(v % 4 == 1, 0x22222222, 0),
        np.where(v % 8 < 7, v + 1, v) + 100 * (v % 8) + (v >= 24),
    ]
    assert np.array_equal(out, np.stack(expected, axis=1).astype(np.uint32).view(np.int32))


@in_every_order
def test_cooperative_groups(facilities, order):
    out = np.zeros((32, 4), np.int32)
    run(facilities["groups"], (1,), (32,), out, **order)
    lane = np.arange(32)
    third = lane % 3 == 0
    pairs = lane // 2 * 4 + 1
    expected = [pairs, pairs[lane // 16 * 16 + 15], (1100 + lane // 3) * third, 6 * third]
    assert np.array_equal(out, np.stack(expected, axis=1))


def test_orders_are_what_they_are_called(facilities):
    def tickets(**order):
        drawn = np.zeros((6, 40), np.int32)
        run(facilities["tickets"], (6,), (40,), np.zeros(1, np.int32), drawn, **order)
        return drawn

    forward = np.arange(240).reshape(6, 40)
    assert np.array_equal(tickets(order="forward"), forward)
    assert np.array_equal(tickets(order="reverse"), 239 - forward)
    random = [tickets(order="random", seed=seed) for seed in (1, 2, 1)]
    assert np.array_equal(random[0], random[2])
    assert not np.array_equal(random[0], random[1])
    assert sorted(random[0].ravel()) == list(range(240))
    # Blocks are interleaved: the first that ends is not the first 40 tickets.
    assert min(np.ptp(block) for block in random[0]) > 40
    with pytest.raises(ValueError, match="order must be one of forward, reverse, random"):
        tickets(order="backwards")


@in_every_order
def test_lanes_that_have_left_are_not_waited_for(facilities, order):
    out = np.zeros(16, np.int32)
    run(facilities["half_a_warp"], (1,), (32,), out, **order)
    assert np.array_equal(out, np.arange(16) ^ 8)


@in_every_order
def test_atomics(facilities, order):
    i = np.zeros(9, np.int32)
    i[4] = -1
    u, large, f = np.array([0, 3], np.uint32), np.zeros(1, np.uint64), np.zeros(1, np.float32)
    module = facilities["atomics"].module
    address, size = module.symbol("accumulator")
    assert size == 8
    accumulator = ctypes.c_double.from_address(address)
    accumulator.value = 0
    run(facilities["atomics"], (3,), (10,), i, u, large, f, **order)
    everyone = (1 << 30) - 1
    assert i.tolist() == [435, -435, -29, 29, ~everyone, everyone, everyone, 7, 1]
    # 30 times around 0..5; and down from 3, by 30 = 5 x 6.
    assert u.tolist() == [30 % 6, 3]
    assert (large[0], f[0], accumulator.value) == (30 << 40, 15, 7.5)


@in_every_order
def test_every_kind_of_signal_wakes_who_waits(facilities, order):
    words, out = np.zeros(7, np.uint32), np.zeros(1, np.uint32)
    run(facilities["signals"], (1,), (7,), words, out, **order)
    assert out[0] == 1 + 2 + 3 + 5 + 6


@in_every_order
def test_waiting_for_either_of_two_words(facilities, order):
    words, out = np.zeros(2, np.uint32), np.zeros(1, np.uint32)
    run(facilities["either_word"], (1,), (2,), words, out, **order)
    assert out[0] == 1


@in_every_order
def test_data_may_be_the_signal(facilities, order):
    cells, out = np.zeros(12, np.uint32), np.zeros(2, np.uint32)
    start = -(cells.ctypes.data // 4) % 4
    run(facilities["data_as_signal"], (1,), (3,), cells[start : start + 8], out, **order)
    assert out.tolist() == [11, 22]


@in_every_order
def test_waiting_for_many_words_and_for_a_lock(facilities, order):
    words, out = np.zeros(64, np.uint32), np.zeros(1, np.uint32)
    run(facilities["many_words"], (1,), (64,), words, out, np.uint32(64), **order)
    assert out[0] == 64
    lock, total = np.zeros(1, np.int32), np.zeros(1, np.int32)
    run(facilities["locked"], (2,), (40,), lock, total, **order)
    assert total[0] == 80


@in_every_order
def test_a_cluster_chosen_at_the_launch(facilities, order):
    out = np.zeros((6, 3), np.int32)
    run(facilities["around_the_cluster"], (6,), (32,), out, cluster=(3, 1, 1), **order)
    block = np.arange(6)
    seen = block // 3 * 3 + (block % 3 + 1) % 3
    assert np.array_equal(out, np.stack([seen, block % 3, np.full(6, 3)], axis=1))


def test_integer_and_bit_functions(facilities):
    a, b = 0x9E3779B97F4A7C15, 0xD1B54A32D192ED03
    out = np.zeros(12, np.uint64)
    run(facilities["bits"], (1,), (1,), np.array([a, b], np.uint64), out)
    low_a, low_b = a & 0xFFFFFFFF, b & 0xFFFFFFFF
    assert [int(x) for x in out] == [
        a * b >> 64,
        low_a * low_b >> 32,
        low_a.bit_count(),
        32 - low_a.bit_length(),
        (low_a & -low_a).bit_length(),
        int(f"{low_a:032b}"[::-1], 2),
        (low_a & 0xFF) | (low_b & 0xFF) << 8 | (low_a & 0xFF0000) | (low_b & 0xFF00) << 16,
        int(np.float32(-2.5).view(np.uint32)),
        low_a & 0x7FFFFF,
        ((low_b << 32 | low_a) << 5 >> 32) & 0xFFFFFFFF,
        b,
        3 + 2 + 5,
    ]


def test_subnormals_are_flushed_where_cupy_asks_for_it():
    x, y = np.array([1e-30, 1e-10], np.float32), np.ones(1, np.float32)
    for flag, expected in (("true", 0), ("false", np.float32(1e-30) * np.float32(1e-10))):
        source = (HERE / "facilities.cu").read_text()
        module = device.compile_module(source, [f"-I{HERE}", f"-ftz={flag}"])
        run(module.kernels["product"], (1,), (1,), x, y)
        assert y[0] == expected
    assert np.float32(1e-30) * np.float32(1e-10) != 0  # and the host is as it was


# --- modules and their kernels -------------------------------------------------------------------


def test_templates_by_name_expression():
    source = (HERE / "facilities.cu").read_text()
    names = ("scale<float, 2>", "scale<double, 3>")
    module = device.compile_module(source, [f"-I{HERE}"], names)
    assert module.lowered_name(names[1]) == "_Z5scaleIdLi3EEvPKT_PS0_4Pair"
    kernel = module.kernel(module.lowered_name(names[1]))
    assert kernel is module.kernels[names[1]]
    assert [(p.kind, p.size) for p in kernel.parameters] == [("p", 8), ("p", 8), ("s", 16)]
    assert (kernel.max_threads, kernel.min_blocks) == (96, 2)
    assert kernel.static_shared_bytes == 8 * 96
    assert module.kernels[names[0]].static_shared_bytes == 4 * 64
    x, y = np.arange(96.0), np.zeros(96)
    pair = np.array((3, 0.5), np.dtype([("first", "i2"), ("second", "f8")], align=True))
    run(kernel, (1,), (96,), x, y, pair[()])
    assert np.array_equal(y, 3.5 * x)
    with pytest.raises(device.LaunchError, match=r"97 threads.*__launch_bounds__ promises 96"):
        run(kernel, (1,), (97,), x, y, pair[()])
    with pytest.raises(KeyError, match=r"no kernel 'nothing'.*indices"):
        module.kernel("nothing")
    with pytest.raises(KeyError, match="no global variable 'nothing'"):
        module.symbol("nothing")


def test_declarations_of_shared_memory_and_kernels():
    source = """
    #define WIDTH 3
    extern "C" { __global__ void first(int*); }
    template <class T> struct Two { T a, b; };
    extern "C" {
    __launch_bounds__(64) __global__ void first(int* out) {
        // __shared__ int in_a_comment[4];
        __shared__ Two<int> pair, *pointer; static __shared__ __align__(32) char c[WIDTH][2];
        const char* text = "__shared__ int x; { __global__ void no() {";
        volatile __shared__ int v
            [4];
        pair.a = sizeof c + sizeof v, pair.b = 1'000, pointer = &pair;
        out[0] = pointer->a + pair.b + (reinterpret_cast<size_t>(c) % 32) + text[0];
        out[1] = __LINE__;
    }
    }
    __device__ int counted() { __shared__ int x[5]; x[0] = 1; return x[0]; }
    extern "C" __global__ void __cluster_dims__(1, 2) second(int* out) { *out = counted(); }
    """
    module = device.compile_module(source)
    assert set(module.kernels) == {"first", "second"}
    first, second = module.kernels["first"], module.kernels["second"]
    assert (first.max_threads, first.cluster) == (64, None)
    assert (second.max_threads, second.cluster) == (1024, (1, 2, 1))
    assert first.static_shared_bytes == (8 + 8 + 16 + 6 + 2 + 16) + 20
    assert second.static_shared_bytes == 20
    out = np.zeros(2, np.int32)
    run(first, (1,), (1,), out)
    assert out.tolist() == [6 + 16 + 1000 + ord("_"), 14]


@pytest.mark.parametrize(
    "source, message",
    [
        ('extern "C" __global__ void k() {\n  int x = missing;\n}', r"kernel\.cu:2:.*'missing'"),
        (
            "extern __shared__ int x[];",
            r"kernel\.cu:1: declare 'extern __shared__' inside the kernel",
        ),
        (
            'extern "C" __global__ void k() {\n asm("bar.sync 0;");\n}',
            r"kernel\.cu:2:.*INLINE_PTX_NEEDS_A_C",
        ),
        ('\nextern "C" __global__ void k(int', r"kernel\.cu:2: '\(' is never closed"),
    ],
)
def test_what_does_not_compile_is_told_with_its_line(source, message):
    with pytest.raises(device.CompileError) as error:
        device.compile_module(source)
    assert re.search(message, str(error.value))


@pytest.fixture
def compilations(tmp_path, monkeypatch):
    """Every run of g++ that compiles a module, with an empty cache."""
    runtime = build.build_runtime(None, False)
    monkeypatch.setattr(build, "build_runtime", lambda *_: runtime)
    monkeypatch.setenv("GPU_ON_CPU_CACHE", str(tmp_path / "cache"))
    commands = []
    original = build._run

    def run_compiler(command, text=None):
        if "-shared" in command:
            commands.append(command)
        return original(command, text)

    monkeypatch.setattr(build, "_run", run_compiler)
    return commands


def test_the_cache_knows_what_went_in(tmp_path, compilations):
    source = '#include "number.cuh"\nextern "C" __global__ void k(int* x) { *x = NUMBER + EXTRA; }'

    def outcome(number, extra):
        folder = tmp_path / "headers"
        folder.mkdir(exist_ok=True)
        (folder / "number.cuh").write_text(f"#define NUMBER {number} + __CUDA_ARCH__\n")
        options = [f"-I{folder}", "-D", f"EXTRA={extra}", "--unknown-option", "-arch=sm_90"]
        x = np.zeros(1, np.int32)
        run(device.compile_module(source, options).kernels["k"], (1,), (1,), x)
        return int(x[0]) - 900, len(compilations)

    assert outcome(1, 10) == (11, 1)
    assert outcome(1, 10) == (11, 1)
    assert outcome(1, 20) == (21, 2)
    assert outcome(2, 20) == (22, 3)  # only an included header has changed


def test_the_same_text_is_compiled_once_and_has_variables_of_its_own(compilations):
    source = """
    __device__ int n;
    extern "C" __global__ void k(int* x) { *x = ++n; }"""
    found = []
    for architecture in ("sm_80", "sm_80", "sm_90"):
        module = device.compile_module(source, [f"-arch={architecture}"])
        x = np.zeros(1, np.int32)
        run(module.kernels["k"], (1,), (1,), x)
        found.append(int(x[0]))
    assert found == [1, 2, 1]
    assert len(compilations) == 1


def test_without_a_compiler_it_says_so(monkeypatch):
    monkeypatch.setenv("GPU_ON_CPU_CXX", "no-such-compiler")
    with pytest.raises(device.CompileError, match=r"install it, or set GPU_ON_CPU_CXX"):
        device.compile_module("")
