"""Real programs under attack at their control sockets while they work and are restarted: crowds, lines that never end,
garbage, half-lines, descriptors that come along.

Nothing is lost, whoever asks for a restart is told the truth, and when the attack is over nothing is left of it.
"""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hotrestart import Outcome, control
from hotrestart.control import client
from hotrestart.errors import NotThereError, TimedOutError
from hotrestart.testing import Jobs
from tests.control.asking import Asking, Visitor, names_of, threads_of, wait_heard, wait_state
from tests.harness import PATIENCE, Program, clean_environment
from tests.rolling.programs import Rolling, Traffic, service
from tests.rolling.test_idle import settle

ATTACKER = Path(__file__).with_name("attacker.py")
LONG = 60 * 2**20  # bytes
MORE_MEMORY = 30 * 2**10  # KB that a program may grow meanwhile: half of a long line
BROKEN = "raise RuntimeError('the new code is broken')"

# Jobs are files, and what was done is a line.
WORKER = """
import os
import hotrestart

@hotrestart.restartable
def main():
    with hotrestart.worker_loop() as loop, open("done", "a", buffering=1) as done:
        report(ready=True, generation=hotrestart.state.generation, version={version})
        while loop.running:
            for job in sorted(os.listdir("jobs"), key=int)[:1]:
                done.write(job + "\\n")
                os.unlink("jobs/" + job)
            loop.sleep(0.005)

if __name__ == "__main__":
    main()
"""


def worker(version: int) -> str:
    return WORKER.replace("{version}", str(version))


