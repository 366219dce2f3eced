"""The exec that makes a process the bare supervisor; apart from that, so that whoever execs loads nothing of it."""

from __future__ import annotations

import signal

from .. import command, listeners, reexec
from ..shrugging import FOR_SUPERVISORS
from .home import Home

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

__all__ = ["SIGNALS", "become"]

SIGNALS = (*FOR_SUPERVISORS, signal.SIGTERM, signal.SIGQUIT)
"""What the supervisor acts on."""

_JUST_STARTED: dict[str, Any] = {"generation": 1, "last": 1, "server": [], "restart": False, "serving": None}

_CODE = (
    "import os, sys; sys.path.append(sys.argv[1]); told = os.environ.pop('HOTRESTART'); "
    "from hotrestart.rolling.bare import main; main(told)"
)


def become(document: dict[str, Any], keep: set[int], home: Home | None = None) -> NoReturn:
    """Exec this process into the bare supervisor. Raises OSError, and everything is as before.

    `document`: what it has to know: `options`, `ties` and `desk`; and, where it is not as for a program that has just
    been started, `generation` and the `last` one that was tried, the `server` that has been forked already, whether a
    `restart` has been asked for, and what is `serving`. `keep`: descriptors, besides those of these.
    """
    home = home or Home.own()
    argv = [home.python, "-I", "-S", "-B", "-c", _CODE, home.library, "supervisor of", *command.first.argv]
    held = [int(number) for number in SIGNALS if number not in command.first.blocked]
    listening = listeners.hand_over()
    keep = {
        *keep,
        *document["ties"],
        *document["desk"]["fds"],
        *command.first.fds,
        *[each["fd"] for each in listening],
        *listeners.systemd_fds(),
    }
    common = {"role": "supervisor", "command": command.first.as_document(), "listeners": listening, "held": held}
    reexec.exec_with(home.python, argv, {**_JUST_STARTED, **common, **document}, keep)
