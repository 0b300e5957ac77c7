"""The table of cases as modules of PyTorch run it: `torch.nn.LSTM`, and the bridge's."""

import dataclasses
import warnings

import numpy as np
import pytest
from cases import UPSTREAM, assert_within_rule, build, results, wider
from hypothesis import strategies as st
from oracle import Result, lstm_oracle
from test_properties import cases


def imported(name, what="no live comparison"):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(name, reason=f"{name} is not installed: {what}")


# PyTorch: same names and gate order; a projection is stored transposed, as weight_hr.


def to_torch(name, array):
    return name.replace("weight_ho", "weight_hr"), array.T if "_ho_" in name else array


def from_torch(name, array):
    return name.replace("weight_hr", "weight_ho"), array.T if "_hr_" in name else array


def is_expressible(case):
    """Say whether PyTorch's interface has all that the case has."""
    return (
        case.bias_ih == case.bias_hh
        and not case.return_cells
        and case.T > 0
        and (case.lengths is None or (case.B > 0 and all(case.lengths)))
    )


@st.composite
def torch_cases(draw):
    """Draw a case that PyTorch can run, too."""
    case = draw(cases(lengths=False))
    T = max(case.T, 1)
    upstream = draw(st.sets(st.sampled_from(UPSTREAM), min_size=1))
    lengths = draw(st.none() | st.tuples(*[st.integers(1, T)] * case.B))
    case = dataclasses.replace(
        case, T=T, bias_hh=case.bias_ih, upstream=tuple(sorted(upstream)), lengths=lengths
    )
    frozen = tuple(name for name in case.frozen if name in case.weight_shapes())
    return dataclasses.replace(case, frozen=frozen)


def make_module(torch, kind, case, dtype, arrays):
    """Build the module of a case with the weights of `arrays`."""
    model = kind(
        case.I,
        case.H,
        case.L,
        bias=case.bias_ih,
        batch_first=not case.time_major,
        dropout=case.dropout,
        bidirectional=case.bidirectional,
        proj_size=case.P,
        dtype=getattr(torch, dtype),
    )
    weights = dict(to_torch(*item) for item in arrays.weights.items())
    model.load_state_dict({name: torch.tensor(weight) for name, weight in weights.items()})
    for name in case.frozen:
        getattr(model, name.replace("weight_ho", "weight_hr")).requires_grad_(False)
    return model


def run_module(torch, model, case, dtype, arrays):
    """Run a case forward and backward; lengths go in as a packed sequence."""

    def leaf(array):
        return torch.tensor(array, dtype=getattr(torch, dtype), requires_grad=True)

    x, states = leaf(arrays.x), arrays.states and tuple(map(leaf, arrays.states))
    rnn = torch.nn.utils.rnn
    if arrays.lengths is None:
        y, (h, c) = model(x, states)
    else:
        options = {"batch_first": not case.time_major}
        packed = rnn.pack_padded_sequence(
            x, torch.tensor(arrays.lengths), enforce_sorted=False, **options
        )
        packed, (h, c) = model(packed, states)
        y, _ = rnn.pad_packed_sequence(packed, total_length=case.T, **options)
    outputs = {"y": y, "h": h, "c": c}
    upstream = {name: torch.tensor(a, dtype=y.dtype) for name, a in arrays.upstream.items()}
    sum((outputs[name] * gradient).sum() for name, gradient in upstream.items()).backward()
    result = Result(*(a.detach().numpy() for a in (y, h, c)), cells=None, dx=x.grad.numpy())
    if states:
        result.dh0, result.dc0 = (s.grad.numpy() for s in states)
    result.grads = dict(
        from_torch(name, parameter.grad.numpy())
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    )
    return result


def run_torch(torch, case):
    """Return torch's model and its results in float64, from the float32 arrays of the case."""
    arrays = build(case, "float32")
    model = make_module(torch, torch.nn.LSTM, case, "float64", arrays)
    return model, run_module(torch, model, case, "float64", arrays)


def oracle(module, x, hx=None, upstream=None, lengths=None, dtype=np.float64):
    """Run the oracle on what a module is called with, in the arithmetic of `dtype`."""
    return lstm_oracle(
        x.detach().numpy(),
        dict(from_torch(name, w.numpy()) for name, w in module.state_dict().items()),
        bidirectional=module.bidirectional,
        time_major=not module.batch_first,
        states=None if hx is None else [state.detach().numpy() for state in hx],
        lengths=lengths,
        upstream=None if upstream is None else {name: g.numpy() for name, g in upstream.items()},
        dtype=dtype,
    )


def assert_as_oracle(module, found, x, hx=None, upstream=None, lengths=None):
    """Hold tensors of a module, by the names of `results`, to the error rule."""
    arrays = {name: tensor.detach().numpy() for name, tensor in found.items()}
    own = next(iter(arrays.values())).dtype
    truth, yardstick = (
        results(oracle(module, x, hx, upstream, lengths, dtype)) for dtype in (wider(own), own)
    )
    for name, array in arrays.items():
        assert_within_rule(name, array, truth[name], yardstick[name])


def parameter_gradients(module):
    """Return the gradients of the weights by the names of `results`."""
    named = [from_torch(name, parameter.grad) for name, parameter in module.named_parameters()]
    return {f"d{name}": gradient for name, gradient in named}


def normal(torch, *shape, seed=0, dtype="float32", **options):
    """Return a tensor of normal numbers."""
    values = np.random.default_rng(seed).standard_normal(shape)
    return torch.tensor(values, dtype=getattr(torch, dtype), **options)
