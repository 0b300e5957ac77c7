"""What a step of an LSTM should cost on a GPU: ``python profiling/model.py``.

A model, not a measurement, and it runs without a GPU. For shapes and a card it writes what the plan
counts (FLOPs, bytes of memory and of shared memory, barriers), the floor of the device, and the
predicted microseconds a step (`cupy_lstm.cost` says how), as `model.csv`, and draws them as
`model.png` beside what others have published (`profiling/gpu/published.py` has the sources).

With --sass every kernel of the engine persistent is compiled for --architecture, and the
instructions of its step loop are counted by class: products (FFMA, on tensor cores HMMA), shared
memory (LDS, STS), memory (LDG, STG), exchange (SHFL), functions (MUFU), barriers, fences (MEMBAR),
spills, and the rest; for teams without the loops over terms and partial sums inside it.

--capacity prints the table of the largest layers alone.
"""

import argparse
from collections import Counter
from pathlib import Path

from gpu.capacity import capacity_table
from gpu.rows import BATCHES, Row, table, write_csv
from gpu.sass import (
    CLASSES,
    MISSING,
    OTHER,
    Instruction,
    compile_cubin,
    disassemble,
    find_nvdisasm,
)

from gpu.sass import instructions, once_a_step, step_loop  # isort: skip

from cupy_lstm.device import CARDS, DeviceFacts, current_device
from cupy_lstm.kernels import SCALARS
from cupy_lstm.persistent.teams import (
    CLUSTERS,
    COMPUTE_CAPABILITY,
    LANES,
    TENSOR,
    TENSOR_CAPABILITY,
    Form,
)
from cupy_lstm.persistent.tiles import TILES, BlockTile

HERE = "here"
DTYPES = ("float32", "float16", "bfloat16")


def main(arguments: list[str] | None = None) -> None:
    options = parsed_options(arguments)
    if options.capacity:
        print(capacity_table())
        return
    device = facts_of(options.device)
    rows = table(device, options.dtype, options.batch)
    print(f"{device.name}: microseconds a step by the model, not measured (floor of the device)\n")
    print(text_table(rows))
    options.out.mkdir(parents=True, exist_ok=True)
    write_csv(rows, options.out / "model.csv")
    draw_model(rows, device, options.out / "model.png")
    if options.sass:
        print(f"\n{sass_table(options.architecture or architecture(device), options.dtype)}")


def parsed_options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--device", choices=(*CARDS, HERE), default="H100", help="a card, or the one that is here")
    add("--dtype", nargs="+", choices=DTYPES, default=["float32", "float16"])
    add("--batch", nargs="+", type=int, default=[*BATCHES], help="rows B")
    add("--out", type=Path, default=Path(), metavar="DIR", help="of CSV and PNG, default here")
    add("--sass", action="store_true", help="count the instructions of the kernels, too")
    add("--architecture", metavar="sm_NN", help="of --sass, default that of the card")
    add("--capacity", action="store_true", help="print the table of the largest layers, and end")
    return parser.parse_args(arguments)


def facts_of(name: str) -> DeviceFacts:
    """Return the facts of a card by its name, or those of the current device."""
    if name != HERE:
        return CARDS[name]
    try:
        return current_device()
    except Exception as error:  # CuPy or its driver is missing, each in its own way
        raise SystemExit(f"--device {HERE} needs a GPU and CuPy: {error}") from None


def architecture(device: DeviceFacts) -> str:
    """Return what the compiler calls a device."""
    return "sm_{}{}".format(*device.compute_capability)


def text_table(rows: list[Row]) -> str:
    """Return predicted times and floors, a line for each H."""
    columns = list(dict.fromkeys((row.dtype, row.passes, row.B) for row in rows))
    found = {(row.dtype, row.passes, row.B, row.H): row for row in rows}
    lines = []
    for dtype, passes in dict.fromkeys(column[:2] for column in columns):
        batches = [column[2] for column in columns if column[:2] == (dtype, passes)]
        what = "forward" if passes == "forward" else "forward and backward"
        lines.append(f"{dtype}, {what}")
        lines.append("     H" + "".join(f"{f'B = {B}':>18}" for B in batches))
        for H in dict.fromkeys(row.H for row in rows):
            cells = [found[dtype, passes, B, H] for B in batches]
            lines.append(f"{H:6}" + "".join(f"{cell_text(cell):>18}" for cell in cells))
        lines.append("")
    return "\n".join(lines[:-1])


