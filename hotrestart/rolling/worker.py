"""A worker: a process that runs the user's `main()` under a supervisor, and ends after it.

It never goes back to whoever has called `main()`: the frames below are those of the fork server, whose `finally`
clauses and exit handlers are not a worker's. TERM asks it to drain, as often as it comes; the supervisor's death is a
TERM too (`leash`). How long it may take is the supervisor's business, but for one that is not ready yet: see `boot`.
"""

from __future__ import annotations

import os
import signal
import sys
from _thread import allocate_lock, start_new_thread

from .. import exits, role, signals, state, takeover
from ..errors import HotRestartError, LifelineError
from ..leash import leash
from ..shrugging import shrugging
from ..sleeper import Sleeper
from . import asking
from .beats import Pulse
from .boot import Boot

TYPE_CHECKING = False
if TYPE_CHECKING:
    import asyncio
    from collections.abc import Awaitable, Callable, Coroutine
    from typing import Any, NoReturn

    from ..options import Options
    from .lifeline import Lifeline
    from .ties import Ties

__all__ = ["Worker"]

_LONGEST_DETAIL = 16 * 1024  # characters of a traceback: a message goes with one system call


class Worker:
    """The role of this process from the fork to its end. Made in the main thread."""

    has_heir = False

    def __init__(self, lifeline: Lifeline, ties: Ties, place: int, options: Options, stderr: int = -1) -> None:
        """`stderr`: what standard error is to be once this worker serves, or -1."""
        self.sleeper: Sleeper = Sleeper()
        retire = lambda: self._tell("retire", why="max_jobs")  # noqa: E731
        self.pulse: Pulse = Pulse(ties.beats, place, _with_jitter(options), retire, timeout=options.timeout)
        self._lifeline, self._ties, self._stderr = lifeline, ties, stderr
        self._pid, self._is_forked = os.getpid(), options.preload
        self._is_ready = self._is_draining = False
        self._boot = Boot(self._end)
        self._calls = allocate_lock()
        # As a "restart" signal, for a second TERM must not cut the drain short: the fork server and the kernel may
        # both send one when the supervisor dies.
        self._handling = signals.handling(
            self.sleeper, restart=(signal.SIGTERM,), stop=(), on_restart=self._asked_to_end
        )

    def enter(self) -> None:
        """Take TERM, and watch over the supervisor."""
        shrugging().__enter__()
        self._handling.__enter__()
        role.current, takeover.membership = self, None
        asking.begin(self._lifeline)
        leash(self._ties.tether)

    def drain(self) -> None:
        """Let the main loop end. In any thread and in a signal handler."""
        state.end("stop")
        self.sleeper.wake(for_good=True)
        if not self._is_draining:
            self._is_draining = True
            self._calls.acquire()
            try:
                start_new_thread(self._call_back, ())
            except RuntimeError:  # none is to be had, and a job may be in hand, which this must not interrupt
                self._calls.release()

    def run(self, main: Callable[[], object]) -> NoReturn:
        """Call `main()` and end this process, with the status it has earned."""
        error = None
        try:
            with self._boot:
                main()
        except BaseException as raised:
            error = raised
        self._end(error)

    def run_coroutine(self, main: Callable[[], Awaitable[object]]) -> Coroutine[Any, Any, None]:
        """Await `main()` and end this process as `asyncio.run` would; for any loop that runs coroutines."""
        coroutine = self._boot.coroutine = self._run_coroutine(main)
        return coroutine

    async def _run_coroutine(self, main: Callable[[], Awaitable[object]]) -> None:
        error = None
        self._boot.task = _asyncio_task()
        try:
            with self._boot:
                if self._is_forked and self._boot.task is not None:
                    _check_event_loop(self._boot.task.get_loop())
                await main()
        except BaseException as raised:
            error = raised
        try:
            await _wind_up_asyncio()
        finally:
            self._end(error)

    def ready(self) -> None:
        """Tell the supervisor; what is printed goes straight to standard error from now on."""
        if self._is_ready:
            return
        self._is_ready = True
        self._boot.is_on = False
        if takeover.is_relayed():
            os.dup2(self._stderr, 2)
        self._tell("ready")

    def request_restart(self) -> None:
        """Ask the supervisor for a restart of the program."""
        self._tell("restart")

    def request_stop(self) -> None:
        """Ask the supervisor to stop the program."""
        self._tell("stop")

    def prepare_to_end(self) -> None:
        """Nothing needs to be loaded: what lies on the disk is not a worker's concern."""

    def hand_over(self) -> tuple[dict[str, Any], set[int]]:
        """A worker has no heir."""
        return {}, set()

    def resume(self) -> None:
        """Nothing has been handed over."""

    def abandon(self) -> None:
        """Nothing of the program's is a worker's to tidy up."""

    def _asked_to_end(self) -> None:
        self.drain()
        self._boot.ask()

    def _tell(self, kind: str, **fields: Any) -> None:
        if self._has_been_left():
            return
        try:
            self._lifeline.send(kind, **fields)
        except LifelineError:
            self.drain()  # nobody there any more

    def _has_been_left(self) -> bool:
        """Whether this is a child that the program has forked: it speaks for nobody."""
        return os.getpid() != self._pid

    def _judge(self, error: BaseException | None) -> int:
        """The exit status for how `main()` has ended; what it has raised is shown. If nobody has asked it to end, the
        supervisor is told: threads may go on for a while, but this is no worker any more."""
        status, reason, detail = 0, "main() has returned", ""
        if isinstance(error, SystemExit):
            status = exits.status_of(error)
            reason = f"main() has ended by sys.exit({error.code!r})"
        elif error is not None and not self._boot.has_caused(error):
            from traceback import format_exception

            lines = format_exception(type(error), error, error.__traceback__)
            try:
                if sys.excepthook is sys.__excepthook__ and sys.stderr is not None:
                    sys.stderr.write("".join(lines))  # in one piece: the other workers may fail at the same moment
                else:
                    sys.excepthook(type(error), error, error.__traceback__)
            except Exception:
                pass  # there is no room, or nobody who reads it: the supervisor is told all the same
            status, reason, detail = 1, lines[-1].strip(), "".join(lines)
        if not self._is_draining and not self._has_been_left():
            self._tell("failed", reason=reason[:500], detail=detail[-_LONGEST_DETAIL:])
            self.drain()
        return status

    def _call_back(self) -> None:
        try:
            if "hotrestart.callbacks" in sys.modules:
                from .. import callbacks

                callbacks.call_all()
        finally:
            self._calls.release()

    def _end(self, error: BaseException | None) -> NoReturn:
        status = 1
        try:
            status = self._judge(error)
            self.pulse.rest()
            # It may be at its end before the callbacks are through. (Whoever calls them in a child has stayed behind.)
            if not self._has_been_left() and self._calls.acquire(True, 5.0):
                self._call_back()  # those for which there was no thread
        finally:  # whatever hooks and streams of the program do, this process goes back to nobody
            exits.end_now(status)


