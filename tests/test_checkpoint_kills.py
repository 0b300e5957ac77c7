"""Trainings that are killed: whenever it was, what goes on ends where it would have ended."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from full import FULL

TESTS = Path(__file__).resolve().parent
TRIES = 60 if FULL else 13
KINDS = ["step", "file operation", "write", "moment"]


@pytest.fixture(scope="module")
def attempts(tmp_path_factory):
    done = subprocess.run(
        [sys.executable, TESTS / "checkpoint_kills.py", tmp_path_factory.mktemp("k"), str(TRIES)],
        capture_output=True,
        text=True,
        # A process that forks should have one thread.
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_killed_ends_bit_for_bit_as_what_was_not(attempts, kind):
    those = [attempt for attempt in attempts if attempt["kind"] == kind]
    assert len(those) == TRIES
    for attempt in those:
        assert attempt["equal"], attempt


def test_they_were_killed_and_in_all_situations(attempts):
    assert sum(attempt["kills"] for attempt in attempts) >= 50
    for kind in KINDS:
        kills = sum(attempt["kills"] for attempt in attempts if attempt["kind"] == kind)
        assert kills >= TRIES / 2, kind
    situations = {(one["had checkpoints"], one["had begun to write"]) for one in attempts}
    assert len(situations) == 4


def test_nothing_half_written_stays(attempts):
    for attempt in attempts:
        lock, *checkpoints = attempt["stays"]
        assert lock == ".lock", attempt
        assert len(checkpoints) == 2, attempt
        assert all(name.startswith("epoch-") for name in checkpoints), attempt


def test_the_last_checkpoints_are_equal_byte_for_byte(attempts):
    # Their names hold the checksum.
    assert len({attempt["stays"][-1] for attempt in attempts}) == 1
