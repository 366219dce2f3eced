"""HTTP servers under load from new and from kept connections, while they are reloaded: the clients, and their ledger.

A failure is a connection refused or reset, an end of file or a timeout before the answer was complete; a retry is the
same on a kept connection that had been used before, where an HTTP library would send the request once more.
"""

from __future__ import annotations

import random
import re
import select
import socket
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

from hotrestart.testing import Traffic
from tests import harness
from tests.harness import PATIENCE, Program
from tests.recipes import figures

TESTS = Path(__file__).resolve().parent.parent
FOLDERS = [TESTS / "apps", TESTS / "recipes" / "programs"]
CLIENTS = 6  # of `restart_under_traffic`
KINDS = {"workers": "(workers=2)", "in place": ""}


class Client:
    """One connection, and an HTTP client on it that does nothing a user of it would not see."""

    def __init__(self, port: int) -> None:
        self.answers = 0
        self.is_kept = True
        self.is_late = False  # held up, it has not asked within the second that a draining server gives it
        self._since = time.monotonic()  # when the last request was sent: that was before the server's second began
        self._buffer = b""
        self._socket = socket.create_connection(("127.0.0.1", port), PATIENCE)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def ask(self, path: str = "/", *, keep: bool, request: bytes = b"", method: str = "GET") -> bytes:
        """The body of the answer."""
        self.send(path, keep=keep, request=request, method=method)
        return self.receive(keep=keep)

    def send(self, path: str = "/", *, keep: bool, request: bytes = b"", method: str = "GET") -> None:
        close = "" if keep else "Connection: close\r\n"
        began = time.monotonic()
        try:
            self._socket.sendall(f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n{close}\r\n".encode() + request)
        finally:
            self.is_late = time.monotonic() - self._since >= 1.0
            self._since = began

    def receive(self, *, keep: bool) -> bytes:
        """The body of the answer."""
        head = self._until(b"\r\n\r\n").lower()
        version, status = head.split()[:2]
        assert status == b"200", head
        self.is_kept = version == b"http/1.1" and b"connection: close" not in head and keep
        if b"transfer-encoding: chunked" in head:
            body = b""
            while size := int(self._until(b"\r\n"), 16):
                body += self._bytes(size)
                assert self._bytes(2) == b"\r\n"
            assert self._bytes(2) == b"\r\n"
        else:
            found = re.search(rb"content-length: (\d+)", head)
            assert found is not None, head
            body = self._bytes(int(found[1]))
        self.answers += 1
        return body

    def has_been_closed(self) -> bool:
        """Whether the server has closed it, as far as one can know before one asks."""
        return bool(select.select([self._socket], [], [], 0)[0])

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _until(self, mark: bytes) -> bytes:
        while mark not in self._buffer:
            self._read_on()
        found, _, self._buffer = self._buffer.partition(mark)
        return found

    def _bytes(self, size: int) -> bytes:
        while len(self._buffer) < size:
            self._read_on()
        found, self._buffer = self._buffer[:size], self._buffer[size:]
        return found

    def _read_on(self) -> None:
        chunk = self._socket.recv(65536)
        if not chunk:
            raise EOFError("the connection ended before the answer")
        self._buffer += chunk


class Load:
    """Clients in threads, each of which asks again soon after it has its answer; `kept` ones on kept connections, some
    of them after a longer pause."""

    def __init__(self, port: int, *, new: int = 3, kept: int = 3, pausing: int = 2) -> None:
        self.port = port
        self.answers: list[tuple[float, int]] = []  # when, which version
        self.failures: list[str] = []
        self.retries: list[str] = []
        self._stop = threading.Event()
        pace = 2 * harness.PACE  # at most: it is random
        kinds = [(False, pace)] * new + [(True, pace)] * kept + [(True, 0.3)] * pausing
        self._threads = [threading.Thread(target=self._run, args=kind, daemon=True) for kind in kinds]

    def wait_for(self, program: Program, version: int, *, alone: bool = False) -> None:
        """Until this version answers; `alone`: and for a hundred answers no other."""

        def is_there() -> bool:
            latest = [number for _, number in self.answers[-100:]]
            return bool(self.failures) or (version in latest and (not alone or set(latest) == {version}))

        program.wait_until(is_there, f"an answer by version {version}")

    def longest_silence(self, since: float, until: float) -> float:
        times = [since, *sorted(when for when, _ in self.answers if since < when < until), until]
        return max(after - before for before, after in pairwise(times))

    def check(self, versions: int) -> None:
        """Nothing was lost, and each of the versions has served."""
        assert self.failures == []
        assert self.retries == []
        assert {number for _, number in self.answers} == set(range(1, versions + 1))

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self, keep: bool, pause: float) -> None:
        client: Client | None = None
        while not self._stop.is_set():
            if client is not None and client.has_been_closed():
                client.close()
                client = None
            try:
                client = client or Client(self.port)
                version = int(client.ask(keep=keep))
                self.answers.append((time.monotonic(), version))
            except (OSError, EOFError, AssertionError, ValueError) as error:
                is_retry = client is not None and client.answers > 0
                if client is None or not client.is_late:
                    (self.retries if is_retry else self.failures).append(f"{time.monotonic():.3f} {error!r}")
                self._stop.wait(0.1)
                if client is not None:
                    client.is_kept = False
            if client is not None and not client.is_kept:
                client.close()
                client = None
            self._stop.wait(random.uniform(0, pause))
        if client is not None:
            client.close()


