"""First values of weights: the laws they are drawn from, and the penalties on them.

A sample of n values obeys a continuous law if the largest distance of its distribution function
from the law's is below sqrt(log(2 / 1e-6) / (2 n)): by the inequality of Dvoretzky, Kiefer,
Wolfowitz and Massart a fair sample goes beyond it with a probability below 1e-6. The seeds are
fixed, so a test that passes once always passes.
"""

import copy
import math
import pickle

import numpy as np
import pytest

from cupy_lstm import LSTM, LSTMCell, ParamAttr
from cupy_lstm.initializer import (
    Assign,
    Constant,
    Fans,
    KaimingNormal,
    KaimingUniform,
    Normal,
    Orthogonal,
    TruncatedNormal,
    Uniform,
    XavierNormal,
    XavierUniform,
)
from cupy_lstm.regularizer import L1Decay, L2Decay

erf = np.vectorize(math.erf)


def uniform(low, high):
    return lambda x: np.clip((x - low) / (high - low), 0, 1)


def normal(mean, std):
    return lambda x: (1 + erf((x - mean) / (std * math.sqrt(2)))) / 2


def truncated(mean, std, bound):
    phi = normal(mean, std)
    low, high = (phi(np.array(mean + side * bound * std)) for side in (-1, 1))
    return lambda x: np.clip((phi(x) - low) / (high - low), 0, 1)


def assert_follows(values, law):
    """Fail unless the values are a fair sample of a law, given by its distribution function."""
    x = np.sort(np.ravel(values))
    below = np.arange(len(x) + 1) / len(x)
    distance = max((below[1:] - law(x)).max(), (law(x) - below[:-1]).max())
    assert distance <= math.sqrt(math.log(2e6) / (2 * len(x)))


SHAPE = (200, 300)
FANS = Fans(300, 50)


def drawn(initializer, shape=SHAPE, fans=FANS, seed=0):
    return initializer.draw(shape, fans, np.random.default_rng(seed))


UNIFORM = [
    (Uniform(), (-1, 1)),
    (Uniform(-0.3, 2), (-0.3, 2)),
    (XavierUniform(), (-math.sqrt(6 / 350), math.sqrt(6 / 350))),
    (KaimingUniform(), (-math.sqrt(6 / 300), math.sqrt(6 / 300))),
]
NORMAL = [
    (Normal(), (0, 1)),
    (Normal(3, 0.5), (3, 0.5)),
    (XavierNormal(), (0, math.sqrt(2 / 350))),
    (KaimingNormal(), (0, math.sqrt(2 / 300))),
]


@pytest.mark.parametrize(("initializer", "bounds"), UNIFORM, ids=str)
def test_uniform_laws(initializer, bounds):
    values = drawn(initializer)
    assert values.shape == SHAPE
    assert values.dtype == np.float64
    assert bounds[0] <= values.min() < values.max() < bounds[1]
    assert_follows(values, uniform(*bounds))


@pytest.mark.parametrize(("initializer", "moments"), NORMAL, ids=str)
def test_normal_laws(initializer, moments):
    values, (mean, std) = drawn(initializer), moments
    assert_follows(values, normal(*moments))
    # The moments, each within five of its standard errors: std / sqrt(n), and for the variance
    # of a normal law var * sqrt(2 / n).
    n = values.size
    assert abs(values.mean() - mean) <= 5 * std / math.sqrt(n)
    assert abs(values.var() / std**2 - 1) <= 5 * math.sqrt(2 / n)


@pytest.mark.parametrize("law", [(0, 1, 2), (3, 0.5, 1), (-1, 2, 0.1), (0, 1, 4)], ids=str)
def test_truncated_normal(law):
    values, (mean, std, bound) = drawn(TruncatedNormal(*law)), law
    # One rounding of the product and one of the sum.
    allowed = bound * std + 2 * np.finfo(float).eps * (abs(mean) + bound * std)
    assert abs(values - mean).max() <= allowed
    assert_follows(values, truncated(*law))


def test_constants():
    assert (drawn(Constant()) == 0).all()
    assert (drawn(Constant(-2.5)) == -2.5).all()
    assert (drawn(Normal(2, 0)) == 2).all()
    assert (drawn(Uniform(0.5, 0.5)) == 0.5).all()


@pytest.mark.parametrize("gain", [1.0, -2.5])
@pytest.mark.parametrize("shape", [(24, 7), (7, 24), (9, 9), (4, 1), (1, 5)])
def test_orthogonal(shape, gain):
    """Orthonormal rows or columns, whichever are fewer, up to the rounding of a QR: m n eps."""
    values = drawn(Orthogonal(gain), shape) / gain
    m, n = shape
    gram = values.T @ values if m >= n else values @ values.T
    assert abs(gram - np.eye(min(shape))).max() <= m * n * np.finfo(float).eps


