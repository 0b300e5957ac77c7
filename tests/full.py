"""What runs in .ci/full alone, where CUPY_LSTM_FULL is set; everywhere else it is skipped."""

import os
from collections.abc import Iterable, Sequence

import pytest

FULL = bool(os.environ.get("CUPY_LSTM_FULL"))
only_in_full = pytest.mark.skipif(not FULL, reason="runs in .ci/full")


def in_dtypes_by_turns(cases: Iterable, dtypes: Sequence[str]):
    """Parametrize a test with each case in the first dtype and in one of the others.

    So every case and every dtype is tried; in .ci/full each case in all dtypes.
    """
    first, *others = dtypes
    return pytest.mark.parametrize(
        ("case", "dtype"),
        [
            pytest.param(
                case,
                dtype,
                id=f"{case.id}-{dtype}",
                marks=() if dtype in (first, others[n % len(others)]) else only_in_full,
            )
            for n, case in enumerate(cases)
            for dtype in dtypes
        ],
    )
