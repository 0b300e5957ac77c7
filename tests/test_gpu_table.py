"""The whole table of cases on CuPy arrays: forward, every gradient, and how a call behaves.

Here the threads of every kernel run in forward order; ``.ci/full`` runs this file in reverse and
in random order, too.
"""

import numpy as np
import pytest
from cases import CASES, Case, forward, results
from face import assert_gradient_of_inputs_can_be_left_out, normal
from full import in_dtypes_by_turns
from gpu_cases import (
    DTYPES,
    arrays_of,
    assert_device_case,
    call,
    each_dtype,
    on_host,
    prepared,
    run_on_device,
)
from gpu_on_cpu import record
from test_gradients import (
    assert_empty_rows_keep_their_states,
    assert_padding_is_zero,
    layer_shapes,
)

from cupy_lstm import LSTM, RNN, BiRNN, LSTMCell, backend, engine, no_grad, plan
from cupy_lstm.backend import sum_dtype

pytestmark = [pytest.mark.gpu_on_cpu, pytest.mark.usefixtures("stepwise")]

# One case for every kind of thing a chunk of steps does.
RICH = [
    Case("rich", T=5, L=2, bidirectional=True, states=True, lengths=(3, 5, 0), dropout=0.5,
         upstream=("y", "h", "c", "cells")),
    Case("rich-projection", T=5, P=4, H=8, bidirectional=True, states=True, lengths=(3, 5, 0),
         upstream=("y", "h", "c", "cells")),
    Case("rich-time-major", T=5, H=12, time_major=True, states=True),
]  # fmt: skip
each_rich = pytest.mark.parametrize("case", RICH, ids=lambda case: case.id)


@in_dtypes_by_turns(CASES, DTYPES)
def test_table(cupy, case, dtype):
    lstm, arrays = prepared(cupy, case, dtype)
    with record() as log:
        result = call(lstm, case, arrays)
    assert not log.synchronisations
    assert not log.host_copies
    result = on_host(result)
    assert_device_case(case, dtype, result)
    assert_padding_is_zero(case, result)
    assert_empty_rows_keep_their_states(case, arrays_of(case, dtype), result)


@each_dtype
@each_rich
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_chunks(cupy, case, dtype, steps, monkeypatch):
    """The workspace of a chunk bounds its steps, never the result."""
    shape, itemsize = layer_shapes(case)[-1], sum_dtype(np.dtype(dtype)).itemsize
    budget = steps * plan.step_bytes(shape, itemsize, True)
    monkeypatch.setitem(plan.CHUNK_BYTES, "cupy", budget)
    assert plan.plan_sweep(shape, dtype, "cupy").steps_per_chunk == steps
    assert_device_case(case, dtype, run_on_device(cupy, case, dtype))


@each_dtype
@each_rich
def test_two_runs_are_bit_equal(cupy, case, dtype):
    first, second = (results(run_on_device(cupy, case, dtype)) for _ in range(2))
    for name, array in first.items():
        assert array.tobytes() == second[name].tobytes(), name


@each_dtype
def test_the_callers_arrays_stay_as_they_are(cupy, dtype):
    case = RICH[0]
    arrays = arrays_of(case, dtype)
    lstm, given = prepared(cupy, case, dtype)
    call(lstm, case, given)
    flat = (given.x, *given.states, given.lengths, *given.upstream.values())
    host = (arrays.x, *arrays.states, arrays.lengths, *arrays.upstream.values())
    for ours, theirs in zip(flat, host, strict=True):
        assert ours.get().tobytes() == theirs.tobytes()


@each_dtype
def test_gradients_accumulate(cupy, dtype):
    case = RICH[0]
    lstm, given = prepared(cupy, case, dtype)
    once = on_host(call(lstm, case, given)).grads
    for repeats in (2, 3):
        lstm.dropout_calls -= 1
        total = on_host(call(lstm, case, given)).grads
        # All steps are one chunk, so a gradient is one product that is added once: no tolerance.
        # Three, because twice a number that has been rounded is exact in any type.
        for name, grad in once.items():
            added = sum([grad] * repeats)
            assert added.dtype == sum_dtype(np.dtype(dtype))
            assert total[name].tobytes() == added.tobytes(), name
    lstm.clear_gradients()
    assert not any(p.grad.any() for p in lstm.parameters())
    lstm.dropout_calls -= 1
    assert_device_case(case, dtype, on_host(call(lstm, case, given)))


@each_dtype
@each_rich
def test_without_a_tape_the_same_numbers(cupy, case, dtype):
    outputs = []
    for recording in (True, False):
        lstm, given = prepared(cupy, case, dtype)
        if recording:
            outputs.append(forward(lstm, case, given))
        else:
            with no_grad():
                outputs.append(forward(lstm, case, given))
            with pytest.raises(RuntimeError):
                lstm.backward(given.upstream.get("y"))
    for name in ("y", "h", "c"):
        one, other = (getattr(output, name).get() for output in outputs)
        assert one.tobytes() == other.tobytes(), name


