"""The largest layers whose recurrent weights stay on the chip, card by card."""

from cupy_lstm.device import CARDS
from cupy_lstm.persistent.tiles import block_capacity

HEADER = "| card | shared memory a block | float32 | float16, bfloat16 |\n|---|---|---|---|"


def capacity_table() -> str:
    """Return the largest hidden size of the engine persistent as a table in Markdown.

    Training, and in brackets inference where that is more.
    """
    lines = [HEADER]
    for name, card in CARDS.items():
        cells = []
        for dtype in ("float32", "float16"):
            training, inference = (
                block_capacity(dtype, card.shared_memory_per_block, keep) for keep in (True, False)
            )
            cells.append(f"{training} ({inference})" if inference > training else f"{training}")
        kib = card.shared_memory_per_block // 1024
        lines.append(f"| {name} | {kib} KiB | {' | '.join(cells)} |")
    return "\n".join(lines)
