"""What would run, and why, in words; no array and no device is needed for it."""

from cupy_lstm.backend import DTYPES, MODULES
from cupy_lstm.checks import (
    checked_choice,
    checked_direction,
    checked_integer,
    checked_optional_integer,
    checked_projection,
)
from cupy_lstm.cost import Cost
from cupy_lstm.device import CARDS, DeviceFacts
from cupy_lstm.notation import Shape
from cupy_lstm.plan import ENGINES, Plan, checked_engine, plan_sweep
from cupy_lstm.workspace import checkpoint_bytes, tape_bytes


def explain_plan(
    steps: int,
    batch: int,
    input_size: int,
    hidden_size: int,
    num_layers: int = 1,
    direction: str = "forward",
    *,
    proj_size: int = 0,
    dtype: str = "float32",
    module: str | None = None,
    device: DeviceFacts | str | None = None,
    training: bool = True,
    forced: str = "auto",
    checkpoint_every: int | None = None,
) -> str:
    """Say which engine would run each layer, in which chunks, and why.

    Parameters
    ----------
    steps, batch : int
        T and B of the call.
    input_size, hidden_size, num_layers, direction, proj_size
        As of `cupy_lstm.LSTM`.
    dtype : str
        Of the weights.
    module : str, optional
        ``"numpy"`` or ``"cupy"``; default ``"cupy"`` where a device is given, else ``"numpy"``.
    device : DeviceFacts or str, optional
        The GPU that would run it, which need not be here: a name in `cupy_lstm.device.CARDS`, or
        what `cupy_lstm.device.current_device` returns. Default: none, and then only the engine
        stepwise can be planned for CuPy.
    training : bool
        Whether a backward pass follows.
    forced : str
        An engine's name, or ``"auto"``.
    checkpoint_every : int, optional
        As of `cupy_lstm.LSTM`.

    Returns
    -------
    str
        One line a layer; one more with `checkpoint_every` in training; two more for the engine
        persistent: what is launched, and what a step costs. Times are of a model, not measured;
        there are none where the host launches every step, since nothing that is known of a device
        says how fast its host is.

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong type or an impossible value.

    Examples
    --------
    >>> from cupy_lstm import explain_plan
    >>> explain_plan(1000, 16, 64, 128, device="H100").split(":")[1].split(",")[0]
    ' persistent on cupy'
    """
    steps = checked_integer("steps", steps, 0)
    batch = checked_integer("batch", batch, 0)
    input_size = checked_integer("input_size", input_size)
    hidden_size = checked_integer("hidden_size", hidden_size)
    num_layers = checked_integer("num_layers", num_layers)
    D = len(checked_direction(direction))
    P = checked_projection(proj_size, hidden_size) or hidden_size
    facts = _checked_device(device)
    if module is None:
        module = "numpy" if facts is None else "cupy"
    module = checked_choice("module", module, MODULES)
    if facts is not None and module == "numpy":
        raise ValueError("device is a GPU, but module is 'numpy': leave one of them out")
    dtype = checked_choice("dtype", dtype, DTYPES[module])
    forced = checked_engine("forced", forced)
    every = checked_optional_integer("checkpoint_every", checkpoint_every)
    lines = []
    for layer in range(num_layers):
        features = input_size if layer == 0 else D * P
        shape = Shape(steps, batch, features, hidden_size, P, D)
        plan = plan_sweep(shape, dtype, module, training, forced, facts)
        lines.append(
            f"layer {layer}: {plan.engine} on {module}, {plan.steps_per_chunk} of {steps} steps a "
            f"chunk, workspace {plan.workspace_bytes / 2**20:.1f} MiB: {plan.reason} "
            f"({ENGINES[plan.engine]})"
        )
        if training and every is not None:
            lines.append(_checkpoint_line(plan, every))
        lines += _launch_lines(plan)
    return "\n".join(lines)


def _checked_device(device: DeviceFacts | str | None) -> DeviceFacts | None:
    """Return the facts of a device."""
    if device is None or isinstance(device, DeviceFacts):
        return device
    if not isinstance(device, str):
        raise TypeError(
            f"device must be a DeviceFacts or one of {tuple(CARDS)}, received {device!r}"
        )
    return CARDS[checked_choice("device", device, tuple(CARDS))]


def _checkpoint_line(plan: Plan, every: int) -> str:
    """Say what is kept instead of a tape, and how much of the tape there is at a time."""
    shape, itemsize = plan.shape, 8 if plan.dtype == "float64" else 4
    steps = plan.steps_per_segment(every)
    kept = -(-shape.T // steps) * checkpoint_bytes(shape, itemsize)
    whole, part = (
        tape_bytes(shape._replace(T=T), itemsize, plan.engine == "simd")
        for T in (shape.T, min(steps, shape.T))
    )
    return (
        f"  checkpoints: h and c before every {steps} steps, {kept / 2**20:.1f} MiB; a tape of "
        f"{part / 2**20:.1f} MiB is made at a time, instead of one of {whole / 2**20:.1f} MiB kept"
    )


def _launch_lines(plan: Plan) -> list[str]:
    """Say what the engine persistent launches, and what a step costs; nothing for other engines."""
    found, device = plan.launch, plan.device
    if found is None or device is None:
        return []
    passes = {"forward": (found.forward, False)}
    if plan.training:
        passes["backward"] = found.backward, True
    shared = " and ".join(f"{work.shared_bytes / 1024:.1f}" for work, _ in passes.values())
    launch = (
        f"  {plan.tier} tier, {found.name}: {found.grid[0]} x {found.grid[1]} blocks of "
        f"{found.threads} threads on the {device.multiprocessors} multiprocessors of "
        f"{device.name}, at most {found.registers} registers each, {shared} KiB of shared memory"
        + (", input projected inside" if found.inside else "")
    )
    costs = (f"{name} {_cost_text(plan.cost(back))}" for name, (_, back) in passes.items())
    return [launch, f"  a step by the model, not measured: {'; '.join(costs)}"]


def _cost_text(cost: Cost) -> str:
    """Return the counts of a step, and its times where they are known."""
    words = (
        f"{cost.flops / 1e6:.3g} MFLOP, {cost.memory_bytes / 1e3:.3g} kB of memory, "
        f"{cost.barriers} barrier{'s' if cost.barriers > 1 else ''}"
    )
    if cost.predicted_us is not None:
        words += f", {cost.predicted_us:.3g} us (floor {cost.floor_us:.2g})"
    return words
