"""`spawn` and `fork_worker`: children that can be watched without SIGCHLD and without `waitpid(-1)`.

Both of those would take exit statuses away from the host's own `subprocess`, `multiprocessing` or asyncio. A child is
waited for by its pid, and a pidfd becomes readable when it has ended; signals go through the pidfd too, so that they
cannot reach a stranger who has got the pid. Without pidfd (macOS, BSDs) a pipe's end of file does for the first.

`posix_spawn` costs the same however large the program is, runs no fork handlers, and sets the child's signal mask, so a
child started while we block a signal is not deaf to it.
"""

from __future__ import annotations

import os
import sys
from time import monotonic, sleep

from . import command
from .errors import HotRestartError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from typing import Any
else:
    import _signal as signal  # the module signal imports enum: 2 to 5 ms of every restart

__all__ = [
    "STATUS_UNKNOWN",
    "Child",
    "fork",
    "fork_worker",
    "has_pidfd",
    "helpers_of_multiprocessing",
    "reap",
    "spawn",
]

STATUS_UNKNOWN = -1000

# A change of directory and a true LISTEN_PID (the pid is known only there; exec keeps it) on the way to the command.
_ON_THE_WAY = """import os, sys
if sys.argv[1]: os.chdir(sys.argv[1])
if 'LISTEN_PID' in os.environ: os.environ['LISTEN_PID'] = str(os.getpid())
os.execv(sys.argv[2], sys.argv[3:])"""


class Child:
    """A process that this one has started. Use it from one thread at a time; a forked or exec'ed process has no use
    for it."""

    def __init__(
        self, pid: int, alive: int | None = None, *, pidfd: int | None = None, own_group: bool = False
    ) -> None:
        """`pid`: a child of this process. `alive`: without pidfd, a pipe that ends when the child does; ours now.
        `pidfd`: the pidfd, if there is one already; ours now. `own_group`: it leads a process group, of which nobody
        shall be left when it has ended."""
        self.pid = pid
        self._own_group = own_group
        self.exit_code: int | None = None
        """The exit status, or minus the signal's number, as in `subprocess`; None while it runs, and
        `STATUS_UNKNOWN` if somebody else has reaped it."""
        self._alive = -1 if alive is None else alive
        self._pidfd = pidfd if pidfd is not None else os.pidfd_open(pid) if alive is None else -1

    @property
    def pidfd(self) -> int:
        """The child's pidfd, which may be given to others; -1 where there is no such thing, and once it is reaped."""
        return self._pidfd

    @property
    def can_be_watched(self) -> bool:
        """Whether `fileno()` can be waited for: it has not been reaped, and there is something to see its end by."""
        return self._pidfd != -1 or self._alive != -1

    def fileno(self) -> int:
        """A descriptor that is readable once the child has ended."""
        fd = self._pidfd if self._pidfd != -1 else self._alive
        if fd == -1:
            raise HotRestartError(f"child {self.pid} has been reaped")
        return fd

    def poll(self) -> int | None:
        """The exit code, or None while the child runs. Reaps it. Never blocks."""
        if self.exit_code is None:
            self._end_group()
            try:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
            except ChildProcessError:
                self._ended(STATUS_UNKNOWN)
            else:
                if pid:
                    self._ended(os.waitstatus_to_exitcode(status))
        return self.exit_code

    def wait(self, timeout: float) -> int | None:
        """Wait `timeout` seconds at most for the child to end; its exit code, or None."""
        deadline = monotonic() + timeout
        pause = 0.0005
        while self.poll() is None and monotonic() < deadline:
            sleep(min(pause, max(0.0, deadline - monotonic())))
            pause = min(2 * pause, 0.05)
        return self.poll()

    def send_signal(self, number: int) -> None:
        """Signal the child; nothing happens if it has ended. With a pidfd it is not reaped here: whoever waits for
        `fileno()` would wait for ever."""
        if self.exit_code is not None or (self._pidfd == -1 and self.poll() is not None):
            return
        try:
            if self._pidfd != -1 and hasattr(signal, "pidfd_send_signal"):
                signal.pidfd_send_signal(self._pidfd, number)
            else:
                os.kill(self.pid, number)
        except (ProcessLookupError, PermissionError):
            pass  # it has ended, or has got another user's rights

    def stop(self, grace: float) -> int | None:
        """End the child: TERM (and CONT, for a stopped one), `grace` seconds, then KILL. Blocks; the exit code."""
        self.send_signal(signal.SIGTERM)
        self.send_signal(signal.SIGCONT)
        if self.wait(grace) is None:
            self.kill()
        return self.exit_code

    def kill(self) -> None:
        """End the child with KILL and reap it; gives up after 5 s (a process inside the kernel cannot be killed)."""
        self.send_signal(signal.SIGKILL)
        self.wait(5.0)

    def _end_group(self) -> None:
        """Once the child has ended and before it is reaped, for after that its number may be another group's."""
        try:
            if self._own_group and os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                os.killpg(self.pid, signal.SIGKILL)
        except (ChildProcessError, ProcessLookupError, PermissionError):
            pass  # somebody has reaped it, or it was the last of its group

    def close(self) -> None:
        """Let go of it without reaping it: for a process that is not its parent, as its siblings."""
        self._ended(STATUS_UNKNOWN)

    def _ended(self, exit_code: int) -> None:
        self.exit_code = exit_code
        for fd in (self._pidfd, self._alive):
            if fd != -1:
                os.close(fd)
        self._pidfd = self._alive = -1


