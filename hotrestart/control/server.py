"""The server side of the control socket, without a thread and without blocking: `fileno`, `timeout`, `step`.

Whoever is connected may be slow, silent, gone or malicious; the program goes on. So a request is short and has to come
soon, an answer has to be taken soon, and there are so many connections at the most. Only who waits for an outcome may
wait as long as it takes.
"""

from __future__ import annotations

import os
import selectors
import socket
import struct
from time import monotonic

from ..errors import HotRestartError
from . import protocol

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any, Protocol

    from ..outcome import Outcome

    class Program(Protocol):
        """What the server asks for, on behalf of whoever is connected. Each may raise HotRestartError."""

        def restart(self, connection: Connection) -> None:
            """Ask for a restart, and `conclude` this connection with its outcome, here or in the next generation."""

        def stop(self) -> None:
            """Ask for a stop. The connections end with the process."""

        def scale(self, *, by: int | None = None, to: int | None = None) -> int:
            """More workers, or fewer; how many are wanted now."""
            raise NotImplementedError

        def status(self) -> dict[str, Any]:
            """How things are, as plain data."""
            raise NotImplementedError


__all__ = ["Connection", "Server"]

_MOST = 64  # connections; they are descriptors of the program
_SOON = 10.0  # seconds for a request to come, and for an answer to be taken
_PAUSE = 1.0  # seconds without new connections, when there is no descriptor for one
_MOST_UNSENT = 65536  # bytes for one who only waits
_AT_ONCE = 16  # connections that are taken in a row
_NEVER = float("inf")


class Connection:
    """Somebody who asks. `ticket`: whatever the program remembers the request by. `waits_for` the end of a "restart" or
    a "stop"; empty before the request, and once the last line has been said."""

    def __init__(self, server: Server, sock: socket.socket) -> None:
        self.ticket: Any = None
        self.waits_for = ""
        self.deadline = monotonic() + _SOON
        self.unread = self.unsent = b""
        self.socket, self._server = sock, server
        self.is_answered = False
        sock.setblocking(False)

    def fileno(self) -> int:
        """The socket's."""
        return self.socket.fileno()

    def say(self, **fields: Any) -> None:
        """One line of the answer."""
        self.unsent += protocol.line(**fields)
        self._send()

    def finish(self, **fields: Any) -> None:
        """The last line; the connection ends when it has been taken."""
        if self.socket.fileno() == -1:
            return
        self.waits_for, self.is_answered, self.deadline = "", True, monotonic() + _SOON
        self.say(**fields)

    def conclude(self, outcome: Outcome) -> None:
        """The outcome that it has waited for."""
        self.finish(outcome=outcome.as_document())

    def hear(self) -> None:
        """Something has come: more of a request, or the end."""
        try:
            data = self.socket.recv(4096)  # descriptors that come along are closed by the kernel
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if self.is_answered or self.waits_for:
            if not data:
                self._server.drop(self)
            return  # one request is enough
        self.unread += data
        text, end, _ = self.unread.partition(b"\n")
        if len(text) > protocol.LONGEST_REQUEST:
            self.finish(error=f"a request has {protocol.LONGEST_REQUEST} bytes at most")
        elif end:
            self._server.serve(self, text)
        elif not data:
            self._server.drop(self)

    def on_event(self, events: int) -> None:
        """It can be read from, or written to."""
        if events & selectors.EVENT_WRITE:
            self._send()
        if events & selectors.EVENT_READ and self.socket.fileno() != -1:
            self.hear()

    def _send(self) -> None:
        try:
            while self.unsent:
                self.unsent = self.unsent[self.socket.send(self.unsent) :]
        except (BlockingIOError, InterruptedError):
            if not self.is_answered and len(self.unsent) > _MOST_UNSENT:
                self._server.drop(self)  # it asks for much and takes nothing
                return
        except OSError:
            self._server.drop(self)
            return
        if self.is_answered and not self.unsent:
            self._server.drop(self)
        else:
            self._server.look_for(self)


