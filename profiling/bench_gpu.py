"""LSTMs on a GPU, measured: ``python profiling/bench_gpu.py``, on a machine that has one.

Ours, and that of PyTorch (cuDNN) where it is installed with CUDA, with the same weights and input.

How it is measured
------------------
First every tier of the engine persistent that the card has is checked on a small layer, whatever
the plan chooses. Then the calls to be timed are checked, outputs and all gradients, for some of
their rows, against this package in float64 on the host (`profiling/gpu/check.py` has the rule; with
large H and many steps the host takes longer than the GPU). What is wrong is not timed, and the exit
code is 1.

TF32 is the same for all: off, or with --tf32 on for CuPy and for PyTorch. Everything runs on the
default stream. `cupyx.profiler.benchmark` times whole calls between two events on the device, after
calls that are not timed (compilation among them); the median of the calls counts, over their steps.
*forward* is inference: `no_grad`, `inference_mode`. *both* is forward with a tape, and backward
with the gradients of all weights and of the input.

It writes `bench_gpu.csv`, and `bench_gpu.png`: the measured times in the picture of
`profiling/model.py` for this card.
"""

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from gpu.check import WEIGHTS, Check, layer, made_arrays
from gpu.rows import SIZES, STEPS, Row, predicted, table, write_csv
from gpu.tiers import TIERS, only

from cupy_lstm import engine, no_grad
from cupy_lstm.backend import HostArray
from cupy_lstm.device import DeviceFacts, current_device
from cupy_lstm.notation import Shape

CHECKED = 12, 9, 8, 40
"""T, B, I, H of the layer on which tiers are checked."""

PASSES = ("forward", "both")
OURS, TORCH = "cupy_lstm", "torch.nn.LSTM"
Calls = dict[str, Callable[[], object]]
Results = Callable[[HostArray], dict[str, HostArray]]
"""Outputs and gradients on the host, of a gradient of the outputs."""


def main(arguments: list[str] | None = None) -> int:
    options = parsed_options(arguments)
    # CuPy reads its switch when it multiplies for the first time.
    os.environ["CUPY_TF32"] = "1" if options.tf32 else "0"
    cupy = found_cupy()
    torch = found_torch(options.tf32)
    device = current_device()
    heading = described(cupy, torch, device, options.tf32)
    print(heading)
    rows, wrong = [], 0
    for sentence in wrong_tiers(cupy, options):
        print(f"WRONG: {sentence}")
        wrong += 1
    for dtype in options.dtype:
        for B in options.batch:
            for H in options.hidden:
                shape = Shape(options.steps, B, H, H, H, 1)
                for row in measured(cupy, torch, device, dtype, shape, options):
                    if isinstance(row, str):
                        print(f"WRONG, not timed: {dtype}, B = {B}, H = {H}, {row}")
                        wrong += 1
                    else:
                        print(line(row))
                        rows.append(row)
    if rows:
        options.out.mkdir(parents=True, exist_ok=True)
        write_csv(rows, options.out / "bench_gpu.csv")
        draw_measured(rows, device, options, heading)
    return 1 if wrong else 0


def parsed_options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--dtype", nargs="+", choices=("float32", "float16", "bfloat16"),
        default=["float32", "float16"])  # fmt: skip
    add("--batch", nargs="+", type=int, default=[4, 16, 64], help="rows B")
    add("--hidden", nargs="+", type=int, default=[*SIZES], help="H, and I")
    add("--steps", type=int, default=STEPS, help=f"T, default {STEPS}")
    add("--engines", nargs="+", default=["auto"], help="of ours, default the plan's choice")
    add("--repeats", type=int, default=30, help="calls that are timed, default 30")
    add("--seconds", type=float, default=2.0, help="at most, of each measurement, default 2")
    add("--tf32", action="store_true", help="round float32 operands of products, for all alike")
    add("--out", type=Path, default=Path(), metavar="DIR", help="of CSV and PNG, default here")
    return parser.parse_args(arguments)


