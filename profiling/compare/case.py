"""An LSTM to be timed, with input and weights that every process draws alike."""

from dataclasses import dataclass

import numpy as np

SEED = 0


@dataclass(frozen=True)
class Case:
    """An LSTM and its input, the same in every process.

    Attributes
    ----------
    T, B, I, H, L, D : int
        Steps, batch, input size, hidden size, layers, directions.
    lengths : bool
        Whether each row has a length of its own, uniform in 1..T.
    time_major : bool
        Whether the input is [T,B,I] or [B,T,I].
    dtype : str
        Of weights, input and states.
    """

    T: int
    B: int
    I: int  # noqa: E741
    H: int
    L: int = 1
    D: int = 1
    lengths: bool = False
    time_major: bool = True
    dtype: str = "float32"

    @property
    def name(self) -> str:
        """Sizes, and what is unusual about it."""
        notes = {
            f"{self.L} layers": self.L > 1,
            "bidirectional": self.D > 1,
            "lengths": self.lengths,
            "batch-major": not self.time_major,
            self.dtype: self.dtype != "float32",
        }
        sizes = f"T{self.T} B{self.B} I{self.I} H{self.H}"
        return ", ".join([sizes, *(note for note, holds in notes.items() if holds)])

    @property
    def direction(self) -> str:
        """The direction by the name that all share."""
        return "forward" if self.D == 1 else "bidirectional"

    @property
    def features(self) -> list[int]:
        """Input size of each layer."""
        return [self.I] + [self.D * self.H] * (self.L - 1)

    @property
    def suffixes(self) -> list[list[str]]:
        """Ends of the names of the weights of each layer and direction."""
        return [[f"_l{k}", f"_l{k}_reverse"][: self.D] for k in range(self.L)]

    def draw_lengths(self) -> np.ndarray | None:
        """Return the valid steps of each row, or None where all are valid."""
        generator = np.random.default_rng(SEED)
        return generator.integers(1, self.T + 1, self.B) if self.lengths else None

    def draw_arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the input x and the gradient dy of the output."""
        generator = np.random.default_rng(SEED + 1)
        axes = (self.T, self.B) if self.time_major else (self.B, self.T)
        x, dy = (
            generator.standard_normal((*axes, size), self.dtype)
            for size in (self.I, self.D * self.H)
        )
        return x, dy

    def draw_weights(self) -> dict[str, np.ndarray]:
        """Return the weights by the names that this package, PyTorch and Paddle share."""
        generator = np.random.default_rng(SEED + 2)
        bound = self.H**-0.5
        return {
            kind + suffix: generator.uniform(-bound, bound, shape).astype(self.dtype)
            for features, suffixes in zip(self.features, self.suffixes, strict=True)
            for suffix in suffixes
            for kind, shape in {
                "weight_ih": (4 * self.H, features),
                "weight_hh": (4 * self.H, self.H),
                "bias_ih": 4 * self.H,
                "bias_hh": 4 * self.H,
            }.items()
        }

    def draw_cell_weights(self) -> dict[str, np.ndarray]:
        """Return the weights of the only layer by the names that cells have."""
        return {name.removesuffix("_l0"): w for name, w in self.draw_weights().items()}

    def flops(self, mode: str) -> float:
        """Return the arithmetic of the matrix products in the valid steps.

        Multiplications and additions, 8 * H * (I + H) a row, step, direction and layer; three
        times that with the backward pass, which has two more products for each.
        """
        lengths = self.draw_lengths()
        rows = self.T * self.B if lengths is None else int(lengths.sum())
        forward = sum(8 * rows * self.D * self.H * (size + self.H) for size in self.features)
        return forward * (3 if mode == "training" else 1)
