"""Grids that are too small for one thread an item, and cards of other kinds.

A launch has a thread for each item up to 2^39 items. What goes round beyond that goes round here in
one block or three blocks of 32 threads.
"""

import pytest
from cases import Case, results
from full import FULL
from gpu_cases import assert_device_case, each_dtype, few_threads, run_on_device
from gpu_on_cpu import profile, record

pytestmark = [pytest.mark.gpu_on_cpu, pytest.mark.usefixtures("stepwise")]

# 200 rows and items for both directions: more than a grid has threads, whatever a vector's width.
ROUNDS = [
    Case("rounds", T=2, B=100, H=5, L=2, bidirectional=True, states=True, dropout=0.5,
         lengths=(2, 1, 0, 2) * 25, upstream=("y", "h", "c", "cells")),
    Case("rounds-of-vectors", T=2, B=100, H=8, L=2, bidirectional=True, dropout=0.5, states=True),
    Case("rounds-projection", T=2, B=200, H=4, P=2, states=True, lengths=(2, 1, 0, 2) * 50),
]  # fmt: skip


@each_dtype
@pytest.mark.parametrize("blocks", [1, 3])
@pytest.mark.parametrize("case", ROUNDS, ids=lambda case: case.id)
def test_a_small_grid_goes_round_and_gives_the_same_bits(cupy, case, blocks, dtype):
    expected = results(run_on_device(cupy, case, dtype))
    with few_threads(blocks), record() as log:
        found = results(run_on_device(cupy, case, dtype))
    ours = [one for one in log.launches if one.name.startswith(("gates_", "dropout<"))]
    assert {(one.grid, one.block) for one in ours} == {((blocks, 1, 1), (32, 1, 1))}
    for name, array in expected.items():
        assert array.tobytes() == found[name].tobytes(), name


# One case for each thing that could depend on the card; the tables run on an A100.
ELSEWHERE = [
    Case("elsewhere", T=3, H=8, L=2, bidirectional=True, states=True, lengths=(3, 1, 0),
         dropout=0.5, upstream=("y", "h", "c", "cells")),
    Case("elsewhere-projection", T=3, H=5, P=4, states=True),
]  # fmt: skip


ALWAYS = {("T4", "float16"), ("H100", "float32"), ("LAPTOP", "float32")}


@each_dtype
@pytest.mark.parametrize("card", ["T4", "LAPTOP", "L4", "H100", "B200"])
@pytest.mark.parametrize("case", ELSEWHERE, ids=lambda case: case.id)
def test_other_cards(cupy, case, card, dtype):
    if (card, dtype) not in ALWAYS and not FULL:
        pytest.skip("every kernel is compiled anew for each card; all of them in .ci/full")
    with profile(card), record() as log:
        device = cupy.cuda.device.get_device_id()
        assert_device_case(case, dtype, run_on_device(cupy, case, dtype))
    assert {one.device for one in log.launches} == {one.device for one in log.gemms} == {device}
