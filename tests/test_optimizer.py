"""Optimisers: several float64 steps against formulas written down here, and against torch."""

import copy
import pickle
from dataclasses import dataclass, field

import numpy as np
import pytest

from cupy_lstm import ParamAttr
from cupy_lstm.buffer import Buffer
from cupy_lstm.clip import ClipGradByGlobalNorm
from cupy_lstm.linear import Linear
from cupy_lstm.optimizer import SGD, Adam, AdamW
from cupy_lstm.parameter import Parameter
from cupy_lstm.regularizer import L1Decay, L2Decay
from cupy_lstm.schedule import LinearWarmup, StepDecay

STEPS = 6
SHAPES = [(3, 4), (5,), (1, 1)]
# Each step rounds some twenty times, and weights and averages are of order one.
TOLERANCE = 20 * STEPS * np.finfo(np.float64).eps


@dataclass
class Problem:
    """Some parameters, and the gradients they get step by step, as arrays and as Parameters."""

    attrs: list = field(default_factory=lambda: [ParamAttr()] * len(SHAPES))
    dtype: str = "float64"

    def __post_init__(self):
        rng = np.random.default_rng(0)
        self.weights = [rng.normal(size=shape).astype(self.dtype) for shape in SHAPES]
        self.gradients = [
            [rng.normal(size=s).astype(self.dtype) for s in SHAPES] for _ in range(STEPS)
        ]
        self.parameters = [
            Parameter(Buffer(w[None].copy()), 0, f"w{k}", attr)
            for k, (w, attr) in enumerate(zip(self.weights, self.attrs, strict=True))
        ]

    def run(self, optimizer, steps=range(STEPS)):
        for step in steps:
            give(self.parameters, self.gradients[step])
            optimizer.step()
        return optimizer

    def assert_weights(self, expected):
        for parameter, weight in zip(self.parameters, expected, strict=True):
            assert abs(parameter.data - weight).max() <= TOLERANCE


def give(parameters, gradients):
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if gradient is not None:
            parameter.buffer.make_gradient()[0] = gradient
            parameter.has_gradient = True


def sgd(w, gradients, rate=0.1, momentum=0.0, nesterov=False, decay=lambda w: 0.0):
    velocity = 0.0
    for k, g in enumerate(gradients):
        g = g + decay(w)
        velocity = momentum * velocity + g
        w = w - (rate(k) if callable(rate) else rate) * (
            g + momentum * velocity if nesterov else velocity
        )
    return w


def adam(
    w, gradients, rate=0.1, betas=(0.9, 0.999), epsilon=1e-8, decay=lambda w: 0.0, decoupled=0.0
):
    m, v = 0.0, 0.0
    for t, g in enumerate(gradients, start=1):
        r = rate(t - 1) if callable(rate) else rate
        g = g + decay(w)
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g**2
        w = w * (1 - r * decoupled)
        w = w - r * (m / (1 - betas[0] ** t)) / (np.sqrt(v / (1 - betas[1] ** t)) + epsilon)
    return w


CASES = {
    "sgd": (SGD, {}, sgd, {}),
    "momentum": (SGD, {"momentum": 0.9}, sgd, {"momentum": 0.9}),
    "nesterov": (
        SGD,
        {"momentum": 0.8, "nesterov": True},
        sgd,
        {"momentum": 0.8, "nesterov": True},
    ),
    "sgd with decay": (SGD, {"weight_decay": 0.3}, sgd, {"decay": lambda w: 0.3 * w}),
    "sgd with L1": (
        SGD,
        {"weight_decay": L1Decay(0.3), "momentum": 0.5},
        sgd,
        {"decay": lambda w: 0.3 * np.sign(w), "momentum": 0.5},
    ),
    "adam": (Adam, {}, adam, {}),
    "adam's options": (
        Adam,
        {"beta1": 0.7, "beta2": 0.9, "epsilon": 0.01},
        adam,
        {"betas": (0.7, 0.9), "epsilon": 0.01},
    ),
    "adam without memory": (Adam, {"beta1": 0, "beta2": 0}, adam, {"betas": (0, 0)}),
    "adam with decay": (
        Adam,
        {"weight_decay": L2Decay(0.3)},
        adam,
        {"decay": lambda w: 0.3 * w},
    ),
    "adamw": (AdamW, {}, adam, {"decoupled": 0.01}),
    "adamw's options": (
        AdamW,
        {"beta1": 0.7, "beta2": 0.9, "epsilon": 0.01, "weight_decay": 0.3},
        adam,
        {"betas": (0.7, 0.9), "epsilon": 0.01, "decoupled": 0.3},
    ),
    "adamw without decay": (AdamW, {"weight_decay": 0}, adam, {}),
}
each_case = pytest.mark.parametrize(
    ("kind", "options", "formula", "constants"), CASES.values(), ids=CASES
)
each_kind = pytest.mark.parametrize(
    ("kind", "formula"),
    [(SGD, sgd), (Adam, adam), (AdamW, lambda *a, **k: adam(*a, decoupled=0.01, **k))],
    ids=["SGD", "Adam", "AdamW"],
)


