"""Training on CuPy arrays: optimisers, losses, the linear layer, batches, and the loop of it all.

What NumPy computes in float64 is the truth here, and what it computes in the dtype under test the
naive loop of the error rule. A half type has float32 masters, which must be, bit for bit, what a
float32 model gets from the same gradients.
"""

import copy
import pickle
from functools import cache, partial
from unittest import mock

import numpy as np
import pytest
from cases import assert_within_rule
from gpu_cases import HALF, each_dtype, eps, storage
from gpu_on_cpu import record
from gpu_on_cpu.driver.recorder import Copy, Synchronisation
from test_optimizer import CASES, SHAPES, STEPS, Problem, columns

from cupy_lstm import (
    LSTM,
    SGD,
    Adam,
    AdamW,
    Batches,
    ClipGradByGlobalNorm,
    ClipGradByNorm,
    ClipGradByValue,
    Layer,
    Linear,
    fit,
    huber_loss,
    mae_loss,
    mse_loss,
    sliding_windows,
    softmax_cross_entropy,
)
from cupy_lstm.backend import sum_dtype
from cupy_lstm.buffer import Buffer
from cupy_lstm.gates import HostGates
from cupy_lstm.parameter import Parameter

pytestmark = pytest.mark.gpu_on_cpu

each_wide = pytest.mark.parametrize("dtype", ["float32", "float64"])
each_half = pytest.mark.parametrize("dtype", HALF)
each_optimizer = pytest.mark.parametrize(
    ("kind", "options", "formula", "constants"), CASES.values(), ids=CASES
)


def parameters_on(cupy, problem, dtype):
    """Return the parameters of a problem on the GPU, in a dtype."""
    return [
        Parameter(Buffer(cupy.asarray(w[None].astype(storage(dtype)))), 0, f"w{k}", attr)
        for k, (w, attr) in enumerate(zip(problem.weights, problem.attrs, strict=True))
    ]


def give(cupy, parameters, gradients, scale=1.0):
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.buffer.make_gradient()[0] = scale * cupy.asarray(gradient)
        parameter.has_gradient = True


def bits(*arrays):
    return [array.get().tobytes() for array in arrays]


# --- optimisers ----------------------------------------------------------------------------------


@each_wide
@each_optimizer
def test_formulas_of_optimisers(cupy, kind, options, formula, constants, dtype):
    problem = Problem()
    parameters = parameters_on(cupy, problem, dtype)
    optimizer = kind(0.1, parameters, **options)
    gradients = [[g.astype(dtype) for g in step] for step in problem.gradients]
    with record() as log:
        for step in gradients:
            give(cupy, parameters, step)
            optimizer.step()
    assert not log.synchronisations
    rounded = columns([[g.astype("float64") for g in step] for step in gradients])
    for p, weight, step in zip(parameters, problem.weights, rounded, strict=True):
        expected = formula(weight.astype(dtype).astype("float64"), step, **constants)
        # Each step rounds some twenty times, and weights and averages are of order one.
        assert abs(p.data.get() - expected).max() <= 20 * STEPS * eps(dtype)


@each_half
@each_optimizer
def test_masters_of_a_half_type_are_a_float32_model(cupy, kind, options, formula, constants, dtype):
    problem = Problem()
    half = parameters_on(cupy, problem, dtype)
    problem.weights = [p.data.get().astype("float32") for p in half]
    single = parameters_on(cupy, problem, "float32")
    optimizers = [kind(0.1, parameters, **options) for parameters in (half, single)]
    for step in problem.gradients:
        for parameters, optimizer in zip((half, single), optimizers, strict=True):
            give(cupy, parameters, [g.astype("float32") for g in step])
            optimizer.step()
    state = optimizers[0].state_dict()
    masters = [value for name, value in state.items() if name.endswith(".master")]
    assert len(masters) == len(SHAPES)
    for p, master, q in zip(half, masters, single, strict=True):
        assert bits(master) == bits(q.data)
        assert p.dtype == storage(dtype)
        assert bits(p.data) == bits(master.astype(storage(dtype)))
    for name, value in optimizers[1].state_dict().items():
        if hasattr(value, "get"):
            assert bits(state[name]) == bits(value)


