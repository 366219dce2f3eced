"""`on_stop`: what the program wants to do as soon as it is asked to end, whatever its main thread is doing."""

from __future__ import annotations

import os
from _thread import allocate_lock, start_new_thread
from time import monotonic

from . import state

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _thread import LockType
    from collections.abc import Callable
    from typing import TypeVar

    Callback = TypeVar("Callback", bound=Callable[[], object])

__all__ = ["call_all", "call_all_in_a_thread", "kept_over_a_fork", "on_stop", "wait"]

_callbacks: list[Callable[[], object]] = []
_under_way: list[LockType] = []  # each held by a thread that calls some


def on_stop(callback: Callback) -> Callback:
    """Have `callback()` called once, as soon as the program has been asked to end, to restart or to stop.

    It runs in a thread of its own, whatever the main thread is doing at that moment: this is the place to tell a
    server to stop accepting (`server.shutdown()`), or an event loop to wind up (`loop.call_soon_threadsafe(...)`). The
    end of `main()` waits for it, five seconds at most. What it raises is logged. Registered too late, it is called
    right away. Returns `callback`, so that it can be used as a decorator. Not inherited by the next generation; forked
    children do not call it, except the workers of a program with `workers=`, which call what was registered at import.
    """
    _callbacks.append(callback)
    if state.should_stop:
        call_all_in_a_thread()
    return callback


def kept_over_a_fork() -> Callable[[], None]:
    """Call it before a fork, and what it returns in the child: whose callbacks are then those registered by now.

    For a fork server: what was registered while the program was imported is meant for the workers.
    """
    registered = list(_callbacks)
    return lambda: _callbacks.extend(registered)


def call_all_in_a_thread() -> None:
    """Call what is registered, in a new thread, which runs when this returns: 3.10 crashes if it ends before that."""
    if not _callbacks:
        return
    runs, calls = allocate_lock(), allocate_lock()
    runs.acquire()
    calls.acquire()

    def run() -> None:
        runs.release()
        try:
            call_all()
        finally:
            _under_way.remove(calls)
            calls.release()

    _under_way.append(calls)
    try:
        start_new_thread(run, ())
    except RuntimeError:  # none is to be had: the end of main() calls them
        _under_way.remove(calls)
        return
    runs.acquire(True, 5.0)


def wait(seconds: float) -> None:
    """Until those that are being called in threads of their own are through, and so many seconds at most."""
    deadline = monotonic() + seconds
    for calls in list(_under_way):
        calls.acquire(True, max(0.0, deadline - monotonic()))


def call_all() -> None:
    """Call each callback, in this thread: whoever takes it off the list does."""
    while True:
        try:
            callback = _callbacks.pop(0)
        except IndexError:
            return
        try:
            callback()
        except Exception as error:
            from . import log

            log.error(f"on_stop callback {callback!r} raised {error!r}")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_callbacks.clear)
    os.register_at_fork(after_in_child=_under_way.clear)