def test_orthogonal_matrices_are_uniform():
    """Their elements have both signs alike: five deviations of a Binomial(n, 1/2)."""
    first = [drawn(Orthogonal(), (3, 3), seed=seed)[0, 0] for seed in range(400)]
    assert abs(np.sum(np.array(first) > 0) - 200) <= 5 * math.sqrt(400) / 2
    # An element of a uniform direction in space is uniform, as Archimedes found.
    assert_follows(first, uniform(-1, 1))


def test_assign():
    values = np.arange(48.0).reshape(16, 3)
    given = values.copy()
    lstm = LSTM(3, 4, weight_ih_attr=Assign(given))
    given[...] = 0
    assert np.array_equal(lstm.weight_ih_l0.data, values.astype("float32"))
    nested = LSTM(3, 4, weight_ih_attr=Assign(values.tolist()), dtype="float64")
    assert np.array_equal(nested.weight_ih_l0.data, values)
    shared = Assign(values)
    LSTM(3, 4, weight_ih_attr=shared, dtype="float64").weight_ih_l0.data[...] = 7
    assert np.array_equal(shared.value, values)


def test_assign_checks_the_shape():
    wrong = Assign(np.zeros((3, 16)))
    with pytest.raises(ValueError) as raised:
        LSTM(3, 4, weight_ih_attr=wrong)
    assert str(raised.value) == (
        "weight_ih_l0: Assign holds an array of shape [3, 16], but the weight has shape [16, 3]"
    )
    with pytest.raises(ValueError) as raised:
        LSTM(3, 4, 2, weight_ih_attr=Assign(np.zeros((16, 3))))
    assert str(raised.value).startswith("weight_ih_l1: ")


# What an LSTM makes of them.

I, H, P = 90, 160, 40  # noqa: E741


def test_default_law_is_paddle_s():
    """Weights, biases and the projection alike: uniform within 1 / sqrt(H)."""
    lstm = LSTM(I, H, 2, "bidirect", proj_size=P, seed=0)
    bound = 1 / math.sqrt(H)
    parameters = dict(lstm.named_parameters())
    assert len(parameters) == 20
    for parameter in parameters.values():
        assert_follows(parameter.data, uniform(-bound, bound))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_fans_are_those_of_one_gate_block(dtype):
    attrs = dict.fromkeys(
        ["weight_ih_attr", "weight_hh_attr", "bias_ih_attr", "bias_hh_attr"], XavierUniform()
    )
    lstm = LSTM(I, H, 2, "bidirect", proj_size=P, dtype=dtype, seed=0, **attrs)
    fans = {
        "weight_ih_l0": (I, H),
        "weight_ih_l1_reverse": (2 * P, H),
        "weight_hh_l0": (P, H),
        "bias_ih_l0": (H, H),
        "bias_hh_l1": (H, H),
        "weight_ho_l0_reverse": (H, P),
    }
    for name, (fan_in, fan_out) in fans.items():
        bound = math.sqrt(6 / (fan_in + fan_out))
        assert_follows(getattr(lstm, name).data, uniform(-bound, bound))
    attrs["weight_ih_attr"] = KaimingNormal()
    cell = LSTMCell(I, H, dtype=dtype, seed=0, **attrs)
    assert_follows(cell.weight_ih.data, normal(0, math.sqrt(2 / I)))


ALL = [
    None,
    Uniform(-2, 1),
    Normal(1, 3),
    TruncatedNormal(),
    XavierUniform(),
    XavierNormal(),
    KaimingUniform(),
    KaimingNormal(),
    Orthogonal(),
    Constant(1 / 3),
    Assign(np.random.default_rng(0).standard_normal((16, 3))),
]


@pytest.mark.parametrize("initializer", ALL, ids=lambda i: type(i).__name__)
def test_seed_repeats_and_dtypes_differ_by_rounding_only(initializer):
    def make(seed, dtype="float32"):
        return LSTM(3, 4, 1, "bidirect", weight_ih_attr=initializer, seed=seed, dtype=dtype)

    first, second, double = make(5), make(5), make(5, "float64")
    for name, parameter in first.named_parameters():
        assert np.array_equal(parameter.data, getattr(second, name).data)
        assert np.array_equal(parameter.data, getattr(double, name).data.astype("float32"))
    random = not isinstance(initializer, Constant | Assign)
    differ = not np.array_equal(make(6).weight_ih_l0.data, first.weight_ih_l0.data)
    assert differ == random
    directions = first.weight_ih_l0.data, first.weight_ih_l0_reverse.data
    assert np.array_equal(*directions) != random


def test_without_a_seed_weights_differ():
    first, second = LSTM(3, 4), LSTM(3, 4)
    assert not np.array_equal(first.weight_ih_l0.data, second.weight_ih_l0.data)


def test_global_random_state_is_neither_used_nor_changed():
    np.random.seed(0)  # noqa: NPY002 - the state under test
    expected = np.random.random()  # noqa: NPY002
    np.random.seed(0)  # noqa: NPY002
    LSTM(3, 4)
    assert np.random.random() == expected  # noqa: NPY002