def _with_jitter(options: Options) -> int:
    """Not all workers shall be replaced at the same time. (To load the module random would take longer than a fork.)"""
    share = int.from_bytes(os.urandom(4), "big") / 2**32
    return round((options.max_jobs or 0) * (1 + options.jitter * share))


def _asyncio_task() -> asyncio.Task[Any] | None:
    """The task that runs this, in an event loop with asyncio's interface."""
    try:
        return sys.modules["asyncio"].current_task()  # type: ignore[no-any-return]
    except (KeyError, RuntimeError):
        return None


def _check_event_loop(events: asyncio.AbstractEventLoop) -> None:
    """One from before the fork has an epoll, and a socket to wake it up, that all workers share: what is meant for one
    of them is lost on another. What was there before the fork is frozen, and so not listed any more."""
    import gc

    if gc.is_tracked(events) and all(each is not events for each in gc.get_objects()):
        raise HotRestartError("workers cannot share an event loop: call main() before, as asyncio.run(main())")


async def _wind_up_asyncio() -> None:
    """What `asyncio.run` does after the main coroutine; from inside, for it will not get the word again."""
    asyncio = sys.modules.get("asyncio")
    try:
        loop = asyncio.get_running_loop()  # type: ignore[union-attr]
    except (AttributeError, RuntimeError):
        return  # somebody else's loop, which has its own way to end
    others = [task for task in asyncio.all_tasks(loop) if task is not asyncio.current_task(loop)]  # type: ignore[union-attr]
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)  # type: ignore[union-attr]
    await loop.shutdown_asyncgens()
    await loop.shutdown_default_executor()
