"""How the fake device gets under CuPy, and that no other test sees it.

The tests of this file run beside all others, without the fake device.
"""

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from full import only_in_full
from gpu_on_cpu import CUPY_VERSION, install, reason_it_cannot_work
from gpu_on_cpu.device import sanitize
from gpu_on_cpu.driver import capsules, devices, installation
from gpu_on_cpu.driver.schedule import Schedule

HERE = Path(__file__).resolve().parent
needs_the_bed = pytest.mark.skipif(
    reason_it_cannot_work() is not None, reason=str(reason_it_cannot_work())
)


def pretend_cupy(folder, version):
    (folder / "cupy").mkdir()
    (folder / "cupy" / "__init__.py").write_text("raise ImportError('not to be imported')\n")
    (folder / "cupy" / "_version.py").write_text(f"__version__ = '{version}'\n")


@pytest.fixture
def without_cupy(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] in ("cupy", "cupy_backends")]:
        monkeypatch.delitem(sys.modules, name)


def test_another_version_of_cupy_is_refused(without_cupy, monkeypatch, tmp_path):
    pretend_cupy(tmp_path, "13.6.0")
    monkeypatch.syspath_prepend(tmp_path)
    sentence = f"fits CuPy {CUPY_VERSION}, and 13.6.0 is installed: pip install cupy-cuda12x=="
    with pytest.raises(RuntimeError, match=sentence):
        install()


def test_the_version_it_fits_is_accepted(without_cupy, monkeypatch, tmp_path):
    pretend_cupy(tmp_path, CUPY_VERSION)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(installation, "compiler", lambda: "/usr/bin/g++")
    assert installation.installed_cupy() == CUPY_VERSION
    assert reason_it_cannot_work() is None


def test_no_cupy_at_all(without_cupy, monkeypatch):
    monkeypatch.setattr(installation, "installed_cupy", lambda: None)
    with pytest.raises(RuntimeError, match="CuPy is not installed: pip install cupy-cuda12x=="):
        install()


def test_no_compiler(without_cupy, monkeypatch):
    monkeypatch.setattr(installation, "compiler", lambda: None)
    with pytest.raises(RuntimeError, match=r"g\+\+ was not found"):
        install()


def test_cupy_is_already_imported(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", ModuleType("cupy"))
    with pytest.raises(RuntimeError, match="must come before `import cupy`"):
        install()


def test_unknown_profile_and_order(monkeypatch):
    with pytest.raises(ValueError, match=r"profile must be one of .*'A100'.* received 'GTX 480'"):
        installation.chosen_profiles("GTX 480", 1)
    with pytest.raises(ValueError, match="order must be one of"):
        Schedule("sideways", 0)


def test_devices_that_were_asked_for_come_first():
    profiles = [profile.name for profile in installation.chosen_profiles("H100", 2)]
    assert profiles[:2] == ["H100", "H100"]
    assert "T4" in profiles[2:]
    assert len(profiles) == len(set(profiles)) + 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("int (int __pyx_skip_dispatch)", ("int", (), False)),
        (
            "PyObject *(intptr_t, int __pyx_skip_dispatch, struct __pyx_opt *__pyx_optional_args)",
            ("PyObject *", ("intptr_t",), True),
        ),
        (
            "struct __pyx_obj_X *(intptr_t, int __pyx_skip_dispatch)",
            ("PyObject *", ("intptr_t",), False),
        ),
        ("PyObject *(void)", ("PyObject *", (), False)),
    ],
)
def test_signatures_are_read_from_capsules(text, expected):
    signature = capsules.Signature.parse("name", text)
    assert (signature.result, signature.parameters, signature.optional) == expected


@pytest.mark.parametrize("text", ["int", "cudaExtent (size_t, size_t, size_t)"])
def test_variables_and_structures_are_left_alone(text):
    assert capsules.Signature.parse("name", text) is None


def test_a_name_that_cupy_lacks_is_an_error():
    module = ModuleType("some.module")
    module.__pyx_capi__ = {}
    with pytest.raises(RuntimeError, match=r"some.module has no \['mallocTwice'\]"):
        capsules.replace(module, {"mallocTwice": lambda: None})


# --- isolation -----------------------------------------------------------------------------------

EXAMPLES = """
import os, sys
import pytest

def test_without_the_device():
    assert "cupy" not in sys.modules

@pytest.mark.gpu_on_cpu
def test_with_it(cupy):
    assert (cupy.arange(3) + 1).get().tolist() == [1, 2, 3]

@pytest.mark.gpu_on_cpu
@pytest.mark.parametrize("value", [1, 2])
def test_fails_for_two(cupy, value):
    assert value == 1, "two is too many"

@pytest.mark.gpu_on_cpu
def test_crashes():
    os.kill(os.getpid(), 11)

@pytest.mark.gpu_on_cpu
def test_in_a_new_child(cupy):
    assert cupy.__version__

@pytest.mark.gpu_on_cpu
def test_skips():
    pytest.skip("for a reason")

@pytest.mark.gpu_on_cpu
def test_leaves_freed_memory_written(cupy):
    x, y = cupy.zeros(3, "f4"), cupy.zeros(3, "f4")
    offset = (y.data.ptr - x.data.ptr) // 4
    del y
    code = 'extern "C" __global__ void put(float* x, long long i) { x[i] = 1; }'
    cupy.RawKernel(code, "put")((1,), (1,), (x, offset))

@pytest.mark.gpu_on_cpu
def test_raises_in_a_destructor(cupy):
    code = 'extern "C" __global__ void put(float* x, long long i) { x[i] = 1; }'
    x, y = cupy.zeros(3, "f4"), cupy.zeros(3, "f4")
    offset = (y.data.ptr + 12 - x.data.ptr) // 4
    cupy.RawKernel(code, "put")((1,), (1,), (x, offset))
    del y
"""