@each_dtype
@pytest.mark.parametrize("layout", ["transposed", "every other", "reversed", "offset"])
def test_inputs_of_any_strides(cupy, dtype, layout):
    case = Case("strided", T=4, B=4, I=6, states=True, lengths=(4, 2, 0, 3), bidirectional=True)
    lstm, given = prepared(cupy, case, dtype)
    expected = results(on_host(call(lstm, case, given)))
    lay = {
        "transposed": lambda a: cupy.ascontiguousarray(a.T).T,
        "every other": lambda a: cupy.repeat(a, 2, axis=-1)[..., ::2],
        "reversed": lambda a: cupy.ascontiguousarray(a[..., ::-1])[..., ::-1],
        "offset": lambda a: cupy.concatenate([a.ravel()[:1], a.ravel()])[1:].reshape(a.shape),
    }[layout]
    strided = type(given)(
        lay(given.x),
        tuple(map(lay, given.states)),
        lay(given.lengths),
        given.weights,
        {name: lay(array) for name, array in given.upstream.items()},
    )
    lstm.clear_gradients()
    found = results(on_host(call(lstm, case, strided)))
    for name, array in expected.items():
        assert array.tobytes() == found[name].tobytes(), name


# --- the other faces are the same engine ---------------------------------------------------------


def bits(*arrays):
    return [array.get().tobytes() for array in arrays]


def random(cupy, *shape, dtype="float32", seed=0):
    return cupy.asarray(np.random.default_rng(seed).standard_normal(shape).astype(dtype))


@each_dtype
@pytest.mark.parametrize("P", [0, 3])
def test_a_cell_is_a_layer_of_one_step(cupy, dtype, P):
    cell = LSTMCell(4, 6, proj_size=P, dtype=dtype, xp="cupy", seed=3)
    lstm = LSTM(4, 6, proj_size=P, dtype=dtype, xp="cupy", time_major=True)
    lstm.set_state_dict({f"{name}_l0": array for name, array in cell.state_dict().items()})
    x, wide = random(cupy, 3, 4, dtype=dtype), sum_dtype(np.dtype(dtype))
    h, c = random(cupy, 3, P or 6, dtype=dtype, seed=1), random(cupy, 3, 6, dtype=wide, seed=2)
    y, (h1, c1) = cell(x, (h, c))
    outputs, states = lstm(x[None], (h[None], c[None]))
    assert bits(y, h1, c1) == bits(outputs[0], *(state[0] for state in states))
    dx, (dh, dc) = cell.backward(y, (h1, c1))
    dinputs, dstates = lstm.backward(outputs, states)
    assert bits(dx, dh, dc) == bits(dinputs[0], *(state[0] for state in dstates))
    for name, p in cell.named_parameters():
        assert bits(p.grad) == bits(getattr(lstm, f"{name}_l0").grad), name


@each_dtype
def test_two_rnns_are_a_birnn_and_a_bidirectional_lstm(cupy, dtype):
    cells = [LSTMCell(4, 6, dtype=dtype, xp="cupy", seed=seed) for seed in (0, 1)]
    both = BiRNN(*cells)
    lstm = LSTM(4, 6, direction="bidirect", dtype=dtype, xp="cupy")
    lstm.set_state_dict(
        {
            f"{name}_l0{suffix}": array
            for cell, suffix in zip(cells, ("", "_reverse"), strict=True)
            for name, array in cell.state_dict().items()
        }
    )
    x, n = random(cupy, 3, 5, 4, dtype=dtype), cupy.array([5, 2, 0])
    outputs, _ = lstm(x, None, n)
    joined, _ = both(x, None, n)
    singles = [RNN(cell, is_reverse=bool(d))(x, None, n)[0] for d, cell in enumerate(cells)]
    assert bits(outputs) == bits(joined) == bits(cupy.concatenate(singles, axis=-1))
    dx, _ = both.backward(joined)
    assert bits(dx) == bits(lstm.backward(outputs)[0])


def test_every_dtype_of_the_package_is_tried_here():
    assert sorted(backend.DTYPES["cupy"]) == sorted(DTYPES)


@pytest.mark.parametrize("name", ["persistent", "stepwise"])
def test_the_gradient_of_the_inputs_can_be_left_out(cupy, name):
    x = cupy.array(normal(2, 5, 3))
    with engine(name):
        assert_gradient_of_inputs_can_be_left_out(
            LSTM(3, 4, 3, "bidirect", xp="cupy", seed=0), x, [5, 2]
        )
