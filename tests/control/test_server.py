"""The server by itself: whatever those who connect do, it neither blocks, raises, nor leaks."""

from __future__ import annotations

import array
import json
import os
import resource
import selectors
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from hotrestart.control import connection, protocol
from hotrestart.control import server as module
from hotrestart.control.server import Connection, Server
from hotrestart.errors import HotRestartError
from hotrestart.outcome import Outcome
from tests.harness import PATIENCE, in_child

pytestmark = pytest.mark.core

OUTCOME = Outcome(True, generation=2, stage="ready", pid=1)


class FakeProgram:
    def __init__(self) -> None:
        self.asked: list[str] = []
        self.waiting: list[Connection] = []
        self.size = 0
        self.during: Callable[[], object] = lambda: None

    def restart(self, connection: Connection) -> None:
        self.asked.append("restart")
        self.waiting.append(connection)
        self.during()

    def stop(self) -> None:
        self.asked.append("stop")

    def scale(self, *, by: int | None = None, to: int | None = None) -> int:
        self.asked.append("scale")
        if to == 0:
            raise HotRestartError("none is too few")
        return to or 1 + (by or 0)

    def status(self) -> dict[str, Any]:
        self.asked.append("status")
        return {"padding": "x" * self.size}


class World:
    """A server, the loop that drives it, a clock that can be moved, and visitors."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(path)
        self.listener.listen(4096)
        self.program = FakeProgram()
        self.selector = selectors.DefaultSelector()
        self.ahead, self._began = 0.0, time.monotonic()
        self.server = Server(self.listener.fileno(), self.program, self.selector)
        self.visitors: list[socket.socket] = []

    def monotonic(self) -> float:
        return self._began + self.ahead

    def turn(self, timeout: float = 0.0) -> int:
        ready = self.selector.select(timeout)
        for key, _ in ready:
            if key.fd in self.selector.get_map():
                key.data()
        if self.monotonic() >= self.server.deadline:
            self.server.look(self.monotonic())
        return len(ready)

    def settle(self) -> None:
        """Until nothing happens any more."""
        for _ in range(100_000):
            if not self.turn():
                return
        raise AssertionError("it spins")

    def connect(self, data: bytes = b"") -> socket.socket:
        visitor = socket.socket(socket.AF_UNIX)
        visitor.settimeout(PATIENCE)
        visitor.connect(self.path)
        self.visitors.append(visitor)
        if data:
            visitor.sendall(data)
        self.settle()
        return visitor

    def close(self) -> None:
        for each in self.visitors:
            each.close()
        self.server.close()
        self.selector.close()
        self.listener.close()


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    each = World(str(tmp_path / "c.sock"))
    for clocked in (module, connection):
        monkeypatch.setattr(clocked, "monotonic", each.monotonic)
    yield each
    each.close()


def said(visitor: socket.socket) -> list[dict[str, Any]] | None:
    """The whole answer; None if the connection was ended without one."""
    visitor.setblocking(False)
    data = b""
    try:
        while more := visitor.recv(65536):
            data += more
    except ConnectionResetError:
        pass
    except BlockingIOError:
        raise AssertionError(f"it is still connected, and has said {data!r}") from None
    return [json.loads(line) for line in data.splitlines()] if data else None


def is_connected(visitor: socket.socket) -> bool:
    visitor.setblocking(False)
    try:
        return visitor.recv(1, socket.MSG_PEEK) != b""
    except BlockingIOError:
        return True
    except ConnectionResetError:
        return False


def connected(world: World) -> int:
    return len(world.selector.get_map()) - 1


def ask(what: str, **more: object) -> bytes:
    return json.dumps({"request": what, **more}).encode() + b"\n"


# -- requests ----------------------------------------------------------------------------------------------------------


def test_a_request_is_answered_and_the_connection_ends(world: World) -> None:
    assert said(world.connect(ask("status"))) == [{"status": {"padding": ""}}]
    assert said(world.connect(ask("scale", by=3))) == [{"workers": 4}]
    assert said(world.connect(ask("scale", to=0))) == [{"error": "none is too few"}]
    assert not world.server.has_company
    assert world.server.deadline == float("inf")


def test_who_waits_is_told_stages_and_the_outcome(world: World) -> None:
    visitor = world.connect(ask("restart"))
    world.server.tell_stage("load", 2)
    world.server.conclude(OUTCOME)
    world.settle()
    assert said(visitor) == [{"stage": "load", "generation": 2}, {"outcome": OUTCOME.as_document()}]


def test_who_waits_for_a_stop_is_told_nothing_of_restarts(world: World) -> None:
    visitor = world.connect(ask("stop"))
    world.server.tell_stage("load", 2)
    world.server.conclude(OUTCOME)
    assert is_connected(visitor)
    world.server.close()
    assert said(visitor) is None
    world.server = Server(world.listener.fileno(), world.program, world.selector)


def test_a_request_may_come_byte_for_byte(world: World) -> None:
    visitor = world.connect()
    for byte in ask("scale", to=7):
        assert is_connected(visitor)
        visitor.send(bytes([byte]))
        world.settle()
    assert said(visitor) == [{"workers": 7}]


def test_half_a_line_is_no_request(world: World) -> None:
    visitor = world.connect(ask("restart")[:-1])
    assert is_connected(visitor)
    visitor.close()
    world.settle()
    assert not world.program.asked
    assert not world.server.has_company


def test_one_request_is_enough(world: World) -> None:
    assert said(world.connect(ask("status") * 3)) == [{"status": {"padding": ""}}]
    visitor = world.connect(ask("restart") + ask("stop"))
    visitor.sendall(ask("stop") * 100)
    world.settle()
    assert world.program.asked == ["status", "restart"]
    world.program.waiting[0].conclude(OUTCOME)
    assert said(visitor) == [{"outcome": OUTCOME.as_document()}]


@pytest.mark.parametrize(
    "garbage",
    [
        b"\n",
        b"hello\n",
        b"\0\0\0\n",
        b"\xff\xfe\xfd\n",
        b"[" * 1000 + b"\n",
        b'{"a":' * 190 + b"\n",
        b"{}\n",
        b"1\n",
        b"GET / HTTP/1.1\r\n",
        bytes(range(256)),
        b'{"request": "\\ud800"}\n',
    ],
    ids=["empty", "text", "nul", "binary", "nested", "deep", "object", "number", "http", "bytes", "surrogate"],
)
def test_garbage_is_told_so(world: World, garbage: bytes) -> None:
    (answer,) = said(world.connect(garbage)) or []
    assert list(answer) == ["error"]
    assert not world.program.asked
    assert not world.server.has_company


def test_a_line_of_a_hundred_megabytes_ends_early(world: World) -> None:
    visitor = world.connect()
    visitor.setblocking(False)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    chunk, sent = b"x" * 65536, 0
    while sent < 100 * 2**20:
        try:
            sent += visitor.send(chunk)
        except BrokenPipeError:
            break
        except BlockingIOError:
            pass
        world.turn()
    assert sent < 2**20
    assert (said(visitor) or [{}])[0] == {"error": "a request has 1024 bytes at most"}
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000
    assert not world.server.has_company


def test_a_flood_of_one_who_waits_is_not_kept(world: World) -> None:
    visitor = world.connect(ask("restart"))
    visitor.setblocking(False)
    sent = 0
    while sent < 10 * 2**20:
        try:
            sent += visitor.send(b"x\n" * 30_000)
        except BlockingIOError:
            world.turn()
    world.settle()
    (connection,) = world.server.waiting()
    assert len(connection.unread) < 5000
    connection.conclude(OUTCOME)
    assert said(visitor) == [{"outcome": OUTCOME.as_document()}]


# -- time --------------------------------------------------------------------------------------------------------------


def test_the_silent_are_dropped_when_their_time_is_up(world: World) -> None:
    silent, half, waits, stops = (world.connect(each) for each in (b"", b'{"req', ask("restart"), ask("stop")))
    assert 0 < world.server.deadline - world.monotonic() <= 10
    world.ahead = 9
    world.turn()
    assert connected(world) == 4
    world.ahead = 10.5
    world.turn()
    assert not is_connected(silent)
    assert not is_connected(half)
    assert world.server.deadline == float("inf")
    world.ahead = 1e6
    world.turn()
    assert is_connected(waits)
    assert is_connected(stops)


def test_a_byte_now_and_then_buys_no_time(world: World) -> None:
    visitor = world.connect(b"{")
    for _ in range(20):
        world.ahead += 1
        world.turn()
        try:
            visitor.send(b" ")
        except BrokenPipeError:
            break
        world.settle()
    assert world.ahead < 12
    assert not world.server.has_company


def test_who_takes_no_answer_is_dropped_and_blocks_nobody(world: World) -> None:
    world.program.size = 8 * 2**20
    slow = world.connect(ask("status"))
    assert connected(world) == 1
    world.program.size = 0
    assert said(world.connect(ask("status")))
    world.ahead = 10.5
    world.turn()
    assert not world.server.has_company
    data = slow.recv(2**24)
    assert 0 < len(data) < 8 * 2**20


def test_a_slow_reader_gets_all_of_it_in_time(world: World) -> None:
    world.program.size = 2**20
    slow = world.connect(ask("status"))
    data = b""
    while more := slow.recv(4096):
        data += more
        world.turn()
    assert json.loads(data) == {"status": {"padding": "x" * 2**20}}


@pytest.mark.parametrize("when", ["at once", "later"])
def test_who_has_no_more_to_say_may_wait_for_the_answer(world: World, when: str) -> None:
    """As `nc -N` does, and socat, when there is no more to read for them."""
    visitor = world.connect(b"" if when == "at once" else ask("restart"))
    if when == "at once":
        visitor.sendall(ask("restart"))
    visitor.shutdown(socket.SHUT_WR)
    world.settle()
    world.server.tell_stage("ready", 2)
    world.settle()
    over(world)
    world.settle()
    world.server.conclude(OUTCOME)
    world.settle()
    assert said(visitor) == [{"stage": "ready", "generation": 2}, {"outcome": OUTCOME.as_document()}]
    assert not world.server.has_company


def test_who_has_no_more_to_say_may_read_slowly(world: World) -> None:
    world.program.size = 2**20
    slow = world.connect(ask("status"))
    slow.shutdown(socket.SHUT_WR)
    data = b""
    while more := slow.recv(4096):
        data += more
        world.turn()
    assert json.loads(data) == {"status": {"padding": "x" * 2**20}}


def test_who_has_no_more_to_say_and_goes_is_dropped_at_the_next_word(world: World) -> None:
    visitor = world.connect(ask("restart"))
    visitor.shutdown(socket.SHUT_WR)
    world.settle()
    visitor.close()
    world.settle()
    world.server.tell_stage("ready", 2)
    assert not world.server.has_company


def test_who_waits_and_takes_nothing_is_dropped(world: World) -> None:
    world.connect(ask("restart"))
    for _ in range(100_000):
        world.server.tell_stage("load" * 100, 2)
        if not world.server.has_company:
            break
    assert not world.server.has_company
    assert connected(world) == 0
    world.program.waiting[0].conclude(OUTCOME)  # nobody is there; nothing happens


# -- many --------------------------------------------------------------------------------------------------------------


def test_ten_thousand_in_a_row(world: World) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for number in range(10_000):
        visitor = world.connect((b"", b"x\n", ask("status"), b"{")[number % 4])
        world.visitors.remove(visitor)
        visitor.close()
    world.settle()
    assert len(os.listdir("/proc/self/fd")) == before
    assert connected(world) == 0


def test_ten_thousand_at_once(world: World) -> None:
    """Those who have been silent for longest go; those who wait stay."""
    waiting = [world.connect(ask("restart")) for _ in range(5)]
    others: list[socket.socket] = []
    for _ in range(10_000):
        others.append(world.connect())
        assert connected(world) <= module._MOST
        if len(others) > 300:
            others.pop(0).close()
            world.visitors.pop(5)
    world.settle()
    assert [is_connected(each) for each in others] == [False] * (len(others) - 59) + [True] * 59
    assert all(is_connected(each) for each in waiting)
    assert said(world.connect(ask("status")))
    world.server.conclude(OUTCOME)
    assert all(said(each) for each in waiting)


def test_who_waits_is_not_thrown_out_by_others_who_wait(world: World) -> None:
    waiting = [world.connect(ask("restart")) for _ in range(module._MOST)]
    assert said(world.connect()) == [{"error": "64 others are waiting already"}]
    assert said(world.connect(ask("status"))) is not None
    assert all(is_connected(each) for each in waiting)
    world.program.waiting[3].conclude(OUTCOME)
    assert said(world.connect(ask("status"))) == [{"status": {"padding": ""}}]


def test_one_turn_does_not_last_for_ever(world: World) -> None:
    for _ in range(1000):
        visitor = socket.socket(socket.AF_UNIX)
        visitor.connect(world.path)
        world.visitors.append(visitor)
    world.turn()
    assert connected(world) <= 16
    world.settle()
    assert connected(world) == module._MOST


# -- who may -----------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_another_user_is_refused() -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        world = World(f"{folder}/c.sock")
        os.chmod(world.path, 0o666)
        try:
            check_another_user(world)
        finally:
            world.close()


def check_another_user(world: World) -> None:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgid(65534)
            os.setuid(65534)
            visitor = socket.socket(socket.AF_UNIX)
            visitor.connect(world.path)
            visitor.settimeout(PATIENCE)
            os.write(writer, visitor.recv(4096))
            os._exit(0)
        except BaseException as error:
            os.write(writer, repr(error).encode())
        finally:
            os._exit(1)
    os.close(writer)
    while os.waitpid(child, os.WNOHANG)[0] == 0:
        world.turn(0.01)
    assert json.loads(os.read(reader, 4096)) == {"error": "user 65534 may not control this program"}
    os.close(reader)
    assert not world.program.asked
    assert not world.server.has_company


@pytest.mark.parametrize(
    ("uid", "is_heard"),
    [(0, True), (os.geteuid(), True), (54321, False), (None, True)],
    ids=["root", "own", "other", "unknown"],
)
def test_the_user_decides(world: World, uid: int | None, is_heard: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_user_of", lambda _: uid)
    (answer,) = said(world.connect(ask("status"))) or [{}]
    assert ("status" in answer) == is_heard
    assert world.program.asked == ["status"] * is_heard


def test_descriptors_that_come_along_do_not_stay(world: World) -> None:
    reader, writer = os.pipe()
    before = len(os.listdir("/proc/self/fd"))
    for data in (b"{", ask("status"), ask("restart")):
        visitor = world.connect()
        socket.send_fds(visitor, [data], [writer] * 100)
        world.settle()
        if data == ask("restart"):
            socket.send_fds(visitor, [b"x"], [writer])
            world.settle()
        visitor.close()
        world.settle()
    os.close(writer)
    assert os.read(reader, 1) == b""  # nobody else has it
    os.close(reader)
    assert len(os.listdir("/proc/self/fd")) == before - 2
    assert array.array("i").itemsize == 4


# -- no descriptor is left ---------------------------------------------------------------------------------------------


def test_without_descriptors_it_does_not_spin_and_heals(world: World) -> None:
    def starve() -> None:
        selector = selectors.PollSelector()
        server = Server(world.listener.fileno(), world.program, selector)
        visitor = socket.socket(socket.AF_UNIX)
        visitor.connect(world.path)
        visitor.sendall(ask("status"))
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        taken = [os.dup(0)]
        resource.setrlimit(resource.RLIMIT_NOFILE, (taken[0] + 1, hard))

        def turn() -> int:
            ready = selector.select(0)
            for key, _ in ready:
                key.data()
            server.look(world.monotonic())
            return len(ready)

        assert turn() == 1
        assert turn() == 0  # deaf
        assert server.has_company
        assert 0 < server.deadline - world.monotonic() <= 1
        for _ in range(3):
            world.ahead += 1.1
            assert turn() == 0  # hears again
            assert turn() == 1  # deaf again
        os.close(taken.pop())
        world.ahead += 1.1
        for _ in range(6):
            turn()
            world.ahead += 0.5  # it was the last one: in the same turn there was none for the next
        assert json.loads(visitor.recv(4096)) == {"status": {"padding": ""}}
        assert server.deadline == float("inf")
        server.close()

    assert in_child(starve) == 0


def test_it_can_be_let_go_of_while_deaf(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    visitor = socket.socket(socket.AF_UNIX)
    world.visitors.append(visitor)

    class Broken:
        def _accept(self) -> None:
            raise OSError(24, "too many open files")

        def fileno(self) -> int:
            return world.listener.fileno()

        def detach(self) -> None:
            pass

    world.server._listener.detach()
    world.server._listener = Broken()  # type: ignore[assignment]
    visitor.connect(world.path)
    world.settle()
    assert world.server.has_company
    assert world.server.let_go() == []
    world.server = Server(world.listener.fileno(), world.program, world.selector)
    visitor.sendall(ask("status"))
    world.settle()
    assert said(visitor) == [{"status": {"padding": ""}}]


# -- from one server to the next ---------------------------------------------------------------------------------------


def over(world: World) -> list[dict[str, Any]]:
    left: list[dict[str, Any]] = json.loads(json.dumps(world.server.let_go()))
    assert connected(world) == -1
    world.server = Server(world.listener.fileno(), world.program, world.selector, left)
    return left


def test_another_server_takes_up_where_one_has_let_go(world: World) -> None:
    world.program.size = 2**20
    half, slow = world.connect(b'{"request": "sc\xc3\xa4'), world.connect(ask("status"))
    world.program.size = 0
    waits, stops = world.connect(ask("restart")), world.connect(ask("stop"))
    over(world)
    assert [each.waits_for for each in world.server._connections.values()] == ["", "", "restart", "stop"]
    world.server.tell_stage("ready", 2)
    world.server.conclude(OUTCOME)
    assert said(waits) == [{"stage": "ready", "generation": 2}, {"outcome": OUTCOME.as_document()}]
    half.sendall(b'"}\n')
    world.settle()
    assert "cannot be asked for" in (said(half) or [{}])[0]["error"]
    data = b""
    while more := slow.recv(65536):
        data += more
        world.turn()
    assert json.loads(data) == {"status": {"padding": "x" * 2**20}}
    assert is_connected(stops)
    assert connected(world) == 1


def test_a_request_may_be_cut_in_two_by_a_restart_anywhere(world: World) -> None:
    text = ask("scale", to=7)
    for cut in range(len(text)):
        visitor = world.connect(text[:cut])
        over(world)
        visitor.sendall(text[cut:])
        world.settle()
        assert said(visitor) == [{"workers": 7}]


def test_the_silent_do_not_outlive_the_restart_for_long(world: World) -> None:
    silent = world.connect(b"{")
    over(world)
    world.ahead = 10.5
    world.turn()
    assert not is_connected(silent)


def test_who_is_gone_meanwhile_is_dropped(world: World) -> None:
    for data in (b"", b"{", ask("restart"), ask("stop")):
        visitor = world.connect(data)
        left = world.server.let_go()
        visitor.close()
        world.server = Server(world.listener.fileno(), world.program, world.selector, left)
        world.server.tell_stage("ready", 2)
        world.settle()
        assert connected(world) == 0


def test_an_outcome_for_somebody_who_is_gone(world: World) -> None:
    visitor = world.connect(ask("restart"))
    (connection,) = world.server.waiting()
    visitor.close()
    world.server.tell_stage("load", 2)
    connection.conclude(OUTCOME)
    connection.conclude(OUTCOME)
    world.settle()
    assert connected(world) == 0


def test_an_outcome_at_once(world: World) -> None:
    world.program.during = lambda: world.program.waiting[-1].conclude(OUTCOME)
    assert said(world.connect(ask("restart"))) == [{"outcome": OUTCOME.as_document()}]
    assert connected(world) == 0


def test_a_child_closes_what_is_its_parent_s(world: World) -> None:
    visitors = [world.connect(each) for each in (b"", b"{", ask("restart"))]

    def check() -> None:
        fds = {each.fileno() for each in world.server._connections.values()}
        assert world.server.let_go_after_fork() == fds
        for fd in fds:
            with pytest.raises(OSError, match="Bad file"):
                os.fstat(fd)
        assert not world.server.has_company

    assert in_child(check) == 0
    world.server.conclude(OUTCOME)
    assert said(visitors[2])
    assert connected(world) == 2  # the parent's epoll is untouched


# -- anything ----------------------------------------------------------------------------------------------------------

steps = some.one_of(
    some.tuples(some.just("send"), some.integers(0, 3), some.binary(max_size=2000)),
    some.tuples(
        some.just("send"),
        some.integers(0, 3),
        some.sampled_from(
            [ask("restart"), ask("stop"), ask("status"), ask("scale", to=3), b'{"request"', b"\n", b"x" * 1024]
        ),
    ),
    some.tuples(some.sampled_from(["close", "no more"]), some.integers(0, 3), some.just(b"")),
    some.tuples(some.just("read"), some.integers(0, 3), some.just(b"")),
    some.tuples(some.sampled_from(["conclude", "tell", "over", "later", "turn", "big"]), some.just(0), some.just(b"")),
)


@given(some.lists(steps, max_size=40))
def test_whatever_several_do(world: World, happens: list[tuple[str, int, bytes]]) -> None:
    """Nothing raises; who is gone is gone; who has asked is not forgotten."""
    before = len(os.listdir("/proc/self/fd"))
    visitors: dict[int, socket.socket] = {}
    world.ahead, world.program.size = 0.0, 0
    for what, which, data in happens:
        if what == "send":
            if which not in visitors:
                visitors[which] = socket.socket(socket.AF_UNIX)
                visitors[which].connect(world.path)
                visitors[which].setblocking(False)
            try:
                visitors[which].send(data)
            except OSError:
                pass
        elif what == "close" and which in visitors:
            visitors.pop(which).close()
        elif what == "no more" and which in visitors:
            visitors[which].shutdown(socket.SHUT_WR)
        elif what == "read" and which in visitors:
            try:
                visitors[which].recv(100_000)
            except OSError:
                pass
        elif what == "conclude":
            world.server.conclude(OUTCOME)
        elif what == "tell":
            world.server.tell_stage("load", 2)
        elif what == "over":
            over(world)
        elif what == "later":
            world.ahead += 4
        elif what == "big":
            world.program.size = 500_000
        world.turn()
    world.settle()
    waiting = len(world.server.waiting())
    listening = [each for each in world.server._connections.values() if each.watched_for == 0]
    assert connected(world) + len(listening) == len(world.server._connections) >= waiting
    for visitor in visitors.values():
        visitor.close()
    world.settle()
    for each in listening:
        each.finish()  # only a word finds out that they are gone
    assert connected(world) == 0
    assert not world.server.has_company
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_longest_request_is_the_longest(world: World) -> None:
    text = ask("status")[:-1]
    padded = text + b" " * (protocol.LONGEST_REQUEST - len(text)) + b"\n"
    assert said(world.connect(padded)) == [{"status": {"padding": ""}}]
    assert said(world.connect(b" " + padded)) == [{"error": "a request has 1024 bytes at most"}]
