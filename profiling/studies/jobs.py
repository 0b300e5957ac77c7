"""Jobs of several processes on this machine, started by mpiexec."""

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path


def mpiexec() -> str | None:
    """Return the path of an mpiexec, that of this environment first; None where there is none."""
    beside = Path(sys.executable).parent / "mpiexec"
    return str(beside) if beside.exists() else shutil.which("mpiexec")


def job_command(processes: int, arguments: Sequence[str]) -> list[str]:
    """Return the command that runs Python with these arguments in so many processes."""
    return [mpiexec() or "mpiexec", "-n", str(processes), sys.executable, *arguments]


def job_environment() -> dict[str, str]:
    """Return the environment of a job: one thread a process, and what Open MPI wants to be told.

    That is: no network, more processes than cores, and root, as in a container.
    """
    return os.environ | {
        "OMP_NUM_THREADS": "1",
        "NUMBA_NUM_THREADS": "1",
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
        "OMPI_MCA_btl": "self,sm",
    }
