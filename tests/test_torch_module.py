"""The module of the bridge gives what `torch.nn.LSTM` gives, in all its forms."""

import numpy as np
import pytest
from cases import CASES, DROPOUT_KEY, assert_case, assert_within_rule, build, naive, results
from face import flat_equal
from hypothesis import given, settings
from torch_cases import (
    assert_as_oracle,
    imported,
    is_expressible,
    make_module,
    normal,
    run_module,
    run_torch,
    torch_cases,
)

torch = imported("torch", "the bridge is not tried")

import cupy_lstm  # noqa: E402
from cupy_lstm.dropout import Dropout  # noqa: E402
from cupy_lstm.torch import LSTM  # noqa: E402

rnn = torch.nn.utils.rnn


def values(found):
    """List the arrays of what a module returns."""
    y, states = found
    return [(y.data if isinstance(y, rnn.PackedSequence) else y).detach().numpy()] + [
        state.detach().numpy() for state in states
    ]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", list(filter(is_expressible, CASES)), ids=lambda case: case.id)
def test_the_table_of_cases(monkeypatch, case, dtype):
    if case.dropout:  # the mask of the table
        key = DROPOUT_KEY["seed"], DROPOUT_KEY["call"]
        monkeypatch.setattr(LSTM, "_next_dropout", lambda self: Dropout(self.dropout, *key))
    arrays = build(case, dtype)
    model = make_module(torch, LSTM, case, dtype, arrays)
    result = run_module(torch, model, case, dtype, arrays)
    assert_case(case, dtype, result)


@settings(max_examples=150)
@given(torch_cases())
def test_random_cases_beside_torch(case):
    arrays = build(case, "float32")
    model = make_module(torch, LSTM, case, "float32", arrays)
    ours = results(run_module(torch, model, case, "float32", arrays))
    theirs = results(run_torch(torch, case)[1])
    yardstick = results(naive(case, "float32"))
    assert ours.keys() >= theirs.keys()
    for name, array in ours.items():
        if name in theirs:
            assert_within_rule(name, array, theirs[name], yardstick[name])
        else:  # a weight that no gradient comes to has none there
            assert not array.any()


OPTIONS = [
    {},
    {"num_layers": 2, "bidirectional": True},
    {"proj_size": 2, "num_layers": 2, "bidirectional": True, "bias": False},
    {"batch_first": True, "dropout": 0.5, "num_layers": 3},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_constructor_is_torch_s(options):
    pair = []
    for kind in (torch.nn.LSTM, LSTM):
        torch.manual_seed(3)
        pair.append(kind(3, 4, **options))
    theirs, ours = pair
    assert repr(ours) == repr(theirs)
    assert [n for n, _ in ours.named_parameters()] == [n for n, _ in theirs.named_parameters()]
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(mine, other)  # the same seed draws the same weights
    for attribute in ("input_size", "hidden_size", "num_layers", "bias", "proj_size", "dropout"):
        assert getattr(ours, attribute) == getattr(theirs, attribute)
    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())


def test_device_and_dtype_of_the_constructor():
    lstm = LSTM(3, 4, bidirectional=True, device="cpu", dtype=torch.float64)
    assert {p.dtype for p in lstm.parameters()} == {torch.float64}
    assert LSTM(3, 4, device="meta").weight_hh_l0.is_meta


def both(**options):
    """Return PyTorch's module and the bridge's with the same weights, in float64."""
    theirs = torch.nn.LSTM(3, 4, dtype=torch.float64, **options)
    ours = LSTM(3, 4, dtype=torch.float64, **options)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def assert_alike(ours, theirs):
    """Fail unless what both return is laid out alike."""
    assert [a.shape for a in values(ours)] == [a.shape for a in values(theirs)]
    assert type(ours[0]) is type(theirs[0])
    if isinstance(ours[0], rnn.PackedSequence):
        for mine, other in zip(ours[0][1:], theirs[0][1:], strict=True):
            assert (mine is None and other is None) or torch.equal(mine, other)