@each_half
def test_small_updates_add_up_in_the_master(cupy, dtype):
    weight = Parameter(Buffer(cupy.ones((1, 1), storage(dtype))), 0, "w", Problem().attrs[0])
    optimizer = SGD(eps(dtype) / 16, [weight])
    for _ in range(64):
        give(cupy, [weight], [np.ones(1, "float32")])
        optimizer.step()
    assert weight.data.astype("float32").item() == 1 - 4 * eps(dtype)


@each_half
def test_a_weight_that_is_set_goes_to_the_master(cupy, dtype):
    weight = Parameter(Buffer(cupy.ones((1, 1), storage(dtype))), 0, "w", Problem().attrs[0])
    optimizer = SGD(0.25, [weight])
    for value in (4.0, 2.0):
        weight.set_value(cupy.full(1, value, storage(dtype)))
        give(cupy, [weight], [np.ones(1, "float32")])
        optimizer.step()
        assert weight.data.astype("float32").item() == value - 0.25


@each_half
def test_a_weight_that_was_set_is_in_the_state(cupy, dtype):
    """The master there is that of the weight, not what it was before."""
    weight = Parameter(Buffer(cupy.ones((1, 1), storage(dtype))), 0, "w", Problem().attrs[0])
    optimizer = SGD(0.25, [weight])
    weight.set_value(cupy.full(1, 4.0, storage(dtype)))
    assert optimizer.state_dict()["0.w.master"].item() == 4


@each_dtype
@pytest.mark.parametrize("kind", [SGD, Adam, AdamW])
def test_the_loss_scale_is_taken_out_again(cupy, kind, dtype):
    """By a power of two: then not a bit is lost."""
    found, wide = [], sum_dtype(storage(dtype))
    for scale in (1.0, 1024.0):
        problem = Problem()
        parameters = parameters_on(cupy, problem, dtype)
        optimizer = kind(0.1, parameters, loss_scale=scale)
        for step in problem.gradients:
            give(cupy, parameters, [g.astype(wide) for g in step], wide.type(scale))
            optimizer.step()
        found.append(bits(*(p.data for p in parameters)))
    assert found[0] == found[1]


def clipped(clip, gradients):
    """Clip to 0.5 by the definition, in the dtype of the gradients."""
    if isinstance(clip, ClipGradByValue):
        return [g.clip(-0.5, 0.5) for g in gradients]
    norms = [np.sqrt((g * g).sum()) for g in gradients]
    if isinstance(clip, ClipGradByGlobalNorm):
        norms = [np.sqrt((np.array(norms) ** 2).sum())] * len(norms)
    return [
        g if norm <= 0.5 else g * (g.dtype.type(0.5) / norm)
        for g, norm in zip(gradients, norms, strict=True)
    ]


@each_dtype
@pytest.mark.parametrize(
    "clip", [ClipGradByValue(0.5), ClipGradByNorm(0.5), ClipGradByGlobalNorm(0.5)]
)
def test_clips(cupy, clip, dtype):
    wide = sum_dtype(storage(dtype))
    problem = Problem()
    gradients = [g.astype(wide) for g in problem.gradients[0]]
    with record() as log:
        parameters = parameters_on(cupy, problem, dtype)
        given = [cupy.asarray(g) for g in gradients]
        found = [g for _, g in clip(list(zip(parameters, given, strict=True)))]
    assert not log.synchronisations
    truth, naive = clipped(clip, problem.gradients[0]), clipped(clip, gradients)
    for one, other, third in zip(found, truth, naive, strict=True):
        assert_within_rule("clipped", one.get(), other, third)


@each_dtype
@pytest.mark.parametrize("kind", [partial(SGD, momentum=0.9), Adam, AdamW])
@pytest.mark.parametrize("way", ["arrays", "host arrays", "deepcopy", "pickle"])
def test_a_saved_optimiser_goes_on_bit_by_bit(cupy, kind, way, dtype):
    wide = sum_dtype(storage(dtype))
    problem = Problem()
    through, parted = (parameters_on(cupy, problem, dtype) for _ in range(2))
    first, second = (kind(0.1, parameters) for parameters in (through, parted))
    for number, step in enumerate(problem.gradients):
        for parameters, optimizer in ((through, first), (parted, second)):
            give(cupy, parameters, [g.astype(wide) for g in step])
            optimizer.step()
        if number != 2:
            continue
        if way in ("deepcopy", "pickle"):
            duplicate = copy.deepcopy if way == "deepcopy" else unpickled
            parted, second = duplicate((parted, second))
            continue
        state = second.state_dict()
        state = {n: v.copy() if hasattr(v, "copy") else v for n, v in state.items()}
        if way == "host arrays":
            state = {n: v.get() if hasattr(v, "get") else v for n, v in state.items()}
        second = kind(0.1, parted)
        second.set_state_dict(state)
    assert bits(*(p.data for p in through)) == bits(*(p.data for p in parted))


