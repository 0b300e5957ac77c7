"""Where the kernels of teams keep weights, vectors and sums, read out of their text."""

import re
from itertools import product

import numpy as np
import pytest

from cupy_lstm import kernels
from cupy_lstm.persistent import teams
from cupy_lstm.persistent.teams import LANES, TENSOR, TENSOR_TF32, THREADS, UNITS, shared_bytes

FORMS = [LANES, TENSOR, TENSOR_TF32]
each_form = pytest.mark.parametrize("form", FORMS, ids=["lanes", "tensor", "tf32"])
SOURCE = kernels.source("team_product.cuh")
BLOCKS = [
    pytest.param(form, units, id=f"{name}-{units}")
    for form, name in zip(FORMS, ("lanes", "tensor", "tf32"), strict=True)
    for units in UNITS
    if units * form.rows <= THREADS and units % form.outputs == 0
]
each_block = pytest.mark.parametrize(("form", "units"), BLOCKS)


def test_the_numbers_of_the_kernels_are_the_same():
    assert int(re.search(r"constexpr int THREADS = (\d+);", SOURCE)[1]) == THREADS
    found = re.findall(r"constexpr int ROWS = (\d+), OUTPUTS = (\d+)", SOURCE)
    assert [tuple(map(int, one)) for one in found] == [
        (form.rows, form.outputs) for form in (LANES, TENSOR)
    ]
    names = re.findall(r"^struct (\w+Product) ", SOURCE, re.MULTILINE)
    assert names == [LANES.kind, TENSOR.kind]
    row = re.search(r"struct Row \{(.*?)\};", kernels.source("team.cuh"), re.DOTALL)[1]
    assert 4 * len(re.findall(r"^\s*int \w+;", row, re.MULTILINE)) == teams.ROW_BYTES
    for file in ("recurrence_team.cu", "recurrence_team_backward.cu"):
        assert "__launch_bounds__(THREADS, 1)" in kernels.source(file)
    assert THREADS * teams.REGISTERS == 65536


def elements_of(form):
    """Return E of a form: neighbours along k in a register of the tensor cores."""
    return 8 * form.term_weights // TENSOR.term_weights // 4


def text_of(form, pattern):
    """Return expressions of a form's kernels, as Python computes them: integers are divided."""
    struct = SOURCE[SOURCE.index(f"struct {form.kind} ") :]
    found = re.search(pattern, struct).groups()
    return [one.replace("/", "//").replace("threadIdx.x", "thread") for one in found]


