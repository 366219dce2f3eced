"""The processes under a supervisor, as it sees them: by lifeline and pidfd, whoever their parent is."""

from __future__ import annotations

import os

from .. import last_words, log
from ..processes import STATUS_UNKNOWN, Child
from .generation import NEVER

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .beats import Watch
    from .generation import Process
    from .home import Home
    from .lifeline import Lifeline

__all__ = ["Grandchild", "Member", "Relay", "how_a_worker_ended"]

_READS = 16  # in a row


class Grandchild(Child):
    """A process that somebody else will reap: its end can be seen, and its status is told by its parent."""

    def __init__(self, pid: int, pidfd: int = -1) -> None:
        super().__init__(pid, pidfd=pidfd)

    def poll(self) -> int | None:
        """`STATUS_UNKNOWN` once it has ended, None while it runs."""
        return self.exit_code


class Relay:
    """What a generation that is getting ready prints to standard error: shown at once, and its end is kept."""

    def __init__(self, fd: int) -> None:
        self.fd: int = fd
        self.tail: bytes = b""
        self.has_ended: bool = False
        os.set_blocking(fd, False)

    def fileno(self) -> int:
        """Readable when something was printed."""
        return self.fd

    def pump(self) -> None:
        """Pass on what has come; who never stops printing does not hold up the others."""
        for _ in range(_READS):
            try:
                data = os.read(self.fd, 65536)
            except BlockingIOError:
                return
            self.has_ended = not data
            self.tail = (self.tail + data)[-last_words.TAIL :]
            log.pass_on(data)
            if self.has_ended:
                return

    def close(self) -> None:
        """Who still prints gets EPIPE from now on."""
        os.close(self.fd)


class Member:
    """One process. `child` is None until the fork server has told its pid, and `due` the signals that it gets then;
    `parent`: the id of that fork server. `home`: where its interpreter and its hotrestart are. `reason`, `detail`: why
    it fails, if it has said so."""

    place: int
    watched: int
    reason: str
    detail: str

    __slots__ = (
        "child",
        "detail",
        "due",
        "ended_at",
        "home",
        "lifeline",
        "parent",
        "place",
        "process",
        "reason",
        "relay",
        "watch",
        "watched",
    )

    def __init__(self, process: Process) -> None:
        self.process: Process = process
        self.child: Child | None = None
        self.lifeline: Lifeline | None = None
        self.relay: Relay | None = None
        self.watch: Watch | None = None
        self.place = self.watched = -1
        self.parent: int = 0
        self.due: list[int] = []
        self.reason = self.detail = ""
        self.home: Home | None = None
        self.ended_at: float | None = None

    def __str__(self) -> str:
        what = "fork server" if self.process.is_server else "worker"
        pid = self.child.pid if self.child is not None else "not forked yet"
        return f"{what} {pid} of generation {self.process.generation}"

    @property
    def pid(self) -> int:
        """0 as long as it is not known."""
        return self.child.pid if self.child is not None else 0

    def send_signals(self, *numbers: int) -> None:
        """Now, or as soon as there is a process to send them to."""
        if self.child is None:
            self.due += numbers
        else:
            for number in numbers:
                self.child.send_signal(number)

    def why_it_ended(self, status: int) -> tuple[str, str]:
        """The reason in one line, and the end of what it said."""
        if self.reason:
            return self.reason, self.detail
        lines = last_words.lines_of(self.relay.tail) if self.relay is not None else []
        if self.process.is_server:
            loading = "the new code", "before it called main()"
            loaded = "the fork server", "after it had loaded the program"
            who, when = loading if self.process.since == NEVER else loaded
            return last_words.why_it_ended(who, when, status, lines), last_words.quoted(lines)
        return how_a_worker_ended(status), last_words.quoted(lines)


def how_a_worker_ended(status: int) -> str:
    """In one line, if nothing else is known."""
    how = f"was killed by signal {-status}" if STATUS_UNKNOWN < status < 0 else f"ended with status {status}"
    return f"a worker {'is gone' if status == STATUS_UNKNOWN else how}"
