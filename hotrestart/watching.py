"""`python -m hotrestart watch`: for development, a restart whenever a source file changes.

The program is restarted as ever: code that does not load is refused with its traceback, and the old code serves on
until the next change. watchfiles notices changes at once, if it is installed; otherwise the files' times and sizes are
looked at twice a second.
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

from . import control
from .errors import HotRestartError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Any, NoReturn

__all__ = ["add_to", "changed", "snapshot"]

_EVERY = 0.5  # seconds between two looks
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
        "not load is shown, and the old code serves on.",
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
    try:
        child = subprocess.Popen(argv)
    except OSError as error:
        refuse(f"{argv[0]!r} cannot be started: {error.strerror}")
    signal.signal(signal.SIGTERM, lambda _number, _frame: child.terminate())
    try:
        for files in _changes(folders, patterns, child):
            _restart(child, files)
        return _status_of(child)
    except KeyboardInterrupt:
        _see_to_the_end_of(child)
        raise


def _restart(child: subprocess.Popen[bytes], files: list[str]) -> None:
    more = f" and {len(files) - 1} more" if len(files) > 1 else ""
    print(f"hotrestart: {files[0]}{more} changed", file=sys.stderr)
    try:
        outcome = control.restart(child.pid, timeout=None)
    except HotRestartError as error:
        print(f"hotrestart: {error}", file=sys.stderr)
        return
    print(f"hotrestart: {outcome}", file=sys.stderr)  # the program itself has shown the traceback


def _changes(folders: list[str], patterns: list[str], child: subprocess.Popen[bytes]) -> Iterator[list[str]]:
    """The files that have changed, each time that some have and it is calm again; until the program has ended."""
    before = snapshot(folders, patterns)
    for _ in _ticks(folders, child):
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
            before = now


def _ticks(folders: list[str], child: subprocess.Popen[bytes]) -> Iterator[None]:
    """Whenever it is time to look, as long as the program runs."""
    try:
        watchfiles: Any = __import__("watchfiles")
    except ImportError:
        while child.poll() is None:
            try:
                child.wait(_EVERY)
            except subprocess.TimeoutExpired:
                yield
        return
    milliseconds = int(_EVERY * 1000)
    knows_all = False  # it tells of what comes after it has begun
    for found in watchfiles.watch(*folders, watch_filter=None, rust_timeout=milliseconds, yield_on_timeout=True):
        if child.poll() is not None:
            return
        if found or not knows_all:
            yield
        knows_all = True


def _see_to_the_end_of(child: subprocess.Popen[bytes]) -> None:
    """A terminal has sent INT to both of us, and a second one would cut the end short; anybody else, to us alone."""
    try:
        child.wait(_EVERY)
        return
    except subprocess.TimeoutExpired:
        pass
    try:
        if control.status(child.pid)["state"] != "stopping":
            child.terminate()
    except HotRestartError:
        child.terminate()
    child.wait()


def _status_of(child: subprocess.Popen[bytes]) -> int:
    status = child.wait()
    return status if status >= 0 else 128 - status


def _is_passed_over(folder: str, name: str) -> bool:
    virtual = os.path.exists(os.path.join(folder, name, "pyvenv.cfg"))
    return name.startswith(".") or name in _PASSED_OVER or virtual


def _counts(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)
