"""Compiled kernels are kept on disk, for as long as every source of a kernel is as it was."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from simd_bed import PACKAGE, SECONDS, run_script

from cupy_lstm import LSTM, engine, engines, explain_plan, plan, warmup
from cupy_lstm.simd import compiled

SOURCES = sorted(path.name for path in (PACKAGE / "simd").glob("*.py"))

# One small kernel: what holds for it holds for all, and it is compiled in no time.
COMPILE = """
import sys
from cupy_lstm.simd import compiled
lanes = compiled.host_lanes(sys.argv[1])
by_name = {function.__name__: function for function in compiled.KERNELS}
for name in sys.argv[2:]:
    print(compiled.kernel(by_name[name], lanes))
"""
MESSAGE = "cupy_lstm: compiling the {} kernels of the CPU, a few seconds, once (kept in {})\n"


@pytest.fixture
def copy(tmp_path):
    """A copy of the package in which nothing has been compiled."""
    folder = tmp_path / "copy"
    shutil.copytree(PACKAGE, folder / "cupy_lstm", ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.fixture(scope="module")
def compiled_once(tmp_path_factory):
    """A copy of the package in which something has been compiled, and what was said."""
    folder = tmp_path_factory.mktemp("compiled")
    shutil.copytree(PACKAGE, folder / "cupy_lstm", ignore=shutil.ignore_patterns("__pycache__"))
    return folder, compile_in(folder, "float32", "pack_bias", "unpack_bias")


@pytest.fixture
def compiled_copy(compiled_once, tmp_path):
    """A copy of that: a cache does not depend on where it lies."""
    folder = tmp_path / "compiled"
    shutil.copytree(compiled_once[0], folder)
    return folder


def compile_in(folder, *arguments, **variables):
    """Compile in a copy of the package; return what was said on standard error."""
    arguments = arguments or ("float32", "pack_bias")
    _, errors = run_script(COMPILE, *arguments, folder=folder, **variables)
    return errors


def kept(folder):
    """Names of kept kernels below a folder: an index each, and the compiled code."""
    return sorted(path.name for path in folder.rglob("*.nb[ci]"))


def test_kept_beside_the_sources_and_said_once(compiled_once):
    folder, errors = compiled_once
    place = folder / "cupy_lstm" / "simd" / "__pycache__"
    assert errors == MESSAGE.format("float32", place)
    assert {path.parent for path in folder.rglob("*.nb[ci]")} == {place}
    before = kept(folder)
    assert len(before) == 4
    assert compile_in(folder, "float32", "pack_bias", "unpack_bias") == ""
    assert kept(folder) == before
    assert compile_in(folder, "float64", "pack_bias") == MESSAGE.format("float64", place)


def test_stale_as_soon_as_a_source_changes(compiled_copy):
    # A module that `pack_bias` does not even use: Numba alone would not look at it.
    source = compiled_copy / "cupy_lstm" / "simd" / "barrier.py"
    source.write_text(source.read_text() + "\n# changed\n")
    said = MESSAGE.format("float32", source.parent / "__pycache__")
    before = kept(compiled_copy)
    assert compile_in(compiled_copy) == said
    assert compile_in(compiled_copy) == ""
    # What the older version had of this kernel is gone, of another kernel it is there.
    after = set(kept(compiled_copy))
    assert len(after) == 4 and {name for name in before if name in after} == {
        name for name in before if ".unpack_bias-" in name
    }


STOPPED = """
import sys
from numba.core import caching
from cupy_lstm.simd import compiled
if sys.argv[2] == "stop":
    caching.IndexDataCacheFile._save_data = lambda *arguments: None
