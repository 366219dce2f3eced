"""Accepting from a listener that others share, until asked to end: by hand, and for the servers of `socketserver`.

Two processes wake for one connection, and one of them finds nothing there: nobody may block in `accept`. When
descriptors are short the listener stays readable, and a loop would spin. The listener is never shut down, and a server
neither binds it nor changes its backlog: others serve from it.
"""

from __future__ import annotations

import errno
import socket

from .. import log, role, state
from ..errors import OptionError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from socketserver import TCPServer
    from typing import Any

    from ..loop import WorkerLoop

__all__ = ["PAUSE", "accept", "accept_from", "is_short", "rest", "serve"]

PAUSE = 1.0
"""Seconds until the next try, when descriptors or memory are short."""

_BROKEN = {errno.EBADF, errno.EINVAL, errno.ENOTSOCK, errno.EOPNOTSUPP}
_SHORT = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}


def accept(listener: socket.socket, loop: WorkerLoop) -> Iterator[tuple[socket.socket, Any]]:
    """The connections that come to `listener`, as (connection, address), until the program is asked to end.

    Waits in the loop; each connection is a turn of it. Asked to end it accepts nothing more, at once: who waits in the
    queue is served by others, or by the next generation. What it has accepted it has handed out. A connection is
    blocking, close-on-exec, and the caller's to close. Threads and processes may take turns at one listener (a thread
    needs an iterator of its own), which is made non-blocking, and stays open. When descriptors are short the log says
    so, and it tries again each second. Raises OSError for what is no open listener.

    >>> import hotrestart
    >>> from hotrestart import serving
    >>> def main():
    ...     listener = hotrestart.listen("127.0.0.1:8000")
    ...     with hotrestart.worker_loop() as loop:
    ...         for connection, address in serving.accept(listener, loop):
    ...             with connection:
    ...                 connection.sendall(b"hello")
    """
    listener.setblocking(False)
    while loop.running:
        accepted = None
        while accepted is None:
            if loop.wait(listener):
                try:
                    accepted = accept_from(listener)
                except OSError as error:
                    if is_short(error):
                        loop.sleep(PAUSE)
            elif state.should_stop:
                return
        yield accepted


def serve(server: TCPServer, listener: socket.socket, loop: WorkerLoop) -> None:
    """Run a server of `socketserver`, `http.server` or `wsgiref` on `listener` until the program is asked to end.

    In the place of `serve_forever`; each of several servers in a thread of its own. Make the server with
    `bind_and_activate=False`: it gets a duplicate of `listener`, whose address and backlog stay. Each request is a turn
    of the loop. Asked to end it takes nothing more, waits for every handler (in threads, daemons or not, and in forked
    children), and closes the server. A handler that waits for its client waits on: let it look at `state.should_stop`;
    for HTTP `KeepAlive` does. Raises OptionError if one is for datagrams and the other is not, and OSError as `accept`.

    >>> import hotrestart, http.server
    >>> from hotrestart import serving
    >>> class Handler(serving.KeepAlive, http.server.SimpleHTTPRequestHandler):
    ...     protocol_version = "HTTP/1.1"
    >>> def main():
    ...     server = http.server.ThreadingHTTPServer(("127.0.0.1", 8000), Handler, bind_and_activate=False)
    ...     listener = hotrestart.listen("127.0.0.1:8000")
    ...     with hotrestart.worker_loop() as loop:
    ...         serving.serve(server, listener, loop)
    """
    bound = _adopt(server, listener)
    try:
        while loop.running:
            if loop.wait(bound, timeout=server.timeout):
                try:
                    _serve_next(server)
                except OSError as error:
                    if is_short(error):
                        loop.sleep(PAUSE)
            elif not state.should_stop:
                server.handle_timeout()
            server.service_actions()
    except BaseException:
        state.end("stop")  # handlers that keep connections have to know that nothing more is coming
        if role.current is not None:
            role.current.sleeper.wake(for_good=True)
        raise
    finally:
        rest()
        try:
            if bound.type == socket.SOCK_DGRAM:  # handlers answer through it, and are waited for after it is closed
                server.socket = bound.dup()
            server.server_close()
        finally:
            bound.close()


class _Bound(socket.socket):
    """Bound and listening: what else a server wants for its address and backlog changes nothing."""

    def bind(self, address: object, /) -> None: ...

    def listen(self, backlog: int = 0, /) -> None: ...


def _adopt(server: TCPServer, listener: socket.socket) -> socket.socket:
    if listener.type != server.socket.type:
        raise OptionError(f"serve(): {type(server).__name__} takes {server.socket.type!r}, but {listener!r} is another")
    server.socket.close()
    server.socket = _Bound(listener.family, listener.type, listener.proto, listener.dup().detach())
    server.socket.setblocking(False)
    vars(server).update(daemon_threads=False, block_on_close=True)  # of the mixins: then the end waits for handlers
    server.server_bind()  # which sets what handlers want to know of the address
    server.server_activate()
    return server.socket


def _serve_next(server: TCPServer) -> None:
    request, address = server.get_request()
    if isinstance(request, socket.socket) and request.gettimeout() is None:
        request.setblocking(True)  # BSD: the flag comes from the listener
    try:
        if server.verify_request(request, address):
            server.process_request(request, address)
            return
    except Exception:
        server.handle_error(request, address)
    server.shutdown_request(request)


def accept_from(listener: socket.socket) -> tuple[socket.socket, Any]:
    """Who is first in the queue; BlockingIOError if there is nobody after all."""
    connection, address = listener.accept()
    connection.setblocking(True)  # BSD: the flag comes from the listener
    return connection, address


def is_short(error: OSError) -> bool:
    """Whether to try again later. Not, if there was nobody after all; raises what will not pass."""
    if error.errno in _BROKEN:
        raise error
    if error.errno in _SHORT:
        log.warning(f"accepting no connections for a moment: {error}")
    return error.errno in _SHORT


def rest(*, turns: int = 0) -> None:
    """Tell the supervisor, if there is one, that waiting is not hanging."""
    pulse = getattr(role.current, "pulse", None)
    if pulse is not None:
        for _ in range(turns):
            pulse.turn()
        pulse.rest()
