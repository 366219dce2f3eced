"""What there is in a rolling program: generations, and the processes of each. Plain data, and what follows from it."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ..options import Options

__all__ = ["ABORTED", "DRAINING", "KILLED", "NEVER", "READY", "STARTING", "Generation", "Process"]

STARTING, READY, DRAINING, ABORTED, KILLED = "starting", "ready", "draining", "aborted", "killed"

NEVER = float("inf")
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 30.0  # between the replacements of a crash loop
_STEADY = 5.0  # seconds of serving that end a crash loop


class Process:
    """A fork server or a worker. `deadline` is when its state has lasted long enough, `since` when it got ready.

    `is_leaving`: it was told to end. `is_retiring`: it is to be replaced, and serves until then. `why`: what it is
    aborted for.
    """

    id: int
    generation: int
    is_server: bool
    state: str
    since: float
    deadline: float
    is_leaving: bool
    is_retiring: bool

    __slots__ = (
        "deadline",
        "generation",
        "id",
        "is_leaving",
        "is_retiring",
        "is_server",
        "since",
        "state",
        "why",
    )

    def __init__(self, number: int, generation: int, *, is_server: bool) -> None:
        self.id, self.generation, self.is_server = number, generation, is_server
        self.state, self.since, self.deadline = STARTING, NEVER, NEVER
        self.is_leaving = self.is_retiring = False
        self.why: str = ""

    @classmethod
    def from_document(cls, document: dict[str, Any]) -> Process:
        """What `as_document` has put down, in the process before an exec."""
        process = cls.__new__(cls)
        for name in cls.__slots__:
            value = document[name]
            setattr(process, name, NEVER if value is None else value)
        return process

    def as_document(self) -> dict[str, Any]:
        """As plain data, for JSON."""
        values = {name: getattr(self, name) for name in self.__slots__}
        return {name: None if value == NEVER else value for name, value in values.items()}

    @property
    def is_alive(self) -> bool:
        """It serves, or is about to: it has not been told to end."""
        return self.state in (STARTING, READY)


class Generation:
    """One load of the program. `can_fork`: its code is loaded, so workers can be made of it. `due`: before
    that, no deadline of its processes passes."""

    number: int
    options: Options
    failures: int
    not_before: float
    due: float

    __slots__ = ("_tally", "can_fork", "due", "failures", "not_before", "number", "options", "server", "workers")

    def __init__(self, number: int, options: Options) -> None:
        self.number, self.options = number, options
        self.server: Process | None = None
        self.workers: list[Process] = []
        self._tally: dict[str, int] = dict.fromkeys((STARTING, READY, DRAINING, ABORTED, KILLED), 0)  # of the workers
        self.can_fork: bool = False
        self.failures, self.not_before, self.due = 0, 0.0, NEVER

    def __contains__(self, process: Process) -> bool:
        return process is self.server or process in self.workers

    def add(self, process: Process) -> None:
        """It is the fork server of this generation from here on, or one of its workers."""
        self.due = min(self.due, process.deadline)
        if process.is_server:
            self.server = process
        else:
            self.workers.append(process)
            self._tally[process.state] += 1

    def remove(self, process: Process) -> None:
        """There is no such process any more."""
        if process.is_server:
            self.server, self.can_fork = None, False
        else:
            self.workers.remove(process)
            self._tally[process.state] -= 1

    def move(self, process: Process, state: str, deadline: float = NEVER) -> None:
        """One of its processes is in this state from here on, until `deadline` at the latest."""
        if not process.is_server:
            self._tally[process.state] -= 1
            self._tally[state] += 1
        process.state, process.deadline = state, deadline
        self.due = min(self.due, deadline)

    def count(self, *states: str) -> int:
        """How many workers are in one of these states; a look at the tally, for every event asks."""
        return sum(map(self._tally.__getitem__, states))

    def processes(self) -> list[Process]:
        """All that there are."""
        return [*self.workers, *([self.server] if self.server else [])]

    def note_the_end_of(self, process: Process, now: float) -> None:
        """The more in a row, the longer until the next try; one that has served for a while ends the row."""
        if now >= self.not_before:  # else it is of the row that made the pause
            survivors = [each for each in self.workers if each.state == READY and each.since >= self.not_before]
            steady = any(now - each.since >= _STEADY for each in [*survivors, process])
            self.failures = 1 if steady else self.failures + 1
            self.not_before = now + min(_FIRST_PAUSE * 2.0 ** min(self.failures - 1, 20), _LONGEST_PAUSE)

    @property
    def is_failing(self) -> bool:
        """One of its processes was aborted, and not for draining too long."""
        suspects = self.workers if self.count(ABORTED, KILLED) else []
        server = [self.server] if self.server else []
        return any(each.state in (ABORTED, KILLED) and not each.is_leaving for each in [*suspects, *server])

    def least_needed(self) -> list[Process]:
        """The workers that serve: those to be replaced first, then the oldest."""
        serving = [each for each in self.workers if each.state == READY]
        return sorted(serving, key=lambda each: (not each.is_retiring, each.since, each.id))

    def retiring(self) -> int:
        """How many that serve are to be replaced."""
        return len([each for each in self.workers if each.is_retiring and each.state == READY])

    def leaving(self) -> int:
        """How many are on their way out."""
        return self.count(DRAINING, ABORTED, KILLED)
