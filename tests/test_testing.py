"""The kit for users' own tests: programs, traffic, jobs, and the pytest plugin."""

from __future__ import annotations

import socket
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotrestart.testing import Jobs, Program, Traffic
from tests import harness
from tests.harness import CHECKOUT, clean_environment

SERVER = """
import hotrestart
from hotrestart import serving
VERSION = {version}
@hotrestart.restartable({options})
def main():
    listener = hotrestart.listen("unix:server.sock")
    with hotrestart.worker_loop() as loop:
        for connection, _ in serving.accept(listener, loop):
            with connection:
                connection.sendall(b"%d" % VERSION)
main()
"""

WORKER = """
import hotrestart, sqlite3
@hotrestart.restartable
def main():
    base = sqlite3.connect("jobs.db", isolation_level=None, timeout=60)
    with hotrestart.worker_loop() as loop:
        while loop.running:
            job = base.execute("SELECT min(number) FROM jobs").fetchone()[0]
            if job is None:
                loop.sleep(0.01)
                continue
            with open("done.txt", "a") as file:
                file.write("%d " % job)
            base.execute("DELETE FROM jobs WHERE number = ?", (job,))
main()
"""


@pytest.fixture
def program(tmp_path: Path) -> Program:
    return Program(tmp_path, env={"PYTHONPATH": str(CHECKOUT)})


