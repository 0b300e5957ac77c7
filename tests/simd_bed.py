"""What tests of the engine simd share: forced threads, forced vectors, scripts of their own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from cases import build, forward, make_lstm, run_face

import cupy_lstm
from cupy_lstm import engine, no_grad
from cupy_lstm.simd import layout, ready, threads

PACKAGE = Path(cupy_lstm.__file__).resolve().parent
TESTS = Path(__file__).resolve().parent
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
SECONDS = 300
"""After which a script that should have ended is taken to hang."""


def run(case, dtype="float32", arrays=None):
    """Forward and backward of a case through the engine simd."""
    with engine("simd"):
        return run_face(case, arrays or build(case, dtype), dtype)


def infer(case, dtype="float32", arrays=None):
    """Forward of a case through the engine simd, without a tape."""
    arrays = arrays or build(case, dtype)
    with engine("simd"), no_grad():
        return forward(make_lstm(case, arrays.weights, dtype), case, arrays)


def use_threads(monkeypatch, count):
    """Let every call take so many threads, however small; return a list of how many each took."""
    ready.SHARED.waiting.clear()
    taken, run = [], threads.Crew.run

    def watched(crew, task):
        taken.append(task.size)
        run(crew, task)

    monkeypatch.setattr(threads, "thread_count", lambda: count)
    monkeypatch.setattr(threads, "WORTH_WAKING", 1)
    monkeypatch.setattr(threads, "WORTH_A_THREAD", 1)
    monkeypatch.setattr(threads.Crew, "run", watched)
    return taken


def use_lanes(monkeypatch, lanes):
    """Let the engine work in this kind of vector."""
    ready.SHARED.waiting.clear()
    monkeypatch.setattr(layout, "host_lanes", lambda dtype: lanes)


def run_script(code, *arguments, folder=PACKAGE.parent, **variables):
    """Run Python code in a process of its own, with these variables about threads and caches.

    Returns what it has printed and what it has said on standard error.
    """
    clean = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("NUMBA_", "OMP_", "PYTHON"))
    }
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=clean | {"PYTHONPATH": os.pathsep.join([str(folder), str(TESTS)])} | variables,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == 0, f"exit status {done.returncode}: {done.stderr}"
    return done.stdout, done.stderr
