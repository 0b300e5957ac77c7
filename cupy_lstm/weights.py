"""The parameters of one layer of LSTM cells: making them, and handing them to the network."""

from collections.abc import Sequence
from math import sqrt
from types import ModuleType
from typing import Any

import numpy

from cupy_lstm.announcements import announce_gradients
from cupy_lstm.buffer import Buffer
from cupy_lstm.initializer import Constant, Fans, Uniform
from cupy_lstm.notation import LayerGradients, LayerWeights, PerWeight, Wanted
from cupy_lstm.parameter import ParamAttr, Parameter, drawn_value
from cupy_lstm.prepared import PreparedWeights

KINDS = PerWeight._fields

Attributes = PerWeight[ParamAttr]
"""How each kind of weight is made; None where there is none."""


def attributes(
    weight_ih: object, weight_hh: object, bias_ih: object, bias_hh: object, projected: bool
) -> Attributes:
    """Return what the four ``*_attr`` arguments of a constructor mean.

    Parameters
    ----------
    weight_ih, weight_hh : None, bool, str, Initializer, Regularizer or ParamAttr
        False means constant 1 and frozen, as in Paddle.
    bias_ih, bias_hh : None, bool, str, Initializer, Regularizer or ParamAttr
        False means no such bias.
    projected : bool
        Whether there is a weight_ho; it is made as weight_hh is.

    Raises
    ------
    TypeError
        For anything else.
    """
    fixed = ParamAttr(initializer=Constant(1.0), trainable=False)
    weights = [
        fixed if value is False else ParamAttr.of(value, f"{kind}_attr")
        for kind, value in (("weight_ih", weight_ih), ("weight_hh", weight_hh))
    ]
    biases = [
        None if value is False else ParamAttr.of(value, f"{kind}_attr")
        for kind, value in (("bias_ih", bias_ih), ("bias_hh", bias_hh))
    ]
    return Attributes(
        weights[0], weights[1], biases[0], biases[1], weights[1] if projected else None
    )


def require_unique_names(attrs: Attributes, cells: int) -> None:
    """Raise unless a name in `attrs` serves one parameter of `cells` cells only.

    Raises
    ------
    ValueError
        If two parameters would have the same name.
    """
    names = [attr.name for attr in attrs if attr is not None and attr.name] * cells
    for name in names:
        if names.count(name) > 1:
            raise ValueError(
                f"the name {name!r} would serve {names.count(name)} parameters: name parameters "
                "only where each attribute serves one (one layer, one direction)"
            )


class LayerParameters:
    """The parameters of one layer, each kind a tuple with one for each direction.

    Parameters
    ----------
    features, hidden_size, outputs : int
        I, H and P of the layer.
    attrs : Attributes
        How to make each kind.
    suffixes : sequence of str
        For each direction what follows the kind in a parameter's name: ``"_l0_reverse"``.
    generator : numpy.random.Generator
        Source of the first values, drawn on the host: direction by direction, kind by kind.
    xp : module
        Where the parameters go.
    dtype : numpy.dtype
        Their dtype.

    Attributes
    ----------
    buffers : list of Buffer
        The memory of the weights.
    prepared : PreparedWeights
        The weights as engines take them in inference.
    """

    def __init__(
        self,
        features: int,
        hidden_size: int,
        outputs: int,
        attrs: Attributes,
        suffixes: Sequence[str],
        generator: numpy.random.Generator,
        xp: ModuleType,
        dtype: "numpy.dtype[Any]",
    ) -> None:
        I, H, P = features, hidden_size, outputs  # noqa: E741
        shapes: list[tuple[int, ...]] = [(4 * H, I), (4 * H, P), (4 * H,), (4 * H,), (H, P)]
        fans = [Fans(I, H), Fans(P, H), Fans(H, H), Fans(H, H), Fans(H, P)]
        default = Uniform(-1 / sqrt(H), 1 / sqrt(H))
        drawn = [
            [
                None
                if attr is None
                else drawn_value(f"{kind}{suffix}", attr, default, shape, fan, generator)
                for kind, attr, shape, fan in zip(KINDS, attrs, shapes, fans, strict=True)
            ]
            for suffix in suffixes
        ]
        kinds: list[tuple[Parameter, ...] | None] = []
        for kind, attr, values in zip(KINDS, attrs, zip(*drawn, strict=True), strict=True):
            if attr is None:
                kinds.append(None)
                continue
            buffer = Buffer.from_host(values, xp, dtype)
            kinds.append(
                tuple(
                    Parameter(buffer, d, f"{kind}{suffix}", attr)
                    for d, suffix in enumerate(suffixes)
                )
            )
        self.suffixes = tuple(suffixes)
        self.kinds: PerWeight[Any] = PerWeight(*kinds)
        self._buffers: list[Buffer | None] = [None if p is None else p[0].buffer for p in kinds]
        self.buffers = [b for b in self._buffers if b is not None]
        self.prepared = PreparedWeights(self.buffers)

    def named(self) -> dict[str, Parameter | None]:
        """Return the parameters by name, direction by direction; None for an absent bias."""
        return {
            f"{kind}{suffix}": None if parameters is None else parameters[d]
            for d, suffix in enumerate(self.suffixes)
            for kind, parameters in zip(KINDS, self.kinds, strict=True)
            if parameters is not None or kind != "weight_ho"
        }

    def arrays(self) -> LayerWeights:
        """Return the weights, the directions stacked in front."""
        return PerWeight(*[None if b is None else b.data for b in self._buffers])

    def wanted(self) -> Wanted:
        """Return whose gradients are wanted: those of the trainable parameters."""
        return Wanted(*(None if p is None else _trainable(p) for p in self.kinds))

    def gradients(self) -> LayerGradients:
        """Return the arrays gradients are added into, allocated where they are wanted."""
        return LayerGradients(
            *(
                None if p is None or _trainable(p) is None else p[0].buffer.make_gradient()
                for p in self.kinds
            )
        )

    def gradients_as_they_are(self) -> LayerGradients:
        """Return the same for a backward pass that is told which are `unset`."""
        return LayerGradients(
            *(
                None if p is None or _trainable(p) is None else p[0].buffer.gradient_as_it_is()
                for p in self.kinds
            )
        )

    def unset(self) -> frozenset[str]:
        """Return the kinds whose wanted gradients are to be set; those of others are added to."""
        found = []
        for kind, parameters in zip(KINDS, self.kinds, strict=True):
            some = None if parameters is None else _trainable(parameters)
            if some is not None:
                buffer = parameters[0].buffer
                if buffer.unset.issuperset(range(some.start, some.stop)):
                    found.append(kind)
                else:
                    buffer.make_gradient()
        return frozenset(found)

    def mark_gradients(self) -> None:
        """Note, and announce, that a backward pass has made the gradients that are wanted."""
        trainable = [p for kind in self.kinds for p in kind or () if p.trainable]
        for parameter in trainable:
            parameter.has_gradient = True
            parameter.buffer.unset -= {parameter.index}
        announce_gradients(trainable)

    def moves(self) -> tuple[int, ...]:
        """Return how often each buffer has changed its place or dtype."""
        return tuple([b.moves for b in self.buffers])


def versions(layers: Sequence[LayerParameters]) -> list[int]:
    """Return the versions of the weights of several layers; they differ after any change."""
    return [buffer.version for layer in layers for buffer in layer.buffers]


def _trainable(parameters: Sequence[Parameter]) -> slice | None:
    """Return the directions whose parameter is trainable; None if none is."""
    chosen = [d for d, parameter in enumerate(parameters) if parameter.trainable]
    return slice(chosen[0], chosen[-1] + 1) if chosen else None
