"""What `status` tells of a program: plain data, the same form for both kinds, put together when it is asked for."""

from __future__ import annotations

import os
import sys
from time import monotonic

from . import command, state

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["in_place", "program", "resident", "worker"]


def program(kind: str, how: str, stage: str, started: float, last: dict[str, Any] | None) -> dict[str, Any]:
    """What is said of every program. `kind`: "in place", "rolling" or "run"; `how` it is: "starting", "serving",
    "restarting" or "stopping"; `stage` of the restart that is under way; `started`: of `monotonic`."""
    import hotrestart

    return {
        "pid": os.getpid(),
        "kind": kind,
        "state": how,
        "stage": stage,
        "generation": state.generation,
        "uptime": monotonic() - started,
        "command": command.first.argv,
        "python": ".".join(str(each) for each in sys.version_info[:3]),
        "hotrestart": hotrestart.__version__,
        "last": last,
    }


def worker(pid: int, generation: int, how: str, since: float | None, beats: int | None = None) -> dict[str, Any]:
    """What is said of a worker. `since` it serves: of `monotonic`; `beats`: turns of its loop, if they are counted;
    `memory`: resident, in bytes, None where it cannot be told."""
    return {
        "pid": pid,
        "generation": generation,
        "state": how,
        "age": None if since is None else max(0.0, monotonic() - since),
        "beats": beats,
        "memory": resident(pid) or None,
    }


def in_place(started: float, ready_at: float | None, stage: str, last: dict[str, Any] | None) -> dict[str, Any]:
    """The status of this process as a program that restarts in place."""
    how = "stopping" if state.reason == "stop" else "starting" if ready_at is None else "serving"
    if ready_at is not None and stage and state.reason != "stop":
        how = "restarting"
    own = worker(os.getpid(), state.generation, how, ready_at)
    return {**program("in place", how, stage, started, last), "workers": [own], "wanted": 1}


def resident(pid: int) -> int:
    """Bytes of memory that a process has now; 0 where that cannot be told."""
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0
