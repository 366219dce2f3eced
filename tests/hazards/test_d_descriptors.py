"""Descriptors: what was given stays, what leaked goes, and an exec that fails leaves everything as it was."""

from __future__ import annotations

import fcntl
import os
import socket
import sys
from pathlib import Path

import pytest

from tests.harness import Program, open_files, worker
from tests.hazards.sources import an_interpreter

pytestmark = pytest.mark.core


def is_locked(path: Path) -> bool:
    """Whether somebody else holds the flock."""
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


LEAKING = """
import fcntl, os, resource, hotrestart
leak = os.open(os.devnull, os.O_RDONLY)
@hotrestart.restartable(preflight=PREFLIGHT)
def main():
    with hotrestart.worker_loop() as loop:
        for number in (50, 700):
            os.dup2(leak, number, inheritable=True)
        fcntl.fcntl(leak, fcntl.F_DUPFD, 60)
        resource.setrlimit(resource.RLIMIT_NOFILE, (100, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        report(ready=hotrestart.state.generation)
        loop.sleep(None)
main()
"""


@pytest.mark.parametrize("preflight", [False, True])
def test_h32_a_leaked_descriptor_does_not_reach_the_next_generation(program: Program, preflight: bool) -> None:
    program.deploy(LEAKING.replace("PREFLIGHT", str(preflight)))
    program.start()
    program.wait_report(ready=1)
    assert {50, 60, 700} <= set(open_files(program.pid))
    program.deploy(worker(version=2, options=f"(preflight={preflight})"))
    program.hup()
    program.wait_report(ready=2, version=2)
    program.wait_until(lambda: not any("report.jsonl" in each for each in program.fds()), "the report is closed again")
    clean = set(open_files(program.pid))
    assert not {50, 60, 700} & set(open_files(program.pid))
    for generation in range(3, 8):
        program.hup()
        program.wait_report(ready=generation)
    program.wait_until(lambda: set(open_files(program.pid)) == clean, f"the descriptors {clean}")


def test_h32_close_open_fds_keeps_what_it_is_told_and_misses_nothing(program: Program) -> None:
    source = """
import os, resource, hotrestart
from hotrestart.fds import close_open_fds, open_fds
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
for number in (5, 6, 7, 300, 900):
    os.dup2(1, number)
resource.setrlimit(resource.RLIMIT_NOFILE, (100, hard))
if os.fork() == 0:
    close_open_fds(keep=[6, 300, 77])
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    report(open=open_fds())
    os._exit(0)
os.wait()
report(parent=[number for number in (5, 6, 7, 300, 900) if number in open_fds()])
"""
    program.deploy(source)
    program.start()
    assert program.wait_exit() == 0
    assert program.reports() == [{"open": [0, 1, 2, 6, 300]}, {"parent": [5, 6, 7, 300, 900]}]


FAILING = """
import os, signal, sys, threading, hotrestart
from hotrestart import fds, reexec
def handler(*_): pass
os.dup2(2, 50, inheritable=True)
signal.signal(signal.SIGUSR1, signal.SIG_IGN)
signal.signal(signal.SIGTERM, handler)
signal.setitimer(signal.ITIMER_REAL, 1000, 1000)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
listener = hotrestart.listen("127.0.0.1:0")
hotrestart.bequeath("log", sys.stderr)
os.chdir("/")
def now():
    handlers = [str(signal.getsignal(each)) for each in range(1, 32)]
    timer = signal.getitimer(signal.ITIMER_REAL)
    masked = sorted(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, ())))
    inheritable = {fd: os.get_inheritable(fd) for fd in fds.open_fds()}
    return handlers, timer[0] > 0, timer[1], masked, inheritable, os.getcwd(), dict(os.environ)
with hotrestart.worker_loop():
    before = now()
    os.unlink(sys.executable)
    open(sys.executable, "w").close()
    for _ in range(3):
        try:
            reexec.exec_now()
        except OSError as error:
            report(error=error.errno)
    after = now()
    report(same=before == after, differ=[[str(a), str(b)] for a, b in zip(before, after) if a != b])
signal.setitimer(signal.ITIMER_REAL, 0)
"""


def test_h33_an_exec_that_fails_leaves_everything_as_it_was(program: Program, tmp_path: Path) -> None:
    python = an_interpreter(tmp_path / "bin")
    program.deploy(FAILING)
    program.start_command([str(python), "app.py"])
    program.wait_exit()
    program.wait_report(same=True, differ=[])
    assert len(program.reports(error=13)) == 3


def test_h34_a_lock_given_by_the_parent_is_held_by_every_generation(program: Program, tmp_path: Path) -> None:
    program.deploy(worker())
    lock = tmp_path / "lock"
    given = os.open(lock, os.O_RDWR | os.O_CREAT)
    fcntl.flock(given, fcntl.LOCK_EX)
    program.start(pass_fds=(given,))
    os.close(given)
    for generation in (1, 2, 3):
        program.wait_report(ready=generation)
        assert is_locked(lock)
        assert open_files(program.pid)[given] == str(lock)
        program.hup()
    program.wait_report(ready=4)
    program.stop()
    assert not is_locked(lock)


