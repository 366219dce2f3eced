"""`worker_loop`: the context manager around a worker's loop; entering it says "ready"."""

from __future__ import annotations

import os
from time import monotonic

from . import role, state, systemd
from .options import Options
from .program import Running
from .sleeper import deadline_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from typing_extensions import Self

    from .aio import AsyncWorkerLoop, Watch
    from .role import Role
    from .rolling.beats import Pulse
    from .sleeper import File, Sleeper

__all__ = ["WorkerLoop", "worker_loop"]

_NEVER = float("inf")


def worker_loop(
    *,
    preflight: bool = True,
    ready_timeout: float = 60.0,
    grace: float = 30.0,
    control: bool | str | os.PathLike[str] = True,
    pidfile: str | os.PathLike[str] | None = None,
) -> WorkerLoop:
    """The context manager around a worker's loop.

    Entering it says that the program is ready. Inside `@restartable` that is all it needs. Without the decorator it
    makes the program restartable itself, with the same options, in the main thread: it handles HUP, TERM and INT while
    the block lasts, puts back what it found when the block ends or cannot be entered, and lets the program restart when
    it ends if that was asked for; a preflight then runs the new code up to this point, with all that happens before it.
    Once it has been asked to end, the program has `grace` seconds, also for what comes after the block.

    Any number of threads may each have a loop inside one program; `timeout` and `max_jobs` look at that of the main
    thread. Handlers in threads of their own rather read `state.should_stop`. Raises OptionError, and what
    `@restartable` raises.

    >>> import hotrestart
    >>> with hotrestart.worker_loop() as loop:
    ...     while loop.running:
    ...         woken = loop.sleep(0.001)
    ...         break
    """
    options = Options(preflight=preflight, ready_timeout=ready_timeout, grace=grace, control=control, pidfile=pidfile)
    around = Running(options, for_good=False)
    pulse = getattr(role.current, "pulse", None)
    if pulse is not None:
        return _BeatingLoop(around, pulse)
    return _WatchedLoop(around) if "WATCHDOG_USEC" in os.environ else _FirstTurn(around)


class WorkerLoop:
    """What `worker_loop()` gives: read `running` each turn, or iterate; sleep and wait only through it."""

    __slots__ = ("_around", "_in_async", "_nudges", "_program")

    _program: Role

    def __init__(self, around: Running) -> None:
        self._around = around
        self._nudges: Watch | None = None
        self._in_async: AsyncWorkerLoop | None = None

    def __enter__(self) -> Self:
        self._program = self._around.__enter__()
        try:
            self._be_woken_for_signals()
            self._program.ready()
        except BaseException as error:
            self.__exit__(type(error), error, error.__traceback__)
            raise
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        nudges, self._nudges = self._nudges, None
        try:
            if nudges is not None:
                nudges.close()
        finally:
            self._around.__exit__(kind, error, trace)

    @property
    def running(self) -> bool:
        """True until the program is asked to end, to restart or to stop. The job in hand can be finished."""
        return not state.should_stop

    def __iter__(self) -> Iterator[int]:
        """Turn after turn, counted from 0, as long as `running`: `for turn in loop: ...`"""
        turn = 0
        while not state.should_stop:
            yield turn
            turn += 1
            if turn == 1:
                self._program.prepare_to_end()

    def sleep(self, timeout: float | None = None) -> bool:
        """Sleep `timeout` seconds (None: until asked to end). True, at once, if the program is asked to end."""
        return self._sleeper().sleep(timeout)

    def wait(self, *files: File, timeout: float | None = None) -> list[File]:
        """Wait until one of `files` (sockets, connections, descriptors) is readable; the list of those that are.

        Empty, at once, if the program is asked to end, and when `timeout` seconds have passed. Wait here, then make
        the blocking call: a blocking call itself is not ended by a signal (PEP 475).
        """
        return self._sleeper().wait(*files, timeout=timeout)

    async def __aenter__(self) -> AsyncWorkerLoop:
        """As `__enter__`, with `await loop.stopping()`, `await loop.sleep(...)`: see `aio`. In one task at a time."""
        from .aio import AsyncWorkerLoop

        if self._in_async is not None:
            from .errors import HotRestartError

            raise HotRestartError("this loop is in use: each `async with` takes a worker_loop() of its own")
        entered = AsyncWorkerLoop(self)
        await entered.__aenter__()
        self._in_async = entered
        return entered

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        entered, self._in_async = self._in_async, None
        if entered is not None:
            await entered.__aexit__(kind, error, trace)

    def fileno(self) -> int:
        """A descriptor that is readable once the program is asked to end, for an event loop of your own.

        A signal that comes in the very moment in which the loop goes to sleep is noticed when it wakes. asyncio is
        woken for it, if it runs when the block is entered or this is called; trio wakes by itself; let any other wake
        now and then, or `wait` here.
        """
        sleeper = self._sleeper()
        self._be_woken_for_signals()
        return sleeper.fileno()

    def _be_woken_for_signals(self) -> None:
        if self._nudges is None and role.has_event_loop():
            try:
                from .aio import watch_nudges

                self._nudges = watch_nudges(self._program.sleeper)
            except Exception:  # an event loop that cannot watch, no descriptor left: it is no worse than any other loop
                return

    def _sleeper(self) -> Sleeper:
        try:
            self._program.prepare_to_end()
            return self._program.sleeper
        except AttributeError:
            from .errors import HotRestartError

            raise HotRestartError("enter the loop first: with hotrestart.worker_loop() as loop") from None


