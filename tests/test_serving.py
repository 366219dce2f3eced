"""`serving`, with real sockets in this process: what is handed out, what is waited for, what the client sees."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import http.server
import os
import resource
import select
import shutil
import socket
import socketserver
import ssl
import stat
import subprocess
import threading
import time
import wsgiref.simple_server
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import hotrestart
from hotrestart import errors, fds, loop, role, serving, state
from hotrestart.sleeper import Sleeper
from tests.harness import PATIENCE

pytestmark = pytest.mark.core


class Pulse:
    """What the supervisor would see."""

    def __init__(self) -> None:
        self.turns, self.is_at_work = 0, False

    def turn(self) -> None:
        self.turns, self.is_at_work = self.turns + 1, True

    def rest(self) -> None:
        self.is_at_work = False

    def work(self) -> None:
        self.is_at_work = True


class World:
    """A program that can be asked to end, and runs servers in threads; a listener, and clients of it."""

    def __init__(self) -> None:
        self.sleeper = Sleeper()
        self.has_heir = False
        self.pulse = Pulse()
        self.failures: list[Exception] = []  # what asyncio was told
        self.loop: loop.WorkerLoop
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.errors: list[BaseException] = []
        self._threads: list[threading.Thread] = []
        self._clients: list[socket.socket] = []

    def ready(self) -> None: ...
    def prepare_to_end(self) -> None: ...
    def request_restart(self) -> None: ...
    def request_stop(self) -> None: ...

    def end(self) -> None:
        state.end("stop")
        self.sleeper.wake(for_good=True)

    def connect(self, request: bytes = b"") -> socket.socket:
        client = socket.create_connection(self.listener.getsockname(), PATIENCE)
        self._clients.append(client)
        client.sendall(request)
        return client

    def begin(self, function: Callable[..., object], *arguments: object) -> threading.Thread:
        def run() -> None:
            try:
                function(*arguments)
            except BaseException as error:
                self.errors.append(error)

        thread = threading.Thread(target=run, daemon=True)
        self._threads.append(thread)
        thread.start()
        return thread

    def serve(self, handler: Any, kind: Any = http.server.ThreadingHTTPServer) -> threading.Thread:
        server = kind(("", 0), handler, bind_and_activate=False)
        return self.begin(serving.serve, server, self.listener, self.loop)

    def finish(self) -> None:
        self.end()
        for client in self._clients:
            client.close()
        for thread in self._threads:
            thread.join(PATIENCE)
            assert not thread.is_alive()
        self.listener.close()
        self.sleeper.close()


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    before, role.current = role.current, world
    try:
        with hotrestart.worker_loop() as world.loop:
            yield world
            world.finish()
        assert world.errors == []
    finally:
        role.current = before
        state.reset()


def soon(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def read_all(client: socket.socket) -> bytes:
    """To the end of file; a reset raises."""
    received = b""
    while chunk := client.recv(65536):
        received += chunk
    return received


def read_answer(client: socket.socket) -> bytes:
    """The head of an answer that has no body."""
    received = b""
    while b"\r\n\r\n" not in received:
        chunk = client.recv(1)
        assert chunk, received
        received += chunk
    return received


# --- accept


def test_a_connection_is_blocking_close_on_exec_and_knows_its_family(world: World) -> None:
    world.connect()
    connection, address = next(serving.accept(world.listener, world.loop))
    with connection:
        assert address[0] == "127.0.0.1"
        assert connection.gettimeout() is None
        assert os.get_blocking(connection.fileno())
        assert not connection.get_inheritable()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    assert not os.get_blocking(world.listener.fileno())


@pytest.mark.parametrize("how", ["accept", "serve", "serve_streams"])
def test_every_connection_is_handed_out_once_and_nobody_blocks(world: World, how: str) -> None:
    """All wake for one connection; who comes too late must still see that it is asked to end."""

    def accept_all() -> None:
        for connection, _ in serving.accept(world.listener, world.loop):
            with connection:
                connection.sendall(b"hello ")

    world.listener.setblocking(True)
    for _ in range(4):
        if how == "accept":
            world.begin(accept_all)
        elif how == "serve":
            world.serve(Greeting, socketserver.TCPServer)
        else:
            run_streams(world)
    question = b"" if how == "accept" else b"\n"
    assert {read_all(world.connect(question)).strip() for _ in range(200)} == {b"hello"}
    assert not os.get_blocking(world.listener.fileno())


def test_asked_to_end_it_ends_at_once_and_leaves_the_queue_to_others(world: World) -> None:
    taken: list[socket.socket] = []

    def take() -> None:
        for connection, _ in serving.accept(world.listener, world.loop):
            taken.append(connection)
            world.connect(b"in the queue")
            world.end()

    world.connect()
    world.begin(take).join(PATIENCE)
    assert len(taken) == 1
    taken[0].close()
    world.listener.setblocking(True)
    with world.listener.accept()[0] as left:
        assert left.recv(100) == b"in the queue"


def test_what_was_accepted_in_the_moment_of_the_end_is_handed_out(world: World, monkeypatch: Any) -> None:
    from hotrestart.serving import accepting

    def accept_late(listener: socket.socket) -> Any:
        world.end()
        return accept_from(listener)

    accept_from = accepting.accept_from
    monkeypatch.setattr(accepting, "accept_from", accept_late)
    world.connect(b"here")
    for connection, _ in serving.accept(world.listener, world.loop):
        with connection:
            assert connection.recv(100) == b"here"
        break
    else:
        raise AssertionError("it was dropped")


@pytest.mark.parametrize("how", ["accept", "serve", "serve_streams"])
def test_when_descriptors_are_short_it_says_so_and_goes_on(world: World, how: str, caplog: Any) -> None:
    def hello(connection: socket.socket) -> None:
        with connection:
            connection.sendall(b"hello")

    def accept_all() -> None:
        for connection, _ in serving.accept(world.listener, world.loop):
            hello(connection)

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.sendall(b"hello")

    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello")

    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    if how == "accept":
        world.begin(accept_all)
    elif how == "serve":
        world.serve(Handler, socketserver.TCPServer)
    else:
        world.begin(lambda: asyncio.run(serving.serve_streams(greet, world.listener, world.loop)))
    with world.connect() as first:
        assert read_all(first) == b"hello"
        other_end = connected_to(first.getsockname())
    soon(lambda: not other_end & inodes().items())
    client = socket.socket()
    before = set(fds.open_fds())
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(set(range(4096)) - before), limits[1]))
    try:
        client.settimeout(PATIENCE)
        client.connect(world.listener.getsockname())
        soon(lambda: "accepting no connections for a moment" in caplog.text)
        time.sleep(0.2)
        seen = len(caplog.records)
        assert seen <= 2 + (time.time() - caplog.records[0].created), "it does not spin"
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    with client:
        assert read_all(client) == b"hello"


def inodes() -> dict[int, int]:
    """Of the sockets of this process, by descriptor."""
    found = {}
    for fd in fds.open_fds():
        with contextlib.suppress(OSError):  # it has been closed meanwhile
            status = os.fstat(fd)
            if stat.S_ISSOCK(status.st_mode):
                found[fd] = status.st_ino
    return found


def connected_to(peer: Any) -> set[tuple[int, int]]:
    """The sockets of this process at the other end of `peer`: descriptors and inodes."""
    found = set()
    for fd, inode in inodes().items():
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(fd)) as each:
            if each.getpeername() == peer:
                found.add((fd, inode))
    return found


def test_what_is_no_open_listener_is_an_error(world: World) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
        datagrams.bind(("127.0.0.1", 0))
        datagrams.sendto(b"x", datagrams.getsockname())
        with pytest.raises(OSError, match="not supported"):
            next(serving.accept(datagrams, world.loop))
        with pytest.raises(OSError, match="not supported"):
            asyncio.run(serving.serve_streams(lambda *_: asyncio.sleep(0), datagrams, world.loop))
    with pytest.raises(OSError, match="Bad file descriptor"):
        next(serving.accept(datagrams, world.loop))


# --- serve


class Greeting(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        question = self.rfile.readline()
        if question == b"slow\n":
            time.sleep(0.3)
        if question == b"wrong\n":
            raise ValueError("wrong")
        self.wfile.write(b"hello " + question)


class Quiet:
    """Mixed in: the traceback of a handler goes nowhere, or into the counts."""

    counts: dict[str, int]

    def handle_error(self, *_: object) -> None:
        self.counts["errors"] += 1

    def handle_timeout(self) -> None:
        self.counts["timeouts"] += 1

    def service_actions(self) -> None:
        self.counts["actions"] += 1

    def verify_request(self, *_: object) -> bool:
        self.counts["verified"] += 1
        return self.counts["verified"] != 3


def quiet(kind: Any) -> Any:
    return type("Server", (Quiet, kind), {"counts": dict.fromkeys(("errors", "timeouts", "actions", "verified"), 0)})


class DaemonThreads(socketserver.ThreadingTCPServer):
    daemon_threads, block_on_close = True, False


@pytest.mark.parametrize("kind", [socketserver.TCPServer, DaemonThreads, socketserver.ForkingTCPServer])
def test_what_was_accepted_is_served_before_it_returns(world: World, kind: Any) -> None:
    world.loop.sleep(0)
    thread = world.serve(Greeting, kind)
    client = world.connect(b"slow\n")
    listener = world.listener
    listener.setblocking(False)
    soon(lambda: not world.loop.wait(listener, timeout=0))  # it has been accepted
    time.sleep(0.05)
    waits = world.connect(b"in the queue\n")
    if kind is not socketserver.TCPServer:
        assert read_all(waits) == b"hello in the queue\n"
    world.end()
    thread.join(PATIENCE)
    client.setblocking(False)
    assert client.recv(100) == b"hello slow\n"
    assert listener.fileno() != -1


@pytest.mark.parametrize("kind", [socketserver.TCPServer, socketserver.ThreadingTCPServer])
def test_the_hooks_of_a_server_are_called(world: World, kind: Any) -> None:
    server = quiet(kind)
    server.timeout = 0.01
    world.serve(Greeting, server)
    assert read_all(world.connect(b"you\n")) == b"hello you\n"
    assert read_all(world.connect(b"wrong\n")) == b""
    refused = world.connect()
    assert read_all(refused) == b""
    assert read_all(world.connect(b"you\n")) == b"hello you\n"
    soon(lambda: server.counts["timeouts"] > 2)
    assert server.counts["errors"] == 1
    assert server.counts["verified"] == 4
    assert server.counts["actions"] > 4


def test_a_server_knows_its_address_and_does_not_touch_the_listener(world: World, monkeypatch: Any) -> None:
    server = wsgiref.simple_server.WSGIServer(("", 1), wsgiref.simple_server.WSGIRequestHandler, False)
    monkeypatch.setattr(socket.socket, "listen", lambda *_: pytest.fail("the backlog would shrink to 5"))
    world.end()
    serving.serve(server, world.listener, world.loop)
    port = world.listener.getsockname()[1]
    assert server.server_address == ("127.0.0.1", port)
    assert server.server_port == port
    assert server.base_environ["SERVER_PORT"] == str(port)
    assert server.fileno() == -1
    assert world.listener.fileno() != -1


def test_a_datagram_server_answers_what_it_has_read(world: World) -> None:
    taken: list[bytes] = []

    class Echo(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            data, answer_through = self.request
            taken.append(data)
            time.sleep(0.2)
            answer_through.sendto(data.upper(), self.client_address)

    listener = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    listener.bind(("127.0.0.1", 0))
    server = socketserver.ThreadingUDPServer(("", 0), Echo, bind_and_activate=False)
    with listener, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(PATIENCE)
        thread = world.begin(serving.serve, server, listener, world.loop)
        for _ in range(3):
            client.sendto(b"hello", listener.getsockname())
        soon(lambda: len(taken) == 3)
        world.end()
        thread.join(PATIENCE)
        assert [client.recv(100) for _ in range(3)] == [b"HELLO"] * 3


@pytest.mark.parametrize("how", ["accept", "serve", "serve_streams"])
def test_each_connection_is_a_turn_and_a_drain_is_no_hanging(world: World, how: str) -> None:
    may_go = threading.Event()

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            assert may_go.wait(PATIENCE)

    async def handle(*_: object) -> None:
        while not may_go.is_set():
            await asyncio.sleep(0.01)

    def accept_all() -> None:
        for connection, _ in serving.accept(world.listener, world.loop):
            connection.close()

    if how == "accept":
        thread = world.begin(accept_all)
    elif how == "serve":
        thread = world.serve(Handler, socketserver.ThreadingTCPServer)
    else:
        thread = run_streams(world, handle)
    clients = [world.connect() for _ in range(3)]
    more = 0 if how == "serve_streams" else 1  # the one that waits
    soon(lambda: world.pulse.turns == len(clients) + more and not world.pulse.is_at_work)
    world.end()
    if how != "accept":
        soon(lambda: world.listener.fileno() != -1 and not world.pulse.is_at_work)
        time.sleep(0.1)
        assert thread.is_alive()
        assert not world.pulse.is_at_work
    may_go.set()
    for client in clients:
        client.close()
    thread.join(PATIENCE)


def test_a_server_of_the_wrong_kind_is_refused(world: World) -> None:
    server = socketserver.UDPServer(("", 0), Greeting, bind_and_activate=False)
    with server, pytest.raises(errors.OptionError, match="UDPServer takes"):
        serving.serve(server, world.listener, world.loop)


# --- KeepAlive


class Kept(serving.KeepAlive, http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    linger = 0.3

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.send_header("Connection", self.path.strip("/") or "keep-alive")
        self.end_headers()

    do_POST = do_GET

    def log_message(self, *_: object) -> None: ...


class LongKept(Kept):
    """For clients that ask as soon as they can, which may be late on a busy machine."""

    linger = PATIENCE


GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


def test_while_draining_each_kept_connection_is_answered_once_more_with_close(world: World) -> None:
    world.serve(LongKept)
    clients = [world.connect(GET) for _ in range(5)]
    assert all(b"Connection: keep-alive" in read_answer(client) for client in clients)
    world.end()
    for client in clients:
        client.sendall(GET)
    for client in clients:
        answer = read_all(client)
        assert answer.startswith(b"HTTP/1.1 200")
        assert answer.count(b"Connection:") == 1
        assert b"Connection: close\r\n" in answer


def test_requests_sent_ahead_are_answered_in_order(world: World) -> None:
    world.serve(Kept)
    client = world.connect(GET * 3)
    for _ in range(3):
        assert b"Connection: keep-alive" in read_answer(client)
    client.sendall(GET.replace(b"/ ", b"/close "))
    assert b"Connection: close" in read_all(client)


def test_an_idle_connection_is_closed_when_it_has_been_idle_for_linger(world: World) -> None:
    class TwoSeconds(Kept):
        linger = 2.0

    thread = world.serve(TwoSeconds)
    long_idle, fresh, late = world.connect(GET), world.connect(), world.connect()
    read_answer(long_idle)
    time.sleep(TwoSeconds.linger + 0.1)
    asked = time.monotonic()
    late.sendall(b"POST / HTTP/1.1\r\nContent-Length: 0\r\n\r\n")
    read_answer(late)
    world.end()
    assert read_all(long_idle) == read_all(fresh) == b""
    are_closed_first = not select.select([late], [], [], 0)[0]
    assert read_all(late) == b""
    assert time.monotonic() - asked >= TwoSeconds.linger
    assert are_closed_first or time.monotonic() - asked > TwoSeconds.linger + 1  # the machine is busy
    thread.join(PATIENCE)


def test_a_client_that_asks_within_linger_is_answered(world: World) -> None:
    world.serve(LongKept)
    client = world.connect(GET)
    read_answer(client)
    world.end()
    time.sleep(0.15)
    client.sendall(GET)
    assert b"Connection: close" in read_all(client)


def test_an_interim_answer_is_not_the_last_word(world: World) -> None:
    world.serve(LongKept)
    client = world.connect(GET)
    read_answer(client)
    world.end()
    client.sendall(b"POST / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\nbody")
    interim, _, final = read_all(client).partition(b"\r\n\r\n")
    assert interim == b"HTTP/1.1 100 Continue"
    assert b"Connection: close" in final


def test_an_error_says_close_once(world: World) -> None:
    world.serve(LongKept)
    client = world.connect(GET)
    read_answer(client)
    world.end()
    client.sendall(GET.replace(b"GET", b"BREW"))
    assert read_all(client).count(b"Connection: close") == 1


@pytest.mark.parametrize("where", ["handler", "server"])
def test_the_connections_timeout_counts_between_requests_and_stays(world: World, where: str) -> None:
    class Impatient(Kept):
        timeout = 0.2 if where == "handler" else None

        def do_GET(self) -> None:
            assert self.connection.gettimeout() == 0.2
            super().do_GET()

    class Server(http.server.ThreadingHTTPServer):
        def get_request(self) -> Any:
            connection, address = super().get_request()
            connection.settimeout(0.2 if where == "server" else None)
            return connection, address

    client = world.connect(GET)  # first: nobody waits for a request that is not there yet
    world.serve(Impatient, Server)
    read_answer(client)
    assert read_all(client) == b""


def test_a_request_that_comes_in_pieces_is_answered(world: World) -> None:
    world.serve(Kept)
    client = world.connect()
    for _ in range(2):
        for position in range(0, len(GET), 12):
            client.sendall(GET[position : position + 12])
            time.sleep(0.01)
        assert b"Connection: keep-alive" in read_answer(client)


def test_an_unread_body_does_not_cost_the_answer(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hotrestart.serving.keeping._PATIENCE", PATIENCE)
    world.serve(Kept)
    for _ in range(10):
        client = world.connect(b"POST /close HTTP/1.1\r\nContent-Length: 3000000\r\n\r\n")
        client.sendall(b"x" * 1_000_000)
        time.sleep(0.02)
        client.sendall(b"x" * 2_000_000)
        time.sleep(0.02)
        assert read_all(client).startswith(b"HTTP/1.1 200")
        client.close()


def test_a_mixin_on_the_wrong_side_is_refused() -> None:
    with pytest.raises(errors.OptionError, match="to the left of SimpleHTTPRequestHandler"):
        type("Handler", (http.server.SimpleHTTPRequestHandler, serving.KeepAlive), {})


def test_without_a_program_it_serves_as_ever(world: World, monkeypatch: Any) -> None:
    monkeypatch.setattr(role, "current", None)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Kept)
    with server:
        world.begin(server.serve_forever, 0.01)
        with socket.create_connection(server.server_address, PATIENCE) as client:  # type: ignore[arg-type]
            for _ in range(3):
                client.sendall(GET)
                assert b"Connection: keep-alive" in read_answer(client)
        server.shutdown()


def test_one_request_is_all_that_wsgiref_serves(world: World) -> None:
    class Handler(serving.KeepAlive, wsgiref.simple_server.WSGIRequestHandler):
        linger = 0.2

        def log_message(self, *_: object) -> None: ...

    def application(_: object, start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        return [b"hello"]

    server = wsgiref.simple_server.WSGIServer(("", 0), Handler, bind_and_activate=False)
    server.set_app(application)
    thread = world.begin(serving.serve, server, world.listener, world.loop)
    assert read_all(world.connect(GET)).endswith(b"hello")
    silent = world.connect()
    soon(lambda: not world.loop.wait(world.listener, timeout=0))
    world.end()
    assert read_all(silent) == b""
    thread.join(PATIENCE)


# --- serve_streams


async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"hello " + await reader.readline())


def run_streams(world: World, handle: Any = greet, **options: Any) -> threading.Thread:
    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, what: world.failures.append(what["exception"]))
        await serving.serve_streams(handle, world.listener, world.loop, **options)

    return world.begin(lambda: asyncio.run(main(), debug=True))


def test_streams_are_served_and_closed_in_good_order(world: World) -> None:
    run_streams(world)
    for _ in range(20):
        assert read_all(world.connect(b"you\nand what nobody reads")) == b"hello you\n"


def test_input_that_no_handler_reads_does_not_cost_the_answer(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hotrestart.serving.streams._PATIENCE", PATIENCE)

    async def refuse(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"too much")

    run_streams(world, refuse)
    for _ in range(10):
        client = world.connect(b"x" * 1_000_000)
        time.sleep(0.02)
        client.sendall(b"x" * 1_000_000)
        time.sleep(0.02)
        assert read_all(client) == b"too much"
        client.close()


@pytest.mark.parametrize("turns", [0, 1, 3])
def test_streams_accepted_just_before_the_end_are_served(world: World, turns: int) -> None:
    """asyncio.Server drops these: it has accepted them, and has not yet made a transport when it is closed."""
    clients: list[socket.socket] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not clients:
            clients.extend(world.connect(b"%d\n" % number) for number in range(30))
            for _ in range(turns):
                await asyncio.sleep(0)
            world.end()
        await greet(reader, writer)

    thread = run_streams(world, handle)
    assert read_all(world.connect(b"first\n")) == b"hello first\n"
    thread.join(PATIENCE)
    world.listener.setblocking(False)
    left = 0
    try:
        while True:
            world.listener.accept()[0].close()
            left += 1
    except BlockingIOError:
        pass
    answers = [read_all(client) for client in clients[: len(clients) - left]]
    assert len(answers) in (turns, turns + 1, turns + 2)
    assert answers == [b"hello %d\n" % number for number in range(len(answers))]


def test_several_servers_of_one_event_loop_all_end(world: World) -> None:
    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as other:
            both = [serving.serve_streams(greet, each, world.loop) for each in (world.listener, other)]
            await asyncio.gather(*both)

    thread = world.begin(lambda: asyncio.run(main()))
    with world.connect(b"you\n") as client:
        assert read_all(client) == b"hello you\n"
    world.end()
    thread.join(PATIENCE)
    assert not thread.is_alive()


def test_a_handler_that_is_at_work_is_waited_for(world: World) -> None:
    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        question = await reader.readline()
        world.end()
        await asyncio.sleep(0.2)
        writer.write(question)

    thread = run_streams(world, slow)
    client = world.connect(b"question\n")
    assert read_all(client) == b"question\n"
    thread.join(PATIENCE)
    assert not thread.is_alive()


def test_a_long_answer_reaches_a_slow_client_whole(world: World) -> None:
    async def much(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"x" * 20_000_000)
        world.end()

    thread = run_streams(world, much)
    client = world.connect()
    time.sleep(1.3)  # longer than a client may take to go
    assert len(read_all(client)) == 20_000_000
    thread.join(PATIENCE)


def test_a_client_that_stays_is_left_after_a_second(world: World) -> None:
    thread = run_streams(world)
    client = world.connect(b"you\n")
    assert client.recv(100) == b"hello you\n"
    world.end()
    thread.join(PATIENCE)
    assert not thread.is_alive()


def test_what_a_handler_raises_is_told_and_its_connection_closed(world: World) -> None:
    async def fails(*_: object) -> None:
        raise ValueError("wrong")

    run_streams(world, fails)
    assert read_all(world.connect()) == b""
    assert [repr(each) for each in world.failures] == ["ValueError('wrong')"]


def test_cancelled_it_stops_accepting(world: World) -> None:
    async def main() -> None:
        task = asyncio.ensure_future(serving.serve_streams(greet, world.listener, world.loop))
        await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        events = asyncio.get_running_loop()
        assert not events.remove_reader(world.listener)

    before = fds.open_fds()
    asyncio.run(main())
    assert fds.open_fds() == before


@pytest.fixture
def contexts(tmp_path: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """The server's, and a client's who trusts it."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    command = "openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=localhost -keyout key -out certificate -days 2"
    subprocess.run(command.split(), cwd=tmp_path, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "certificate", tmp_path / "key")
    return context, ssl.create_default_context(cafile=str(tmp_path / "certificate"))