packing = compiled.packing
compiled.kernel(packing.unpack_bias, compiled.host_lanes(sys.argv[1]))
print(sum(packing.unpack_bias.stats.cache_hits.values()))
"""


def test_code_of_an_older_version_is_not_taken_for_ours(compiled_copy):
    """Where a process has written the index of its code, and not the code yet."""
    source = compiled_copy / "cupy_lstm" / "simd" / "barrier.py"
    source.write_text(source.read_text() + "\n# changed\n")
    for action, hits in (("stop", 0), ("go on", 0), ("go on", 1)):
        printed, _ = run_script(STOPPED, "float32", action, folder=compiled_copy)
        assert int(printed) == hits


def test_each_signature_has_files_of_its_own(compiled_copy):
    names = set(kept(compiled_copy))
    compile_in(compiled_copy, "float64", "unpack_bias")
    more = set(kept(compiled_copy)) - names
    assert sorted(Path(name).suffix for name in more) == [".nbc", ".nbi"]
    assert names < set(kept(compiled_copy))


def test_every_source_of_a_kernel_counts(copy, monkeypatch):
    folder = copy / "cupy_lstm" / "simd"
    monkeypatch.setattr(compiled, "__file__", str(folder / "compiled.py"))
    digest = compiled.source_hash.__wrapped__
    before = digest()
    assert before == compiled.source_hash(), "only the text counts, not where it lies"
    for name in SOURCES:
        text = (folder / name).read_text()
        (folder / name).write_text(text + " ")
        assert digest() != before, name
        (folder / name).write_text(text)
        assert digest() == before
    (folder / "new.py").write_text("")
    assert digest() != before
    (folder / "new.py").rename(folder / "newer.py")
    other = digest()
    (folder / "newer.py").rename(folder / "new.py")
    assert digest() != other


def test_numba_s_folder_is_honoured(copy, tmp_path):
    place = tmp_path / "elsewhere"
    errors = compile_in(copy, NUMBA_CACHE_DIR=str(place))
    assert f"(kept in {place}" in errors
    assert kept(place)
    assert not kept(copy)


def locked_away(copy):
    """Let nothing be written beside the sources: not even root can write below a file."""
    (copy / "cupy_lstm" / "simd" / "__pycache__").write_text("")


def test_a_folder_of_the_user_serves_where_sources_cannot_be_written(copy, tmp_path):
    locked_away(copy)
    home = {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    errors = compile_in(copy, **home)
    assert f"(kept in {tmp_path}" in errors
    assert kept(tmp_path)


def test_works_where_nothing_can_be_kept(copy, tmp_path):
    locked_away(copy)
    nowhere = tmp_path / "file"
    nowhere.write_text("")
    variables = {"HOME": str(nowhere), "XDG_CACHE_HOME": str(nowhere / "cache")}
    assert compile_in(copy, **variables) == MESSAGE.format("float32", "nowhere")
    assert not kept(tmp_path)


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGES = {
    "both-cut": ("*.nb[ci]", cut),
    "code-cut": ("*.nbc", cut),
    "code-empty": ("*.nbc", lambda path: path.write_bytes(b"")),
    "code-removed": ("*.nbc", Path.unlink),
    "index-removed": ("*.nbi", Path.unlink),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_cache_is_no_error(compiled_copy, damage):
    pattern, spoil = DAMAGES[damage]
    for path in list(compiled_copy.rglob(pattern)):
        spoil(path)
    for hits in (0, 1):  # and it has been mended
        printed, _ = run_script(STOPPED, "float32", "go on", folder=compiled_copy)
        assert int(printed) == hits


def test_an_index_that_cannot_be_written_costs_the_copy_alone(compiled_copy):
    for path in list(compiled_copy.rglob("*.nbi")):
        path.unlink()
        path.mkdir()
    printed, _ = run_script(STOPPED, "float32", "go on", folder=compiled_copy)
    assert int(printed) == 0


def test_what_nobody_can_tell_the_sources_of_is_not_kept(monkeypatch, tmp_path):
    monkeypatch.setattr(compiled, "__file__", str(tmp_path / "none" / "compiled.py"))
    assert compiled.source_hash.__wrapped__() == ""
    monkeypatch.setattr(compiled, "source_hash", lambda: "")
    assert compiled._kept(compiled.programs.fill, compiled.ROUTINES[compiled.programs.fill]) is None


def test_two_processes_at_once(copy):
    command = [sys.executable, "-c", COMPILE, "float32", "pack_bias", "unpack_bias"]
    environment = os.environ | {"PYTHONPATH": str(copy)}
    both = [
        subprocess.Popen(command, env=environment, cwd=copy, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for process in both:
        _, errors = process.communicate(timeout=SECONDS)
        assert process.returncode == 0, errors
    assert len(kept(copy)) == 4


def test_warmup_leaves_nothing_to_compile(capfd):
    assert warmup() is True
    capfd.readouterr()
    code = (
        "from cupy_lstm import LSTM, warmup, engine; import numpy as np\n"
        "from cupy_lstm.simd import compiled\n"
        "assert warmup(['float32']) is True\n"
        "def refused(*arguments): raise AssertionError('a kernel was left out')\n"
        "compiled._compile = refused\n"
        "lstm = LSTM(5, 7, 2, 'bidirect', proj_size=3)\n"
        "with engine('simd'):\n"
        "    y, _ = lstm(np.ones((3, 4, 5), 'float32'), sequence_length=[4, 0, 2])\n"
        "    lstm.backward(y)\n"
    )
    assert run_script(code) == ("", "")


@pytest.mark.parametrize("dtypes", [["float16"], ["float32", "double"], [np.dtype("int32")]])
def test_warmup_refuses_other_dtypes(dtypes):
    with pytest.raises(ValueError) as raised:
        warmup(dtypes)
    assert str(raised.value) == (
        f"dtypes must be of ('float32', 'float64'), received {dtypes[-1]!r}"
    )


# Without Numba.

WITHOUT = """
import sys
import numpy as np
from cupy_lstm import LSTM, engine, explain_plan, warmup
from cupy_lstm.info import facts

