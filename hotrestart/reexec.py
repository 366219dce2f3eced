"""The last act of a process: exec the same program, same pid, after everything else has been done.

`restart_at_exit` is Celery's idea, an exec in an exit handler, without its hole. Exit handlers run last in, first out,
so an exec in one of them skips all that were registered before it. Ours is registered as late as can be, runs all the
others itself, and only then execs.

Nothing is closed before the exec; all is marked. So an exec that fails leaves a process that works and can say why.
"""

from __future__ import annotations

import atexit
import os
import sys

from . import bytecode, command, exits, fds, inheritance, role, signals, state

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from collections.abc import Callable
    from typing import Any, NoReturn
else:
    import _signal as signal  # the module signal imports enum: 2 to 5 ms of every restart

__all__ = ["EX_OSERR", "exec_now", "last_call", "legacy", "restart_at_exit"]

EX_OSERR = 71
"""The exit status of a process whose exec failed after its exit handlers had run (sysexits.h)."""

_armed_in: int | None = None  # the pid: a forked child must not restart its parent's program
_acting = False


def restart_at_exit() -> None:
    """Let this process, when it ends, start its program anew instead of going away.

    Whatever ends it - falling off the end of the program, `sys.exit` with any status, an exception - all non-daemon
    threads are joined and every exit handler runs exactly once first, whoever registered it and when. A stop that is
    asked for in the meantime (`state.reason == "stop"`) wins. Not after `os._exit`, a fatal signal, or in a forked
    child. If the exec fails, the process says why on descriptor 2 and exits with status 71. One limit: an exit handler
    that is registered after this call, with an `__eq__` of its own that answers for anything, may run twice.

    Restart signals are blocked in this thread from now on: one that comes meanwhile is for the new program. Where
    another thread takes it, it does nothing.

    Idempotent; to be called in the main thread, also from a Python signal handler. Raises NotRestartableError.
    """
    arm()
    signals.block(signals.RESTART)
    signals.disarm(signals.RESTART)


def arm() -> None:
    """`restart_at_exit` for whoever goes on handling restart signals."""
    global _armed_in
    command.first.check()
    if _armed_in == os.getpid():
        return
    _armed_in = os.getpid()
    atexit.register(last_act)
    # A private name, with a public way to do without: ours then has to tell apart who has run before it.
    register_before_join = getattr(sys.modules.get("threading"), "_register_atexit", None)
    if register_before_join is not None:
        try:
            register_before_join(_come_last)
        except RuntimeError:
            pass  # the joining has begun: nobody comes after us


def disarm() -> None:
    """Take `arm` back."""
    global _armed_in
    _armed_in = None


def last_act() -> None:
    """What `restart_at_exit` registers: run the other exit handlers, flush, exec. Returns only if a stop came first."""
    global _acting
    is_off = getattr(role.current, "is_off", False)  # taken back, by state.reset()
    if _armed_in != os.getpid() or state.reason == "stop" or is_off or _acting:
        return
    _acting = True
    signals.block([signal.SIGINT])  # a KeyboardInterrupt in here would cancel the exec
    exits.run_others(last_act)
    exec_or_exit()


def last_call() -> None:
    """The last act now, in the main thread's signal handler; without exit handlers if it is these that hold it up."""
    if not _acting:
        arm()
        _come_last()  # nothing has run yet
        last_act()
    exec_or_exit()


def exec_or_exit(*, flush: bool = True) -> NoReturn:
    """`exec_now`, at a point from which there is no way back: if it fails, say why and exit with status 71.

    `flush=False`: another thread may hold the locks of the standard streams for ever.
    """
    try:
        if flush:
            flush_streams()
        exec_unflushed()
    except BaseException as error:  # raised on, it would be printed and forgotten: exit status 0, and no service
        from . import log
        from .errors import StopAskedError

        if role.current is not None:
            role.current.abandon()
        if isinstance(error, StopAskedError):
            os._exit(0)  # back into the handlers' loop is no way to go: 3.14 would run them all again
        log.last_words(f"cannot start {command.first.argv[0]} again: {error!r}")
        os._exit(EX_OSERR)


