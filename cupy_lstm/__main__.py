"""The command line: ``python -m cupy_lstm forecast`` and ``python -m cupy_lstm info``."""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one sentence."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (--help says more)\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that `arguments` name, by default those of the process.

    Returns
    -------
    int
        The exit code: 0 for success.
    """
    from cupy_lstm import info
    from cupy_lstm.forecast import command, options

    parser = _Parser(prog="python -m cupy_lstm", description="An LSTM for NumPy and CuPy arrays.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    forecast = commands.add_parser(
        "forecast", help="forecast a time series", description=command.DESCRIPTION
    )
    options.add_arguments(forecast)
    commands.add_parser("info", help="print versions, devices and engines")
    chosen = parser.parse_args(arguments)
    try:
        code = info.main() if chosen.command == "info" else command.run(chosen)
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read the output has seen enough; Python would complain once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return code


if __name__ == "__main__":
    sys.exit(main())
