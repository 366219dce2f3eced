"""`Command`: how this program was started, and how to start it again as if for the first time.

`[sys.executable] + sys.argv` is not it: it loses `-m`, `-c` and the interpreter's own flags. Nor is the present
directory (after a release symlink has moved, `getcwd` still names the old release), nor `os.environ` (edits pile up
over the generations), nor the present signal mask and ignored signals. All of it is noted when hotrestart is imported,
so import it early.
"""

from __future__ import annotations

import os
import stat
import sys
from time import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from collections.abc import Mapping, Sequence
    from typing import Any
else:
    import _signal as signal  # the module signal imports enum: 2 to 5 ms of every restart

__all__ = ["IGNORED_BY_CPYTHON", "VARIABLE", "Command", "first"]

VARIABLE = "HOTRESTART"
"""The environment variable that names what a generation inherits; never part of a command's environment."""

IGNORED_BY_CPYTHON = {getattr(signal, name, None) for name in ("SIGPIPE", "SIGXFSZ")}
"""CPython ignores these when it starts, whatever it was given; subprocess undoes that for its children."""


class Command:
    """What the first generation was given by whoever started it. Read it from any thread; it is for reading.

    `argv`: the arguments, interpreter first. `executable`: the interpreter. `cwd`: the logical directory, or None if
    it could not be told. `env`: the environment. `blocked` and `ignored`: signal numbers. `fds`: the descriptors above
    2 that were meant to be inherited, as `{number: (device, inode)}`. `since`: the wall clock's time at which none of
    the program's files had been read yet. `helpers`: pids of children that only a former generation knew, and that will
    end. `script`: `sys.argv[0]` as it was. `pid`: the process that the program is.
    `is_preflight`: this is new code on trial. `nofile`: the limit on open files that it is to have, if ours has been
    raised.
    """

    __slots__ = (
        "argv",
        "blocked",
        "cwd",
        "env",
        "executable",
        "fds",
        "helpers",
        "ignored",
        "is_preflight",
        "nofile",
        "pid",
        "script",
        "since",
    )

    def __init__(self) -> None:
        self.pid: int = os.getpid()
        self.is_preflight: bool = False
        self.nofile: int | None = None
        self.executable: str = sys.executable or "/proc/self/exe"
        self.script: str = (getattr(sys, "argv", None) or [""])[0]
        self.argv: list[str] = [self.executable, *sys.orig_argv[1:]]
        self.cwd: str | None = _logical_directory()
        self.env: dict[str, str] = _first_environment()
        self.since: float = time() - 2.0  # hotrestart may not be the first import
        self.blocked: list[int] = []
        self.ignored: list[int] = []
        self.helpers: list[int] = []
        self.fds: dict[int, tuple[int, int]] = {}
        if VARIABLE not in os.environ:
            self.note_what_was_given()

    @classmethod
    def of(cls, argv: Sequence[str], cwd: str | None = None, env: Mapping[str, str] | None = None) -> Command:
        """Another program's: its interpreter's path first; `cwd` and `env` as here and now, if not given."""
        from .errors import OptionError

        if isinstance(argv, str) or not argv or not all(isinstance(each, str) for each in argv):
            raise OptionError(f"a program is a list of arguments, its path first, not {argv!r}")
        program = cls()
        program.argv, program.executable, program.fds = list(argv), argv[0], {}
        program.cwd = cwd if cwd is not None else _logical_directory()
        program.env = dict(os.environ if env is None else env)
        program.env.pop(VARIABLE, None)
        program.is_preflight, program.helpers, program.since = False, [], time()
        return program

    @classmethod
    def from_document(cls, document: dict[str, Any]) -> Command:
        """What `as_document` has put down, perhaps in another process."""
        program = cls.__new__(cls)
        for name in cls.__slots__:
            setattr(program, name, document[name])
        program.fds = {int(fd): (device, inode) for fd, (device, inode) in document["fds"].items()}
        return program

    def as_document(self) -> dict[str, Any]:
        """As plain data, for JSON."""
        return {
            **{name: getattr(self, name) for name in self.__slots__},
            "fds": {str(fd): i for fd, i in self.fds.items()},
        }

    def note_what_was_given(self) -> None:
        """Note mask, ignored signals and descriptors; a later generation is told what the first one noted."""
        if hasattr(os, "fork"):
            self.blocked = sorted(int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, ()))
            self.ignored = _ignored_signals()
            self.fds = _given_fds()

    def check(self) -> None:
        """Raise NotRestartableError if the same command would not run the same program.

        A script from standard input, or typed at a prompt, has been read and cannot be read again.
        """
        if not hasattr(os, "fork"):
            from .errors import NotRestartableError

            raise NotRestartableError("hotrestart needs a POSIX system: there is no exec that keeps the pid here")
        if self.script in ("", "-") or _can_be_read_once(os.path.join(self.cwd or "", self.script)):
            from .errors import NotRestartableError

            raise NotRestartableError(
                "this program's code came from standard input, which cannot be read twice; "
                "put it in a file, a package (-m) or a string (-c)"
            )

    def is_here(self) -> bool:
        """Whether the process is in the command's directory now (by any name)."""
        try:
            return self.cwd is None or os.path.samefile(self.cwd, os.curdir)
        except OSError:
            return False

    def __repr__(self) -> str:
        return f"<Command {self.argv!r} in {self.cwd!r}>"


def _can_be_read_once(script: str) -> bool:
    """A pipe by its name: `python /dev/stdin`, `python <(...)`."""
    try:
        mode = os.stat(script).st_mode
    except OSError:
        return False  # -c, -m, or a script that has been deleted, and may be there again when it is needed
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def _logical_directory() -> str | None:
    """$PWD if it names the present directory, for it goes on naming the release that a symlink leads to."""
    logical = os.environ.get("PWD", "")
    try:
        if os.path.isabs(logical) and os.path.samefile(logical, os.curdir):
            return logical
        return os.getcwd()
    except OSError:
        return None


def _first_environment() -> dict[str, str]:
    """The environment as exec laid it out, even if os.environ was edited before hotrestart was imported.

    /proc/self/environ tells, unless something like setproctitle has written a title over it; then what is between the
    NULs does not look like variables any more, and os.environ has to do.
    """
    try:
        with open("/proc/self/environ", "rb", buffering=0) as file:
            parts = file.readall().split(b"\0")
    except OSError:
        parts = []
    if parts and not parts.pop() and all(part.find(b"=") > 0 for part in parts):
        environment: dict[str, str] = {}
        for name, _, value in (part.partition(b"=") for part in parts):
            environment.setdefault(os.fsdecode(name), os.fsdecode(value))  # the first counts, as for os.environ
    else:
        environment = dict(os.environ)
    environment.pop(VARIABLE, None)
    return environment


def _ignored_signals() -> list[int]:
    """What nohup and background shells leave behind."""
    return [number for number in range(1, signal.NSIG) if number not in IGNORED_BY_CPYTHON and _is_ignored(number)]


def _is_ignored(number: int) -> bool:
    try:
        return signal.getsignal(number) == signal.SIG_IGN
    except ValueError:
        return False  # not a signal here


def _given_fds() -> dict[int, tuple[int, int]]:
    from .fds import open_fds

    given: dict[int, tuple[int, int]] = {}
    for fd in open_fds(3):
        try:
            if os.get_inheritable(fd):
                status = os.fstat(fd)
                given[fd] = (status.st_dev, status.st_ino)
        except OSError:
            continue  # it was open only for the listing
    return given


first: Command = Command()
"""The command of this program, noted when this module was first imported."""
