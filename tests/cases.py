"""One table of cases, one builder and one error rule for every engine and dtype.

`CASES` covers each feature of the LSTM alone and in combination; `build` turns a case into seeded
arrays; `reference` and `naive` are the oracle's results for them, `run_face` those of the package;
`assert_within_rule` is the only tolerance the engines are held to.
"""

import zlib
from dataclasses import dataclass
from functools import cache

import numpy as np
from oracle import Result, dropout_mask, lstm_oracle

from cupy_lstm import LSTM, plan
from cupy_lstm.notation import Shape

UPSTREAM = ("y", "h", "c")

HOST_ENGINES = tuple(name for name, modules in plan.SERVES.items() if "numpy" in modules)


@dataclass(frozen=True)
class Case:
    """Configuration of one case; the fields are LSTM's arguments and what the call is given."""

    id: str
    T: int = 5
    B: int = 3
    I: int = 4  # noqa: E741
    H: int = 6
    L: int = 1
    P: int = 0  # proj_size, 0 for none
    bidirectional: bool = False
    time_major: bool = False
    bias_ih: bool = True
    bias_hh: bool = True
    states: bool = False
    lengths: tuple[int, ...] | None = None
    dropout: float = 0.0
    upstream: tuple[str, ...] = UPSTREAM  # "cells" among them asks for return_cells
    frozen: tuple[str, ...] = ()  # names of parameters
    scale: float = 1.0  # of the inputs, the states and the weights, to saturate the gates
    seed: int = 0

    @property
    def D(self) -> int:  # noqa: N802
        return 1 + self.bidirectional

    @property
    def return_cells(self) -> bool:
        return "cells" in self.upstream

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every parameter by name, in Paddle's order."""
        shapes: dict[str, tuple[int, ...]] = {}
        P = self.P or self.H
        for layer in range(self.L):
            for suffix in ("", "_reverse")[: self.D]:
                end = f"_l{layer}{suffix}"
                shapes["weight_ih" + end] = (4 * self.H, self.D * P if layer else self.I)
                shapes["weight_hh" + end] = (4 * self.H, P)
                if self.bias_ih:
                    shapes["bias_ih" + end] = (4 * self.H,)
                if self.bias_hh:
                    shapes["bias_hh" + end] = (4 * self.H,)
                if self.P:
                    shapes["weight_ho" + end] = (self.H, P)
        return shapes

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every other array of the call."""
        P = self.P or self.H
        steps = (self.T, self.B) if self.time_major else (self.B, self.T)
        return {
            "x": (*steps, self.I),
            "y": (*steps, self.D * P),
            "cells": (*steps, self.D * self.H),
            "h": (self.L * self.D, self.B, P),
            "c": (self.L * self.D, self.B, self.H),
        }


@dataclass(frozen=True)
class Arrays:
    """What a call of the case is given, in the dtype under test."""

    x: np.ndarray
    states: tuple[np.ndarray, np.ndarray] | None
    lengths: np.ndarray | None
    weights: dict[str, np.ndarray]
    upstream: dict[str, np.ndarray]


_BI2 = {"bidirectional": True, "L": 2, "states": True}
_MIXED = (3, 5, 0)

CASES = [
    Case("plain"),
    Case("plain-states", states=True),
    Case("plain-time-major", time_major=True, states=True),
    # Sizes: one, odd, a prime, powers of two and one beyond. In a few numbers a naive loop's error
    # may be next to nothing by luck, and the rule measures against it: where a size is one, the
    # seed (of 40) is that with the largest smallest error of the naive loop.
    Case("all-ones", T=1, B=1, I=1, H=1, seed=11),
    Case("all-ones-bidirectional", T=1, B=1, I=1, H=1, bidirectional=True, states=True, seed=30),
    Case("h1", H=1, states=True, seed=16),
    Case("h1-2-layers-bidirectional", H=1, I=1, **_BI2, seed=19),
    Case("i1", I=1),
    Case("b1", B=1, T=12, H=7),
    Case("b1-bidirectional", B=1, T=12, H=7, bidirectional=True, states=True),
    Case("t1", T=1, **_BI2),
    Case("t2-bidirectional", T=2, bidirectional=True, states=True),
    Case("h17", H=17, I=13, T=7, states=True),
    Case("h17-bidirectional-time-major", H=17, I=13, time_major=True, **_BI2),
    Case("h31-b9", H=31, I=5, B=9, T=4, states=True),
    Case("h32-b8", H=32, I=16, B=8, T=6, states=True),
    Case("h33-b17", H=33, I=9, B=17, T=3, lengths=(3, 0, 1, 2) * 4 + (3,), states=True),
    Case("h64-b4-2-layers", H=64, I=32, B=4, T=5, L=2),
    Case("h130", H=130, I=9, B=2, T=3, states=True),
    Case("h256", H=256, I=40, B=4, T=4, states=True),
    Case("i-much-wider-than-h", I=96, H=16, B=5, states=True),
    Case("h-much-wider-than-i", I=2, H=80, states=True, bidirectional=True),
    Case("long", T=150, B=2, states=True),
    Case("long-bidirectional-lengths", T=101, B=3, lengths=(101, 37, 1), **_BI2),
    # Layers and directions.
    Case("2-layers", L=2, states=True),
    Case("3-layers", L=3),
    Case("3-layers-time-major-lengths", L=3, time_major=True, lengths=_MIXED, states=True),
    Case("bidirectional", bidirectional=True),
    Case("bidirectional-time-major", bidirectional=True, time_major=True, states=True),
    Case("2-layers-bidirectional", **_BI2),
    Case("3-layers-bidirectional", bidirectional=True, L=3, time_major=True, states=True),
    # Lengths: mixed with 0 and T, all short, all zero, all full.
    Case("lengths-mixed", lengths=_MIXED),
    Case("lengths-mixed-states", lengths=_MIXED, states=True),
    Case("lengths-ascending-time-major", lengths=(0, 2, 5), time_major=True, states=True),
    Case("lengths-short", lengths=(2, 4, 1), states=True),
    Case("lengths-short-bidirectional", lengths=(2, 4, 1), bidirectional=True, states=True),
    Case("lengths-short-no-states", lengths=(2, 4, 1), bidirectional=True, L=2),
    Case("lengths-zero", lengths=(0, 0, 0), **_BI2),
    Case("lengths-zero-no-states", lengths=(0, 0, 0)),
    Case("lengths-full", lengths=(5, 5, 5), states=True),
    Case("lengths-one", lengths=(1, 1, 1), **_BI2),
    Case("lengths-mixed-2-layers-bidirectional", lengths=_MIXED, **_BI2),
    Case("lengths-mixed-time-major-bidirectional", lengths=_MIXED, time_major=True, **_BI2),
    # Projection.
    Case("projection", P=3, states=True),
    Case("projection-one", P=1, seed=16),
    Case("projection-h-minus-1", P=5, bidirectional=True),
    Case("projection-2-layers", P=3, L=2, time_major=True),
    Case("projection-bidirectional-lengths", P=2, lengths=_MIXED, **_BI2),
    Case("projection-h17-cells", P=7, H=17, lengths=_MIXED, upstream=("y", "h", "c", "cells")),
    Case("projection-no-bias", P=2, bias_ih=False, bias_hh=False, bidirectional=True),
    # Biases.
    Case("no-bias", bias_ih=False, bias_hh=False, states=True),
    Case("no-bias-ih", bias_ih=False, lengths=_MIXED, **_BI2),
    Case("no-bias-hh", bias_hh=False, time_major=True, **_BI2),
    Case("no-bias-lengths", bias_ih=False, bias_hh=False, lengths=_MIXED, **_BI2),
    # Frozen parameters.
    Case("frozen-weight-ih", frozen=("weight_ih_l0",), states=True),
    Case("frozen-weight-hh", frozen=("weight_hh_l0",), L=2, lengths=_MIXED),
    Case("frozen-biases", frozen=("bias_ih_l0", "bias_hh_l0"), states=True),
    Case("frozen-bias-hh", frozen=("bias_hh_l0", "bias_hh_l1_reverse"), **_BI2),
    Case("frozen-reverse", frozen=("weight_hh_l0_reverse", "weight_ih_l1_reverse"), **_BI2),
    Case("frozen-projection", frozen=("weight_ho_l0",), P=3, L=2),
    Case("frozen-first-layer", frozen=tuple(Case("", L=1).weight_shapes()), L=2, states=True),
    Case("frozen-all", frozen=tuple(Case("", L=2).weight_shapes()), L=2, states=True),
    # Nothing to do.
    Case("t0", T=0, **_BI2),
    Case("t0-no-states-time-major", T=0, time_major=True),
    Case("t0-lengths-projection", T=0, lengths=(0, 0, 0), P=2, states=True),
    Case("b0", B=0, **_BI2),
    Case("b0-lengths-time-major", B=0, lengths=(), time_major=True, states=True),
    Case("t0-b0", T=0, B=0),
    # Cells of all steps, and subsets of the upstream gradient.
    Case("cells", upstream=("y", "h", "c", "cells"), states=True),
    Case("cells-time-major-lengths", upstream=("y", "cells"), time_major=True, lengths=_MIXED),
    Case("cells-bidirectional", upstream=("y", "h", "c", "cells"), lengths=_MIXED, **_BI2),
    Case("cells-t0", upstream=("cells",), T=0),
    Case("only-y", upstream=("y",), **_BI2),
    Case("only-h", upstream=("h",), **_BI2),
    Case("only-c", upstream=("c",), lengths=_MIXED, **_BI2),
    Case("only-cells", upstream=("cells",), lengths=_MIXED, **_BI2),
    Case("only-states", upstream=("h", "c"), L=2, states=True),
    # Dropout between the layers, in training.
    Case("dropout", dropout=0.3, L=2, states=True),
    Case("dropout-3-layers-bidirectional", dropout=0.5, L=3, bidirectional=True, H=9),
    Case("dropout-time-major-lengths", dropout=0.25, time_major=True, lengths=_MIXED, **_BI2),
    Case("dropout-projection", dropout=0.75, P=3, B=8, T=8, L=2),
    Case("dropout-one", dropout=1.0, **_BI2),
    # Saturated gates.
    Case("saturated", scale=3.0, B=24, T=8, states=True),
    Case("saturated-bidirectional-lengths", scale=3.0, B=24, lengths=_MIXED * 8, **_BI2),
]
TINY = [
    Case("tiny", T=3, B=2, I=2, H=2, states=True, upstream=("y", "h", "c", "cells")),
    Case("tiny-no-states", T=3, B=2, I=2, H=2, L=2, time_major=True),
    Case(
        "tiny-bidirectional-lengths",
        T=3,
        B=3,
        I=2,
        H=2,
        lengths=(2, 0, 3),
        upstream=("y", "h", "c", "cells"),
        **_BI2,
    ),
    Case(
        "tiny-projection",
        T=3,
        B=2,
        I=2,
        H=3,
        P=2,
        lengths=(3, 2),
        upstream=("y", "h", "c", "cells"),
        **_BI2,
    ),
    Case("tiny-no-bias", T=3, B=1, I=1, H=2, bias_ih=False, bias_hh=False, states=True),
]
"""Cases small enough for central differences in every element of every input."""


def build(case: Case, dtype: str) -> Arrays:
    """Arrays of a case: the same numbers for every dtype, up to rounding to it."""
    rng = np.random.default_rng([zlib.crc32(case.id.encode()), case.seed])
    shapes = case.shapes()

    def normal(shape):
        return (case.scale * rng.standard_normal(shape)).astype(dtype)

    def uniform(shape):
        bound = case.scale / np.sqrt(case.H)
        return rng.uniform(-bound, bound, shape).astype(dtype)

    return Arrays(
        x=normal(shapes["x"]),
        states=(normal(shapes["h"]), normal(shapes["c"])) if case.states else None,
        lengths=None if case.lengths is None else np.array(case.lengths, np.int64),
        weights={name: uniform(shape) for name, shape in case.weight_shapes().items()},
        upstream={name: rng.standard_normal(shapes[name]).astype(dtype) for name in case.upstream},
    )


DROPOUT_KEY = {"seed": 2**63 + 5, "call": 3}


def dropout_masks(case: Case) -> list[np.ndarray] | None:
    """Masks of the case's dropout, laid out as y."""
    if not case.dropout:
        return None
    features = case.D * (case.P or case.H)
    masks = [
        dropout_mask(case.T, case.B, features, layer=layer, probability=case.dropout, **DROPOUT_KEY)
        for layer in range(1, case.L)
    ]
    return masks if case.time_major else [mask.swapaxes(0, 1) for mask in masks]


