"""Which engine runs a layer's sweep over time, and in which chunks: pure arithmetic.

Nothing here touches an array or a device; a plan for any machine can be made and tested on any
other. A new engine is one new file in `cupy_lstm.engines` and one new line in `ENGINES`.
"""

from dataclasses import dataclass
from functools import cache

from cupy_lstm.backend import MODULES
from cupy_lstm.checks import checked_choice, checked_direction, checked_integer, checked_projection
from cupy_lstm.notation import Shape

ENGINES = {
    "stepwise": "a loop over the steps, one GEMM and the gates each; runs everywhere",
    "simd": "one compiled sweep over all steps, in the vectors of the CPU",
}
"""The engines by name, each a module of `cupy_lstm.engines`."""

WORKSPACE_LIMIT = 256 * 2**20
"""Bytes a sweep may use beside inputs, outputs, tape and gradients, however long it is."""

PRODUCT_BYTES = 32 * 2**20
"""The most scratch for a weight gradient before it is added; a wider one is added in parts."""

CHUNK_BYTES = {"numpy": 4 * 2**20, "cupy": 128 * 2**20}
"""Workspace a chunk of steps aims at: what a CPU's cache holds, what keeps a GPU's GEMM large."""

SIMD_CHUNK_BYTES = 256 * 2**10
"""The same for the engine simd, whose weights should stay in the nearest large cache, too."""

SIMD_BYTES = 64
"""The widest vector there is; the engine simd rounds sizes up to whole vectors."""


@dataclass(frozen=True)
class Plan:
    """How one layer's sweep over time will run.

    Attributes
    ----------
    engine : str
        A name in `ENGINES`.
    steps_per_chunk : int
        Steps whose input projection, and whose weight gradients, are one GEMM.
    workspace_bytes : int
        What a chunk needs beside inputs, outputs, tape and gradients.
    reason : str
        Why this engine.
    """

    engine: str
    steps_per_chunk: int
    workspace_bytes: int
    reason: str


def checked_engine(argument: str, value: object) -> str:
    """Return `value` if it is ``"auto"`` or the name of an engine; raise otherwise."""
    return checked_choice(argument, value, ("auto", *ENGINES))


@cache
def simd_missing() -> str:
    """Return why the engine simd cannot run on this host, or an empty text; imports Numba."""
    try:
        import numba  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name == "numba":
            return "Numba is not installed: pip install 'cupy_lstm[fast]'"
        return f"Numba cannot be imported ({error})"
    except Exception as error:  # a Numba that does not fit the NumPy beside it raises what it likes
        return f"Numba cannot be imported ({error})".replace("\n", " ")
    return ""


def why_not(engine: str, module: str, missing: str | None = None) -> str:
    """Return why an engine cannot serve arrays of a module, or an empty text.

    `missing` says why the engine simd cannot run on this host; default: what is true.
    """
    if engine != "simd":
        return ""
    if module != "numpy":
        return "it runs on NumPy arrays only"
    return simd_missing() if missing is None else missing


