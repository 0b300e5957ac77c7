"""The kernels of the grid and cluster tiers as the real compiler makes them."""

import sys
from pathlib import Path

import pytest
from full import FULL
from gpu_on_cpu.device import nvrtc
from test_gpu_nvrtc import chosen, each_architecture

from cupy_lstm import kernels
from cupy_lstm.kernels import OPTIONS, SCALARS
from cupy_lstm.persistent.launches import FILES
from cupy_lstm.persistent.teams import (
    CLUSTERS,
    LANES,
    REGISTERS,
    TENSOR,
    TENSOR_CAPABILITY,
    TENSOR_TF32,
)
from cupy_lstm.persistent.tiles import ITEMSIZE

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "profiling"))
from gpu import sass

pytestmark = pytest.mark.gpu_on_cpu

PASSES = ("forward", "backward")
WRITTEN = {
    "forward": {"z", "y", "c_steps", "h_after", "c_after"},
    "backward": {"dz", "h_prev", "dh", "dc"},
}
MAY_BE_WRITTEN = {"forward": {"h_before", "c_before"}, "backward": set()}
EXCHANGED = {"exchange", "flags"}
HALF = {"float16": "HMMA.16816.F32", "bfloat16": "HMMA.16816.F32.BF16", "float32": "TF32"}


def forms(architecture):
    """Yield form and dtype of every kernel that an architecture is given."""
    tensor = int(architecture[3:]) >= 10 * TENSOR_CAPABILITY[0]
    for dtype in ITEMSIZE:
        if not tensor or dtype == "float32":
            yield LANES, dtype
        if tensor:
            yield TENSOR_TF32 if dtype == "float32" else TENSOR, dtype


def clusters(architecture):
    """Return the cluster sizes of an architecture, 0 for the grid tier."""
    return (0, *CLUSTERS) if int(architecture[3:]) >= 90 else (0,)


def instantiations(architecture, everything=True):
    """Yield pass, form, dtype and cluster size of every kernel of an architecture.

    Without everything those that differ most: one half type, and of the clusters the largest.
    """
    for form, dtype in forms(architecture):
        for cluster in clusters(architecture):
            few = (form, cluster) in ((LANES, 0), (LANES, 8), (TENSOR, 0)) and dtype != "bfloat16"
            if everything or few:
                yield from ((which, form, dtype, cluster) for which in PASSES)


@pytest.fixture(scope="module")
def compiled():
    known = {}

    def compile_(architecture, which, form, dtype, cluster):
        key = architecture, which, form, dtype, cluster
        if key not in known:
            scalar, file = SCALARS[dtype], FILES["team", which]
            name = f"recurrence_{which}<{scalar}, {form.kind}<{scalar}, {form.kept_terms}>>"
            options = [*OPTIONS, *([f"-DCLUSTER={cluster}"] if cluster else [])]
            source = kernels.resolved(file)
            module = nvrtc.compile_offline(source, architecture, options, [name], file)
            known[key] = name, module
        return known[key]

    return compile_


def refused(architecture):
    """Skip an architecture this run leaves out, or for which the kernels are not made."""
    chosen(architecture, sample=("sm_90",))
    if architecture == "sm_70":
        pytest.skip("teams begin with sm_75")


@each_architecture
def test_there_are_few_instantiations(architecture):
    grid = [one for one in instantiations(architecture) if not one[3]]
    assert len(grid) <= 24
    assert len(list(instantiations(architecture))) - len(grid) <= 24


@each_architecture
def test_nothing_spills_and_memory_instructions_are_right(compiled, architecture):
    refused(architecture)
    for one in instantiations(architecture, FULL):
        name, module = compiled(architecture, *one)
        usage = module.resources[module.names[name]]
        assert (usage.spill_stores, usage.spill_loads, usage.stack_frame) == (0, 0, 0), one
        assert usage.registers <= REGISTERS, one
        assert usage.static_shared_bytes == 0, one
        check_memory(module, name, *one)


def check_memory(module, name, which, form, dtype, cluster):
    """Flags have device scope, clusters their barrier; nothing that is written is read stale."""
    file, scalar = FILES["team", which], SCALARS[dtype]
    names = [p.name for p in kernels.signature(file, f"recurrence_{which}", (scalar, "Product"))]
    accesses = module.accesses(name)
    assert all(a.parameters for a in accesses if a.space == "global"), name
    written = {names[n] for a in accesses if a.writes for n in a.parameters}
    cached = {names[n] for a in accesses if a.non_coherent for n in a.parameters}
    assert written >= WRITTEN[which]
    assert not cached & (WRITTEN[which] | MAY_BE_WRITTEN[which] | EXCHANGED)
    assert cached >= {"weight_hh"}
    assert ".f64" not in module.ptx
    signals = {(a.kind, a.semantics, a.scope) for a in accesses if a.scope}
    body = module.ptx
    if cluster:
        assert not signals
        assert not {names[n] for a in accesses for n in a.parameters} & EXCHANGED
        assert "barrier.cluster.arrive.release.aligned" in body
        assert "barrier.cluster.arrive.relaxed" not in body
        assert "barrier.cluster.wait.acquire.aligned" in body
        assert "mapa.u64" in body
        return
    assert signals == {("st", "release", "gpu"), ("ld", "acquire", "gpu")}
    assert nvrtc.narrow_scopes([a for a in accesses if a.scope], "gpu") == []
    flags, exchange = names.index("flags"), names.index("exchange")
    assert {frozenset({flags})} == {a.parameters for a in accesses if a.scope}
    assert set(nvrtc.widths(accesses, exchange)) == {16}


def test_a_flag_of_block_scope_is_seen():
    """Nothing that runs on a CPU need show it: there all threads see every store."""
    source = kernels.resolved(FILES["team", "forward"])
    if reason := nvrtc.missing("sm_90"):
        pytest.skip(reason)
    assert source.count("store_release<Scope::device>") == 1
    narrow = source.replace("store_release<Scope::device>", "store_release<Scope::block>")
    name = "recurrence_forward<float, LaneProduct<float, 6>>"
    module = nvrtc.compile_offline(narrow, "sm_90", OPTIONS, [name], "recurrence_team.cu")
    signals = [a for a in module.accesses(name) if a.scope]
    found = {a.opcode for a in nvrtc.narrow_scopes(signals, "gpu")}
    assert found == {"st.release.cta.global.u32"}


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
@pytest.mark.parametrize("dtype", ITEMSIZE)
def test_the_tensor_cores_multiply(compiled, architecture, dtype):
    """As the machine's own instructions say."""
    if reason := nvrtc.missing(architecture):
        pytest.skip(reason)
    if (nvdisasm := sass.find_nvdisasm()) is None:
        pytest.skip(sass.MISSING)
    if (architecture == "sm_80" or dtype != "float16") and not FULL:
        pytest.skip("runs in .ci/full")
    form = TENSOR_TF32 if dtype == "float32" else TENSOR
    for which in PASSES:
        _, module = compiled(architecture, which, form, dtype, 0)
        text = sass.disassemble(module.cubin, nvdisasm)
        assert text.count("HMMA.") > form.kept_terms
        assert HALF[dtype] in text
