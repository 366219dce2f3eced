"""What is behind a pid that somebody has written down: a process that lives, the one that was meant, or another.

The kernel gives numbers again: after a reboot or in a container at once, elsewhere after some thousand processes. So a
process that has started later than its number was written down is not the one that was meant. When it has started is
told by Linux alone, in ticks since the boot; the time of the boot is taken from the clocks, for /proc/stat and
/proc/uptime may be a container's own, where the ticks are not.
"""

from __future__ import annotations

import os

__all__ = ["is_alive", "may_be_meant", "what_runs"]

_SLACK = 2.0  # seconds; file times come from a coarse clock, and clocks are set by a little, as for a leap second


def is_alive(pid: int) -> bool:
    """Whether there is such a process, of any user, and it is not a zombie (which only Linux tells)."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        pass
    except (OSError, OverflowError):
        return False
    status = _status_of(pid)
    return status is None or status[0] not in (b"Z", b"X")


def may_be_meant(pid: int, written: float) -> bool:
    """Whether the process was there when its pid was written down, in seconds of the clock. If nothing tells: yes."""
    import time

    status = _status_of(pid)
    if status is None or not hasattr(time, "CLOCK_BOOTTIME"):
        return True
    age = time.clock_gettime(time.CLOCK_BOOTTIME) - status[1] / os.sysconf("SC_CLK_TCK")
    return time.time() - age <= written + _SLACK


def what_runs(pid: int) -> str:
    """Its command, on one line and fit for a terminal; "" where that cannot be told."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb", buffering=0) as file:
            command = file.read(200).rstrip(b"\0").replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""
    return "".join(each if each.isprintable() else "?" for each in command)


def _status_of(pid: int) -> tuple[bytes, int] | None:
    """Its state, as a letter, and its start in ticks after the boot; None where there is no /proc."""
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
            return _parsed(file.read())
    except (OSError, ValueError, IndexError):
        return None


def _parsed(status: bytes) -> tuple[bytes, int]:
    fields = status[status.rindex(b")") + 1 :].split()  # its name, in parentheses, may have anything in it
    return fields[0], int(fields[19])