def columns(rows):
    return list(zip(*rows, strict=True))


@each_case
def test_formulas(kind, options, formula, constants):
    problem = Problem()
    problem.run(kind(0.1, problem.parameters, **options))
    problem.assert_weights(
        formula(w, g, **constants)
        for w, g in zip(problem.weights, columns(problem.gradients), strict=True)
    )


@each_kind
def test_default_learning_rate(kind, formula):
    problem = Problem()
    optimizer = problem.run(kind(parameters=problem.parameters))
    assert optimizer.learning_rate == 0.001
    problem.assert_weights(
        formula(w, g, rate=0.001)
        for w, g in zip(problem.weights, columns(problem.gradients), strict=True)
    )


@each_kind
@pytest.mark.parametrize(
    "schedule",
    [StepDecay(0.1, 2, 0.5), LinearWarmup(0.1, 3), lambda k: 0.1 / (1 + k)],
    ids=lambda schedule: type(schedule).__name__,
)
def test_schedules_are_followed_step_by_step(kind, formula, schedule):
    problem = Problem()
    optimizer = kind(schedule, problem.parameters)
    for step in range(STEPS):
        assert optimizer.learning_rate == schedule(step)
        problem.run(optimizer, [step])
    problem.assert_weights(
        formula(w, g, rate=schedule)
        for w, g in zip(problem.weights, columns(problem.gradients), strict=True)
    )


@each_kind
def test_each_parameter_has_its_factor_and_regularizer(kind, formula):
    attrs = [
        ParamAttr(learning_rate=0.5),
        ParamAttr(regularizer=L1Decay(0.2)),
        ParamAttr(learning_rate=0.0, regularizer=L2Decay(0.0)),
    ]
    problem = Problem(attrs)
    problem.run(kind(0.1, problem.parameters, **({} if kind is AdamW else {"weight_decay": 0.4})))
    common = (lambda w: 0.0) if kind is AdamW else (lambda w: 0.4 * w)
    own = [common, lambda w: 0.2 * np.sign(w), lambda w: 0.0]
    problem.assert_weights(
        formula(w, g, rate=0.1 * attr.learning_rate, decay=decay)
        for w, g, attr, decay in zip(
            problem.weights, columns(problem.gradients), attrs, own, strict=True
        )
    )


@each_kind
def test_clipping_comes_before_the_regularizer(kind, formula):
    attrs = [ParamAttr(), ParamAttr(need_clip=False), ParamAttr(regularizer=L2Decay(0.2))]
    problem = Problem(attrs)
    problem.run(kind(0.1, problem.parameters, grad_clip=ClipGradByGlobalNorm(0.5)))
    clipped = []
    for first, second, third in problem.gradients:
        factor = 0.5 / np.sqrt((first**2).sum() + (third**2).sum())
        clipped.append((first * factor, second, third * factor))
    own = [lambda w: 0.0, lambda w: 0.0, lambda w: 0.2 * w]
    problem.assert_weights(
        formula(w, g, decay=decay)
        for w, g, decay in zip(problem.weights, columns(clipped), own, strict=True)
    )


@each_kind
def test_frozen_and_gradient_less_parameters_are_left_alone(kind, formula):
    problem = Problem()
    frozen, late, _ = problem.parameters
    optimizer = kind(0.1, problem.parameters)
    frozen.trainable = False
    versions = [p.buffer.version for p in problem.parameters]
    for step, (first, second, third) in enumerate(problem.gradients):
        give(problem.parameters, (first, second if step >= 2 else None, third))
        optimizer.step()
    assert [p.buffer.version - v for p, v in zip(problem.parameters, versions, strict=True)] == [
        0,
        STEPS - 2,
        STEPS,
    ]
    first, second, third = columns(problem.gradients)
    problem.assert_weights(
        [
            problem.weights[0],
            formula(problem.weights[1], second[2:]),
            formula(problem.weights[2], third),
        ]
    )
    assert late.has_gradient


