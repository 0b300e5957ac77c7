"""The largest layers whose recurrent weights stay on the chip, card by card and tier by tier."""

from cupy_lstm.device import CARDS, DeviceFacts
from cupy_lstm.persistent.tiers import capacity
from cupy_lstm.persistent.tiles import block_capacity

TIERS = {
    "block": "one multiprocessor",
    "cluster": "a cluster",
    "grid": "many multiprocessors",
}
DTYPES = {"float32": "float32", "float16": "16 bits"}


def capacity_table() -> str:
    """Return the largest hidden size of the engine persistent as a table in Markdown.

    Training, and in brackets inference where that is more.
    """
    columns = [
        f"{where}, {what}" if what == DTYPES["float32"] else what
        for where in TIERS.values()
        for what in DTYPES.values()
    ]
    lines = [f"| card | {' | '.join(columns)} |", "|---" * (1 + len(columns)) + "|"]
    for name, card in CARDS.items():
        cells = [cell(card, tier, dtype) for tier in TIERS for dtype in DTYPES]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def cell(card: DeviceFacts, tier: str, dtype: str) -> str:
    """Return the largest H of a tier, a dash where the card has none."""
    if tier == "block":
        training, inference = (
            block_capacity(dtype, card.shared_memory_per_block, keep) for keep in (True, False)
        )
    else:
        training, inference = (capacity(dtype, card, keep, tier) for keep in (True, False))
    if not inference:
        return "-"
    return f"{training} ({inference})" if inference > training else f"{training}"