def plan_sweep(
    shape: Shape,
    itemsize: int,
    module: str = "numpy",
    training: bool = True,
    forced: str = "auto",
    missing: str | None = None,
) -> Plan:
    """Plan one layer's sweep.

    Parameters
    ----------
    shape : Shape
        Sizes of the layer, its batch and its sequence.
    itemsize : int
        Bytes of an element.
    module : str
        ``"numpy"`` or ``"cupy"``: where the arrays live.
    training : bool
        Whether a backward pass follows, which needs the larger workspace.
    forced : str
        An engine's name, or ``"auto"``.
    missing : str, optional
        Why the engine simd cannot run, empty if it can; default: what is true of this host.

    Returns
    -------
    Plan
        The engine, its chunks, and the reason.

    Raises
    ------
    ValueError
        If the forced engine cannot serve the sweep.
    """
    if forced != "auto":
        obstacle = why_not(forced, module, missing)
        if obstacle:
            raise ValueError(f"the engine {forced!r} cannot serve this call: {obstacle}")
        engine, reason = forced, "forced by cupy_lstm.engine(...)"
    elif obstacle := why_not("simd", module, missing):
        engine, reason = "stepwise", f"not simd, {obstacle}"
    else:
        engine, reason = "simd", "the fastest on a CPU"
    if engine == "simd":
        step = simd_step_bytes(shape, itemsize, training)
        fixed, aim = simd_fixed_bytes(shape, itemsize, training), SIMD_CHUNK_BYTES
    else:
        step = step_bytes(shape, itemsize, training)
        fixed, aim = fixed_bytes(shape, itemsize, training), CHUNK_BYTES[module]
    budget = max(0, min(aim, WORKSPACE_LIMIT - fixed))
    steps = max(1, min(max(shape.T, 1), budget // max(step, 1)))
    outputs = simd_output_bytes(shape, itemsize, training) if engine == "simd" else 0
    return Plan(engine, steps, fixed + steps * step + outputs, reason)


def simd_step_bytes(shape: Shape, itemsize: int, training: bool) -> int:
    """Return the workspace that every step of a chunk adds in the engine simd, in bytes.

    Two addresses for every row, and the gates, which lie in the tape if there is one.
    """
    gates = 0 if training else 4 * in_vectors(shape.H, itemsize)
    return shape.D * shape.B * (gates * itemsize + 16)


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
    a very wide layer or batch alone passes `WORKSPACE_LIMIT`, so does the sweep.
    """
    _, B, I, H, P, D = shape  # noqa: E741
    step = B * (4 * H + 4 * H + 2 * P)
    row = D * max(I, P) * itemsize
    product = min(4 * H * row, max(row, PRODUCT_BYTES)) if training else 0
    return D * (step + 8 * H) * itemsize + product


def simd_fixed_bytes(shape: Shape, itemsize: int, training: bool) -> int:
    """Return the workspace of the engine simd that does not depend on the chunk, in bytes.

    The packed weights, once for forward, and for backward beside as many sums; the states, with
    those before the first step and a table of five numbers a row.
    """
    _, B, I, H, P, D = shape  # noqa: E741
    I, H, P = (in_vectors(size, itemsize) for size in (I, H, P))  # noqa: E741
    weights = 4 * H * (I + P + 1) + (H * P if shape.P != shape.H else 0)
    return D * ((weights * (2 if training else 1) + B * (2 * P + 2 * H)) * itemsize + 40 * B)


def simd_output_bytes(shape: Shape, itemsize: int, training: bool) -> int:
    """Return what the engine simd needs for a projection's backward pass, in bytes.

    h and its whole gradient of every step, a small part of what the tape holds.
    """
    if not training or shape.P == shape.H:
        return 0
    return 2 * shape.T * shape.B * shape.D * in_vectors(shape.P, itemsize) * itemsize


def in_vectors(size: int, itemsize: int) -> int:
    """Return a number of elements rounded up to whole vectors of the widest kind."""
    lanes = SIMD_BYTES // itemsize
    return -(-size // lanes) * lanes


def explain_plan(
    steps: int,
    batch: int,
    input_size: int,
    hidden_size: int,
    num_layers: int = 1,
    direction: str = "forward",
    *,
    proj_size: int = 0,
    itemsize: int = 4,
    module: str = "numpy",
    training: bool = True,
    forced: str = "auto",
) -> str:
    """Say which engine would run each layer, in which chunks, and why.

    Parameters
    ----------
    steps, batch : int
        T and B of the call.
    input_size, hidden_size, num_layers, direction, proj_size
        As of `cupy_lstm.LSTM`.
    itemsize : int
        Bytes of an element: 4 for float32, 8 for float64.
    module : str
        ``"numpy"`` or ``"cupy"``.
    training : bool
        Whether a backward pass follows.
    forced : str
        An engine's name, or ``"auto"``.

    Returns
    -------
    str
        One line a layer.

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong type or an impossible value.
    """
    steps = checked_integer("steps", steps, 0)
    batch = checked_integer("batch", batch, 0)
    input_size = checked_integer("input_size", input_size)
    hidden_size = checked_integer("hidden_size", hidden_size)
    num_layers = checked_integer("num_layers", num_layers)
    D = len(checked_direction(direction))
    P = checked_projection(proj_size, hidden_size) or hidden_size
    module = checked_choice("module", module, MODULES)
    forced = checked_engine("forced", forced)
    lines = []
    for layer in range(num_layers):
        features = input_size if layer == 0 else D * P
        shape = Shape(steps, batch, features, hidden_size, P, D)
        plan = plan_sweep(shape, itemsize, module, training, forced)
        lines.append(
            f"layer {layer}: {plan.engine} on {module}, {plan.steps_per_chunk} of {steps} steps a "
            f"chunk, workspace {plan.workspace_bytes / 2**20:.1f} MiB: {plan.reason} "
            f"({ENGINES[plan.engine]})"
        )
    return "\n".join(lines)
