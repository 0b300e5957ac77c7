"""The order of the gates, which are the four blocks of rows of a weight: i, f, g, o here.

ONNX has i, o, f, c, where its c is what is called g here.
"""

import numpy

from cupy_lstm.backend import HostArray

TO_ONNX = (0, 3, 1, 2)
"""Where ONNX's gates lie here."""

FROM_ONNX = (0, 2, 3, 1)
"""Where our gates lie in ONNX."""


def reordered(weight: HostArray, order: tuple[int, ...]) -> HostArray:
    """Return a copy of a weight [4H,...] with its gates in another order."""
    gates = weight.reshape(4, -1, *weight.shape[1:])
    return numpy.asarray(gates[list(order)].reshape(weight.shape))