def found_cupy() -> ModuleType:
    """Return CuPy, or end with a sentence where it finds no GPU."""
    remedy = "the model needs none: python profiling/model.py"
    try:
        import cupy

        count = cupy.cuda.runtime.getDeviceCount()
    except Exception as error:  # CuPy or the driver is missing, each in its own way
        reason = str(error).strip().splitlines()
        raise SystemExit(
            f"There is no GPU to measure ({reason[0] if reason else error!r}); {remedy}"
        ) from None
    if count == 0:
        raise SystemExit(f"There is no GPU to measure (the driver lists none); {remedy}")
    return cupy


def found_torch(tf32: bool) -> ModuleType | None:
    """Return PyTorch with its switches set, or None where it has no CUDA."""
    try:
        import torch
    except ImportError:
        return None
    if not torch.cuda.is_available():
        return None
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = tf32
    module: ModuleType = torch
    return module


def described(cupy: ModuleType, torch: ModuleType | None, device: DeviceFacts, tf32: bool) -> str:
    """Return the card, its driver, the libraries and the switches."""
    runtime = cupy.cuda.runtime
    words = [
        f"{device.name}, compute capability {device.compute_capability[0]}."
        f"{device.compute_capability[1]}, {device.multiprocessors} multiprocessors at "
        f"{device.clock_hz / 1e6:.0f} MHz",
        f"driver {runtime.driverGetVersion()}, CUDA {runtime.runtimeGetVersion()}",
        f"CuPy {cupy.__version__}",
    ]
    if torch is None:
        words.append("no PyTorch with CUDA beside it")
    else:
        words.append(f"PyTorch {torch.__version__}, cuDNN {torch.backends.cudnn.version()}")
    return ", ".join([*words, f"TF32 {'on' if tf32 else 'off'}"])


def wrong_tiers(cupy: ModuleType, options: argparse.Namespace) -> Iterator[str]:
    """Yield what is wrong with a tier of the engine persistent; say which ones there are."""
    for dtype in options.dtype:
        served = []
        for tier in TIERS:
            arrays = made_arrays(*CHECKED, dtype)
            check = Check(arrays, dtype, options.tf32)
            with only(tier), engine("persistent"):
                try:
                    _, results = ours(cupy, arrays, dtype)
                    problems = check.found_wrong(results(check.dy))
                except ValueError:  # the card does not have it
                    continue
            served.append(tier)
            if problems:
                yield f"{dtype}, {tier} tier: {'; '.join(problems)}"
        print(f"checked in {dtype}: {', '.join(served) or 'no'} tier")


def measured(
    cupy: ModuleType,
    torch: ModuleType | None,
    device: DeviceFacts,
    dtype: str,
    shape: Shape,
    options: argparse.Namespace,
) -> Iterator[Row | str]:
    """Yield a row for each engine, library and pass, or what is wrong with it."""
    arrays = made_arrays(shape.T, shape.B, shape.I, shape.H, dtype)
    check = Check(arrays, dtype, options.tf32)
    makers: list[tuple[str, str, Callable[[Any], tuple[Calls, Results]]]] = [
        (OURS if name == "auto" else f"{OURS}, {name}", name, lambda a: ours(cupy, a, dtype))
        for name in options.engines
    ]
    if torch is not None:
        makers.append((TORCH, "auto", lambda a: peer(torch, a, dtype)))
    for what, name, make in makers:
        with engine(name):
            try:
                calls, results = make(arrays)
                problems = check.found_wrong(results(check.dy))
                if problems:
                    yield f"{what}: {'; '.join(problems)}"
                    continue
                for passes in PASSES:
                    us = 1e6 * seconds(cupy, calls[passes], options) / shape.T
                    row = predicted(device, dtype, shape, passes)
                    ran = row.engine if name == "auto" else name
                    ran = "cuDNN" if what == TORCH else ran
                    tier = row.tier if ran == "persistent" else ""
                    yield replace(row, kind="measured", what=what, engine=ran, tier=tier, us=us)
            except ValueError as error:  # a forced engine that cannot serve the shape
                if name == "auto":
                    raise
                print(f"left out: {error}")


