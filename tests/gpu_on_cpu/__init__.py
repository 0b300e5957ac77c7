"""CUDA kernels and the real CuPy on a machine without a GPU. See README.md.

::

    from gpu_on_cpu import install, record

    cupy = install(profile="A100", devices=2)  # before anyone imports CuPy
    with record() as log:
        cupy.arange(8).sum()
    print(log.counts())
"""

from gpu_on_cpu.driver.devices import profile
from gpu_on_cpu.driver.errors import DeviceMisuseError
from gpu_on_cpu.driver.installation import CUPY_VERSION, install, reason_it_cannot_work
from gpu_on_cpu.driver.memory import check_freed_memory
from gpu_on_cpu.driver.recorder import Log, record
from gpu_on_cpu.driver.schedule import order

__all__ = [
    "CUPY_VERSION",
    "DeviceMisuseError",
    "Log",
    "check_freed_memory",
    "install",
    "order",
    "profile",
    "reason_it_cannot_work",
    "record",
]
