"""Which engine runs a layer's sweep over time, and in which chunks: pure arithmetic.

Nothing here touches an array or a device; a plan for any machine can be made and tested on any
other. A new engine is one new file in `cupy_lstm.engines` and one new line in `ENGINES`.
"""

from dataclasses import dataclass
from functools import cache, lru_cache

from cupy_lstm.checks import checked_choice
from cupy_lstm.cost import Cost, step_cost, stepwise_seconds
from cupy_lstm.device import DeviceFacts
from cupy_lstm.notation import Shape
from cupy_lstm.persistent.blocks import Blocks
from cupy_lstm.persistent.teams import Teams
from cupy_lstm.persistent.tiers import pass_clocks, tier_for
from cupy_lstm.persistent.tiles import ITEMSIZE
from cupy_lstm.workspace import (
    fixed_bytes,
    persistent_fixed_bytes,
    persistent_step_bytes,
    simd_fixed_bytes,
    simd_output_bytes,
    simd_split_bytes,
    simd_step_bytes,
    single_fixed_bytes,
    single_step_bytes,
    step_bytes,
)

ENGINES = {
    "stepwise": "a loop over the steps, one GEMM and the gates each; runs everywhere",
    "simd": "one compiled sweep over all steps, in the vectors of the CPU",
    "persistent": "one launch for all steps, the recurrent weights stay on the chip",
    "single": "one launch for each step, for inference",
}
"""The engines by name, each a module of `cupy_lstm.engines`."""

SERVES = {
    "stepwise": ("numpy", "cupy"),
    "simd": ("numpy",),
    "persistent": ("cupy",),
    "single": ("cupy",),
}
"""The array modules of each engine."""

WORKSPACE_LIMIT = 256 * 2**20
"""Bytes a sweep may use beside inputs, outputs, tape and gradients, however long it is."""

CHUNK_BYTES = {"numpy": 4 * 2**20, "cupy": 128 * 2**20}
"""Workspace a chunk of steps aims at: what a CPU's cache holds, what keeps a GPU's GEMM large."""

SIMD_CHUNK_BYTES = 256 * 2**10
"""The same for the engine simd, whose weights should stay in the nearest large cache, too."""

SIMD_FAR_BYTES = 4 * 2**20
"""Bytes that a sweep needs whatever its chunks, most of them packed weights, from which these do
not, and are read from further away for each chunk: then a chunk aims at four times as much."""

LAUNCH_STEPS = 16384
"""Steps of a launch of the engine persistent at most: a display's watchdog ends a kernel that runs
for seconds."""

SUMMED_STEPS = 128
"""Steps whose weight gradients the engine simd sums before it adds them to those of later steps."""

FEW_STEPS = 8
"""The longest sequence that the engine single takes: each step reads all weights, and is a launch
from Python. One step is its own even where the engine persistent could serve."""

STEP_PRODUCTS = 2**29
"""Multiplications of a step up to which the engine single is chosen; beyond it the products of
cuBLAS are worth their launches. A choice, not a measurement: 18 us at 60 TFLOP/s."""

PLANS_KEPT = 1024
"""Plans that are remembered: calls of a few shapes, over and over, need not plan each time."""

NO_TAPE = "it keeps nothing for a backward pass: call inside `with cupy_lstm.no_grad():`"

