"""What a call asks of the device: how many kernels and products, in which order, on which stream.

The number of launches is the speed of a step-wise engine on a GPU, so it is asserted exactly.
"""

from collections import Counter
from contextlib import nullcontext

import pytest
from gpu_cases import HALF, each_dtype
from gpu_model import Model
from gpu_on_cpu import record
from gpu_on_cpu.driver.recorder import Allocation, Copy, EventRecord, Fill, Free, Gemm, Launch

from cupy_lstm import LSTM, huber_loss, mae_loss, mse_loss, no_grad, plan
from cupy_lstm.notation import Shape

pytestmark = [pytest.mark.gpu_on_cpu, pytest.mark.usefixtures("stepwise")]

T, B, I, H = 6, 3, 4, 8  # noqa: E741


def in_chunks(monkeypatch, steps, lstm, batch=B, training=True):
    """Make the plan take `steps` steps at once."""
    shape = Shape(
        T, batch, lstm.input_size, lstm.hidden_size, lstm.proj_size or H, lstm.num_directions
    )
    itemsize = max(4, lstm.dtype.itemsize)
    budget = steps * plan.step_bytes(shape, itemsize, training)
    monkeypatch.setitem(plan.CHUNK_BYTES, "cupy", budget)
    plan.remembered_plan.cache_clear()
    planned = plan.plan_sweep(shape, lstm.dtype.name, "cupy", training)
    assert planned.steps_per_chunk == min(steps, T)


def recorded(cupy, monkeypatch, *, steps=T, chunk=None, lengths=False, passes="forward", **options):
    """Record one forward or backward pass of a layer; the kernels have been compiled before."""
    options = {"time_major": True, "dtype": "float32"} | options
    lstm = LSTM(I, H, xp="cupy", seed=0, **options)
    in_chunks(monkeypatch, chunk or steps, lstm)
    x = cupy.ones((steps, B, I) if lstm.time_major else (B, steps, I), lstm.dtype)
    n = cupy.array([steps, 2, 0]) if lengths else None
    with record() as log, nullcontext() if passes == "both" else no_grad():
        y, _ = lstm(x, None, n)
    if passes == "both":
        with record() as log:
            lstm.backward(y)
    return log


def work(log):
    """Count what is done on the device; memory is another matter."""
    kinds = {Gemm: "gemm", Copy: "other", Fill: "other"}
    counts = Counter()
    for entry in log:
        if isinstance(entry, Launch) and entry.name.startswith("gates_"):
            counts[entry.name.split("<")[0]] += 1
        elif isinstance(entry, Launch):
            counts["other"] += 1
        elif type(entry) in kinds:
            counts[kinds[type(entry)]] += 1
        else:
            assert isinstance(entry, Allocation | Free), entry
    return counts


# --- forward -------------------------------------------------------------------------------------

# Beside GEMMs and gates. A call: h and c of zero, a copy of both, their final values; the sum of
# the biases. A chunk: that sum to z, h and c into the chunk, its outputs to y, h and c out of it.
# Copies of x where it is not what the direction reads, padding zeroed.
EXTRAS = {  # options, launches of a call, launches of a chunk
    "time-major": ({}, 7, 6),
    "batch-major": ({"time_major": False}, 7, 7),  # x is copied
    "no-bias": ({"bias_ih_attr": False, "bias_hh_attr": False}, 6, 5),
    "one-bias": ({"bias_hh_attr": False}, 6, 6),
    "bidirectional": ({"direction": "bidirect"}, 7, 9),  # x and y once for each direction
    # Lengths are copied and checked; x copied, x and y zeroed, the mask in two.
    "lengths": ({"lengths": True}, 9, 11),
    "lengths-bidirectional": ({"lengths": True, "direction": "bidirect"}, 9, 16),
    "float64": ({"dtype": "float64"}, 7, 6),
    "float16": ({"dtype": "float16"}, 9, 6),  # the biases are widened
    "bfloat16": ({"dtype": "bfloat16"}, 9, 6),
}


@pytest.mark.parametrize("name", EXTRAS)
def test_forward_is_one_gemm_a_chunk_and_one_gemm_and_one_kernel_a_step(cupy, monkeypatch, name):
    options, of_a_call, of_a_chunk = EXTRAS[name]

    def counted(steps, chunk):
        return work(recorded(cupy, monkeypatch, steps=steps, chunk=chunk, **options))

    for steps, chunk, chunks in ((6, 6, 1), (6, 3, 2), (5, 2, 3), (6, 1, 6)):
        counts = counted(steps, chunk)
        assert counts["gates_forward"] == steps
        assert counts["gemm"] == chunks + steps
        assert counts["other"] == of_a_call + chunks * of_a_chunk


def test_the_order_of_a_forward_pass(cupy, monkeypatch):
    log = recorded(cupy, monkeypatch, steps=4, chunk=2)
    kernels = [
        "gemm" if isinstance(entry, Gemm) else entry.name
        for entry in log
        if isinstance(entry, Gemm | Launch)
    ]
    step = ["gemm", "gates_forward<float, 4>"]
    first = kernels.index("gemm")
    assert kernels[first + 2 : first + 6] == step * 2  # the input's product, the biases, the steps
    assert [entry.m for entry in log.gemms] == [4 * H] * 6
    # All steps of a chunk are one product, added to nothing; those of a step are added to it.
    assert [(entry.n, entry.k, entry.beta) for entry in log.gemms] == [
        (2 * B, I, 0), (B, H, 1), (B, H, 1)
    ] * 2  # fmt: skip


