from __future__ import annotations

import compileall
import gc
import importlib.util
import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from hotrestart import fds
from tests import harness
from tests.harness import PATIENCE, Program


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="run soaks in their full length")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--full"):
        harness.PACE = 0.0
    # Whether a busy machine takes its time over an example is not what is tested, and one fixture serves all of them.
    calm = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
    examples = 200 if config.getoption("--full") else 40
    settings.register_profile("here", deadline=None, suppress_health_check=calm, max_examples=examples)
    settings.load_profile("here")
    _be_in_the_foreground()


def pytest_sessionstart(session: pytest.Session) -> None:
    """Compile the package once: a supervisor writes no bytecode, so each would compile what only supervisors load."""
    if not hasattr(session.config, "workerinput"):  # of pytest-xdist, whose workers start later
        compileall.compile_dir(harness.CHECKOUT / "hotrestart", quiet=2)


def _be_in_the_foreground() -> None:
    """Run as if in the foreground: a shell starts its background jobs with INT and QUIT ignored, nohup with HUP."""
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "moment" in metafunc.fixturenames:
        count = 12 if metafunc.config.getoption("--full") else 4
        metafunc.parametrize("moment", [(part, count) for part in range(count)], ids=str, indirect=True)


@pytest.fixture
def moment(request: pytest.FixtureRequest) -> float:
    """A number from 0 to 1, another one in each run: a test that has it is run for each part of the span."""
    part, count = request.param
    return float((part + random.random()) / count)


@pytest.fixture
def full(request: pytest.FixtureRequest) -> bool:
    """Whether soaks run in their full length."""
    return bool(request.config.getoption("--full"))


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Program]:
    """A program in a folder of its own, ended with the test."""
    with Program(tmp_path / "program") as each:
        yield each


@pytest.fixture(autouse=True)
def no_leaked_descriptor(request: pytest.FixtureRequest) -> Iterator[None]:
    """No test of the library in this process leaves a descriptor open."""
    if not os.path.isdir("/proc/self/fd"):
        yield
        return
    before = set(fds.open_fds())
    yield
    leaked, deadline = set(fds.open_fds()) - before, time.monotonic() + PATIENCE
    while leaked and time.monotonic() < deadline:  # gRPC's threads close theirs when they come to it
        gc.collect()  # 50 ms, so not after each test
        time.sleep(0.01)
        leaked = set(fds.open_fds()) - before
    assert not leaked, f"descriptors left open: { {fd: os.readlink(f'/proc/self/fd/{fd}') for fd in leaked} }"


def missing(program: str) -> None:
    """Skip because a system program is not installed; in .ci/run that is a failure."""
    message = f"{program} is not installed"
    if os.environ.get("HOTRESTART_CI"):
        pytest.fail(message)
    pytest.skip(message)


def need(*modules: str) -> None:
    """The same for Python packages that are not installed."""
    for module in modules:
        if importlib.util.find_spec(module) is None:
            missing(module)
