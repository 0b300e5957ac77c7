"""Each kernel broken on purpose: the bed must see it, or it would not see a real fault either.

A line of the source text is changed, the kernel is compiled and run as ever, and the run must end
in an error of the bed or in a result that is outside the rule. No variant writes farther out of an
array than the guard around it reaches, so the process that runs them stays whole.
"""

import numpy as np
import pytest
from cases import Case
from gpu_cases import assert_device_case, call, few_threads, on_host, prepared
from gpu_on_cpu import DeviceMisuseError, check_freed_memory, order
from gpu_on_cpu.device import LaunchError

from cupy_lstm import LSTM, device_gates, dropout, kernels, lengths

pytestmark = [
    pytest.mark.gpu_on_cpu,
    pytest.mark.usefixtures("stepwise"),
    # What was written beside an array may be found only when the array is freed.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

FORWARD = Case("variant", H=8, L=2, bidirectional=True, states=True, lengths=(3, 5, 0))
ODD = Case("variant-odd", H=5, bidirectional=True, states=True, lengths=(3, 5, 0))
ONE_STEP = Case("variant-one-step", T=1, H=5, states=True)
CELLS = Case("variant-cells", H=8, states=True, upstream=("y", "h", "c", "cells"))
PROJECTED = Case("variant-projection", H=8, P=4, states=True, lengths=(3, 5, 0))
DROPOUT = Case("variant-dropout", H=11, L=2, dropout=0.5)
WIDE_DROPOUT = Case("variant-wide-dropout", H=8, L=2, dropout=0.5)

VARIANTS = {
    "a unit beside": (FORWARD, "row * H + unit,", "row * H + unit + N,"),
    "a row beside": (FORWARD, "row = item / in_row % B;", "row = (item / in_row + 1) % (B + 1);"),
    "gates of 3H": (FORWARD, "row * 4 * H + unit}", "row * 3 * H + unit}"),
    "vectors counted as units": (FORWARD, "unit = item % in_row * N", "unit = item % in_row"),
    "half the stride of c": (FORWARD, "c_stride + at.units, c_", "c_stride / 2 + at.units, c_"),
    "the stride of z forgotten": (FORWARD, "z + at.d * z_stride", "z"),
    "one item too many": (ONE_STEP, "item < (count);", "item <= (count);"),
    "one item too few": (ODD, "item < (count);", "item < (count) - 1;"),
    "padding of direction 0": (FORWARD, "padding[at.d * padding_stride", "padding[0 * at.d"),
    "padding not held": (FORWARD, "if (!held) c_here[n] = cell.c;", "c_here[n] = cell.c;"),
    "h not held": (FORWARD, "if (!held || h_prev == nullptr) h_here[n]", "h_here[n]"),
    "two gates changed": (ODD, "f = load<N>(z + H), g = load<N>(z + 2 * H)",
                          "g = load<N>(z + H), f = load<N>(z + 2 * H)"),
    "dz kept in padding": (FORWARD, "held ? Gates<A>{A(0), A(0), A(0), A(0)} : cell.dz", "cell.dz"),
    "dc lost": (ODD, "if (!held) dc_here[n] = cell.dc_prev;", ""),
    "carried lost": (ODD, "dm_here[n] += more[n];", ""),
    "dcells lost": (CELLS, "dc_here[n] += more[n];", "dc_here[n] += A(0);"),
    "m not zero in padding": (PROJECTED, "if (!empty) {", "{"),
    "the output gate missed": (PROJECTED, "at.gates + 3 * H),", "at.gates + 2 * H),"),
    "tanh without its square": (ODD, "(T(1) - tanh_c * tanh_c)", "(T(1) - tanh_c)"),
    "nine rounds": (DROPOUT, "round < 10", "round < 9"),
    "a block of features beside": (DROPOUT, "* F + block * 8;", "* F + block * 7;"),
    "features past the end": (DROPOUT, "if (first >= present) continue;", ""),
    "features of a vector changed": (WIDE_DROPOUT, "const int lane = first + n;",
                                     "const int lane = first + N - 1 - n;"),
    "one vector for all": (WIDE_DROPOUT, "lane = first + n;", "lane = n;"),
    "halves of a word changed": (DROPOUT, "lane % 2 * 32", "(1 - lane % 2) * 32"),
    "time forgotten": (DROPOUT, "static_cast<unsigned long long>(t), layer", "0ull, layer"),
}  # fmt: skip


@pytest.fixture
def edited(monkeypatch):
    """Return a function that changes a text in every source, or in one, until the test ends."""
    caches = (device_gates._kernel, dropout._kernel, lengths._kernel)
    original = kernels.resolved

    def edit(old, new, only=None):
        seen = []

        def changed(file):
            text = original(file)
            if only not in (None, file):
                return text
            seen.append(old in text)
            return text.replace(old, new)

        monkeypatch.setattr(kernels, "resolved", changed)
        for cache in caches:
            cache.cache_clear()
        return seen

    yield edit
    for cache in caches:
        cache.cache_clear()


def found(cupy, case, dtype="float32"):
    """Say whether the bed or the rule objects to a run of the case."""
    lstm, arrays = prepared(cupy, case, dtype)
    try:
        result = on_host(call(lstm, case, arrays))
        check_freed_memory()
    except (LaunchError, DeviceMisuseError):
        return True
    try:
        assert_device_case(case, dtype, result)
    except AssertionError:
        return True
    return False


@pytest.mark.parametrize("name", VARIANTS)
def test_a_broken_kernel_is_seen(cupy, edited, name):
    case, old, new = VARIANTS[name]
    seen = edited(old, new)
    assert found(cupy, case)
    assert any(seen), "the source no longer holds the line this variant breaks"


MANY = Case("variant-many", T=2, B=100, H=8, states=True, bidirectional=True)
MANY_DROPPED = Case("variant-many-dropped", T=2, B=100, L=2, dropout=0.5)
STRIDES = {
    "a thread for each block": "item += gridDim.x",
    "as if there were one block": "item += blockDim.x",
    "as if there were one thread": "item += 1",
    "no loop": "item = count",
    "an item left out": "item += (long long)gridDim.x * blockDim.x + 1",
}


@pytest.mark.parametrize("name", STRIDES)
@pytest.mark.parametrize("case", [MANY, MANY_DROPPED], ids=lambda c: c.id)
def test_a_broken_loop_over_items_is_seen(cupy, edited, case, name):
    file = "dropout.cu" if case.dropout else "gates.cu"
    seen = edited("item += (long long)gridDim.x * blockDim.x", STRIDES[name], file)
    with few_threads(3):
        assert found(cupy, case)
    assert any(seen), "the source no longer holds the line this variant breaks"


@pytest.mark.parametrize("case", [MANY, MANY_DROPPED], ids=lambda c: c.id)
def test_an_unbroken_loop_is_not(cupy, case):
    with few_threads(3):
        assert not found(cupy, case)


@pytest.mark.parametrize(
    "case", [FORWARD, ODD, CELLS, PROJECTED, DROPOUT, WIDE_DROPOUT], ids=lambda c: c.id
)
def test_an_edit_that_changes_nothing_is_not(cupy, edited, case):
    edited("unit", "unit")
    assert not found(cupy, case)


# --- the reduction over lengths ------------------------------------------------------------------


def reported(cupy, bad):
    """Run lengths of which one is bad; return the row the kernel reports, or None."""
    lstm, given = LSTM(1, 1, xp="cupy", seed=0), np.full(300, 2)
    given[bad] = 9
    x = cupy.ones((300, 2, 1), "float32")
    lstm(x, None, cupy.asarray(given))
    try:
        lstm(x)
    except ValueError as error:
        return int(str(error).split("[")[1].split("]")[0])
    return None


LENGTHS = {
    "no barrier": ("        __syncthreads();\n", ""),
    "half as far": ("int half = 128;", "int half = 64;"),
    "the last step left out": ("half > 0;", "half > 1;"),
    "only one row a thread": ("row < B; row += blockDim.x)", "row < B && row < 256; row += 256)"),
    "negative ones only": ("lengths[row] > T)", "lengths[row] > T + 100)"),
    "the row itself": ("report[0] = first[0] + 1;", "report[0] = first[0];"),
}


@pytest.mark.parametrize("name", LENGTHS)
def test_a_broken_length_check_is_seen(cupy, edited, name):
    old, new = LENGTHS[name]
    seen, wrong = edited(old, new), False
    for way in ("forward", "reverse", "random"):
        with order(way):
            for bad in (0, 1, 100, 200, 299):
                try:
                    wrong = wrong or reported(cupy, bad) != bad
                except LaunchError:
                    wrong = True
    report = lengths._report(0)
    report[:] = 0
    assert wrong
    assert any(seen), "the source no longer holds the line this variant breaks"


def test_the_unbroken_length_check_is_right_in_every_order(cupy):
    for way in ("forward", "reverse", "random"):
        with order(way, 1):
            assert [reported(cupy, bad) for bad in (0, 1, 100, 200, 299)] == [0, 1, 100, 200, 299]
