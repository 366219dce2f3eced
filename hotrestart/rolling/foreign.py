"""Starting a command that knows nothing of us, as a worker.

It is forked, and not spawned, for LISTEN_PID is the child's own pid, known only there. The supervisor has one thread
and weighs a few MB, so a fork is cheap, and between fork and exec all can be done that a command without code of ours
needs:

* its listeners get the numbers from 3 upward, as from systemd, and of our other descriptors it has none;
* it leads a process group. A terminal's Ctrl-C is the supervisor's business, and what is left of the group when the
  worker has ended is killed, so that no helper of an old version goes on serving;
* it is leashed: one more descriptor, which it need not know, makes the kernel send the signal to stop to the group when
  the supervisor is gone. Whom to tell is kept with the open file, and that survives an exec. A command that closes
  what it does not know takes the leash off.
"""

from __future__ import annotations

import os
import signal

from .. import command, fds, signals
from ..processes import Child, has_pidfd

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, NoReturn

    from ..leash import Tether

__all__ = ["FIRST", "Circumstances", "environment", "start"]

FIRST = 3
"""The number of the first listener (SD_LISTEN_FDS_START)."""

_SYSTEMD = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC")


class Circumstances:
    """What a worker is started in: its environment but for LISTEN_PID, the descriptors of its listeners, its standard
    error, the tether, and the signal that asks it to stop."""

    env: dict[str, str]
    listeners: list[int]
    stderr: int
    tether: Tether
    stop_signal: int

    __slots__ = ("env", "listeners", "stderr", "stop_signal", "tether")

    def __init__(
        self, env: dict[str, str], listeners: Sequence[int], stderr: int, tether: Tether, stop_signal: int
    ) -> None:
        self.env, self.listeners, self.stderr = env, list(listeners), stderr
        self.tether, self.stop_signal = tether, stop_signal


def environment(env: dict[str, str], names: Sequence[str | None], notify: str | None) -> dict[str, str]:
    """`env`, with what is said of our listeners and of our notify socket in the place of what systemd told us."""
    told = {name: value for name, value in env.items() if name not in _SYSTEMD}
    if names:
        told["LISTEN_FDS"] = str(len(names))
    if any(names):
        told["LISTEN_FDNAMES"] = ":".join(name or "unknown" for name in names)
    if notify is not None:
        told["NOTIFY_SOCKET"] = notify
    return told


def start(program: command.Command, around: Circumstances) -> Child:
    """Start the program, looked for on its PATH now. Raises OSError, which says why, if that cannot be done."""
    report, theirs = (fds.above_stdio(fd) for fd in os.pipe())
    mask = signals.block(signal.valid_signals())
    try:
        pid = os.fork()
        if pid == 0:
            _become(program, around, theirs)
    except BaseException:
        os.close(report)
        raise
    finally:
        os.close(theirs)
        signals.restore_mask(mask)
    try:
        child = _watched(pid)
        said = os.read(report, 4096)  # ends with the exec, in a moment
    finally:
        os.close(report)
    if said:
        child.wait(1.0)
        number, _, why = said.decode(errors="surrogateescape").partition(" ")
        raise OSError(int(number), why)
    return child


def _watched(pid: int) -> Child:
    try:
        return Child(pid, pidfd=None if has_pidfd() else -1, own_group=True)
    except BaseException:  # no descriptor left for a pidfd
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise


def _become(program: command.Command, around: Circumstances, report: int) -> NoReturn:
    """In the child, with all signals blocked."""
    try:
        os.setpgid(0, 0)
        report = _arrange_descriptors(around, report)
        _be_as_at_first(program)
        env = around.env
        if around.listeners:
            env = {**env, "LISTEN_PID": str(os.getpid())}
        signal.pthread_sigmask(signal.SIG_SETMASK, program.blocked)
        _exec(program.argv, env)
    except OSError as error:
        os.write(report, os.fsencode(f"{error.errno or 0} {error.strerror or error}"))
    except BaseException as error:
        os.write(report, os.fsencode(f"0 {error!r}"))
    finally:
        os._exit(127)


def _arrange_descriptors(around: Circumstances, report: int) -> int:
    """Listeners from 3 upward, then the leash, and nothing else; where the end of `report` is now."""
    import fcntl

    leash = FIRST + len(around.listeners)

    def out_of_the_way(fd: int) -> int:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, leash + 1)

    report, stderr = out_of_the_way(report), out_of_the_way(around.stderr)
    listeners = [out_of_the_way(fd) for fd in around.listeners]
    tether = _leashed(around.tether, around.stop_signal)
    if tether != -1:
        tether = out_of_the_way(tether)
    os.dup2(stderr, 2)
    for number, fd in enumerate(listeners, FIRST):
        os.dup2(fd, number)
    if tether != -1:
        os.dup2(tether, leash)
    fds.close_open_fds([*range(FIRST, leash + (tether != -1)), report])
    return report


def _leashed(tether: Tether, stop_signal: int) -> int:
    """A descriptor that makes the kernel stop our process group when the supervisor is gone; -1 where there is none."""
    import fcntl

    try:
        own = os.open(f"/proc/self/fd/{tether.read_end}", os.O_RDONLY | os.O_NONBLOCK)
        fcntl.fcntl(own, fcntl.F_SETSIG, stop_signal)
    except (AttributeError, OSError):
        return -1  # both are Linux's
    fcntl.fcntl(own, fcntl.F_SETOWN, -os.getpid())
    fcntl.fcntl(own, fcntl.F_SETFL, os.O_NONBLOCK | os.O_ASYNC)
    try:
        os.read(own, 1)
        os._exit(127)  # what has ended already sends nothing
    except BlockingIOError:
        return own


def _be_as_at_first(program: command.Command) -> None:
    """Signals, limits and directory as the supervisor was given them. A handler of ours would lose in the exec what it
    has noted."""
    import resource

    for number in signal.valid_signals():
        disposition: Any = signal.getsignal(number)
        if disposition not in (signal.SIG_DFL, signal.SIG_IGN, None) or number in command.IGNORED_BY_CPYTHON:
            signal.signal(number, signal.SIG_DFL)
    if program.nofile is not None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (program.nofile, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    if program.cwd is not None:
        try:
            os.chdir(program.cwd)
        except OSError as error:
            raise OSError(error.errno, f"{program.cwd}: {error.strerror}") from error


def _exec(argv: list[str], env: dict[str, str]) -> NoReturn:
    """As execvpe, whose own search imports modules. What cannot be executed counts if nothing better is found."""
    if "/" in argv[0]:
        os.execve(argv[0], argv, env)
    failure = FileNotFoundError(2, os.strerror(2))  # 2: ENOENT everywhere
    for folder in env.get("PATH", os.defpath).split(os.pathsep):
        try:
            os.execve(os.path.join(folder, argv[0]), argv, env)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except PermissionError as error:
            failure = error  # type: ignore[assignment]
    raise failure
