"""A worker that is a command without code of ours, and what it prints to standard error.

Standard error passes through us for as long as the worker lives: its end is the reason when a new version fails, and no
command can be made to print elsewhere once it serves. So nothing may be lost on the way: no more is read than there is
room for in our own standard error, and a worker that prints faster than that is read waits, as it would without us. If
the supervisor is killed, what its workers print then reaches nobody: EPIPE, or SIGPIPE.
"""

from __future__ import annotations

import os

from .. import last_words, log
from .members import Member, Relay, how_a_worker_ended

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .generation import Process
    from .readiness import NotifySocket

__all__ = ["Hired", "Outlet", "has_room"]

_READS = 16  # in a row
_AT_ONCE = 4096  # PIPE_BUF: for that much there is room in a pipe that can be written to


class Outlet(Relay):
    """What a worker prints to standard error. `is_stuck`: more has come, and there is no room for it."""

    def __init__(self, fd: int) -> None:
        super().__init__(fd)
        self.is_stuck: bool = False

    def pump(self) -> None:
        """Pass on what there is room for."""
        for _ in range(_READS):
            self.is_stuck = not has_room()
            if self.is_stuck or not self._pump_some():
                return

    def pump_the_rest(self) -> None:
        """Pass on what an ended worker has left. What there is no room for is lost, but for its end, which is kept."""
        super().pump()

    def _pump_some(self) -> bool:
        try:
            data = os.read(self.fd, _AT_ONCE)
        except BlockingIOError:
            return False
        self.has_ended: bool = not data
        self.tail: bytes = (self.tail + data)[-last_words.TAIL :]
        log.pass_on(data)
        return not self.has_ended


def has_room() -> bool:
    """Whether standard error takes something now; also if it is broken, and takes nothing any more."""
    import select

    poll = select.poll()
    poll.register(2, select.POLLOUT)
    return bool(poll.poll(0))


class Hired(Member):
    """The worker. `notify`: where it says that it is ready."""

    __slots__ = ("is_settled", "name", "notify", "settles_at")

    def __init__(self, process: Process, name: str) -> None:
        super().__init__(process)
        self.name: str = name
        self.notify: NotifySocket | None = None
        self.settles_at: float = float("inf")
        """When it will have lived long enough to count as ready."""
        self.is_settled: bool = False
        """Whether it has, or has said so; the rollout cannot be told as long as there is no room for it."""

    @property
    def outlet(self) -> Outlet | None:
        """What it prints to standard error comes out there."""
        return self.relay if isinstance(self.relay, Outlet) else None

    def why_it_ended(self, status: int) -> tuple[str, str]:
        """The reason in one line, and the end of what it said."""
        if self.outlet is None:
            return super().why_it_ended(status)
        self.outlet.pump_the_rest()
        lines = last_words.lines_of(self.outlet.tail)
        if self.is_settled:  # an exception further up may be of long ago: only the last line says why
            why = how_a_worker_ended(status)
            return (f"{why}: {lines[-1]}" if lines and status > 0 else why), last_words.quoted(lines)
        when = f"with status {status}" if status > 0 else "before it was ready"
        return last_words.why_it_ended(self.name, when, status, lines), last_words.quoted(lines)
