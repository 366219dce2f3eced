"""Servers of others that run on asyncio, under load, restarted in both ways: 0 failed requests, 0 retries."""

from __future__ import annotations

import threading
import time

import pytest

from tests.conftest import need
from tests.harness import Program
from tests.recipes.load import KINDS, Client, Load, deploy, reload_and_account, start

SERVERS = {"asgi_uvicorn": "uvicorn", "asgi_hypercorn": "hypercorn", "aiohttp_app": "aiohttp"}


@pytest.fixture(params=SERVERS)
def app(request: pytest.FixtureRequest) -> str:
    """The program of a server that is installed."""
    name = str(request.param)
    need(SERVERS[name])
    return name


@pytest.mark.figures
@pytest.mark.parametrize("kind", KINDS)
def test_reloads_under_load_lose_nothing(program: Program, port: int, app: str, kind: str, full: bool) -> None:
    reload_and_account(program, port, app, kind, 50 if full else 4)


@pytest.mark.parametrize("kind", KINDS)
def test_an_upload_that_takes_longer_than_the_drain_is_finished(
    program: Program, port: int, app: str, kind: str
) -> None:
    begun, enough = threading.Event(), threading.Event()
    answers: list[object] = []

    def upload() -> None:
        try:
            with Client(port) as client:
                client.ask(keep=True)
                client._socket.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
                begun.set()
                while not enough.wait(0.05):
                    client._socket.sendall(b"1\r\nx\r\n")
                client._socket.sendall(b"0\r\n\r\n")
                answers.append(client._until(b"\r\n\r\n").split()[1])
        except (OSError, EOFError) as error:
            answers.append(error)

    start(program, app, port, kind)
    thread = threading.Thread(target=upload)
    thread.start()
    begun.wait()
    deploy(program, app, 2, kind)
    with Load(port, new=1, kept=1, pausing=0) as load:
        load.wait_for(program, 1)
        program.hup()
        if kind == "workers":
            load.wait_for(program, 2, alone=True)
        else:
            count = -1
            while count != len(load.answers):  # the program accepts nothing more
                count = len(load.answers)
                time.sleep(0.5)
        time.sleep(1.5)  # more than `linger`
        enough.set()
        thread.join()
        load.wait_for(program, 2, alone=True)
    load.check(2)
    assert answers == [b"200"]
    assert program.stop() == 0, program.log()
