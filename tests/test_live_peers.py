"""Live comparison with PyTorch and Paddle, where they are installed.

A peer runs in float64 and is the reference; ours runs in float32 under the error rule.
"""

import numpy as np
import pytest
from cases import (
    CASES,
    assert_within_rule,
    backward,
    build,
    forward,
    make_lstm,
    naive,
    results,
)
from oracle import Result
from torch_cases import from_torch, imported, run_torch

# Each weight twice in a state dict, by two names, of which we give one.
pytestmark = pytest.mark.filterwarnings("ignore:Skip loading for")


@pytest.fixture(scope="module")
def torch():
    return imported("torch")


@pytest.fixture(scope="module")
def paddle():
    module = imported("paddle")
    module.set_default_dtype("float64")
    yield module
    module.set_default_dtype("float32")


def named(*ids):
    chosen = [case for case in CASES if case.id in ids]
    assert len(chosen) == len(ids)
    return pytest.mark.parametrize("case", chosen, ids=ids and [case.id for case in chosen])


def assert_ours_agrees(case, lstm, peer):
    """Run ours in float32 and hold it against what the peer gave in float64."""
    arrays = build(case, "float32")
    ours = results(backward(lstm, case, arrays, forward(lstm, case, arrays)))
    yardstick = results(naive(case, "float32"))
    for name, truth in results(peer).items():
        assert_within_rule(name, ours[name], truth, yardstick[name])


def doubled(arrays):
    return {name: array.astype(np.float64) for name, array in arrays.items()}


@named(
    "plain-states",
    "plain-time-major",
    "no-bias",
    "2-layers-bidirectional",
    "lengths-short",
    "lengths-short-bidirectional",
    "lengths-one",
    "long-bidirectional-lengths",
    "h17-bidirectional-time-major",
)
def test_torch_state_dict_as_it_is(torch, case):
    model, result = run_torch(torch, case)
    weights = {n: w.numpy().astype("float32") for n, w in model.state_dict().items()}
    assert_ours_agrees(case, make_lstm(case, weights, "float32"), result)


@named("projection", "projection-h-minus-1", "projection-2-layers")
def test_torch_projection_transposed(torch, case):
    model, result = run_torch(torch, case)
    weights = {n: w.numpy().astype("float32") for n, w in model.state_dict().items()}
    weights = dict(from_torch(*item) for item in weights.items())
    assert_ours_agrees(case, make_lstm(case, weights, "float32"), result)


# Paddle: every parameter twice in its state_dict, by a flat name and by the name in its cell.
# With a projection the flat names are shifted by one weight a cell and only the others are right.


def cell_names(case):
    """Return Paddle's name by cell of each of our names."""
    names = {}
    for name in case.weight_shapes():
        kind, _, end = name.partition("_l")
        layer, _, reverse = end.partition("_")
        cell = "cell" if case.D == 1 else ("cell_bw" if reverse else "cell_fw")
        names[name] = f"{layer}.{cell}.{kind}"
    return names


def run_paddle(paddle, case, gradients=True):
    """Return Paddle's model and its results, from the float32 arrays of the case."""
    arrays = build(case, "float32")
    model = paddle.nn.LSTM(
        case.I,
        case.H,
        case.L,
        "bidirect" if case.bidirectional else "forward",
        case.time_major,
        proj_size=case.P,
    )
    weights = doubled(arrays.weights)
    model.set_state_dict({cell: weights[name] for name, cell in cell_names(case).items()})
    x = paddle.to_tensor(arrays.x.astype("float64"), stop_gradient=False)
    states = arrays.states and tuple(
        paddle.to_tensor(s.astype("float64"), stop_gradient=False) for s in arrays.states
    )
    lengths = None if arrays.lengths is None else paddle.to_tensor(arrays.lengths)
    y, (h, c) = model(x, states, lengths)
    outputs = {"y": y, "h": h, "c": c}
    result = Result(*(a.numpy() for a in (y, h, c)), cells=None)
    if gradients:
        up = doubled(arrays.upstream)
        sum((outputs[n] * paddle.to_tensor(a)).sum() for n, a in up.items()).backward()
        result.dx = x.grad.numpy()
        if states:
            result.dh0, result.dc0 = (s.grad.numpy() for s in states)
        by_cell = dict(model.named_parameters(remove_duplicate=False))
        result.grads = {name: by_cell[c].grad.numpy() for name, c in cell_names(case).items()}
    return model, result


def state_dict_of(model):
    return {name: w.numpy().astype("float32") for name, w in model.state_dict().items()}


@pytest.mark.parametrize("spelling", ["flat", "cell", "both"])
@named("plain", "plain-time-major", "2-layers-bidirectional", "lengths-mixed-states")
def test_paddle_state_dict_in_every_spelling(paddle, case, spelling):
    model, result = run_paddle(paddle, case)
    weights = state_dict_of(model)
    chosen = {
        n: w for n, w in weights.items() if spelling == "both" or ("." in n) == (spelling == "cell")
    }
    assert len(chosen) == len(case.weight_shapes()) * (2 if spelling == "both" else 1)
    assert_ours_agrees(case, make_lstm(case, chosen, "float32"), result)


@named("projection", "projection-h-minus-1", "projection-2-layers")
def test_paddle_projection_with_shifted_flat_names(paddle, case):
    model, result = run_paddle(paddle, case)
    weights = state_dict_of(model)
    assert set(cell_names(case).values()) <= set(weights)
    assert_ours_agrees(case, make_lstm(case, weights, "float32"), result)


@named(
    "lengths-mixed-2-layers-bidirectional", "lengths-zero", "lengths-mixed-time-major-bidirectional"
)
def test_paddle_forward_with_lengths_in_both_directions(paddle, case):
    """Without gradients: Paddle's own are wrong here for the reverse recurrent weights."""
    model, result = run_paddle(paddle, case, gradients=False)
    assert_ours_agrees(case, make_lstm(case, state_dict_of(model), "float32"), result)


@named("plain-states", "2-layers-bidirectional")
def test_paddle_reads_our_state_dict(paddle, case):
    weights = build(case, "float64").weights
    model = paddle.nn.LSTM(case.I, case.H, case.L, "bidirect" if case.D == 2 else "forward")
    model.set_state_dict(make_lstm(case, weights, "float64").state_dict())
    for name, parameter in model.named_parameters():
        assert np.array_equal(parameter.numpy(), weights[name])
