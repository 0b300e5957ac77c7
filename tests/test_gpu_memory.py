"""Memory of a call on the GPU: what the plan says, from the allocator that is current."""

import gc
from itertools import pairwise

import pytest
from cases import DROPOUT_KEY, Case
from gpu_cases import HALF, arrays_of, call, each_dtype, on_device, prepared, storage
from gpu_model import Model
from gpu_on_cpu import record
from gpu_on_cpu.driver.recorder import Allocation, Free, Launch
from test_gradients import stacked
from test_memory import owned, tape_bytes

from cupy_lstm import LSTM, engine, mse_loss, plan
from cupy_lstm.backend import sum_dtype
from cupy_lstm.device import current_device
from cupy_lstm.device_gates import DeviceGates
from cupy_lstm.dropout import Dropout
from cupy_lstm.functional import lstm_backward, lstm_forward
from cupy_lstm.notation import LayerGradients, LayerWeights, Shape

pytestmark = [pytest.mark.gpu_on_cpu, pytest.mark.usefixtures("stepwise")]

CASES = {
    "plain": {"upstream": ("y",)},
    "rich": {
        "L": 2,
        "bidirectional": True,
        "lengths": (3, 5, 0, 1),
        "dropout": 0.5,
        "upstream": ("y", "h", "c", "cells"),
    },
    "projection": {"P": 4, "time_major": True, "upstream": ("y", "h")},
    "odd": {"H": 7, "L": 3, "lengths": (3, 5, 0, 1)},
}
each_case = pytest.mark.parametrize("name", CASES)
TRAINING = ("stepwise", "persistent")  # the engines of CuPy that keep a tape


def case_of(name, steps):
    return Case(
        f"memory-{name}-{steps}", **{"T": steps, "B": 4, "H": 8, "states": True} | CASES[name]
    )


@each_dtype
@each_case
def test_the_number_of_allocations_does_not_grow_with_the_steps(cupy, name, dtype):
    counts = []
    for steps in (5, 6, 20):
        case = case_of(name, steps)
        lstm, arrays = prepared(cupy, case, dtype)
        with record() as log:
            call(lstm, case, arrays)
        counts.append(len(log.allocations))
    assert counts[0] == counts[1] == counts[2]


@each_dtype
@each_case
def test_nothing_is_allocated_inside_the_loop(cupy, name, dtype):
    case = case_of(name, 5)
    lstm, arrays = prepared(cupy, case, dtype)
    with record() as log:
        call(lstm, case, arrays)
    for kernel in ("gates_forward", "gates_backward"):
        at = [
            index
            for index, entry in enumerate(log)
            if isinstance(entry, Launch) and entry.name.startswith(kernel)
        ]
        assert len(at) == case.L * case.T
        for layer in range(case.L):
            first, *_, last = at[layer * case.T : (layer + 1) * case.T]
            inside = log[first:last]
            assert not [e for e in inside if isinstance(e, Allocation | Free)]


def peak_of(log):
    """Return how far memory rose above what there was at the beginning, in bytes."""
    live = peak = 0
    for entry in log:
        if isinstance(entry, Allocation):
            live += entry.bytes
        elif isinstance(entry, Free):
            live -= entry.bytes
        peak = max(peak, live)
    return peak


@each_dtype
@each_case
@pytest.mark.parametrize("chunk", [1, 3])
@pytest.mark.parametrize("runner", TRAINING)
def test_the_peak_is_that_of_results_tape_and_plan(cupy, name, dtype, chunk, runner, monkeypatch):
    case, wide = case_of(name, 20), sum_dtype(storage(dtype))
    if runner == "persistent" and (case.P or dtype == "float64"):
        pytest.skip("not served")
    host = arrays_of(case, dtype)
    given = on_device(cupy, host)
    weights = [
        LayerWeights(*(None if array is None else cupy.asarray(array) for array in layer))
        for layer in stacked(case, host.weights)
    ]
    gradients = [
        LayerGradients(*(None if a is None else cupy.zeros(a.shape, wide) for a in layer))
        for layer in weights
    ]
    P = case.P or case.H
    shapes = [
        Shape(case.T, case.B, layer.weight_ih.shape[2], case.H, P, case.D) for layer in weights
    ]
    sizes = shapes[0], wide.itemsize, True
    if runner == "persistent":
        step = plan.persistent_step_bytes(*sizes, inside=True)
    else:
        step = plan.step_bytes(*sizes)
    monkeypatch.setitem(plan.CHUNK_BYTES, "cupy", chunk * step)
    device = current_device()
    plans = [plan.plan_sweep(shape, dtype, "cupy", True, runner, device) for shape in shapes]
    assert plans[0].steps_per_chunk == chunk
    workspace = max(one.workspace_bytes for one in plans)
    # From layer to layer, and the states each layer returns for itself.
    between = min(case.L - 1, 2) * case.T * case.B * case.D * P * given.x.itemsize
    states = 2 * case.D * case.B * (P + case.H) * wide.itemsize

    with engine(runner), record() as log:
        y, final, *cells, tape = lstm_forward(
            given.x,
            weights,
            given.states,
            given.lengths,
            reverse=(False, True)[: case.D],
            time_major=case.time_major,
            dropout=Dropout(case.dropout, **DROPOUT_KEY) if case.dropout else None,
            return_cells=case.return_cells,
        )
    assert peak_of(log) <= owned(y, *final, *cells) + tape_bytes(tape) + workspace + states
    up = given.upstream
    with record() as log:
        dx, dstates, _ = lstm_backward(
            tape, up.get("y"), (up.get("h"), up.get("c")), up.get("cells"), gradients=gradients
        )
    assert peak_of(log) <= owned(dx, *dstates) + between + workspace + case.L * states


