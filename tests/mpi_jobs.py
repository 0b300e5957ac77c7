"""Jobs of several processes for tests: a script under a real mpiexec."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
sys.path.insert(0, str(ROOT / "profiling"))

from studies import jobs  # noqa: E402 - the modules of the scripts are on no path

SECONDS = 120
"""After which a job that should have ended is taken to hang."""


def require_mpiexec():
    """Skip where jobs cannot be run."""
    pytest.importorskip("mpi4py", reason="mpi4py is not installed: no job of several processes")
    if jobs.mpiexec() is None:
        pytest.skip("there is no mpiexec, beside Python or on PATH: no job of several processes")


def run_job(processes, *arguments, folder=None, **variables):
    """Run Python with these arguments in so many processes, each with one thread."""
    require_mpiexec()
    path = os.pathsep.join((str(ROOT), str(TESTS)))
    job = subprocess.Popen(
        jobs.job_command(processes, [*map(str, arguments)]),
        env=jobs.job_environment() | {"PYTHONPATH": path} | variables,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        out, err = job.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        job.terminate()  # not kill: mpiexec takes its processes with it
        pytest.fail(f"the job hangs: {job.communicate()}")
    return subprocess.CompletedProcess(job.args, job.returncode, out, err)
