"""`python3 -m hotrestart demo`: real restarts of a real program under load, and a ledger of every job.

Nothing here is staged: the program is `worker.py`, copied into a temporary folder and run by this Python; the restarts
are HUPs from outside; the ledger is read from what the program wrote down. Whatever happens, Ctrl-C included, the
program is ended and the folder removed.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module

__all__ = ["run"]


def run() -> int:
    """Show it on standard output. 0: all promises were kept; 1: not, and it says which; 130: interrupted."""
    obstacle = _obstacle()
    if obstacle:
        return _give_up(obstacle)
    from sqlite3 import Error as DatabaseError

    from .inplace import Interrupted

    try:
        return _run()
    except Interrupted:
        print("hotrestart demo: interrupted; the worker is ended, its folder removed", file=sys.stderr)
        return 130
    except BrokenPipeError:
        raise  # the command line's
    except (OSError, DatabaseError) as error:  # no temporary folder, no space, no processes to be had
        return _give_up(str(error))


def _run() -> int:
    import signal
    from pathlib import Path
    from tempfile import TemporaryDirectory

    from ..signals import handling
    from ..sleeper import Sleeper
    from .display import Display
    from .inplace import demonstrate

    sleeper = Sleeper()
    display = Display(sys.stdout)
    try:
        with (
            handling(sleeper, restart=(), stop=(signal.SIGINT, signal.SIGTERM, signal.SIGHUP)),
            TemporaryDirectory(prefix="hotrestart-demo-") as folder,
        ):
            return demonstrate(Path(folder), display, sleeper)
    finally:
        sleeper.close()
        display.clear()


def _obstacle() -> str | None:
    """Why it cannot be shown here."""
    if not hasattr(os, "fork"):
        return "it needs a POSIX system, such as Linux or macOS: there is no exec that keeps the pid here"
    try:
        import_module("sqlite3")
    except ImportError as error:
        return (
            f"this Python has no sqlite3, which the demonstration keeps its jobs in ({error}): "
            "try another Python; hotrestart itself does without"
        )
    return None


def _give_up(why: str) -> int:
    print(f"hotrestart demo: {why}", file=sys.stderr)
    return 1