@pytest.mark.parametrize("batch_first", [False, True])
def test_one_sequence_alone(batch_first):
    theirs, ours = both(num_layers=2, bidirectional=True, proj_size=2, batch_first=batch_first)
    x = normal(torch, 5, 3, dtype="float64")
    hx = normal(torch, 4, 2, dtype="float64"), normal(torch, 4, 4, dtype="float64")
    for states in (None, hx):
        y, (h, c) = ours(x, states)
        assert_alike((y, (h, c)), theirs(x, states))
        rows = 0 if batch_first else 1
        found = {"y": y.unsqueeze(rows), "h": h.unsqueeze(1), "c": c.unsqueeze(1)}
        states = states and [state.unsqueeze(1) for state in states]
        assert_as_oracle(ours, found, x.unsqueeze(rows), states)


PACKS = {
    "sorted": ([5, 3, 3, 1], True),
    "unsorted": ([1, 5, 3, 3], False),
    "equal": ([4, 4, 4], True),
    "equal-unsorted": ([4, 4, 4], False),
    "one": ([3], True),
}


@pytest.mark.parametrize("states", [False, True])
@pytest.mark.parametrize("name", PACKS)
def test_packed_sequences(name, states):
    lengths, is_sorted = PACKS[name]
    theirs, ours = both(num_layers=2, bidirectional=True)
    x = normal(torch, max(lengths), len(lengths), 3, dtype="float64")
    packed = rnn.pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=is_sorted)
    hx = tuple(normal(torch, 4, len(lengths), 4, dtype="float64", seed=s) for s in (1, 2))
    hx = hx if states else None
    y, (h, c) = ours(packed, hx)
    assert_alike((y, (h, c)), theirs(packed, hx))
    found = {"y": rnn.pad_packed_sequence(y)[0], "h": h, "c": c}
    assert_as_oracle(ours, found, x, hx, lengths=lengths)
    assert torch.equal(
        packed.data,
        rnn.pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=is_sorted).data,
    )


def test_padding_costs_nothing_where_there_is_none(monkeypatch):
    seen = []
    monkeypatch.setattr(LSTM, "_run", lambda self, x, *rest: seen.append((x, rest)) or (x, x, x))
    x = normal(torch, 4, 2, 3)
    packed = rnn.pack_padded_sequence(x, torch.tensor([4, 4]))
    LSTM(3, 4)(packed)
    assert seen[0][0].data_ptr() == packed.data.data_ptr()
    assert seen[0][1] == (None, True)


def test_no_steps_and_no_rows():
    lstm = LSTM(3, 4, batch_first=True)
    h, c = normal(torch, 1, 2, 4), normal(torch, 1, 2, 4, seed=1)
    y, final = lstm(torch.empty(2, 0, 3), (h, c))
    assert y.shape == (2, 0, 4)
    assert flat_equal([s.detach().numpy() for s in final], [h.numpy(), c.numpy()])
    y, (h, c) = lstm(torch.empty(0, 5, 3))
    assert (y.shape, h.shape) == ((0, 5, 4), (1, 0, 4))


# --- dropout -------------------------------------------------------------------------------------


def test_dropout_follows_the_mode_and_the_generator():
    lstm, x = LSTM(3, 8, 2, dropout=0.5), normal(torch, 6, 2, 3)
    torch.manual_seed(5)
    first, second = lstm(x)[0], lstm(x)[0]
    assert not torch.equal(first, second)
    torch.manual_seed(5)
    assert torch.equal(lstm(x)[0], first)
    before = torch.get_rng_state()
    lstm.eval()
    assert torch.equal(lstm(x)[0], lstm(x)[0])
    assert torch.equal(torch.get_rng_state(), before)
    plain = LSTM(3, 8, 2)
    plain.load_state_dict(lstm.state_dict())
    assert torch.equal(lstm(x)[0], plain(x)[0])


def test_a_checkpoint_repeats_the_mask():
    from torch.utils.checkpoint import checkpoint

    lstm, x = LSTM(3, 8, 2, dropout=0.5), normal(torch, 6, 2, 3)
    gradients = []
    for call in (lstm, lambda x: checkpoint(lstm, x, use_reentrant=False)):
        lstm.zero_grad()
        torch.manual_seed(5)
        call(x)[0].sum().backward()
        gradients.append([p.grad.numpy() for p in lstm.parameters()])
    assert flat_equal(*gradients)


# --- precision and engines -----------------------------------------------------------------------


def test_autocast_on_the_cpu_computes_in_the_dtype_of_the_weights():
    linear, lstm = torch.nn.Linear(3, 3), LSTM(3, 4)
    x = normal(torch, 5, 2, 3)
    with torch.autocast("cpu", torch.bfloat16):
        inputs = linear(x)
        assert inputs.dtype == torch.bfloat16
        y, (h, c) = lstm(inputs)
    assert {t.dtype for t in (y, h, c)} == {torch.float32}
    assert torch.equal(y, lstm(inputs.float())[0])
    y.sum().backward()
    assert linear.weight.grad.dtype == torch.float32


