"""What a value in an ONNX graph is made of, where its shape hangs on an input of the model.

Exporters spread an initial state over as many rows as come in. Such a value cannot be computed
here, but whose elements it has can be told.
"""

from dataclasses import dataclass
from typing import Any

from cupy_lstm.io.onnx_graph import MOVES, Graph, is_standard

COPIES = MOVES.keys() | {"Cast", "CastLike", "Expand", "Flatten", "Gather", "Split", "Tile"}
"""Operators whose results have the elements of their first input; those of `Concat`, of all."""

SIZES = {"Shape", "Size"}
"""Operators that take nothing but sizes from their input."""


@dataclass(frozen=True)
class Origins:
    """What a value is made of.

    Attributes
    ----------
    given : bool
        Whether an input of the model has a part in it, by more than its shape.
    zero : bool
        Whether its elements are zeros that the file holds, and nothing else.
    size : bool
        Whether its elements are sizes of what comes in, and nothing else.
    """

    given: bool = False
    zero: bool = False
    size: bool = False


def origins(graph: Graph, name: str) -> Origins:
    """Return what a value is made of.

    Raises
    ------
    ValueError
        If a constant that it is made of cannot be read.
    """
    constants: list[str] = []
    fillers: list[Any] = []
    sized = computed = False
    seen, waiting = {name}, [name]
    while waiting:
        wanted = waiting.pop()
        if graph.is_constant(wanted):
            constants.append(wanted)
            continue
        node = graph.producer(wanted)
        if node is None:
            return Origins(given=True)
        sources = list(node.input)
        operator = node.op_type if is_standard(node) else None
        if operator == "ConstantOfShape":
            fillers.append(node)
            sources = []
        elif operator in SIZES:
            sized = True
            sources = []
        elif operator not in COPIES:
            computed = True
        elif operator != "Concat":
            sources = sources[:1]
        waiting += [source for source in sources if source and source not in seen]
        seen.update(sources)
    if computed or sized:
        return Origins(size=not (computed or constants or fillers))
    values = [graph.constant(constant) for constant in constants] + list(map(graph.filler, fillers))
    return Origins(zero=not any(value is None or value.any() for value in values))
