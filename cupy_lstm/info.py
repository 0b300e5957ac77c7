"""What is installed, what it runs on, and which engines can run: ``python -m cupy_lstm info``.

Works with NumPy alone. Whatever is missing, a package, a GPU or its driver, is said in a sentence
that names the remedy.
"""

import os
import platform
import warnings
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType

import numpy

import cupy_lstm
from cupy_lstm import kernels
from cupy_lstm.backend import MODULES
from cupy_lstm.device import device_facts, refused_clusters
from cupy_lstm.persistent.tiers import capacity
from cupy_lstm.persistent.tiles import COMPUTE_CAPABILITY, block_capacity
from cupy_lstm.plan import ENGINES, why_not

Facts = dict[str, dict[str, str]]

OPTIONAL = {
    "cuda12x": ("ml_dtypes",),
    "fast": ("numba",),
    "nvtx": ("nvtx", "nvidia-nvtx"),
    "forecast": ("pandas", "matplotlib", "tqdm", "safetensors", "statsmodels", "pyarrow"),
    "io": ("onnx",),
    "sklearn": ("scikit-learn",),
    "dask": ("dask",),
    "mpi": ("mpi4py",),
}
"""The extras a user may want and what they bring, beside CuPy itself."""


def main() -> int:
    """Print the facts as aligned text.

    Returns
    -------
    int
        0: a missing optional thing is no failure.
    """
    print(as_text(facts()))
    return 0


def as_text(sections: Facts) -> str:
    """Lay the facts out: a title a section, a line a fact, the values in one column."""
    width = max(len(name) for section in sections.values() for name in section)
    return "\n\n".join(
        "\n".join([title, *(f"  {name:{width}}  {value}" for name, value in section.items())])
        for title, section in sections.items()
    )


def facts() -> Facts:
    """Collect versions, devices, engines and the place of the CUDA sources.

    Imports CuPy where it is installed; allocates nothing on a GPU.

    Returns
    -------
    dict of dict of str
        ``facts()[section][name]`` is a text for the sections ``versions``, ``optional packages``,
        ``devices``, ``engines`` and ``CUDA sources``.
    """
    cupy, cupy_version = find_cupy()
    gpus, why_none = find_gpus(cupy) if cupy else ([], f"CuPy is {cupy_version}")
    devices = {f"GPU {index}": gpu for index, gpu in enumerate(gpus)}
    devices |= {f"tiers of GPU {index}": tier_facts(index) for index in range(len(gpus))}
    return {
        "versions": {
            "cupy_lstm": cupy_lstm.__version__,
            "python": f"{platform.python_version()} ({platform.system()} {platform.machine()})",
            "numpy": f"{numpy.__version__} with {blas()}",
            "cupy": cupy_version,
        },
        "optional packages": {
            package: package_version(package, extra)
            for extra, packages in OPTIONAL.items()
            for package in packages
        },
        "devices": {
            "CPU": f"{usable_cores()} cores usable",
            **(devices or {"GPU": f"none found: {why_none}"}),
        },
        "engines": engine_facts(why_none),
        "CUDA sources": source_facts(),
    }


def find_cupy() -> tuple[ModuleType | None, str]:
    """Return CuPy and its version, or None and why it cannot be used."""
    try:
        with warnings.catch_warnings():
            # CuPy warns where it finds no CUDA toolkit; the devices below say more.
            warnings.simplefilter("ignore")
            import cupy
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and error.name == "cupy":
            return None, f"not installed: {remedy('cuda12x')} (cuda13x for CUDA 13)"
        return None, f"installed, but importing it fails: {first_line(error.__cause__ or error)}"
    return cupy, cupy.__version__


def find_gpus(cupy: ModuleType) -> tuple[list[str], str]:
    """Return a description of each GPU, and, where there is none, why."""
    runtime = cupy.cuda.runtime
    try:
        properties = [
            runtime.getDeviceProperties(index) for index in range(runtime.getDeviceCount())
        ]
    except Exception as error:  # what a missing or broken driver raises depends on CuPy's version
        return [], f"no usable driver ({first_line(error)})"
    gpus = [
        f"{device['name'].decode()}, compute capability {device['major']}.{device['minor']}, "
        f"{device['totalGlobalMem'] / 2**30:.1f} GiB"
        for device in properties
    ]
    return gpus, "" if gpus else "the driver works and lists no device"


def tier_facts(index: int) -> str:
    """Say where the engine persistent can keep weights on a GPU, and up to which hidden size."""
    try:
        device = device_facts(index)
    except Exception as error:  # as for `find_gpus`
        return f"not known ({first_line(error)})"
    found = []
    for tier in ("block", "cluster", "grid"):
        single, half = (
            block_capacity(dtype, device.shared_memory_per_block)
            if tier == "block" and device.compute_capability >= COMPUTE_CAPABILITY
            else capacity(dtype, device, True, tier)
            for dtype in ("float32", "float16")
        )
        if half:
            found.append(f"{tier} up to H = {single} (16 bits: {half})")
    text = ", ".join(found) or "none"
    if reason := refused_clusters().get(index):
        text += f"; no cluster, since a launch of one failed: {reason}"
    return text


def engine_facts(why_no_gpu: str) -> dict[str, str]:
    """Say for each engine and array module whether it can run, and if not, why."""
    engines = {}
    for engine, description in ENGINES.items():
        for module in MODULES:
            obstacle = why_not(engine, module)
            if module == "cupy" and not obstacle:
                obstacle = why_no_gpu
            if engine == "simd" and not obstacle:
                description += matrix_unit()
            engines[f"{engine} on {module}"] = (
                f"not available: {obstacle}" if obstacle else f"available: {description}"
            )
    return engines


def matrix_unit() -> str:
    """Say what the engine simd has beside vectors, if it has it."""
    from cupy_lstm.simd.amx.unit import available, fits_unit
    from cupy_lstm.simd.compiled import host_lanes

    used = fits_unit(host_lanes("float32")) and available()
    return ", many rows in float32 in its matrix unit (AMX)" if used else ""


def source_facts() -> dict[str, str]:
    """Say where the CUDA sources were found and which they are."""
    try:
        folder = kernels.source_folder()
    except FileNotFoundError as error:
        return {"folder": str(error)}
    names = sorted(path.name for path in folder.glob("*.cu*"))
    return {"folder": str(folder), "files": ", ".join(names)}


def package_version(package: str, extra: str) -> str:
    """Return the version of an optional package, or what to install; imports nothing."""
    try:
        return version(package)
    except PackageNotFoundError:
        return f"not installed: {remedy(extra)}"


def remedy(extra: str) -> str:
    """Return the command that installs an extra."""
    return f"pip install 'cupy_lstm[{extra}]'"


def usable_cores() -> int:
    """Return the number of cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def blas() -> str:
    """Return the name and version of the BLAS that NumPy was built with."""
    config = numpy.show_config(mode="dicts")
    library = (config or {}).get("Build Dependencies", {}).get("blas", {})
    return f"{library.get('name', 'an unknown BLAS')} {library.get('version', '')}".strip()


def first_line(error: BaseException) -> str:
    """Return an error's class and the first line of its message."""
    message = str(error).strip()
    return f"{type(error).__name__}: {message.splitlines()[0]}" if message else repr(error)