def run_oracle(case: Case, arrays: Arrays, dtype) -> Result:
    """Run the oracle on the arrays of a case, in the arithmetic of `dtype`."""
    return lstm_oracle(
        arrays.x,
        arrays.weights,
        bidirectional=case.bidirectional,
        time_major=case.time_major,
        states=arrays.states,
        lengths=arrays.lengths,
        masks=dropout_masks(case),
        upstream=arrays.upstream,
        dtype=dtype,
    )


def wider(dtype: str):
    """Precision of the reference: float64, and for float64 itself the extended long double."""
    return np.longdouble if np.dtype(dtype) == np.float64 else np.float64


@cache
def reference(case: Case, dtype: str) -> Result:
    """Truth for `case`, in a precision beyond `dtype`."""
    return run_oracle(case, build(case, dtype), wider(dtype))


@cache
def naive(case: Case, dtype: str) -> Result:
    """The naive loop of the same dtype, whose rounding error is the measure of an engine's."""
    return run_oracle(case, build(case, dtype), np.dtype(dtype))


def assert_within_rule(name: str, actual, reference, naive) -> None:
    """Fail unless `actual` is as accurate as a naive loop of its dtype, up to a factor of two.

    The rule: max|actual - reference| <= 2 max|naive - reference| + 4 eps max|reference|.
    """
    assert actual.shape == reference.shape, f"{name}: {actual.shape} is not {reference.shape}"
    assert actual.dtype == naive.dtype, f"{name}: {actual.dtype} is not {naive.dtype}"
    if actual.size == 0:
        return
    allowed = 2 * abs(naive - reference).max()
    allowed += 4 * np.finfo(actual.dtype).eps * abs(reference).max()
    error = abs(actual - reference).max()
    assert error <= allowed, f"{name}: error {error:.3g}, the rule allows {allowed:.3g}"  # not NaN


