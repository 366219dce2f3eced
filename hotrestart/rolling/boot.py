"""The boot of a worker: what `main()` does before it is ready.

It has no job to finish yet, and may wait for what never comes. TERM gives it half a second to come to its end. Then its
`main()` ends by SystemExit, or by a cancellation, so that it tidies up; once, for what tidies up is not to be
interrupted. Nothing of it may come up in the frames of whoever has called `main()`: they are the fork server's.
"""

from __future__ import annotations

import os
import signal
import sys
from _thread import start_new_thread
from time import monotonic, sleep

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType
    from typing import Any, NoReturn

__all__ = ["Boot"]

_LAST_OF_A_BOOT = 0.5  # seconds in which one that works may come to its end; to interrupt it is the ruder way
_TURNS = 5  # in which it is given to an event loop: a busy machine may take a loop's time, but not all its turns

_STARTS = {
    ("concurrent.futures.process", "submit"),
    ("multiprocessing.pool", "__init__"),
    ("multiprocessing.process", "start"),
    ("subprocess", "__init__"),
}


class Boot:
    """A block around `main()`, over when `is_on` is set to False or `main()` ends. Made and asked in the main thread.

    `coroutine`: what the program's own event loop runs, if there is one; `task`: as which, if that loop is asyncio's or
    like it. `end_worker` does not return.
    """

    def __init__(self, end_worker: Callable[[BaseException], NoReturn]) -> None:
        self.is_on: bool = False
        self.coroutine: Any = None
        self.task: Any = None
        self._is_resumed = False
        self._turns = 0  # that the event loop still has
        self._end_worker = end_worker
        self._deadline: float | None = None
        self._end: SystemExit | None = None

    def __enter__(self) -> None:
        self.is_on = True
        if self._deadline is not None:
            raise self._cut()

    def __exit__(self, *exc_info: object) -> None:
        self.is_on = False

    def ask(self) -> None:
        """Let it come to its end within `_LAST_OF_A_BOOT`, or raise SystemExit in it; if it has not begun, then too."""
        if self._deadline is None:
            self._deadline = monotonic() + _LAST_OF_A_BOOT
            if self.is_on:
                self._remind_in(_LAST_OF_A_BOOT)
        elif self.is_on and self._end is None and monotonic() >= self._deadline:
            if _a_child_is_being_started():
                self._remind_in(0.01)
            else:
                self._interrupt()

    def has_caused(self, error: BaseException) -> bool:
        """Whether `main()` has raised this for no other reason: an event loop cancels what it runs, or wraps it up."""
        if self._end is None or self._is_resumed:
            return self._is_resumed
        return not isinstance(error, Exception) or error.__cause__ is self._end

    def _interrupt(self) -> None:
        """An exception has to come up in `main()`: out of an event loop it would go to whoever runs that, for whom this
        process is not meant. A coroutine that waits is cancelled; where that cannot be had, or the loop itself does
        not turn, it is resumed from here for its last time: what it awaits then never comes, and what belongs to the
        loop complains, as trio's scopes."""
        if self.coroutine is None or self.coroutine.cr_running:
            raise self._cut()
        task, self.task = self.task, None
        if task is not None:
            self._turns = _TURNS
            task.get_loop().call_soon_threadsafe(self._cancel, task)
        if self._turns:
            self._turns -= 1
            self._deadline = monotonic() + _LAST_OF_A_BOOT / _TURNS
            self._remind_in(_LAST_OF_A_BOOT / _TURNS)
            return
        end, self._is_resumed = self._cut(), True
        try:
            self.coroutine.throw(end)
        finally:
            self._end_worker(end)

    def _cancel(self, task: Any) -> None:
        if self.is_on:
            self._end = SystemExit()
            task.cancel()

    def _cut(self) -> SystemExit:
        before = sys.unraisablehook

        def ask_again(lost: Any) -> None:
            if lost.exc_value is not end:
                before(lost)
            elif self.is_on:
                self._end = None
                self._remind_in(0.01)

        self._end = end = SystemExit()
        sys.unraisablehook = ask_again  # a hook of os.fork() or a `__del__` was running, which nothing leaves
        return end

    def _remind_in(self, delay: float) -> None:
        def remind() -> None:
            sleep(delay)
            if self.is_on:
                # The kernel hands it to the main thread. (For pthread_kill one needs its true identity: gevent's
                # get_ident, for one, returns an address.)
                os.kill(os.getpid(), signal.SIGTERM)

        try:
            start_new_thread(remind, ())
        except RuntimeError:
            pass  # no thread is to be had: then it ends when it is asked again, or after its grace


def _a_child_is_being_started() -> bool:
    """In that moment the child may be there, and nobody has noted it yet who would see to its end; and a pool that is
    only half there goes on to replace the workers that it loses."""
    frame: FrameType | None = sys._getframe()
    while frame is not None and (frame.f_globals.get("__name__"), frame.f_code.co_name) not in _STARTS:
        frame = frame.f_back
    return frame is not None
