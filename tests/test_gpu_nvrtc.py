"""The kernels as the real compiler makes them, for every architecture: no device is needed.

Registers, spills and the width of memory instructions are what a CPU cannot show.
"""

import re

import pytest
from full import FULL
from gpu_on_cpu.device import nvrtc

from cupy_lstm import kernels
from cupy_lstm.kernels import BLOCK, OPTIONS, SCALARS, SUMMED

pytestmark = pytest.mark.gpu_on_cpu

ARCHITECTURES = ["sm_70", "sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120"]
SAMPLE = ["sm_75", "sm_90"]
BYTES = {"float": 4, "double": 8, "__half": 2, "__nv_bfloat16": 2}
VECTORS = {  # which parameters are vectors, in storage type (S) or in that of the sums (A)
    "gates_forward": {0: "A", 1: "A", 2: "A", 3: "S", 4: "S"},
    "gates_output": {0: "A", 1: "A", 2: "S"},
    "gates_backward": {0: "A", 1: "S", 2: "A", 3: "A", 4: "A", 5: "A", 6: "A", 7: "A"},
    "dropout": {0: "S"},
}
GATES = [function for function in VECTORS if function != "dropout"]
READ = {
    "gates_forward": {0, 1, 3},
    "gates_output": {0, 1},
    "gates_backward": {0, *range(2, 8)},
    "dropout": {0},
}
WRITTEN = {
    "gates_forward": {0, 2, 4},
    "gates_output": {2},
    "gates_backward": {1, 4, 6},
    "dropout": {0},
}
RESIDENT = {"gates_forward": 4, "gates_backward": 4, "gates_output": 6, "dropout": 6}
"""Blocks that a multiprocessor shall hold at once, by their registers.

The kernels of one step wait for memory most of the time. By Little's law what is on its way has to
be bandwidth times latency: about 15 KB a multiprocessor on an H100 (3.35 TB/s, some 600 ns, 132 of
them). A thread of gates_forward and gates_backward asks for at least five words before it waits, so
1024 threads, four blocks, have 20 KB on their way. Those of the other two ask for two words or
fewer: 1536 threads, all that sm_86, sm_89 and sm_120 hold; the other architectures are given as
many. On sm_70 the compiler takes more, and three blocks will do for 5.6 KB (V100: 0.9 TB/s, some
500 ns, 80 multiprocessors).
"""
RESIDENT_SM_70 = 3


def register_budget(function, architecture):
    """Registers of a thread when so many blocks are resident.

    A multiprocessor has 65536 (CUDA C++ Programming Guide, technical specifications), given to
    warps in units of 256: 8 a thread.
    """
    blocks = RESIDENT_SM_70 if architecture == "sm_70" else RESIDENT.get(function, 6)
    return 65536 // (blocks * BLOCK) // 8 * 8


def widths_of(function, scalar):
    widest = scalar if function == "dropout" else SUMMED[scalar]
    return [n for n in (1, 2, 4, 8) if n * BYTES[widest] <= kernels.VECTOR_BYTES]


def instantiations(file):
    if file == "gates.cu":
        return [
            (function, scalar, n)
            for function in GATES
            for scalar in SUMMED
            for n in widths_of(function, scalar)
        ]
    if file == "dropout.cu":
        return [("dropout", scalar, n) for scalar in SUMMED for n in widths_of("dropout", scalar)]
    return [("check_lengths", "long long", None)]


def expression(function, scalar, n):
    return f"{function}<{scalar}>" if n is None else f"{function}<{scalar}, {n}>"


@pytest.fixture(scope="module")
def compiled():
    known = {}

    def compile_(file, architecture):
        if (file, architecture) not in known:
            names = [expression(*one) for one in instantiations(file)]
            known[file, architecture] = nvrtc.compile_offline(
                kernels.resolved(file), architecture, OPTIONS, names, file
            )
        return known[file, architecture]

    return compile_


def chosen(architecture, sample=SAMPLE):
    """Skip what this run leaves out, with the reason."""
    if reason := nvrtc.missing(architecture):
        pytest.skip(reason)
    if architecture not in sample and not FULL:
        pytest.skip(f"{', '.join(sample)} here, .ci/full compiles for all architectures")


each_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES)
each_file = pytest.mark.parametrize("file", ["gates.cu", "dropout.cu", "lengths.cu"])


@each_architecture
@each_file
def test_nothing_spills_and_registers_are_within_the_budget(compiled, file, architecture):
    chosen(architecture)
    module = compiled(file, architecture)
    for one in instantiations(file):
        usage = module.resources[module.names[expression(*one)]]
        assert (usage.spill_stores, usage.spill_loads, usage.stack_frame) == (0, 0, 0), one
        assert usage.registers <= register_budget(one[0], architecture), one
        shared = BLOCK * 8 if one[0] == "check_lengths" else 0
        assert usage.static_shared_bytes == shared, one


@each_architecture
def test_float_kernels_compute_nothing_in_float64(compiled, architecture):
    """Which is up to 64 times as slow on a card, and shows in no result."""
    chosen(architecture)
    module = compiled("gates.cu", architecture)
    texts = dict(re.findall(r"\.entry (\w+)\((.*?)\n}", module.ptx, re.DOTALL))
    for one in instantiations("gates.cu"):
        text = texts[module.names[expression(*one)]]
        assert (".f64" in text) == (one[1] == "double"), one


@each_architecture
@each_file
def test_nothing_is_read_through_the_path_that_sees_no_writes(compiled, file, architecture):
    chosen(architecture)
    module = compiled(file, architecture)
    for one in instantiations(file):
        accesses = module.accesses(expression(*one))
        assert accesses
        # gates and dz may be the same memory, and so may what one step reads and the next writes.
        pointers = frozenset(range(9))
        assert not nvrtc.stale_reads(accesses, [pointers]), one
        assert {access.space for access in accesses} <= {"global", "shared", "generic"}, one
        assert not [access for access in accesses if access.space == "local"], one


@each_architecture
@pytest.mark.parametrize("file", ["gates.cu", "dropout.cu"])
def test_vectors_move_in_one_instruction(compiled, file, architecture):
    chosen(architecture)
    module = compiled(file, architecture)
    for function, scalar, n in instantiations(file):
        accesses = module.accesses(expression(function, scalar, n))
        for parameter, kind in VECTORS[function].items():
            wide = n * BYTES[SUMMED[scalar] if kind == "A" else scalar]
            for direction in ("ld", "st"):
                found = nvrtc.widths(accesses, parameter, direction)
                where = (function, scalar, n, parameter, direction, found)
                expected = {wide}
                if direction == "st" and parameter not in WRITTEN[function]:
                    expected = set()
                if direction == "ld" and parameter not in READ[function]:
                    expected = set()
                assert set(found) == expected, where
        if n == widths_of(function, scalar)[-1]:
            assert kernels.VECTOR_BYTES in {a.bytes for a in accesses if a.kind == "ld"}


def test_every_instantiation_the_package_asks_for_is_compiled_here():
    assert sorted(SCALARS.values()) == sorted(SUMMED)
    # Those of the engines persistent and single have files of tests for themselves.
    files = {path.name for path in kernels.source_folder().glob("*.cu")}
    assert {name for name in files if not name.startswith(("recurrence", "step"))} == {
        "gates.cu", "dropout.cu", "lengths.cu"
    }  # fmt: skip
