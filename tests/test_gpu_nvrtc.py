"""The kernels as the real compiler makes them, for every architecture: no device is needed.

Registers, spills and the width of memory instructions are what a CPU cannot show.
"""

import os

import pytest
from gpu_on_cpu.device import nvrtc

from cupy_lstm import kernels
from cupy_lstm.kernels import BLOCK, OPTIONS, SCALARS, SUMMED

pytestmark = pytest.mark.gpu_on_cpu

ARCHITECTURES = ["sm_70", "sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120"]
SAMPLE = ["sm_75", "sm_90"]
BYTES = {"float": 4, "double": 8, "__half": 2, "__nv_bfloat16": 2}
GATES = {  # which parameters are vectors, in storage type (S) or in that of the sums (A)
    "gates_forward": {0: "A", 1: "A", 2: "A", 3: "S", 4: "S"},
    "gates_output": {0: "A", 1: "A", 2: "S"},
    "gates_backward": {0: "A", 1: "S", 2: "A", 3: "A", 4: "A", 5: "A", 6: "A", 7: "A"},
}
WRITTEN = {"gates_forward": {0, 2, 4}, "gates_output": {2}, "gates_backward": {1, 4, 6}}
REGISTERS = {"gates_forward": 64, "gates_output": 40, "gates_backward": 64}
"""Of 65536 in a multiprocessor: 64 let 1024 threads be resident, four blocks of 256."""
REGISTERS_SM_70 = 80
"""The compiler is more generous there: three blocks of 256."""


def widths_of(scalar):
    return [n for n in (1, 2, 4) if n * BYTES[SUMMED[scalar]] <= kernels.VECTOR_BYTES]


def instantiations(file):
    if file == "gates.cu":
        return [
            (function, scalar, n)
            for function in GATES
            for scalar in SUMMED
            for n in widths_of(scalar)
        ]
    if file == "dropout.cu":
        return [("dropout", scalar, None) for scalar in SUMMED]
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


def chosen(architecture):
    """Skip what this run leaves out, with the reason."""
    if reason := nvrtc.missing():
        pytest.skip(reason)
    from cupy_backends.cuda.libs import nvrtc as library

    if architecture == "sm_70" and library.getVersion() >= (13, 0):
        pytest.skip("NVRTC of CUDA 13 no longer compiles for sm_70")
    if architecture not in SAMPLE and not os.environ.get("CUPY_LSTM_FULL"):
        pytest.skip(f"{', '.join(SAMPLE)} here, .ci/full compiles for all architectures")


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
        budget = REGISTERS.get(one[0], 40) if architecture != "sm_70" else REGISTERS_SM_70
        assert usage.registers <= budget, one
        shared = BLOCK * 8 if one[0] == "check_lengths" else 0
        assert usage.static_shared_bytes == shared, one


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
def test_vectors_move_in_one_instruction(compiled, architecture):
    chosen(architecture)
    module = compiled("gates.cu", architecture)
    for function, scalar, n in instantiations("gates.cu"):
        accesses = module.accesses(expression(function, scalar, n))
        for parameter, kind in GATES[function].items():
            wide = n * BYTES[SUMMED[scalar] if kind == "A" else scalar]
            for direction in ("ld", "st"):
                found = nvrtc.widths(accesses, parameter, direction)
                where = (function, scalar, n, parameter, direction, found)
                # For sm_100 and later the compiler may split a load in halves, never a store.
                halves = {wide // 2} if direction == "ld" and n > 1 else set()
                assert set(found) <= {wide} | halves, where
                if direction == "st":
                    assert bool(found) == (parameter in WRITTEN[function]), where
        if n == kernels.VECTOR_BYTES // BYTES[SUMMED[scalar]]:
            assert kernels.VECTOR_BYTES in {a.bytes for a in accesses if a.kind == "ld"}


def test_every_instantiation_the_package_asks_for_is_compiled_here():
    assert sorted(SCALARS.values()) == sorted(SUMMED)
    assert {path.name for path in kernels.source_folder().glob("*.cu")} == {
        "gates.cu", "dropout.cu", "lengths.cu"
    }  # fmt: skip