@pytest.mark.parametrize("initializer", ALL[1:-1], ids=lambda i: type(i).__name__)
def test_initializers_are_values(initializer):
    for other in (copy.deepcopy(initializer), pickle.loads(pickle.dumps(initializer))):
        assert other == initializer
        assert hash(other) == hash(initializer)
    with pytest.raises(AttributeError):
        initializer.gain = 3


def test_several_weights_have_their_own_initializer():
    lstm = LSTM(
        3,
        4,
        weight_ih_attr=Constant(1),
        weight_hh_attr=ParamAttr(initializer=Constant(2)),
        bias_ih_attr=Constant(3),
        bias_hh_attr=Constant(4),
        proj_size=2,
    )
    for name, value in zip(
        ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0", "weight_ho_l0"),
        (1, 2, 3, 4, 2),
        strict=True,
    ):
        assert (getattr(lstm, name).data == value).all()


BAD = [
    (lambda: Constant("x"), TypeError, "value must be a number, received 'x'"),
    (lambda: Constant(None), TypeError, "value must be a number, received None"),
    (lambda: Constant(math.nan), ValueError, "value must lie in (-inf, inf), received nan"),
    (
        lambda: Uniform(1, -1),
        ValueError,
        "low must not exceed high, received low=1 and high=-1",
    ),
    (lambda: Uniform(math.nan), ValueError, "low must lie in (-inf, inf), received nan"),
    (lambda: Uniform(0, math.inf), ValueError, "high must lie in (-inf, inf), received inf"),
    (lambda: Uniform("a"), TypeError, "low must be a number, received 'a'"),
    (lambda: Normal("a"), TypeError, "mean must be a number, received 'a'"),
    (lambda: Normal(0, -1), ValueError, "std must lie in [0, inf), received -1"),
    (lambda: TruncatedNormal(0, -1), ValueError, "std must lie in [0, inf), received -1"),
    (lambda: TruncatedNormal(math.inf), ValueError, "mean must lie in (-inf, inf), received inf"),
    (
        lambda: TruncatedNormal(bound=1e-9),
        ValueError,
        "bound must lie in [0.01, inf), received 1e-09",
    ),
    (lambda: Orthogonal("x"), TypeError, "gain must be a number, received 'x'"),
    (lambda: Assign("abc"), TypeError, "value must be an array of numbers, received str"),
    (lambda: Assign([[1], [2, 3]]), TypeError, "value must be an array of numbers, received list"),
    (lambda: Assign({}), TypeError, "value must be an array of numbers, received dict"),
    (
        lambda: LSTM(3, 4, bias_ih_attr=Orthogonal()),
        ValueError,
        "bias_ih_l0: Orthogonal draws matrices, but the weight has shape [16]",
    ),
    (lambda: L2Decay("x"), TypeError, "coeff must be a number, received 'x'"),
    (lambda: L1Decay(None), TypeError, "coeff must be a number, received None"),
    (lambda: L1Decay(-1), ValueError, "coeff must lie in [0, inf), received -1"),
    (lambda: L2Decay(math.nan), ValueError, "coeff must lie in [0, inf), received nan"),
]


@pytest.mark.parametrize(("make", "error", "message"), BAD, ids=[bad[2] for bad in BAD])
def test_bad_arguments(make, error, message):
    with pytest.raises(error) as raised:
        make()
    assert type(raised.value) is error
    assert str(raised.value) == message


# Regularizers.


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("coeff", [0, 0.25, np.float64(0.25), np.float32(0.25)], ids=repr)
def test_decays(coeff, dtype):
    weight = np.array([[-2, 0, 3], [0.5, -0.25, 8]], dtype)
    before = weight.copy()
    for decay, expected in (
        (L1Decay(coeff), coeff * np.array([[-1, 0, 1], [1, -1, 1]])),
        (L2Decay(coeff), coeff * before),
    ):
        gradient = decay.gradient(weight)
        assert gradient.dtype == dtype
        assert np.array_equal(gradient, expected)
    assert np.array_equal(weight, before)


@pytest.mark.parametrize("decay", [L1Decay, L2Decay])
def test_decay_is_the_gradient_of_its_penalty(decay):
    """Central differences of coeff * sum|w| and of coeff / 2 * sum w^2, linear and quadratic."""
    penalty = {
        L1Decay: lambda w: 0.5 * abs(w).sum(),
        L2Decay: lambda w: 0.25 * (w * w).sum(),
    }[decay]
    weight, step = np.array([-2.0, 0.5, 3.0]), 2**-10  # exact in binary, and so is the difference
    for k in range(3):
        ahead, behind = weight.copy(), weight.copy()
        ahead[k] += step
        behind[k] -= step
        slope = (penalty(ahead) - penalty(behind)) / (2 * step)
        assert decay(0.5).gradient(weight)[k] == slope


def test_decays_are_values():
    assert L2Decay(0.5) == L2Decay(0.5) != L2Decay(0.25)
    assert L2Decay(0.5) != L1Decay(0.5)
    for other in (copy.deepcopy(L1Decay(0.5)), pickle.loads(pickle.dumps(L1Decay(0.5)))):
        assert other == L1Decay(0.5)