def deploy(program: Program, app: str, version: int, kind: str, *, loads: float = 0) -> None:
    """Write this version of the app, which takes `loads` seconds to be imported."""
    source = source_of(app)
    assert "VERSION = 0\n" in source
    assert "(workers=2)" in source
    source = source.replace(
        "VERSION = 0\n", f"VERSION = {version}\n" + f"import time; time.sleep({loads})\n" * bool(loads)
    )
    program.deploy(source.replace("(workers=2)", KINDS[kind]))


def source_of(app: str) -> str:
    return next(path for folder in FOLDERS if (path := folder / f"{app}.py").exists()).read_text()


def start(program: Program, app: str, port: int, kind: str) -> None:
    """Start version 1 of the app, and wait until it answers."""
    deploy(program, app, 1, kind)
    program.start("app.py", f"127.0.0.1:{port}")

    def answers() -> bool:
        try:
            with Client(port) as client:
                return client.ask(keep=False) == b"1"
        except OSError:
            return False

    program.wait_until(answers, "a first answer")


def reload(program: Program, load: Load, app: str, kind: str, versions: range, *, loads: float = 0) -> None:
    """Deploy one version after the other, each when the one before has answered, and wait for the last to be alone."""
    load.wait_for(program, versions[0] - 1)
    for version in versions:
        deploy(program, app, version, kind, loads=loads)
        program.hup()
        load.wait_for(program, version)
    load.wait_for(program, versions[-1], alone=True)


def wait_served(program: Program, port: int) -> None:
    """Until it answers at all."""

    def answers() -> bool:
        try:
            with Client(port) as client:
                return bool(client.ask(keep=False))
        except OSError:
            return False

    program.wait_until(answers, "a first answer")


def reload_and_account(program: Program, port: int, app: str, kind: str, reloads: int, **clients: int) -> None:
    """Reload it so often under load: nothing is lost, and it ends in peace."""
    start(program, app, port, kind)
    with Load(port, **clients) as load:
        began = time.monotonic()
        reload(program, load, app, kind, range(2, reloads + 2))
        took = time.monotonic() - began
    figures.note(app, kind, reloads, len(load.answers), failed=len(load.failures), retried=len(load.retries))
    print(f"in {took:.1f} s, longest silence {load.longest_silence(began, began + took) * 1000:.0f} ms")
    load.check(reloads + 1)
    assert program.stop() == 0, program.log()
    assert "Traceback" not in program.log()


def restart_under_traffic(
    program: Program, port: int, app: str, kind: str, ask: Callable[[int], int], restarts: int
) -> None:
    """For what is not HTTP: `ask(number)` sends a request, and returns the version that has answered."""
    deploy(program, app, 1, kind)
    program.start("app.py", f"127.0.0.1:{port}").wait_ready()
    with Traffic(ask, clients=CLIENTS, pause=harness.PACE) as traffic:
        traffic.wait_for(1)
        for version in range(2, restarts + 2):
            deploy(program, app, version, kind)
            assert program.restart().ok
            traffic.wait_for(version)
    figures.note(app, kind, restarts, len(traffic.answers), failed=len(traffic.failures))
    traffic.check()
    assert program.stop() == 0, program.log()
    assert "Traceback" not in program.log()