def spawn(
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    cwd: str | None = None,
    keep: Iterable[int] = (),
    redirect: Mapping[int, int] | None = None,
    blocked: Iterable[int] = (),
    own_group: bool = False,
) -> Child:
    """Start `argv` (a path first, no search) as a child process.

    `env` is its whole environment. `cwd`: a directory to change to first. `keep`: descriptors to inherit under their
    numbers, though they stay close-on-exec here. `redirect`: `{0: fd}` and so on, from descriptors above 2.
    `blocked`: its signal mask; signals that have handlers here have their default action there, and so have those that
    this program has begun to ignore. `own_group`: it leads a process group of its own, and what is left of that is
    killed when the child has ended. Raises OSError if the command cannot be started. Safe in any thread, and in a
    forked child; not in a signal handler.
    """
    if not hasattr(os, "posix_spawn"):
        raise HotRestartError("spawn() needs a POSIX system")
    words = list(argv) if cwd is None and "LISTEN_PID" not in env else _by_way_of(cwd, argv)
    actions = [(os.POSIX_SPAWN_DUP2, source, target) for target, source in (redirect or {}).items()]
    actions += [(os.POSIX_SPAWN_DUP2, fd, fd) for fd in set(keep)]  # dup2 to itself clears close-on-exec
    alive, held_by_child = (None, None) if has_pidfd() else os.pipe()
    try:
        if held_by_child is not None:
            actions.append((os.POSIX_SPAWN_DUP2, held_by_child, held_by_child))
        group: dict[str, Any] = {"setpgroup": 0} if own_group else {}
        pid = os.posix_spawn(
            words[0], words, env, file_actions=actions, setsigmask=blocked, setsigdef=_not_to_be_ignored(), **group
        )
        return _watched(pid, alive, own_group)
    except BaseException:
        if alive is not None:
            os.close(alive)
        raise
    finally:
        if held_by_child is not None:
            os.close(held_by_child)


def _not_to_be_ignored() -> list[int]:
    """The signals that the program has begun to ignore: what it starts would be deaf to them, and a restart is not."""
    ignored = [n for n in signal.valid_signals() if signal.getsignal(n) == signal.SIG_IGN]
    return sorted(set(ignored) - set(command.first.ignored) - command.IGNORED_BY_CPYTHON)


def _by_way_of(cwd: str | None, argv: Sequence[str]) -> list[str]:
    """The command with a little program of ours in front."""
    if not os.access(argv[0], os.X_OK):
        raise FileNotFoundError(2, os.strerror(2), argv[0])  # 2: ENOENT everywhere
    ours = sys.executable if os.access(sys.executable, os.X_OK) else "/proc/self/exe"
    return [ours, "-I", "-S", "-c", _ON_THE_WAY, cwd or "", argv[0], *argv]


def _watched(pid: int, alive: int | None, own_group: bool) -> Child:
    try:
        return Child(pid, alive, own_group=own_group)
    except BaseException:  # no descriptor left for a pidfd
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise


def fork() -> Child | None:
    """Fork, and return the child to the parent, None to the child. Raises OSError if there is no process to be had.

    Signals are yours to block around it (`signals.handling` blocks its own). In the main thread.
    """
    alive, held_by_child = (None, None) if has_pidfd() else os.pipe()
    try:
        pid = os.fork()
    except BaseException:
        for fd in (alive, held_by_child):
            if fd is not None:
                os.close(fd)
        raise
    if pid == 0:
        if alive is not None:
            os.close(alive)  # and the other end is closed by the end of this process
        return None
    if held_by_child is not None:
        os.close(held_by_child)
    return _watched(pid, alive, False)


def fork_worker(function: Callable[..., object], *args: object, keep: Iterable[int] | None = None) -> Child:
    """Fork a child that calls `function(*args)` and ends: with status 0, with what `sys.exit` says, or 1 if it raises.

    The child has all our descriptors, or, with `keep`, the standard streams and these only. It runs the exit handlers
    that it registers itself and none of ours, and returns to none of our frames. A signal that `signals.handling`
    handles here does in the child what it did before, from the first moment. What is buffered in the standard streams
    is written first, once. For the main thread of a program without other threads, whose locks would stay locked in
    the child. Raises OSError.
    """
    from . import exits

    exits.flush_streams()
    child = fork()
    if child is not None:
        return child
    status = 1
    try:
        exits.forget_the_parents()
        if keep is not None:
            from .fds import close_open_fds

            close_open_fds(keep)
        function(*args)
        status = 0
    except SystemExit as error:
        status = exits.status_of(error)
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
    finally:
        exits.end_now(status)


def helpers_of_multiprocessing() -> list[int]:
    """The pids of the processes that multiprocessing keeps for this one, and that end when this one execs."""
    tracker = getattr(sys.modules.get("multiprocessing.resource_tracker"), "_resource_tracker", None)
    server = getattr(sys.modules.get("multiprocessing.forkserver"), "_forkserver", None)
    pids = (getattr(tracker, "_pid", None), getattr(server, "_forkserver_pid", None))
    return [pid for pid in pids if isinstance(pid, int)]


def reap(pids: Iterable[int]) -> list[int]:
    """Reap those of these children that have ended; the others are returned. Never blocks."""
    left: list[int] = []
    for pid in pids:
        try:
            if os.waitpid(pid, os.WNOHANG)[0] == 0:
                left.append(pid)
        except ChildProcessError:
            continue  # somebody else has reaped it
    return left


def has_pidfd() -> bool:
    """Whether the end of a child can be seen by its pidfd here."""
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (AttributeError, OSError):
        return False  # not Linux, or older than 5.3
    return True
