"""A server that runs in a folder and a session of its own: start it, ask who serves, weigh it, end all of it.

Some peers are reloaded by a second master or a second start, so what belongs to a service is found by session, and a
service may have several.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from measure import clean_environment
from processes import command_line, family, free_port, rollup, session, spent

from . import apps

if TYPE_CHECKING:
    from .peers import Peer

PATIENCE = 30.0  # seconds for a first answer, and for an orderly end


class Service:
    """Use it in a `with` block."""

    def __init__(
        self, peer: Peer, folder: Path, package: Path, *, ready_timeout: float = 60.0, loads: float = 0.0
    ) -> None:
        """`package`: the folder with hotrestart. `ready_timeout`: seconds that a new worker has until it serves, for
        those that have such a limit. `loads`: how long it will take, for those that wait a fixed time instead."""
        self.peer, self.folder, self.ready_timeout, self.loads = peer, folder, ready_timeout, loads
        self.port, self.second_port, self.third_port = free_port(), free_port(), free_port()
        self.held: socket.socket | None = None
        self._package = package
        self._processes: list[subprocess.Popen[bytes]] = []
        self._is_over, self._lock = False, threading.Lock()
        self._log = folder / "log.txt"

    def start(self) -> None:
        """Start what the peer names, as the new main process. Does not wait. Nothing is started when the end has come,
        which may be while a reload is still waiting."""
        if self.peer.is_held and self.held is None:
            self.held = socket.create_server(("127.0.0.1", self.port), backlog=1024)
        with self._lock:
            if not self._is_over:
                self._processes.append(self.spawn(self.peer.command(self), new_session=True))

    def spawn(self, command: Sequence[str], *, new_session: bool = False) -> subprocess.Popen[bytes]:
        """A command in the service's folder and environment."""
        with self._log.open("ab") as log:
            return subprocess.Popen(
                command,
                cwd=self.folder,
                env={**clean_environment(), "PYTHONPATH": str(self._package), "PWD": str(self.folder)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=new_session,
                pass_fds=[self.held.fileno()] if self.held else [],
            )

    def run(self, *command: str) -> int:
        """Run it to its end; its exit status."""
        return self.spawn(command).wait()

    @property
    def python(self) -> str:
        return sys.executable

    @property
    def pid(self) -> int:
        """Of the main process. A pid file knows of a second master."""
        try:
            return int((self.folder / "service.pid").read_text())
        except (OSError, ValueError):
            return self._processes[-1].pid

    @property
    def exit_status(self) -> int | None:
        """Of the process that was started last; None while it lives."""
        return self._processes[-1].poll()

    @property
    def is_alive(self) -> bool:
        return bool(self.pids())

    def send(self, number: int, pid: int = 0) -> None:
        """A signal to the main process, or to another of the service."""
        try:
            os.kill(pid or self.pid, number)
        except ProcessLookupError:
            pass  # it is dead: that is for the clients to notice

    def wait_end(self) -> bool:
        """For the end of what was started last. False if it had to be forced: all of it is killed then."""
        try:
            self._processes[-1].wait(PATIENCE)
        except subprocess.TimeoutExpired:
            for pid in self.pids():
                self.send(signal.SIGKILL, pid)
            self._processes[-1].wait()
            return False
        return True

    def pids(self) -> list[int]:
        """All processes of the service."""
        found = {pid for each in self._processes for pid in session(each.pid)}
        if self._processes[-1].poll() is None:
            found |= set(family(self._processes[-1].pid))
        return sorted(found)

    def others(self) -> list[int]:
        """All but the main process, and multiprocessing's own helper, which stays."""
        return [pid for pid in self.pids() if pid != self.pid and "resource_tracker" not in command_line(pid)]

    def pss(self) -> float:
        """Of all its processes, in MB."""
        return sum(rollup(pid)["Pss"] for pid in self.pids())

    def ask(self, timeout: float = 5.0) -> tuple[int, int]:
        """Version and pid of who answers now; zeros if nobody does."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/", timeout=timeout) as answer:
                version, pid = answer.read().split()
                return int(version), int(pid)
        except (OSError, urllib.error.URLError, ValueError):
            return 0, 0

    def wait_answer(self, version: int, timeout: float = PATIENCE) -> bool:
        """Until this version answers."""
        return wait_for(lambda: self.ask(1.0)[0] == version, timeout)

    def wait_idle(self) -> None:
        """Until nothing boots any more: the first answer is of the first worker, and code that is deployed now would
        get into the second."""

        def is_idle() -> bool:
            before = {pid: spent(pid) for pid in self.pids()}
            time.sleep(0.3)
            return {*before} == {*self.pids()} and sum(map(spent, before)) - sum(before.values()) < 0.03

        wait_for(is_idle, 10.0)

    def deploy(self, version: int, first: str = "") -> None:
        """Put a version in place; `first`: what it does at import, one of those in `apps`."""
        apps.deploy(self.folder, self.peer.kind, version, first)

    def log(self) -> str:
        return self._log.read_text(errors="replace")[-600:] if self._log.exists() else ""

    def __enter__(self) -> Service:
        """Start version 1, and wait until it answers."""
        self.deploy(1)
        try:
            self.start()
            if not self.wait_answer(1):
                raise NotServingError(f"no answer after {PATIENCE:g} s: {self.log()}")
            self.wait_idle()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        """In good order if it can, and by force if not. Nobody else's process is in a session that we began."""
        with self._lock:
            self._is_over = True
        if self._processes:
            self.send(signal.SIGTERM)
            wait_for(lambda: not self.is_alive, 5.0)
            for pid in self.pids():
                self.send(signal.SIGKILL, pid)
            for each in self._processes:
                each.wait()
        if self.held:
            self.held.close()


class NotServingError(Exception):
    """A peer does not come up; the end of its log."""


def wait_for(condition: Callable[[], bool], timeout: float) -> bool:
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True
