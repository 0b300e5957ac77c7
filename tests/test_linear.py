"""Linear: values, gradients and errors. Small whole numbers are exact in both dtypes."""

import copy
import pickle
import threading

import numpy as np
import pytest

from cupy_lstm import ParamAttr, no_grad
from cupy_lstm.initializer import Constant
from cupy_lstm.linear import Linear

DTYPES = ["float32", "float64"]
LEADING = [(), (5,), (2, 3), (4, 1, 2), (0,), (3, 0), (0, 2, 3)]


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def whole(rng, *shape, dtype="float64"):
    return rng.integers(-8, 9, shape).astype(dtype)


def make(rng, dtype="float64", features=(3, 2), **options):
    linear = Linear(*features, dtype=dtype, **options)
    for parameter in linear.parameters():
        parameter.set_value(whole(rng, *parameter.shape, dtype=dtype))
    return linear


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("leading", LEADING, ids=str)
@pytest.mark.parametrize("bias", [None, False], ids=["bias", "no bias"])
def test_values_and_gradients(rng, dtype, leading, bias):
    linear = make(rng, dtype, bias_attr=bias)
    x, dy = whole(rng, *leading, 3, dtype=dtype), whole(rng, *leading, 2, dtype=dtype)
    kept = x.copy(), dy.copy()
    y = linear(x)
    dx = linear.backward(dy)
    expected = np.einsum("...i,io->...o", x, linear.weight.data)
    if bias is None:
        expected = expected + linear.bias.data
        assert np.array_equal(linear.bias.grad, dy.reshape(-1, 2).sum(axis=0))
    assert y.dtype == dx.dtype == linear.weight.grad.dtype == dtype
    assert y.shape == (*leading, 2) and np.array_equal(y, expected)
    assert dx.shape == x.shape
    assert np.array_equal(dx, np.einsum("...o,io->...i", dy, linear.weight.data))
    rows = x.reshape(-1, 3), dy.reshape(-1, 2)
    assert np.array_equal(linear.weight.grad, np.einsum("ri,ro->io", *rows))
    assert np.array_equal(x, kept[0]) and np.array_equal(dy, kept[1])


@pytest.mark.parametrize("how", ["strided", "reversed", "transposed", "read-only"])
def test_any_memory_layout(rng, how):
    linear = make(rng)
    x = whole(rng, 4, 6, 3)
    view = {
        "strided": x[:, ::2],
        "reversed": x[::-1],
        "transposed": x.transpose(1, 0, 2),
        "read-only": np.broadcast_to(x[:1], x.shape),
    }[how]
    y = linear(view)
    dx = linear.backward(np.broadcast_to(np.array([1.0, -2.0]), y.shape))
    other = make(np.random.default_rng(0))
    other.set_state_dict(linear.state_dict())
    assert np.array_equal(y, other(view.copy()))
    assert np.array_equal(dx, other.backward(np.ones(y.shape) * [1, -2]))
    assert np.array_equal(linear.weight.grad, other.weight.grad)


def test_gradients_add_up_until_cleared(rng):
    linear = make(rng)
    x, dy = whole(rng, 5, 3), whole(rng, 5, 2)
    for _ in range(2):
        linear(x)
        linear.backward(dy)
    assert np.array_equal(linear.weight.grad, 2 * x.T @ dy)
    linear.clear_gradients(set_to_zero=False)
    assert linear.weight.grad is None and linear.bias.grad is None


@pytest.mark.parametrize("frozen", [{"weight"}, {"bias"}, {"weight", "bias"}], ids=sorted)
def test_frozen_parameters_get_no_gradient(rng, frozen):
    linear = make(rng)
    for name in frozen:
        getattr(linear, name).trainable = False
    y = linear(whole(rng, 5, 3))
    dx = linear.backward(np.ones_like(y))
    assert np.array_equal(dx, np.ones((5, 2)) @ linear.weight.data.T)
    assert {n for n, p in linear.named_parameters() if p.grad is None} == frozen
    assert {n for n, p in linear.named_parameters() if p.buffer.gradient is None} == frozen


