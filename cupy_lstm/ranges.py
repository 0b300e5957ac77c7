"""Ranges for profilers: a call as its stages, in the NVTX domain ``cupy_lstm``.

NVIDIA's tools, Nsight Systems among them, show what lies between a push and a pop as a named range
on the timeline of its thread. `STAGES` has the names, `with stage("recurrence", shape):` is one.
The package ``nvtx`` (``pip install 'cupy_lstm[nvtx]'``) is touched by this module alone, which
imports it when the first stage is reached. Without it, or where no tool is attached to the process,
a stage is one call and an empty ``with``; `profiling/range_cost.py` measures what that costs.

Ranges nest, and are closed whatever happens inside them. What an engine does is shown inside a
layer only, so a stream, which calls engines directly, has none. There is no range for a direction:
every engine does both at once, in one GEMM, one launch or one loop over the steps.

CUPY_LSTM_RANGES=detail asks for more, at a price: a range for every step that Python loops over,
and the stages of the engine simd one by one, which it otherwise runs in one go.
"""

import os
import threading
import warnings
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

import numpy

from cupy_lstm.notation import Shape

Item = TypeVar("Item")

DOMAIN = "cupy_lstm"
SWITCH = "CUPY_LSTM_RANGES"
DETAIL = "detail"

RANGES_KEPT = 1024
"""Ranges of different stages and shapes whose attributes are kept from call to call."""

PAYLOAD = numpy.dtype([(field, "int64") for field in (*Shape._fields, "bytes")])
"""The sizes of the notation, and the bytes of an element; zeros where they are not given."""


class Stage(NamedTuple):
    """How the ranges of a stage look.

    Attributes
    ----------
    category : str
        NVTX category.
    colour : int
        0xRRGGBB; from the palette of Okabe and Ito.
    inner : bool
        Whether it is part of a layer, and shown nowhere else.
    """

    category: str
    colour: int
    inner: bool = False


STAGES = {
    "forward": Stage("pass", 0x0072B2),  # with a tape
    "inference": Stage("pass", 0x0072B2),  # the same without
    "backward": Stage("pass", 0xD55E00),
    "layer": Stage("layer", 0x999999),
    "input projection": Stage("GEMM", 0x56B4E9, inner=True),
    "recurrence": Stage("recurrence", 0x009E73, inner=True),
    "step": Stage("step", 0xB2DFD0, inner=True),
    "recomputation": Stage("GEMM", 0xB07AA1, inner=True),
    "input gradient": Stage("GEMM", 0xE69F00, inner=True),
    "weight gradients": Stage("GEMM", 0xF0E442, inner=True),
    # Both at once, and what the engine simd does beside: all of a pass in one go, or in parts.
    "sweep": Stage("recurrence", 0x009E73, inner=True),
    "packing": Stage("packing", 0x8DA0CB, inner=True),
    "gradients": Stage("GEMM", 0xEBC23A, inner=True),
    "dropout": Stage("dropout", 0xCC79A7),
    "gradient sums": Stage("communication", 0xAA4499),  # the wait for them, over processes
    "optimizer step": Stage("optimizer", 0x882255),
    "data loading": Stage("data", 0x44AA99),
}
"""The stages by name; those of an engine are documented where it is."""


class _Nothing:
    """A range that nobody sees."""

    __slots__ = ()

    def __enter__(self) -> None:
        return None

    # Each name, not *exception: that would cost half as much again.
    def __exit__(self, kind: object, value: object, traceback: object) -> None:
        return None


class _Range:
    """A range with attributes that are registered with the tool; any number may be open."""

    __slots__ = ("_attributes", "_layers", "_tool")

    def __init__(self, tool: "_Tool", attributes: Any, layers: int) -> None:
        self._tool, self._attributes, self._layers = tool, attributes, layers

    def __enter__(self) -> None:
        self._tool.domain.push_range(self._attributes)
        self._tool.here.layers = self._tool.layers() + self._layers

    def __exit__(self, *exception: object) -> None:
        self._tool.here.layers -= self._layers
        self._tool.domain.pop_range()


