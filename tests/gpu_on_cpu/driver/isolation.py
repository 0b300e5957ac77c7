"""A plugin of pytest: tests marked ``gpu_on_cpu`` run in a process where CuPy has the fake device.

No other test may see that CuPy, or the libcublas under it, so the marked tests of a run go to one
child process together. It sends every report back, and pytest shows it as if the test had run
here: selection, ``-x``, durations and the rest work as ever. A test that crashes the child fails,
and the next one gets a new child.

``pytest --gpu-on-cpu`` installs the fake device in the process itself and runs the marked tests
alone, for a debugger. Where the bed cannot work, they are skipped with the reason.
"""

import os
import pickle
import subprocess
import sys
import tempfile
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
    group.addoption("--gpu-on-cpu-reports", type=int, metavar="FD", help="used for the child")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", f"{MARKER}: needs CuPy on the fake device")
    if not config.getoption("--gpu-on-cpu"):
        config.pluginmanager.register(Parent(), "gpu_on_cpu_parent")
        return
    if reason := reason_it_cannot_work():
        raise pytest.UsageError(reason)
    install(devices=DEVICES)
    if (descriptor := config.getoption("--gpu-on-cpu-reports")) is not None:
        config.pluginmanager.register(Child(config, descriptor), "gpu_on_cpu_child")


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
    """In the child: sends every report through a pipe."""

    def __init__(self, config: pytest.Config, descriptor: int) -> None:
        self.config = config
        self.pipe = os.fdopen(descriptor, "wb", buffering=0)

    def send(self, nodeid: str, report: dict[str, Any] | None) -> None:
        self.pipe.write(pickle.dumps((nodeid, report)))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        data = self.config.hook.pytest_report_to_serializable(config=self.config, report=report)
        self.send(report.nodeid, data)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        self.send(nodeid, None)


class Parent:
    """In the parent: starts the child and passes its reports on."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self.pipe: Any = None
        self.output: Any = None
        self.waiting: list[str] | None = None  # tests that have not run

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(
        self, item: pytest.Item, nextitem: pytest.Item | None
    ) -> bool | None:
        if not item.get_closest_marker(MARKER) or item.get_closest_marker("skip"):
            return None
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        for report in self.reports_of(item):
            item.ihook.pytest_runtest_logreport(report=report)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        # Tests of the same module that ran here have left its fixtures to the last one.
        item.session._setupstate.teardown_exact(nextitem)
        return True

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        done = self.process is not None and not self.waiting
        status, text = self.stop(finished=done)
        if done and status < 0:
            reporter = session.config.pluginmanager.get_plugin("terminalreporter")
            reporter.ensure_newline()
            reporter.write_line(f"the child process crashed at its end, status {status}\n{text}")
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def reports_of(self, item: pytest.Item) -> Iterator[pytest.TestReport]:
        """Give the reports of a test as they come."""
        if self.waiting is None:
            self.waiting = [
                other.nodeid for other in item.session.items if other.get_closest_marker(MARKER)
            ]
        if self.process is None:
            self.start(item.config)
        self.waiting.remove(item.nodeid)
        for nodeid, data in self.messages():
            if nodeid != item.nodeid:
                continue
            if data is None:
                return
            yield item.config.hook.pytest_report_from_serializable(config=item.config, data=data)
        status, text = self.stop(finished=True)
        yield pytest.TestReport(
            nodeid=item.nodeid,
            location=item.location,
            keywords={},
            outcome="failed",
            longrepr=f"the child process ended during this test, status {status}\n{text}",
            when="call",
        )

    def messages(self) -> Iterator[tuple[str, dict[str, Any] | None]]:
        """Give what the child sends until it ends."""
        while True:
            try:
                yield pickle.load(self.pipe)
            except (EOFError, pickle.UnpicklingError):
                return

    def start(self, config: pytest.Config) -> None:
        """Start a child for the tests that have not run."""
        assert self.waiting is not None
        receiver, sender = os.pipe()
        self.output = tempfile.TemporaryFile()  # noqa: SIM115  read and closed by `stop`
        command = [sys.executable, "-m", "pytest", "--gpu-on-cpu", f"--gpu-on-cpu-reports={sender}"]
        command += ["-p", "no:cacheprovider", *self.waiting]
        self.process = subprocess.Popen(
            command,
            cwd=config.rootpath,
            pass_fds=[sender],
            stdout=self.output,
            stderr=subprocess.STDOUT,
        )
        os.close(sender)
        self.pipe = os.fdopen(receiver, "rb")

    def stop(self, finished: bool) -> tuple[int, str]:
        """Wait for the child, or end it, and return its status and the end of what it printed."""
        if self.process is None:
            return 0, ""
        if not finished:  # nobody wants the rest
            self.process.terminate()
        self.pipe.close()
        status = self.process.wait()
        self.output.seek(0)
        text = self.output.read().decode(errors="replace")[-8000:]
        self.output.close()
        self.process = None
        return status, text