def test_compiled_models_leave_it_as_it_is():
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm, self.head = LSTM(3, 4, 2, dropout=0.5), torch.nn.Linear(4, 1)

        def forward(self, x):
            return self.head(torch.relu(self.lstm(2 * x)[0]))

    model, x = Model(), normal(torch, 5, 2, 3)
    compiled = torch.compile(model, backend="eager")
    gradients = []
    for call in (model, compiled, compiled):
        torch.manual_seed(5)
        model.zero_grad()
        call(x).sum().backward()
        gradients.append([p.grad.numpy().copy() for p in model.parameters()])
    assert flat_equal(gradients[0], gradients[1])
    assert flat_equal(gradients[0], gradients[2])


def test_an_engine_can_be_forced():
    lstm, x = LSTM(3, 4), normal(torch, 5, 2, 3)
    expected = cupy_lstm.LSTM(3, 4, time_major=True)
    expected.set_state_dict(lstm.state_dict())
    for name in ("stepwise", "auto"):
        with cupy_lstm.engine(name):
            assert np.array_equal(lstm(x)[0].detach().numpy(), expected(x)[0])


# --- errors --------------------------------------------------------------------------------------

X = torch.zeros(5, 2, 3)
H = torch.zeros(1, 2, 4)
SIZE = (
    ", but must have three axes (two for a sequence alone or packed ones), the last of size "
    "input_size 3"
)
BAD = [
    (lambda m: m(X[0, 0]), f"input has shape [3]{SIZE}"),
    (lambda m: m(X[None]), f"input has shape [1, 5, 2, 3]{SIZE}"),
    (lambda m: m(X[..., :2]), f"input has shape [5, 2, 2]{SIZE}"),
    (lambda m: m(X[:, 0, :2]), f"input has shape [5, 1, 2]{SIZE}"),
    (lambda m: m(X, (H[:, :1], H)), "hx[0] has shape [1, 1, 4], but must have [1, 2, 4]"),
    (lambda m: m(X, (H, H[0])), "hx[1] has shape [2, 4], but must have [1, 2, 4]"),
    (
        lambda m: m(X.double()),
        "input is torch.float64 on 'cpu', but the weights are torch.float32 on 'cpu': convert one "
        "of them with .to(...)",
    ),
    (
        lambda m: m(X.to("meta")),
        "input is torch.float32 on 'meta', but the weights are torch.float32 on 'cpu': convert one "
        "of them with .to(...)",
    ),
    (
        lambda m: m(X, (H, H.half())),
        "hx[1] is torch.float16 on 'cpu', but the weights are torch.float32 on 'cpu': convert one "
        "of them with .to(...)",
    ),
    (
        lambda m: m.half()(X.half()),
        "the weights of cupy_lstm.torch.LSTM on 'cpu' must have one of ('float32', 'float64'), but "
        "have float16: convert it with .to(...)",
    ),
    (
        lambda m: m.bfloat16()(X.bfloat16()),
        "the weights of cupy_lstm.torch.LSTM on 'cpu' must have one of ('float32', 'float64'), but "
        "have bfloat16: convert it with .to(...)",
    ),
    (
        lambda m: m.to("meta")(X.to("meta")),
        "cupy_lstm.torch.LSTM runs on ('cpu', 'cuda'), but its weights are on 'meta': move it with "
        ".to(...)",
    ),
]


@pytest.mark.parametrize(("call", "message"), BAD, ids=range(len(BAD)))
def test_bad_input(call, message):
    lstm = LSTM(3, 4, 2, dropout=0.5) if "hx" not in message else LSTM(3, 4)
    state = torch.get_rng_state()
    with pytest.raises(ValueError) as raised:
        call(lstm)
    assert str(raised.value) == message
    assert torch.equal(torch.get_rng_state(), state)


def test_a_bad_constructor_is_torch_s():
    with pytest.raises(ValueError, match="proj_size has to be smaller than hidden_size"):
        LSTM(3, 4, proj_size=4)
    with pytest.raises(ValueError, match="dropout should be a number in range"):
        LSTM(3, 4, dropout=2)
