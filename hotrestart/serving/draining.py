"""`DrainingListener`: a listener for asyncio servers of others, which lets them end without a loss.

uvicorn, hypercorn, aiohttp end by closing the listener and each connection that has nothing in hand as far as they
know. That drops who was accepted in the same turn of the event loop, and whose request is on its way or lies unread.
From outside, a server's accepting cannot be stopped before its end, and its connections are not known. But whatever
`loop.create_server(sock=...)` does goes through the socket it is given, and those which that accepts: these here.
"""

from __future__ import annotations

import socket
from time import monotonic

from .. import role, state
from ..errors import OptionError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from asyncio import AbstractEventLoop, Event, Task
    from typing import Any

    from typing_extensions import Self

__all__ = ["DrainingListener"]

_PATIENCE = 1.0  # seconds for a client to take its answer and go


class DrainingListener(socket.socket):
    """A duplicate of `listener` for a server that is given a socket, in the place of the listener.

    Once the program is asked to end, it accepts nothing more; neither its backlog nor the listener changes. `await
    drain()` then, before the server is told to end. From then on, a connection that the server closes is half-closed
    and read to its end, for a second at most, so that no reset overtakes the answer; leaving the block waits for that.
    Each connection is a turn of the worker's loop. Answers have to say `Connection: close` in the meantime: for ASGI
    see `LastAnswer`. For asyncio's own event loops; uvloop accepts without asking the socket: OptionError.

    >>> import asyncio, hotrestart
    >>> from hotrestart import serving
    >>> async def main():
    ...     async with serving.DrainingListener(hotrestart.listen("127.0.0.1:8000")) as listener:
    ...         server = await asyncio.start_server(handle, sock=listener)
    ...         async with hotrestart.worker_loop() as loop:
    ...             await loop.stopping()
    ...             await listener.drain()
    ...         server.close()
    """

    def __init__(self, listener: socket.socket) -> None:
        super().__init__(listener.family, listener.type, listener.proto, listener.dup().detach())
        self.setblocking(False)
        self._open = 0
        self._parting: set[Task[None]] = set()
        self._all_closed: Event | None = None
        self._events: AbstractEventLoop | None = None

    async def __aenter__(self) -> Self:
        import asyncio
        from asyncio.selector_events import BaseSelectorEventLoop

        events = asyncio.get_running_loop()
        if not isinstance(events, BaseSelectorEventLoop):
            self.close()
            raise OptionError(f"DrainingListener works with asyncio's event loops; {events!r} accepts by itself")
        self._events = events
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Wait for those who are taking their last answers, and close the duplicate."""
        import asyncio

        await asyncio.sleep(0)  # transports close their sockets a turn later
        while self._parting:
            await asyncio.wait(self._parting)
        self._events = None
        self.close()

    async def drain(self, linger: float = 1.0) -> None:
        """Accept nothing more, and give every connection `linger` seconds to get its last answer and be closed.

        Returns as soon as none is open. What is open then is idle, or works on something longer: the server's affair.
        """
        import asyncio

        asyncio.get_running_loop().remove_reader(self)
        self._all_closed = asyncio.Event()
        if self._open:
            try:
                await asyncio.wait_for(self._all_closed.wait(), linger)
            except asyncio.TimeoutError:
                pass

    def accept(self) -> tuple[socket.socket, Any]:
        """As ever, until the program is asked to end; then as if there were nobody."""
        if state.should_stop:
            raise BlockingIOError
        accepted, address = super().accept()
        connection = _Connection(accepted.family, accepted.type, accepted.proto, accepted.detach())
        connection.came_by = self
        self._open += 1
        pulse = getattr(role.current, "pulse", None)
        if pulse is not None:
            pulse.turn()
        return connection, address

    def bind(self, address: object, /) -> None:
        """It is bound."""

    def listen(self, backlog: int = 0, /) -> None:
        """It listens, and the backlog is everybody's."""

    def _left(self) -> None:
        self._open -= 1
        if self._open == 0 and self._all_closed is not None:
            self._all_closed.set()

    def _part(self, connection: socket.socket) -> None:
        """Close a connection, in good order if the program is to end."""
        if self._events is None or not self._events.is_running() or not state.should_stop:
            connection.close()
            return
        task = self._events.create_task(_part(self._events, connection))
        self._parting.add(task)
        task.add_done_callback(self._parting.discard)


class _Connection(socket.socket):
    came_by: DrainingListener | None = None

    def close(self) -> None:
        if self.came_by is None:
            super().close()
        else:
            came_by, self.came_by = self.came_by, None
            came_by._left()
            if state.should_stop:
                came_by._part(socket.socket(self.family, self.type, self.proto, self.detach()))
            super().close()

    def detach(self) -> int:
        if self.came_by is not None:
            self.came_by._left()
            self.came_by = None
        return super().detach()


async def _part(events: AbstractEventLoop, connection: socket.socket) -> None:
    import asyncio

    deadline = monotonic() + _PATIENCE
    connection.setblocking(False)  # it is, but this object is new and says that it is not
    try:
        connection.shutdown(socket.SHUT_WR)
        while await asyncio.wait_for(events.sock_recv(connection, 65536), deadline - monotonic()):
            pass
    except (OSError, asyncio.TimeoutError):
        pass  # it is late, or has gone: its own affair
    finally:
        connection.close()
