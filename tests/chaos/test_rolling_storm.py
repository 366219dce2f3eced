"""A rolling program under a storm of signals and of deaths, with both cores busy and clients who never stop asking."""

from __future__ import annotations

import os
import random
import signal
import socket
import threading
import time
from pathlib import Path

from tests.harness import PATIENCE, Program

SERVER = """
import os, hotrestart
VERSION = {version}

@hotrestart.restartable(workers=2, grace=20)
def main():
    listener = hotrestart.listen("unix:" + os.path.join({folder!r}, "socket"))
    with hotrestart.worker_loop() as loop:
        while loop.running:
            if loop.wait(listener):
                try:
                    connection, _ = listener.accept()
                except BlockingIOError:
                    continue
                with connection:
                    connection.settimeout(20)
                    connection.recv(100)
                    connection.sendall(b"%d" % VERSION)

main()
"""


class Clients(threading.Thread):
    """Asks again and again, each time by a new connection; keeps the answers, and what went wrong."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path, self.answers, self.failures, self.over = path, list[int](), list[str](), False

    def run(self) -> None:
        while not self.over:
            try:
                self.answers.append(self.ask())
            except (OSError, ValueError) as error:
                self.failures.append(f"after {len(self.answers)} answers: {error!r}")
            time.sleep(0.001)

    def ask(self) -> int:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(30)
            connection.connect(str(self.path))
            connection.sendall(b"?")
            return int(connection.recv(100))


def members(program: Program) -> dict[int, int]:
    """The processes under the supervisor, each with its parent: all that stand in the program's folder."""
    found: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdecimal() and int(entry.name) != program.pid and (entry / "cwd").samefile(program.folder):
                found[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    return found


def is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return False


def start(program: Program) -> Clients:
    program.deploy(SERVER.format(version=1, folder=str(program.folder)))
    program.start()
    program.wait_log("generation 1 serves")
    return Clients(program.folder / "socket")


def stop(program: Program) -> None:
    assert program.stop() == 0, program.log()[-3000:]
    program.process = None
    deadline = time.monotonic() + PATIENCE
    while left := members_of(program.folder):
        assert time.monotonic() < deadline, f"still there: {left}"
        time.sleep(0.01)


def members_of(folder: Path) -> list[str]:
    left: list[str] = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdecimal() and (entry / "cwd").samefile(folder):
                left.append(f"{entry.name} {(entry / 'cmdline').read_bytes()!r}")
        except OSError:
            continue
    return left


def test_h24_a_storm_of_hups_fails_no_request_and_the_last_leads_to_the_newest_code(
    program: Program, full: bool, busy_cores: None
) -> None:
    clients = start(program)
    clients.start()
    dice = random.Random(os.getpid())
    until, version = time.monotonic() + (60 if full else 5), 1
    try:
        while (now := time.monotonic()) < until or (now < until + PATIENCE and len(set(clients.answers)) < 3):
            assert program.process is not None
            assert program.process.poll() is None, program.log()[-3000:]
            if dice.random() < 0.05:
                version += 1
                program.deploy(SERVER.format(version=version, folder=str(program.folder)))
            program.hup()
            time.sleep(dice.uniform(0.002, 0.05))
        version += 1
        program.deploy(SERVER.format(version=version, folder=str(program.folder)))
        program.hup()
        program.wait_until(lambda: clients.answers[-1] == version, "the newest code answers")
    finally:
        clients.over = True
        clients.join()
    assert clients.failures == [], program.log()[-3000:]
    assert len(set(clients.answers)) > 3
    stop(program)
    assert "Traceback" not in program.log()


def test_h47_a_storm_of_deaths_and_hups_leaves_a_program_that_serves(
    program: Program, full: bool, busy_cores: None
) -> None:
    clients = start(program)
    dice = random.Random(os.getpid())
    until = time.monotonic() + (60 if full else 5)
    while time.monotonic() < until:
        assert program.process is not None
        assert program.process.poll() is None, program.log()[-3000:]
        victims = list(members(program))
        if victims and dice.random() < 0.5:
            try:
                os.kill(dice.choice(victims), signal.SIGKILL)
            except ProcessLookupError:
                pass
        else:
            program.hup()
        time.sleep(dice.uniform(0.02, 0.4))
    program.deploy(SERVER.format(version=99, folder=str(program.folder)))
    program.hup()
    program.wait_until(lambda: clients.ask() == 99, "the newest code answers")
    program.wait_until(lambda: is_whole(members(program), program.pid), "one fork server and its two workers")
    program.wait_until(lambda: not [pid for pid in program.children() if is_zombie(pid)], "no zombie")
    stop(program)
    assert "Traceback" not in program.log()


def is_whole(present: dict[int, int], supervisor: int) -> bool:
    """One fork server, and two workers that are its children or those of one that has died."""
    servers = [pid for pid, parent in present.items() if parent == supervisor]
    return len(servers) == 1 and len(present) == 3
