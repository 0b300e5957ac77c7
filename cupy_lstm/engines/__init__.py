"""Engines: each runs one layer's sweep over time, both directions, with the same two functions.

``forward(x, weights, states, lengths, *, reverse, y, cells, keep, steps, chunk)`` and
``backward(tape, dy, dstates, dcells, *, wanted, gradients, dx)``, as `stepwise` documents them.
Arrays over time are given in the caller's layout and order, for an engine to read and to fill in
place. `cupy_lstm.plan` chooses among the engines.
"""

from types import ModuleType


def load(name: str) -> ModuleType:
    """Return the engine called `name`, imported on first use."""
    from importlib import import_module

    return import_module(f"cupy_lstm.engines.{name}")
