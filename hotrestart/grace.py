"""The deadline of an ending: past it the restart happens all the same, and a stop ends the process.

What holds an ending up may hold any lock, so the watch relies on no lock that others take: not on logging's, and its
line goes straight to descriptor 2. The exit handlers get a last call: the main thread runs them in a signal handler, if
it still runs Python at all.
"""

from __future__ import annotations

import os
import sys
from time import sleep

from . import log, reexec, signals, state

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from typing import Any

    from .inplace import InPlace
else:
    import _signal as signal  # the module signal imports enum: 2 to 5 ms of every restart

__all__ = ["watch"]

_LAST_CALL = 3.0  # seconds for exit handlers once grace is over


def watch(program: InPlace, seconds: float, grace: float, resets: int) -> None:
    """Wait for the `seconds` that are left of `grace`, and then end the process. Runs in a thread of its own. `resets`:
    those of `state` when the ending began."""
    sleep(seconds)
    if not state.should_stop or state.resets != resets:
        return  # the host goes on
    if any(number in program.sleeper.unheard() for number in signals.STOP):
        state.end("stop")  # the main thread has not come to hear of it, and an exec would lose it
    what = "restarting all the same" if state.reason == "restart" else "ending all the same"
    log.last_words(f"grace of {grace:g} s is over, and {_who_is_late(program)} has not ended: {what}")
    program.is_overdue = True
    if state.reason == "restart":
        for number in program.restart_signals()[:1]:
            signal.pthread_kill(program.main_thread, number)  # whose handler gives the last call
            sleep(_LAST_CALL)
    if state.reason == "restart":
        reexec.exec_or_exit(flush=False)
    program.abandon()
    for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGKILL):
        os.kill(os.getpid(), number)  # the first may still have a handler, which gives it its default action
        sleep(0.0 if os.getpid() == 1 else 1.0)
    os._exit(128 + signal.SIGTERM)  # process 1 of a container: the kernel keeps such signals from it


def _who_is_late(program: InPlace) -> str:
    if not program.main_has_returned:
        return f"the main thread, {_where(program.main_thread)},"
    threads: dict[int, Any] = getattr(sys.modules.get("threading"), "_active", {})  # enumerate() takes a lock
    for thread in list(threads.values()):
        if not thread.daemon and thread.ident != program.main_thread and thread.is_alive():
            return f"thread {thread.name!r}, {_where(thread.ident)},"
    return f"the end of the program, {_where(program.main_thread)},"


def _where(ident: int | None) -> str:
    frame = sys._current_frames().get(ident or 0)
    if frame is None:
        return "which cannot be looked into"
    return f"in {frame.f_code.co_name}() at {frame.f_code.co_filename}:{frame.f_lineno}"
