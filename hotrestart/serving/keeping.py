"""`KeepAlive`: kept HTTP connections while a program drains.

A kept connection can be closed without loss only where the client knows: the answer before has said so. A server that
just closes it may meet the next request on its way, and the client cannot know whether it was carried out. And a close
with unread input resets the connection, which may take the answer along.
"""

from __future__ import annotations

import socket
from time import monotonic

from .. import role, state
from ..errors import OptionError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from http.server import BaseHTTPRequestHandler
    from typing import Any
else:
    BaseHTTPRequestHandler = object

__all__ = ["KeepAlive"]

_PATIENCE = 1.0  # seconds for a client to take its answer and go


class KeepAlive(BaseHTTPRequestHandler):
    """A mixin for `BaseHTTPRequestHandler`, to its left: no kept connection is closed on a request.

    Once the program is asked to end, the next answer on each connection says `Connection: close`, and a connection that
    has been idle for `linger` seconds is closed: a client that asks again within that time loses nothing. The timeout
    of the connection counts between requests, as ever. If more input may come after the last answer, the connection is
    half-closed and read to its end, for a second at most, so that no reset overtakes the answer.

    With `serve` or without, each connection in a thread of its own. A forked child (`ForkingMixIn`) is not told of the
    ending: give it a `timeout`. An answer that bypasses `send_response` is covered by `linger` alone. Raises
    OptionError, where the class is made, if the mixin is not to the left.

    >>> import http.server
    >>> from hotrestart import serving
    >>> class Handler(serving.KeepAlive, http.server.BaseHTTPRequestHandler):
    ...     protocol_version = "HTTP/1.1"
    ...     linger = 5.0
    """

    linger: float = 1.0
    """Seconds. As long may the drain of a process last whose clients are idle."""

    _has_said_close = False
    _is_idle = False

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        order = [each.__name__ for each in cls.__mro__]
        if "BaseHTTPRequestHandler" in order[: order.index("KeepAlive")]:
            raise OptionError(f"class {cls.__name__}: KeepAlive goes to the left of {cls.__bases__[0].__name__}")

    def handle(self) -> None:
        """Handle the connection, if anything comes on it."""
        if self._comes():
            super().handle()

    def handle_one_request(self) -> None:
        """Wait for a request, and handle it."""
        if self._comes():
            super().handle_one_request()
        else:
            self.close_connection = self._is_idle = True

    def send_response_only(self, code: int, message: str | None = None) -> None:
        """Begin the answer, with `Connection: close` if the program is to end and the client does not expect that."""
        super().send_response_only(code, message)
        if state.should_stop and code >= 200 and not self.close_connection:
            self.send_header("Connection", "close")
            self._has_said_close = True

    def send_header(self, keyword: str, value: str) -> None:
        """As ever, but what has been said about the connection is not taken back."""
        if not (self._has_said_close and keyword.lower() == "connection"):
            super().send_header(keyword, value)

    def finish(self) -> None:
        """Part with the client."""
        super().finish()
        headers = getattr(self, "headers", ())
        more_may_come = self._has_said_close or "Content-Length" in headers or "Transfer-Encoding" in headers
        if more_may_come and not self._is_idle:
            _part(self.connection)

    def _comes(self) -> bool:
        """Wait for input, or the end of it. False if there is none in time."""
        from select import POLLIN, poll

        since = monotonic()
        if self._has_read_ahead():
            return True
        if not state.should_stop:
            both = poll()
            both.register(self.connection, POLLIN)
            if role.current is not None:
                both.register(role.current.sleeper, POLLIN)
            timeout = self.connection.gettimeout()
            ready = dict(both.poll(None if timeout is None else timeout * 1000))
            if self.connection.fileno() in ready or not state.should_stop:
                return bool(ready)
        alone = poll()
        alone.register(self.connection, POLLIN)
        return bool(alone.poll(max(0.0, since + self.linger - monotonic()) * 1000))

    def _has_read_ahead(self) -> bool:
        """Whether some of the next request is here already, so that the socket need not become readable."""
        timeout = self.connection.gettimeout()
        self.connection.setblocking(False)
        try:
            return bool(self.rfile.peek())  # type: ignore[attr-defined]
        except (AttributeError, OSError):  # rbufsize = 0; nothing there yet, with TLS; an error that reading will find
            return False
        finally:
            self.connection.settimeout(timeout)


def _part(connection: socket.socket) -> None:
    deadline = monotonic() + _PATIENCE
    try:
        connection.shutdown(socket.SHUT_WR)
        while (left := deadline - monotonic()) > 0:
            connection.settimeout(left)
            if not connection.recv(65536):
                break
    except OSError:
        pass  # it is late, or has gone: its own affair