def ours(cupy: ModuleType, arrays: dict[str, HostArray], dtype: str) -> tuple[Calls, Results]:
    """Return the calls to time, and one that gives outputs and gradients on the host."""
    lstm = layer(arrays, dtype, "cupy")
    x, timed_dy = cupy.asarray(arrays["x"]), cupy.asarray(arrays["dy"])

    def forward() -> Any:
        with no_grad():
            return lstm(x)[0]

    def both(dy: Any = timed_dy) -> Any:
        y, _ = lstm(x)
        return y, lstm.backward(dy)[0]

    def results(dy: HostArray) -> dict[str, HostArray]:
        lean = forward()
        y, dx = both(cupy.asarray(dy))
        if not bool((lean == y).all()):
            raise SystemExit("inference and training differ in their outputs")
        gradients = {f"d{name}": getattr(lstm, f"{name}_l0").grad for name in WEIGHTS}
        return {name: a.get() for name, a in {"y": y, "dx": dx, **gradients}.items()}

    return {"forward": forward, "both": both}, results


def peer(
    torch: ModuleType, arrays: dict[str, HostArray], dtype: str, place: str = "cuda"
) -> tuple[Calls, Results]:
    """Return the same of PyTorch."""
    gates, inputs = arrays["weight_ih"].shape

    def moved(array: HostArray) -> Any:
        return torch.tensor(array.astype("float32"), device=place).to(getattr(torch, dtype))

    lstm = torch.nn.LSTM(inputs, gates // 4, device=place, dtype=getattr(torch, dtype))
    lstm.load_state_dict({f"{name}_l0": moved(arrays[name]) for name in WEIGHTS})
    x, timed_dy = moved(arrays["x"]).requires_grad_(), moved(arrays["dy"])

    def forward() -> Any:
        with torch.inference_mode():
            return lstm(x)[0]

    def both(dy: Any = timed_dy) -> Any:
        x.grad = None
        lstm.zero_grad(set_to_none=True)
        y, _ = lstm(x)
        y.backward(dy)
        return y

    def results(dy: HostArray) -> dict[str, HostArray]:
        tensors = {"y": both(moved(dy)).detach(), "dx": x.grad}
        tensors |= {f"d{name}": getattr(lstm, f"{name}_l0").grad for name in WEIGHTS}
        return {name: t.float().cpu().numpy() for name, t in tensors.items()}

    return {"forward": forward, "both": both}, results


def seconds(cupy: ModuleType, call: Callable[[], object], options: argparse.Namespace) -> float:
    """Return the median time of a call between two events on the device."""
    from cupyx.profiler import benchmark

    times = benchmark(
        call, n_repeat=options.repeats, n_warmup=3, max_duration=options.seconds
    ).gpu_times
    return float(np.median(times))


def line(row: Row) -> str:
    """Return a measured row as text, with what the model says."""
    words = f"{row.dtype:9} {row.passes:8} B = {row.B:4} H = {row.H:5} {row.what:24}"
    return f"{words} {row.us:9.3f} us a step ({row.tier or row.engine})"


def draw_measured(
    rows: Sequence[Row], device: DeviceFacts, options: argparse.Namespace, heading: str
) -> None:
    """Draw the measured rows over the model's, or say what is missing for it."""
    try:
        from gpu.picture import draw
    except ImportError as error:
        print(f"no picture: {error} (pip install matplotlib)")
        return
    model = table(device, options.dtype, options.batch, sorted({*SIZES, *options.hidden}))
    title = f"A step of an LSTM layer: measured, beside the model and published times\n{heading}"
    draw([*model, *rows], options.out / "bench_gpu.png", title)


if __name__ == "__main__":
    sys.exit(main())