class _Tool:
    """The tool that listens to our domain.

    Attributes
    ----------
    detailed : bool
        Whether the finest ranges are wanted.
    here : threading.local
        Its `layers`: how many layers are open in a thread.
    """

    def __init__(self, domain: Any, detailed: bool) -> None:
        self.domain, self.detailed = domain, detailed
        self.here = threading.local()
        self.range = lru_cache(RANGES_KEPT)(self._registered)

    def layers(self) -> int:
        """Return how many layers are open in this thread."""
        return getattr(self.here, "layers", 0)

    def _registered(self, name: str, shape: Shape | None, dtype: Any, number: int | None) -> _Range:
        kind = STAGES[name]
        payload = None
        if shape is not None:
            size = 0 if dtype is None else numpy.dtype(dtype).itemsize
            payload = numpy.array((*shape, size), PAYLOAD)
        attributes = self.domain.get_event_attributes(
            message=name if number is None else f"{name} {number}",
            color=0xFF000000 | kind.colour,
            category=kind.category,
            payload=payload,
        )
        return _Range(self, attributes, int(name == "layer"))


_NOTHING = _Nothing()
_NOT_ASKED = _Tool(None, detailed=False)
_tool: _Tool | None = _NOT_ASKED


def stage(
    name: str, shape: Shape | None = None, dtype: Any = None, number: int | None = None
) -> AbstractContextManager[None]:
    """Return a range to put around a stage.

    Parameters
    ----------
    name : str
        One of `STAGES`.
    shape : Shape, optional
        Sizes of the layer, for the payload.
    dtype : dtype, optional
        Of the layer, the same.
    number : int, optional
        Which of several, put behind the name.
    """
    # Called several times for every call of an LSTM: nearly always this is all that happens.
    if _tool is None:
        return _NOTHING
    tool = _found_tool()
    if tool is None or (STAGES[name].inner and not tool.layers()):
        return _NOTHING
    return tool.range(name, shape, dtype, number)


def detailed() -> bool:
    """Say whether the finest ranges are wanted here: on request, inside a layer."""
    if _tool is None:
        return False
    tool = _found_tool()
    return tool is not None and tool.detailed and tool.layers() > 0


def each_step(steps: Iterable[Item]) -> Iterable[Item]:
    """Return steps to loop over, with a range around the loop's body where that is wanted."""
    return steps if _tool is None or not detailed() else _inside_ranges(steps)


def _inside_ranges(steps: Iterable[Item]) -> Iterator[Item]:
    # An exception in the loop's body does not reach a generator. But the loop gives up its only
    # reference to it as it is left, which closes it, and the range with it.
    for step in steps:
        with stage("step"):
            yield step


def each_load(batches: Iterable[Item]) -> Iterable[Item]:
    """Return batches to loop over, with a range around the making of each."""
    return batches if _tool is None or _found_tool() is None else _loaded_inside_ranges(batches)


def _loaded_inside_ranges(batches: Iterable[Item]) -> Iterator[Item]:
    iterator, end = iter(batches), object()
    while True:
        with stage("data loading"):
            batch: Any = next(iterator, end)
        if batch is end:
            return
        yield batch


def _found_tool() -> _Tool | None:
    """Return the tool, None if there is none; looked for once."""
    global _tool
    if _tool is _NOT_ASKED:
        domain = _listened_domain()
        wish = os.environ.get(SWITCH, "")
        _tool = None if domain is None else _Tool(domain, detailed=wish == DETAIL)
        if domain is not None and wish not in ("", DETAIL):
            warnings.warn(
                f"{SWITCH} must be {DETAIL!r} or empty, received {wish!r}: the finest ranges are "
                "left out",
                RuntimeWarning,
                stacklevel=2,
            )
    return _tool


def _listened_domain() -> Any:
    """Return our NVTX domain, None where nvtx is not installed or nobody listens."""
    try:
        import nvtx
    except ImportError as error:
        if not isinstance(error, ModuleNotFoundError) or error.name != "nvtx":
            _warn_of(f"importing nvtx fails ({error})")
        return None
    try:
        domain = nvtx.get_domain(DOMAIN) if nvtx.enabled() else None
        # With no tool attached this is another class, which does nothing.
        if not isinstance(domain, nvtx.Domain):
            return None
        domain.get_event_attributes(payload=numpy.zeros((), PAYLOAD))
    except (AttributeError, RuntimeError):
        _warn_of("the nvtx installed here is too old")
        return None
    return domain


def _warn_of(reason: str) -> None:
    warnings.warn(
        f"there are no ranges for profilers: {reason}; pip install -U 'cupy_lstm[nvtx]'",
        RuntimeWarning,
        stacklevel=2,
    )
