"""The launcher: arguments checked against the source, kernels compiled once a device and dtype."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from gpu_cases import DTYPES, storage
from gpu_on_cpu import record
from gpu_on_cpu.driver import nvrtc

from cupy_lstm import kernels
from cupy_lstm.kernels import SCALARS, SUMMED, Kernel, Rows, Strided, vector_width

pytestmark = pytest.mark.gpu_on_cpu

HERE = Path(__file__).resolve().parent


def raised(error, call):
    with pytest.raises(error) as caught:
        call()
    return str(caught.value)


# --- reading the source --------------------------------------------------------------------------


def test_signature_of_dropout():
    found = kernels.signature("dropout.cu", "dropout", ("__half", "4"))
    words = [(p.name, p.is_pointer, p.dtype.name) for p in found]
    assert words == [
        ("x", True, "float16"),
        *((name, False, "uint64") for name in ("seed", "call", "layer", "first_row", "threshold")),
        ("scale", False, "float64"),
        *((name, False, "int64") for name in "TBF"),
    ]


@pytest.mark.parametrize("dtype", DTYPES)
def test_signature_of_the_gates_tells_storage_from_sums(dtype):
    storage(dtype)
    wide = "float32" if dtype in ("float16", "bfloat16") else dtype
    found = kernels.signature("gates.cu", "gates_forward", (SCALARS[dtype], "2"))
    types = {p.name: (p.is_pointer, p.dtype.name) for p in found}
    for name in ("z", "c_prev", "c"):
        assert types[name] == (True, wide)
    for name in ("h_prev", "h"):
        assert types[name] == (True, dtype)
    assert types["padding"] == (True, "bool")
    for name in ("z_stride", "padding_stride", "D", "B", "H"):
        assert types[name] == (False, "int64")


def test_sums_of_the_table_are_those_of_the_header():
    text = kernels.source("scalar.cuh")
    for scalar, summed in SUMMED.items():
        line = f"template <> struct Summed<{scalar}> {{ using type = {summed}; }};"
        assert (line in text) == (scalar != summed)


def test_a_kernel_that_is_not_there():
    text = raised(ValueError, lambda: Kernel("gates.cu", "gates_sideways", "float", "1"))
    assert text == "there is no kernel template 'gates_sideways' in gates.cu"
    with pytest.raises(FileNotFoundError, match=r"no CUDA source 'doors\.cu'"):
        Kernel("doors.cu", "gates_forward", "float", "1")


@pytest.mark.parametrize("name", ["gates.cu", "dropout.cu", "lengths.cu"])
def test_resolved_sources_need_no_folder_and_keep_their_lines(name):
    text = kernels.resolved(name)
    assert '#include "' not in text
    assert "#pragma once" not in text
    headers = {
        "gates.cu": ["cell.cuh", "scalar.cuh", "vector.cuh"],
        "dropout.cu": ["scalar.cuh", "vector.cuh"],
    }
    file, number, seen = None, 0, {}
    for line in text.splitlines():
        if line.startswith("#line"):
            number, file = int(line.split()[1]), line.split('"')[1]
            continue
        seen.setdefault(file, {})[number] = line
        number += 1
    assert sorted(seen) == sorted([name, *headers.get(name, [])])
    for file, lines in seen.items():
        original = kernels.source(file).splitlines()
        for at, line in lines.items():
            wanted = original[at - 1]
            assert line == ("" if wanted.startswith("#pragma once") else wanted), (file, at)
        # Every line is there but the includes that were replaced.
        missing = set(range(1, len(original) + 1)) - set(lines)
        assert all(original[at - 1].startswith('#include "') for at in missing)


def test_a_header_that_two_others_include_comes_once(monkeypatch):
    sources = {
        "a.cu": '#include "b.cuh"\n#include "c.cuh"\nint a;',
        "b.cuh": '#pragma once\n#include "c.cuh"\nint b;',
        "c.cuh": "#pragma once\nint c;",
    }
    monkeypatch.setattr(kernels, "source", sources.__getitem__)
    lines = kernels.resolved.__wrapped__("a.cu").splitlines()
    assert [line for line in lines if line.startswith("int")] == ["int c;", "int b;", "int a;"]
    assert lines[lines.index("int a;") - 1] == '#line 2 "a.cu"'


# --- compiling -----------------------------------------------------------------------------------


def test_compiled_when_it_is_needed_and_once_a_device(cupy, monkeypatch):
    compiled = []
    compile_ = nvrtc.Program.compile

    def counting(self, *arguments):
        compiled.extend(self.name_expressions)
        return compile_(self, *arguments)

    monkeypatch.setattr(nvrtc.Program, "compile", counting)
    kernel = Kernel("lengths.cu", "check_lengths", "long long")
    assert not compiled
    lengths = cupy.asarray(np.ones(3, np.int64))
    report = cupy.asarray(np.zeros(3, np.int64))
    for _ in range(3):
        kernel.launch(256, lengths, report, 3, 5)
    first = kernel.function(0)
    assert kernel.function(0) is first
    assert len(compiled) <= 1  # CuPy keeps modules, too
    with cupy.cuda.Device(1):
        second = kernel.function(1)
        assert second is not first
        there = cupy.asarray(np.ones(3, np.int64)), cupy.asarray(np.zeros(3, np.int64))
        with record() as log:
            kernel.launch(256, *there, 3, 5)
    assert log.launches[0].device == 1


WITHOUT_HEADERS = """
import cuda.pathfinder
for name in dir(cuda.pathfinder):
    if name.startswith(("find", "locate")) and "header" in name:
        setattr(cuda.pathfinder, name, lambda *_, **__: None)
