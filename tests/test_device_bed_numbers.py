"""The test bed's 16-bit floats and tensor cores, and what is read from a real compiler's output."""

import math
from fractions import Fraction

import numpy as np
import pytest
from gpu_on_cpu import device
from gpu_on_cpu.device import build, nvrtc
from gpu_on_cpu.kernels.samples import HERE, load, run

needs_gxx = pytest.mark.skipif(build.compiler() is None, reason="the test bed needs g++")

# --- 16-bit floats: an oracle of its own ---------------------------------------------------------
#
# Name in CUDA, digits of the significand with its leading 1, exponent of the largest number.
FORMATS = {"__half": (11, 15), "__nv_bfloat16": (8, 127)}
EVERY_PATTERN = np.arange(1 << 16, dtype=np.uint16)


def decode(bits, digits, largest):
    """Return the float64 value of each bit pattern."""
    bits = bits.astype(np.int64)
    mantissa_bits = digits - 1
    mantissa = bits & ((1 << mantissa_bits) - 1)
    exponent = (bits & 0x7FFF) >> mantissa_bits
    smallest = 1 - largest
    normal = np.ldexp(1.0 + mantissa / (1 << mantissa_bits), exponent - largest)
    subnormal = np.ldexp(mantissa / (1 << mantissa_bits), smallest)
    special = np.where(mantissa > 0, np.nan, np.inf)
    value = np.where(exponent == 2 * largest + 1, special, np.where(exponent, normal, subnormal))
    return np.where(bits >> 15, -value, value)


def nearest(value, digits, largest):
    """Return the 16-bit float nearest to an exact Fraction, ties to even."""
    if value == 0:
        return 0.0
    exponent = math.frexp(float(value))[1] - 1
    while Fraction(2) ** exponent > abs(value):
        exponent -= 1
    while Fraction(2) ** (exponent + 1) <= abs(value):
        exponent += 1
    unit = Fraction(2) ** (max(exponent, 1 - largest) - digits + 1)
    rounded = round(value / unit) * unit  # of a Fraction: ties to even
    beyond = (2 - Fraction(2) ** (1 - digits)) * Fraction(2) ** largest
    return math.copysign(math.inf, value) if abs(rounded) > beyond else float(rounded)


@pytest.fixture(scope="module")
def float16():
    templates = ("from_float", "from_double", "to_float", "arithmetic", "fused")
    names = [f"{template}<{name}>" for template in templates for name in FORMATS]
    source = (HERE / "float16.cu").read_text()
    module = device.compile_module(source, (), names, filename="float16.cu")

    def call(template, name, *arrays, results=1, dtype=np.uint16):
        n = arrays[0].size
        out = np.empty((results, n), dtype)
        run(module.kernels[f"{template}<{name}>"], (1,), (32,), *arrays, out, np.int32(n))
        return out if results > 1 else out[0]

    call.module = module
    return call


def values_between(exact):
    """Return every value, and for each pair of neighbours their middle and what is next to it."""
    finite = np.unique(exact[np.isfinite(exact)])
    middle = (finite[1:] + finite[:-1]) / 2
    near = [np.nextafter(middle, -np.inf), middle, np.nextafter(middle, np.inf)]
    return np.concatenate([finite, *near])


@needs_gxx
@pytest.mark.parametrize("name", FORMATS)
def test_every_16_bit_float_becomes_the_float_it_is(float16, name):
    exact = decode(EVERY_PATTERN, *FORMATS[name])
    result = float16("to_float", name, EVERY_PATTERN, dtype=np.float32)
    assert np.array_equal(result.astype(np.float64), exact, equal_nan=True)
    assert np.array_equal(np.signbit(result)[~np.isnan(exact)], np.signbit(exact)[~np.isnan(exact)])
    if name == "__half":
        with np.errstate(invalid="ignore"):  # some patterns are signalling NaNs
            assert np.array_equal(exact, EVERY_PATTERN.view(np.float16), equal_nan=True)


