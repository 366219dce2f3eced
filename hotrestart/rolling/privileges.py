"""What a supervisor does not do for a member that has dropped its privileges, or says what is not so.

A program may be started by root and give that up in `main()` or at import. What it says over its lifeline then comes
from somebody who must not be able to have things done by root.
"""

from __future__ import annotations

import os

__all__ = ["are_ours", "are_parent_and_child"]


def are_ours(pid: int) -> bool:
    """Whether the process has the rights that we have; False if that cannot be told and we are root."""
    try:
        return os.stat(f"/proc/{pid}").st_uid == os.geteuid()
    except OSError:
        return os.geteuid() != 0


def are_parent_and_child(parent: int, child: int, pidfd: int = -1) -> bool:
    """Whether that is so, and the pidfd, if there is one, is the child's; True as well if it is gone by now."""
    try:
        if pidfd != -1:
            with open(f"/proc/self/fdinfo/{pidfd}") as file:
                named = dict(line.split(":", 1) for line in file.read().splitlines())
            if int(named["Pid"]) != child:
                return int(named["Pid"]) == -1
        with open(f"/proc/{child}/stat") as file:
            return int(file.read().rpartition(")")[2].split()[1]) == parent
    except (OSError, ValueError, LookupError):
        return not os.path.isdir("/proc/self/fdinfo") or not os.path.exists(f"/proc/{child}")