def test_defaults_are_paddle_s():
    linear = Linear(40, 60, seed=1)
    limit = np.sqrt(6 / 100)
    assert linear.weight.shape == (40, 60) and linear.bias.shape == (60,)
    assert linear.dtype == "float32"
    assert 0.98 * limit < abs(linear.weight.data).max() <= limit
    assert not linear.bias.data.any()


def test_seed_repeats_and_attributes_are_honoured():
    assert np.array_equal(Linear(3, 2, seed=5).weight.data, Linear(3, 2, seed=5).weight.data)
    assert not np.array_equal(Linear(3, 2, seed=5).weight.data, Linear(3, 2, seed=6).weight.data)
    assert not np.array_equal(Linear(3, 2).weight.data, Linear(3, 2).weight.data)
    linear = Linear(3, 2, ParamAttr("w", Constant(2.0), trainable=False), Constant(1.0), "head")
    assert (linear.weight.data == 2).all() and (linear.bias.data == 1).all()
    assert linear.weight.name == "w" and not linear.weight.trainable
    assert list(linear.state_dict()) == ["weight", "bias"]
    assert list(Linear(3, 2, bias_attr=False).state_dict()) == ["weight"]


def test_repr():
    assert repr(Linear(3, 2)) == "Linear(3, 2, dtype='float32')"
    assert repr(Linear(3, 2, bias_attr=False)) == "Linear(3, 2, bias_attr=False, dtype='float32')"


def test_input_is_kept_by_reference_and_freed(rng):
    linear = make(rng)
    x = whole(rng, 5, 3)
    linear(x)
    x[...] = 7
    linear.backward(np.ones((5, 2)))
    assert (linear.weight.grad == 35).all()


NO_CALL = "there is no call to go back through"


def backward_without_call(linear, x):
    linear.backward(np.ones((5, 2)))


def backward_twice(linear, x):
    linear(x)
    linear.backward(np.ones((5, 2)))
    linear.backward(np.ones((5, 2)))


def backward_after_no_grad(linear, x):
    linear(x)
    with no_grad():
        linear(x)
    linear.backward(np.ones((5, 2)))


def backward_after_clear_tape(linear, x):
    linear(x)
    linear.clear_tape()
    linear.backward(np.ones((5, 2)))


def backward_in_a_copy(linear, x):
    linear(x)
    copy.deepcopy(linear).backward(np.ones((5, 2)))


def backward_after_move(linear, x):
    linear(x)
    linear.to(dtype="float32")
    linear.backward(np.ones((5, 2)))


def backward_after_change(linear, x):
    linear(x)
    linear.weight.set_value(np.zeros((3, 2)))
    linear.backward(np.ones((5, 2)))


@pytest.mark.parametrize(
    ("misuse", "message"),
    [
        (backward_without_call, NO_CALL),
        (backward_twice, NO_CALL),
        (backward_after_no_grad, NO_CALL),
        (backward_after_clear_tape, NO_CALL),
        (backward_in_a_copy, NO_CALL),
        (backward_after_move, NO_CALL),
        (backward_after_change, "the weights have changed since"),
    ],
)
def test_backward_needs_its_call(rng, misuse, message):
    with pytest.raises(RuntimeError, match=message):
        misuse(make(rng), whole(rng, 5, 3))


def test_copies_and_pickles(rng):
    linear = make(rng)
    x = whole(rng, 5, 3)
    y = linear(x)
    for other in (copy.deepcopy(linear), pickle.loads(pickle.dumps(linear))):
        assert np.array_equal(other(x), y)
        other.weight.set_value(np.zeros((3, 2)))
    assert np.array_equal(linear(x), y)


