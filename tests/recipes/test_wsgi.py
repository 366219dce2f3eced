"""WSGI servers of others that run in threads, under load, restarted in both ways: 0 failed requests, 0 retries."""

from __future__ import annotations

import re
import threading

import pytest

from tests.conftest import need
from tests.harness import PATIENCE, Program
from tests.recipes import load
from tests.recipes.load import KINDS, Client, Load, deploy, reload, reload_and_account, start

SERVERS = {"wsgi_waitress": "waitress", "wsgi_cheroot": "cheroot"}


@pytest.fixture(params=SERVERS)
def app(request: pytest.FixtureRequest) -> str:
    """The program of a server that is installed."""
    name = str(request.param)
    need(SERVERS[name], "flask")
    return name


@pytest.mark.figures
@pytest.mark.parametrize("kind", KINDS)
def test_reloads_under_load_lose_nothing(program: Program, port: int, app: str, kind: str, full: bool) -> None:
    """By clients on new connections and on kept ones, each of which asks again at once or after a pause."""
    reload_and_account(program, port, app, kind, 100 if full else 4)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_in_flight_is_finished(
    program: Program, port: int, app: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By one worker: that the idle connection has been closed says of no other that it knows it has to end."""
    monkeypatch.setitem(KINDS, "workers", "(workers=1)")
    start(program, app, port, kind)
    answers: list[tuple[bytes, bool]] = []

    def fetch(body: bytes) -> None:
        try:
            with Client(port) as client:
                client.ask(keep=True)
                if body:
                    head = b"POST /until/go HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body)
                    client._socket.sendall(head)
                    asked.wait(PATIENCE)
                    client._socket.sendall(body)
                    closes = b"connection: close" in client._until(b"\r\n\r\n").lower()
                    answers.append((client._bytes(1), not closes))
                else:
                    client.send("/until/go", keep=True)
                    asked.wait(PATIENCE)
                    answers.append((client.receive(keep=True), client.is_kept))
        except (OSError, EOFError) as error:
            answers.append((repr(error).encode(), True))

    unread = b"x" * 8_000_000  # more than buffers take
    threads = [threading.Thread(target=fetch, args=(body,)) for body in (b"", b"", unread)]
    asked = threading.Barrier(len(threads) + 1)
    for thread in threads:
        thread.start()
    asked.wait(PATIENCE)
    with Client(port) as idle, Client(port) as half:
        idle.ask(keep=True)
        half._socket.sendall(b"GET / HTTP/1.1\r\nHost: local")
        deploy(program, app, 2, kind)
        program.hup()
        program.wait_until(idle.has_been_closed, "the idle connection is closed")
        half._socket.sendall(b"host\r\n\r\n")
        head = half._until(b"\r\n\r\n")
    (program.folder / "go").touch()
    for thread in threads:
        thread.join()
    assert answers == [(b"1", False)] * 3
    assert head.startswith(b"HTTP/1.1 200")
    assert b"connection: close" in head.lower()


@pytest.mark.parametrize("kind", KINDS)
def test_who_asks_within_a_second_finds_a_kept_connection_open(
    program: Program, port: int, app: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """These clients do not look whether it has been closed before they ask; and since a busy machine may hold them up
    for more than a second, it is twenty here."""
    source, count = re.subn(r"1\.0(?=:?  # a client that asks)", "20.0", load.source_of(app))
    assert count == 1
    monkeypatch.setattr(load, "source_of", lambda _: source)
    start(program, app, port, kind)
    stop = threading.Event()
    errors: list[str] = []

    def keep_asking() -> None:
        client = Client(port)
        while not stop.wait(0.2):
            try:
                client.ask(keep=True)
            except (OSError, EOFError) as error:
                errors.append(f"{error!r} after {client.answers} answers")
                client.is_kept = False
            if not client.is_kept:
                client.close()
                client = Client(port)
        client.close()

    threads = [threading.Thread(target=keep_asking) for _ in range(5)]
    for thread in threads:
        thread.start()
    try:
        with Load(port, new=1, kept=0, pausing=0) as others:
            reload(program, others, app, kind, range(2, 5))
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert errors == []
    others.check(4)