def test_both_directions_are_one_product_and_one_kernel(cupy, monkeypatch):
    log = recorded(cupy, monkeypatch, direction="bidirect")
    assert [entry.batch for entry in log.gemms] == [2] * (1 + T)
    kernels = [entry for entry in log.launches if entry.name.startswith("gates")]
    assert len(kernels) == T


def test_a_projection_adds_one_gemm_a_step(cupy, monkeypatch):
    counts = work(recorded(cupy, monkeypatch, proj_size=3))
    assert (counts["gemm"], counts["gates_forward"]) == (1 + 2 * T, T)
    # With lengths one copy a direction holds what is in padding.
    one = work(recorded(cupy, monkeypatch, proj_size=3, lengths=True))
    more = work(recorded(cupy, monkeypatch, proj_size=3, lengths=True, steps=T - 1))
    assert one["other"] - more["other"] == 1


def test_dropout_is_one_kernel_a_layer(cupy):
    counts = {}
    for probability in (0.0, 0.5):
        lstm = LSTM(I, H, 3, dropout=probability, xp="cupy", seed=0)
        x = cupy.ones((B, T, I), "float32")
        lstm.backward(lstm(x)[0])
        with record() as log:
            y, _ = lstm(x)
        with record() as back:
            lstm.backward(y)
        counts[probability] = [
            Counter(entry.name for entry in part.launches) for part in (log, back)
        ]
    for without, with_ in zip(counts[0.0], counts[0.5], strict=True):
        assert with_ - without == Counter({"dropout<float, 4>": 2})
        assert not without - with_


# --- backward ------------------------------------------------------------------------------------


@pytest.mark.parametrize("directions", [1, 2])
@each_dtype
def test_backward_is_three_gemms_a_chunk_and_one_gemm_and_one_kernel_a_step(
    cupy, monkeypatch, dtype, directions
):
    direction = ("forward", "bidirect")[directions - 1]

    def counted(**options):
        log = recorded(
            cupy, monkeypatch, passes="both", dtype=dtype, direction=direction, **options
        )
        return work(log)

    for chunk, chunks in ((6, 1), (3, 2), (2, 3), (1, 6)):
        counts = counted(chunk=chunk)
        assert counts["gates_backward"] == T
        # The outputs of a chunk again, and of the step before it.
        assert counts["gates_output"] == 2 * chunks - 1
        assert counts["gemm"] == T + 3 * chunks  # weight_ih, weight_hh, the input
        # A call: seven gradients begin at zero, two are joined over the layers, that of h0 is
        # rounded to a half type. A chunk: h before it, its dy, the sum over its dz and that to
        # two biases, its dx; x where it is not what the direction reads. CuPy copies what it
        # writes next to what it reads.
        if chunk > 1:
            of_a_call, of_a_chunk = {1: (9, 6), 2: (8, 11)}[directions]
            of_a_call += dtype in HALF
            assert counts["other"] == of_a_call + chunks * of_a_chunk
    # Nothing else depends on the steps of a chunk, but for what lengths hold in a direction.
    assert counted()["other"] == counted(steps=T - 2)["other"]
    lengths = counted(lengths=True)["other"] - counted(lengths=True, steps=T - 2)["other"]
    assert lengths == 2 * directions


def test_frozen_weights_cost_nothing(cupy):
    counts = []
    for trainable in (True, False):
        lstm = LSTM(I, H, xp="cupy", seed=0)
        lstm.weight_ih_l0.trainable = lstm.weight_hh_l0.trainable = trainable
        lstm.bias_ih_l0.trainable = lstm.bias_hh_l0.trainable = trainable
        y, _ = lstm(cupy.ones((B, T, I), "float32"))
        with record() as log:
            lstm.backward(y)
        counts.append(log.counts())
    all_of_them, none = counts
    assert all_of_them["Gemm"] - none["Gemm"] == 2
    assert not [name for name in none if "sum" in name]
    assert [name for name in all_of_them if "sum" in name]


# --- waiting and streams -------------------------------------------------------------------------


@each_dtype
def test_a_step_of_training_waits_for_nothing_and_leaves_the_device_alone(cupy, dtype):
    model = Model(cupy, dtype)
    with record() as log:
        for loss in (mse_loss, mae_loss, huber_loss):
            model.step(loss)
        model.classify()
    assert not log.synchronisations
    assert not log.host_copies


@each_dtype
def test_everything_runs_on_the_stream_of_the_caller(cupy, dtype):
    model = Model(cupy, dtype)
    for stream in (cupy.cuda.Stream(non_blocking=True), cupy.cuda.Stream.ptds):
        with record() as log, stream:
            model.step(mse_loss)
            model.classify()
        on = [entry for entry in log if hasattr(entry, "stream")]
        assert len(on) > 100
        assert {entry.stream for entry in on} == {stream.ptr}
        assert not log.of(EventRecord)
    with record() as log:
        model.step(mse_loss)
    assert {entry.stream for entry in log if hasattr(entry, "stream")} == {
        cupy.cuda.Stream.null.ptr
    }
