"""Where a backward pass puts gradients: into the caller's arrays, as far as kernels can write them.

A layer is gone back through in one or more ranges of steps, the last one first. Sums over steps
are carried, packed, from range to range, and added to the caller's arrays in the end.
"""

from collections.abc import Sequence
from math import prod

import numpy

from cupy_lstm.backend import HostArray
from cupy_lstm.notation import LayerGradients, Wanted
from cupy_lstm.simd.amx.unit import SIDE
from cupy_lstm.simd.layout import Layout, has_rows, is_in_order
from cupy_lstm.simd.rows import Rows
from cupy_lstm.simd.scratch import Given, Scratch

Target = tuple[int, str]
"""A direction, and a weight or what is summed for it."""


class Targets:
    """The gradients of one layer's weights and input.

    Parameters
    ----------
    wanted : Wanted
        The directions whose gradients are wanted.
    gradients : LayerGradients
        Arrays to put them in.
    unset : frozenset of str
        The weights whose gradients are set, not added to; and ``dx`` if that is.
    dx : array [T,B,I] or None
        The gradient of the input.

    Attributes
    ----------
    weights : tuple of Target
        The weights whose gradients are wanted.
    unset : frozenset of str
        What passes set.
    sums : array or None
        What `Sums` has so far, in one piece; None before the last range of steps.
    written : dict of array
        What passes write to: ``dx``, and ``gradient`` with the name of a weight.
    """

    def __init__(
        self,
        wanted: Wanted,
        gradients: LayerGradients,
        unset: frozenset[str],
        dx: HostArray | None,
    ) -> None:
        found: list[Target] = []
        self.unset = unset
        self.sums: HostArray | None = None
        self.written: dict[str, HostArray] = {}
        self._apart: list[tuple[HostArray, HostArray]] = []
        for name, some, gradient in zip(wanted._fields, wanted, gradients, strict=True):
            if some is not None and gradient is not None:
                found += [(d, name) for d in range(*some.indices(len(gradient)))]
                fits = is_in_order(gradient)
                if name in unset and not fits:
                    gradient[some] = 0  # what is apart is added to it
                self._write(f"gradient {name}", gradient, fits)
        if dx is not None:
            fits = has_rows(dx)
            if not fits and "dx" in unset:
                dx[...] = 0  # what is apart is added to it
            self._write("dx", dx, fits)
        self.weights = tuple(found)

    def _write(self, name: str, array: HostArray, fits: bool) -> None:
        """Have passes write to this array, or to one apart that is added to it in the end."""
        self.written[name] = written = array if fits else numpy.zeros(array.shape, array.dtype)
        if written is not array:
            self._apart.append((array, written))

    def begin_dx(self, rows: Sequence[Rows]) -> None:
        """Clear dx where passes, the first over these rows, add to it.

        They must where padding is no step of theirs, and where directions are at different times.
        """
        if not rows[0].are_even or len({min(some.times, default=0) for some in rows}) > 1:
            if "dx" in self.unset and "dx" in self.written:
                self.written["dx"][...] = 0
            self.unset -= {"dx"}

    def begin(self, sums: "Sums", rows: Sequence[Rows]) -> None:
        """Make room for the sums; a pass begins them where rows take part."""
        self._parts = sums
        begun = all(some.total for some in rows)
        self.sums = sums.layout.empty(sums.size) if begun else sums.layout.zeros(sums.size)

    def finish(self) -> None:
        """Do what no pass has done."""
        for d, name in self.weights:
            gradient = self.written[f"gradient {name}"][d]
            if (self.sums is None or name == "weight_ho") and name in self.unset:
                gradient[...] = 0
            if self.sums is not None and name == "weight_ho":
                # It is not packed as the others.
                first, sizes = self._parts.sizes[d, name]
                total = self.sums[first : first + prod(sizes)].reshape(sizes)
                gradient += total[:, : gradient.shape[1]]
        for array, written in self._apart:
            array += written


class Sums:
    """The sums that gradients need, as parts of one piece of memory.

    Parameters
    ----------
    layout : Layout
        Of the layer.
    targets : sequence of Target
        The weights whose gradients are wanted; both biases have one sum, ``bias``.

    Attributes
    ----------
    layout : Layout
        That of the layer.
    size : int
        Numbers of all parts together.
    sizes : dict
        Of each sum the number before it, and its own sizes.
    """

    def __init__(self, layout: Layout, targets: Sequence[Target]) -> None:
        self.layout = layout
        self.size, self.sizes = layout.one_after_the_other(
            {target: _sum_sizes(layout, target[1]) for target in map(sum_of, targets)}
        )

    def given(self, scratch: Scratch) -> dict[Target, Given]:
        """Return all parts of what a pass is given as ``sums``."""
        sums = scratch.room("sums", self.size)
        return {target: sums.part(first, *sizes) for target, (first, sizes) in self.sizes.items()}


def sum_of(target: Target) -> Target:
    """Return which sum the gradient of a weight is."""
    d, name = target
    return d, "bias" if name.startswith("bias") else name


def _sum_sizes(layout: Layout, name: str) -> tuple[int, ...]:
    _, _, I, H, P, _ = layout.shape  # noqa: E741
    if name == "weight_ho":
        return H, layout.h_width
    features = {"weight_ih": I, "weight_hh": P, "bias": 1}[name]
    if layout.product_tiles and features > 1:
        features = -(-features // SIDE) * SIDE
    return layout.blocks, features, 4 * layout.lanes.count
