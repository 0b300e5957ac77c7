"""GPUs for plans that nobody runs: six published cards, and limits nobody sells."""

from dataclasses import replace

from hypothesis import strategies as st

from cupy_lstm.device import CARDS, DeviceFacts
from cupy_lstm.notation import Shape

DTYPES = ("float32", "float16", "bfloat16")
"""What the engine persistent serves."""

cards = st.sampled_from(list(CARDS.values()))


@st.composite
def any_devices(draw) -> DeviceFacts:
    """One of the cards, or one with other limits: little shared memory, an older architecture."""
    card = draw(cards)
    if draw(st.booleans()):
        return card
    capability = draw(st.sampled_from([(6, 1), (7, 0), (7, 5), (8, 6), (9, 0), (10, 3), (12, 0)]))
    return replace(
        card,
        compute_capability=capability,
        multiprocessors=draw(st.integers(1, 200)),
        shared_memory_per_block=1024 * draw(st.integers(1, 227)),
        max_threads_per_block=draw(st.sampled_from([256, 512, 1024])),
        cluster_launch=capability >= (9, 0) and draw(st.booleans()),
        cooperative_launch=draw(st.booleans()),
        tf32=draw(st.booleans()),
    )


def sizes(largest: int, smallest: int = 1):
    """Draw sizes that spread over orders of magnitude."""
    tops = [max(smallest, largest >> shift) for shift in range(21, -1, -3)]
    return st.one_of(*(st.integers(smallest, top) for top in tops))


@st.composite
def any_shapes(draw, projected: bool = True) -> Shape:
    """Draw the sizes of a sweep; T and B may be zero."""
    H = draw(st.one_of(st.integers(1, 256), sizes(4096)))
    P = draw(st.integers(1, H - 1)) if projected and H > 1 and draw(st.integers(0, 9)) == 0 else H
    return Shape(
        T=draw(sizes(10**7, 0)), B=draw(sizes(10**5, 0)), I=draw(sizes(10**4)), H=H, P=P,
        D=draw(st.sampled_from([1, 2])),
    )  # fmt: skip