def test_h34_another_file_under_a_given_number_is_not_given_on(program: Program, tmp_path: Path) -> None:
    reuse = "import os; os.dup2(os.open(os.devnull, os.O_RDONLY), int(os.environ['GIVEN']), inheritable=True)\n"
    program.deploy(worker().replace("        while", f"        {reuse}        while"))
    given = os.open(tmp_path, os.O_RDONLY)
    program.start(pass_fds=(given,), env={"GIVEN": str(given)})
    os.close(given)
    program.wait_report(ready=1)
    program.deploy(worker(version=2))
    program.wait_until(lambda: open_files(program.pid).get(given) == os.devnull, "another file has the number")
    program.hup()
    program.wait_report(ready=2)
    assert open_files(program.pid).get(given) not in (os.devnull, str(tmp_path))


SERVING = """
import os, hotrestart
@hotrestart.restartable
def main():
    listener = hotrestart.listen("127.0.0.1:0")
    with hotrestart.worker_loop() as loop:
        report(ready=hotrestart.state.generation, address=listener.getsockname(), fd=listener.fileno())
        while loop.running:
            if loop.wait(listener):
                connection, _ = listener.accept()
                connection.sendall(b"%d" % hotrestart.state.generation)
                connection.close()
main()
"""


def ask(address: object) -> bytes:
    with socket.create_connection(tuple(address), 60) as connection:  # type: ignore[arg-type, call-overload]
        return connection.recv(100)


@pytest.mark.parametrize("closed", ["<&-", "<&- >&-", "<&- >&- 2>&-", ">&- 2>&-"])
def test_h34_a_listener_that_gets_a_standard_streams_number_survives(program: Program, closed: str) -> None:
    program.deploy(SERVING)
    program.start_command(["sh", "-c", f'exec "$@" {closed}', "sh", sys.executable, "app.py"])
    for generation in (1, 2, 3):
        address = program.wait_report(ready=generation)["address"]
        assert ask(address) == b"%d" % generation
        program.hup()
    program.wait_report(ready=4, address=address)
    assert program.stop() == 0


@pytest.mark.parametrize("free", [(0, 1), (1, 2), (0, 1, 2)], ids=repr)
def test_h34_a_preflight_works_though_its_pipes_get_the_numbers_of_standard_streams(
    program: Program, free: tuple[int, ...]
) -> None:
    source = f"""
import logging, os, hotrestart
logging.basicConfig(filename="log.txt")
@hotrestart.restartable
def main():
    with hotrestart.worker_loop() as loop:
        for fd in {free}:  # as many a daemonize() does
            try: os.close(fd)
            except OSError: pass
        report(ready=hotrestart.state.generation)
        loop.sleep(None)
main()
"""
    program.deploy(source)
    program.start()
    for generation in (1, 2):
        program.wait_report(ready=generation)
        program.hup()
        what = f"an outcome of the restart of generation {generation}"
        program.wait_until(lambda n=generation + 1: program.reports(ready=n) or "refused" in program.log(), what)
        assert "refused" not in program.log()


def test_h34_nothing_is_written_into_a_file_that_has_the_number_of_standard_error(program: Program) -> None:
    source = """
import os, threading, hotrestart
data = os.open("data", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
assert data == 2
@hotrestart.restartable(preflight=False, grace=0.2)
def main():
    with hotrestart.worker_loop() as loop:
        threading.Thread(target=threading.Event().wait).start()
        os.write(data, b"the last record")
        report(ready=hotrestart.state.generation)
        loop.sleep(None)
main()
"""
    program.deploy(source)
    program.start_command(["sh", "-c", 'exec "$@" 2>&-', "sh", sys.executable, "app.py"])
    program.wait_report(ready=1)
    program.deploy(worker(version=2))
    program.hup()
    program.wait_report(ready=2, version=2)
    assert (program.folder / "data").read_bytes() == b"the last record"


BROKEN = {
    "ENOENT": lambda python: python.unlink(),
    "EACCES": lambda python: (python.unlink(), python.write_text("")),
    "ENOEXEC": lambda python: (python.unlink(), python.write_text("no program"), python.chmod(0o755)),
    "bad shebang": lambda python: (python.unlink(), python.write_text("#!/no/such\n"), python.chmod(0o755)),
    "ELOOP": lambda python: (python.unlink(), python.symlink_to(python)),
    "ENOTDIR": lambda python: (python.unlink(), python.parent.rmdir(), python.parent.touch()),
    "dies": lambda python: (python.unlink(), python.write_text("#!/bin/sh\nexit 127\n"), python.chmod(0o755)),
}


@pytest.mark.parametrize("why", BROKEN)
@pytest.mark.parametrize("moved", [False, True], ids=["", "after chdir"])
def test_h35_an_interpreter_that_cannot_be_started_is_found_before_the_old_lets_go(
    program: Program, tmp_path: Path, why: str, moved: bool
) -> None:
    folder = tmp_path / "bin"
    python = an_interpreter(folder)
    source = SERVING
    program.deploy(source.replace("    with", "    os.chdir('/')\n    with") if moved else source)
    program.start_command([str(python), "app.py"])
    address = program.wait_report(ready=1)["address"]
    BROKEN[why](python)
    program.hup()
    log = program.wait_log("restart refused, the old code goes on: ")
    assert "Traceback" not in log
    assert str(python) in log or why == "dies"
    assert ask(address) == b"1"
    if folder.is_file():
        folder.unlink()
    else:
        python.unlink(missing_ok=True)
        folder.rmdir()
    an_interpreter(folder)
    program.hup()
    program.wait_report(ready=2, address=address)
    assert program.log().count("restart refused") == 1
