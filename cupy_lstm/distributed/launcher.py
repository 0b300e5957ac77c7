"""Whether something started this process together with others, and the communicator for them."""

import os
import sys
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from types import ModuleType

from cupy_lstm.backend import import_module, module_name
from cupy_lstm.distributed.communicator import Communicator, SingleProcess
from cupy_lstm.distributed.mpi import INSTALL, MpiCommunicator
from cupy_lstm.distributed.nccl import NcclCommunicator

SRUN = "SLURM_STEP_NUM_TASKS"

LAUNCHERS = {
    "OMPI_COMM_WORLD_SIZE": "mpiexec of Open MPI",
    "MV2_COMM_WORLD_SIZE": "mpiexec of MVAPICH",
    "PMI_SIZE": "mpiexec of MPICH or Intel MPI",
    SRUN: "srun",
}
"""Variables that hold the number of processes started together, and who sets them."""

ALONE = "CUPY_LSTM_ALONE"
"""Variable that a user sets to 1 where each process trains models of its own."""


def launched(xp: str | ModuleType = "numpy") -> Communicator:
    """Return the communicator of the processes that were started together with this one.

    That is an `MpiCommunicator` under ``mpiexec -n 2`` (or ``srun``, if mpi4py is installed), a
    `NcclCommunicator` for CuPy, and a `SingleProcess` elsewhere, also in a process that Python's
    `multiprocessing` made, which has no number of its own, and with CUPY_LSTM_ALONE=1. For CuPy,
    the GPU of this process's number on its machine becomes the current device: call this before
    arrays are made. Once made, a communicator is returned again.

    Parameters
    ----------
    xp : module or str
        ``numpy`` or ``cupy``: of the arrays that will be summed.

    Raises
    ------
    ImportError
        If there are others, and mpi4py, an MPI library or NCCL is missing.
    RuntimeError
        If the MPI library does not know of the others: it is not that of the launcher.
    """
    name = module_name(xp)
    found = launcher_of(os.environ)
    if found is None or _is_child_of_python():
        return SingleProcess()
    variable, size = found
    if find_spec("mpi4py") is None:
        # Slurm also starts processes that have nothing to do with each other. It may set PMI_SIZE,
        # too; under an mpiexec that srun has started, its own variable counts something else.
        if os.environ.get(SRUN) == str(size):
            return SingleProcess()
        raise ImportError(
            f"{LAUNCHERS[variable]} started {size} processes, but they cannot train together "
            f"without mpi4py: {INSTALL}"
        )
    return _communicator(name, variable, size)


def launcher_of(environment: Mapping[str, str]) -> tuple[str, int] | None:
    """Return which variable says that processes were started together, and their number.

    Returns
    -------
    tuple of str and int, or None
        None where there is no launcher, it started a single process, or the user wants each alone.
    """
    if environment.get(ALONE, "0") not in ("", "0"):
        return None
    for variable in LAUNCHERS:
        value = environment.get(variable, "")
        if value.isdecimal() and int(value) > 1:
            return variable, int(value)
    return None


def _is_child_of_python() -> bool:
    # A child that it made has loaded it; importing it here would cost everybody else.
    multiprocessing = sys.modules.get("multiprocessing")
    return multiprocessing is not None and multiprocessing.parent_process() is not None


@cache
def _communicator(name: str, variable: str, size: int) -> Communicator:
    processes = MpiCommunicator()
    if processes.size != size:
        raise RuntimeError(
            f"{variable} says that {LAUNCHERS[variable]} started {size} processes, but the MPI "
            f"library of mpi4py finds {processes.size}: start them with the mpiexec of that library"
        )
    if name == "numpy":
        return processes
    cuda = import_module("cupy").cuda
    cuda.Device(processes.local_rank % cuda.runtime.getDeviceCount()).use()
    return NcclCommunicator()
