"""The server side of the control socket, without a thread and without blocking.

Whoever drives it watches the descriptors that it registers, calls what it has registered with them when something
happens there, and `look` when `deadline` has come.

Whoever is connected may be slow, silent, gone or malicious; the program goes on. So a request is short and has to come
soon, an answer has to be taken soon, and there are so many connections at the most. Only who waits for an outcome may
wait as long as it takes.
"""

from __future__ import annotations

import _socket  # the module socket costs 9 ms, and a program that restarts in place loads this while it works
import os
import sys
from time import monotonic

from ..errors import HotRestartError
from . import protocol
from .connection import READ, WRITE, Connection

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any, Protocol

    from ..outcome import Outcome

    class Watch(Protocol):
        """Of `selectors.BaseSelector`, what is used here; `data` is called when something happens."""

        def register(self, fileobj: int, events: int, data: Callable[[], None]) -> object:
            """Begin to watch it."""

        def modify(self, fileobj: int, events: int, data: Callable[[], None]) -> object:
            """Watch it for something else."""

        def unregister(self, fileobj: int) -> object:
            """Watch it no more."""

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
_PAUSE = 1.0  # seconds without new connections, when there is no descriptor for one
_AT_ONCE = 16  # connections that are taken in a row
_NEVER = float("inf")


class Server:
    """Serves the connections to a listening socket. Make it, drive it and let go of it in one thread."""

    def __init__(
        self, listener: int, program: Program, watch: Watch, connections: Iterable[dict[str, Any]] = ()
    ) -> None:
        """`listener`: a descriptor, which stays the caller's. `connections`: what another server has let go of."""
        self._program = program
        self._listener = _socket.socket(fileno=listener)
        self._listener.setblocking(False)
        self._connections: dict[int, Connection] = {}
        self._watch = watch
        watch.register(self._listener.fileno(), READ, self._accept)
        self._deaf_until = 0.0
        for each in connections:
            self._take_up(each)

    @property
    def deadline(self) -> float:
        """When `look` is wanted, by the clock of `monotonic`; infinity for never."""
        times = [each.deadline for each in self._connections.values()]
        return min([*times, self._deaf_until or _NEVER])

    def look(self, now: float) -> None:
        """Drop those whose time is up."""
        if self._deaf_until and now >= self._deaf_until:
            self._deaf_until = 0.0
            self._watch.register(self._listener.fileno(), READ, self._accept)
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

    def tell_stopped(self) -> None:
        """Tell all who wait for a stop that the program has ended: this process will not."""
        for connection in list(self._connections.values()):
            if connection.waits_for == "stop":
                connection.finish(stopped=True)

    def serve(self, connection: Connection, text: bytes) -> None:
        """Do what a line asks for."""
        try:
            asked = protocol.request(text)
            self._carry_out(connection, asked.pop("request"), asked)
        except (ValueError, HotRestartError) as error:
            connection.finish(error=str(error))
        except Exception as error:  # whatever it is, it is the problem of who has asked
            connection.finish(error=f"that did not work: {error!r}")

    def let_go(self) -> list[dict[str, Any]]:
        """Stop serving. The connections that are there, whose descriptors stay open, for another server to take up."""
        left: list[dict[str, Any]] = []
        for each in self._connections.values():
            self._watch_for(each, 0)
            left.append(
                {
                    "fd": each.socket.detach(),
                    "waits_for": each.waits_for,
                    "is_answered": each.is_answered,
                    "unread": each.unread.decode("latin-1"),
                    "unsent": each.unsent.decode("latin-1"),
                }
            )
        self._connections.clear()
        self.close()
        return left

    def close(self) -> None:
        """Drop everybody. The listener stays open."""
        for connection in list(self._connections.values()):
            self.drop(connection)
        if not self._deaf_until:
            self._watch.unregister(self._listener.fileno())
        self._listener.detach()

    def let_go_after_fork(self) -> set[int]:
        """In a child: the visitors are its parent's. So is an epoll, in which nothing may be unregistered here. The
        descriptors that are closed now."""
        closed = set(self._connections)
        for connection in self._connections.values():
            connection.socket.close()
        self._connections.clear()
        self._listener.detach()
        return closed

    def drop(self, connection: Connection) -> None:
        """End a connection."""
        if self._connections.pop(connection.fileno(), None) is not None:
            self._watch_for(connection, 0)
        connection.socket.close()

    def look_for(self, connection: Connection) -> None:
        """Watch for what the connection has to do next."""
        reading = READ if not connection.has_said_all else 0  # there its end would be seen for ever
        self._watch_for(connection, reading | (WRITE if connection.unsent else 0))

    def _watch_for(self, connection: Connection, events: int) -> None:
        fd, before = connection.fileno(), connection.watched_for
        connection.watched_for = events
        if events and not before:
            self._watch.register(fd, events, connection.on_event)
        elif events and events != before:
            self._watch.modify(fd, events, connection.on_event)
        elif before and not events:
            self._watch.unregister(fd)

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
                listener: Any = self._listener
                fd: int = listener._accept()[0]  # what socket.accept() is made of
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError:  # no descriptor left: what waits stays readable, and would be tried for ever
                self._watch.unregister(self._listener.fileno())
                self._deaf_until = monotonic() + _PAUSE
                return
            connection = self._add(fd)
            uid = _user_of(connection.socket)
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

    def _add(self, fd: int) -> Connection:
        os.set_inheritable(fd, False)
        connection = self._connections[fd] = Connection(self, _socket.socket(fileno=fd))
        self.look_for(connection)
        return connection

    def _take_up(self, left: dict[str, Any]) -> None:
        connection = self._add(left["fd"])
        connection.waits_for, connection.is_answered = left["waits_for"], left["is_answered"]
        connection.unread, connection.unsent = left["unread"].encode("latin-1"), left["unsent"].encode("latin-1")
        if connection.waits_for:
            connection.deadline = _NEVER
        self.look_for(connection)


def _user_of(sock: _socket.socket) -> int | None:
    """The user at the other end; None where only the permissions of the socket say who may connect."""
    if not hasattr(_socket, "SO_PEERCRED"):
        return None
    credentials = sock.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, 12)  # struct ucred: pid, uid, gid
    return int.from_bytes(credentials[4:8], sys.byteorder)
