"""`info` tells the truth about this machine, and a sentence about everything that is missing."""

import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import cupy_lstm
from cupy_lstm import device, info, kernels
from cupy_lstm.device import CARDS
from cupy_lstm.persistent.tiers import capacity
from cupy_lstm.persistent.tiles import block_capacity
from cupy_lstm.plan import ENGINES

ROOT = Path(__file__).resolve().parent.parent
SECTIONS = ["versions", "optional packages", "devices", "engines", "CUDA sources"]


def cupy_with(count, properties=None):
    """Return a stand-in for CuPy whose runtime counts devices as `count()` says."""
    runtime = SimpleNamespace(getDeviceCount=count, getDeviceProperties=properties)
    return SimpleNamespace(__version__="14.2.0", cuda=SimpleNamespace(runtime=runtime))


@pytest.fixture
def without_cupy(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)


def test_versions_are_those_installed(without_cupy):
    versions = info.facts()["versions"]
    assert versions["cupy_lstm"] == cupy_lstm.__version__
    assert versions["python"].startswith(".".join(map(str, sys.version_info[:3])))
    assert versions["numpy"].startswith(f"{np.__version__} with ")
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    assert blas["name"] in versions["numpy"]
    assert str(blas.get("version", "")) in versions["numpy"]


def test_cores_are_those_this_process_may_use(without_cupy, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 3, 5}, raising=False)
    assert info.facts()["devices"]["CPU"] == "3 cores usable"
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    assert info.facts()["devices"]["CPU"] == "7 cores usable"


def test_numpy_always_runs_every_engine_or_says_why(without_cupy):
    engines = info.facts()["engines"]
    assert list(engines) == [f"{name} on {xp}" for name in ENGINES for xp in ("numpy", "cupy")]
    assert engines["stepwise on numpy"].startswith("available: ")


def test_without_cupy_every_place_names_the_extra(without_cupy):
    facts = info.facts()
    remedy = "not installed: pip install 'cupy_lstm[cuda12x]' (cuda13x for CUDA 13)"
    assert facts["versions"]["cupy"] == remedy
    assert facts["devices"]["GPU"] == f"none found: CuPy is {remedy}"
    assert facts["engines"]["stepwise on cupy"] == f"not available: CuPy is {remedy}"


def test_cupy_that_cannot_be_imported(tmp_path, monkeypatch):
    (tmp_path / "cupy.py").write_text(
        "try:\n"
        "    raise OSError('libcudart.so.12: cannot open shared object file')\n"
        "except OSError as error:\n"
        "    raise ImportError('=' * 80 + '\\nFailed to import CuPy.') from error\n"
    )
    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    facts = info.facts()
    reason = (
        "installed, but importing it fails: "
        "OSError: libcudart.so.12: cannot open shared object file"
    )
    assert facts["versions"]["cupy"] == reason
    assert facts["engines"]["stepwise on cupy"] == f"not available: CuPy is {reason}"


def test_cupy_that_warns_at_import(tmp_path, monkeypatch):
    (tmp_path / "cupy.py").write_text(
        "import warnings\n"
        "from types import SimpleNamespace\n"
        "warnings.warn('CUDA path could not be detected')\n"
        "__version__ = '14.2.0'\n"
        "cuda = SimpleNamespace(runtime=SimpleNamespace(getDeviceCount=lambda: 0))\n"
    )
    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    facts = info.facts()  # a warning would be an error here
    del sys.modules["cupy"]
    assert facts["versions"]["cupy"] == "14.2.0"
    assert facts["devices"]["GPU"] == "none found: the driver works and lists no device"


@pytest.mark.parametrize(
    ("error", "reported"),
    [
        (
            RuntimeError("cudaErrorInsufficientDriver: CUDA driver version is insufficient\nmore"),
            "RuntimeError: cudaErrorInsufficientDriver: CUDA driver version is insufficient",
        ),
        (OSError("libcuda.so.1: cannot open"), "OSError: libcuda.so.1: cannot open"),
        (ValueError(), "ValueError()"),
    ],
)
def test_a_missing_driver_is_a_sentence(monkeypatch, error, reported):
    def count():
        raise error

    monkeypatch.setitem(sys.modules, "cupy", cupy_with(count))
    facts = info.facts()
    assert facts["versions"]["cupy"] == "14.2.0"
    assert facts["devices"]["GPU"] == f"none found: no usable driver ({reported})"
    assert facts["engines"]["stepwise on cupy"] == f"not available: no usable driver ({reported})"


def test_every_gpu_is_described(monkeypatch):
    table = [
        {"name": b"NVIDIA H200", "major": 9, "minor": 0, "totalGlobalMem": 150_000_000_000},
        {"name": b"Tesla T4", "major": 7, "minor": 5, "totalGlobalMem": 16 * 2**30},
    ]
    monkeypatch.setitem(sys.modules, "cupy", cupy_with(lambda: 2, table.__getitem__))
    facts = info.facts()
    assert facts["devices"]["GPU 0"] == "NVIDIA H200, compute capability 9.0, 139.7 GiB"
    assert facts["devices"]["GPU 1"] == "Tesla T4, compute capability 7.5, 16.0 GiB"
    assert "GPU" not in facts["devices"]
    assert facts["devices"]["tiers of GPU 0"].startswith("not known (")  # it is no real CuPy
    assert facts["engines"]["stepwise on cupy"] == facts["engines"]["stepwise on numpy"]


