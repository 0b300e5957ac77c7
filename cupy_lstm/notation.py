"""The notation of the whole project, declared once.

====== ==========================================================================
T      steps of a sequence (time)
B      batch rows
I      input features of a layer
H      hidden_size: units of a layer, features of the cell state c
P      features of the output h: proj_size where there is a projection, else H
D      directions: 1, or 2 where a reverse direction runs beside the forward one
L      layers
====== ==========================================================================

Every matrix with 4H rows, and every vector of 4H, holds the gates in the order i, f, g, o.
One step of one direction, with x [B,I] and the previous h [B,P] and c [B,H]::

    z  = x W_ih^T + b_ih + h W_hh^T + b_hh                        [B,4H]
    c' = sigmoid(z_f) * c + sigmoid(z_i) * tanh(z_g)              [B,H]
    m  = sigmoid(z_o) * tanh(c')                                  [B,H]
    h' = m, or m W_ho with a projection                           [B,P]

A direction reads its sequence in *steps* s = 0, 1, ..., T-1. The forward direction is at time
t = s, the reverse one at t = T-1-s. A row with a length n takes part at the times t < n only:
before that the reverse direction keeps its initial state, after that the forward one keeps its
last, and both put zeros out.
"""

from typing import Generic, NamedTuple, TypeVar

from cupy_lstm.backend import Array

Kind = TypeVar("Kind")


class Shape(NamedTuple):
    """Sizes of one layer's sweep over time, as the notation names them."""

    T: int
    B: int
    I: int  # noqa: E741 - declared notation
    H: int
    P: int
    D: int


class PerWeight(NamedTuple, Generic[Kind]):
    """One thing for each kind of weight of a layer; None where the layer has no such weight."""

    weight_ih: Kind
    weight_hh: Kind
    bias_ih: Kind | None = None
    bias_hh: Kind | None = None
    weight_ho: Kind | None = None


LayerWeights = PerWeight[Array]
"""Weights of one layer, the directions stacked in front: weight_ih [D,4H,I], weight_hh [D,4H,P],
bias_ih and bias_hh [D,4H], weight_ho [D,H,P]."""

LayerGradients = PerWeight[Array | None]
"""Arrays like the weights that a backward pass adds into; None where none is wanted."""

Wanted = PerWeight[slice | None]
"""The directions (a slice of axis 0) whose gradient is wanted; None for none of them."""

States = tuple[Array, Array]
"""h [D,B,P] and c [D,B,H] of one layer, or h [L*D,B,P] and c [L*D,B,H] of all of them."""


def layer_shape(steps: int, batch: int, weights: LayerWeights) -> Shape:
    """Return the sizes of a sweep with these weights over `steps` steps of `batch` rows."""
    directions, gates, features = weights.weight_ih.shape
    return Shape(steps, batch, features, gates // 4, weights.weight_hh.shape[2], directions)
