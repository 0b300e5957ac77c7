"""Data flows down: no module imports one that imports it, and no name hides Python's own."""

import ast
import graphlib
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "cupy_lstm"


def module_name(path, root=ROOT):
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_modules(path, name, modules):
    """Return the modules of the package that this one imports, wherever in the file."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1]
            source = ".".join([*(base if node.level else []), *filter(None, [node.module])])
            # `from package import thing` needs the module `thing` if there is one.
            for alias in node.names:
                inner = f"{source}.{alias.name}"
                found.add(inner if inner in modules else source)
    return found & modules


def import_graph(package, root=ROOT):
    paths = {module_name(path, root): path for path in package.rglob("*.py")}
    return {name: imported_modules(path, name, set(paths)) for name, path in paths.items()}


def test_no_module_imports_upward():
    graph = import_graph(PACKAGE)
    assert len(graph) > 5, "the package was not found"
    list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError with the cycle


def test_engines_are_below_the_face():
    graph = import_graph(PACKAGE)
    below = set()
    waiting = [name for name in graph if name.startswith("cupy_lstm.engines.")]
    while waiting:
        for name in graph[waiting.pop()] - below:
            below.add(name)
            waiting.append(name)
    assert not below & {"cupy_lstm", "cupy_lstm.lstm", "cupy_lstm.network"}


@pytest.mark.parametrize(
    "statement",
    ["import pack.above", "from pack import above", "from . import above", "from .above import x"],
)
def test_a_cycle_would_be_seen(tmp_path, statement):
    package = tmp_path / "pack"
    package.mkdir()
    (package / "__init__.py").write_text("from pack.above import x\n")
    (package / "above.py").write_text("import pack.below\nx = 1\n")
    (package / "below.py").write_text(f"def late():\n    {statement}\n")
    with pytest.raises(graphlib.CycleError) as raised:
        graphlib.TopologicalSorter(import_graph(package, tmp_path)).prepare()
    assert {"pack.above", "pack.below"} <= set(raised.value.args[1])


@pytest.mark.parametrize("folder", ["cupy_lstm", "profiling", "tests"])
def test_no_module_is_named_like_one_of_python_s(folder):
    # A script's own folder comes first on its import path.
    names = {path.stem for path in (ROOT / folder).rglob("*.py")}
    assert names, f"{folder} was not found"
    assert not names & sys.stdlib_module_names