@each_dtype
def test_the_current_allocator_is_asked_for_everything(cupy, dtype):
    model = Model(cupy, dtype)
    model.step(mse_loss)
    with cupy.cuda.using_allocator(cupy.cuda.malloc_managed), record() as log:
        model.step(mse_loss)
        model.classify()
    assert {entry.kind for entry in log.allocations} == {"managed"}


@each_dtype
def test_a_pool_ends_as_it_began(cupy, dtype):
    pool = cupy.cuda.MemoryPool()
    with cupy.cuda.using_allocator(pool.malloc):
        model = Model(cupy, dtype)
        used = []
        for _ in range(4):
            model.step(mse_loss)
            used.append(pool.used_bytes())
        assert used[1] == used[2] == used[3]
        del model
        gc.collect()
    assert pool.used_bytes() == 0


@each_dtype
def test_backward_frees_the_tape(cupy, dtype):
    lstm = LSTM(4, 8, 3, xp="cupy", seed=0, dtype=dtype)
    pool = cupy.cuda.MemoryPool()
    lstm.backward(lstm(cupy.ones((3, 6, 4), dtype))[0])  # makes the gradients
    with cupy.cuda.using_allocator(pool.malloc):
        lstm.backward(lstm(cupy.ones((3, 6, 4), dtype))[0])
    assert pool.used_bytes() == 0


@each_dtype
def test_backward_frees_the_tape_layer_by_layer(cupy, dtype):
    T, B, H, L, used = 20, 3, 8, 4, []
    lstm = LSTM(4, H, L, xp="cupy", seed=0, dtype=dtype)
    weights = [layer.arrays() for layer in lstm._layers]
    gradients = [layer.gradients() for layer in lstm._layers]
    pool = cupy.cuda.MemoryPool()
    with cupy.cuda.using_allocator(pool.malloc):
        y, _, tape = lstm_forward(cupy.ones((B, T, 4), dtype), weights)
        lstm_backward(
            tape, y, gradients=gradients, layer_done=lambda _: used.append(pool.used_bytes())
        )
    size, wide = storage(dtype).itemsize, sum_dtype(storage(dtype)).itemsize
    # Gates, cell states, h0 and the input go; dh0 and dc0 stay. The pool rounds to 512 bytes.
    went = (T * B * 4 * H * wide, (T + 1) * B * H * wide, B * H * size, T * B * H * size)
    stays = (B * H * wide, B * H * wide)
    freed = sum(-(-n // 512) * 512 for n in went) - sum(-(-n // 512) * 512 for n in stays)
    # The input of the first layer is the caller's.
    assert [before - after for before, after in pairwise(used[: L - 1])] == [freed] * (L - 2)


@each_dtype
def test_the_gradient_of_the_gates_takes_their_place(cupy, dtype):
    shape, wide = Shape(5, 3, 4, 8, 8, 1), sum_dtype(storage(dtype))
    gates = DeviceGates(shape, 5, storage(dtype))
    z, c = cupy.zeros((1, 5, 3, 32), wide), cupy.zeros((1, 6, 3, 8), wide)
    m = cupy.zeros((1, 5, 3, 8), dtype)
    # A half type needs dz rounded, as an operand: one array for all chunks.
    for allocated in (dtype in HALF, 0):
        with record() as log:
            gates.prepare(z, c, m, None)
        assert len(log.allocations) == allocated
        assert (gates.dz.data.ptr == z.data.ptr) == (dtype not in HALF)


def test_pinned_memory_is_asked_for_once_in_a_process(cupy):
    lstm, x = LSTM(4, 8, xp="cupy", seed=0), cupy.ones((3, 6, 4), "float32")
    lengths = cupy.array([6, 2, 0])
    lstm(x, None, lengths)
    # Without CuPy's pool, every request reaches CUDA.
    cupy.cuda.set_pinned_memory_allocator()
    try:
        with record() as log:
            for _ in range(3):
                lstm.backward(lstm(x, None, lengths)[0])
    finally:
        cupy.cuda.set_pinned_memory_allocator(cupy.get_default_pinned_memory_pool().malloc)
    assert {entry.kind for entry in log.allocations} == {"device"}