@needs_gxx
@pytest.mark.parametrize("name", FORMATS)
def test_conversions_round_to_nearest_even(float16, name):
    digits, largest = FORMATS[name]
    exact = decode(EVERY_PATTERN, digits, largest)
    x = values_between(exact)
    beyond = np.ldexp(2.0 - 2.0**-digits, largest)  # where rounding begins to give infinity
    edges = np.array([beyond, np.nextafter(beyond, 0), 1e300, np.inf, 5e-324])
    x = np.concatenate([x, edges, -edges])
    rounded = decode(float16("from_double", name, x), digits, largest)
    # The nearest of all values by search: the lower neighbour, or the upper where that is closer
    # or as close and even.
    grid = np.unique(exact[np.isfinite(exact)])
    even = decode(EVERY_PATTERN[::2], digits, largest)
    even = set(even[np.isfinite(even)])
    upper = np.clip(np.searchsorted(grid, x), 1, grid.size - 1)
    low, high = grid[upper - 1], grid[upper]
    with np.errstate(invalid="ignore", over="ignore"):
        to_low, to_high = x - low, high - x
    tie = np.array([h in even for h in high])
    expected = np.where((to_low > to_high) | ((to_low == to_high) & tie), high, low)
    expected = np.where(np.abs(x) >= beyond, np.copysign(np.inf, x), expected)
    assert np.array_equal(rounded, expected)
    # A float32 is a double: one conversion serves both.
    with np.errstate(over="ignore"):
        single = x[np.isfinite(x)].astype(np.float32)
    again = float16("from_double", name, single.astype(np.float64))
    assert np.array_equal(float16("from_float", name, single), again)
    if name == "__half":
        with np.errstate(over="ignore"):
            assert np.array_equal(rounded, x.astype(np.float16))
    assert np.isnan(decode(float16("from_float", name, np.float32([np.nan])), digits, largest))


@needs_gxx
@pytest.mark.parametrize("name", FORMATS)
def test_arithmetic_is_rounded_once(float16, name):
    digits, largest = FORMATS[name]
    rng = np.random.default_rng(0)
    finite = EVERY_PATTERN[np.isfinite(decode(EVERY_PATTERN, digits, largest))]
    a, b, c = rng.choice(finite, (3, 1500))
    # Random numbers seldom meet: half of the operands are of one size.
    a[::2], b[::2], c[::2] = (rng.choice(finite[8000:20000], (3, 750))) & 0x7FFF
    exact = [[Fraction(v) for v in decode(x, digits, largest)] for x in (a, b, c)]
    results = decode(float16("arithmetic", name, a, b, results=4), digits, largest)
    fused = decode(float16("fused", name, a, b, c), digits, largest)
    for i, (x, y, z) in enumerate(zip(*exact, strict=True)):
        wanted = [x + y, x - y, x * y, x / y if y else None]
        for value, result in zip(wanted, results[:, i], strict=True):
            if value is not None:
                assert result == nearest(value, digits, largest), (i, float(x), float(y))
        assert fused[i] == nearest(x * y + z, digits, largest), (i, float(x), float(y), float(z))


@needs_gxx
def test_a_fused_sum_is_not_rounded_twice(float16):
    # 1025 * 1023 = 2^20 - 1 lies just under the middle of two halves when divided; with a tiny
    # addend a float64 of 53 digits cannot hold the sum.
    a, b = np.float16([1.5, 1.0009765625]), np.float16([1.3330078125, 1.0009765625])
    tiny = np.float16([6e-8, -6e-8])
    bits = [x.view(np.uint16) for x in (a, b, tiny)]
    result = float16("fused", "__half", *bits).view(np.float16)
    exact = [
        Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z))
        for x, y, z in zip(a, b, tiny, strict=True)
    ]
    assert result.tolist() == [nearest(value, *FORMATS["__half"]) for value in exact]


@needs_gxx
def test_pairs_of_16_bit_floats(float16):
    x, y = np.float16([[1.5, -2], [0.25, 8]]), np.zeros((2, 2), np.float32)
    z = (np.float32([[3, 1], [0.5, 256]]).view(np.uint32) >> 16).astype(np.uint16)
    run(float16.module.kernels["pairs"], (1,), (1,), x, z, y)
    # 257 has 9 digits, and bfloat16 has 8: 256 and 258 are as near, and 256 is even.
    assert np.array_equal(y, [[1.5 * 0.25 + 1 + 1.5, -2 * 8 + 1 - 2], [3.5, 256]])


