"""`async with worker_loop()`: the same loop for asyncio, and for any event loop with asyncio's interface, as uvloop.

    async with hotrestart.worker_loop() as loop:       # entering it says "ready"
        await loop.stopping()                          # until the program is asked to end

There is no task, no thread and no timer of ours in the event loop: it watches a descriptor. In the main thread it
watches a second one, also if a plain `with worker_loop()` is entered in it: for signals that the kernel hands to
another thread, and for those that come when Python has looked for signals for the last time before the event loop
sleeps. It would sleep on, and Python runs handlers only in the main thread. (Another thread must not read there: it
would take the byte away from the main thread's sleep.) With a watchdog of systemd's, or with `timeout=` in a worker,
the event loop gives a sign of life now and then: so one that is blocked by a coroutine that does not await is seen.

A handler that the program gives to the event loop itself (`add_signal_handler`) counts: for HUP, TERM or INT it takes
the place of ours while the block lasts, and may call `request_restart()` or `request_stop()`. For trio and others: wait
until `loop.fileno()` is readable (`trio.lowlevel.wait_readable`, `anyio.wait_readable`).
"""

from __future__ import annotations

import asyncio
import os
from _thread import get_ident

from . import role, state, systemd

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from typing_extensions import Self

    from .loop import WorkerLoop
    from .sleeper import Sleeper

__all__ = ["AsyncWorkerLoop"]


class Watch:
    """An event loop watches a descriptor. It has one callback for each number, and others may watch it too: so under a
    number of its own."""

    def __init__(self, events: asyncio.AbstractEventLoop, fd: int, seen: Callable[[int], object]) -> None:
        from .fds import above_stdio

        self._events, self._fd, self._pid = events, above_stdio(os.dup(fd)), os.getpid()
        try:
            events.add_reader(self._fd, seen, self._fd)
        except BaseException:
            os.close(self._fd)
            raise

    def close(self) -> None:
        """Watch it no more."""
        # It is closed when the garbage collector leaves the block; and a forked child shares its parent's epoll.
        if not self._events.is_closed() and os.getpid() == self._pid:
            self._events.remove_reader(self._fd)
        os.close(self._fd)


def watch_nudges(sleeper: Sleeper) -> Watch | None:
    """Have the event loop that runs here wake up for signals; None if they are not this thread's."""
    if sleeper.owner != get_ident() or sleeper.nudge_fileno() == -1:
        return None
    return Watch(asyncio.get_running_loop(), sleeper.nudge_fileno(), _read_empty)


def _read_empty(fd: int) -> None:
    try:
        os.read(fd, 65536)
    except BlockingIOError:
        pass  # another loop's callback was first


class AsyncWorkerLoop:
    """What `async with worker_loop()` gives. Use it in the event loop in which it was entered, as long as the block
    lasts; any number of tasks may. Several may be entered at the same time."""

    def __init__(self, loop: WorkerLoop) -> None:
        self._loop = loop
        self._watch: Watch | None = None
        self._sign_of_life: asyncio.TimerHandle | None = None
        self._has_ended = False

    async def __aenter__(self) -> Self:
        self._events = asyncio.get_running_loop()
        self._asked: asyncio.Future[None] = self._events.create_future()
        self._loop.__enter__()
        try:
            self._watch = Watch(self._events, self._loop.fileno(), self._on_asked)
            sleeper = getattr(role.current, "sleeper", None)
            if sleeper is not None and sleeper.owner == get_ident():
                self._live()
        except BaseException as error:
            self._leave(type(error), error, None)
            raise
        return self

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._leave(kind, error, trace)

    @property
    def running(self) -> bool:
        """True until the program is asked to end, to restart or to stop. The job in hand can be finished."""
        return self._loop.running

    async def __aiter__(self) -> AsyncIterator[int]:
        """Turn after turn, counted from 0, as long as `running`: `async for turn in loop: ...`. Other tasks get their
        turn in between."""
        for turn in self._loop:
            yield turn
            await asyncio.sleep(0)

    async def sleep(self, timeout: float | None = None) -> bool:
        """Sleep `timeout` seconds (None: until asked to end). True, at once, if the program is asked to end.

        Raises ValueError for a timeout below 0, and HotRestartError if the block ends meanwhile, or has ended.
        """
        if timeout is not None and not timeout >= 0:  # catches NaN
            raise ValueError(f"a sleep takes a timeout of 0 seconds or more, or None, not {timeout!r}")
        if not state.should_stop:
            await asyncio.wait([self._asked], timeout=timeout)
        if self._has_ended and not state.should_stop:
            from .errors import HotRestartError

            raise HotRestartError("the block of this loop has ended, and it wakes nobody any more: sleep inside")
        return state.should_stop

    async def stopping(self) -> None:
        """Wait until the program is asked to end, to restart or to stop."""
        await self.sleep()

    def fileno(self) -> int:
        """A descriptor that is readable once the program is asked to end."""
        return self._loop.fileno()

    def _leave(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._has_ended = True
        try:
            if self._sign_of_life is not None:
                self._sign_of_life.cancel()
            if self._watch is not None:
                self._watch.close()
            self._let_go()
        finally:
            self._loop.__exit__(kind, error, trace)

    def _on_asked(self, fd: int) -> None:
        self._events.remove_reader(fd)  # it stays readable
        if state.should_stop:
            self._let_go()

    def _let_go(self) -> None:
        """End every sleep."""
        if not self._asked.done() and not self._events.is_closed():
            self._asked.set_result(None)

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
