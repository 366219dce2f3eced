"""The leash: the kernel sends this process a TERM when its supervisor is gone.

A process that serves cannot watch for the death of its supervisor: its main thread is in a job, and a thread of ours
would be one that the program has not asked for. The kernel can (`O_ASYNC` with `F_SETSIG`), and what it sends is what
the process understands anyway.

What is watched is a pipe whose one write end only the supervisor has, and into which it never writes. The lifeline
would not do: a socket sends the signal for room to write as well. All members share the pipe, and whom to tell is kept
with the open file, so each has to open it anew.
"""

from __future__ import annotations

import os

__all__ = ["Tether", "die_with_the_writer_of", "leash", "unleash"]

_own: int = -1


class Tether:
    """The pipe. `read_end` is for all members, `write_end` for the supervisor alone (-1 elsewhere)."""

    read_end: int
    write_end: int

    __slots__ = ("read_end", "write_end")

    def __init__(self, read_end: int = -1, write_end: int = -1) -> None:
        """A new one, or one from another process: then no descriptor of it is inherited any further."""
        if read_end == -1:
            from .fds import above_stdio

            read_end, write_end = (above_stdio(fd) for fd in os.pipe())
            try:
                os.fchmod(read_end, 0o444)  # a member that has become somebody else opens it anew too
            except OSError:
                pass  # not Linux, where it does not matter
        self.read_end, self.write_end = read_end, write_end
        for fd in (read_end, write_end):
            if fd != -1:
                os.set_inheritable(fd, False)

    def let_go(self) -> None:
        """In a child that has been forked from the supervisor-to-be: the write end is not its business."""
        if self.write_end != -1:
            os.close(self.write_end)
            self.write_end = -1

    def close(self) -> None:
        """All who are leashed to it get their TERM."""
        self.let_go()
        os.close(self.read_end)


def leash(tether: Tether) -> bool:
    """TERM for this process once the supervisor is gone; at once, if it is gone by now.

    False where that cannot be had (F_SETSIG and /proc are Linux's). A forked child gets no TERM, an exec ends it.
    """
    import fcntl
    import signal

    global _own
    if not hasattr(fcntl, "F_SETSIG"):
        return False
    try:
        own = os.open(f"/proc/self/fd/{tether.read_end}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    from .fds import above_stdio

    unleash()
    _own = above_stdio(own)
    fcntl.fcntl(_own, fcntl.F_SETSIG, signal.SIGTERM)
    fcntl.fcntl(_own, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(_own, fcntl.F_SETFL, os.O_NONBLOCK | os.O_ASYNC)
    try:
        if not os.read(_own, 1):  # what has ended already sends nothing
            os.kill(os.getpid(), signal.SIGTERM)
    except BlockingIOError:
        pass
    return True


def die_with_the_writer_of(fd: int) -> None:
    """KILL for this process once nobody has the other end of this pipe any more, where that can be had.

    It is for nothing else: whatever is written or read would do it too.
    """
    import fcntl
    import signal

    if hasattr(fcntl, "F_SETSIG"):
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(fd, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_ASYNC)


def unleash() -> None:
    """Take back what `leash` did."""
    global _own
    if _own != -1:
        os.close(_own)
        _own = -1
