"""WSGI servers of others that run in threads, under load, restarted in both ways: 0 failed requests, 0 retries."""

from __future__ import annotations

import importlib.util
import os
import sys
import threading
import time

import pytest

from tests.harness import PATIENCE, Program
from tests.recipes.load import KINDS, Client, Load, deploy, reload, start

SERVERS = {"wsgi_waitress": "waitress", "wsgi_cheroot": "cheroot"}


@pytest.fixture(params=SERVERS)
def app(request: pytest.FixtureRequest) -> str:
    """The program of a server that is installed."""
    name = str(request.param)
    for module in (SERVERS[name], "flask"):
        if importlib.util.find_spec(module) is None:
            message = f"{module} is not installed"
            if os.environ.get("HOTRESTART_CI") and sys.version_info[:2] == (3, 11):
                pytest.fail(message)
            pytest.skip(message)
    return name


@pytest.mark.parametrize("kind", KINDS)
def test_reloads_under_load_lose_nothing(program: Program, port: int, app: str, kind: str, full: bool) -> None:
    reloads = 50 if full else 20
    start(program, app, port, kind)
    with Load(port) as load:
        began = time.monotonic()
        reload(program, load, app, kind, range(2, reloads + 2))
        took = time.monotonic() - began
    print(f"{app}, {kind}: {reloads} reloads in {took:.1f} s, {len(load.answers)} answers,", end=" ")
    print(f"{len(load.failures)} failed, {len(load.retries)} retries,", end=" ")
    print(f"longest silence {load.longest_silence(began, began + took) * 1000:.0f} ms")
    load.check(reloads + 1)
    assert program.stop() == 0, program.log()
    assert "Traceback" not in program.log()


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_in_flight_is_finished(program: Program, port: int, app: str, kind: str) -> None:
    start(program, app, port, kind)
    bodies: list[bytes | str] = []

    def fetch() -> None:
        try:
            with Client(port) as client:
                client.ask(keep=True)
                bodies.append(client.ask("/until/go", keep=True))
                bodies.append(f"kept: {client.is_kept}")
        except (OSError, EOFError) as error:
            bodies.append(repr(error))

    threads = [threading.Thread(target=fetch) for _ in range(3)]
    for thread in threads:
        thread.start()
    with Client(port) as idle, Client(port) as half:
        idle.ask(keep=True)
        half._socket.sendall(b"GET / HTTP/1.1\r\nHost: local")
        deploy(program, app, 2, kind)
        time.sleep(0.2)  # so that the requests are there
        program.hup()
        program.wait_until(idle.has_been_closed, "the idle connection is closed")
        half._socket.sendall(b"host\r\n\r\n")
        head = half._until(b"\r\n\r\n")
    (program.folder / "go").touch()
    for thread in threads:
        thread.join()
    assert bodies == [b"1", "kept: False"] * 3 or sorted(map(str, bodies)) == ["b'1'"] * 3 + ["kept: False"] * 3
    assert head.startswith(b"HTTP/1.1 200")
    assert b"connection: close" in head.lower()


def test_an_answer_is_not_lost_to_a_body_that_nobody_reads(program: Program, port: int, app: str) -> None:
    start(program, app, port, "workers")
    stop = threading.Event()
    answers: list[bytes] = []
    errors: list[str] = []
    post = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 300000\r\n\r\n" + b"x" * 300_000

    def keep_posting() -> None:
        while not stop.is_set():
            try:
                with Client(port) as client:
                    client._socket.settimeout(PATIENCE)
                    client._socket.sendall(post)
                    answers.append(client._until(b"\r\n\r\n"))
            except (OSError, EOFError) as error:
                errors.append(repr(error))

    threads = [threading.Thread(target=keep_posting) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        with Load(port, new=1, kept=1, pausing=0) as load:
            reload(program, load, app, "workers", range(2, 7))
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert errors == []
    assert any(b"connection: close" in head.lower() for head in answers)
    load.check(6)