# --- tensor cores --------------------------------------------------------------------------------
#
# Where each lane's elements lie, as shapes and strides of CuTe (NVIDIA's CUTLASS, BSD-3-Clause,
# cute/atom/mma_traits_sm80.hpp): lane = l0 + 4 l1 and element = e0 + 2 e1 + 4 e2 lie at
# sum(stride * index), counted down the columns of A[M,K], of B as [N,K], and of C[M,N].
LANE, ELEMENT = (4, 8), (2, 2, 2)
LAYOUTS = {
    "mma_m16n8k16_f16": (((32, 1), (16, 8, 128)), ((16, 1), (8, 64)), 16),
    "mma_m16n8k16_bf16": (((32, 1), (16, 8, 128)), ((16, 1), (8, 64)), 16),
    "mma_m16n8k8_tf32": (((16, 1), (8, 64)), ((8, 1), (32,)), 8),
}
OF_C = ((32, 1), (16, 8))


def positions(layout):
    """Return [lane, element]: where in the column-major matrix."""

    def places(shape, strides):
        index = np.indices(shape[: len(strides)][::-1]).reshape(len(strides), -1)[::-1]
        return strides @ index

    lane, element = layout
    return places(LANE, np.array(lane))[:, None] + places(ELEMENT, np.array(element))


@needs_gxx
@pytest.mark.parametrize("name", LAYOUTS)
def test_fragments_lie_where_cutlass_says(name):
    of_a, of_b, K = LAYOUTS[name]
    rng = np.random.default_rng(1)
    # Small whole numbers, exact in every format and every order of summation.
    a, b, c = (rng.integers(-8, 9, s).astype(np.float32) for s in ((16, K), (8, K), (16, 8)))
    assert sorted(positions(of_a).ravel()) == list(range(a.size))
    fragment_a, fragment_b, fragment_c = (
        np.ascontiguousarray(matrix.ravel(order="F")[positions(layout)])
        for matrix, layout in ((a, of_a), (b, of_b), (c, OF_C))
    )
    if name.endswith("_f16"):
        fragment_a, fragment_b = fragment_a.astype(np.float16), fragment_b.astype(np.float16)
    elif name.endswith("_bf16"):
        fragment_a, fragment_b = (
            (f.view(np.uint32) >> 16).astype(np.uint16) for f in (fragment_a, fragment_b)
        )
    else:  # what a TF32 has no room for is not seen
        fragment_a = (fragment_a.view(np.uint32) | 0x1FFF).view(np.float32)
    d = np.full((32, 4), np.nan, np.float32)
    kernel = load("fragments.cu").kernels[f"{name}_raw"]
    run(kernel, (1,), (32,), fragment_a, fragment_b, fragment_c, d)
    result = np.empty(a.shape[0] * 8, np.float32)
    result[positions(OF_C)] = d
    assert np.array_equal(result.reshape(16, 8, order="F"), a @ b.T + c)
    with pytest.raises(device.DivergenceError, match=r"fragments\.cu:\d+: needs all 32 lanes"):
        run(kernel, (1,), (31,), fragment_a, fragment_b, fragment_c, d)


# --- the real compiler ---------------------------------------------------------------------------


def offline(filename, arch, *macros, names=(), **settings):
    if reason := nvrtc.missing(arch):
        pytest.skip(f"nothing is compiled for a device: {reason}")
    options = [f"-I{HERE}", *(f"-D{macro}" for macro in macros)]
    source = settings.get("source") or (HERE / filename).read_text()
    return nvrtc.compile_offline(source, arch, options, names, filename=filename)


ARCHITECTURES = ("sm_70", "sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")


@needs_gxx
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_samples_are_cuda(arch):
    since = {"recurrence.cu": 70, "tiled_matmul.cu": 70, "block_sum.cu": 70}
    since |= {"fragments.cu": 80, "cluster_sum.cu": 90}
    for filename, first in since.items():
        if int(arch[3:]) < first:
            continue
        module = offline(filename, arch)
        assert module.cubin[:4] == b"\x7fELF"
        twins = load(filename).kernels
        assert set(module.resources) == set(twins)
        for name, usage in module.resources.items():
            assert 0 < usage.registers <= 128
            assert usage.stack_frame == usage.spill_stores == usage.spill_loads == 0
            assert usage.static_shared_bytes == twins[name].static_shared_bytes


def test_spills_are_seen():
    source = """extern "C" __global__ void __launch_bounds__(1024) k(const float* x, float* y) {
        float v[120];  // 64 registers are all that 1024 threads can have
        for (int i = 0; i < 120; ++i) v[i] = x[i * 1024 + threadIdx.x];
        for (int t = 0; t < 9; ++t)
            for (int i = 0; i < 120; ++i) v[i] *= v[(i + 1) % 120];
        for (int i = 0; i < 120; ++i) y[i * 1024 + threadIdx.x] = v[i];
    }"""
    usage = offline("spill.cu", "sm_80", source=source).resources["k"]
    assert usage.registers == 64
    assert usage.stack_frame > 0 and usage.spill_stores > 0 and usage.spill_loads > 0