def unpickled(value):
    return pickle.loads(pickle.dumps(value))


# --- losses and the linear layer -----------------------------------------------------------------

LOSSES = {
    "mse": mse_loss,
    "mae": mae_loss,
    "huber": huber_loss,
    "huber 0.25": partial(huber_loss, delta=0.25),
}


def in_rule(name, found, truth, naive, dtype):
    """The error rule for an array that is rounded to `dtype` at its end."""
    found, naive = found.get().astype("f8"), np.asarray(naive).astype(storage(dtype)).astype("f8")
    allowed = 2 * abs(naive - truth).max() + 4 * eps(dtype) * abs(truth).max()
    assert abs(found - truth).max() <= allowed, name


@each_dtype
@pytest.mark.parametrize("shape", [(), (1,), (300,), (4, 5, 6)], ids=str)
@pytest.mark.parametrize("name", LOSSES)
def test_losses(cupy, name, shape, dtype):
    rng, loss, wide = np.random.default_rng(0), LOSSES[name], sum_dtype(storage(dtype))
    arrays = [np.array(rng.normal(0, 2, shape)).astype(storage(dtype)) for _ in range(2)]
    given = [cupy.asarray(array) for array in arrays]
    with record() as log:
        value, gradient = loss(*given)
    assert not log.synchronisations
    assert (value.shape, value.dtype) == ((), wide)
    assert (gradient.shape, gradient.dtype) == (shape, storage(dtype))
    truth = loss(*(array.astype("f8") for array in arrays))
    naive = loss(*(array.astype(wide) for array in arrays))
    in_rule("value", value, truth[0], naive[0], wide.name)
    in_rule("gradient", gradient, truth[1], naive[1], dtype)


@each_dtype
def test_cross_entropy(cupy, dtype):
    rng, wide = np.random.default_rng(0), sum_dtype(storage(dtype))
    logits = rng.normal(0, 3, (5, 4, 7)).astype(storage(dtype))
    labels = rng.integers(0, 7, (5, 4))
    given = cupy.asarray(logits), cupy.asarray(labels)
    with record() as log:
        value, gradient = softmax_cross_entropy(*given)
    assert not log.synchronisations
    truth = softmax_cross_entropy(logits.astype("f8"), labels)
    naive = softmax_cross_entropy(logits.astype(wide), labels)
    in_rule("value", value, truth[0], naive[0], wide.name)
    in_rule("gradient", gradient, truth[1], naive[1], dtype)


@pytest.mark.parametrize("label", [-1, 7, 2**40])
def test_a_label_that_is_no_class_makes_the_loss_nan(cupy, label):
    logits, labels = cupy.zeros((3, 7), "float32"), cupy.array([0, label, 6])
    with record() as log:
        value, _ = softmax_cross_entropy(logits, labels)
    assert not log.synchronisations
    assert np.isnan(value.item())


@each_dtype
@pytest.mark.parametrize("shape", [(3,), (5, 3), (2, 4, 3), (0, 3)], ids=str)
@pytest.mark.parametrize("bias", [None, False])
def test_linear(cupy, shape, bias, dtype):
    """Small integers: exact, whatever the order of the sums."""
    rng, wide = np.random.default_rng(0), sum_dtype(storage(dtype))
    layer = Linear(3, 2, bias_attr=bias, dtype=dtype, xp="cupy", seed=0)
    host = {
        name: rng.integers(-3, 4, p.shape).astype(p.dtype) for name, p in layer.named_parameters()
    }
    layer.set_state_dict(host)
    x, dy = (rng.integers(-3, 4, s).astype(storage(dtype)) for s in (shape, (*shape[:-1], 2)))
    given = cupy.asarray(x), cupy.asarray(dy)
    with record() as log:
        y = layer(given[0])
        dx = layer.backward(given[1])
    assert not log.synchronisations
    assert len(log.gemms) == (3 if x.size else 0)
    W = host["weight"].astype("f8")
    assert (y.dtype, dx.dtype) == (storage(dtype), storage(dtype))
    x, dy = x.astype("f8"), dy.astype("f8")
    assert np.array_equal(y.get().astype("f8"), x @ W + host.get("bias", np.zeros(2)).astype("f8"))
    assert np.array_equal(dx.get().astype("f8"), dy @ W.T)
    assert layer.weight.grad.dtype == wide
    assert np.array_equal(layer.weight.grad.get(), x.reshape(-1, 3).T @ dy.reshape(-1, 2))
    if bias is None:
        assert np.array_equal(layer.bias.grad.get(), dy.reshape(-1, 2).sum(axis=0))


