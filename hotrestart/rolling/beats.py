"""The beats: a page of memory that all workers share with the supervisor, with one number for each.

A worker adds to its number with every turn of its loop, which costs no system call, and the supervisor sees when a
number stands still. An odd number says "at work"; an even one "asleep by its own will, or not in the loop": a sleep may
last for ever, a job may not.
"""

from __future__ import annotations

import mmap
import os
from _thread import get_ident
from _weakref import ref

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["PLACES", "Beats", "Pulse", "Watch"]

PLACES = 8192
_SIZE = PLACES * 8


class Beats:
    """The page. `fd`: one that another process has made; it is not closed here. Shared after fork, gone after exec."""

    def __init__(self, fd: int | None = None) -> None:
        self._is_mine = fd is None
        self.fd: int = _memory() if fd is None else fd
        os.set_inheritable(self.fd, False)
        self.numbers: memoryview[int] = memoryview(mmap.mmap(self.fd, _SIZE)).cast("Q")

    def close(self) -> None:
        """Give the descriptor back; the page stays as long as somebody uses it."""
        if self._is_mine:
            os.close(self.fd)


class Pulse:
    """A worker's own number. Only the loop of the thread that has made it counts: others may read `running` as well."""

    __slots__ = ("__weakref__", "_limit", "_numbers", "_place", "_retire", "_thread", "_turns", "period")

    def __init__(
        self, beats: Beats, place: int, limit: int, retire: Callable[[], None], *, timeout: float | None = None
    ) -> None:
        """`retire` is called after `limit` turns (0: never). `timeout`: seconds after which the supervisor holds it for
        hung."""
        self.period: float | None = None if timeout is None else timeout / 4
        """Seconds between two beats for a loop that sleeps out of our sight; None if nobody looks."""
        self._numbers, self._place, self._limit, self._retire = beats.numbers, place, limit, retire
        self._turns, self._thread = 0, get_ident()
        _pulses.append(ref(self))

    def turn(self) -> None:
        """The loop begins another turn."""
        if get_ident() != self._thread:
            return
        self.beat()
        self._turns += 1
        if self._turns == self._limit:
            self._retire()

    def beat(self) -> None:
        """It is alive, and at work: without counting a turn."""
        if get_ident() == self._thread:
            number = self._numbers[self._place]
            self._numbers[self._place] = number + 1 + number % 2

    def rest(self) -> None:
        """What follows may last: a sleep, a wait, the time before and after the loop."""
        if get_ident() == self._thread:
            self._numbers[self._place] += self._numbers[self._place] % 2

    def work(self) -> None:
        """The rest is over."""
        if get_ident() == self._thread:
            self._numbers[self._place] += 1 - self._numbers[self._place] % 2


_pulses: list[ref[Pulse]] = []


def _stop_after_fork() -> None:
    """A child's thread has the same identity, and its loop would cover up a worker that hangs."""
    for reference in _pulses:
        pulse = reference()
        if pulse is not None:
            pulse._thread = 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_stop_after_fork)


class Watch:
    """What the supervisor knows of one worker's number: since when it has stood still."""

    __slots__ = ("_seen", "_since", "timeout")

    def __init__(self, timeout: float, now: float) -> None:
        self.timeout: float = timeout
        self._seen, self._since = 0, now

    def deadline(self, number: int, now: float) -> float:
        """When the worker counts as hung, if nothing changes; looked at no more often than it has to be."""
        if number != self._seen or number % 2 == 0:
            self._seen, self._since = number, now
        return self._since + self.timeout


def _memory() -> int:
    from ..fds import above_stdio

    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("hotrestart-beats", os.MFD_CLOEXEC)
    else:
        import tempfile

        fd, path = tempfile.mkstemp(prefix="hotrestart-")
        os.unlink(path)
    fd = above_stdio(fd)
    os.ftruncate(fd, _SIZE)
    return fd
