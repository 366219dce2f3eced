"""Which exit handlers have run, and running the others: from inside one of them.

CPython's loop over the exit handlers cannot be told to go on with something else at its end, and offers no list of
them. But `atexit.unregister` compares its argument with each one, in the order in which they are kept: an object that
listens to these comparisons sees them all, and takes away those that it says it equals.
"""

from __future__ import annotations

import atexit
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

__all__ = ["end_now", "flush_streams", "forget_the_parents", "run_others", "status_of"]


def run_others(own: Callable[[], object]) -> None:
    """Run the exit handlers that have not run yet, while `own`, which is one of them, is running.

    Those registered after the last registration of `own` have run; the others follow, last in, first out.
    """
    registered = _Registered()
    atexit.register(registered.newest)
    try:
        atexit.unregister(registered)  # equal to none: it only looks
        kept = [id(function) for function in registered.functions]
        if kept.index(id(registered.newest)) == 0:  # 3.14 and later keep the newest first
            done = range(kept.index(id(own)) + 1)
        else:
            done = range(len(kept) - 1 - kept[::-1].index(id(own)), len(kept))
        atexit.unregister(_Registered(done))
    except Exception as error:  # a handler that cannot be compared; the few that were registered last may run twice
        from . import log

        log.last_words(f"exit handlers cannot be told apart: {error!r}")
    atexit._run_exitfuncs()


def forget_the_parents() -> None:
    """In a forked child: the exit handlers registered so far are the parent's to run, and none of the child's.

    Three are everybody's: those of logging, weakref and multiprocessing, which work on what the process itself has.
    """
    atexit._clear()
    finalize = getattr(sys.modules.get("weakref"), "finalize", None)
    for each in list(getattr(finalize, "_registry", ())):
        each.atexit = False
    if finalize is not None:
        finalize._registered_with_atexit = False  # the next one registers it again
    if "multiprocessing.process" in sys.modules:
        sys.modules["multiprocessing.process"]._children.clear()  # as its own children do
    for module, name in (("logging", "shutdown"), ("multiprocessing.util", "_exit_function")):
        handler = getattr(sys.modules.get(module), name, None)
        if handler is not None:
            atexit.register(handler)


def status_of(end: SystemExit) -> int:
    """The exit status that `sys.exit` has asked for; a text is printed, as CPython does it."""
    if end.code is None or isinstance(end.code, int):
        return end.code or 0
    try:
        print(end.code, file=sys.stderr)
    except Exception:
        pass  # there is no room, or nobody who reads it
    return 1


def flush_streams() -> None:
    """Write what is buffered in standard output and standard error, as far as they are there."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (AttributeError, OSError, ValueError):
            continue  # None, closed, or a terminal that is gone


def end_now(status: int) -> NoReturn:
    """End this process as CPython would, exit handlers and all, but without going back to whoever has called.

    For a forked child: its parent's frames are on the stack, and their `finally` clauses are the parent's.
    """
    import os
    import threading

    try:
        join_all = getattr(threading, "_shutdown", None)  # private, and what CPython itself calls first
        if join_all is not None:
            join_all()
        atexit._run_exitfuncs()
        flush_streams()
    finally:
        # As CPython: what a C long cannot hold counts as -1, and the kernel takes the last byte.
        os._exit(status & 0xFF if -(2**63) <= status < 2**63 else 255)


class _Registered:
    """Is compared with each registered exit handler, in the order in which CPython keeps them, and equals `those`."""

    def __init__(self, those: range = range(0)) -> None:
        self.functions: list[object] = []
        self._those = those
        self.newest = lambda: None

    def __call__(self) -> None:
        """Only because `atexit.unregister` says that it wants something callable."""

    def __eq__(self, function: object) -> bool:
        self.functions.append(function)
        return len(self.functions) - 1 in self._those

    __hash__ = None  # type: ignore[assignment]
