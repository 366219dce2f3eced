"""Asking programs under test over their control sockets: in threads, and by hand, byte for byte."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from typing import Any

from hotrestart import control
from hotrestart.control.target import connect
from hotrestart.errors import HotRestartError, NotThereError
from tests.harness import PATIENCE, Program, open_files


class Asking:
    """A call in a thread of its own; `result` waits for what it returns, or raises what it has raised."""

    def __init__(self, function: Callable[..., Any], *arguments: Any, **more: Any) -> None:
        self._call: Callable[[], Any] = lambda: function(*arguments, **more)
        self.value: Any = None
        self.error: BaseException | None = None
        self.began = time.monotonic()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.value = self._call()
        except BaseException as error:
            self.error = error

    @property
    def is_over(self) -> bool:
        return not self._thread.is_alive()

    def result(self) -> Any:
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive(), "no answer"
        if self.error is not None:
            raise self.error
        return self.value


class Visitor:
    """A connection to a control socket, by hand."""

    def __init__(self, target: int | str) -> None:
        self.socket, self.pid = connect(target, time.monotonic() + PATIENCE)
        self.socket.setblocking(True)
        self.socket.settimeout(PATIENCE)
        self._file = self.socket.makefile("rb")

    def send(self, data: bytes) -> Visitor:
        self.socket.sendall(data)
        return self

    def ask(self, what: str, **more: object) -> Visitor:
        return self.send(json.dumps({"request": what, **more}).encode() + b"\n")

    def line(self) -> dict[str, Any] | None:
        """The next line of the answer; None at the end."""
        try:
            text = self._file.readline()
        except ConnectionResetError:
            return None
        found: dict[str, Any] | None = json.loads(text) if text else None
        return found

    def lines(self) -> list[dict[str, Any]]:
        found = []
        while (each := self.line()) is not None:
            found.append(each)
        return found

    def close(self) -> None:
        self._file.close()
        self.socket.close()

    def __enter__(self) -> Visitor:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def wait_heard(program: Program, target: int | str | None = None) -> dict[str, Any]:
    """Wait until the program can be asked for its status, and return it."""

    def ask() -> dict[str, Any] | None:
        try:
            return control.status(program.pid if target is None else target, timeout=PATIENCE)
        except NotThereError:
            return None

    found: dict[str, Any] = program.wait_until(ask, "a status")
    return found


def wait_state(program: Program, **like: object) -> dict[str, Any]:
    """Wait until the status has these items."""

    def ask() -> dict[str, Any] | None:
        try:
            found = control.status(program.pid, timeout=PATIENCE)
        except HotRestartError:
            return None
        return found if like.items() <= found.items() else None

    found: dict[str, Any] = program.wait_until(ask, f"status {like}")
    return found


def threads_of(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/task"))


def names_of(pid: int) -> list[str]:
    """The names that lead to the control socket of a program, in all folders of this user."""
    from hotrestart.control import whereabouts

    candidates = whereabouts.candidates(pid, os.geteuid(), os.environ)
    return [each for each in candidates if os.path.lexists(each)]


def sockets_in(program: Program, pid: int) -> set[str]:
    return {target for target in open_files(pid).values() if "socket" in target}
