"""The kernels of the engine persistent as the real compiler makes them, for every architecture."""

import time

import pytest
from full import FULL
from gpu_on_cpu.device import nvrtc
from test_gpu_nvrtc import chosen, each_architecture

from cupy_lstm import kernels
from cupy_lstm.kernels import OPTIONS, SCALARS
from cupy_lstm.persistent.launches import FILES as ALL_FILES
from cupy_lstm.persistent.tiles import ITEMSIZE, TILES

pytestmark = pytest.mark.gpu_on_cpu

FILES = {f"recurrence_{which}": ALL_FILES["block", which] for which in ("forward", "backward")}
INSTANTIATIONS = {
    function: [
        (f"{function}<{SCALARS[dtype]}, {terms}, {tile.threads}>", tile)
        for dtype, itemsize in ITEMSIZE.items()
        for tile in TILES[itemsize]
        for terms in [getattr(tile, function.replace("recurrence_", "") + "_terms")]
    ]
    for function in FILES
}
WRITTEN = {
    "recurrence_forward": {"z", "y", "c_steps", "h_after", "c_after"},
    "recurrence_backward": {"dz", "h_prev", "dh", "dc"},
}
MAY_BE_WRITTEN = {"recurrence_forward": {"h_before", "c_before"}, "recurrence_backward": set()}
SECONDS = 2.0
"""Of a compilation, by the clock of this process."""

each_function = pytest.mark.parametrize("function", FILES)


@pytest.fixture(scope="module")
def compiled():
    known = {}

    def compile_(function, expression, architecture):
        if (expression, architecture) not in known:
            file, begin = FILES[function], time.process_time()
            module = nvrtc.compile_offline(
                kernels.resolved(file), architecture, OPTIONS, [expression], file
            )
            known[expression, architecture] = module, time.process_time() - begin
        return known[expression, architecture]

    return compile_


def test_there_are_few_instantiations():
    assert sum(map(len, INSTANTIATIONS.values())) <= 24


@each_architecture
@each_function
def test_nothing_spills_and_the_register_file_holds_a_block(compiled, function, architecture):
    chosen(architecture, sample=("sm_90",))
    for expression, tile in INSTANTIATIONS[function]:
        module, seconds = compiled(function, expression, architecture)
        usage = module.resources[module.names[expression]]
        assert (usage.spill_stores, usage.spill_loads, usage.stack_frame) == (0, 0, 0), expression
        assert usage.registers <= tile.registers, expression
        assert usage.static_shared_bytes == 0, expression  # all that tiles.py counts is dynamic
        if FULL:
            assert seconds < SECONDS, (expression, seconds)


@each_architecture
@each_function
def test_memory_instructions(compiled, function, architecture):
    """Nothing that is written is read through the path that sees no writes; 16 bytes at once."""
    chosen(architecture, sample=("sm_90",))
    names = [p.name for p in kernels.signature(FILES[function], function, ("float", "16", "256"))]
    for expression, _ in INSTANTIATIONS[function]:
        module, _ = compiled(function, expression, architecture)
        assert_memory_instructions(module, expression, function, names)


def assert_memory_instructions(module, expression, function, names):
    accesses = module.accesses(expression)
    # What is of no parameter is in shared memory.
    assert all(a.parameters for a in accesses if a.space == "global"), expression
    written = {names[n] for a in accesses if a.writes for n in a.parameters}
    cached = {names[n] for a in accesses if a.non_coherent for n in a.parameters}
    assert written & WRITTEN[function] == WRITTEN[function]
    assert not cached & (WRITTEN[function] | MAY_BE_WRITTEN[function])
    assert cached >= {"weight_hh", "lengths"}
    # The exchanged vector, of four rows, and the four weights of a term.
    shared = [a for a in accesses if a.space == "shared" and a.kind == "ld"]
    assert shared
    weights = 16 if "<float" in expression else 8
    assert not [a for a in shared if a.bytes not in (16, weights)], expression
    assert ".f64" not in module.ptx


def test_every_instantiation_the_package_asks_for_is_compiled_here():
    names = {path.name for path in kernels.source_folder().glob("recurrence*.cu")}
    assert set(ALL_FILES.values()) == names