def make_lstm(case: Case, weights: dict[str, np.ndarray], dtype: str, **options) -> LSTM:
    """Build the LSTM of a case through the public face, with these weights."""
    lstm = LSTM(
        case.I,
        case.H,
        case.L,
        "bidirect" if case.bidirectional else "forward",
        case.time_major,
        case.dropout,
        bias_ih_attr=None if case.bias_ih else False,
        bias_hh_attr=None if case.bias_hh else False,
        proj_size=case.P,
        dtype=dtype,
        **options,
    )
    assert lstm.set_state_dict(weights) == ([], [])
    lstm.dropout_seed, lstm.dropout_calls = DROPOUT_KEY["seed"], DROPOUT_KEY["call"]
    for name in case.frozen:
        getattr(lstm, name).trainable = False
    return lstm


def forward(lstm: LSTM, case: Case, arrays: Arrays) -> Result:
    """Call the LSTM as the case wants it called."""
    outputs = lstm(
        arrays.x,
        arrays.states,
        sequence_length=arrays.lengths,
        **({"return_cells": True} if case.return_cells else {}),
    )
    y, (h, c), *cells = outputs
    return Result(y, h, c, *(cells or [None]))


def backward(lstm: LSTM, case: Case, arrays: Arrays, result: Result) -> Result:
    """Send the case's upstream gradient back and add the gradients to `result`."""
    up = arrays.upstream
    dstates = (up.get("h"), up.get("c")) if "h" in up or "c" in up else None
    result.dx, (result.dh0, result.dc0) = lstm.backward(
        up.get("y"), dstates, **({"dcells": up["cells"]} if case.return_cells else {})
    )
    result.grads = {name: p.grad for name, p in lstm.named_parameters() if p.grad is not None}
    return result


