"""A small LSTM, and what it says with the weights that an engine has prepared."""

from face import normal

from cupy_lstm import LSTM, no_grad

T, B, I, H, P = 4, 3, 5, 6, 4  # noqa: E741


def make(**options):
    return LSTM(I, H, 2, "bidirect", proj_size=P, seed=1, **options)


def infer(lstm):
    x = normal(B, T, I).astype(lstm.dtype)
    with no_grad():
        y, (h, c) = lstm(x)
    return y, h, c


def fresh(lstm):
    """Return what an LSTM says that was just made, with these weights."""
    other = make(dtype=lstm.dtype)
    other.set_state_dict({name: p.numpy() for name, p in lstm.named_parameters()})
    return infer(other)


def other_values(parameter, seed=2):
    return normal(*parameter.shape, seed=seed).astype(parameter.dtype)