def exec_now() -> NoReturn:
    """Start this program anew at once: no exit handlers, no joining of threads; standard streams are flushed.

    The new program has the same pid, the environment, directory, signal mask and ignored signals that the first
    generation was given, no timers, and all that was bequeathed. Raises OSError if the exec fails, and then everything
    is as before; StopAskedError if a stop was asked for; NotRestartableError if there is nothing to start. Call it in
    the main thread (another one works, but signals that the program ignores stay ignored then, and children with
    PDEATHSIG are killed).
    """
    flush_streams()
    exec_unflushed()


def exec_unflushed() -> NoReturn:
    """`exec_now`, without touching the standard streams: another thread may hold their locks for ever."""
    command.first.check()
    bytecode.drop_stale(command.first.since)
    document, keep = legacy()
    document["role"] = "generation"
    if os.getpid() == 1:  # of a container: what has the default action does not reach it, and would be lost
        document["held_stops"] = [int(n) for n in signals.STOP if n not in command.first.blocked]
    if role.current is not None:
        document["announcing"], more = role.current.hand_over()
        keep |= more
    try:
        exec_with(command.first.executable, command.first.argv, document, keep)
    except BaseException:
        if role.current is not None:
            role.current.resume()
        raise


def exec_with(executable: str, argv: list[str], document: dict[str, Any], keep: set[int]) -> NoReturn:
    """Become `argv`, with the document and the descriptors `keep`, in the circumstances of the first generation.

    The signals that the document says are `held` stay blocked. If the exec fails everything is as before.
    """
    undo: list[Callable[[], object]] = []
    memory = -1
    try:
        memory, value = inheritance.write({**document, "pid": os.getpid()})
        _go_to_first_directory(undo)
        _clear_timers(undo)
        # A stop that comes from here on meets the default action.
        mask = signals.block([*signals.RESTART, *signals.STOP])
        undo.append(lambda: signals.restore_mask(mask))
        _reset_dispositions(undo)
        if state.reason == "stop":  # TERM is fatal from here on, so this is the last one that has to be looked for
            from .errors import StopAskedError

            raise StopAskedError("the restart is off: a stop has been asked for")
        signals.restore_mask({*command.first.blocked, *document["held"], *document.get("held_stops", ())})
        keep = {*keep, memory}
        marked = fds.set_cloexec_from(3, keep)
        undo.append(lambda: fds.set_inheritable_all(marked))
        unmarked = fds.set_inheritable_all(keep)
        undo.append(lambda: fds.set_inheritable_all(unmarked, False))
        _exec(executable, argv, {**command.first.env, command.VARIABLE: value})
    except BaseException:
        while undo:
            undo.pop()()
        if memory != -1:
            os.close(memory)
        raise


def legacy(bequeathed: dict[str, int] | None = None) -> tuple[dict[str, Any], set[int]]:
    """What this generation leaves to the next: the document, and the descriptors that go with it. `bequeathed`: copies
    of those that the program has bequeathed, if it goes on and may bequeath others meanwhile."""
    listeners: list[dict[str, Any]] = []
    bequeathed = inheritance.kept.copy() if bequeathed is None else bequeathed
    kept = {name: (fd, _identity(fd)) for name, fd in bequeathed.items()}
    given = {fd: identity for fd, identity in command.first.fds.items() if _identity(fd) == identity}
    keep = {*given, *(fd for fd, identity in kept.values() if identity)}
    if f"{__package__}.listeners" in sys.modules:
        from . import listeners as module  # which waits if another thread has only begun to load it

        listeners = module.hand_over()
        keep.update([each["fd"] for each in listeners], module.systemd_fds())
    document = {
        "generation": state.generation + 1,
        "listeners": listeners,
        "kept": {name: {"fd": fd, "inode": identity[1]} for name, (fd, identity) in kept.items() if identity},
        "state": dict(inheritance.state),
        "fds": {str(fd): identity for fd, identity in given.items()},
        "blocked": command.first.blocked,
        "ignored": command.first.ignored,
        "held": [int(n) for n in signals.RESTART if n not in command.first.blocked],
        "since": command.first.since,
        "helpers": _children_that_will_end(),
        "member": [],
        "announcing": {},
        "report": -1,
        "timeout": 0,
    }
    return document, keep


