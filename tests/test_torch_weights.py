"""The weights of the bridge: PyTorch owns them, and whatever is done to them is seen."""

import copy
import io
import pickle
from itertools import pairwise

import numpy as np
import pytest
from torch_cases import assert_as_oracle, imported, normal, parameter_gradients

torch = imported("torch", "the bridge is not tried")

import cupy_lstm  # noqa: E402
from cupy_lstm.torch import LSTM  # noqa: E402
from cupy_lstm.torch.weights import side_by_side, stacked  # noqa: E402

OPTIONS = {"num_layers": 2, "bidirectional": True}
X = normal(torch, 5, 2, 3)


def make():
    torch.manual_seed(0)
    return LSTM(3, 4, **OPTIONS)


def pairs(lstm):
    """Return the weights of both directions, kind by kind and layer by layer."""
    names = [name for name, _ in lstm.named_parameters() if not name.endswith("_reverse")]
    return [(getattr(lstm, name), getattr(lstm, f"{name}_reverse")) for name in names]


def are_flat(lstm):
    return all(side_by_side(*pair) for pair in pairs(lstm))


def assert_as_shown(lstm, x=X):
    """Fail unless the module computes with the weights it shows, forward and backward."""
    lstm.zero_grad()
    y, _ = lstm(x)
    dy = normal(torch, *y.shape, seed=1).to(x.dtype)
    y.backward(dy)
    assert_as_oracle(lstm, {"y": y} | parameter_gradients(lstm), x, upstream={"y": dy})


def test_both_directions_lie_side_by_side_and_are_not_copied():
    lstm = make()
    assert are_flat(lstm)
    for first, second in pairs(lstm):
        stack = stacked([first, second])
        assert stack.data_ptr() == first.data_ptr()
        assert torch.equal(stack, torch.stack([first, second]))
    assert_as_shown(lstm)


def test_one_direction_is_never_copied():
    lstm = LSTM(3, 4, 2, proj_size=2)
    for weight in lstm.parameters():
        assert stacked([weight]).data_ptr() == weight.data_ptr()


def replaced(lstm):
    lstm.weight_hh_l0_reverse = torch.nn.Parameter(normal(torch, 16, 4))


def rebound(lstm):
    lstm.weight_hh_l1.data = normal(torch, 16, 4)


def assigned(lstm):
    other = torch.nn.LSTM(3, 4, **OPTIONS)
    lstm.load_state_dict(other.state_dict(), assign=True)


def transposed(lstm):
    lstm.weight_ih_l0.data = normal(torch, 3, 16).T


def written(lstm):
    with torch.no_grad():
        lstm.weight_hh_l0_reverse.mul_(2)
        lstm.bias_ih_l1.data.add_(1)


def loaded(lstm):
    lstm.load_state_dict(torch.nn.LSTM(3, 4, **OPTIONS).state_dict())


def stepped(lstm):
    lstm(X)[0].sum().backward()
    torch.optim.SGD(lstm.parameters(), 0.5).step()


def vectorised(lstm):
    vector = torch.nn.utils.parameters_to_vector(lstm.parameters())
    torch.nn.utils.vector_to_parameters(vector.detach() * 2, lstm.parameters())


def pruned(lstm):
    from torch.nn.utils import prune

    prune.l1_unstructured(lstm, "weight_hh_l0", amount=0.5)
    prune.remove(lstm, "weight_hh_l0")


BREAKING = (replaced, rebound, assigned, transposed, vectorised, pruned)
KEEPING = (written, loaded, stepped)


@pytest.mark.parametrize("change", [*BREAKING, *KEEPING])
def test_whatever_is_done_to_the_weights_is_seen(change):
    lstm = make()
    before = lstm(X)[0]
    change(lstm)
    assert not torch.equal(lstm(X)[0], before)
    assert_as_shown(lstm)
    assert are_flat(lstm) is (change in KEEPING)
    identities = [id(p) for p in lstm.parameters()]
    lstm.flatten_parameters()
    assert [id(p) for p in lstm.parameters()] == identities
    assert are_flat(lstm)
    assert_as_shown(lstm)


def test_one_weight_for_both_directions():
    """Bit for bit as two equal ones, whose gradients come together."""
    shared, apart = (LSTM(3, 4, bidirectional=True) for _ in range(2))
    shared.weight_hh_l0_reverse = shared.weight_hh_l0
    shared.flatten_parameters()
    assert shared.weight_hh_l0_reverse is shared.weight_hh_l0
    apart.load_state_dict(shared.state_dict())
    ys = [model(X)[0] for model in (shared, apart)]
    for y in ys:
        y.sum().backward()
    assert torch.equal(*ys)
    expected = {name: p.grad for name, p in apart.named_parameters()}
    expected["weight_hh_l0"] += expected.pop("weight_hh_l0_reverse")
    assert expected.keys() == {name for name, _ in shared.named_parameters()}
    for name, p in shared.named_parameters():
        assert torch.equal(p.grad, expected[name]), name


