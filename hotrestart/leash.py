"""The leash: have the kernel send this process a TERM when a socket becomes readable.

A process that serves cannot watch for the death of its supervisor: its main thread is in a job, and a thread of ours
would be one that the program has not asked for. The kernel can (`O_ASYNC` with `F_SETSIG`), and what it sends is what
the process understands anyway.
"""

from __future__ import annotations

import os

__all__ = ["leash", "unleash"]


def leash(fd: int) -> bool:
    """TERM for this process when `fd` becomes readable or ends. False where that cannot be had (F_SETSIG is Linux's).

    Who is to be told is kept with the open file, by process and not by number: children that inherit it do not matter.
    What is readable already sends nothing: look afterwards.
    """
    import fcntl
    import signal

    if not hasattr(fcntl, "F_SETSIG"):
        return False
    fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGTERM)
    fcntl.fcntl(fd, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_ASYNC)
    return True


def unleash(fd: int) -> None:
    """Take back what `leash` did."""
    if hasattr(os, "O_ASYNC"):
        import fcntl

        fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) & ~os.O_ASYNC)
