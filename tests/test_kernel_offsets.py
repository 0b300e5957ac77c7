"""Offsets beyond 2^32: what no grid of the test bed, and no memory of ours, is large enough for.

The kernels are compiled as they are with the host's C++ compiler and run as one thread among many:
the one that has item 2^33 + 1000. Its arrays are hundreds of GB of addresses, of which only the
pages that somebody touches exist.
"""

import ctypes
import itertools
import mmap
import os
import shutil
import subprocess

import numpy as np
import pytest

from cupy_lstm import kernels
from cupy_lstm.dropout import Dropout

ITEM = 2**33 + 1000
BLOCK = 256
NEIGHBOUR = ITEM + 1024  # where the thread goes on if the stride of its loop loses its upper half
COUNT = ITEM + 2000
WIDTHS = (1, 4)
GATES = ("gates_forward", "gates_output", "gates_backward")
MARGIN = 2**31  # elements before an array, where an offset that was cut to 32 bits may lead

PRELUDE = """
#include <math.h>
#include <string.h>
#define __device__
#define __global__
#define __forceinline__ inline
struct Index { unsigned x; };
static Index blockIdx, blockDim, gridDim, threadIdx;
struct uint2 { unsigned x, y; };
struct uint4 { unsigned x, y, z, w; };
template <typename T> void __stwb(T* to, T value) { *to = value; }
static unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return static_cast<unsigned __int128>(a) * b >> 64;
}
extern "C" void place_thread(unsigned block, unsigned blocks, unsigned thread, unsigned threads) {
    blockIdx.x = block, gridDim.x = blocks, threadIdx.x = thread, blockDim.x = threads;
}
"""
HALF = """
#pragma once
struct {type} {{ unsigned short bits; }};
float {widen}({type});
{type} {rounded}(float);
"""
HEADERS = {
    "cuda_fp16.h": HALF.format(type="__half", widen="__half2float", rounded="__float2half_rn"),
    "cuda_bf16.h": HALF.format(
        type="__nv_bfloat16", widen="__bfloat162float", rounded="__float2bfloat16"
    ),
}


def entry_point(file, function, n):
    """Return a C function that calls a kernel with pointers and numbers from two lists."""
    pointers, numbers = [], []
    for parameter in kernels.signature(file, function, ("float", str(n))):
        kind = {"float32": "float", "bool": "bool", "float64": "double"}.get(parameter.dtype.name)
        if parameter.is_pointer:
            pointers.append(f"static_cast<{kind}*>(pointers[{len(pointers)}])")
        else:
            numbers.append(f"numbers[{len(numbers)}]")
    arguments = ", ".join(pointers + numbers)
    return (
        f'extern "C" void {function}_{n}(void** pointers, const {kind or "long long"}* numbers) '
        f"{{ {function}<float, {n}>({arguments}); }}\n"
    )