NO_DEVICE = "no device is given whose limits it could keep"


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
    shape, dtype, training : Shape, str, bool
        What it is for.
    device : DeviceFacts or None
        The GPU it is for; None for a CPU, or where it is not known.
    launch : Blocks, Teams or None
        What the engine persistent launches.
    """

    engine: str
    steps_per_chunk: int
    workspace_bytes: int
    reason: str
    shape: Shape
    dtype: str
    training: bool
    device: DeviceFacts | None = None
    launch: Blocks | Teams | None = None

    @property
    def tier(self) -> str | None:
        """Where the recurrent weights stay; None: nowhere.

        ``"block"``: on one multiprocessor; ``"cluster"`` and ``"grid"``: on several that exchange
        after each step through their shared memory, or through that of the device.
        """
        return None if self.launch is None else self.launch.tier

    @property
    def chunks(self) -> int:
        """How many chunks the sequence has."""
        return -(-self.shape.T // self.steps_per_chunk)

    def steps_per_segment(self, every: int) -> int:
        """Return the steps between two states that are kept where `every` are asked for.

        Rounded up to whole parts of the sums that weight gradients are: so they are summed as
        from a tape of all steps.
        """
        part = SUMMED_STEPS if self.engine == "simd" else self.steps_per_chunk
        return -(-every // part) * part

    def cost(self, backward: bool = False) -> Cost:
        """Return what a step of a pass costs."""
        return step_cost(
            self.shape, self.dtype, self.device, self.engine, self.launch, self.training, backward
        )


REASONS = {
    "simd": "the fastest on a CPU",
    "block": "the recurrent weights fit on one multiprocessor",
    "cluster": "the recurrent weights fit on a cluster of multiprocessors",
    "grid": "the recurrent weights fit on several multiprocessors",
    "single": "one step is one launch",
}
"""Why an engine is chosen that can serve, by engine, or by tier of the engine persistent."""


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
    """Return why an engine cannot serve any array of a module, or an empty text.

    `missing` says why the engine simd cannot run on this host; default: what is true.
    """
    if module not in SERVES[engine]:
        return f"it runs on {'NumPy' if engine == 'simd' else 'CuPy'} arrays only"
    if engine == "simd":
        return simd_missing() if missing is None else missing
    return ""


def plan_sweep(
    shape: Shape,
    dtype: str,
    module: str = "numpy",
    training: bool = True,
    forced: str = "auto",
    device: DeviceFacts | None = None,
    *,
    missing: str | None = None,
) -> Plan:
    """Plan one layer's sweep.

    Parameters
    ----------
    shape : Shape
        Sizes of the layer, its batch and its sequence.
    dtype : str
        Name of the storage dtype.
    module : str
        ``"numpy"`` or ``"cupy"``: where the arrays live.
    training : bool
        Whether a backward pass follows, which needs the larger workspace.
    forced : str
        An engine's name, or ``"auto"``.
    device : DeviceFacts, optional
        The GPU of CuPy arrays; without it nothing is planned that depends on its limits.
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
    launch = None
    few = module == "cupy" and device is not None and not training and _is_small(shape)
    best = "simd" if module == "numpy" else "single" if few and shape.T == 1 else "persistent"
    wanted = best if forced == "auto" else forced
    obstacle = why_not(wanted, module, missing)
    if wanted == "persistent" and not obstacle:
        found = NO_DEVICE if device is None else tier_for(shape, dtype, device, training)
        if isinstance(found, str):
            obstacle = found
        elif forced == "auto" and _is_slow(shape, dtype, device, training, found):
            obstacle = "by the model a GEMM a step is faster, launches included"
        else:
            launch = found
    if wanted == "single" and training and not obstacle:
        obstacle = NO_TAPE
    if forced != "auto":
        if obstacle:
            raise ValueError(f"the engine {forced!r} cannot serve this call: {obstacle}")
        engine, reason = forced, "forced by cupy_lstm.engine(...)"
    elif obstacle:
        engine = "single" if few else "stepwise"
        reason = f"not {best}, {obstacle}"
    else:
        engine, reason = best, REASONS[best if launch is None else launch.tier]
    steps, workspace = _chunk(engine, shape, dtype, module, training, launch)
    return Plan(engine, steps, workspace, reason, shape, dtype, training, device, launch)


@lru_cache(PLANS_KEPT)
def remembered_plan(
    shape: Shape,
    dtype: str,
    module: str,
    training: bool,
    forced: str,
    device: DeviceFacts | None,
) -> Plan:
    """Return what `plan_sweep` does, at once where it has been asked before."""
    return plan_sweep(shape, dtype, module, training, forced, device)


def _is_small(shape: Shape) -> bool:
    """Say whether the launches of a few steps count more than their products."""
    T, B, I, H, P, D = shape  # noqa: E741
    return T <= FEW_STEPS and D * B * 4 * H * (I + P) <= STEP_PRODUCTS


def _is_slow(
    shape: Shape, dtype: str, device: DeviceFacts | None, training: bool, launch: Blocks | Teams
) -> bool:
    """Say whether the steps of teams take longer than those of the engine stepwise, by the model.

    So do those of many rows of large layers: a GEMM may use all multiprocessors for each row.
    """
    if device is None or not device.clock_hz or isinstance(launch, Blocks):
        return False
    seconds = pass_clocks(launch, dtype, device, shape.D, training) / device.clock_hz
    return seconds > (1 + training) * stepwise_seconds(shape, dtype, device)


def _chunk(
    engine: str,
    shape: Shape,
    dtype: str,
    module: str,
    training: bool,
    launch: Blocks | Teams | None,
) -> tuple[int, int]:
    """Return the steps of a chunk, and the workspace in bytes."""
    itemsize = 8 if dtype == "float64" else 4  # of sums
    sizes = shape, itemsize, training
    aim, most, outputs = CHUNK_BYTES[module], max(shape.T, 1), 0
    if engine == "simd":
        step, fixed, aim = simd_step_bytes(*sizes), simd_fixed_bytes(*sizes), SIMD_CHUNK_BYTES
        if fixed > SIMD_FAR_BYTES:
            aim *= 4
        outputs = simd_output_bytes(*sizes) + simd_split_bytes(*sizes)
    elif launch is not None:
        step, fixed = persistent_step_bytes(*sizes, launch.inside), persistent_fixed_bytes(*sizes)
        if isinstance(launch, Teams):
            works = (launch.forward, launch.backward) if training else (launch.forward,)
            item = ITEMSIZE[dtype]
            fixed += max(sum(launch.exchange_bytes(work, shape.D, item)) for work in works)
        most = min(most, LAUNCH_STEPS)
    elif engine == "single":
        step, fixed = single_step_bytes(*sizes[:2]), single_fixed_bytes(*sizes[:2])
    else:
        step, fixed = step_bytes(*sizes), fixed_bytes(*sizes)
    budget = max(0, min(aim, WORKSPACE_LIMIT - fixed))
    steps = max(1, min(most, budget // max(step, 1)))
    return steps, fixed + steps * step + outputs
