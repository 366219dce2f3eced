"""`serve_streams`: a server of asyncio streams that stops accepting first.

`asyncio.Server` is not used. In `close()` it drops what it has accepted in the same turn of the event loop, on 3.13 it
removes the path of a listener that the next generation serves, and it cannot just stop accepting. Here each connection
is taken by one callback and is a task at once, and there is nothing in between that could be lost.
"""

from __future__ import annotations

import os

from .accepting import PAUSE, accept_from, is_short, rest

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from asyncio import Future, StreamReader, StreamWriter, Task
    from collections.abc import Awaitable, Callable
    from ssl import SSLContext

    from ..aio import AsyncWorkerLoop
    from ..loop import WorkerLoop

    Handle = Callable[[StreamReader, StreamWriter], Awaitable[object]]

__all__ = ["serve_streams"]

_PATIENCE = 1.0  # seconds for a client to take its answer and go


async def serve_streams(
    handle: Handle,
    listener: socket.socket,
    loop: WorkerLoop | AsyncWorkerLoop,
    *,
    limit: int = 65536,
    ssl: SSLContext | None = None,
) -> None:
    """Run `handle(reader, writer)` for each connection, as `asyncio.start_server` does, until asked to end.

    Then it accepts nothing more, at once, and returns when every handler has. A connection that its handler leaves open
    is half-closed, read to its end for a second at most, and closed, so that no reset overtakes the answer; errors go
    to the event loop's exception handler. A handler that waits for its client waits on: one that keeps connections
    looks at `state.should_stop` between requests. `limit` (bytes) and `ssl` are `start_server`'s. For event loops that
    have `add_reader`; any number at the same time. Cancelled, it stops accepting. Raises OSError as `accept`.

    >>> import hotrestart
    >>> from hotrestart import serving
    >>> async def greet(reader, writer):
    ...     writer.write(b"hello " + await reader.readline())
    >>> async def main():
    ...     listener = hotrestart.listen("127.0.0.1:8000")
    ...     with hotrestart.worker_loop() as loop:
    ...         await serving.serve_streams(greet, listener, loop)
    """
    server = _Server(handle, listener, limit, ssl)
    await server.accept_until_asked_to_end(loop)
    await server.finish()


class _Server:
    def __init__(self, handle: Handle, listener: socket.socket, limit: int, ssl: SSLContext | None) -> None:
        import asyncio

        self._handle, self._listener, self._limit, self._ssl = handle, listener, limit, ssl
        self._events = asyncio.get_running_loop()
        self._ending: Future[None] = self._events.create_future()
        self._serving: set[Task[None]] = set()
        self._turn: Callable[[], object]

    async def accept_until_asked_to_end(self, loop: WorkerLoop | AsyncWorkerLoop) -> None:
        # An event loop that gives signs of life itself is to be seen when it does not.
        self._turn = (lambda: loop.running) if hasattr(loop, "stopping") else (lambda: rest(turns=1))
        self._listener.setblocking(False)
        asked_to_end = os.dup(loop.fileno())  # an event loop has one callback for each number, and others watch it too
        try:
            self._events.add_reader(asked_to_end, self._end)
            self._begin()
            await self._ending
        finally:
            self._events.remove_reader(asked_to_end)
            self._events.remove_reader(self._listener)
            os.close(asked_to_end)

    async def finish(self) -> None:
        import asyncio

        while self._serving:
            await asyncio.wait(self._serving)

    def _begin(self) -> None:
        if not self._ending.done():
            self._events.add_reader(self._listener, self._accept_next)

    def _end(self) -> None:
        if not self._ending.done():
            self._ending.set_result(None)

    def _accept_next(self) -> None:
        try:
            connection = accept_from(self._listener)[0]
        except OSError as error:
            self._look_into(error)
            return
        self._turn()
        task = self._events.create_task(self._serve(connection))
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)

    def _look_into(self, error: OSError) -> None:
        try:
            if is_short(error):
                self._events.remove_reader(self._listener)
                self._events.call_later(PAUSE, self._begin)
        except OSError:
            self._ending.set_exception(error)

    async def _serve(self, connection: socket.socket) -> None:
        import asyncio

        writers: list[StreamWriter] = []
        reader = asyncio.StreamReader(limit=self._limit)
        protocol = asyncio.StreamReaderProtocol(reader, lambda _, writer: writers.append(writer))
        try:
            await self._events.connect_accepted_socket(lambda: protocol, connection, ssl=self._ssl)
        except OSError:  # the client has gone, or does not speak TLS
            connection.close()
            return
        try:
            await self._handle(reader, writers[0])
        except Exception as error:
            what = f"{self._handle!r} has failed: {error!r}"
            self._events.call_exception_handler({"message": what, "exception": error})
        finally:
            await _part(reader, writers[0])


async def _part(reader: StreamReader, writer: StreamWriter) -> None:
    """Close a connection when all that was written is sent."""
    import asyncio

    async def read_to_the_end() -> None:
        while await reader.read(65536):
            pass

    try:
        if not writer.is_closing() and writer.can_write_eof():
            writer.write_eof()
            await asyncio.wait_for(read_to_the_end(), _PATIENCE)
    except (OSError, asyncio.TimeoutError):
        pass  # it is late, or has gone: its own affair
    finally:
        writer.close()
    try:
        await writer.wait_closed()
    except OSError:
        pass  # gone before it had everything