@pytest.mark.parametrize("options", [{"grad_clip": ClipGradByGlobalNorm(0.5)}, {"weight_decay": 1}])
def test_a_step_reads_gradients_and_writes_weights_in_place(options):
    problem = Problem()
    views = [p.data for p in problem.parameters]
    problem.run(Adam(0.1, problem.parameters, **options))
    for parameter, view, gradient in zip(
        problem.parameters, views, problem.gradients[-1], strict=True
    ):
        assert np.array_equal(parameter.grad, gradient)
        assert np.shares_memory(parameter.data, view) and np.array_equal(parameter.data, view)


@pytest.mark.parametrize("kind", [SGD, Adam, AdamW])
def test_clear_grad(kind):
    problem = Problem()
    optimizer = problem.run(kind(0.1, problem.parameters))
    optimizer.clear_grad()
    assert all(p.grad is not None and not p.grad.any() for p in problem.parameters)
    optimizer.clear_grad(set_to_zero=False)
    assert all(p.grad is None for p in problem.parameters)
    before = [p.data.copy() for p in problem.parameters]
    optimizer.step()
    for parameter, weight in zip(problem.parameters, before, strict=True):
        assert np.array_equal(parameter.data, weight)


def test_parameters_of_one_buffer_are_updated_apart():
    both = Buffer(np.array([[1.0, 2], [3, 4]]))
    first, second = (Parameter(both, k, "w", ParamAttr(learning_rate=1 + k)) for k in range(2))
    both.make_gradient()[...] = 1
    first.has_gradient = second.has_gradient = True
    SGD(0.5, [first, second]).step()
    assert both.data.tolist() == [[0.5, 1.5], [2, 3]]


def test_float32_stays_float32():
    problem = Problem(dtype="float32")
    optimizer = problem.run(
        AdamW(0.1, problem.parameters, grad_clip=ClipGradByGlobalNorm(1.0), weight_decay=0.1)
    )
    arrays = [value for value in optimizer.state_dict().values() if isinstance(value, np.ndarray)]
    assert len(arrays) == 2 * len(SHAPES)
    assert {a.dtype.name for a in arrays} == {p.data.dtype.name for p in problem.parameters}
    assert problem.parameters[0].dtype == "float32"


def test_learning_rate_can_be_set():
    problem = Problem()
    optimizer = SGD(0.1, problem.parameters)
    optimizer.learning_rate = 0.25
    problem.run(optimizer, [0])
    assert optimizer.learning_rate == 0.25
    problem.assert_weights(
        w - 0.25 * g for w, g in zip(problem.weights, problem.gradients[0], strict=True)
    )


KINDS = {
    "sgd": lambda p: SGD(0.1, p),
    "momentum": lambda p: SGD(StepDecay(0.1, 2), p, momentum=0.9),
    "adam": lambda p: Adam(0.1, p),
    "adamw": lambda p: AdamW(LinearWarmup(0.1, 4), p),
}
each_make = pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)


def copied(state):
    return {k: v.copy() if isinstance(v, np.ndarray) else v for k, v in state.items()}


@each_make
def test_a_loaded_state_goes_on_bit_by_bit(make):
    through, parted = Problem(), Problem()
    through.run(make(through.parameters))
    state = copied(parted.run(make(parted.parameters), range(3)).state_dict())
    kept = copied(state)
    resumed = make(parted.parameters)
    resumed.set_state_dict(state)
    parted.run(resumed, range(3, STEPS))
    for one, other in zip(through.parameters, parted.parameters, strict=True):
        assert np.array_equal(one.data, other.data)
    for key, value in kept.items():  # loading copies
        assert np.array_equal(state[key], value)


@each_make
@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))]
)
def test_copies_go_on_apart(make, duplicate):
    problem = Problem()
    optimizer = problem.run(make(problem.parameters), range(3))
    parameters, twin = duplicate((problem.parameters, optimizer))
    before = [p.data.copy() for p in problem.parameters]
    for step in range(3, STEPS):
        give(parameters, problem.gradients[step])
        twin.step()
    for parameter, weight in zip(problem.parameters, before, strict=True):
        assert np.array_equal(parameter.data, weight)
    problem.run(optimizer, range(3, STEPS))
    for one, other in zip(problem.parameters, parameters, strict=True):
        assert np.array_equal(one.data, other.data)