@pytest.mark.parametrize("options", ["", "workers=2"], ids=["in place", "rolling"])
def test_a_user_s_test_of_a_server(program: Program, options: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(program.folder)  # the path of a unix socket must not be long

    def ask(_number: int) -> int:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(60)
            client.connect("server.sock")
            return int(client.recv(100))

    with program:
        program.deploy(SERVER.format(version=1, options=options))
        program.start().wait_ready()
        with Traffic(ask, pause=harness.PACE) as traffic:
            for version in range(2, 7):
                program.deploy(SERVER.format(version=version, options=options))
                outcome = program.restart()
                assert outcome.ok, outcome
                assert outcome.pid == program.pid
                traffic.wait_for(version)
            program.deploy("1 / 0")
            assert program.restart().reason == "ZeroDivisionError: division by zero"
            traffic.wait_for(6)
        traffic.check()
        assert traffic.longest_silence > 0
        assert "0 failed" in str(traffic)
        assert program.stop() == 0
    assert not program.is_running


def test_a_user_s_test_of_a_queue_worker(program: Program) -> None:
    base = sqlite3.connect(program.folder / "jobs.db", isolation_level=None, check_same_thread=False, timeout=60)
    base.execute("PRAGMA journal_mode=WAL")
    base.execute("CREATE TABLE jobs (number INTEGER)")

    def done() -> list[int]:
        file = program.folder / "done.txt"
        return [int(each) for each in file.read_text().split()] if file.exists() else []

    with program, closing(base):
        program.deploy(WORKER)
        program.start().wait_ready()
        with Jobs(lambda number: base.execute("INSERT INTO jobs VALUES (?)", (number,)), done) as jobs:
            for _ in range(5):
                assert program.restart().ok
        jobs.check()
        assert program.stop() == 0
        jobs.check()


def test_failed_requests_are_counted_and_shown() -> None:
    def ask(number: int) -> str:
        if number % 2:
            raise ConnectionResetError("gone")
        return "fine"

    with Traffic(ask, clients=2) as traffic:
        traffic.wait_for("fine")
        while not traffic.failures:
            time.sleep(0.001)
    with pytest.raises(AssertionError, match=r"1 failed\n +number 1 after .* ConnectionResetError|\d failed\n"):
        traffic.check()
    numbers = [each.number for each in (*traffic.answers, *traffic.failures)]
    assert sorted(numbers) == list(range(len(numbers)))
    with pytest.raises(AssertionError, match=r"no answer 'never' within 0.01 s; the latest are"):
        traffic.wait_for("never", timeout=0.01)


def test_silence_at_the_end_counts() -> None:
    """A server that has died, and never answers again, is not one that was silent for a moment."""
    with Traffic(lambda number: number if number == 0 else 1 / 0, clients=1) as traffic:
        while len(traffic.failures) < 2:
            time.sleep(0.01)
        time.sleep(0.2)
    assert len(traffic.answers) == 1
    assert traffic.longest_silence > 0.2


def test_no_traffic_is_no_proof() -> None:
    with pytest.raises(AssertionError, match="0 requests answered"):
        Traffic(lambda _: None).check()
    with pytest.raises(AssertionError, match="0 jobs put in"):
        Jobs(lambda _: None, list).check()


@given(st.lists(st.integers(0, 20)), st.lists(st.integers(0, 20), unique=True))
def test_lost_and_repeated_jobs_are_what_they_say(done: list[int], given_jobs: list[int]) -> None:
    jobs = Jobs(lambda _: None, lambda: done)
    jobs.given = given_jobs
    assert jobs.lost == sorted(each for each in given_jobs if each not in done)
    assert jobs.repeated == sorted({each for each in done if done.count(each) > 1})
    if jobs.lost or jobs.repeated:
        with pytest.raises(AssertionError, match=f"{len(jobs.lost)} lost, {len(jobs.repeated)} repeated"):
            jobs.check(timeout=0)


def test_a_feeder_that_fails_says_so() -> None:
    def put(number: int) -> None:
        raise OSError(f"no queue for {number}")

    with pytest.raises(OSError, match="no queue for 0"), Jobs(put, list, every=0) as jobs:
        jobs._thread.join()


def test_what_fails_shows_the_log(program: Program) -> None:
    program.deploy("print('so far so good'); import sys; sys.exit(3)")
    with program, pytest.raises(AssertionError, match=r"(?s)it serves: the program ended \(3\); log:.*so far so good"):
        program.start().wait_until(lambda: False, "it serves")
    with program, pytest.raises(AssertionError, match=r"(?s)did not end within 0.01 s; log:"):
        program.start("-c", "import time; time.sleep(60)").wait_exit(0.01)
    assert not program.is_running


def test_a_file_is_deployed_under_its_own_name_or_another(program: Program, tmp_path: Path) -> None:
    source = tmp_path / "source.py"
    source.write_text("# 1")
    target = Program(tmp_path / "elsewhere")
    assert target.deploy(source) == target.folder / "source.py"
    assert target.deploy(source, "package/main.py").read_text() == "# 1"
    assert target.deploy("# 2") == target.folder / "app.py"
    assert sorted(each.name for each in target.folder.iterdir()) == ["app.py", "package", "source.py"]


def test_nothing_that_flatters_a_restart_reaches_the_program(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PYTHONUNBUFFERED", "HOTRESTART", "NOTIFY_SOCKET", "LISTEN_FDS"):
        monkeypatch.setenv(name, "1")
    assert not {"PYTHONUNBUFFERED", "HOTRESTART", "NOTIFY_SOCKET", "LISTEN_FDS"} & program.environment().keys()
    assert program.environment()["PYTHONPATH"] == str(CHECKOUT)


def test_the_plugin_gives_a_program_and_loads_nothing_before(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(
        """
import sys
def test_nothing_is_loaded():
    assert not [name for name in sys.modules if name.startswith("hotrestart.testing.") and "plugin" not in name]
def test_it(hotrestart_program):
    hotrestart_program.deploy("print('hello')")
    assert hotrestart_program.start().wait_exit() == 0
    assert hotrestart_program.log() == "hello\\n"
def test_that_fails(hotrestart_program):
    hotrestart_program.deploy("print('what it said')")
    assert hotrestart_program.start().wait_exit() == 1
"""
    )
    plugins = ("-p", "no:hotrestart", "-p", "hotrestart.testing.plugin", "-p", "no:cacheprovider")
    command = [sys.executable, "-m", "pytest", "-q", *plugins, "."]
    ran = subprocess.run(command, cwd=tmp_path, env=clean_environment(), capture_output=True, text=True, check=False)
    assert "1 failed, 2 passed" in ran.stdout, ran.stdout + ran.stderr
    assert "what it said" in ran.stdout


def test_a_client_that_hangs_does_not_outlive_its_thread() -> None:
    release = threading.Event()
    with Traffic(lambda _: release.wait(60), clients=3) as traffic:
        release.set()
    assert not any(thread.is_alive() for thread in traffic._threads)
