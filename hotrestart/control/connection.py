"""Somebody at the control socket: one request, and the answer to it, without blocking."""

from __future__ import annotations

from time import monotonic

from . import protocol

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket
    from typing import Any

    from ..outcome import Outcome
    from .server import Server

__all__ = ["READ", "WRITE", "Connection"]

READ, WRITE = 1, 2
"""What to watch a descriptor for, as in `selectors`."""

_SOON = 10.0  # seconds for a request to come, and for an answer to be taken
_MOST_UNSENT = 65536  # bytes for one who only waits


class Connection:
    """Somebody who asks. `ticket`: whatever the program remembers the request by. `waits_for` the end of a "restart" or
    a "stop"; empty before the request, and once the last line has been said."""

    def __init__(self, server: Server, sock: _socket.socket) -> None:
        self.ticket: Any = None
        self.waits_for: str = ""
        self.deadline: float = monotonic() + _SOON
        self.unread: bytes = b""
        self.unsent: bytes = b""
        self.socket: _socket.socket = sock
        self.is_answered: bool = False
        self.has_said_all: bool = False
        self.watched_for: int = 0
        self._server = server
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
                self._note_the_end()
            return  # one request is enough
        self.unread += data
        text, end, _ = self.unread.partition(b"\n")
        if len(text) > protocol.LONGEST_REQUEST:
            self.finish(error=f"a request has {protocol.LONGEST_REQUEST} bytes at most")
        elif end:
            self._server.serve(self, text)
        elif not data:
            self._server.drop(self)

    def _note_the_end(self) -> None:
        """Who has only no more to say, as `nc -N`, still listens; if it goes later, the next word will not reach it."""
        import select

        poll = select.poll()
        poll.register(self.socket, 0)  # for the end in both directions, which is always told
        self.has_said_all = not poll.poll(0)
        if self.has_said_all:
            self._server.look_for(self)
        else:
            self._server.drop(self)

    def on_event(self) -> None:
        """It can be read from, or written to."""
        if self.unsent:
            self._send()
        if self.socket.fileno() != -1 and not self.has_said_all:
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
