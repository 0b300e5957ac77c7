"""What `import cupy_lstm` costs above `import numpy`: ``python profiling/import_cost.py``.

Each measurement is a fresh interpreter that times one import statement, since a second import in
the same process is free. The two statements take turns, so that a machine that slows down slows
both, and the figures are medians.
"""

import argparse
import statistics
import subprocess
import sys

BUDGET_MS = 60
STATEMENTS = ("import numpy", "import cupy_lstm")


def import_ms(statement: str) -> float:
    """Return the time of an import statement in a fresh interpreter, in milliseconds."""
    code = (
        "from time import perf_counter\n"
        "start = perf_counter()\n"
        f"{statement}\n"
        "print((perf_counter() - start) * 1e3)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=15, help="pairs of interpreters, default 15")
    pairs = parser.parse_args().pairs
    for statement in STATEMENTS:
        import_ms(statement)  # fills the caches of the disk and of compiled modules
    times = [[import_ms(statement) for statement in STATEMENTS] for _ in range(pairs)]
    for statement, column in zip(STATEMENTS, zip(*times, strict=True), strict=True):
        print(f"{statement:18} {statistics.median(column):6.1f} ms")
    above = statistics.median(ours - numpys for numpys, ours in times)
    print(f"{'difference':18} {above:6.1f} ms, the budget is {BUDGET_MS} ms")


if __name__ == "__main__":
    main()
