"""The points of a study: a base, and for each size the points that differ from it in that alone."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cupy_lstm.device import DeviceFacts
from cupy_lstm.notation import Shape
from cupy_lstm.plan import SERVES, Plan, plan_sweep, why_not

PASSES = ("inference", "training")

BASE = {"T": 64, "B": 8, "H": 64, "L": 1, "dtype": "float32"}

SWEEPS: dict[str, tuple[Any, ...]] = {
    "T": (16, 32, 64, 128, 256),
    "B": (1, 2, 8, 32),
    "H": (16, 32, 64, 128, 256),
    "L": (1, 2, 4),
}

DTYPES = {"numpy": ("float32", "float64"), "cupy": ("float32", "float16")}


@dataclass(frozen=True)
class Point:
    """One LSTM, input size H, and what is done with it.

    Attributes
    ----------
    passes : {"inference", "training"}
        Forward without a tape, or forward and backward.
    """

    T: int
    B: int
    H: int
    L: int
    dtype: str
    module: str
    engine: str
    passes: str

    @property
    def training(self) -> bool:
        """Whether there is a backward pass."""
        return self.passes == "training"

    @property
    def shapes(self) -> list[Shape]:
        """Sizes of each layer."""
        return [Shape(self.T, self.B, self.H, self.H, self.H, 1)] * self.L

    def plans(self, device: DeviceFacts | None) -> list[Plan]:
        """Return the plan of each layer.

        Raises
        ------
        ValueError
            If the engine cannot serve it.
        """
        sizes = self.dtype, self.module, self.training, self.engine, device
        return [plan_sweep(shape, *sizes) for shape in self.shapes]

    def varies(self, name: str, base: Mapping[str, Any]) -> bool:
        """Say whether it is the base but for one size."""
        return all(getattr(self, key) == value for key, value in base.items() if key != name)


def engines_of(module: str) -> list[str]:
    """Return the engines that run whole sequences on arrays of a module, here."""
    return [
        name
        for name, modules in SERVES.items()
        if module in modules and name != "single" and not why_not(name, module)
    ]


def points(
    base: Mapping[str, Any],
    sweeps: Mapping[str, Sequence[Any]],
    module: str,
    engines: Sequence[str],
    device: DeviceFacts | None,
) -> tuple[list[Point], list[str]]:
    """Return the points, each once, and why others are left out."""
    found: dict[Point, None] = {}
    left_out: dict[str, None] = {}
    for point in _all(base, sweeps, module, engines):
        try:
            point.plans(device)
        except ValueError as error:
            left_out[f"H = {point.H}, {point.dtype}, {point.passes}: {error}"] = None
        else:
            found[point] = None
    return list(found), list(left_out)


def _all(
    base: Mapping[str, Any],
    sweeps: Mapping[str, Sequence[Any]],
    module: str,
    engines: Sequence[str],
) -> Iterator[Point]:
    for passes in PASSES:
        for engine in engines:
            centre = Point(**base, module=module, engine=engine, passes=passes)
            yield centre
            for name, values in sweeps.items():
                for value in values:
                    yield replace(centre, **{name: value})