class Attack:
    """All the attackers there are, for as long as its block lasts."""

    def __init__(self, program: Program, full: bool) -> None:
        (path,) = names_of(program.pid)
        sizes = {"crowd": 4000 if full else 300, "endless": LONG, "odd": 1000 if full else 300}
        self.rounds, self._more = dict.fromkeys(sizes, 0), 2 if full else 1
        self._attackers = {
            how: subprocess.Popen(
                [sys.executable, str(ATTACKER), how, path, str(size)],
                env=clean_environment(),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            for how, size in sizes.items()
        }
        self._threads = [threading.Thread(target=self._count, args=[how]) for how in sizes]

    def _count(self, how: str) -> None:
        stdout = self._attackers[how].stdout
        assert stdout is not None
        for _ in stdout:
            self.rounds[how] += 1

    def wait_rounds(self, program: Program) -> None:
        """Until each of them has come to the end once more, or with --full from the beginning to the end."""
        wanted = {how: rounds + self._more for how, rounds in self.rounds.items()}
        for how, attacker in self._attackers.items():
            program.wait_until(
                lambda how=how, attacker=attacker: self.rounds[how] >= wanted[how] or attacker.poll() is not None,
                f"more rounds of {how}",
            )
            assert attacker.poll() is None, f"{how}: {attacker.stderr.read().decode()}"  # type: ignore[union-attr]

    def __enter__(self) -> Attack:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        for attacker in self._attackers.values():
            attacker.kill()
        for thread in self._threads:
            thread.join()
        for attacker in self._attackers.values():
            attacker.communicate()


def restart_and_compare(program: Program, restarts: int, source: Callable[[int], str]) -> None:
    """Whoever asks is told what happens: good code and bad, in turn. `source`: of a version."""
    generation = wait_heard(program)["generation"]
    for version in range(2, 2 + restarts):
        program.deploy(BROKEN)
        outcome = control.restart(program.pid, timeout=PATIENCE)
        assert not outcome.ok
        assert outcome.reason == "RuntimeError: the new code is broken"
        assert wait_heard(program)["generation"] == generation
        program.deploy(source(version))
        outcome = control.restart(program.pid, timeout=PATIENCE)
        assert outcome.ok
        assert outcome.pid == program.pid
        generation = outcome.generation
        assert program.wait_report(ready=True, generation=generation)["version"] == version


def flood_while_waiting(program: Program) -> None:
    """A request, and then a line that never ends, until the answer is there."""
    with Visitor(program.pid) as visitor:
        visitor.ask("restart")
        try:
            for _ in range(LONG // 2**20):
                visitor.send(b"x" * 2**20)
        except (BrokenPipeError, ConnectionResetError):
            pass
        *_, last = visitor.lines()
    assert last["outcome"]["ok"]


def assert_no_line_is_too_long(program: Program, memory: int) -> None:
    """A line that never ends, from the only visitor: nobody throws him out, and he gets an answer all the same.
    `memory`: what the program has taken up so far."""
    with Visitor(program.pid) as visitor:
        try:
            for _ in range(LONG // 2**20):
                visitor.send(b"x" * 2**20)
        except (BrokenPipeError, ConnectionResetError):
            pass
        assert highest_memory(program.pid) < memory + MORE_MEMORY
        assert visitor.line() == {"error": "a request has 1024 bytes at most"}


def highest_memory(pid: int) -> int:
    """KB."""
    return int(re.search(r"VmHWM:\s*(\d+)", Path(f"/proc/{pid}/status").read_text())[1])  # type: ignore[index]


@pytest.fixture
def rolling(tmp_path: Path) -> Iterator[Rolling]:
    with Rolling(tmp_path / "program") as each:
        yield each


def test_in_place_no_job_is_lost_or_repeated(program: Program, full: bool) -> None:
    folder, ledger = program.folder / "jobs", program.folder / "done"
    folder.mkdir()

    def put(job: int) -> None:
        (program.folder / "new").write_text("")
        (program.folder / "new").replace(folder / str(job))

    program.deploy(worker(1))
    program.start()
    program.wait_report(ready=True)
    assert control.restart(program.pid, timeout=PATIENCE).ok
    program.wait_until(lambda: threads_of(program.pid) == 1, "no thread")
    before, memory = len(program.fds()), highest_memory(program.pid)
    with Jobs(put, lambda: map(int, ledger.read_text().split())) as jobs:
        with Attack(program, full) as attack:
            restart_and_compare(program, 10 if full else 2, worker)
            attack.wait_rounds(program)
            done = len(ledger.read_text())
            program.wait_until(lambda: len(ledger.read_text()) > done, "a job is done meanwhile")
        flood_while_waiting(program)
        assert_no_line_is_too_long(program, memory)
    jobs.check()
    program.wait_until(lambda: threads_of(program.pid) == 1, "no thread")
    program.wait_until(lambda: len(program.fds()) == before, "as many descriptors as before")
    assert wait_state(program, state="serving")
    assert program.stop() == 0
    jobs.check()


def test_rolling_no_request_fails(rolling: Rolling, full: bool) -> None:
    rolling.launch(service())
    assert control.restart(rolling.pid, timeout=PATIENCE).ok
    settle(rolling, 4)
    before, memory = len(rolling.fds()), highest_memory(rolling.pid)
    with Traffic(rolling) as traffic:
        with Attack(rolling, full) as attack:
            restart_and_compare(rolling, 10 if full else 2, service)
            attack.wait_rounds(rolling)
            answers = len(traffic.answers)
            rolling.wait_until(lambda: len(traffic.answers) > answers, "an answer meanwhile")
        flood_while_waiting(rolling)
        assert_no_line_is_too_long(rolling, memory)
    settle(rolling, 4)
    assert len(rolling.fds()) == before, rolling.fds()
    assert wait_state(rolling, state="serving")


# -- thrown out by a crowd -------------------------------------------------------------------------------------------

ANSWERS: dict[str, tuple[Callable[[str], object], dict[str, object]]] = {
    "restart": (control.restart, {"outcome": Outcome(True, generation=2, stage="ready", pid=1).as_document()}),
    "stop": (control.stop, {"stopped": True}),
    "status": (control.status, {"status": {}}),
    "scale": (lambda path: control.scale(path, by=1), {"workers": 3}),
}


@pytest.mark.parametrize("what", ANSWERS)
def test_whoever_is_thrown_out_before_he_was_heard_asks_again(tmp_path: Path, what: str) -> None:
    """The program is there, so nothing else would be true; and it has not been asked for anything yet."""
    path = str(tmp_path / "c.sock")
    ask, answer = ANSWERS[what]
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        listener.settimeout(PATIENCE)
        asking = Asking(ask, path)
        for _ in range(3):
            listener.accept()[0].close()
        with listener.accept()[0] as connection, connection.makefile() as request:
            assert json.loads(request.readline())["request"] == what
            connection.sendall(json.dumps(answer).encode() + b"\n")
        asking.result()


@pytest.fixture
def somebody(tmp_path: Path) -> Iterator[socket.socket]:
    """A control socket that the test serves."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "c.sock"))
        listener.listen()
        listener.settimeout(PATIENCE)
        yield listener


def assert_nobody_asks(listener: socket.socket) -> None:
    listener.setblocking(False)
    with pytest.raises(BlockingIOError):
        listener.accept()


@pytest.mark.parametrize("what", ANSWERS)
def test_what_was_read_is_not_asked_for_again(somebody: socket.socket, what: str) -> None:
    """It may have been carried out."""
    asking = Asking(
        getattr(control, what),
        somebody.getsockname(),
        timeout=2 if what == "stop" else PATIENCE,
        **({"by": 1} if what == "scale" else {}),
    )
    with somebody.accept()[0] as connection:
        assert json.loads(connection.recv(1000))["request"] == what
    with pytest.raises(TimedOutError if what == "stop" else NotThereError):  # whoever stops waits for the end
        asking.result()
    assert_nobody_asks(somebody)


def test_who_is_thrown_out_again_and_again_gives_up(somebody: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "_TRIES", 5)
    asking = Asking(control.restart, somebody.getsockname(), timeout=None)
    for _ in range(5):
        somebody.accept()[0].close()
    with pytest.raises(NotThereError, match="hangs up on everybody"):
        asking.result()
    assert_nobody_asks(somebody)


@pytest.mark.parametrize("what", ["restart", "stop"])
def test_one_whose_pid_cannot_be_told_is_not_asked_again(
    somebody: socket.socket, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who is there by now may be another, which was started in its place."""
    monkeypatch.setattr("hotrestart.control.target._process_at", lambda _connection: 0)
    asking = Asking(getattr(control, what), somebody.getsockname(), timeout=PATIENCE)
    somebody.accept()[0].close()
    with somebody.accept()[0] as another:
        assert another.recv(1000) == b""
    with pytest.raises(NotThereError, match="has hung up"):
        asking.result()
