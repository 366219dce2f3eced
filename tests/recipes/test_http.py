"""Servers of the standard library under load from new and from kept connections, restarted in both ways: 0 lost.

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
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from tests.harness import PATIENCE, Program

APPS = Path(__file__).resolve().parent.parent / "apps"
KINDS = {"workers": "(workers=2)", "in place": ""}


class Client:
    """One connection, and an HTTP client on it that does nothing a user of it would not see."""

    def __init__(self, port: int) -> None:
        self.answers = 0
        self.is_kept = True
        self._buffer = b""
        self._socket = socket.create_connection(("127.0.0.1", port), PATIENCE)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def ask(self, path: str = "/", *, keep: bool, request: bytes = b"", method: str = "GET") -> bytes:
        """The body of the answer."""
        close = "" if keep else "Connection: close\r\n"
        self._socket.sendall(f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n{close}\r\n".encode() + request)
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
    """Clients in threads, each of which asks again as soon as it has its answer; `kept` ones on kept connections, some
    of them after a pause."""

    def __init__(self, port: int, *, new: int = 3, kept: int = 3, pausing: int = 2) -> None:
        self.port = port
        self.answers: list[tuple[float, int]] = []  # when, which version
        self.failures: list[str] = []
        self.retries: list[str] = []
        self._stop = threading.Event()
        kinds = [(False, 0.0)] * new + [(True, 0.0)] * kept + [(True, 0.3)] * pausing
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
                (self.retries if is_retry else self.failures).append(f"{time.monotonic():.3f} {error!r}")
                self._stop.wait(0.1)
                if client is not None:
                    client.is_kept = False
            if client is not None and not client.is_kept:
                client.close()
                client = None
            if pause:
                self._stop.wait(random.uniform(0, pause))
        if client is not None:
            client.close()


@pytest.fixture
def port() -> Iterator[int]:
    """A port that nobody else is given meanwhile."""
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", 0))
        yield int(held.getsockname()[1])


def deploy(program: Program, app: str, version: int, kind: str, *, loads: float = 0) -> None:
    source = (APPS / f"{app}.py").read_text()
    assert "VERSION = 0\n" in source
    assert "(workers=2)" in source
    source = source.replace(
        "VERSION = 0\n", f"VERSION = {version}\n" + f"import time; time.sleep({loads})\n" * bool(loads)
    )
    program.deploy(source.replace("(workers=2)", KINDS[kind]))


def start(program: Program, app: str, port: int, kind: str) -> None:
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
    for version in versions:
        deploy(program, app, version, kind, loads=loads)
        program.hup()
        load.wait_for(program, version)
    load.wait_for(program, versions[-1], alone=True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("app", ["http_threads", "streams", "wsgi", "tcp_threads", "tcp_forks", "plain"])
def test_reloads_under_load_lose_nothing(program: Program, port: int, app: str, kind: str, full: bool) -> None:
    keeps = app in ("http_threads", "streams")
    often = app == "http_threads" and kind == "workers"
    reloads = 100 if full else 20 if often else 5
    start(program, app, port, kind)
    with Load(port, new=3 if keeps else 5, kept=3 if keeps else 0, pausing=2 if keeps else 0) as load:
        began = time.monotonic()
        reload(program, load, app, kind, range(2, reloads + 2))
        took = time.monotonic() - began
    print(f"{app}, {kind}: {reloads} reloads in {took:.1f} s, {len(load.answers)} answers,", end=" ")
    print(f"longest silence {load.longest_silence(began, began + took) * 1000:.0f} ms")
    load.check(reloads + 1)
    assert program.stop() == 0, program.log()


def test_the_longest_silence_with_and_without_reloads(program: Program, port: int, full: bool) -> None:
    """Measured, for `pytest -s`; asserted is only that the clients did not notice."""
    start(program, "http_threads", port, "workers")
    with Load(port) as load:
        silences: list[float] = []
        first = 2
        for run in range(5 if full else 1):
            began = time.monotonic()
            reload(program, load, "http_threads", "workers", range(first, first + 10))
            first, until = first + 10, time.monotonic()
            silences.append(load.longest_silence(began, until))
            time.sleep(until - began)
            silences.append(load.longest_silence(until, time.monotonic()))
            print(f"run {run}: longest silence {silences[-2] * 1000:.0f} ms, without reloads {silences[-1] * 1000:.0f}")
    ratio = max(silences[::2]) / max(silences[1::2])
    print(f"ratio of the maxima {ratio:.2f}, of the sums {sum(silences[::2]) / sum(silences[1::2]):.2f}")
    load.check(first - 1)


@pytest.mark.parametrize("kind", KINDS)
def test_a_slow_import_changes_nothing_for_the_clients(program: Program, port: int, kind: str, full: bool) -> None:
    loads = 8.0 if full else 2.0
    start(program, "http_threads", port, kind)
    with Load(port) as load:
        began = time.monotonic()
        reload(program, load, "http_threads", kind, range(2, 4 if full else 3), loads=loads)
        silence = load.longest_silence(began, time.monotonic())
    print(f"import takes {loads} s, {kind}: longest silence {silence * 1000:.0f} ms")
    load.check(3 if full else 2)
    if kind == "workers":
        assert silence < loads / 2
    else:  # one boot of the program, in which clients wait in the queue
        assert silence < loads + PATIENCE / 2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("app", ["http_threads", "streams"])
def test_what_is_in_flight_is_finished(program: Program, port: int, app: str, kind: str, full: bool) -> None:
    slow, stream = (3, 10) if full else (1.5, 2.5)
    asked = [f"/slow?{slow}"] * 3 + [f"/stream?{stream}"] * 2 * (app == "http_threads")
    asked += ["/until?go"] * (kind == "workers")  # only there the new code serves while the old one finishes
    bodies: dict[int, bytes | str] = {}
    begun = threading.Barrier(len(asked) + 1)

    def fetch(number: int, path: str) -> None:
        try:
            with Client(port) as client:
                client.ask(keep=True)
                begun.wait(PATIENCE)
                bodies[number] = client.ask(path, keep=True)
        except (OSError, EOFError) as error:
            bodies[number] = repr(error)

    start(program, app, port, kind)
    threads = [threading.Thread(target=fetch, args=each) for each in enumerate(asked)]
    for thread in threads:
        thread.start()
    begun.wait(PATIENCE)
    time.sleep(0.2)  # so that the requests are there
    deploy(program, app, 2, kind)
    with Load(port) as load:
        program.hup()
        load.wait_for(program, 2, alone=True)
        (program.folder / "go").touch()
        for thread in threads:
            thread.join()
    load.check(2)
    assert list(bodies.values()).count(b"1") == 3 + (kind == "workers"), bodies
    if app == "http_threads":
        assert list(bodies.values()).count(b"1" * round(stream / 0.05)) == 2, bodies


def test_an_answer_is_not_lost_to_a_body_that_nobody_reads(program: Program, port: int) -> None:
    start(program, "http_threads", port, "workers")
    stop = threading.Event()
    answers: list[bytes] = []
    errors: list[str] = []

    def post() -> None:
        body = b"x" * 300_000
        while not stop.is_set():
            try:
                with Client(port) as client:
                    request = b"Content-Length: %d\r\n" % len(body)
                    client._socket.sendall(b"POST / HTTP/1.1\r\nConnection: close\r\n" + request + b"\r\n" + body)
                    answers.append(client._until(b"\r\n\r\n"))
            except (OSError, EOFError) as error:
                errors.append(repr(error))

    threads = [threading.Thread(target=post) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        with Load(port, new=1, kept=1, pausing=0) as load:
            reload(program, load, "http_threads", "workers", range(2, 5))
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert errors == []
    assert answers
    load.check(4)


def test_idle_connections_hold_a_drain_up_for_no_longer_than_they_may(program: Program, port: int) -> None:
    start(program, "http_threads", port, "in place")
    with Client(port) as used, Client(port), Client(port) as late:
        used.ask(keep=True)
        late.ask(keep=True)
        deploy(program, "http_threads", 2, "in place")
        time.sleep(1.2)  # longer than `linger`
        assert late.ask(keep=True) == b"1"
        began = time.monotonic()
        program.hup()
        program.wait_until(used.has_been_closed, "the idle connection is closed")
        closed = time.monotonic() - began
        program.wait_until(late.has_been_closed, "the other one too")
        lingered = time.monotonic() - began
    print(f"closed after {closed:.2f} s, and what was used just before after {lingered:.2f} s")
    assert closed <= lingered
    with Client(port) as client:
        assert client.ask(keep=False) == b"2"
