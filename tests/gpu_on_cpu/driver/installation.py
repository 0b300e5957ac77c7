"""Make `import cupy` work on a machine without a GPU."""

import importlib
import importlib.util
import os
import platform
import re
import sys
import warnings
from pathlib import Path
from types import ModuleType

from gpu_on_cpu.device import LAPTOP, PROFILES, DeviceProfile
from gpu_on_cpu.device.build import compiler
from gpu_on_cpu.driver import (  # noqa: F401  they fill the tables
    capsules,
    cublas_library,
    entry_points,
    graphs,
    launches,
    nvrtc,
    transfers,
)
from gpu_on_cpu.driver import devices as device_table

CUPY_VERSION = "14.2.0"
"""The version whose private parts `capsules` and `nvrtc` fit."""


def reason_it_cannot_work() -> str | None:
    """Return why the test bed cannot run here, in one sentence, or None if it can."""
    if not sys.platform.startswith("linux") or platform.machine() != "x86_64":
        return f"the test bed runs on Linux and x86-64, this is {platform.platform()}"
    if compiler() is None:
        return "g++ was not found: install it, or set GPU_ON_CPU_CXX"
    found = installed_cupy()
    if found is None:
        return f"CuPy is not installed: pip install cupy-cuda12x=={CUPY_VERSION}"
    if found != CUPY_VERSION:
        return (
            f"the test bed fits CuPy {CUPY_VERSION}, and {found} is installed: "
            f"pip install cupy-cuda12x=={CUPY_VERSION}"
        )
    return None


def installed_cupy() -> str | None:
    """Return the version of the installed CuPy without importing it, or None."""
    spec = importlib.util.find_spec("cupy")
    if spec is None or spec.origin is None:
        return None
    text = Path(spec.origin).with_name("_version.py").read_text(encoding="utf-8")
    match = re.search(r"__version__ = '(.*?)'", text)
    return match[1] if match else "of an unknown version"


def install(profile: str | DeviceProfile = "A100", devices: int = 1) -> ModuleType:
    """Put the fake machine in the place of CUDA and return CuPy, imported on it.

    Parameters
    ----------
    profile : str or DeviceProfile
        What devices 0, 1, ... are: a name of `gpu_on_cpu.device.PROFILES`, or ``"LAPTOP"``.
    devices : int
        How many of them. One device of every other profile follows, for `devices.profile`.

    Returns
    -------
    module
        CuPy. Arrays are allocated one by one, without a pool, so that fresh memory is always NaN
        and freed memory is never handed out at once; ``cupy.cuda.set_allocator`` changes that.

    Raises
    ------
    RuntimeError
        If CuPy is imported already, is missing or is of another version, or there is no g++.
    """
    if "cupy" in sys.modules or "cupy_backends" in sys.modules:
        raise RuntimeError("install() must come before `import cupy`: CuPy is already imported")
    if reason := reason_it_cannot_work():
        raise RuntimeError(reason)
    os.environ["CUPY_CACHE_IN_MEMORY"] = "1"  # the user's cache of real kernels is not ours
    os.environ["CUPY_ACCELERATORS"] = ""  # CUB comes compiled for GPUs

    driver = importlib.import_module("cupy_backends.cuda.api.driver")
    runtime = importlib.import_module("cupy_backends.cuda.api.runtime")
    device_table.set_up(chosen_profiles(profile, devices), toolkit=driver.get_build_version())
    capsules.replace(driver, entry_points.DRIVER)
    capsules.replace(runtime, entry_points.RUNTIME)
    libs = Path(importlib.import_module("cupy_backends.cuda.libs").__file__).parent
    cublas_library.load(next(libs.glob("cublas.*.so")))
    cublas_library.raise_what_was_raised(importlib.import_module("cupy_backends.cuda.libs.cublas"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that no CUDA was found is no news here
        cupy = importlib.import_module("cupy")
    nvrtc.take_the_place_of_cupys()
    cupy.cuda.set_allocator(None)
    return cupy


def chosen_profiles(profile: str | DeviceProfile, devices: int) -> list[DeviceProfile]:
    """Return the profiles of all devices, those that were asked for first."""
    if isinstance(profile, str):
        named = PROFILES | {"LAPTOP": LAPTOP}
        if profile not in named:
            raise ValueError(f"profile must be one of {sorted(named)}, received {profile!r}")
        profile = named[profile]
    others = [other for other in PROFILES.values() if other.name != profile.name]
    return [profile] * devices + others