def weights_of(form, outputs, terms):
    """Return (output, k) of every weight that the threads of a block hold, by the kernels' text."""
    E = elements_of(form)
    span = form.span(outputs)
    names = {"WARP": 32, "E": E, "K": 8 * E, "OUTPUTS": form.outputs, "span": span, "slices": span}
    if form == LANES:
        sizes = {"thread": THREADS, "j": terms, "n": 8}
        octet, piece = text_of(form, r"octet\((.*)\), slice\((.*)\) \{\}")
        steps = {"octet": octet, "slice": piece}
    else:
        sizes = {"thread": THREADS, "j": terms, "i": 4, "e": E}
        many, part, first = text_of(form, r"many\((.*?)\), part\((.*?)\),\s+first\((.*?)\) \{\}")
        lane, k = text_of(form, r"const int lane = (.*), k = (\(part.*);")
        steps = {"many": many, "part": part, "first": first, "lane": lane, "k": k}
    grids = np.meshgrid(*(np.arange(size) for size in sizes.values()))
    names |= dict(zip(sizes, grids, strict=True))
    for name, text in steps.items():
        names[name] = eval(text, {}, names)
    weight = r"\n +weight\((.*), (.*)\);" if form == LANES else r"operand\(weight\((.*), (.*)\)\);"
    output, k = (eval(text, {}, names) for text in text_of(form, weight))
    if form != LANES:
        # Register i of a fragment's lane: row group + 8 (i % 2), k quarter + 4 (i / 2) (PTX ISA).
        lane, i = names["thread"] % 32, names["i"]
        assert (output % 16 == lane // 4 + 8 * (i % 2)).all()
        assert (k % (8 * E) == (lane % 4 + 4 * (i // 2)) * E + names["e"]).all()
    return output, k


@each_block
@pytest.mark.parametrize("length", [1, 7, 64, 100, 257])
def test_every_weight_has_one_thread(form, units, length):
    for outputs, values in ((4 * units, length), (units, 4 * length)):
        terms = form.terms(outputs, values)
        output, k = weights_of(form, outputs, terms)
        entries = form.vector(outputs, values) // form.rows
        assert entries >= values
        held = np.zeros((outputs, entries), int)
        np.add.at(held, (output.ravel(), k.ravel()), 1)
        assert (held == 1).all()
        assert held.size == terms * form.term_weights


def place(form, k, row):
    """Return where an element of the exchanged vector is, by the text of the kernels."""
    E = elements_of(form)
    names = {"k": k, "row": row, "ROWS": form.rows, "WARP": 32, "E": E, "K": 8 * E}
    if form != LANES:
        inside, lane = text_of(form, r"const int inside = (.*?), lane = (.*);")
        names["inside"] = eval(inside, {}, names)
        names["lane"] = eval(lane, {}, names)
    (found,) = text_of(form, r"int place\(int k, int row\) \{[^}]*?return (.*?);")
    return eval(found, {}, names)


@each_form
def test_a_vector_is_where_the_lanes_load_it(form):
    """A fragment's lane has column lane / 4, register i of it k quarter + 4 i (PTX ISA)."""
    entries = form.vector(64, 100) // form.rows
    k, row = np.meshgrid(np.arange(entries), np.arange(form.rows))
    places = place(form, k, row)
    assert sorted(places.ravel()) == list(range(entries * form.rows))
    if form == LANES:
        return
    E = elements_of(form)
    for fragment, lane, i, e in product(range(3), range(32), range(2), range(E)):
        loaded = (fragment * 32 + lane) * 2 * E + i * E + e
        assert place(form, fragment * 8 * E + (lane % 4 + 4 * i) * E + e, lane // 4) == loaded


@each_block
def test_every_sum_has_its_place(form, units):
    for outputs in (units, 4 * units):
        if form == LANES:
            parts = max(1, THREADS // (outputs // 8) // 32)
        else:
            parts = THREADS // 32 // (outputs // 16)
        assert parts * outputs == max(form.sums, outputs)


def test_shared_memory_by_hand():
    # 16 units of H = 100, halves on tensor cores, two tiles of eight rows. Forward 64 outputs: 16
    # warps are 4 x 4, a term is 64 values, so 100 take 2, none beyond the 16 in registers.
    work = shared_bytes(TENSOR, "grid", 16, 2, 64, 100, 2, True)
    assert (work.outputs, work.terms, work.shared_terms, work.vector) == (64, 2, 0, 128 * 8)
    sums, cells, biases, rows = 4 * 64 * 8, 2 * 16 * 8, 4 * 16, 2 * (8 * 12 + 4)
    assert work.shared_bytes == 1024 * 2 + 4 * (sums + cells + biases) + rows
    # In a cluster the vectors of both tiles, twice.
    work = shared_bytes(TENSOR, "cluster", 16, 2, 64, 100, 2, True)
    assert work.shared_bytes == 4 * 1024 * 2 + 4 * (sums + cells + biases) + rows
    # Backward in float32 lanes: 16 outputs of eight are two octets of 256 threads, 4 x 1000 values
    # take 16 terms, ten of them in shared memory.
    work = shared_bytes(LANES, "grid", 16, 1, 16, 4000, 4, False)
    assert (work.outputs, work.terms, work.shared_terms, work.vector) == (16, 16, 10, 4096 * 4)
    weights, sums, cells = 10 * 8 * 512 * 4, 8 * 16 * 4, 16 * 4
    assert work.shared_bytes == weights + 4096 * 4 * 4 + 4 * (sums + cells) + 4 * 12 + 4