def test_tiers_of_a_gpu_and_what_it_refused(monkeypatch):
    monkeypatch.setattr(info, "device_facts", lambda index: list(CARDS.values())[index])
    single, half = (block_capacity(dtype, 64 * 1024) for dtype in ("float32", "float16"))
    wide, wider = (capacity(dtype, CARDS["T4"], True) for dtype in ("float32", "float16"))
    assert info.tier_facts(0) == (
        f"block up to H = {single} (16 bits: {half}), grid up to H = {wide} (16 bits: {wider})"
    )
    index = list(CARDS).index("H100")
    cluster = "cluster up to H = "
    assert cluster in info.tier_facts(index)
    monkeypatch.setattr(device, "_without_clusters", {index: "CUDA_ERROR_NOT_SUPPORTED"})
    refused = replace(CARDS["H100"], cluster_launch=False)
    monkeypatch.setattr(info, "device_facts", lambda index: refused)
    text = info.tier_facts(index)
    assert cluster not in text
    assert text.endswith("; no cluster, since a launch of one failed: CUDA_ERROR_NOT_SUPPORTED")
    old = replace(refused, compute_capability=(6, 1))
    monkeypatch.setattr(info, "device_facts", lambda index: old)
    assert info.tier_facts(0) == "none"


@pytest.mark.gpu_on_cpu
def test_tiers_are_shown_where_there_is_a_gpu(cupy):
    facts = info.facts()["devices"]
    assert facts["GPU 0"]
    assert facts["tiers of GPU 0"].startswith("block up to H = 1")


def test_optional_packages_are_those_of_the_extras():
    """Every package of an extra for users is listed, under that extra."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    for_developers = {"test", "dev", "docs", "peers"}
    declared = {
        extra: {re.match(r"[\w-]+", requirement)[0] for requirement in requirements}
        for extra, requirements in extras.items()
        if extra not in for_developers
    }
    listed = {package for packages in info.OPTIONAL.values() for package in packages}
    cupy = {"cupy-cuda12x", "cupy-cuda13x"}  # reported among the versions
    assert listed == set().union(*declared.values()) - cupy
    for extra, packages in info.OPTIONAL.items():
        assert set(packages) <= declared[extra]


def test_optional_package_present_and_absent(without_cupy, monkeypatch):
    def version(package):
        if package == "pandas":
            return "1.2.3"
        raise importlib.metadata.PackageNotFoundError(package)

    monkeypatch.setattr(info, "version", version)
    packages = info.facts()["optional packages"]
    assert packages["pandas"] == "1.2.3"
    assert packages["safetensors"] == "not installed: pip install 'cupy_lstm[forecast]'"


def test_sources_are_located_or_their_absence_explained(without_cupy, tmp_path, monkeypatch):
    sources = info.facts()["CUDA sources"]
    assert sources["folder"] == str(kernels.source_folder())
    assert "cell.cuh" in sources["files"].split(", ")
    monkeypatch.setattr(kernels, "PACKAGE", tmp_path / "cupy_lstm")
    sources = info.facts()["CUDA sources"]
    assert list(sources) == ["folder"]
    assert sources["folder"].startswith("the CUDA sources of cupy_lstm")


def test_text_is_aligned_and_complete(without_cupy, capsys):
    assert info.main() == 0
    text = capsys.readouterr().out
    facts = info.facts()
    assert list(facts) == SECTIONS
    blocks = text.rstrip("\n").split("\n\n")
    assert [block.split("\n")[0] for block in blocks] == SECTIONS
    column = 4 + max(len(name) for section in facts.values() for name in section)
    for block, section in zip(blocks, facts.values(), strict=True):
        lines = block.split("\n")[1:]
        assert [line[:column].strip() for line in lines] == list(section)
        assert [line[column:] for line in lines] == list(section.values())


def test_works_where_only_numpy_is_installed(tmp_path):
    """A folder with links to NumPy and the package is the whole of site-packages."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "cupy_lstm").symlink_to(ROOT / "cupy_lstm")
    installed = Path(np.__file__).parent.parent
    for path in installed.glob("numpy*"):
        (site / path.name).symlink_to(path)
    done = subprocess.run(
        [sys.executable, "-S", "-m", "cupy_lstm", "info"],  # -S: without site-packages
        cwd=tmp_path,
        env={"PYTHONPATH": str(site), "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert np.__version__ in done.stdout
    assert re.search(r"stepwise on numpy +available", done.stdout)
    assert re.search(r"simd on numpy +not available: Numba is not installed: pip", done.stdout)
    for package in info.OPTIONAL["forecast"]:
        assert re.search(rf"{package} +not installed: pip install", done.stdout), package


def test_a_reader_that_has_seen_enough_is_no_error(tmp_path):
    """As in `python -m cupy_lstm info | true`."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "cupy_lstm", "info"],
        cwd=ROOT,
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")
