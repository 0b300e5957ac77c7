"""Data-parallel training on paper: compute at the floor of a card, gradients around a ring.

A model, not a measurement. A step of an LSTM of L equal layers on N cards is a forward pass, a
backward pass and an update. The passes take the floor of `cupy_lstm.cost`, the update the bytes of
Adam over the bandwidth of the memory. A ring all-reduce of n bytes takes 2 (N - 1) hops of n / N
bytes each: 2 (N - 1) (latency + n / (N bandwidth)) (Patarasuk and Yuan, 2009). The sum of a layer
starts when its backward is over and the sum before it, too, as `summed_gradients` does it, small
layers together.
"""

from dataclasses import dataclass

from cupy_lstm.cost import MICROSECOND, floor_us
from cupy_lstm.device import DeviceFacts
from cupy_lstm.distributed.gradients import BUCKET_BYTES
from cupy_lstm.notation import Shape

GRADIENT_BYTES = 4
"""Of an element: gradients are float32, for half types, too."""

ADAM_ARRAYS = 7
"""Weight, gradient and two averages are read, and all but the gradient are written."""


@dataclass(frozen=True)
class Network:
    """What is trained.

    Attributes
    ----------
    T, H, L : int
        Steps, features of the input and of every layer, layers.
    dtype : str
        Of weights and inputs.
    """

    T: int
    H: int
    L: int
    dtype: str

    @property
    def layer_bytes(self) -> int:
        """Bytes of the gradients of a layer."""
        return GRADIENT_BYTES * (4 * self.H * 2 * self.H + 8 * self.H)


@dataclass(frozen=True)
class Step:
    """Seconds of a step on one of N cards.

    Attributes
    ----------
    forward, backward, update : float
        Of all layers.
    sums : float
        Of all layers, one after another, hidden or not.
    waited : float
        What of the sums nothing hides.
    """

    forward: float
    backward: float
    update: float
    sums: float
    waited: float

    @property
    def total(self) -> float:
        """Seconds of the step."""
        return self.forward + self.backward + self.waited + self.update


def ring_seconds(size: float, cards: int, bandwidth: float, latency: float) -> float:
    """Return how long a ring all-reduce of `size` bytes takes."""
    return 2 * (cards - 1) * (latency + size / (cards * bandwidth))


def step_seconds(
    network: Network,
    card: DeviceFacts,
    rows: int,
    cards: int,
    bandwidth: float,
    latency: float,
    overlap: bool = True,
) -> Step:
    """Return the seconds of a step.

    Parameters
    ----------
    network : Network
        What is trained.
    card : DeviceFacts
        Each of the cards.
    rows : int
        Rows that each of them computes.
    cards : int
        N.
    bandwidth : float
        Bytes a second from a card to the next.
    latency : float
        Seconds of a hop.
    overlap : bool
        Whether sums run while layers below are in backward.
    """
    forward, backward = (
        network.T * (floor_us(_shape(network, rows), network.dtype, card, True, back) or 0.0)
        * MICROSECOND
        for back in (False, True)
    )  # fmt: skip
    computed, free, waiting, sums = 0.0, 0.0, 0, 0.0
    for layer in range(network.L):
        computed += backward
        waiting += network.layer_bytes
        if waiting >= BUCKET_BYTES or layer == network.L - 1:
            seconds = ring_seconds(waiting, cards, bandwidth, latency)
            free = max(free, computed if overlap else network.L * backward) + seconds
            sums, waiting = sums + seconds, 0
    moved = ADAM_ARRAYS * network.L * network.layer_bytes
    update = moved / card.memory_bandwidth
    waited = max(0.0, free - computed)
    return Step(network.L * forward, network.L * backward, update, sums, waited)


def _shape(network: Network, rows: int) -> Shape:
    return Shape(network.T, rows, network.H, network.H, network.H, 1)