assert warmup() is False
lstm, x = LSTM(3, 4), np.ones((2, 5, 3), "float32")
y, _ = lstm(x)
lstm.backward(y)
lstm.stream(2)(x[:, 0])
assert not any(name.startswith(("cupy_lstm.simd", "llvmlite")) for name in sys.modules)
print(facts()["engines"]["simd on numpy"])
print(explain_plan(5, 2, 3, 4))
try:
    with engine("simd"):
        lstm(x)
except ValueError as error:
    print(error)
"""


def check_without(output, reason):
    info, explanation, error = output.splitlines()
    assert info == f"not available: {reason}"
    assert explanation.startswith("layer 0: stepwise on numpy, ")
    assert f": not simd, {reason} (" in explanation
    assert error == f"the engine 'simd' cannot serve this call: {reason}"


def test_stepwise_serves_where_numba_is_missing():
    output, errors = run_script("import sys; sys.modules['numba'] = None" + WITHOUT)
    assert errors == ""
    check_without(output, "Numba is not installed: pip install 'cupy_lstm[fast]'")


def test_stepwise_serves_where_numba_cannot_be_imported(tmp_path):
    """As when NumPy is too new for it: which is said, and is no error."""
    (tmp_path / "numba").mkdir()
    (tmp_path / "numba" / "__init__.py").write_text(
        "raise ImportError('Numba needs NumPy 1.25 or less. Got NumPy 2.4.')\n"
    )
    script = f"import sys; sys.path.insert(0, {str(tmp_path)!r})" + WITHOUT
    output, errors = run_script(script)
    assert errors == ""
    info, explanation, error = output.splitlines()
    for line in (info, explanation, error):
        assert "Numba needs NumPy 1.25 or less. Got NumPy 2.4." in line
    assert explanation.startswith("layer 0: stepwise on numpy, ")


def test_this_host_has_numba():
    """Else nothing here has tested anything."""
    assert plan.simd_missing() == ""
    assert explain_plan(5, 2, 3, 4).startswith("layer 0: simd on numpy, ")
    with engine("auto"):
        LSTM(3, 4)(np.ones((2, 5, 3), "float32"))
    assert Path(engines.load("simd").__file__).parent == PACKAGE / "engines"