@each_half
def test_gradients_of_a_linear_layer_are_not_rounded_to_a_half_type(cupy, dtype):
    rows = 4097  # needs 13 bits; float16 has 11
    layer = Linear(1, 1, dtype=dtype, xp="cupy")
    ones = cupy.ones((rows, 1), dtype)
    layer(ones)
    layer.backward(ones)
    assert layer.weight.grad.item() == layer.bias.grad.item() == rows


# --- windows, batches, fit -----------------------------------------------------------------------


@pytest.mark.parametrize(("length", "stride"), [(3, 1), (4, 2), (10, 3)])
def test_windows_are_those_of_the_host_and_copy_nothing(cupy, length, stride):
    series = np.arange(20.0).reshape(10, 2)
    given = cupy.asarray(series)
    with record() as log:
        windows = sliding_windows(given, length, stride)
    assert not log
    assert np.array_equal(windows.get(), sliding_windows(series, length, stride))
    assert windows.data.ptr == given.data.ptr


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("drop_last", [False, True])
def test_batches_are_those_of_the_host(cupy, shuffle, drop_last):
    x, y = np.arange(22.0).reshape(11, 2), np.arange(11)
    options = {"batch_size": 4, "shuffle": shuffle, "drop_last": drop_last, "seed": 3}
    host = Batches((x, y), y, **options)
    given = Batches((cupy.asarray(x), cupy.asarray(y)), cupy.asarray(y), **options)
    for _ in range(2):
        with record() as log:
            found = list(given)
        assert not log.synchronisations
        assert len(log.host_copies) == shuffle  # the order of an epoch
        for (inputs, target), (wanted, goal) in zip(found, host, strict=True):
            assert all(part.flags.c_contiguous for part in inputs)
            for one, other in zip((*inputs, target), (*wanted, goal), strict=True):
                assert np.array_equal(one.get(), other)


class Forecaster(Layer):
    """The sum of a window."""

    def __init__(self, dtype, xp):
        super().__init__(dtype, xp)
        options = {"dtype": dtype, "xp": xp, "seed": 0}
        self.lstm = LSTM(2, 8, 2, dropout=0.2, **options)
        self.lstm.dropout_seed = 1
        self.head = Linear(8, 1, **options)

    def __call__(self, x):
        _, (h, _) = self.lstm(x)
        return self.head(h[-1])

    def backward(self, gradient):
        dh = self.head.backward(gradient)
        zeros = self.xp.zeros_like(dh)
        return self.lstm.backward(None, (self.xp.stack([zeros, dh]), None))


def samples():
    x = np.random.default_rng(0).standard_normal((40, 6, 2))
    return x, x.sum(axis=(1, 2))[:, None] / 3


def fitted(xp, dtype, epochs=3, data=None, **options):
    """Train a forecaster on samples that are rounded to the dtype `data`."""
    model = Forecaster(dtype, xp.__name__)
    rounded = (array.astype(storage(data or dtype)) for array in samples())
    x, y = (xp.asarray(array.astype(storage(dtype))) for array in rounded)
    optimizer = AdamW(1e-2, model.parameters(), grad_clip=ClipGradByGlobalNorm(1.0), **options)
    batches = Batches(x[:32], y[:32], 8, seed=1, shuffle=True)
    validation = Batches(x[32:], y[32:], 8)
    with record() as log:
        history = fit(
            model, mse_loss, optimizer, batches, validation,
            epochs=epochs, patience=epochs, progress=False,
        )  # fmt: skip
    return model, history, log


