"""What others have published, in microseconds a step: times of a whole call over its T steps.

Every number is from the file or picture that is named; none was measured here.
"""

from typing import NamedTuple


class Published(NamedTuple):
    """A time of somebody's LSTM.

    Attributes
    ----------
    what : str
        The implementation.
    dtype : str
        Of the weights.
    T, B, H : int
        Sizes, as the notation names them. I is H where it is not part of the call.
    forward_us, both_us : float or None
        Microseconds a step: forward, forward and backward.
    card : str
        What it ran on.
    source : str
        Where the number is.
    """

    what: str
    dtype: str
    T: int
    B: int
    H: int
    forward_us: float | None
    both_us: float | None
    card: str
    source: str


FLASHRNN = "FlashRNN (arXiv 2412.07752), head_dim--lstm.svg, H100 SXM"
CODE_SNIPPET = "xwang233/code-snippet, cudnn-rnn-bench-62143"


def _call(
    what: str, dtype: str, T: int, B: int, H: int, forward_ms: float | None,
    both_ms: float | None, card: str, source: str,
) -> Published:  # fmt: skip
    """Return a point from the milliseconds of a call."""
    forward, both = (None if ms is None else 1e3 * ms / T for ms in (forward_ms, both_ms))
    return Published(what, dtype, T, B, H, forward, both, card, source)


_HEADS = {  # H of a head: milliseconds of T = 1024, B = 16; 768 / H heads side by side
    16: (3.56, 8.22),
    32: (2.90, 8.20),
    64: (3.10, 8.64),
    128: (3.22, 9.02),
    256: (3.62, 11.30),
    768: (4.87, 13.61),
}

POINTS = (
    _call("cuDNN (torch.nn.LSTM)", "float16", 1024, 16, 768, 2.01, 5.19, "H100", FLASHRNN),
    *(
        _call("FlashRNN, fused", "bfloat16", 1024, 16, H, *ms, "H100", FLASHRNN)
        for H, ms in _HEADS.items()
    ),
    _call("haste", "float32", 1024, 16, 768, 18.41, 43.86, "H100", FLASHRNN),
    _call("cuDNN, small H", "float32", 3047, 6, 40, 2.0, None, "card not stated", CODE_SNIPPET),
    _call("cuDNN, standard", "float32", 2721, 6, 72, 18.6, None, "card not stated", CODE_SNIPPET),
)