def _children_that_will_end() -> list[int]:
    """Whom nobody but a later generation can reap; those of former generations are reaped now."""
    if not command.first.helpers and "multiprocessing" not in sys.modules:
        return []
    from . import processes

    command.first.helpers = processes.reap(command.first.helpers)
    return [*command.first.helpers, *processes.helpers_of_multiprocessing()]


def _exec(executable: str, argv: list[str], env: dict[str, str]) -> NoReturn:
    try:
        os.execve(executable, argv, env)
    except FileNotFoundError:
        # The interpreter's file has gone since the preflight. The one that runs now still exists, and better the
        # old interpreter than none.
        if not os.path.exists("/proc/self/exe"):
            raise
        from . import log

        log.last_words(f"{executable} is gone: starting again with the interpreter that runs now")
        os.execve("/proc/self/exe", argv, env)


def _come_last() -> None:
    """Called when the main thread has ended and before other threads are joined: so that ours lands on top."""
    atexit.register(last_act)


def flush_streams() -> None:
    """Flush the standard streams; log handlers are flushed by logging's own exit handler. In the main thread."""
    for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
        try:
            stream.flush()  # type: ignore[union-attr]
        except Exception:
            continue  # None, closed, a terminal that is gone, or interrupted in the midst of a flush


def _go_to_first_directory(undo: list[Callable[[], object]]) -> None:
    if command.first.cwd is None:
        return
    try:
        here = os.open(os.curdir, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        here = -1  # deleted or not ours to read: there is no way back, and none is needed
    os.chdir(command.first.cwd)
    if here != -1:
        undo.append(lambda: os.close(here))
        undo.append(lambda: os.fchdir(here))


def _clear_timers(undo: list[Callable[[], object]]) -> None:
    """Timers survive an exec, and their signals would kill the new generation before it can handle them."""
    for which in (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF):
        delay, interval = signal.setitimer(which, 0)
        if delay:
            undo.append(_later(signal.setitimer, which, delay, interval))


def _reset_dispositions(undo: list[Callable[[], object]]) -> None:
    """Ignored signals survive an exec: those of the first generation shall be ignored, and no others.

    A TERM that the C handler has noted and Python has not is lost in an exec: so make TERM and INT fatal first.
    """
    wanted: dict[int, Any] = dict.fromkeys(signals.STOP, signal.SIG_DFL)
    for number in range(1, signal.NSIG):
        try:
            ignored = signal.getsignal(number) == signal.SIG_IGN
        except ValueError:
            continue  # not a signal here
        if number in command.first.ignored:
            wanted[number] = signal.SIG_IGN
        elif ignored and number not in command.IGNORED_BY_CPYTHON:
            wanted[number] = signal.SIG_DFL
    for number, disposition in wanted.items():
        before = signal.getsignal(number)
        if before is None or before == disposition:
            continue
        try:
            signal.signal(number, disposition)
        except ValueError:
            return  # not the main thread
        undo.append(_later(signal.signal, number, before))


def _later(function: Callable[..., object], *arguments: object) -> Callable[[], object]:
    return lambda: function(*arguments)


def _identity(fd: int) -> tuple[int, int] | None:
    try:
        status = os.fstat(fd)
    except OSError:
        return None
    return status.st_dev, status.st_ino
