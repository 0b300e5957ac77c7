"""Settings every test shares."""

import importlib.util

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


def pytest_report_header():
    found = [name for name in ("torch", "paddle") if importlib.util.find_spec(name)]
    return f"live peers: {', '.join(found) or 'none'}"