def cell_text(row: Row) -> str:
    """Return a time and its floor; the name of the engine where there is no prediction."""
    words = row.engine if row.us is None else f"{row.us:.2f}"
    return words if row.floor_us is None else f"{words} ({row.floor_us:.2g})"


def draw_model(rows: list[Row], device: DeviceFacts, path: Path) -> None:
    """Draw the rows, or say what is missing for it."""
    try:
        from gpu.picture import draw

        draw(
            rows, path,
            f"A step of an LSTM layer on {device.name}: predicted by the model, not measured, "
            "beside published times of others",
        )  # fmt: skip
    except ImportError as error:
        print(f"\nno picture: {error} (pip install matplotlib)")


def kernel_of(dtype: str, tile: BlockTile, backward: bool) -> tuple[str, str, str]:
    """Return the pass, the instantiation and the file of a kernel of the engine persistent."""
    name = "backward" if backward else "forward"
    terms = tile.backward_terms if backward else tile.forward_terms
    file = "recurrence_block_backward.cu" if backward else "recurrence_block.cu"
    return name, f"recurrence_{name}<{SCALARS[dtype]}, {terms}, {tile.threads}>", file


def team_kernel_of(dtype: str, form: Form, backward: bool) -> tuple[str, str]:
    """Return the instantiation and the file of a kernel of teams."""
    name, scalar = "backward" if backward else "forward", SCALARS[dtype]
    product = f"{form.kind}<{scalar}, {form.kept_terms}>"
    file = "recurrence_team_backward.cu" if backward else "recurrence_team.cu"
    return f"recurrence_{name}<{scalar}, {product}>", file


def team_kernels(sm: str, dtypes: list[str]) -> list[tuple[str, str, tuple[str, ...]]]:
    """Return instantiation, file and options of the kernels of teams of an architecture."""
    number = int(sm.removeprefix("sm_"))
    capability = divmod(number, 10)
    if capability < COMPUTE_CAPABILITY:
        return []
    options: list[tuple[str, ...]] = [()]
    if capability >= (9, 0):
        options.append((f"-DCLUSTER={max(CLUSTERS)}",))
    found = []
    for dtype in dtypes:
        forms = (TENSOR,) if capability >= TENSOR_CAPABILITY else ()
        if dtype == "float32" or not forms:
            forms = (LANES, *forms)
        for form in forms:
            for backward in (False, True):
                expression, file = team_kernel_of(dtype, form, backward)
                found += [(expression, file, one) for one in options]
    return found


def sass_table(sm: str, dtypes: list[str]) -> str:
    """Return the classes of instructions in the step loop of every compiled kernel."""
    nvdisasm = find_nvdisasm()
    if nvdisasm is None:
        return f"no instructions are counted: {MISSING}"
    names = (*CLASSES, OTHER)
    lines = [
        f"{sm}: instructions in the loop over the steps, each once; a lane's terms in registers "
        "are 16 FFMA each, those of teams 32 FFMA or one HMMA",
        f"{'kernel':68}" + "".join(f"{name:>11}" for name in names),
    ]

    def line(title: str, counts: Counter[str]) -> str:
        return f"{title:68}" + "".join(f"{counts[name]:11}" for name in names)

    def read(expression: str, file: str, options: tuple[str, ...] = ()) -> list[Instruction]:
        return instructions(disassemble(compile_cubin(file, expression, sm, options), nvdisasm))

    for dtype in dtypes:
        for tile in TILES[4 if dtype == "float32" else 2]:
            for backward in (False, True):
                _, expression, file = kernel_of(dtype, tile, backward)
                lines.append(line(expression, step_loop(read(expression, file))))
    for expression, file, options in team_kernels(sm, dtypes):
        title = f"{expression} {'cluster' if options else ''}"
        lines.append(line(title, once_a_step(read(expression, file, options))))
    return "\n".join(lines)


if __name__ == "__main__":
    main()
