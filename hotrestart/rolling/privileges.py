"""What a supervisor does not do for a member that has dropped its privileges, or says what is not so.

A program may be started by root and give that up in `main()` or at import. What it says over its lifeline then comes
from somebody who must not be able to have things done by root.
"""

from __future__ import annotations

import errno
import os

__all__ = ["are_ours", "are_parent_and_child"]

_LACKING = (errno.EMFILE, errno.ENFILE)


def are_ours(pid: int) -> bool:
    """Whether the process has the rights that we have; False if that cannot be told and we are root."""
    try:
        return os.stat(f"/proc/{pid}").st_uid == os.geteuid()
    except OSError:
        return os.geteuid() != 0


def are_parent_and_child(parent: int, child: int, pidfd: int = -1) -> bool:
    """Whether that is so, and the pidfd, if there is one, is the child's; True as well if one of them has gone.

    Raises OSError if there is no descriptor left to look with."""
    if not 0 < child < 2**31:
        return False  # 0 and -1 are many at once for kill(2)
    try:
        if pidfd != -1:
            with open(f"/proc/self/fdinfo/{pidfd}") as file:
                named = dict(line.split(":", 1) for line in file.read().splitlines())
            if int(named["Pid"]) != child:
                return int(named["Pid"]) == -1
        return int(_stat(child)[1]) == parent or not _is_running(parent)  # orphans get another parent
    except (OSError, ValueError, LookupError) as error:
        if isinstance(error, OSError) and error.errno in _LACKING:
            raise
        return not os.path.isdir("/proc/self/fdinfo") or not os.path.exists(f"/proc/{child}")


def _stat(pid: int) -> list[str]:
    """State, parent and so on, see proc(5)."""
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()


def _is_running(pid: int) -> bool:
    try:
        return _stat(pid)[0] not in "ZX"
    except OSError as error:
        if error.errno in _LACKING:
            raise
        return False
