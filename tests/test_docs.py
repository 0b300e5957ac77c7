"""The documentation is true: examples run, links lead somewhere, nothing public is left out.

A page's blocks of ```python are one program, run in an empty folder; where a line of a block ends
in a comment after a call of ``print``, that is what it must print. Lines that begin with ``$`` in a
block of ```console are commands, run after it in the same folder. Other blocks are not run.
"""

import ast
import importlib
import importlib.util
import os
import re
import subprocess
import sys
from ctypes.util import find_library
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = sorted((ROOT / "docs/reference").glob("*.md"))
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "profiling/README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
PEERS = {"torch", "paddle", "keras", "tensorflow", "jax", "onnxruntime"}
FENCED = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def name_of(page):
    return str(page.relative_to(ROOT))


def blocks(text, language):
    """Return line number and text of each block."""
    return [
        (text[: found.start(2)].count("\n"), found[2])
        for found in FENCED.finditer(text)
        if found[1] == language
    ]


def has_examples(page):
    text = page.read_text(encoding="utf-8")
    return bool(blocks(text, "python") + blocks(text, "console"))


def is_missing(library):
    if library == "cupy" and find_library("cuda") is None:
        return True  # it may be installed for the test bed, which a page knows nothing of
    return importlib.util.find_spec(library) is None


def imports(code):
    return set(re.findall(r"^\s*(?:import|from) (\w+)", code, re.MULTILINE))


def program(text):
    """Return a page's program, each line where it is on the page, and what it lacks.

    It ends before the first block that needs a library that is not installed.
    """
    lines = []
    for start, code in blocks(text, "python"):
        missing = sorted(filter(is_missing, imports(code)))
        if missing:
            return "\n".join(lines), missing
        lines += [""] * (start - len(lines)) + code.splitlines()
    return "\n".join(lines), []


def printed_comments(code):
    return re.findall(r"^\s*print\(.*\)  # (.*)$", code, re.MULTILINE)


def run(command, folder):
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "MPLBACKEND": "Agg",
    }
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, f"{command}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.parametrize("page", [*filter(has_examples, PAGES)], ids=name_of)
def test_examples_run_and_print_what_they_say(page, tmp_path):
    text = page.read_text(encoding="utf-8")
    code, missing = program(text)
    if code:
        script = tmp_path.parent / f"{tmp_path.name}.py"
        script.write_text(code, encoding="utf-8")
        warnings = [] if imports(code) & PEERS else ["-W", "error"]
        lines = iter(run([sys.executable, *warnings, str(script)], tmp_path).splitlines())
        for comment in printed_comments(code):
            assert comment in lines, f"not printed, or not there: {comment}"  # moves on
    for _, session in blocks(text, "console"):
        for command in re.findall(r"^\$ (.*)", session, re.MULTILINE):
            run(["bash", "-c", command], tmp_path)
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed: {name_of(page)} is not run to its end")


def anchors(text):
    """Return the addresses of a page's headings, as the site and GitHub make them."""
    titles = re.findall(r"^#+ +(.*)$", FENCED.sub("", text), re.MULTILINE)
    plain = [re.sub(r"[^\w\- ]", "", title.lower()) for title in titles]
    names = re.findall(r"^::: (\S+)$", text, re.MULTILINE)
    return {title.strip().replace(" ", "-") for title in plain} | set(names)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    text = FENCED.sub("", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        there = page.parent / path if path else page
        assert there.is_file(), target
        assert not anchor or anchor in anchors(there.read_text(encoding="utf-8")), target


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_names_exist(page):
    for name in set(re.findall(r"`(cupy_lstm(?:\.\w+)+)(?:\(.*?\))?`", page.read_text())):
        if name.startswith("cupy_lstm.torch") and is_missing("torch"):
            continue
        assert resolved(name), name


def resolved(name):
    """Say whether a dotted name is a module, or something in one."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            found = getattr(found, part, None)
        return found is not None
    return False


def public_names():
    """Return what the packages export, without importing them: PyTorch need not be there."""
    for path in sorted((ROOT / "cupy_lstm").rglob("__init__.py")):
        module = ".".join(path.parent.relative_to(ROOT).parts)
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
                yield from (f"{module}.{name}" for name in ast.literal_eval(node.value))


def test_the_reference_has_every_public_name():
    described = [
        name
        for page in REFERENCE
        for name in re.findall(r"^::: (\S+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    ]
    assert len(described) == len(set(described))
    assert set(public_names()) - set(described) == set()