SETTINGS = f"[pytest]\naddopts = -rA\nfilterwarnings = error\npythonpath = {HERE}\n"


def pytest_on(folder, *options, examples=EXAMPLES, **environment):
    (folder / "test_examples.py").write_text(examples)
    (folder / "conftest.py").write_text('pytest_plugins = ["gpu_on_cpu.driver.isolation"]\n')
    (folder / "pytest.ini").write_text(SETTINGS)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:cov",
        "-p",
        "no:zarr",
        "-n0",
        *options,
    ]
    variables = {name: value for name, value in os.environ.items() if name != "PYTEST_ADDOPTS"}
    return subprocess.run(
        command, cwd=folder, env=variables | environment, capture_output=True, text=True
    )


@needs_the_bed
@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=only_in_full)])
def test_marked_tests_run_in_a_child_and_are_reported_as_if_here(tmp_path, workers):
    done = pytest_on(tmp_path, f"-n{workers}")
    assert done.returncode == 1
    for expected in (
        "PASSED test_examples.py::test_without_the_device",
        "PASSED test_examples.py::test_with_it",
        "PASSED test_examples.py::test_fails_for_two[1]",
        "FAILED test_examples.py::test_fails_for_two[2] - AssertionError: two is too many",
        "FAILED test_examples.py::test_crashes - the child process ended during this",
        "ended during this test, status -11",
        "PASSED test_examples.py::test_in_a_new_child",
        "SKIPPED [1] test_examples.py:27: for a reason",
        "ERROR test_examples.py::test_leaves_freed_memory_written",
        "DeviceMisuseError: somebody wrote to memory after it was freed",
        "FAILED test_examples.py::test_raises_in_a_destructor",
        "DeviceMisuseError: somebody wrote 4 bytes behind 12 bytes device memory",
        "3 failed, 5 passed, 1 skipped, 1 error",
    ):
        assert expected in done.stdout, done.stdout


@needs_the_bed
def test_the_first_failure_can_end_the_run(tmp_path):
    done = pytest_on(tmp_path, "-x")
    assert "1 failed, 3 passed" in done.stdout, done.stdout


@needs_the_bed
@pytest.mark.parametrize(
    ("workers", "last"),
    [(0, ""), pytest.param(2, "def test_without_it(): pass\n", marks=only_in_full)],
)
def test_a_crash_at_the_end_of_the_child_fails_the_run(tmp_path, workers, last):
    examples = """
import atexit, os, pytest

@pytest.mark.gpu_on_cpu
def test_passes(cupy):
    atexit.register(os.abort)
"""
    done = pytest_on(tmp_path, f"-n{workers}", "--dist=loadfile", examples=examples + last)
    assert "PASSED test_examples.py::test_passes" in done.stdout, done.stdout
    assert "the child process crashed at its end, status -6" in done.stdout, done.stdout
    assert done.returncode == 1


@needs_the_bed
def test_in_the_process_itself_only_marked_tests_run(tmp_path):
    done = pytest_on(tmp_path, "--gpu-on-cpu", "-k", "with or fails")
    assert "1 failed, 2 passed" in done.stdout, done.stdout


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="another reason comes first")
def test_where_the_bed_cannot_work_marked_tests_are_skipped_with_the_reason(tmp_path):
    done = pytest_on(tmp_path, "-k", "with", GPU_ON_CPU_CXX="no-such-compiler")
    assert "1 passed, 1 skipped" in done.stdout, done.stdout
    assert "g++ was not found: install it, or set GPU_ON_CPU_CXX" in done.stdout
    assert done.returncode == 0


@pytest.mark.parametrize(("index", "found"), [(2, False), (3, True)])
def test_address_sanitizer_names_the_line_of_an_access_beside_an_array(index, found):
    reason = reason_it_cannot_work() or sanitize.missing("asan")
    if reason:
        pytest.skip(reason)
    script = f"""
from gpu_on_cpu import install
cupy = install()
code = 'extern "C" __global__ void k(float* x, const float* y, int i) {{\\n  x[0] = y[i];\\n}}'
x, y = cupy.zeros(3, "f4"), cupy.zeros(3, "f4")
cupy.RawKernel(code, "k")((1,), (1,), (x, y, cupy.int32({index})))
"""
    run = sanitize.run_sanitized(script, "asan")
    expected = ("AddressSanitizer: use-after-poison at kernel.cu:2",) if found else ()
    assert run.reports == expected, run.output


def test_this_process_has_no_fake_device():
    assert devices.count() == 0