class _FirstTurn(WorkerLoop):
    """A loop that may never sleep. What an ending needs is loaded before its second turn: after the first job, and long
    before the files are another version's. It changes its class, so that no later turn has to ask for that."""

    __slots__ = ()

    @property
    def running(self) -> bool:
        """As ever."""
        object.__setattr__(self, "__class__", _SecondTurn)
        return not state.should_stop


class _SecondTurn(WorkerLoop):
    """See there."""

    __slots__ = ()

    @property
    def running(self) -> bool:
        """As ever."""
        object.__setattr__(self, "__class__", WorkerLoop)
        self._program.prepare_to_end()
        return not state.should_stop


class _BeatingLoop(WorkerLoop):
    """The loop of a worker under a supervisor, which sees whether it turns."""

    __slots__ = ("_pulse",)

    def __init__(self, around: Running, pulse: Pulse) -> None:
        super().__init__(around)
        self._pulse = pulse

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._pulse.rest()
        super().__exit__(kind, error, trace)

    @property
    def running(self) -> bool:
        """As ever; and a turn of the loop."""
        self._pulse.turn()
        return not state.should_stop

    def __iter__(self) -> Iterator[int]:
        for turn in super().__iter__():
            self._pulse.turn()
            yield turn

    def sleep(self, timeout: float | None = None) -> bool:
        """As ever; it may last."""
        self._pulse.rest()
        try:
            return super().sleep(timeout)
        finally:
            self._pulse.work()

    def wait(self, *files: File, timeout: float | None = None) -> list[File]:
        """As ever; it may last."""
        self._pulse.rest()
        try:
            return super().wait(*files, timeout=timeout)
        finally:
            self._pulse.work()


class _WatchedLoop(WorkerLoop):
    """The loop of a program in place of which systemd wants signs of life (`WatchdogSec=`): each turn is one, if it is
    due, and a sleep is interrupted for them. Only the main thread's loop counts: others go on while that one hangs."""

    __slots__ = ("_due", "_period")

    def __enter__(self) -> Self:
        from threading import current_thread, main_thread

        self._period = (systemd.watchdog() if current_thread() is main_thread() else None) or _NEVER
        self._due = monotonic() + self._period
        return super().__enter__()

    @property
    def running(self) -> bool:
        """As ever; and a sign of life."""
        self._live()
        return not state.should_stop

    def __iter__(self) -> Iterator[int]:
        for turn in super().__iter__():
            self._live()
            yield turn

    def sleep(self, timeout: float | None = None) -> bool:
        """As ever, with signs of life."""
        end = deadline_of(timeout)
        while True:
            self._live()
            now = monotonic()
            woken = super().sleep(_span(min(end, self._due) - now))
            if woken or end <= self._due:
                return woken

    def wait(self, *files: File, timeout: float | None = None) -> list[File]:
        """As ever, with signs of life."""
        end = deadline_of(timeout)
        while True:
            self._live()
            now = monotonic()
            found = super().wait(*files, timeout=_span(min(end, self._due) - now))
            if found or state.should_stop or end <= self._due:
                return found

    def _live(self) -> None:
        now = monotonic()
        if now >= self._due:
            self._program.prepare_to_end()
            self._due = now + self._period
            systemd.notify("WATCHDOG=1")


def _span(seconds: float) -> float | None:
    return None if seconds == _NEVER else max(0.0, seconds)
