"""Sockets that systemd (or anything that speaks its protocol) opened for this program before it started."""

from __future__ import annotations

import os

__all__ = ["listen_fds"]

_FIRST = 3  # SD_LISTEN_FDS_START


def listen_fds(*, unset: bool = True) -> list[tuple[int, str]]:
    """The descriptors passed in LISTEN_FDS, each with its name from LISTEN_FDNAMES ("unknown" if it has none).

    Empty if the variables are missing, garbled, or meant for another process (LISTEN_PID). With `unset` they are
    removed from os.environ, so that no child takes them for its own; a restart puts them back, and since it keeps pid
    and numbers they stay true in the next generation. Source: sd_listen_fds(3).
    """
    take = os.environ.pop if unset else os.environ.get
    pid, count, names = (take(name, "") for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"))
    if not (pid.isdecimal() and count.isdecimal()) or int(pid) != os.getpid():
        return []
    labels = names.split(":") if names else []
    labels += ["unknown"] * (int(count) - len(labels))
    return [(_FIRST + index, labels[index]) for index in range(int(count))]
