"""A plugin of pytest: tests marked ``gpu_on_cpu`` run in a process where CuPy has the fake device.

No other test may see that CuPy, or the libcublas under it, so the marked tests of a run go to one
child process together. It runs those it is asked for and sends every report back, and pytest shows
it as if the test had run here: selection, ``-x``, durations and the rest work as ever, and each
worker of pytest-xdist has a child of its own. A test that crashes the child fails, and the next one
gets a new child.

``pytest --gpu-on-cpu`` installs the fake device in the process itself and runs the marked tests
alone, for a debugger. Where the bed cannot work, they are skipped with the reason.
"""

import contextlib
import os
import pickle
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from gpu_on_cpu.driver.installation import install, reason_it_cannot_work
from gpu_on_cpu.driver.memory import check_freed_memory

MARKER = "gpu_on_cpu"
DEVICES = 2


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup(MARKER)
    group.addoption(
        "--gpu-on-cpu",
        action="store_true",
        help="run only tests marked gpu_on_cpu, here instead of in a child process",
    )
    group.addoption(
        "--gpu-on-cpu-child", type=int, nargs=2, metavar="FD", help="used for the child"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", f"{MARKER}: needs CuPy on the fake device")
    if not config.getoption("--gpu-on-cpu"):
        config.pluginmanager.register(Parent(), "gpu_on_cpu_parent")
        return
    if reason := reason_it_cannot_work():
        raise pytest.UsageError(reason)
    install(devices=DEVICES)
    if pipes := config.getoption("--gpu-on-cpu-child"):
        config.pluginmanager.register(Child(config, *pipes), "gpu_on_cpu_child")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    marked = [item for item in items if item.get_closest_marker(MARKER)]
    if config.getoption("--gpu-on-cpu"):
        config.hook.pytest_deselected(items=[item for item in items if item not in marked])
        items[:] = marked
    elif marked and (reason := reason_it_cannot_work()):
        for item in marked:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def cupy() -> Any:
    """CuPy on the fake device."""
    return sys.modules["cupy"]


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    check_freed_memory()


class Child:
    """In the child: runs the tests it is asked for, and sends every report back."""

    def __init__(self, config: pytest.Config, requests: int, reports: int) -> None:
        self.config = config
        self.requests = os.fdopen(requests, "rb")
        self.reports = os.fdopen(reports, "wb", buffering=0)

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        items = {item.nodeid: item for item in session.items}
        for nodeid, following in messages(self.requests):
            item, nextitem = items[nodeid], items.get(following)
            item.ihook.pytest_runtest_protocol(item=item, nextitem=nextitem)
        return True

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        data = self.config.hook.pytest_report_to_serializable(config=self.config, report=report)
        self.send(report.nodeid, data)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        self.send(nodeid, None)

    def send(self, nodeid: str, report: dict[str, Any] | None) -> None:
        self.reports.write(pickle.dumps((nodeid, report)))


class Parent:
    """In the parent: starts the child, asks it for one test after another, passes reports on."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self.requests: Any = None
        self.reports: Any = None
        self.output: Any = None

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(
        self, item: pytest.Item, nextitem: pytest.Item | None
    ) -> bool | None:
        if not item.get_closest_marker(MARKER) or item.get_closest_marker("skip"):
            return None
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        for report in self.reports_of(item, nextitem):
            item.ihook.pytest_runtest_logreport(report=report)
        if nextitem is None and (crash := self.crash_at_the_end()):
            report = failure(item, "teardown", crash)
            item.ihook.pytest_runtest_logreport(report=report)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        # Tests of the same module that ran here have left its fixtures to the last one.
        item.session._setupstate.teardown_exact(nextitem)
        return True

    def pytest_runtest_teardown(self, nextitem: pytest.Item | None) -> None:
        if nextitem is None and (crash := self.crash_at_the_end()):
            pytest.fail(crash, pytrace=False)

    def pytest_sessionfinish(self) -> None:
        if self.process is not None:  # nobody wants the rest
            self.process.terminate()
            self.stop()

    def reports_of(
        self, item: pytest.Item, nextitem: pytest.Item | None
    ) -> Iterator[pytest.TestReport]:
        """Give the reports of a test as they come."""
        if self.process is None:
            self.start(item.session)
        following = None if nextitem is None else nextitem.nodeid
        with contextlib.suppress(BrokenPipeError):  # then there is no answer either
            self.requests.write(pickle.dumps((item.nodeid, following)))
        for _, data in messages(self.reports):
            if data is None:
                return
            yield item.config.hook.pytest_report_from_serializable(config=item.config, data=data)
        status, text = self.stop()
        crash = f"the child process ended during this test, status {status}\n{text}"
        yield failure(item, "call", crash)

    def start(self, session: pytest.Session) -> None:
        """Start a child that has collected the marked tests."""
        marked = [item for item in session.items if item.get_closest_marker(MARKER)]
        asked, requests = os.pipe()
        reports, answers = os.pipe()
        self.output = tempfile.TemporaryFile()  # noqa: SIM115  read and closed by `stop`
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--gpu-on-cpu"]
        command += ["-p", "no:zarr"]  # its plugin imports CuPy before `install` can
        command += ["--gpu-on-cpu-child", str(asked), str(answers)]
        if session.config.pluginmanager.hasplugin("xdist"):
            command += ["-n0"]
        command += dict.fromkeys(str(item.path) for item in marked)
        # Children that end at the same time must not combine each other's coverage.
        coverage = f"{os.environ.get('COVERAGE_FILE', '.coverage')}.{uuid.uuid4().hex}"
        self.process = subprocess.Popen(
            command,
            cwd=session.config.rootpath,
            env=os.environ | {"COVERAGE_FILE": coverage},
            pass_fds=[asked, answers],
            stdout=self.output,
            stderr=subprocess.STDOUT,
        )
        os.close(asked)
        os.close(answers)
        self.requests = os.fdopen(requests, "wb", buffering=0)
        self.reports = os.fdopen(reports, "rb")

    def crash_at_the_end(self) -> str | None:
        """End the child, and say how if it crashed."""
        status, text = self.stop()
        return (
            f"the child process crashed at its end, status {status}\n{text}" if status < 0 else None
        )

    def stop(self) -> tuple[int, str]:
        """Let the child end, and return its status and the end of what it printed."""
        if self.process is None:
            return 0, ""
        self.requests.close()
        status = self.process.wait()
        self.reports.close()
        self.output.seek(0)
        text = self.output.read().decode(errors="replace")[-8000:]
        self.output.close()
        self.process = None
        return status, text


def messages(pipe: Any) -> Iterator[Any]:
    """Give what comes through a pipe until the other side closes it."""
    while True:
        try:
            yield pickle.load(pipe)
        except (EOFError, pickle.UnpicklingError):
            return


def failure(item: pytest.Item, when: str, text: str) -> pytest.TestReport:
    """Return the report of a test that fails for what its process did."""
    return pytest.TestReport(
        nodeid=item.nodeid,
        location=item.location,
        keywords={},
        outcome="failed",
        longrepr=text,
        when=when,
    )
