"""`DrainingListener` and `LastAnswer`, with a server of asyncio's own that ends as those of others do."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from hotrestart import errors, serving, state
from hotrestart.serving import draining
from tests.harness import PATIENCE
from tests.test_serving import World, read_all, soon, world

__all__ = ["world"]
pytestmark = pytest.mark.core

Handle = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Keeps the connection until asked to end; hangs up on who has asked nothing when the server ends."""
    is_last = False
    while not is_last and (question := await reader.readline()):
        is_last = state.should_stop
        writer.write(b"hello " + question)
    writer.close()


def run(world: World, handle: Handle = greet, linger: float = PATIENCE, *, debug: bool = False) -> threading.Thread:
    """A server that drains when the program is asked to end, and then closes all that is open."""
    writers: list[asyncio.StreamWriter] = []

    async def keep(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        await handle(reader, writer)

    async def main() -> None:
        async with serving.DrainingListener(world.listener) as listener:
            server = await asyncio.start_server(keep, sock=listener, backlog=100)
            while not state.should_stop:
                await asyncio.sleep(0.002)
            await listener.drain(linger)
            server.close()
            for writer in writers:
                writer.close()

    return world.begin(lambda: asyncio.run(main(), debug=debug))


def test_what_was_accepted_in_the_moment_of_the_end_is_served_and_the_queue_is_left(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    accept = serving.DrainingListener.accept

    def accept_last(listener: serving.DrainingListener) -> tuple[socket.socket, Any]:
        accepted = accept(listener)
        if not state.should_stop:
            world.connect(b"in the queue")
            world.end()
        return accepted

    monkeypatch.setattr(serving.DrainingListener, "accept", accept_last)
    client = world.connect(b"here\n")
    thread = run(world)
    assert read_all(client) == b"hello here\n"
    thread.join(PATIENCE)
    world.listener.settimeout(PATIENCE)
    with world.listener.accept()[0] as left:
        assert left.recv(100) == b"in the queue"


def test_a_kept_connection_has_time_for_one_more_request_and_the_drain_ends_with_the_last(world: World) -> None:
    clients = [world.connect(b"1\n"), world.connect(b"1\n")]
    thread = run(world)
    for client in clients:
        assert client.recv(100) == b"hello 1\n"
    world.end()
    for client in clients:
        thread.join(0.05)
        assert thread.is_alive()
        client.sendall(b"2\n")
        assert read_all(client) == b"hello 2\n"
        client.close()
    thread.join(PATIENCE / 2)
    assert not thread.is_alive()


def test_an_idle_connection_holds_the_drain_up_for_no_longer_than_it_may_and_nothing_spins(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    drain, accept = serving.DrainingListener.drain, serving.DrainingListener.accept
    drains: list[float] = []
    tries: list[bool] = []

    async def begin(listener: serving.DrainingListener, linger: float) -> None:
        world.connect(b"in the queue")
        drains.append(linger)
        await drain(listener, linger)

    def attempt(listener: serving.DrainingListener) -> tuple[socket.socket, Any]:
        tries.append(bool(drains))
        return accept(listener)

    monkeypatch.setattr(serving.DrainingListener, "drain", begin)
    monkeypatch.setattr(serving.DrainingListener, "accept", attempt)
    client = world.connect(b"1\n")
    thread = run(world, linger=0.05)
    assert client.recv(100) == b"hello 1\n"
    world.end()
    thread.join(PATIENCE)
    assert not thread.is_alive()
    assert drains == [0.05]
    assert not any(tries)


@pytest.mark.parametrize("debug", [False, True], ids=["", "debug"])
def test_an_answer_is_not_lost_to_input_that_nobody_reads(
    world: World, debug: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(draining, "_PATIENCE", PATIENCE)

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        while not state.should_stop:
            await asyncio.sleep(0.002)
        writer.write(b"no")
        writer.close()

    client = world.connect(b"1\n")
    thread = run(world, refuse, debug=debug)
    sender = world.begin(client.sendall, b"x" * 5_000_000)
    soon(lambda: world.pulse.turns == 1)
    world.end()
    assert read_all(client) == b"no"
    sender.join(PATIENCE)
    assert not sender.is_alive()
    client.close()
    thread.join(PATIENCE)


def test_a_client_that_does_not_go_is_left_after_a_while(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draining, "_PATIENCE", 0.05)
    client = world.connect(b"1\n")
    thread = run(world)
    assert client.recv(100) == b"hello 1\n"
    world.end()
    client.sendall(b"2\n")
    assert read_all(client) == b"hello 2\n"
    thread.join(PATIENCE)  # and `client` is still open
    assert not thread.is_alive()


def test_while_nobody_ends_a_server_closes_as_ever_and_backlog_and_listener_stay(world: World) -> None:
    world.listener.listen(500)

    async def close(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    thread = run(world, close)
    assert read_all(world.connect()) == b""
    soon(lambda: world.pulse.turns == 1)
    world.end()
    thread.join(PATIENCE)
    for _ in range(120):  # more than the server has asked for
        world.connect()
    world.listener.settimeout(PATIENCE)
    for _ in range(120):
        world.listener.accept()[0].close()


def test_an_event_loop_that_accepts_by_itself_is_an_error(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with serving.DrainingListener(world.listener):
            pass

    listener = serving.DrainingListener(world.listener)
    monkeypatch.setattr(asyncio, "get_running_loop", lambda: "uvloop.Loop")
    with pytest.raises(errors.OptionError, match="accepts by itself"):
        listener.__aenter__().send(None)
    assert listener.fileno() == -1


# --- LastAnswer


def headers_of(scope: dict[str, str], *headers: tuple[bytes, bytes]) -> list[tuple[bytes, bytes]]:
    """The headers of an answer that an application has given these."""
    sent: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"x"})

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(serving.LastAnswer(app)(scope, None, send))  # type: ignore[arg-type]
    assert sent[1] == {"type": "http.response.body", "body": b"x"}
    return list(sent[0]["headers"])


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_only_the_last_answer_says_close(world: World, version: str) -> None:
    scope, given = {"type": "http", "http_version": version}, [(b"Connection", b"keep-alive"), (b"x", b"y")]
    assert headers_of(scope, *given) == given
    world.end()
    assert headers_of(scope, *given) == [(b"x", b"y"), (b"connection", b"close")]


@pytest.mark.parametrize("scope", [{"type": "http", "http_version": "2"}, {"type": "websocket", "http_version": "1.1"}])
def test_what_ends_in_its_own_way_is_left_alone(world: World, scope: dict[str, str]) -> None:
    world.end()
    assert headers_of(scope, (b"x", b"y")) == [(b"x", b"y")]
