"""The queue as the demonstration sees it: it puts jobs in, and reads what became of them.

A table of jobs and a table of what was done. The worker adds a row each time that it has done a job, so a job that is
lost has no row, and one that is repeated has two. The latest row is the latest by its number: no search, no count.
"""

from __future__ import annotations

import sqlite3
from threading import Event, Thread

from .ledger import Done

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path

    from typing_extensions import Self

__all__ = ["Feeder", "Queue"]

_ALWAYS_WAITING = 25  # jobs, a tenth of a second's work: the worker never waits for one
_TURN = 0.02  # seconds

_SCHEMA = """
CREATE TABLE IF NOT EXISTS jobs (id INTEGER PRIMARY KEY, taken INTEGER NOT NULL DEFAULT 0);
CREATE INDEX IF NOT EXISTS waiting ON jobs (taken, id);
CREATE TABLE IF NOT EXISTS done (job INTEGER, at REAL, pid INTEGER, generation INTEGER, version INTEGER);
"""


class Queue:
    """A connection to the queue in a file, for one thread; the first one makes the tables."""

    def __init__(self, file: Path) -> None:
        self._database = sqlite3.connect(file, timeout=10.0, isolation_level=None)
        self._database.execute("PRAGMA journal_mode = WAL")  # where there is none, it stays as it is
        self._database.execute("PRAGMA synchronous = OFF")
        self._database.executescript(_SCHEMA)

    def put(self, count: int) -> None:
        """Put `count` new jobs in."""
        with self._database:
            self._database.execute("BEGIN IMMEDIATE")
            self._database.executemany("INSERT INTO jobs (taken) VALUES (?)", [(0,)] * count)

    def waiting(self) -> int:
        """How many jobs nobody has taken yet."""
        return int(self._database.execute("SELECT count(*) FROM jobs WHERE taken = 0").fetchone()[0])

    def latest(self) -> tuple[int, Done | None]:
        """How many times a job was done so far, and the last of these."""
        row = self._database.execute("SELECT rowid, * FROM done ORDER BY rowid DESC LIMIT 1").fetchone()
        return (row[0], Done(*row[1:])) if row else (0, None)

    def jobs(self) -> list[int]:
        """All that were put in."""
        return [job for (job,) in self._database.execute("SELECT id FROM jobs ORDER BY id")]

    def done(self) -> list[Done]:
        """All that was done, in that order."""
        return [Done(*row) for row in self._database.execute("SELECT * FROM done ORDER BY rowid")]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._database.close()


class Feeder:
    """A thread that keeps jobs waiting in the queue while the `with` block lasts, or until `stop`."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._enough = Event()
        self._thread = Thread(target=self._feed, name="feeder")
        self._error: sqlite3.Error | None = None

    def check(self) -> None:
        """Raise what has ended the feeding, if something has."""
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        """No more jobs after this."""
        self._enough.set()
        self._thread.join()

    def _feed(self) -> None:
        try:
            with Queue(self._file) as queue:
                while not self._enough.wait(_TURN):
                    queue.put(_ALWAYS_WAITING - queue.waiting())
        except sqlite3.Error as error:
            self._error = error

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()