def run_face(case: Case, arrays: Arrays, dtype: str) -> Result:
    """Forward and backward of a case through the public face."""
    lstm = make_lstm(case, arrays.weights, dtype)
    return backward(lstm, case, arrays, forward(lstm, case, arrays))


def assert_case(case: Case, dtype: str, result: Result) -> None:
    """Fail unless every array of `result` keeps the error rule and nothing is missing."""
    trained = [name for name in case.weight_shapes() if name not in case.frozen]
    assert list(result.grads) == trained
    truth, yardstick = results(reference(case, dtype)), results(naive(case, dtype))
    for name, actual in results(result).items():
        assert_within_rule(name, actual, truth[name], yardstick[name])


def aim_at_steps(monkeypatch, name: str, shape: Shape, steps: int, itemsize: int = 4) -> None:
    """Let the chunks of an engine have so many steps of a training call of this shape."""
    if name == "simd":
        step = plan.simd_step_bytes(shape, itemsize, True)
        monkeypatch.setattr(plan, "SIMD_CHUNK_BYTES", steps * step)
        monkeypatch.setattr(plan, "SIMD_FAR_BYTES", 2**62)
    else:
        step = plan.step_bytes(shape, itemsize, True)
        monkeypatch.setitem(plan.CHUNK_BYTES, "numpy", steps * step)
    plan.remembered_plan.cache_clear()


def results(result: Result) -> dict[str, np.ndarray]:
    """Name every array of a result."""
    names = ("y", "h", "c", "cells", "dx", "dh0", "dc0")
    named = {name: getattr(result, name) for name in names if getattr(result, name) is not None}
    return named | {f"d{name}": grad for name, grad in result.grads.items()}