class Server:
    """Serves the connections to a listening socket. Make it, drive it and let go of it in one thread."""

    def __init__(self, listener: int, program: Program, connections: Iterable[dict[str, Any]] = ()) -> None:
        """`listener`: a descriptor, which stays the caller's. `connections`: what another server has let go of."""
        self._program = program
        self._listener = socket.socket(fileno=os.dup(listener))
        self._listener.setblocking(False)
        self._connections: dict[int, Connection] = {}
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._deaf_until = 0.0
        for each in connections:
            self._take_up(each)

    def fileno(self) -> int:
        """A descriptor that is readable when `step` is wanted."""
        return self._selector.fileno()

    def timeout(self, now: float | None = None) -> float:
        """Seconds until `step` is wanted all the same; infinity for never."""
        times = [each.deadline for each in self._connections.values()]
        if self._deaf_until:
            times.append(self._deaf_until)
        return max(0.0, min(times, default=_NEVER) - (monotonic() if now is None else now))

    def wait(self, *, extra: int) -> bool:
        """Wait until `step` is wanted, or `extra` is readable; whether it is."""
        timeout = self.timeout()
        self._selector.register(extra, selectors.EVENT_READ)
        try:
            found = self._selector.select(None if timeout == _NEVER else timeout)
        finally:
            self._selector.unregister(extra)
        return any(key.fd == extra for key, _ in found)

    def step(self) -> None:
        """Do what there is to do. Never blocks."""
        now = monotonic()
        if self._deaf_until and now >= self._deaf_until:
            self._deaf_until = 0.0
            self._selector.register(self._listener, selectors.EVENT_READ)
        for key, events in self._selector.select(0):
            if key.fileobj is self._listener:
                self._accept()
            elif key.fd in self._connections:  # else it was dropped in this very turn
                self._connections[key.fd].on_event(events)
        for connection in list(self._connections.values()):
            if now >= connection.deadline:
                self.drop(connection)

    @property
    def has_company(self) -> bool:
        """Whether somebody is connected."""
        return bool(self._connections) or bool(self._deaf_until)

    def waiting(self) -> list[Connection]:
        """Those who wait for the outcome of a restart."""
        return [each for each in self._connections.values() if each.waits_for == "restart"]

    def tell_stage(self, stage: str, generation: int) -> None:
        """Tell those who wait how far the restart is."""
        for connection in self.waiting():
            connection.say(stage=stage, generation=generation)

    def conclude(self, outcome: Outcome) -> None:
        """Tell all who wait for the outcome of a restart that this is it."""
        for connection in self.waiting():
            connection.conclude(outcome)

    def serve(self, connection: Connection, text: bytes) -> None:
        """Do what a line asks for."""
        try:
            asked = protocol.request(text)
            self._carry_out(connection, asked.pop("request"), asked)
        except (ValueError, HotRestartError) as error:
            connection.finish(error=str(error))

    def let_go(self) -> list[dict[str, Any]]:
        """Stop serving. The connections that are there, whose descriptors stay open, for another server to take up."""
        left = [
            {
                "fd": each.socket.detach(),
                "waits_for": each.waits_for,
                "is_answered": each.is_answered,
                "unread": each.unread.decode("latin-1"),
                "unsent": each.unsent.decode("latin-1"),
            }
            for each in self._connections.values()
        ]
        self._connections.clear()
        self.close()
        return left

    def close(self) -> None:
        """Drop everybody. The listener stays open."""
        for connection in list(self._connections.values()):
            self.drop(connection)
        self._selector.close()
        self._listener.close()

    def let_go_after_fork(self) -> None:
        """In a child. Nothing is unregistered: the parent's poll is the same open file."""
        for connection in self._connections.values():
            connection.socket.close()
        self._connections.clear()
        self._listener.close()
        self._selector.close()

    def drop(self, connection: Connection) -> None:
        """End a connection."""
        fd = connection.socket.fileno()
        if self._connections.pop(fd, None) is not None:
            self._selector.unregister(fd)
        connection.socket.close()

    def look_for(self, connection: Connection) -> None:
        """Watch for what the connection has to do next."""
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if connection.unsent else 0)
        key = self._selector.get_key(connection.socket)
        if key.events != events:
            self._selector.modify(connection.socket, events, connection)

    def _carry_out(self, connection: Connection, what: str, numbers: dict[str, Any]) -> None:
        if what == "status":
            connection.finish(status=self._program.status())
        elif what == "scale":
            connection.finish(workers=self._program.scale(**numbers))
        else:
            connection.waits_for, connection.deadline = what, _NEVER
            if what == "stop":
                self._program.stop()
            else:
                self._program.restart(connection)

    def _accept(self) -> None:
        for _ in range(_AT_ONCE):
            try:
                sock, _ = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError:  # no descriptor left: what waits stays readable, and would be tried for ever
                self._selector.unregister(self._listener)
                self._deaf_until = monotonic() + _PAUSE
                return
            connection = self._add(sock)
            uid = _user_of(sock)
            if uid not in (None, 0, os.geteuid()):
                connection.finish(error=f"user {uid} may not control this program")
            elif len(self._connections) > _MOST:
                self._make_room(connection)

    def _make_room(self, newest: Connection) -> None:
        """Whoever has said nothing for longest goes; if all the others wait for an outcome, the newest."""
        silent = [each for each in self._connections.values() if not each.waits_for and each is not newest]
        if silent:
            self.drop(silent[0])
        else:
            newest.finish(error=f"{_MOST} others are waiting already")

    def _add(self, sock: socket.socket) -> Connection:
        connection = Connection(self, sock)
        self._connections[sock.fileno()] = connection
        self._selector.register(sock, selectors.EVENT_READ, connection)
        return connection

    def _take_up(self, left: dict[str, Any]) -> None:
        os.set_inheritable(left["fd"], False)
        connection = self._add(socket.socket(fileno=left["fd"]))
        connection.waits_for, connection.is_answered = left["waits_for"], left["is_answered"]
        connection.unread, connection.unsent = left["unread"].encode("latin-1"), left["unsent"].encode("latin-1")
        if connection.waits_for:
            connection.deadline = _NEVER
        self.look_for(connection)


def _user_of(sock: socket.socket) -> int | None:
    """The user at the other end; None where only the permissions of the socket say who may connect."""
    if not hasattr(socket, "SO_PEERCRED"):
        return None
    _, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    return int(uid)
