"""What engines make of the weights before they use them, kept from one inference call to the next.

An engine may have ``prepare(weights)``, whose result its `forward` takes in place of the weights;
the engine simd packs them so. That is worth keeping only as long as it is certainly what the
engine would make again.
"""

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, NamedTuple

from cupy_lstm.buffer import Buffer
from cupy_lstm.notation import LayerWeights

Stamp = tuple[tuple[int, int], ...]
"""Version and loans of each buffer: what has happened to the weights so far."""


class _Kept(NamedTuple):
    """What was made of the weights, by engine, since the buffers have had this stamp."""

    stamp: Stamp
    made: dict[str, Any]


_NOTHING = _Kept((), {})


class PreparedWeights:
    """The weights of a layer as engines have prepared them.

    Nothing is kept from a moment at which others could write the weights; from then on a change
    through a `Parameter`, and a loan of the weights, changes the stamp. Threads may share it: two
    at once may prepare the same. Copies and pickles begin with nothing.

    Parameters
    ----------
    buffers : sequence of Buffer
        The weights of the layer.
    """

    def __init__(self, buffers: Sequence[Buffer]) -> None:
        self._buffers = buffers
        self._kept = _NOTHING

    def of(self, engine: ModuleType, arrays: Callable[[], LayerWeights]) -> Any:
        """Return what an engine's `forward` takes for the weights; `arrays` returns them."""
        prepare = getattr(engine, "prepare", None)
        if prepare is None:
            return arrays()
        # The stamp comes first: whatever happens to the weights from here on changes it.
        stamp, kept = self._stamp(), self._kept
        if kept.stamp != stamp:
            self._kept = _NOTHING
            if any(buffer.is_lent() for buffer in self._buffers):
                return arrays()
            kept = self._kept = _Kept(stamp, {})
        name = engine.__name__
        if name not in kept.made:
            kept.made[name] = prepare(arrays())
        return kept.made[name]

    def drop_stale(self) -> None:
        """Free what is kept unless it is still good."""
        if self._kept is not _NOTHING and self._kept.stamp != self._stamp():
            self.drop()

    def drop(self) -> None:
        """Free what is kept."""
        self._kept = _NOTHING

    def _stamp(self) -> Stamp:
        return tuple([(buffer.version, buffer.loans) for buffer in self._buffers])

    def __reduce__(self) -> tuple[Any, ...]:
        return PreparedWeights, (self._buffers,)
