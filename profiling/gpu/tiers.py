"""Letting one tier of the engine persistent serve, whatever the plan would choose."""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

from cupy_lstm.device import DeviceFacts
from cupy_lstm.persistent import tiers
from cupy_lstm.persistent.teams import Teams, fitting_teams

TIERS = "block", "cluster", "grid"


@contextmanager
def only(tier: str) -> Iterator[None]:
    """Let the plan find no other tier; a layer that it cannot serve is a ValueError."""

    def best_teams(
        B: int, H: int, D: int, dtype: str, device: DeviceFacts, training: bool
    ) -> Teams | None:
        found = fitting_teams(B, H, D, dtype, device, training)
        return min(
            (teams for teams in found if teams.tier == tier),
            key=lambda teams: tiers.pass_clocks(teams, dtype, device, D, training),
            default=None,
        )

    with mock.patch.object(tiers, "best_teams", best_teams):
        if tier == "block":
            yield
        else:
            with mock.patch.object(tiers, "blocks_for", lambda *_: "another tier is asked for"):
                yield
