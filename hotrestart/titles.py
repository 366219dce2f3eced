"""What `ps` and `top` show: which process of a program is which, and of what generation.

The name of the main thread is what `top` and `ps -o comm` show: 15 bytes, and a file in /proc is all it takes. Where
setproctitle is installed the whole command line says it too. (It writes over the environment that /proc shows, unless
SPT_NOENV is set; then there is less room.)
"""

from __future__ import annotations

import sys

from . import command

__all__ = ["load", "name"]


def load() -> None:
    """Import setproctitle, if it is there: once, in the process that forks all others."""
    try:
        __import__("setproctitle")
    except Exception:  # whatever an extension can raise: it is decoration
        pass


def name(what: str, generation: int) -> None:
    """Call this process `what`, of this generation. Nothing happens where that cannot be done."""
    try:
        with open("/proc/self/comm", "w") as file:
            file.write(f"{what} {generation}"[:15])
    except OSError:
        pass
    module = sys.modules.get("setproctitle")
    if module is not None:
        module.setproctitle(f"{what} {generation}: {command.first.script or 'hotrestart'}")