@pytest.mark.parametrize(
    "move", [lambda m: m.double(), lambda m: m.to(torch.float64), lambda m: m.double().float()]
)
def test_moving_keeps_them_together(move):
    lstm = make()
    before = {name: p.detach().clone() for name, p in lstm.named_parameters()}
    identities = [id(p) for p in lstm.parameters()]
    move(lstm)
    assert [id(p) for p in lstm.parameters()] == identities
    assert are_flat(lstm)
    assert all(torch.equal(p.float(), before[name]) for name, p in lstm.named_parameters())
    assert_as_shown(lstm, X.to(lstm.weight_ih_l0.dtype))


def test_weights_that_other_processes_see_stay_where_they_are():
    lstm = make()
    lstm.share_memory()
    addresses = [p.data_ptr() for p in lstm.parameters()]
    assert all(p.is_shared() for p in lstm.parameters())
    lstm.flatten_parameters()
    assert [p.data_ptr() for p in lstm.parameters()] == addresses
    assert_as_shown(lstm)


def saved(lstm):
    file = io.BytesIO()
    torch.save(lstm, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), saved]
)
def test_copies_go_on_apart(duplicate):
    lstm = make()
    expected = lstm(X)[0]
    other = duplicate(lstm)
    assert type(other) is LSTM
    assert are_flat(other)
    assert torch.equal(other(X)[0], expected)
    with torch.no_grad():
        for p in other.parameters():
            p.zero_()
    assert not other(X)[0].any()
    assert torch.equal(lstm(X)[0], expected)


def test_a_saved_state_dict_is_small_and_plain():
    lstm, plain, sizes = make(), torch.nn.LSTM(3, 4, **OPTIONS), []
    for model in (lstm, plain):
        file = io.BytesIO()
        torch.save(model.state_dict(), file)
        sizes.append(len(file.getvalue()))
        file.seek(0)
        plain.load_state_dict(torch.load(file))
    assert sizes[0] <= sizes[1]


def test_safetensors_take_it():
    safetensors = imported("safetensors", "no file is written")
    from safetensors.torch import load, save

    assert safetensors
    lstm = make()
    other = LSTM(3, 4, **OPTIONS)
    other.load_state_dict(load(save(lstm.state_dict())))
    assert torch.equal(other(X)[0], lstm(X)[0])


def test_the_package_s_own_lstm_reads_and_gives_its_state_dict():
    lstm = make()
    own = cupy_lstm.LSTM(3, 4, 2, "bidirect", time_major=True)
    assert own.set_state_dict(lstm.state_dict()) == ([], [])
    assert np.array_equal(own(X)[0], lstm(X)[0].detach().numpy())
    other = LSTM(3, 4, **OPTIONS)
    other.load_state_dict({n: torch.from_dlpack(w) for n, w in own.state_dict().items()})
    assert torch.equal(other(X)[0], lstm(X)[0])


# --- other ways to give weights ------------------------------------------------------------------


def test_functional_calls_leave_the_module_alone():
    lstm, other = make(), LSTM(3, 4, **OPTIONS)
    before = lstm(X)[0]
    weights = {n: p.detach().clone().requires_grad_() for n, p in other.named_parameters()}
    addresses = {n: w.data_ptr() for n, w in weights.items()}
    y, _ = torch.func.functional_call(lstm, weights, (X,))
    assert torch.equal(y, other(X)[0])
    y.sum().backward()
    assert all(w.grad is not None for w in weights.values())
    assert {n: w.data_ptr() for n, w in weights.items()} == addresses
    assert torch.equal(lstm(X)[0], before)
    double = {n: w.detach().double() for n, w in weights.items()}
    assert torch.func.functional_call(lstm, double, (X.double(),))[0].dtype == torch.float64


def test_parametrizations():
    from torch.nn.utils import parametrizations

    lstm = make()
    with torch.no_grad():
        lstm.weight_hh_l0.mul_(3)
    parametrizations.weight_norm(lstm, "weight_hh_l0")
    before = lstm(X)[0]
    before.sum().backward()
    scale = lstm.parametrizations.weight_hh_l0.original0
    assert scale.grad.any()
    with torch.no_grad():
        scale.mul_(0.5)
    assert not torch.equal(lstm(X)[0], before)


def test_gradients_of_both_directions_are_their_own_memory():
    lstm = make()
    lstm(X)[0].sum().backward()
    for first, second in pairs(lstm):
        assert first.grad.shape == first.shape
        assert first.grad.data_ptr() != second.grad.data_ptr()
    ends = sorted((p.grad.data_ptr(), p.grad.nbytes) for p in lstm.parameters())
    assert all(a + size <= b for (a, size), (b, _) in pairwise(ends))
