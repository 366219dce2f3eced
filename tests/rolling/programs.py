"""Rolling programs under test: a small server with workers, and a `Program` that sees its whole tree of processes."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hotrestart import control
from tests.harness import PATIENCE, Program

SERVICE = """
import os, signal, socket, sys, threading, time
import hotrestart
from hotrestart import state

VERSION = {version!r}

def told(**what):
    report(**what, version=VERSION, generation=state.generation, pid=os.getpid())

def wait_for(name):
    while not os.path.exists(name):
        time.sleep(0.005)

told(imported=True)
{top}

def answer(job):
    if job == "who":
        return "here"
    told(job=job)
    verb, _, about = job.partition(" ")
    if verb == "hold":
        wait_for(about)
    elif verb == "busy":
        while True:
            pass
    elif verb == "exec":
        exec(about, globals())
    elif verb == "eval":
        return str(eval(about, globals())).replace(" ", "_")
    return verb

@hotrestart.restartable({options})
def main():
    {first}
    listener = hotrestart.listen({address!r}, name="service")
    told(address=listener.getsockname())
    with hotrestart.worker_loop() as loop:
        told(ready=True)
        while loop.running:
            for _ in loop.wait(listener):
                try:
                    connection, _ = listener.accept()
                except BlockingIOError:
                    continue
                with connection:
                    connection.settimeout(None)
                    job = connection.makefile().readline().strip()
                    connection.sendall((answer(job) + " " + str(VERSION) + " " + str(os.getpid())).encode())
        told(drained=state.reason)
    {last}

if __name__ == "__main__":
    main()
    told(returned=True)