def test_streams_speak_tls(world: World, contexts: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    run_streams(world, ssl=contexts[0])
    stranger = world.connect(b"no TLS at all, but a lot of something else\n")
    with contexts[1].wrap_socket(world.connect(), server_hostname="localhost") as client:
        client.sendall(b"you\n")
        assert client.recv(100) == b"hello you\n"
    read_all(stranger)
    gc.collect()  # what nobody has looked at is told then
    assert world.failures == []


def test_kept_connections_speak_tls(world: World, contexts: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    class Server(http.server.ThreadingHTTPServer):
        def get_request(self) -> tuple[ssl.SSLSocket, Any]:
            connection, address = super().get_request()
            connection.settimeout(PATIENCE)
            return contexts[0].wrap_socket(connection, server_side=True, do_handshake_on_connect=False), address

    class Handler(Kept):
        linger = property(lambda self: PATIENCE if hasattr(self, "requestline") else 0.3)  # type: ignore[assignment]

    thread = world.serve(Handler, Server)
    silent = world.connect()
    with contexts[1].wrap_socket(world.connect(), server_hostname="localhost") as client:
        client.sendall(GET * 2)
        for _ in range(2):
            assert b"Connection: keep-alive" in read_answer(client)
        time.sleep(0.15)
        world.end()
        client.sendall(GET)
        assert b"Connection: close" in read_answer(client)
    assert read_all(silent) == b""
    thread.join(PATIENCE)
