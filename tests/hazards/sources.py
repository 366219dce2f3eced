"""Pieces of source that several programs under test share, and what tests of several files do to them."""

from __future__ import annotations

import os
import sys
from pathlib import Path

WAIT_FOR = """
import os as _os2, time as _time
def wait_for(name, seconds=60):
    "Wait until the test has made the file `name` in the folder of app.py, or `seconds` have passed."
    path = _os2.path.join(_os2.path.dirname(_os2.environ["REPORT"]), name)
    deadline = _time.monotonic() + seconds
    while not _os2.path.exists(path) and _time.monotonic() < deadline:
        _time.sleep(0.002)
"""
"""`wait_for(name)`: the program goes on when the test says so, with `go(program, name)`."""


def go(folder: Path, name: str) -> None:
    """What `wait_for(name)` in the program waits for."""
    (folder / name).touch()


def status(pid: int) -> dict[str, str]:
    """/proc/PID/status, by name."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def mask(pid: int, name: str = "SigBlk") -> set[int]:
    """The signals in one of the masks of /proc/PID/status: SigBlk, SigIgn, SigCgt, SigPnd."""
    bits = int(status(pid)[name], 16)
    return {number for number in range(1, 65) if bits & 1 << (number - 1)}


def is_zombie(pid: int) -> bool:
    """Whether the process has ended and nobody has waited for it."""
    return os.path.exists(f"/proc/{pid}") and status(pid)["State"].startswith("Z")


def is_running(pid: int) -> bool:
    """Whether there is a process of that number that has not ended."""
    try:
        return not status(pid)["State"].startswith("Z")
    except OSError:
        return False


def an_interpreter(folder: Path) -> Path:
    """An interpreter by a path of its own, a link that a test can take away or replace."""
    folder.mkdir()
    link = folder / "python"
    link.symlink_to(os.path.realpath(sys.executable))
    return link
