"""The bridge and PyTorch's autograd: graphs of any kind, and what they refuse."""

import contextlib
import gc
import itertools
import weakref

import numpy as np
import pytest
from torch_cases import assert_as_oracle, imported, normal, parameter_gradients

torch = imported("torch", "the bridge is not tried")

from cupy_lstm.functional import Tape  # noqa: E402
from cupy_lstm.torch import LSTM  # noqa: E402

rnn = torch.nn.utils.rnn


def gradients(lstm):
    return [None if p.grad is None else p.grad.clone() for p in lstm.parameters()]


def equal(first, second):
    return all(
        a is b if a is None or b is None else torch.equal(a, b)
        for a, b in zip(first, second, strict=True)
    )


# --- gradcheck -----------------------------------------------------------------------------------

CHECKED = {
    "plain": {},
    "bidirectional": {"bidirectional": True, "num_layers": 2},
    "projection": {"proj_size": 2, "bidirectional": True},
    "no-bias-batch-first": {"bias": False, "batch_first": True, "num_layers": 2},
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", CHECKED)
def test_gradcheck(name, packed):
    """With every argument, and with gradients of any subset of the results undefined."""
    options, D = CHECKED[name], 1 + ("bidirectional" in CHECKED[name])
    lstm = LSTM(2, 3, dtype=torch.float64, **options)
    names = [n for n, _ in lstm.named_parameters()]
    cells = D * options.get("num_layers", 1)
    x, h, c, *weights = (
        normal(torch, *shape, seed=seed, dtype="float64", requires_grad=True)
        for seed, shape in enumerate(
            [(3, 2, 2), (cells, 2, options.get("proj_size", 3)), (cells, 2, 3)]
            + [tuple(p.shape) for p in lstm.parameters()]
        )
    )
    batch_first = "batch_first" in options
    if batch_first:
        x = x.detach().transpose(0, 1).contiguous().requires_grad_()

    def call(x, h, c, *weights):
        if packed:
            x = rnn.pack_padded_sequence(x, torch.tensor([1, 3]), batch_first, False)
        arguments = dict(zip(names, weights, strict=True)), (x, (h, c))
        y, (h, c) = torch.func.functional_call(lstm, *arguments)
        return (y.data if packed else y), h, c

    assert torch.autograd.gradcheck(call, (x, h, c, *weights))


# --- graphs --------------------------------------------------------------------------------------


def test_several_calls_before_one_backward():
    lstm, x = LSTM(3, 4, 2), normal(torch, 5, 2, 3)
    parts = []
    for scale in (1, 2, 3):
        lstm.zero_grad()
        lstm(scale * x)[0].sum().backward()
        parts.append(gradients(lstm))
    lstm.zero_grad()
    losses = [lstm(scale * x)[0].sum() for scale in (1, 2, 3)]
    sum(losses).backward()
    for p, terms in zip(lstm.parameters(), zip(*parts, strict=True), strict=True):
        # Three terms in any order: 3 eps times the sum of their magnitudes.
        bound = 3 * np.finfo("float32").eps * float(sum(abs(t).max() for t in terms))
        assert abs(p.grad.double() - sum(t.double() for t in terms)).max() <= bound


def test_one_lstm_twice_in_a_graph_with_the_state_carried():
    lstm = LSTM(3, 4, dtype=torch.float64)
    x, dy = (normal(torch, 6, 2, size, dtype="float64") for size in (3, 4))
    y, states = lstm(x[:3])
    z, _ = lstm(x[3:], states)
    both = torch.cat([y, z])
    both.backward(dy)
    assert_as_oracle(lstm, {"y": both} | parameter_gradients(lstm), x, upstream={"y": dy})


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_a_retained_graph_can_be_gone_back_through_again(dropout):
    lstm = LSTM(3, 4, 2, bidirectional=True, dropout=dropout)
    y, (h, _) = lstm(normal(torch, 5, 2, 3))
    loss = y.sum() + h.sum()
    passes = []
    for _ in range(3):
        lstm.zero_grad()
        loss.backward(retain_graph=True)
        passes.append(gradients(lstm))
    assert equal(passes[0], passes[1])  # bit for bit, with the same mask
    assert equal(passes[0], passes[2])
    loss.backward()
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        loss.backward()


@pytest.mark.parametrize("used", list(itertools.product([False, True], repeat=3))[1:], ids=str)
def test_any_subset_of_the_results(used):
    lstm = LSTM(3, 4, 2, dtype=torch.float64)
    x = normal(torch, 5, 2, 3, dtype="float64", requires_grad=True)
    y, (h, c) = lstm(x)
    outputs = {n: t for n, t, use in zip("yhc", (y, h, c), used, strict=True) if use}
    upstream = {n: normal(torch, *t.shape, dtype="float64") for n, t in outputs.items()}
    torch.autograd.backward(list(outputs.values()), list(upstream.values()))
    assert_as_oracle(lstm, {"dx": x.grad} | parameter_gradients(lstm), x, upstream=upstream)


def test_frozen_weights_and_inputs():
    lstm, x = LSTM(3, 4, 2, bidirectional=True), normal(torch, 5, 2, 3, requires_grad=True)
    lstm(x)[0].sum().backward()
    whole, dx = {name: p.grad for name, p in lstm.named_parameters()}, x.grad
    lstm.zero_grad()
    frozen = ("weight_ih_l0", "bias_hh_l0_reverse", "weight_hh_l1", "weight_hh_l1_reverse")
    for name in frozen:
        getattr(lstm, name).requires_grad_(False)
    lstm(x.detach())[0].sum().backward()
    for name, p in lstm.named_parameters():
        assert p.grad is None if name in frozen else torch.equal(p.grad, whole[name])
    lstm.requires_grad_(False)
    x.grad = None
    lstm(x)[0].sum().backward()
    assert torch.equal(x.grad, dx)
    assert not lstm(x.detach())[0].requires_grad


def test_gradients_accumulate_and_optimisers_step():
    lstm, x = LSTM(3, 4), normal(torch, 5, 2, 3)
    optimizer = torch.optim.Adam(lstm.parameters())
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = (lstm(x)[0] - 0.5).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses == sorted(losses, reverse=True)
    lstm.zero_grad()
    lstm(x)[0].sum().backward()
    once = gradients(lstm)
    lstm(x)[0].sum().backward()
    assert equal([2 * gradient for gradient in once], gradients(lstm))


# --- no graph ------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients_nothing_is_kept(mode):
    lstm, x = LSTM(3, 4, 2), normal(torch, 5, 2, 3, requires_grad=True)
    expected = lstm(x)[0].detach()
    with mode():
        y, _ = lstm(x)
    assert not y.requires_grad
    assert torch.equal(y, expected)
    assert not [o for o in gc.get_objects() if type(o) is Tape]


def test_the_tape_goes_with_the_graph():
    lstm, x = LSTM(3, 4, 2), normal(torch, 5, 2, 3)
    for end in (lambda y: y.sum().backward(), lambda y: None):
        y = lstm(x)[0]
        tape = weakref.ref(y.grad_fn.tape)
        assert tape() is not None
        end(y)
        del y
        assert tape() is None


# --- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["input", "state", "weight", "optimizer"])
def test_writing_what_the_backward_pass_needs_is_noticed(how):
    lstm = LSTM(3, 4)
    x, h, c = normal(torch, 5, 2, 3), normal(torch, 1, 2, 4), normal(torch, 1, 2, 4)
    y, _ = lstm(x, (h, c))
    loss = y.sum()
    if how == "optimizer":
        loss.backward(retain_graph=True)
        torch.optim.SGD(lstm.parameters(), 0.1).step()
    else:
        with torch.no_grad():
            {"input": x, "state": c, "weight": lstm.weight_hh_l0}[how].mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_writing_the_outputs_is_allowed():
    lstm, x = LSTM(3, 4, 2, bidirectional=True), normal(torch, 5, 2, 3)
    lstm(x)[0].sum().backward()
    expected = gradients(lstm)
    lstm.zero_grad()
    y, (h, c) = lstm(x)
    with torch.no_grad():
        for tensor in (y, h, c):
            tensor.zero_()
    y.sum().backward()
    assert equal(gradients(lstm), expected)


@pytest.mark.parametrize("wrt", ["input", "state", "weight"])
def test_a_second_derivative_is_an_error_and_no_zero(wrt):
    lstm = LSTM(3, 4)
    x, h = (normal(torch, *s, requires_grad=True) for s in ((5, 2, 3), (1, 2, 4)))
    y, _ = lstm(x, (h, torch.zeros(1, 2, 4)))
    leaf = {"input": x, "state": h, "weight": lstm.weight_hh_l0}[wrt]
    (first,) = torch.autograd.grad(y.sum(), leaf, create_graph=True)
    (expected,) = torch.autograd.grad(lstm(x, (h, torch.zeros(1, 2, 4)))[0].sum(), leaf)
    assert torch.equal(first.detach(), expected)
    with pytest.raises(NotImplementedError, match="cannot be differentiated twice: where a"):
        first.square().sum().backward()


def test_a_failure_leaves_the_module_as_it_was():
    lstm, x = LSTM(3, 4), normal(torch, 5, 2, 3)
    y, _ = lstm(x)
    with contextlib.suppress(ValueError):
        lstm(x[..., :2])
    y.sum().backward()
    assert all(p.grad is not None for p in lstm.parameters())


def test_inference_tensors_cannot_be_trained_on():
    lstm = LSTM(3, 4)
    with torch.inference_mode():
        x = normal(torch, 5, 2, 3).clone()
    with pytest.raises(RuntimeError, match="Inference tensors cannot be saved for backward"):
        lstm(x)
