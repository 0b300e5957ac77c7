"""What backward needs of a forward pass."""

from collections.abc import Sequence
from dataclasses import dataclass

from cupy_lstm.backend import HostArray
from cupy_lstm.notation import LayerWeights
from cupy_lstm.simd.layout import Layout
from cupy_lstm.simd.rows import Rows
from cupy_lstm.simd.scratch import Given, Scratch


@dataclass
class Tape:
    """What backward needs of a forward over a range of steps.

    Attributes
    ----------
    x : array [T,B,I]
        The input, by reference.
    weights : LayerWeights
        The same.
    rows : list of Rows
        Where the rows of each time lie.
    block : array
        What `Recorded` has, in one piece.
    """

    x: HostArray
    weights: LayerWeights
    rows: list[Rows]
    block: HostArray


class Recorded:
    """What is recorded for the backward pass, as parts of one piece of memory.

    Parameters
    ----------
    layout : Layout
        Of the layer.
    rows : sequence of Rows
        Which rows take part, for each direction.

    Attributes
    ----------
    size : int
        Numbers of all parts together.
    sizes : dict
        Of each part the number before it, and its own sizes. For each direction d ``gates d``
        [slots,4H], activated, which backward turns into the gradients of their pre-activations,
        and ``cells d`` [slots,H], cell states, which it turns into outputs before the projection;
        ``h0`` and ``c0`` [D,B,...], the states before the first step by row.
    """

    def __init__(self, layout: Layout, rows: Sequence[Rows]) -> None:
        _, B, _, _, _, D = layout.shape
        wanted: dict[str, tuple[int, ...]] = {}
        for d, some in enumerate(rows):
            wanted[f"gates {d}"] = some.total, layout.gate_width
            wanted[f"cells {d}"] = some.total, layout.c_width
        wanted |= {"h0": (D, B, layout.h_width), "c0": (D, B, layout.c_width)}
        self.size, self.sizes = layout.one_after_the_other(wanted)

    def given(self, scratch: Scratch) -> dict[str, Given]:
        """Return all parts of what a pass is given as ``tape``."""
        tape = scratch.room("tape", self.size)
        return {name: tape.part(first, *sizes) for name, (first, sizes) in self.sizes.items()}
