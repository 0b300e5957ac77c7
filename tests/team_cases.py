"""What every test of the grid and cluster tiers begins with: teams of a size of the test's own."""

import pytest
from cases import Case
from gpu_on_cpu import profile

from cupy_lstm.device import CARDS
from cupy_lstm.persistent import launches, teams, tiers

_ALL = ("y", "h", "c", "cells")
SAMPLE = [
    Case("team-rich", T=3, B=5, H=10, L=2, bidirectional=True, states=True,
         lengths=(3, 2, 0, 3, 1), upstream=_ALL),
    Case("team-time-major", T=2, B=9, H=33, time_major=True, states=True,
         lengths=(2, 1, 0, 2, 2, 1, 0, 2, 2), upstream=_ALL),
    Case("team-full", T=3, B=3, I=5, H=24, states=True, upstream=_ALL),
]  # fmt: skip
"""Odd sizes, several blocks and tiles, ended rows, idle units."""

FORMS = {
    "lanes": (teams.LANES, "A100"),
    "tensor": (teams.TENSOR, "A100"),
    "cluster-lanes": (teams.LANES, "H100"),
    "cluster-tensor": (teams.TENSOR, "H100"),
}
"""How blocks multiply and exchange, and a card that does."""

each_form = pytest.mark.parametrize("form", FORMS)
each_sample = pytest.mark.parametrize("case", SAMPLE, ids=lambda case: case.id)


def serves(form, dtype):
    """Say whether a form multiplies a dtype: floats only on the tensor cores of TF32."""
    return dtype != "float32" or not form.endswith("tensor")


def choose_teams(monkeypatch, form, units=None, blocks=None, most=None, directions=None):
    """Let teams serve every layer: of so many units a block, blocks a team, blocks at once.

    By default of the fewest units, as many blocks as these need but at least two, and so few teams
    that each has two tiles. Returns a list that receives what was chosen.
    """
    (kind, _), chosen = FORMS[form], []
    tier = "cluster" if form.startswith("cluster") else "grid"

    def best_teams(B, H, D, dtype, device, training):
        most_blocks = max(teams.CLUSTERS) if tier == "cluster" else device.multiprocessors
        size = units or min(n for n in teams.UNITS if n >= kind.outputs and n * most_blocks >= H)
        number = blocks or max(2, -(-H // size))
        if tier == "cluster":
            number = min(n for n in teams.CLUSTERS if n >= number)
        room = most or number * D * max(1, -(-B // kind.rows) // 2)
        found = teams.teams_of(
            tier, kind, size, number, B, H, D, tiers.ITEMSIZE[dtype], max(room, number)
        )
        chosen.append(found)
        return found

    monkeypatch.setattr(tiers, "blocks_for", lambda *arguments: "the test chooses teams")
    monkeypatch.setattr(tiers, "best_teams", best_teams)
    monkeypatch.setattr(launches, "_proven", set())
    return chosen


def card_of(form):
    """Return the profile of a card that has what a form needs."""
    return profile(FORMS[form][1])


def facts_of(form):
    """Return the facts of that card."""
    return CARDS[FORMS[form][1]]
