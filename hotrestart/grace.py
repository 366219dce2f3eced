"""The deadline of an ending: past it the restart happens all the same, and a stop ends the process.

What holds an ending up may hold any lock, so the watch relies on no lock that others take: not on logging's, and its
line goes straight to descriptor 2. The exit handlers get a last call: the main thread runs them in a signal handler, if
it still runs Python at all.
"""

from __future__ import annotations

import os
import sys
from _thread import allocate_lock, get_ident

from . import command, log, state
from .errors import HotRestartError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from collections.abc import Iterable
    from types import ModuleType
else:
    import _signal as signal  # the module signal imports enum: 2 to 5 ms of every restart

__all__ = ["Grace"]

_LAST_CALL = 3.0  # seconds for exit handlers once grace is over
_FOREVER = 4e6  # seconds, about what a lock can wait


class Grace:
    """Made in the main thread; `watch` runs in a thread of its own, from the moment the program is asked to end."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._main_thread = get_ident()
        self._called_off = allocate_lock()
        self._called_off.acquire()
        self.main_has_returned = False
        self.is_over = False

    def call_off(self) -> None:
        """There is nothing to watch any more: the program goes on without us."""
        self._called_off.release()

    def watch(self, reach_main_by: Iterable[int]) -> None:
        """Wait; then end the process. `reach_main_by`: signals whose handlers give `last_call`."""
        from . import reexec  # now, while the main thread is still at work

        if self._called_off.acquire(True, min(self._seconds, _FOREVER)):
            return
        log.last_words(f"grace of {self._seconds:g} s is over, and {self._who_is_late()} has not ended")
        self.is_over = True
        if state.reason == "restart":
            self._restart(reach_main_by, reexec)
        self._stop()

    @staticmethod
    def last_call() -> None:
        """In the main thread's signal handler: what the end of the program would have done."""
        from . import reexec

        reexec.restart_at_exit()
        reexec.last_act()

    def _restart(self, reach_main_by: Iterable[int], reexec: ModuleType) -> None:
        for number in reach_main_by:
            signal.pthread_kill(self._main_thread, number)
            self._called_off.acquire(True, _LAST_CALL)
            break
        if state.reason == "restart":
            try:
                reexec.exec_now()
            except (OSError, HotRestartError) as error:
                log.last_words(f"cannot start {command.first.argv[0]} again: {error}")
                os._exit(reexec.EX_OSERR)

    def _stop(self) -> None:
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGKILL):
            os.kill(os.getpid(), number)  # the first may still have a handler, which gives it its default action
            self._called_off.acquire(True, 1.0)

    def _who_is_late(self) -> str:
        if not self.main_has_returned:
            return f"the main thread, {_where(self._main_thread)},"
        threading = sys.modules.get("threading")
        for thread in threading.enumerate() if threading else ():
            if not thread.daemon and thread.ident != self._main_thread and thread.is_alive():
                return f"thread {thread.name!r}, {_where(thread.ident)},"
        return f"the end of the program, {_where(self._main_thread)},"


def _where(ident: int | None) -> str:
    frame = sys._current_frames().get(ident or 0)
    if frame is None:
        return "which cannot be looked into"
    return f"in {frame.f_code.co_name}() at {frame.f_code.co_filename}:{frame.f_lineno}"
