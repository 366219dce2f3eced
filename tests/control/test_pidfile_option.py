"""`pidfile=`: one file from the first moment to the last, through both kinds of restart."""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from hotrestart import control
from tests.control.asking import wait_heard
from tests.harness import PATIENCE, Program, worker
from tests.rolling.programs import Rolling, service


class Kind:
    """A program of one kind, with a pid file."""

    def __init__(self, kind: str, folder: Path, pidfile: Path) -> None:
        self.is_rolling, self.pidfile = kind == "rolling", pidfile
        self.program = Rolling(folder) if self.is_rolling else Program(folder)

    def source(self, version: object = 1, *, pidfile: Path | None = None, more: str = "", busy: bool = False) -> str:
        options = f"pidfile={str(pidfile or self.pidfile)!r}{more}"
        if self.is_rolling:
            first = "__import__('time').sleep(1000)" if busy else "pass"
            return service(version, f"workers=1, {options}", first=f"told(ready=True); {first}" if busy else first)
        return worker(version, f"({options})").replace(
            "loop.sleep(5)", "__import__('time').sleep(1000)" if busy else "loop.sleep(5)"
        )

    def start(self, source: str | None = None) -> Program:
        self.program.deploy(source or self.source())
        self.program.start()
        self.program.wait_until(lambda: any(each.get("ready") for each in self.program.reports()), "ready")
        return self.program


@pytest.fixture(params=["in place", "rolling"])
def kind(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Kind]:
    each = Kind(request.param, tmp_path / "program", tmp_path / "pid")
    with each.program:
        yield each


def is_locked(path: Path) -> bool:
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


def test_it_is_there_while_the_program_runs_and_gone_afterwards(kind: Kind) -> None:
    program = kind.start()
    assert kind.pidfile.read_text() == f"{program.pid}\n"
    assert is_locked(kind.pidfile)
    control.stop(str(kind.pidfile), timeout=PATIENCE)
    assert program.wait_exit() == 0
    assert not kind.pidfile.exists()


def test_it_stays_over_twenty_restarts(kind: Kind) -> None:
    """Whoever reads it at any moment reads the pid."""
    program = kind.start()
    wait_heard(program)
    inode, ends = kind.pidfile.stat().st_ino, threading.Event()
    read: set[str] = set()

    def keep_reading() -> None:
        while not ends.wait(0.001):
            try:
                read.add(kind.pidfile.read_text())
            except OSError as error:
                read.add(repr(error))

    reader = threading.Thread(target=keep_reading)
    reader.start()
    try:
        for generation in range(2, 22):
            assert control.restart(str(kind.pidfile), timeout=PATIENCE).generation == generation
            assert is_locked(kind.pidfile)
    finally:
        ends.set()
        reader.join()
    assert read == {f"{program.pid}\n"}
    assert kind.pidfile.stat().st_ino == inode
    assert program.stop() == 0
    assert not kind.pidfile.exists()


def test_a_second_program_is_refused(kind: Kind, tmp_path: Path) -> None:
    program = kind.start()
    second = Kind("rolling" if kind.is_rolling else "in place", tmp_path / "second", kind.pidfile)
    with second.program:
        second.program.deploy(second.source())
        second.program.start()
        assert second.program.wait_exit() == 1
        log = second.program.log()
        assert "PidFileError" in log
        assert str(kind.pidfile) in log
        assert str(program.pid) in log
    assert kind.pidfile.read_text() == f"{program.pid}\n"
    wait_heard(program)


def test_a_stale_one_is_replaced(kind: Kind) -> None:
    kind.pidfile.write_text("4194305\n")
    program = kind.start()
    assert kind.pidfile.read_text() == f"{program.pid}\n"
    program.process.kill()  # type: ignore[union-attr]
    program.wait_exit()
    assert kind.pidfile.read_text() == f"{program.pid}\n"
    if isinstance(program, Rolling):
        program.wait_gone()
    program.forget_reports()
    kind.start()
    assert kind.pidfile.read_text() == f"{program.pid}\n"


def test_it_is_gone_when_grace_has_killed_the_program(kind: Kind) -> None:
    program = kind.start(kind.source(busy=True, more=", grace=0.2"))
    assert kind.pidfile.exists()
    program.term()
    program.wait_exit()
    assert not kind.pidfile.exists()


def test_it_moves_with_a_restart(kind: Kind, tmp_path: Path) -> None:
    program = kind.start()
    wait_heard(program)
    other = tmp_path / "other"
    program.deploy(kind.source(2, pidfile=other))
    assert control.restart(program.pid, timeout=PATIENCE).ok
    program.wait_until(lambda: not kind.pidfile.exists(), "the old one is gone")
    assert other.read_text() == f"{program.pid}\n"
    assert is_locked(other)


def test_one_that_cannot_be_had_at_a_restart_is_no_reason_to_end(kind: Kind, tmp_path: Path) -> None:
    program = kind.start()
    wait_heard(program)
    program.deploy(kind.source(2, pidfile=tmp_path / "not" / "there"))
    assert control.restart(program.pid, timeout=PATIENCE).ok
    program.wait_log("No such file or directory")
    assert wait_heard(program)["generation"] == 2


def test_a_path_that_cannot_be_is_an_error_at_the_start(kind: Kind, tmp_path: Path) -> None:
    kind.program.deploy(kind.source(pidfile=tmp_path / "not" / "there"))
    kind.program.start()
    assert kind.program.wait_exit() == 1
    assert "PidFileError" in kind.program.log()
    assert not any(each.get("ready") for each in kind.program.reports())


def test_it_is_gone_after_an_exec_that_fails(tmp_path: Path) -> None:
    kind = Kind("in place", tmp_path / "program", tmp_path / "pid")
    with kind.program as program:
        broken = "    import os\n    def fail(*_): raise OSError(7, 'too long')\n    os.execve = fail\n    report(ended"
        program.deploy(kind.source().replace("    report(ended", broken))
        program.start()
        program.wait_report(ready=1)
        program.hup()
        assert program.wait_exit() == 71
        assert not kind.pidfile.exists()
        assert not os.path.lexists(kind.pidfile)
