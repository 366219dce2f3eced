"""One line an event, through `logging.getLogger("hotrestart")`, without making every restart pay for `logging`.

Importing `logging` costs more than booting a small program. Where nobody has imported it nobody has configured it, and
a line below WARNING would go nowhere: so it is not written, and nothing is imported. Of all this only `last_words` is
for signal handlers.
"""

from __future__ import annotations

import os
import sys
from _thread import allocate_lock, get_ident

from . import state

__all__ = ["dump_stacks_on_abort", "error", "info", "last_words", "pass_on", "straight_to_stderr", "warning"]

_straight = False
_terminal = 0  # a descriptor of our own for the terminal that is standard error
_writing = allocate_lock()  # held by a thread that has the locks of handlers and streams
_writer = 0
_forking: list[int] = []  # threads


def info(message: str) -> None:
    """Tell of something that went as it should."""
    if _straight or "logging" in sys.modules:
        _write(20, message)


def warning(message: str, detail: str = "") -> None:
    """Tell of something that an operator may want to change; the lines of `detail` follow, indented."""
    _write(30, message, detail)


def error(message: str, detail: str = "") -> None:
    """Tell of something that did not work; the lines of `detail` follow, indented."""
    _write(40, message, detail)


def _write(level: int, message: str, detail: str = "") -> None:
    below = "".join(f"\n    {line}" for line in detail.splitlines())
    if _straight:
        line = f"hotrestart: {message} [pid {os.getpid()}, generation {state.generation}]{below}\n"
        pass_on(line.encode(errors="backslashreplace"))  # there are file names that are not UTF-8
        return
    global _writer
    is_alone = _writing.acquire(False)  # else a signal handler has interrupted it, or another thread is at it
    try:
        if is_alone:
            _writer = get_ident()
        import logging

        where = (os.getpid(), state.generation)
        logging.getLogger("hotrestart").log(level, "%s [pid %d, generation %d]%s", message, *where, below)
    finally:
        if is_alone:
            _writer = 0
            _writing.release()


def _before_fork() -> None:
    """A fork in the midst of a line would leave the child with a stream that is locked for ever, and the thread that
    has locked it may be ours, which the program has not asked for. So a fork waits; not for itself, nor for ever."""
    if _writer != get_ident() and _writing.acquire(True, 1.0):
        _forking.append(get_ident())


def _after_fork() -> None:
    if get_ident() in _forking:
        _forking.remove(get_ident())
        _writing.release()


def _after_fork_in_child() -> None:
    global _writing, _writer
    _writing, _writer = allocate_lock(), 0
    _forking.clear()


def straight_to_stderr() -> None:
    """In a process without a logging configuration of its own, the bare supervisor: each line goes to descriptor 2.

    A terminal that nobody reads takes less than it promises: it is opened anew, so as not to block the others on it.
    """
    global _straight, _terminal
    _straight = True
    try:
        if os.isatty(2):
            _terminal = os.open("/proc/self/fd/2", os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        pass  # not Linux, or not ours to open: then it has to be read


def pass_on(output: bytes) -> None:
    """Write what another process has printed to descriptor 2; what there is no room for is lost, nobody waits."""
    import select
    import signal

    poll = select.poll()
    poll.register(_terminal or 2, select.POLLOUT)
    # A terminal with `tostop` sends a TTOU for each try; while that is blocked, it lets a background process write.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTTOU])
    try:
        while output and poll.poll(0):
            output = output[os.write(_terminal or 2, output[:4096]) :]  # PIPE_BUF: that much goes at once
    except OSError:
        pass  # closed, or nobody reads it
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def dump_stacks_on_abort() -> None:
    """Let ABRT show on descriptor 2 where this process is stuck, unless the program has seen to it already."""
    import faulthandler

    try:
        if not faulthandler.is_enabled():
            faulthandler.enable(2, all_threads=True)
    except (OSError, RuntimeError, ValueError):
        pass  # started without standard error


def last_words(message: str) -> None:
    """Write one line to descriptor 2 with a single system call: for moments when nothing else can be relied upon.

    Safe in a signal handler. Nothing is written if the process was started without standard error: the number may be
    a file of its own.
    """
    if sys.__stderr__ is None:
        return
    import select

    poll = select.poll()
    poll.register(2, select.POLLOUT)
    try:
        if poll.poll(0):  # a pipe that nobody reads would hold up whoever sees to the end of this process
            os.write(2, f"hotrestart: {message}"[:4000].encode(errors="replace") + b" [pid %d]\n" % os.getpid())
    except OSError:
        pass  # nobody can be told any more


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child)
