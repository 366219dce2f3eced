"""What the client has written down, read while it goes on writing."""

from __future__ import annotations

from contextlib import contextmanager
from typing import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path
    from typing import BinaryIO

__all__ = ["Answer", "Death", "Failure", "Traffic"]


class Answer(NamedTuple):
    """A request was sent and answered, then and by them; on a connection that was kept from an answer before or not."""

    sent: float
    at: float
    version: int
    worker: int
    is_kept: bool = False


class Failure(NamedTuple):
    """A request was sent and has failed."""

    sent: float
    at: float
    reason: str


class Death(NamedTuple):
    """A kept connection had ended when it was used again; its request was sent once more."""

    at: float
    worker: int


class Traffic:
    """All requests so far, in the order of their outcomes. `sent`: how many there were, -1 until the client has said it
    as its last word. `noise`: lines that are none of its words."""

    def __init__(self) -> None:
        self.answers: list[Answer] = []
        self.failures: list[Failure] = []
        self.deaths: list[Death] = []
        self.sent: int = -1
        self.noise: list[str] = []
        self._stream: BinaryIO | None = None
        self._unread = b""

    @contextmanager
    def reading(self, file: Path) -> Generator[None, None, None]:
        """Inside of this, `look` reads from there; the last look is at the end of it."""
        with file.open("rb") as self._stream:
            yield
            self.look()
        self._stream = None

    def look(self) -> None:
        """Take in what has been written since."""
        if self._stream is not None:
            *lines, self._unread = (self._unread + self._stream.read()).split(b"\n")
            for line in lines:
                self.take(line.decode(errors="replace"))

    def take(self, line: str) -> None:
        """Take in one line of the client's."""
        kind, _, rest = line.partition(" ")
        try:
            if kind == "answered":
                sent, at, version, worker, kept = rest.split()
                self.answers.append(Answer(float(sent), float(at), int(version), int(worker), kept == "1"))
            elif kind == "failed":
                sent, at, reason = rest.split(" ", 2)
                self.failures.append(Failure(float(sent), float(at), reason))
            elif kind == "died":
                at, worker = rest.split()
                self.deaths.append(Death(float(at), int(worker)))
            elif kind == "sent":
                self.sent = int(rest)
            else:
                self.noise.append(line)
        except ValueError:
            self.noise.append(line)