def test_threads_do_not_see_each_other_s_calls(rng):
    linear = make(rng)
    inputs = [whole(rng, 5, 3) for _ in range(4)]
    called = threading.Barrier(len(inputs))
    found = [None] * len(inputs)

    def work(index):
        linear(inputs[index])
        called.wait()
        found[index] = linear.backward(np.full((5, 2), index + 1.0))

    threads = [threading.Thread(target=work, args=(k,)) for k in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = sum((k + 1) * x.sum(axis=0) for k, x in enumerate(inputs))
    assert np.array_equal(linear.weight.grad, np.stack([expected, expected], axis=1))
    for k, dx in enumerate(found):
        assert np.array_equal(dx, np.full((5, 2), k + 1.0) @ linear.weight.data.T)


X = np.ones((5, 3))


@pytest.mark.parametrize(
    ("make_it", "error", "message"),
    [
        (lambda: Linear(0, 2), ValueError, "in_features must be at least 1, received 0"),
        (lambda: Linear(3, -1), ValueError, "out_features must be at least 1, received -1"),
        (lambda: Linear(3.0, 2), TypeError, "in_features must be an integer, received 3.0"),
        (lambda: Linear(3, True), TypeError, "out_features must be an integer, received True"),
        (lambda: Linear(3, 2, False), TypeError, "weight_attr must be None, a bool, a name"),
        (lambda: Linear(3, 2, None, 4), TypeError, "bias_attr must be None, a bool, a name"),
        (lambda: Linear(3, 2, name=4), TypeError, "name must be a string or None, received 4"),
        (lambda: Linear(3, 2, dtype="int8"), ValueError, "dtype must be one of"),
        (lambda: Linear(3, 2, xp="jax"), ValueError, "xp must be one of"),
        (lambda: Linear(3, 2, seed=-1), ValueError, "seed must be at least 0, received -1"),
    ],
)
def test_bad_constructions(make_it, error, message):
    with pytest.raises(error, match=message):
        make_it()


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        ([[1.0, 2, 3]], TypeError, "x must be an array of numpy, received list"),
        (None, TypeError, "x must be an array of numpy, received NoneType"),
        (X.astype("float32"), ValueError, "x has dtype float32, but the weights have float64"),
        (X.astype(int), ValueError, "x has dtype int64, but the weights have float64"),
        (X[:, :2], ValueError, r"x has shape \[5, 2\], but must have shape \[5, 3\]"),
        (X[0, 0], TypeError, "x must be an array of numpy, received float64"),
        (np.array(1.0), ValueError, r"x has shape \[\], but must have shape \[3\]"),
    ],
)
def test_bad_inputs_leave_the_last_call_in_place(rng, x, error, message):
    linear = make(rng)
    linear(X)
    with pytest.raises(error, match=message):
        linear(x)
    linear.backward(np.ones((5, 2)))
    assert (linear.weight.grad == 5).all()


@pytest.mark.parametrize(
    ("dy", "error", "message"),
    [
        ([[1.0, 2]] * 5, TypeError, "dy must be an array of numpy, received list"),
        (np.ones((5, 2), "f"), ValueError, "dy has dtype float32, but the weights have float64"),
        (np.ones((5, 3)), ValueError, r"dy has shape \[5, 3\], but must have shape \[5, 2\]"),
        (np.ones((4, 2)), ValueError, r"dy has shape \[4, 2\], but must have shape \[5, 2\]"),
        (np.ones((1, 5, 2)), ValueError, r"dy has shape \[1, 5, 2\], but must have shape"),
        (np.array(1.0), ValueError, r"dy has shape \[\], but must have shape"),
    ],
)
def test_bad_gradients_change_nothing(rng, dy, error, message):
    linear = make(rng)
    linear(X)
    with pytest.raises(error, match=message):
        linear.backward(dy)
    assert linear.weight.grad is None and linear.bias.grad is None
    linear.backward(np.ones((5, 2)))
    assert (linear.weight.grad == 5).all()