@each_wide
def test_fit_learns_what_it_learns_on_the_host(cupy, dtype):
    (_, history, _), (_, truth, _) = fitted(cupy, dtype), fitted(np, "float64")
    _, naive, _ = fitted(np, "float32")
    # There is no truth beyond float64: its naive error is float32's, by as much as it is finer.
    finer = eps(dtype) / eps("float32")
    for kind in ("loss", "validation_loss"):
        found, exact, rough = (np.array(getattr(h, kind)) for h in (history, truth, naive))
        allowed = 2 * finer * abs(rough - exact).max() + 4 * eps(dtype) * abs(exact).max()
        assert abs(found - exact).max() <= allowed, kind


@cache
def naive_losses(dtype, epochs):
    """The losses of `fitted` by a naive loop: float32, what a half type stores rounded to it."""

    def rounded(array):
        return array.astype(storage(dtype)).astype("float32")

    def gates_forward(gates, z, c_prev, c, h_prev, h, padding):
        step_forward(gates, z, c_prev, c, h_prev, h, padding)
        h[...] = rounded(h)

    def gates_prepare(gates, z, c, m, padding):
        prepare(gates, z, c, m, padding)
        m[...] = rounded(m)

    step_forward, prepare = HostGates.forward, HostGates.prepare
    masters, model = (Forecaster("float32", "numpy") for _ in range(2))
    for master in masters.parameters():
        master.set_value(rounded(master.data))
    adam = AdamW(1e-2, masters.parameters(), grad_clip=ClipGradByGlobalNorm(1.0))
    x, y = (rounded(array[:32]) for array in samples())
    batches, losses = Batches(x, y, 8, seed=1, shuffle=True), []
    with mock.patch.multiple(HostGates, forward=gates_forward, prepare=gates_prepare):
        for _ in range(epochs):
            values = []
            for inputs, target in batches:
                for p, master in zip(model.parameters(), masters.parameters(), strict=True):
                    p.set_value(rounded(master.data))
                value, gradient = mse_loss(rounded(model(inputs)), target)
                values.append(value)
                model.clear_gradients()
                model.backward(gradient)
                for p, master in zip(model.parameters(), masters.parameters(), strict=True):
                    master.clear_gradient()
                    master.add_gradient(p.grad)
                adam.step()
            losses.append(np.mean(values))
    return np.array(losses)


@each_half
@pytest.mark.parametrize("scale", [1.0, 1024.0])
def test_fit_of_a_half_type(cupy, dtype, scale):
    model, history, _ = fitted(cupy, dtype, epochs=6, loss_scale=scale)
    exact = np.array(fitted(np, "float64", epochs=6, data=dtype)[1].loss)
    rough = naive_losses(dtype, 6)
    allowed = 2 * abs(rough - exact).max() + 4 * eps(dtype) * abs(exact).max()
    assert exact[0] - exact[-1] > 2 * allowed  # a model that learns nothing is seen
    assert abs(np.array(history.loss) - exact).max() <= allowed
    assert {p.dtype for p in model.parameters()} == {storage(dtype)}


@pytest.mark.parametrize(("scale", "change"), [(1.0, 0), (1024.0, 2**-6)])
def test_a_loss_scale_keeps_small_gradients_alive(cupy, scale, change):
    """2^-26 is below half of the smallest float16, 2^-24; what is larger is a power of two."""
    layer = Linear(1, 1, bias_attr=False, dtype="float16", xp="cupy")
    layer.set_state_dict({"weight": np.ones((1, 1), "float16")})
    x = cupy.ones((1, 1), "float16")

    def loss(prediction, target):
        return (prediction - target).sum(), cupy.full((1, 1), 2**-26, "float32")

    sgd = SGD(2.0**20, layer.parameters(), loss_scale=scale)
    fit(layer, loss, sgd, [(x, x)], epochs=1, progress=False)
    assert layer.weight.data.item() == 1 - change


def test_fit_waits_once_an_epoch_for_each_loss(cupy):
    fitted(cupy, "float32")
    _, history, log = fitted(cupy, "float32")
    assert len(history.loss) == 3
    read = [e for e in log.of(Copy) if e.kind == "device 0 to host"]
    assert len(read) == 2 * 3
    assert len(log.of(Synchronisation)) <= 2 * 3
    sent = [e for e in log.of(Copy) if e.kind == "host to device 0"]
    assert len(sent) == 3  # the order of the samples


@each_dtype
def test_two_fits_are_bit_equal(cupy, dtype):
    first, second = (fitted(cupy, dtype) for _ in range(2))
    assert first[1] == second[1]
    for one, other in zip(first[0].parameters(), second[0].parameters(), strict=True):
        assert bits(one.data) == bits(other.data)
