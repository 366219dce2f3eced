"""`python3 -m hotrestart demo`: real restarts of real programs under load, and a ledger of every job and request.

Nothing here is staged: the programs are `worker.py` and `server.py`, copied into a temporary folder and run by this
Python; the restarts are HUPs from outside; the ledgers are read from what the worker and the server's clients wrote
down. Whatever happens, Ctrl-C included, all processes are ended and the folder is removed.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from ..sleeper import Sleeper
    from .display import Display

__all__ = ["HALVES", "run"]

HALVES = ("in-place", "rolling")
"""What can be shown."""


def run(halves: Sequence[str] = HALVES) -> int:
    """Show them on standard output. 0: all promises were kept; 1: not, and it says which; 130: interrupted."""
    obstacle = _obstacle(halves)
    if obstacle:
        return _give_up(obstacle)
    from .story import Interrupted

    try:
        return _run(halves)
    except Interrupted:
        print("hotrestart demo: interrupted; what it started is ended, its folder removed", file=sys.stderr)
        return 130
    except BrokenPipeError:
        raise  # the command line's
    except OSError as error:  # no temporary folder, no space, no processes to be had
        return _give_up(str(error))


def _run(halves: Sequence[str]) -> int:
    import signal
    from pathlib import Path
    from tempfile import TemporaryDirectory

    from ..signals import handling
    from ..sleeper import Sleeper
    from .display import Display

    sleeper = Sleeper()
    display = Display(sys.stdout)
    status = 0
    try:
        with handling(sleeper, restart=(), stop=(signal.SIGINT, signal.SIGTERM, signal.SIGHUP)):
            for half in halves:
                if half != halves[0]:
                    display.line("\n")
                with TemporaryDirectory(prefix="hotrestart-demo-") as folder:
                    status |= _show(half, Path(folder), display, sleeper)
    finally:
        sleeper.close()
        display.clear()
    return status


def _show(half: str, folder: Path, display: Display, sleeper: Sleeper) -> int:
    if half == "rolling":
        from . import rolling

        return rolling.demonstrate(folder, display, sleeper)
    from sqlite3 import Error as DatabaseError

    from . import inplace

    try:
        return inplace.demonstrate(folder, display, sleeper)
    except DatabaseError as error:
        raise OSError(str(error)) from error


def _obstacle(halves: Sequence[str]) -> str | None:
    """Why it cannot be shown here."""
    if not hasattr(os, "fork"):
        return "it needs a POSIX system, such as Linux or macOS: there is no exec that keeps the pid here"
    try:
        if "in-place" in halves:
            import_module("sqlite3")
    except ImportError as error:
        return (
            f"this Python has no sqlite3, which the demonstration keeps its jobs in ({error}): "
            "try another Python, or `demo rolling`; hotrestart itself does without"
        )
    return None


def _give_up(why: str) -> int:
    print(f"hotrestart demo: {why}", file=sys.stderr)
    return 1