from gpu_on_cpu import install
install()
from cupy_lstm.kernels import Kernel
Kernel("lengths.cu", "check_lengths", "long long").function(0)
"""


def test_without_the_headers_of_the_toolkit(cupy):
    environment = {
        "PATH": "/usr/bin:/bin",
        "PYTHONPATH": f"{HERE}:{HERE.parent}",
        "GPU_ON_CPU_CACHE": str(cache_folder()),
    }
    command = [sys.executable, "-W", "ignore", "-c", WITHOUT_HEADERS]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.stderr.strip().splitlines()[-1] == (
        "RuntimeError: lengths.cu cannot be compiled without the headers of the CUDA toolkit: "
        "pip install 'cupy_lstm[cuda12x]' (or cuda13x for CUDA 13)"
    )


def cache_folder():
    from gpu_on_cpu.device.build import cache_folder

    return cache_folder()


def test_an_error_of_the_compiler_is_cupys(cupy, monkeypatch):
    monkeypatch.setattr(kernels, "resolved", lambda file: '#line 1 "gates.cu"\nthis is no C++')
    with pytest.raises(cupy.cuda.compiler.CompileException, match=r"gates\.cu:1"):
        Kernel("gates.cu", "gates_output", "float", "1").function(0)


# --- arguments -----------------------------------------------------------------------------------


@pytest.fixture
def output(cupy):
    """A kernel, and what it is right to call it with: gates, c, m, padding, strides, D, rows, H."""
    kernel = Kernel("gates.cu", "gates_output", "float", "1")
    gates, c, m = (cupy.ones((1, 2, size), "float32") for size in (12, 3, 3))
    padding = cupy.zeros((1, 2), bool)
    return kernel, [gates, c, m, padding, 24, 6, 6, 2, 1, 2, 3]


def refused(output, position, value, error):
    kernel, arguments = output
    arguments = [*arguments[:position], value, *arguments[position + 1 :]]
    with record() as log:
        text = raised(error, lambda: kernel.launch(6, *arguments))
    assert not log.launches
    return text


def test_right_arguments(cupy, output):
    kernel, arguments = output
    with record() as log:
        kernel.launch(6, *arguments)
        kernel.launch(6, *arguments[:3], None, *arguments[4:])
        kernel.launch(6, *arguments[:4], *(np.int32(number) for number in arguments[4:]))
    assert [(e.grid, e.block) for e in log.launches] == [((1, 1, 1), (256, 1, 1))] * 3
    np.testing.assert_allclose(arguments[2].get(), np.tanh(1), rtol=2e-7)


def test_wrong_number_of_arguments(output):
    kernel, arguments = output
    for wrong in (arguments[:-1], [*arguments, 1], []):
        text = raised(TypeError, lambda wrong=wrong: kernel.launch(6, *wrong))
        assert text == f"gates_output<float, 1> takes 11 arguments, received {len(wrong)}"


def test_wrong_dtype(cupy, output):
    text = refused(output, 1, cupy.ones((1, 2, 3)), TypeError)
    assert text == "argument c of gates_output<float, 1> must have dtype float32, received float64"
    text = refused(output, 3, cupy.ones((1, 2), "int8"), TypeError)
    assert text == "argument padding of gates_output<float, 1> must have dtype bool, received int8"


def test_not_contiguous(cupy, output):
    strided = cupy.ones((1, 3, 2), "float32").swapaxes(1, 2)
    text = refused(output, 2, strided, ValueError)
    assert text == (
        "argument m of gates_output<float, 1> must be contiguous, received strides (24, 4, 8)"
    )


def test_another_device(cupy, output):
    with cupy.cuda.Device(1):
        there = cupy.ones((1, 2, 3), "float32")
    text = refused(output, 2, there, ValueError)
    assert text == (
        "argument m of gates_output<float, 1> is on device 1, but the current device is 0"
    )


@pytest.mark.parametrize("value", [2.0, True, "2", None, np.float64(2)])
def test_an_integer_is_an_integer(output, value):
    text = refused(output, 10, value, TypeError)
    assert text == f"argument H of gates_output<float, 1> must be a int64, received {value!r}"


def test_a_float_of_python_arrives_as_what_the_kernel_takes(cupy):
    kernel = Kernel("dropout.cu", "dropout", "float", "4")
    for scale in (2.0, 2, np.float64(2)):
        x = cupy.ones((1, 1, 8), "float32")
        kernel.launch(1, x, 0, 0, 1, 0, 0, scale, 1, 1, 8)
        assert (x.get() == 2).all()
    text = raised(TypeError, lambda: kernel.launch(1, x, 0, 0, 1, 0, 0, "2", 1, 1, 8))
    assert text == "argument scale of dropout<float, 4> must be a float64, received '2'"


def test_no_items_no_launch(output):
    kernel, arguments = output
    with record() as log:
        kernel.launch(0, *arguments)
    assert not log


@pytest.mark.parametrize(("items", "blocks"), [(1, 1), (256, 1), (257, 2), (1000, 4)])
def test_one_thread_for_each_item(cupy, output, items, blocks):
    kernel, arguments = output
    with record() as log:
        kernel.launch(items, *arguments)
    assert log.launches[0].grid == (blocks, 1, 1)


# --- rows ----------------------------------------------------------------------------------------


def test_rows_know_their_stride(cupy):
    chunk = cupy.zeros((2, 5, 3, 8), "float32")
    assert Rows(chunk[:, 1]).stride == 5 * 3 * 8
    assert Rows(chunk[:1, 1]).stride == 3 * 8
    assert Rows(chunk[:, 1:3]).stride == 5 * 3 * 8
    assert Rows(cupy.zeros((2, 0, 8))).stride == 0


def test_rows_that_are_not_contiguous(cupy):
    chunk = cupy.zeros((2, 5, 3, 8), "float32")
    for wrong in (chunk[..., ::2], chunk[:, :, 1], chunk[:, ::2, 0], chunk.swapaxes(2, 3)):
        text = raised(ValueError, lambda wrong=wrong: Rows(wrong))
        assert text == f"each direction must be contiguous, received strides {wrong.strides}"


@pytest.mark.parametrize(
    ("dtype", "H", "width"),
    [
        ("float32", 8, 4), ("float32", 6, 2), ("float32", 7, 1), ("float32", 4, 4),
        ("float64", 8, 2), ("float64", 6, 2), ("float64", 3, 1),
        ("float16", 8, 4), ("float16", 2, 2), ("float16", 5, 1),
    ],
)  # fmt: skip
def test_vectors_are_as_wide_as_16_bytes_and_the_features_allow(cupy, dtype, H, width):
    wide = "float32" if dtype == "float16" else dtype
    rows = [Rows(cupy.zeros((2, 3, H), kind)) for kind in (wide, dtype)]
    assert vector_width(H, *rows, None) == width


def test_vectors_need_an_aligned_address_and_stride(cupy):
    flat = cupy.zeros(1 + 2 * 3 * 8, "float32")
    assert vector_width(8, Rows(flat[1:].reshape(2, 3, 8))) == 1
    assert vector_width(8, Rows(flat[:-1].reshape(2, 3, 8))) == 4
    two = cupy.zeros(2 + 2 * 3 * 8, "float32")[2:].reshape(2, 3, 8)
    assert vector_width(8, Rows(two)) == 2
    strided = cupy.lib.stride_tricks.as_strided(
        cupy.zeros(100, "float32"), (2, 3, 8), (26 * 4, 8 * 4, 4)
    )
    assert vector_width(8, Rows(strided)) == 2


# --- blocks that are chosen ----------------------------------------------------------------------


def recurrence(terms="16", threads="256"):
    return Kernel("recurrence_block.cu", "recurrence_forward", "float", terms, threads)


def test_launch_bounds_stand_in_no_ones_way():
    found = {p.name: (p.is_pointer, p.dtype.name) for p in recurrence().parameters}
    assert found["weight_hh"] == (True, "float32")
    assert found["lengths"] == (True, "int64")
    assert found["x_time"] == (False, "int64")
    assert found["H"] == (False, "int32")


def test_blocks_are_checked_like_items(cupy):
    kernel = Kernel("lengths.cu", "check_lengths", "long long")
    lengths, report = cupy.array([2, 9]), cupy.zeros(3, "int64")
    text = raised(TypeError, lambda: kernel.launch_blocks((1, 1), 256, 0, lengths, report))
    assert text == "check_lengths<long long> takes 4 arguments, received 2"
    with record() as log:
        kernel.launch_blocks((0, 2), 256, 0, lengths, report, 2, 5)
    assert not log.launches
    with record() as log:
        kernel.launch_blocks((1, 1), 256, 0, lengths, report, 2, 5)
    assert [(launch.grid, launch.block) for launch in log.launches] == [((1, 1, 1), (256, 1, 1))]
    assert report.get().tolist() == [2, 9, 5]


def test_more_shared_memory_is_asked_for_once(cupy, monkeypatch):
    kernel, asked = Kernel("lengths.cu", "check_lengths", "long long"), []

    class Function:
        def __call__(self, grid, block, arguments, shared_mem):
            asked.append(shared_mem)

        def __setattr__(self, name, value):
            asked.append((name, value))

    function = Function()
    monkeypatch.setattr(kernel, "function", lambda device: function)
    arguments = cupy.array([2]), cupy.zeros(3, "int64"), 1, 5
    for shared_bytes in (48 * 1024, 50_000, 50_000, 49_500, 60_000):
        kernel.launch_blocks((1, 1), 256, shared_bytes, *arguments)
    # All that a block may have: another thread may be about to launch with more.
    most = cupy.cuda.Device().attributes["MaxSharedMemoryPerBlockOptin"]
    name = "max_dynamic_shared_size_bytes"
    assert asked == [48 * 1024, (name, most), 50_000, 50_000, 49_500, 60_000]


def test_arrays_of_any_strides_are_passed_with_their_strides(cupy):
    array = cupy.zeros((4, 6), "float32")[::2, ::-3].T
    assert Strided(array).strides == (-3, 12)