@pytest.fixture
def compiled(tmp_path):
    """Return a function that compiles a file of ours, with an edit, and gives a way to run it."""
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        pytest.skip("no C++ compiler (g++, or what CXX names): kernels cannot be run on this host")

    def compile_(file, functions, old="", new=""):
        text = kernels.resolved(file)
        assert old in text
        entries = "".join(entry_point(file, name, n) for name in functions for n in WIDTHS)
        (tmp_path / "kernel.cpp").write_text(PRELUDE + text.replace(old, new) + entries)
        for name, header in HEADERS.items():
            (tmp_path / name).write_text(header)
        command = [compiler, "-std=c++17", "-O1", "-fno-strict-aliasing", "-Wno-narrowing", "-I."]
        command += ["-shared", "-fPIC", "kernel.cpp", "-o", "kernel.so", "-lm"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        library = ctypes.CDLL(str(tmp_path / "kernel.so"))

        def run(function, n, item, arrays, numbers):
            library.place_thread(item // BLOCK, item // BLOCK + 1, item % BLOCK, BLOCK)
            pointers = (ctypes.c_void_p * len(arrays))(*(array.ctypes.data for array in arrays))
            library[f"{function}_{n}"](pointers, (ctypes.c_longlong * len(numbers))(*numbers))

        return run

    return compile_


def far(elements, dtype):
    """Return an array of zeros of any size; its pages come when they are written."""
    reserve = getattr(mmap, "MAP_NORESERVE", 0x4000)
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | reserve
    size = (MARGIN + elements) * np.dtype(dtype).itemsize
    try:
        memory = mmap.mmap(-1, size, flags=flags)
    except OSError as error:
        pytest.skip(f"this system gives out no {size / 2**30:.0f} GiB of addresses: {error}")
    return np.frombuffer(memory, dtype)[MARGIN:]


# --- gates ---------------------------------------------------------------------------------------


def gates_arrays(function, n):
    """Return the name, the values a row and the dtype of each array, for H = n."""
    features = {"z": 4 * n, "gates": 4 * n, "dz": 4 * n, "padding": 1}
    parameters = kernels.signature("gates.cu", function, ("float", str(n)))
    return [(p.name, features.get(p.name, n), p.dtype) for p in parameters if p.is_pointer]


def assert_far_item_is_like_the_first(run, function, n, held):
    """Give one row, which is one item, what another layer has in its only row, and compare both."""
    D, B = 2, COUNT // 2
    (d, row), other = divmod(ITEM, B), NEIGHBOUR % B
    rng = np.random.default_rng(0)
    near, there, starts, strides = [], [], [], []
    for name, features, dtype in gates_arrays(function, n):
        stride = B * features + 64
        array, start = far(D * stride, dtype), d * stride + row * features
        values = rng.standard_normal(features, "float32")
        near.append(np.array([held]) if name == "padding" else values)
        array[start : start + features] = near[-1]
        there.append(array)
        starts.append((start, d * stride + other * features))
        strides.append(stride)
    run(function, n, 0, near, [64] * len(near) + [1, 1, n])
    run(function, n, ITEM, there, [*strides, D, B, n])
    for (name, features, _), values, array, (start, neighbour) in zip(
        gates_arrays(function, n), near, there, starts, strict=True
    ):
        assert array[start : start + features].tobytes() == values.tobytes(), name
        assert not array[neighbour : neighbour + features].any(), name


@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("n", WIDTHS)
@pytest.mark.parametrize("function", GATES)
def test_gates(compiled, function, n, held):
    assert_far_item_is_like_the_first(compiled("gates.cu", GATES), function, n, held)


NARROW_GATES = {
    "place": ("long long d, row, units, gates;", "int d, row, units, gates;"),
    "unsigned place": ("long long d, row, units, gates;", "unsigned d, row, units, gates;"),
    "thread": ("blockIdx.x * (long long)blockDim.x", "blockIdx.x * blockDim.x"),
    "stride of the loop": ("(long long)gridDim.x * blockDim.x", "gridDim.x * blockDim.x"),
    "item": ("place(long long item,", "place(int item,"),
    "rows of gates": ("row * 4 * H + unit}", "static_cast<int>(row * 4 * H + unit)}"),
    "z": ("z + at.d * z_stride + at.gates", "z + static_cast<int>(at.d * z_stride + at.gates)"),
    "stride of c": ("long long c_stride", "int c_stride"),
    "padding": ("padding[at.d * padding_stride", "padding[(int)at.d * (int)padding_stride"),
}  # fmt: skip


@pytest.mark.parametrize("name", NARROW_GATES)
def test_narrow_gates_are_seen(compiled, name):
    run = compiled("gates.cu", GATES, *NARROW_GATES[name])
    with pytest.raises(AssertionError):
        for function, held in itertools.product(GATES, (False, True)):
            assert_far_item_is_like_the_first(run, function, 4, held)


# --- dropout -------------------------------------------------------------------------------------


def assert_far_block_is_dropped_as_on_the_host(compiled, n, old="", new=""):
    B, F, layer, dropout = 5, 16, 1, Dropout(0.5, 3, 4)
    blocks = F // 8
    T = COUNT // (B * blocks)
    t, row, block = ITEM // blocks // B, ITEM // blocks % B, ITEM % blocks
    x = far(T * B * F, "float32")
    start = (t * B + row) * F + 8 * block
    x[start : start + 8] = 1
    other = start + 8 * (NEIGHBOUR - ITEM)
    x[other] = 1
    run = compiled("dropout.cu", ["dropout"], old, new)
    numbers = [dropout.seed, dropout.call, layer, 0, dropout.threshold]
    run("dropout", n, ITEM, [x], [*numbers, 2, T, B, F])
    kept = Dropout(0.5, 3, 4, row).kept(layer, t, 1, F)[0, 8 * block : 8 * block + 8]
    assert x[start : start + 8].tolist() == (2.0 * kept).tolist()
    assert x[other] == 1


@pytest.mark.parametrize("n", WIDTHS)
def test_dropout(compiled, n):
    assert_far_block_is_dropped_as_on_the_host(compiled, n)


NARROW_DROPOUT = {
    "thread": ("blockIdx.x * (long long)blockDim.x", "blockIdx.x * blockDim.x"),
    "stride of the loop": ("(long long)gridDim.x * blockDim.x", "gridDim.x * blockDim.x"),
    "offset": ("x + (t * B + row) * F + block * 8", "x + (int)((t * B + row) * F + block * 8)"),
}


@pytest.mark.parametrize("name", NARROW_DROPOUT)
def test_narrow_dropout_is_seen(compiled, name):
    with pytest.raises(AssertionError):
        assert_far_block_is_dropped_as_on_the_host(compiled, 4, *NARROW_DROPOUT[name])