"""


def service(
    version: object = 1,
    options: str = "workers=2",
    *,
    top: str = "",
    first: str = "pass",
    last: str = "pass",
    address: str = "127.0.0.1:0",
) -> str:
    """The source of a server with one job for each connection: "who", "hold FILE", "busy", "exec CODE", "eval CODE".

    `top`: code run at import; `first` and `last`: a line each, at the beginning and the end of `main()`.
    """
    return SERVICE.format(version=version, options=options, top=top, first=first, last=last, address=address)


class Rolling(Program):
    """A program with workers. Leaving its `with` block in peace asks it to end, and nothing of it may be left then."""

    def launch(self, source: str, *arguments: str, ready: int = 2, **more: Any) -> Rolling:
        """Deploy, start, and wait until so many workers of the first generation are ready."""
        self.deploy(source)
        self.start(*arguments, **more)
        self.wait_report(ready=True, generation=1, count=ready)
        if ready:
            self.wait_log("generation 1 serves")
        return self

    def reload(self, source: str | None = None, *, expect: int) -> None:
        """Deploy, HUP, and wait until generation `expect` serves."""
        if source is not None:
            self.deploy(source)
        self.hup()
        self.wait_log(f"generation {expect} serves")

    # -- talking to it ---------------------------------------------------------------------------------------------

    def connect(self, job: str) -> socket.socket:
        """Hand a job to whichever worker takes it."""
        address = self.wait_until(lambda: self.reports(ready=True) and self.told("address"), "an address")[-1]
        family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
        connection = socket.socket(family)
        try:
            connection.settimeout(PATIENCE)
            connection.connect(address if isinstance(address, str) else tuple(address))
            connection.sendall(job.encode() + b"\n")
        except BaseException:
            connection.close()
            raise
        return connection

    def told(self, item: str) -> list[Any]:
        """What the program has reported under this name so far."""
        return [each[item] for each in self.reports() if item in each]

    def ask(self, job: str = "who") -> tuple[str, str, int]:
        """What a worker answers, its version, its pid."""
        with self.connect(job) as connection:
            return answer_on(connection)

    def evaluate(self, expression: str) -> str:
        """What an expression is in a worker."""
        return self.ask(f"eval {expression}")[0]

    # -- its processes ---------------------------------------------------------------------------------------------

    def members(self) -> set[int]:
        """Every process of the program that runs, whoever its parent is by now: they all have our $REPORT."""
        mark = f"REPORT={self.report_file}\0".encode()
        found = set()
        for name in os.listdir("/proc"):
            if name.isdigit():
                try:
                    with open(f"/proc/{name}/environ", "rb") as file:
                        if mark in file.read() + b"\0":
                            found.add(int(name))
                except OSError:
                    continue  # ended just now, or not ours
        return found

    def servers(self) -> list[int]:
        """The fork servers, those that load included, the oldest first."""
        return sorted((pid for pid in self.children() if is_running(pid)), key=born)

    def workers(self) -> list[int]:
        """The workers whose fork server lives."""
        return [pid for server in self.servers() for pid in children_of(server) if is_running(pid)]

    def wait_workers(self, count: int, *, version: object | None = None, without: set[int] | None = None) -> set[int]:
        """Wait until exactly `count` workers are there, all of them ready and none in `without`; their pids."""

        def as_wanted() -> set[int]:
            there = set(self.workers())
            like: dict[str, Any] = {"ready": True} if version is None else {"ready": True, "version": version}
            ready = {int(str(each["pid"])) for each in self.reports(**like)}
            wanted = len(there) == count and there <= ready and not there & (without or set())
            return there if wanted else set()

        found: set[int] = self.wait_until(as_wanted, f"{count} workers of version {version}")
        return found

    def most_and_least(self, condition: Callable[[], object], what: str) -> tuple[int, int]:
        """How many workers there were at most, and how many served at least, until the condition came true: as the
        supervisor sees it, for a walk through /proc is no snapshot."""
        seen: list[tuple[int, int]] = []

        def look() -> object:
            workers = control.status(self.pid, timeout=PATIENCE)["workers"]
            seen.append((len(workers), sum(worker["state"] == "ready" for worker in workers)))
            return condition()

        self.wait_until(look, what)
        return max(there for there, _ in seen), min(serving for _, serving in seen)

    def wait_report_anyhow(self, *, count: int = 1, **like: object) -> None:
        """As `wait_report`, when the supervisor is dead and the others are not."""
        deadline = time.monotonic() + PATIENCE
        while len(self.reports(**like)) < count:
            assert time.monotonic() < deadline, f"no report {like}; log:\n{self.log()}"
            time.sleep(0.005)

    def wait_gone(self, *, timeout: float = PATIENCE) -> None:
        """Wait until no process of the program runs."""
        deadline = time.monotonic() + timeout
        while left := self.members():
            assert time.monotonic() < deadline, f"left over: {[described(pid) for pid in left]}; log:\n{self.log()}"
            time.sleep(0.005)

    def assert_no_zombie(self) -> None:
        """Every child of every process is alive, at latest in a moment."""

        def none_is_dead() -> bool:
            return all(is_running(child) for pid in self.members() for child in children_of(pid))

        self.wait_until(none_is_dead, "no zombie")

    def kill(self, pid: int, number: int = signal.SIGKILL) -> None:
        assert pid in self.members()
        os.kill(pid, number)

    def kill_supervisor(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def __enter__(self) -> Rolling:
        return self

    def __exit__(self, kind: object = None, *more: object) -> None:
        try:
            if kind is None and self.process is not None:
                if self.process.poll() is None:
                    self.stop()
                self.wait_gone()
        finally:
            super().__exit__(kind, *more)
            while left := self.members():
                for pid in left:
                    try:
                        os.kill(pid, signal.SIGKILL)
                    except ProcessLookupError:
                        continue
                time.sleep(0.005)


class Traffic:
    """Asks a program "who" again and again, in a thread, as long as the block lasts; not one request may fail.

    `forgiven`: so many may, for workers that die with a request in hand.
    """

    def __init__(self, program: Rolling, *, forgiven: int = 0) -> None:
        self.program = program
        self.forgiven = forgiven
        self.answers: list[tuple[str, str, int]] = []
        self.failures: list[str] = []
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._ends.wait(0.01):
            try:
                self.answers.append(self.program.ask())
            except Exception as error:
                self.failures.append(repr(error))

    def versions(self) -> set[str]:
        return {version for _, version, _ in self.answers}

    def __enter__(self) -> Traffic:
        self._thread.start()
        self.program.wait_until(lambda: self.answers or self.failures, "the first answer")
        return self

    def __exit__(self, kind: object, *more: object) -> None:
        self._ends.set()
        self._thread.join()
        if kind is None:
            assert len(self.failures) <= self.forgiven, f"{self.failures}; log:\n{self.program.log()}"
            assert all(answer == "here" for answer, _, _ in self.answers)


def answer_on(connection: socket.socket) -> tuple[str, str, int]:
    """Read what a worker answers; ConnectionError if it ends without one."""
    said = b""
    while data := connection.recv(4096):
        said += data
    if not said:
        raise ConnectionError("closed without an answer")
    answer, *_, version, pid = said.decode().split()
    return answer, version, int(pid)


def children_of(pid: int) -> list[int]:
    """The children of a process, zombies included; none if it is gone."""
    found = []
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += [int(child) for child in (task / "children").read_text().split()]
    except OSError:
        pass  # it ends just now
    return found


def born(pid: int) -> int:
    """When, in ticks since the machine was started: a later process may have a lower pid. 0 if it has gone."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except OSError:
        return 0


def is_running(pid: int) -> bool:
    """Whether the process is there, and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def described(pid: int) -> str:
    """For a message: the process, and what it was started as."""
    try:
        return f"{pid}: {Path(f'/proc/{pid}/cmdline').read_bytes().replace(bytes(1), b' ').decode(errors='replace')}"
    except OSError:
        return f"{pid}: gone"