def test_scopes_are_read_from_the_ptx():
    of_flags = [a for a in offline("recurrence.cu", "sm_80").accesses("recurrence") if a.scope]
    assert {(a.kind, a.semantics, a.scope) for a in of_flags} == {
        ("st", "release", "gpu"),
        ("ld", "acquire", "gpu"),
    }
    assert {a.parameters for a in of_flags} == {frozenset({2})}
    assert all(a.place.startswith("sync.cuh:") for a in of_flags)
    assert nvrtc.narrow_scopes(of_flags, "gpu") == []
    broken = offline("recurrence.cu", "sm_80", "BUG_BLOCK_SCOPE").accesses("recurrence")
    (narrow,) = nvrtc.narrow_scopes(broken, "gpu")
    assert (narrow.opcode, narrow.parameters) == ("st.release.cta.global.u32", frozenset({2}))
    relaxed = offline("recurrence.cu", "sm_80", "BUG_RELAXED_LOAD").accesses("recurrence")
    assert "relaxed" in {a.semantics for a in relaxed}


def test_stale_reads_and_vector_widths_are_read_from_the_ptx():
    source = """
    template <typename T>
    __global__ void steps(const T* __restrict__ x,      // only read
                          const float* __restrict__ h0,  // only read, but see below
                          float* h, T* __restrict__ y, int n) {
        for (int t = 0; t < n; ++t) {
            const float* before = t ? h + t - 1 : h0;
            h[t] = *before + 1.0f;
            y[t] = x[t];
        }
        atomicAdd(h + n, 1.0f);
    }
    """
    name = "steps<float4>"
    accesses = offline("steps.cu", "sm_80", source=source, names=[name]).accesses(name)
    assert set(nvrtc.widths(accesses, 0)) == {16}
    assert set(nvrtc.widths(accesses, 3, "st")) == {16}
    assert set(nvrtc.widths(accesses, 2, "st")) == set(nvrtc.widths(accesses, 2, "atom")) == {4}
    # That h0 is __restrict__ has let the compiler read h itself through the path that does not see
    # writes: nothing that runs on a CPU can show this.
    stale = nvrtc.stale_reads(accesses)
    assert {(a.opcode, a.parameters, a.place) for a in stale} == {
        ("ld.global.nc.f32", frozenset({1, 2}), "steps.cu:8")
    }
    also = nvrtc.stale_reads(accesses, aliases=[frozenset({0, 3})])  # if y may be x
    assert {a.parameters for a in also} == {frozenset({1, 2}), frozenset({0})}
    with pytest.raises(KeyError, match="no kernel 'other' in the PTX"):
        offline("steps.cu", "sm_80", source=source, names=[name]).accesses("other")


def test_a_pointer_is_followed_around_a_loop():
    ptx = """
    .file 1 "loop.cu"
    .visible .entry k(.param .u64 k_param_0, .param .u64 k_param_1)
    {
    .loc 1 3 5
    ld.param.u64 %rd1, [k_param_0];
    ld.param.u64 %rd2, [k_param_1+8];
    mov.u64 %rd3, %rd1;
    $again:
    .loc 1 4 5
    { ld.global.nc.v2.b64 {%rd7, %rd8}, [%rd3+16]; st.shared::cluster.u16 [%r1], %rs1; }
    mov.u64 %rd3, %rd4;
    add.s64 %rd4, %rd2, 4;
    @%p1 red.relaxed.cluster.global.add.u64 [%rd4], %rd7;
    bra $again;
    }
    """
    load_, store, reduction = nvrtc.OfflineModule(ptx, b"", {}, {}).accesses("k")
    assert (load_.parameters, load_.bytes, load_.place) == ({0, 1}, 16, "loop.cu:4")
    assert (store.space, store.bytes, store.parameters) == ("shared", 2, set())
    assert (reduction.kind, reduction.scope, reduction.parameters) == ("red", "cluster", {1})


def test_what_nvrtc_refuses_is_told_with_its_line():
    with pytest.raises(device.CompileError, match=r'bad\.cu\(2\): error: identifier "missing"'):
        offline("bad.cu", "sm_80", source="\n__device__ int x = missing;")
