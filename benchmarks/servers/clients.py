"""Clients on one event loop, and their ledger: each request, when it was sent, when and by whom it was answered, or how
it failed.

In the open loop requests are sent at a fixed rate, whatever the server does: one that is silent does not get fewer. In
the closed loop each client asks again as soon as it has its answer, as fast as the processors allow. Half of the
requests come on a new connection each, half on kept ones. A kept connection that has been closed before the request is
sent costs nothing. One that dies afterwards is a retry: an HTTP library would ask again, once, as is done here, but not
for a POST. Lost is what has no answer in the end: what is under way when the load ends is waited for, for as long as
any request is.
"""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import Coroutine
from time import monotonic
from typing import Any, NamedTuple

KEPT = 10  # connections that are kept in the open loop, each used in turn
CLOSED = 8  # clients of each kind in the closed loop
AFTERWARDS = 1.0  # seconds over its timeout that the last request has
KINDS = ("refused", "reset", "EOF", "timeout", "5xx", "other", "cut off")  # the last: by us, before its time was over

_NEW = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
_KEEP = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CLOSE = re.compile(rb"\r\nconnection: *close", re.IGNORECASE)


class Record(NamedTuple):
    """One request. Times are of `time.monotonic`."""

    sent: float
    ended: float
    version: int  # 0 if it failed
    pid: int
    is_kept: bool
    failure: str  # one of KINDS, or nothing
    retried: bool


class ServerError(Exception):
    """An answer that is none."""


class Connection(asyncio.Protocol):
    """One connection, and HTTP as far as the application of the measurement speaks it."""

    def __init__(self) -> None:
        self.answers, self.is_open = 0, True
        self._buffer = b""
        self._answer: asyncio.Future[bytes] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, _, body = self._buffer.partition(b"\r\n\r\n")
        length = _LENGTH.search(head)
        if self._answer is None or self._answer.done() or length is None or len(body) < int(length[1]):
            return
        self._buffer = body[int(length[1]) :]
        self.is_open = self.is_open and head.startswith(b"HTTP/1.1") and _CLOSE.search(head) is None
        self.answers += 1
        if head.split(None, 2)[1] == b"200":
            self._answer.set_result(body[: int(length[1])])
        else:
            self._answer.set_exception(ServerError(head.split(b"\r\n")[0].decode(errors="replace")))

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_open = False
        if self._answer is not None and not self._answer.done():
            is_answer = b" 50" in self._buffer[:16]  # a server's own error page need not say how long it is
            self._answer.set_exception(ServerError() if is_answer else exc or EOFError())

    async def ask(self, request: bytes) -> bytes:
        if not self.is_open:
            raise EOFError
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._answer

    def close(self) -> None:
        self.is_open = False
        self._transport.abort()


class Load:
    """Clients that ask for as long as the `async with` block lasts."""

    def __init__(self, port: int, *, rate: float = 0.0, timeout: float = 15.0) -> None:
        """`rate`: of the open loop, requests a second of each kind; 0 is the closed loop. A request that has no answer
        after `timeout` seconds is lost."""
        self.records: list[Record] = []
        self.first_answer: dict[int, float] = {}  # by version
        self.last_answer: dict[int, float] = {}
        self._port, self._rate, self._timeout = port, rate, timeout
        self._idle: deque[Connection | None] = deque([None] * KEPT)
        self._tasks: set[asyncio.Task[None]] = set()
        self._clients: list[asyncio.Task[None]] = []
        self._is_over = False

    async def __aenter__(self) -> Load:
        run = self._pace if self._rate else self._race
        for keep in [False, True] * (1 if self._rate else CLOSED):
            self._clients.append(asyncio.create_task(run(keep)))
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Nothing more is asked; what is under way has its time, as all before. A second attempt may be cut off."""
        self._is_over = True
        if under_way := [*self._clients, *self._tasks]:
            await asyncio.wait(under_way, timeout=self._timeout + AFTERWARDS)
        for task in under_way:
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)
        for connection in self._idle:
            if connection is not None:
                connection.close()

    async def _pace(self, keep: bool) -> None:
        due = monotonic()
        while True:
            await asyncio.sleep(max(0.0, due - monotonic()))
            if self._is_over:
                return
            due += 1 / self._rate
            self._spawn(self._on_kept() if keep else self._record(None, keep=False))

    async def _race(self, keep: bool) -> None:
        connection = None
        try:
            while not self._is_over:
                connection = await self._record(connection, keep=keep)
                if self.records[-1].failure:
                    await asyncio.sleep(0.01)  # what fails at once would fail ten thousand times
        finally:
            if connection is not None:
                connection.close()

    async def _on_kept(self) -> None:
        connection = self._idle.popleft() if self._idle else None
        connection = await self._record(connection, keep=True)
        if len(self._idle) < KEPT:
            self._idle.append(connection)
        elif connection is not None:
            connection.close()

    def _spawn(self, asks: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.create_task(asks)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _record(self, connection: Connection | None, *, keep: bool) -> Connection | None:
        """One request, on `connection` if it is one that is still open; the connection, if it can be used again."""
        if connection is not None and not connection.is_open:
            connection.close()
            connection = None
        sent = monotonic()
        retried, body, failure = False, b"", ""
        is_used = connection is not None
        connection, body, failure = await self._ask(connection, keep)
        if is_used and failure in ("reset", "EOF"):
            retried = True
            connection, body, failure = await self._ask(None, keep)
        version, pid = map(int, body.split()) if body else (0, 0)
        ended = monotonic()
        self.records.append(Record(sent, ended, version, pid, keep, failure, retried))
        if not failure:
            self.first_answer.setdefault(version, ended)
            self.last_answer[version] = ended
        if connection is not None and (failure or not keep or not connection.is_open):
            connection.close()
            connection = None
        return connection

    async def _ask(self, connection: Connection | None, keep: bool) -> tuple[Connection | None, bytes, str]:
        made: list[Connection] = [] if connection is None else [connection]

        async def ask() -> bytes:
            if not made:
                loop = asyncio.get_running_loop()
                made.append((await loop.create_connection(Connection, "127.0.0.1", self._port))[1])
            return await made[0].ask(_KEEP if keep else _NEW)

        body, failure = b"", ""
        try:
            body = await asyncio.wait_for(ask(), self._timeout)
        except asyncio.TimeoutError:
            failure = "timeout"
        except asyncio.CancelledError:  # the load is over, and there is no answer
            failure = "cut off"
        except ConnectionRefusedError:
            failure = "refused"
        except (ConnectionResetError, BrokenPipeError):
            failure = "reset"
        except EOFError:
            failure = "EOF"
        except ServerError:
            failure = "5xx"
        except OSError:
            failure = "other"
        if failure:
            for each in made:
                each.close()
            return None, b"", failure
        return made[0], body, ""
