"""The bytes each engine needs beside inputs, outputs, tape and gradients: pure arithmetic.

An engine takes the steps of a sequence in chunks. Here is what every step of a chunk adds, and
what a call needs however many steps a chunk has. `itemsize` is that of sums (`sum_dtype`) unless
said otherwise.
"""

from cupy_lstm.notation import Shape

PRODUCT_BYTES = 32 * 2**20
"""The most scratch for a weight gradient before it is added; a wider one is added in parts."""

SIMD_BYTES = 64
"""The widest vector there is; the engine simd rounds sizes up to whole vectors."""

MANY_UNITS = 128
"""Units from which products in a CPU's matrix unit take longer than what surrounds them; the sums
of gradients, which are over many slots, from half as many inputs on."""

FEWEST_ROWS = 8
"""Rows from which those sums are of enough slots for the weights that they are added to."""


def step_bytes(shape: Shape, itemsize: int, training: bool) -> int:
    """Return the workspace that every step of a chunk adds, in bytes (the larger of both passes).

    Forward: input, gates, c and h of the step. Backward: the gates lie in the tape and become
    their gradients there; beside them the input or its gradient, h and its gradient, and four
    arrays of the size of c: the cell output m before a projection, two factors, and the
    gradient of c from outside. For lengths one byte a row, and 16 a step to count it.
    """
    _, B, I, H, P, D = shape  # noqa: E741
    forward = I + 4 * H + H + P
    backward = I + 2 * P + 4 * H if training else 0
    return D * B * (max(forward, backward) * itemsize + 1) + 16


def fixed_bytes(shape: Shape, itemsize: int, training: bool) -> int:
    """Return the workspace that does not depend on the number of steps, in bytes.

    The gate pre-activations of one step and a few vectors of the size of c; the sum of the
    biases; for training the product of a weight gradient before it is added. Where one step of
    a very wide layer or batch alone passes the limit, so does the sweep.
    """
    _, B, I, H, P, D = shape  # noqa: E741
    step = B * (4 * H + 4 * H + 2 * P)
    row = D * max(I, P) * itemsize
    product = min(4 * H * row, max(row, PRODUCT_BYTES)) if training else 0
    return D * (step + 8 * H) * itemsize + product


def persistent_step_bytes(shape: Shape, itemsize: int, training: bool, inside: bool) -> int:
    """Return the workspace that every step of a chunk adds in the engine persistent, in bytes.

    Forward: cell states of all steps, where they are asked for; where the projection is not
    `inside` the kernel, its result, and the input if it must be copied to be the operand of a
    GEMM. A tape has both but the copy. Backward: the gradients of the gates and the previous h as
    operands, and the same copy of the input with a byte a row for its padding.
    """
    _, B, I, H, _, D = shape  # noqa: E741
    forward = (0 if inside else I + (0 if training else 4 * H * D)) + (0 if training else H * D)
    backward = I + 5 * H * D if training else 0
    return B * max(forward, backward) * itemsize + (B if training else 0)


def persistent_fixed_bytes(shape: Shape, itemsize: int, training: bool) -> int:
    """Return the workspace of the engine persistent that does not depend on the chunk, in bytes.

    The states of one chunk as copies, and after it; for training the sum of the bias gradients.
    """
    _, B, _, H, _, D = shape
    return D * (4 * B * H + (4 * H if training else 0)) * itemsize


def single_step_bytes(shape: Shape, itemsize: int) -> int:
    """Return what every step adds in the engine single, in bytes: the input, if it is copied."""
    return shape.B * shape.I * itemsize


def single_fixed_bytes(shape: Shape, itemsize: int) -> int:
    """Return the workspace of the engine single that does not depend on the steps, in bytes.

    The states before a step as copies, and after it, twice where there are several; the cell
    output before a projection; the lengths.
    """
    _, B, _, H, P, D = shape
    return D * B * (3 * (H + P) + (H if P != H else 0)) * itemsize + 8 * B


def simd_step_bytes(shape: Shape, itemsize: int, training: bool) -> int:
    """Return the workspace that every step of a chunk adds in the engine simd, in bytes.

    Two addresses for every row, and the gates, which lie in the tape if there is one.
    """
    gates = 0 if training else 4 * in_vectors(shape.H, itemsize)
    return shape.D * shape.B * (gates * itemsize + 16)


def simd_fixed_bytes(shape: Shape, itemsize: int, training: bool) -> int:
    """Return the workspace of the engine simd that does not depend on the chunk, in bytes.

    The packed weights, once for forward, and for backward beside as many sums; the states, with
    those before the first step and a table of five numbers a row; and what two threads need for
    the products of a backward pass, 128 times four vectors each; more threads need more.
    """
    _, B, I, H, P, D = shape  # noqa: E741
    I, H, P = (in_vectors(size, itemsize) for size in (I, H, P))  # noqa: E741
    weights = 4 * H * (I + P + 1) + (H * P if shape.P != shape.H else 0)
    products = 2 * 128 * 4 * 64 if training else 0
    states = B * (2 * P + 2 * H)
    return D * ((weights * (2 if training else 1) + states) * itemsize + 40 * B) + products


def simd_output_bytes(shape: Shape, itemsize: int, training: bool) -> int:
    """Return what the engine simd needs for a projection's backward pass, in bytes.

    h and its whole gradient of every step, a small part of what the tape holds.
    """
    if not training or shape.P == shape.H:
        return 0
    return 2 * shape.T * shape.B * shape.D * in_vectors(shape.P, itemsize) * itemsize


def simd_split_bytes(shape: Shape, itemsize: int, training: bool) -> int:
    """Return what the engine simd needs beside where a CPU's matrix unit multiplies, in bytes.

    A number of float32 takes 6 bytes there, in terms by 32: so more for the weights, the outputs of
    some rows, for training the gates' gradients, too, and what two threads need for the inputs and
    for the products; more threads need more. Whether there is such a unit is not asked for here.
    Few rows or units are never for it.
    """
    _, B, I, H, P, D = shape  # noqa: E741
    if itemsize != 4 or P != H or B < FEWEST_ROWS or H < MANY_UNITS:
        return 0
    packed = 4 * (in_vectors(I, 4) + in_vectors(H, 4))
    I, H, B = (-(-size // 32) * 32 for size in (I, H, B))  # noqa: E741
    weights, rows = 4 * H * (6 * (I + H) - packed), 12 * B * (H + I)
    if training:
        rows = max(rows, 6 * 2 * B * 4 * H) + 2 * 6 * 96 * (4 * H + I + 64)
    return D * (weights * (2 if training else 1) + rows)


def tape_bytes(shape: Shape, itemsize: int, in_simd: bool = False) -> int:
    """Return what a tape of T steps of a layer holds beside its input, in bytes.

    The activated gates and the cell state of every step.
    """
    T, B, _, H, _, D = shape
    return T * B * D * 5 * (in_vectors(H, itemsize) if in_simd else H) * itemsize


def checkpoint_bytes(shape: Shape, itemsize: int) -> int:
    """Return what h and c before a step take, in bytes."""
    _, B, _, H, P, D = shape
    return B * D * (P + H) * itemsize


def in_vectors(size: int, itemsize: int) -> int:
    """Return a number of elements rounded up to whole vectors of the widest kind."""
    lanes = SIMD_BYTES // itemsize
    return -(-size // lanes) * lanes
