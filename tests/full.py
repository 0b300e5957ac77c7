"""What runs in .ci/full alone, where CUPY_LSTM_FULL is set; everywhere else it is skipped."""

import os

import pytest

FULL = bool(os.environ.get("CUPY_LSTM_FULL"))
only_in_full = pytest.mark.skipif(not FULL, reason="runs in .ci/full")