def test_state_names():
    layers = [Linear(2, 1, seed=0), Linear(1, 2, bias_attr=False, seed=0)]
    parameters = [p for layer in layers for p in layer.parameters()]
    state = Adam(0.5, parameters).state_dict()
    assert {k: v for k, v in state.items() if not isinstance(v, np.ndarray)} == {
        "steps": 0,
        "learning_rate": 0.5,
        "0.weight.updates": 0,
        "1.bias.updates": 0,
        "2.weight.updates": 0,
    }
    assert {k: v.shape for k, v in state.items() if isinstance(v, np.ndarray)} == {
        f"{index}.{name}.{moment}": shape
        for index, name, shape in ((0, "weight", (2, 1)), (1, "bias", (1,)), (2, "weight", (1, 2)))
        for moment in ("moment1", "moment2")
    }
    assert set(SGD(StepDecay(0.1, 2), parameters[:1]).state_dict()) == {
        "steps",
        "0.weight.updates",
    }


def without(key):
    return lambda state: {k: v for k, v in state.items() if k != key}


def changed(key, value):
    return lambda state: state | {key: value}


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (lambda s: list(s), TypeError, "state_dict must be a mapping .* received list"),
        (without("steps"), ValueError, r"missing \['steps'\], unknown \[\]; nothing was loaded"),
        (without("1.w1.moment2"), ValueError, r"missing \['1.w1.moment2'\], unknown \[\]"),
        (changed("3.w3.moment1", 1), ValueError, r"missing \[\], unknown \['3.w3.moment1'\]"),
        (changed("steps", -1), ValueError, r"state_dict\['steps'\] must be at least 0"),
        (changed("steps", 2.5), TypeError, r"state_dict\['steps'\] must be an integer"),
        (changed("0.w0.updates", "2"), TypeError, r"\['0.w0.updates'\] must be an integer"),
        (changed("learning_rate", -0.1), ValueError, r"\['learning_rate'\] must lie in"),
        (changed("learning_rate", None), TypeError, r"\['learning_rate'\] must be a number"),
        (changed("1.w1.moment2", [0.0] * 5), TypeError, r"moment2'\] must be an array, received l"),
        (
            changed("1.w1.moment2", np.zeros(4)),
            ValueError,
            r"moment2'\] has shape \(4,\) and dtype float64, but must have \(5,\) and float64",
        ),
        (
            changed("1.w1.moment2", np.zeros(5, "f")),
            ValueError,
            r"moment2'\] has shape \(5,\) and dtype float32, but must have \(5,\) and float64",
        ),
    ],
)
def test_bad_states_change_nothing(spoil, error, message):
    problem = Problem()
    optimizer = problem.run(Adam(0.1, problem.parameters), range(2))
    before = copied(optimizer.state_dict())
    other = {
        key: value + (1 if key.endswith(("steps", "updates")) else 0.5)
        for key, value in before.items()
    }
    with pytest.raises(error, match=message):
        optimizer.set_state_dict(spoil(other))
    for key, value in optimizer.state_dict().items():
        assert np.array_equal(value, before[key])
    optimizer.set_state_dict(other)
    for key, value in optimizer.state_dict().items():
        assert np.array_equal(value, other[key])


