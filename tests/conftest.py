"""Settings every test shares."""

import importlib.util
import sys

import pytest
from hypothesis import HealthCheck, settings

pytest_plugins = ["gpu_on_cpu.driver.isolation"]

settings.register_profile(
    "repeatable",
    derandomize=True,
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("repeatable")


@pytest.fixture
def stepwise():
    """What is asserted of the engine stepwise, wherever another one would be chosen."""
    from cupy_lstm import engine

    with engine("stepwise"):
        yield


@pytest.fixture(autouse=True)
def _plans_are_made_anew():
    """What a test patches in `cupy_lstm.plan` shows in its plans, and in those of no other test."""
    from cupy_lstm.plan import remembered_plan

    remembered_plan.cache_clear()
    yield
    remembered_plan.cache_clear()


@pytest.fixture(autouse=True)
def _passes_are_made_anew():
    """The same for the passes of the engine simd, where it is there."""
    yield
    if "cupy_lstm.simd.ready" in sys.modules:
        sys.modules["cupy_lstm.simd.ready"].SHARED.waiting.clear()


def pytest_report_header():
    found = [name for name in ("torch", "paddle") if importlib.util.find_spec(name)]
    return f"live peers: {', '.join(found) or 'none'}"
