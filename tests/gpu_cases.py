"""The table of cases on CuPy arrays: every dtype a GPU serves, under the error rule.

A half type has its own naive loop: float32 arithmetic in which x, the weights and every stored h
is rounded to the type. So is the cell output before a projection: it is an operand of the product
with weight_ho, and a product of cuBLAS has both operands in one type. (Without that rounding here
the loop is up to 4.5 times as accurate as any engine of such products can be, in the cases of the
table.) Cell states, and the gradients that are kept, stay float32.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from functools import cache
from unittest import mock

import numpy as np
import oracle
import pytest
from cases import (
    Arrays,
    Case,
    assert_case,
    backward,
    build,
    forward,
    make_lstm,
    results,
    run_oracle,
)

from cupy_lstm.kernels import Kernel

HALF = ("float16", "bfloat16")
DTYPES = ("float32", "float64", *HALF)
WIDE = ("c", "cells")  # kept in float32 for a half type

each_dtype = pytest.mark.parametrize("dtype", DTYPES)


def storage(dtype: str) -> np.dtype:
    """Return the dtype of a name; ml_dtypes, which CuPy's bfloat16 needs, defines the last one."""
    if dtype == "bfloat16":
        import ml_dtypes  # noqa: F401  it registers the name
    return np.dtype(dtype)


def eps(dtype: str) -> float:
    """Return the spacing of the numbers of a type at 1."""
    import ml_dtypes

    return float(ml_dtypes.finfo(storage(dtype)).eps)


def arrays_of(case: Case, dtype: str) -> Arrays:
    """Return the arrays of a case on the host, cell states and their gradients in float32."""
    storage(dtype)
    arrays = build(case, dtype)
    if dtype not in HALF:
        return arrays
    wide = build(case, "float32")
    return replace(
        arrays,
        states=None if arrays.states is None else (arrays.states[0], wide.states[1]),
        upstream={n: (wide if n in WIDE else arrays).upstream[n] for n in case.upstream},
    )


def on_device(cupy, arrays: Arrays) -> Arrays:
    """Return the arrays of a call on the GPU; weights stay on the host, for `make_lstm`."""
    move = cupy.asarray
    return replace(
        arrays,
        x=move(arrays.x),
        states=None if arrays.states is None else tuple(map(move, arrays.states)),
        lengths=None if arrays.lengths is None else move(arrays.lengths),
        upstream={name: move(array) for name, array in arrays.upstream.items()},
    )


def prepared(cupy, case: Case, dtype: str):
    """Return the LSTM of a case on the GPU, and the arrays to call it with."""
    arrays = arrays_of(case, dtype)
    return make_lstm(case, arrays.weights, dtype, xp="cupy"), on_device(cupy, arrays)


def call(lstm, case: Case, arrays: Arrays) -> oracle.Result:
    """Call the LSTM forward and backward; every array of the result is on the GPU."""
    return backward(lstm, case, arrays, forward(lstm, case, arrays))


def run_on_device(cupy, case: Case, dtype: str) -> oracle.Result:
    """Run forward and backward of a case on the GPU and return everything on the host."""
    lstm, arrays = prepared(cupy, case, dtype)
    return on_host(call(lstm, case, arrays))


def on_host(result: oracle.Result) -> oracle.Result:
    """Return a result with its arrays on the host; a NumPy array among them is an error."""
    named = {field.name: getattr(result, field.name) for field in fields(result)}
    grads = named.pop("grads")
    moved = {name: None if array is None else array.get() for name, array in named.items()}
    return oracle.Result(**moved, grads={name: array.get() for name, array in grads.items()})


@cache
def half_reference(case: Case, dtype: str) -> oracle.Result:
    """Truth for the arrays of a half type."""
    return run_oracle(case, arrays_of(case, dtype), np.float64)


@cache
def half_naive(case: Case, dtype: str) -> oracle.Result:
    """The naive loop of a half type."""
    step_forward = oracle.step_forward

    def rounded(array):
        return array.astype(storage(dtype)).astype(np.float32)

    def step(x, h_prev, c_prev, w):
        cell = {name: weight for name, weight in w.items() if name != "weight_ho"}
        done = step_forward(rounded(x), h_prev, c_prev, cell)
        done.h = rounded(done.h)
        if "weight_ho" in w:
            done.h = rounded(oracle.dot(w["weight_ho"].T, done.h))
        return done

    with mock.patch.object(oracle, "step_forward", step):
        return run_oracle(case, arrays_of(case, dtype), np.float32)


def assert_half_case(case: Case, dtype: str, result: oracle.Result) -> None:
    """Fail unless every array of a half type keeps the error rule and has the dtype it should.

    The eps of the rule is that of the half type, since h and the operands of every product are
    rounded to it; for cell states it is that of float32, which nothing else rounds them to.
    """
    trained = [name for name in case.weight_shapes() if name not in case.frozen]
    assert list(result.grads) == trained
    truth, yardstick = results(half_reference(case, dtype)), results(half_naive(case, dtype))
    for name, actual in results(result).items():
        assert actual.shape == truth[name].shape, name
        stored = name in ("y", "h", "dx", "dh0")
        assert actual.dtype == (storage(dtype) if stored else np.float32), name
        if actual.size == 0:
            continue
        allowed = 2 * abs(yardstick[name] - truth[name]).max()
        allowed += 4 * eps("float32" if name in WIDE else dtype) * abs(truth[name]).max()
        error = abs(actual.astype(np.float64) - truth[name]).max()
        assert error <= allowed, f"{name}: error {error:.3g}, the rule allows {allowed:.3g}"


def assert_device_case(case: Case, dtype: str, result: oracle.Result) -> None:
    """Fail unless the result of a case keeps the error rule."""
    (assert_half_case if dtype in HALF else assert_case)(case, dtype, result)


@contextmanager
def few_threads(blocks: int) -> Iterator[None]:
    """Launch every kernel that gives each item a thread with so many blocks of 32."""
    compiled = Kernel.function

    def function(kernel: Kernel, device: int) -> Callable[..., None]:
        launch = compiled(kernel, device)
        if kernel.file == "lengths.cu":  # one block, whose threads work together
            return launch
        return lambda grid, block, arguments: launch((blocks,), (32,), arguments)

    with mock.patch.object(Kernel, "function", function):
        yield
