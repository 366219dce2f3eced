"""`async with worker_loop()`: the same loop for asyncio, and for any event loop with asyncio's interface, as uvloop.

    async with hotrestart.worker_loop() as loop:       # entering it says "ready"
        await loop.stopping()                          # until the program is asked to end

There is no task, no thread and no timer of ours in the event loop: it watches a descriptor. A second one is there for
signals that the kernel hands to another thread: the event loop would sleep on, and Python runs handlers only in the
main thread. With a watchdog of systemd's, or with `timeout=` in a worker, the event loop gives a sign of life now and
then: so one that is blocked by a coroutine that does not await is seen.

For trio and others: wait until `loop.fileno()` is readable (`trio.lowlevel.wait_readable`, `anyio.wait_readable`).
"""

from __future__ import annotations

import asyncio
import os

from . import role, state, systemd

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from typing_extensions import Self

    from .loop import WorkerLoop

__all__ = ["AsyncWorkerLoop"]


class AsyncWorkerLoop:
    """What `async with worker_loop()` gives. Use it in the event loop in which it was entered."""

    def __init__(self, loop: WorkerLoop) -> None:
        self._loop = loop
        self._fds: list[int] = []
        self._sign_of_life: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> Self:
        self._events = asyncio.get_running_loop()
        self._asked: asyncio.Future[None] = self._events.create_future()
        self._loop.__enter__()
        try:
            self._watch(self._loop.fileno(), self._on_asked)
            sleeper = getattr(role.current, "sleeper", None)
            if sleeper is not None and sleeper.nudge_fileno() != -1:
                self._watch(sleeper.nudge_fileno(), lambda: os.read(sleeper.nudge_fileno(), 65536))
            self._live()
        except BaseException as error:
            self._forget()
            self._loop.__exit__(type(error), error, None)
            raise
        return self

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._forget()
        self._loop.__exit__(kind, error, trace)

    @property
    def running(self) -> bool:
        """True until the program is asked to end, to restart or to stop. The job in hand can be finished."""
        return not state.should_stop

    async def __aiter__(self) -> AsyncIterator[int]:
        """Turn after turn, counted from 0, as long as `running`: `async for turn in loop: ...`. Other tasks get their
        turn in between."""
        turn = 0
        while not state.should_stop:
            yield turn
            turn += 1
            await asyncio.sleep(0)

    async def sleep(self, timeout: float | None = None) -> bool:
        """Sleep `timeout` seconds (None: until asked to end). True, at once, if the program is asked to end."""
        if not self._asked.done():
            await asyncio.wait([self._asked], timeout=timeout)
        return self._asked.done()

    async def stopping(self) -> None:
        """Wait until the program is asked to end, to restart or to stop."""
        await self.sleep()

    def fileno(self) -> int:
        """A descriptor that is readable once the program is asked to end."""
        return self._loop.fileno()

    def _watch(self, fd: int, seen: Callable[[], object]) -> None:
        own = os.dup(fd)  # an event loop has one callback for each number, and others watch it too
        self._fds.append(own)
        self._events.add_reader(own, seen)

    def _forget(self) -> None:
        while self._fds:
            fd = self._fds.pop()
            self._events.remove_reader(fd)
            os.close(fd)
        if self._sign_of_life is not None:
            self._sign_of_life.cancel()

    def _on_asked(self) -> None:
        if state.should_stop and not self._asked.done():
            self._asked.set_result(None)
            self._events.remove_reader(self._fds[0])  # it stays readable

    def _live(self) -> None:
        """Of a worker the supervisor sees the beats; of a program in place systemd wants to hear."""
        pulse = getattr(role.current, "pulse", None)
        if pulse is not None:
            pulse.beat()
            period = pulse.period
        else:
            period = systemd.watchdog()
            if period is not None:
                systemd.notify("WATCHDOG=1")
        if period is not None:
            self._sign_of_life = self._events.call_later(period, self._live)
