"""What the ranges for profilers cost where nobody listens: ``python profiling/range_cost.py``.

The package is imported twice in one process: as it is, and with every range taken out of its
source. The smallest LSTM there can be is called with both by turns, so that whatever slows the
machine down slows both. Of a block of calls the lowest deciles are compared, which other work on
the machine hardly touches; the table has the median of the blocks and their quartiles.

This is done in two processes: in one nvtx cannot be imported, in the other it is there, and no tool
is attached. With --attached it is done once more under the injection library of `profiling/traces`.
"""

import argparse
import ast
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import PathFinder, SourceFileLoader
from pathlib import Path
from statistics import median, quantiles
from time import perf_counter
from types import ModuleType
from typing import Any

import numpy as np

PACKAGE = "cupy_lstm"
BLOCK = 100
"""Calls of a block, with each of both."""

CASES = {
    "stepwise, inference": ("stepwise", False),
    "stepwise, training": ("stepwise", True),
    "simd, inference": ("simd", False),
    "simd, training": ("simd", True),
}
MODES = {
    "absent": "nvtx not installed",
    "quiet": "nvtx installed, no tool",
    "attached": "nvtx installed, ranges written to a file",
}
BUDGETS = {"absent": 0.01, "quiet": 0.02}


class _WithoutRanges(ast.NodeTransformer):
    """Leave the body of `with stage(...)`, and of `each_...(items)` the items."""

    def visit_With(self, node: ast.With) -> Any:
        self.generic_visit(node)
        if len(node.items) == 1 and _calls(node.items[0].context_expr) == "stage":
            return node.body
        return node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        if _calls(node) == "detailed":
            return ast.Constant(value=False)
        return node.args[0] if _calls(node) in ("each_step", "each_load") else node


def _calls(node: ast.AST) -> str:
    """Return the plain name that is called, or an empty text."""
    is_call = isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    return node.func.id if is_call else ""


class _Loader(SourceFileLoader):
    def get_code(self, fullname: str) -> Any:
        tree = _WithoutRanges().visit(ast.parse(self.get_data(self.path)))
        return compile(ast.fix_missing_locations(tree), self.path, "exec")


class _Finder(MetaPathFinder):
    """Find the package's modules, and load them without ranges."""

    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> Any:
        if name.partition(".")[0] != PACKAGE:
            return None
        spec = PathFinder.find_spec(name, path)
        # The source of the kernels stays as it is: they are kept on disk by it.
        is_kernel = ".simd." in name and not name.endswith(".stages")
        if spec is not None and spec.origin and not is_kernel:
            spec.loader = _Loader(name, spec.origin)
        return spec


def imported(with_ranges: bool) -> ModuleType:
    """Return a copy of the package of its own."""
    for name in [name for name in sys.modules if name.partition(".")[0] == PACKAGE]:
        del sys.modules[name]
    finder = _Finder()
    if not with_ranges:
        sys.meta_path.insert(0, finder)
    try:
        package = importlib.import_module(PACKAGE)
        for engine in ("stepwise", "simd"):  # loaded on first use otherwise
            try:
                importlib.import_module(f"{PACKAGE}.engines.{engine}")
            except ImportError:
                print(f"no {engine} here", file=sys.stderr)
    finally:
        if not with_ranges:
            sys.meta_path.remove(finder)
    return package


def call_of(package: ModuleType, engine: str, training: bool) -> Callable[[], object]:
    """Return a call of the smallest LSTM."""
    lstm = package.LSTM(1, 1, seed=0)
    x = np.ones((1, 1, 1), "float32")

    def inference() -> object:
        with package.engine(engine), package.no_grad():
            return lstm(x)

    def both() -> object:
        with package.engine(engine):
            y, _ = lstm(x)
            return lstm.backward(y)

    return both if training else inference


def block(calls: Sequence[Callable[[], object]]) -> list[float]:
    """Return the lowest decile of the microseconds of each call, made by turns."""
    times: list[list[float]] = [[] for _ in calls]
    for number in range(BLOCK):
        for which in (0, 1) if number % 2 else (1, 0):
            begun = perf_counter()
            calls[which]()
            times[which].append(1e6 * (perf_counter() - begun))
    return [quantiles(some, n=10)[0] for some in times]


def measured(blocks: int) -> dict[str, dict[str, float]]:
    """Return for each case the microseconds of a call, and the median ratio with its quartiles."""
    packages = [imported(with_ranges) for with_ranges in (False, True)]
    found = {}
    for case, (engine, training) in CASES.items():
        try:
            calls = [call_of(package, engine, training) for package in packages]
            block(calls)
        except ValueError as error:  # the engine cannot run here
            print(f"{case} is left out: {error}", file=sys.stderr)
            continue
        times = [block(calls) for _ in range(blocks)]
        ratios = [ranged / bare for bare, ranged in times]
        low, middle, high = quantiles(ratios, n=4)
        found[case] = {
            "us": median(bare for bare, _ in times), "cost": middle - 1,
            "low": low - 1, "high": high - 1,
        }  # fmt: skip
    return found


def in_process(mode: str, blocks: int) -> dict[str, dict[str, float]]:
    """Measure in a process that is as a mode says."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("NVTX_")}
    if mode == "attached":
        from traces.tools import LOG, built_injection

        environment |= {"NVTX_INJECTION64_PATH": str(built_injection()), LOG: os.devnull}
    done = subprocess.run(
        [sys.executable, __file__, "--inside", mode, "--blocks", str(blocks)],
        env=environment, stdout=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"the measuring process ended with status {done.returncode}")
    result: dict[str, dict[str, float]] = json.loads(done.stdout)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--blocks", type=int, default=40, help=f"of {BLOCK} calls, default 40")
    parser.add_argument("--attached", action="store_true", help="measure with a tool attached, too")
    parser.add_argument("--inside", choices=MODES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        if options.inside == "absent":
            sys.modules["nvtx"] = None  # type: ignore[assignment]
        sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
        print(json.dumps(measured(options.blocks)))
        return
    print(f"{'T = B = I = H = 1':42}{'call':22}{'without us':>11}{'cost':>8}  quartiles")
    for mode in MODES if options.attached else BUDGETS:
        for case, values in in_process(mode, options.blocks).items():
            budget = BUDGETS.get(mode)
            remark = "" if budget is None else f"  budget {budget:.0%}"
            print(
                f"{MODES[mode]:42}{case:22}{values['us']:11.1f}{values['cost']:8.2%}"
                f"  {values['low']:.2%} to {values['high']:.2%}{remark}"
            )


if __name__ == "__main__":
    main()
