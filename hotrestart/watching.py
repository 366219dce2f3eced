"""`python -m hotrestart watch`: for development, a restart whenever a source file changes.

The program is restarted as ever: code that does not load is refused with its traceback, and the old code serves on
until the next change. A program that has failed altogether is started again by the next change. watchfiles notices
changes at once, if it is installed; otherwise the files' times and sizes are looked at twice a second.
"""

from __future__ import annotations

import argparse
import fnmatch
import os
import signal
import subprocess
import sys
from functools import partial
from time import monotonic, sleep

from . import control, signals
from .errors import HotRestartError, NotThereError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Any, NoReturn

__all__ = ["add_to", "changed", "snapshot"]

_EVERY = 0.5  # seconds between two looks
_BOOTS = 60.0  # seconds after its start in which a program may not have a control socket yet
_CALM = 0.1  # seconds without a change: an editor or a checkout writes several files
_PASSED_OVER = {"__pycache__", "node_modules", "site-packages"}

Snapshot = dict[str, tuple[int, int, int]]


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to a command line."""
    parser = commands.add_parser(
        "watch",
        help="for development: restart a program whenever its files change",
        usage="%(prog)s [options] -- COMMAND [ARGUMENT...]",
        description="Start a program that uses hotrestart, and restart it whenever a file changes. New code that does "
        "not load is shown, and the old code serves on; a program that has failed is started again by the next change.",
        epilog="examples:\n  python3 -m hotrestart watch -- python3 app.py\n"
        "  python3 -m hotrestart watch --dir src --include '*.py' --include '*.toml' -- python3 -m app\n"
        "  python3 -m hotrestart watch -- python3 -m hotrestart run -- ./anything\n\n"
        "exit status: the program's own; 130 for Ctrl-C; 2 for wrong usage\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--dir", action="append", default=[], metavar="FOLDER", help="what is watched, with all below it (here)")
    add("--include", action="append", default=[], metavar="PATTERN", help="names of files that count (*.py)")
    add("command", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    parser.set_defaults(run=partial(_run, refuse=parser.error))


def snapshot(folders: Sequence[str], patterns: Sequence[str]) -> Snapshot:
    """What tells a file from its next version: change time, size and inode, for each that counts. Hidden folders are
    passed over, and virtual environments."""
    found: Snapshot = {}
    for top in folders:
        for folder, below, names in os.walk(top):
            below[:] = [each for each in below if not _is_passed_over(folder, each)]
            for name in names:
                if _counts(name, patterns):
                    path = os.path.join(folder, name)
                    try:
                        status = os.stat(path)
                    except OSError:
                        continue  # gone again
                    found[path] = (status.st_mtime_ns, status.st_size, status.st_ino)
    return found


def changed(before: Snapshot, now: Snapshot) -> list[str]:
    """The files that are new, gone, or not the same."""
    return sorted(path for path in before.keys() | now.keys() if before.get(path) != now.get(path))


def _run(given: argparse.Namespace, refuse: Callable[[str], NoReturn]) -> int:
    argv: list[str] = given.command[1:] if given.command[:1] == ["--"] else given.command
    if not argv:
        refuse("which program? write its command after --")
    folders, patterns = given.dir or ["."], given.include or ["*.py"]
    for folder in folders:
        if not os.path.isdir(folder):
            refuse(f"--dir: there is no folder {folder!r}")
    watchfiles = _watchfiles()
    program = _Program(argv)
    for number in (signal.SIGTERM, signal.SIGHUP):  # a terminal that is closed sends HUP to both of us
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda _number, _frame: program.stop())
    before = snapshot(folders, patterns)  # what changes from here on the program may not have seen
    try:
        program.start()
    except OSError as error:
        refuse(f"{argv[0]!r} cannot be started: {error.strerror}")
    try:
        for files in _changes(before, folders, patterns, program, watchfiles):
            more = f" and {len(files) - 1} more" if len(files) > 1 else ""
            program.renew(f"{files[0]}{more} changed")
        return program.exit_status()
    except KeyboardInterrupt:
        program.see_to_its_end()
        raise


class _Program:
    """What is watched over. `is_deaf`: it boots, and has not heard of the last change."""

    _child: subprocess.Popen[bytes]

    def __init__(self, argv: list[str]) -> None:
        self._argv, self._is_stopping, self._is_failure_told = argv, False, False
        self.is_deaf: bool = False

    def start(self) -> None:
        """Raises OSError if that cannot be; it may have been told to stop by then."""
        self._child, self._started = subprocess.Popen(self._argv), monotonic()
        if self._is_stopping:
            self._child.terminate()

    def is_over(self) -> bool:
        """It has ended, and not by a failure that the next change may mend."""
        status = self._child.poll()
        if status and not self._is_stopping and not self._is_failure_told:
            self._is_failure_told = True
            how = f"with status {status}" if status > 0 else f"by signal {-status}"
            _say(f"the program has ended {how}; the next change starts it again")
        return status == 0 or (status is not None and self._is_stopping)

    def rest(self) -> None:
        """Until it is time for another look, or until the program ends."""
        try:
            if self._child.wait(_EVERY):
                sleep(_EVERY)
        except subprocess.TimeoutExpired:
            pass

    def renew(self, why: str) -> None:
        """Restart it; or start it, if it is not there any more."""
        if not self.is_deaf:
            _say(why)
        self.is_deaf = False
        try:
            if self._child.poll() is None:
                _say(str(control.restart(self._child.pid, timeout=None)))  # the traceback it has shown itself
            else:
                self._is_failure_told = False
                self.start()
        except (HotRestartError, OSError) as error:
            self.is_deaf = isinstance(error, NotThereError) and self._boots()
            if not self.is_deaf:
                _say(str(error))

    def _boots(self) -> bool:
        """It has no control socket because it has not come to it yet, and not because it has just died."""
        try:
            self._child.wait(_CALM)
        except subprocess.TimeoutExpired:
            return monotonic() - self._started < _BOOTS
        return False

    def stop(self) -> None:
        """Gracefully, and for good."""
        self._is_stopping = True
        if hasattr(self, "_child"):
            self._child.terminate()

    def see_to_its_end(self) -> None:
        """A terminal has sent INT to both of us, and a second one cuts the end short; anybody else, to us alone."""
        try:
            self._child.wait(_EVERY)
            return
        except subprocess.TimeoutExpired:
            pass
        try:
            if control.status(self._child.pid)["state"] != "stopping":
                self._child.terminate()
        except HotRestartError:
            self._child.terminate()
        self._child.wait()

    def exit_status(self) -> int:
        """Once it is over; of a signal as a shell would say it."""
        status = self._child.wait()
        return status if status >= 0 else 128 - status


def _say(text: str) -> None:
    print(f"hotrestart: {text}", file=sys.stderr)


def _changes(
    before: Snapshot, folders: list[str], patterns: list[str], program: _Program, watchfiles: Any
) -> Iterator[list[str]]:
    """The files that have changed, each time that some have and it is calm again; until the program is over."""
    for _ in _ticks(folders, program, watchfiles):
        now = snapshot(folders, patterns)
        files = changed(before, now)
        if files:
            deadline = monotonic() + 10 * _CALM
            while monotonic() < deadline:
                sleep(_CALM)
                later = snapshot(folders, patterns)
                if later == now:
                    break
                now = later
            yield changed(before, now) or files
            before = before if program.is_deaf else now


def _watchfiles() -> Any:
    """The module, or None. Ctrl-C waits meanwhile: until 3.11 a class that is just being made turns it into a
    RuntimeError, and after one in an `exec()` the exit status of the process is not its own."""
    mask = signals.block((signal.SIGINT,))
    try:
        return __import__("watchfiles")
    except ImportError:
        return None
    finally:
        signals.restore_mask(mask)


def _ticks(folders: list[str], program: _Program, watchfiles: Any) -> Iterator[None]:
    """Whenever it is time to look, as long as the program is not over."""
    while watchfiles is None:
        program.rest()
        if program.is_over():
            return
        yield
    milliseconds = int(_EVERY * 1000)
    knows_all = False  # it tells of what comes after it has begun
    for found in watchfiles.watch(*folders, watch_filter=None, rust_timeout=milliseconds, yield_on_timeout=True):
        if program.is_over():
            return
        if found or program.is_deaf or not knows_all:
            yield
        knows_all = True


def _is_passed_over(folder: str, name: str) -> bool:
    virtual = os.path.exists(os.path.join(folder, name, "pyvenv.cfg"))
    return name.startswith(".") or name in _PASSED_OVER or virtual


def _counts(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)