def parameters():
    return Problem().parameters


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: SGD(0.1), ValueError, "parameters is empty"),
        (lambda: SGD(0.1, Linear(2, 2)), TypeError, "iterable of Parameter, received Linear: give"),
        (lambda: SGD(0.1, None), TypeError, "parameters must be an iterable .* received NoneType"),
        (lambda: SGD(0.1, [1]), TypeError, r"parameters\[0\] must be a Parameter, received int"),
        (lambda: SGD(0.1, parameters()[:1] * 2), ValueError, "holds a parameter twice"),
        (lambda: SGD(-0.1, parameters()), ValueError, r"learning_rate must lie in \[0, inf\)"),
        (lambda: SGD(np.nan, parameters()), ValueError, "learning_rate must lie in"),
        (lambda: SGD("0.1", parameters()), TypeError, "learning_rate must be a number"),
        (lambda: SGD(True, parameters()), TypeError, "learning_rate must be a number"),
        (lambda: SGD(0.1, parameters(), momentum=1), ValueError, r"momentum must lie in \[0, 1\)"),
        (lambda: SGD(0.1, parameters(), nesterov=True), ValueError, "nesterov=True needs momentum"),
        (lambda: Adam(0.1, parameters(), beta1=1.0), ValueError, r"beta1 must lie in \[0, 1\)"),
        (lambda: Adam(0.1, parameters(), beta2=-0.1), ValueError, r"beta2 must lie in \[0, 1\)"),
        (lambda: Adam(0.1, parameters(), epsilon=0), ValueError, r"epsilon must lie in \(0, inf\)"),
        (lambda: Adam(0.1, parameters(), weight_decay=-1), ValueError, "weight_decay must lie in"),
        (lambda: Adam(0.1, parameters(), weight_decay="L2"), TypeError, "weight_decay must be a n"),
        (lambda: AdamW(0.1, parameters(), weight_decay=L2Decay(1)), TypeError, "weight_decay must"),
        (lambda: SGD(0.1, parameters(), grad_clip=1.0), TypeError, "grad_clip must be callable"),
    ],
)
def test_bad_constructions(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [(-1, ValueError, "learning_rate must lie in"), (None, TypeError, "must be a number")],
)
def test_bad_learning_rates(value, error, message):
    optimizer = SGD(0.1, parameters())
    with pytest.raises(error, match=message):
        optimizer.learning_rate = value
    assert optimizer.learning_rate == 0.1


def test_a_schedule_cannot_be_overruled():
    with pytest.raises(RuntimeError, match=r"the learning rate follows StepDecay\("):
        SGD(StepDecay(0.1, 2), parameters()).learning_rate = 0.2


def refuse(pairs):
    raise OverflowError("refused")


@pytest.mark.parametrize(
    ("options", "error"),
    [({"grad_clip": refuse}, OverflowError), ({"learning_rate": lambda k: -1.0}, ValueError)],
    ids=["clip", "schedule"],
)
def test_a_failed_step_changes_nothing(options, error):
    problem = Problem()
    options = {"learning_rate": 0.1} | options
    optimizer = Adam(parameters=problem.parameters, **options)
    before = copied(optimizer.state_dict())
    with pytest.raises(error):
        problem.run(optimizer, [0])
    problem.assert_weights(problem.weights)
    for key, value in optimizer.state_dict().items():
        assert np.array_equal(value, before[key])


def test_moved_parameters_are_noticed():
    linear = Linear(2, 2)
    optimizer = Adam(0.1, linear.parameters())
    linear.to(dtype="float64")
    linear.backward(np.ones_like(linear(np.ones((1, 2)))))
    before = linear.weight.data.copy()
    with pytest.raises(RuntimeError, match=r"weight is float64 on numpy, but was float32 on numpy"):
        optimizer.step()
    assert np.array_equal(linear.weight.data, before)


TORCH = {
    "sgd": (SGD, {}, "SGD", {}),
    "momentum": (SGD, {"momentum": 0.9}, "SGD", {"momentum": 0.9}),
    "nesterov": (
        SGD,
        {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
        "SGD",
        {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
    ),
    "adam": (Adam, {}, "Adam", {}),
    "adam with decay": (Adam, {"weight_decay": 0.1}, "Adam", {"weight_decay": 0.1}),
    "adamw": (AdamW, {"beta2": 0.9}, "AdamW", {"betas": (0.9, 0.9)}),
    "adamw with decay": (AdamW, {"weight_decay": 0.2}, "AdamW", {"weight_decay": 0.2}),
}


@pytest.mark.parametrize(("kind", "options", "name", "theirs"), TORCH.values(), ids=TORCH)
def test_against_torch(kind, options, name, theirs):
    torch = pytest.importorskip("torch", reason="torch is not installed: no live comparison")
    problem = Problem()
    tensors = [torch.nn.Parameter(torch.from_numpy(w.copy())) for w in problem.weights]
    other = getattr(torch.optim, name)(tensors, lr=0.1, **theirs)
    for gradients in problem.gradients:
        for tensor, gradient in zip(tensors, gradients, strict=True):
            tensor.grad = torch.from_numpy(gradient.copy())
        other.step()
    problem.run(kind(0.1, problem.parameters, **options))
    problem.assert_weights(tensor.detach().numpy() for tensor in tensors)
