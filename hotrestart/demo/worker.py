"""The program that is restarted: a worker that takes jobs from a queue, a table in a SQLite file.

The decorator on `main()` and `worker_loop()` are all that it does about restarts.
"""

import os
import sqlite3
import sys
import time
from contextlib import closing

import hotrestart

VERSION = 1


@hotrestart.restartable(control=False)
def main() -> None:
    """Do one job after another until asked to end."""
    with (
        closing(sqlite3.connect("jobs.db", timeout=10.0, isolation_level=None)) as queue,
        hotrestart.worker_loop() as loop,
    ):
        queue.execute("PRAGMA synchronous = OFF")
        while loop.running:
            job = take(queue)
            if job is not None:
                work(job)
                record(queue, job)
            elif loop.wait(sys.stdin, timeout=0.01):
                break  # the demonstration is gone, and nobody else would end this program


def take(queue: sqlite3.Connection) -> int | None:
    """The oldest job that is waiting, or None. It is never put back: a job that is cut short stays undone for ever."""
    with queue:
        queue.execute("BEGIN IMMEDIATE")
        job = queue.execute("SELECT id FROM jobs WHERE NOT taken ORDER BY id LIMIT 1").fetchone()
        if job is not None:
            queue.execute("UPDATE jobs SET taken = 1 WHERE id = ?", job)
    return job[0] if job else None


def work(_job: int) -> None:
    """The job itself."""
    time.sleep(0.003)


def record(queue: sqlite3.Connection, job: int) -> None:
    """Write down that the job is done, and who has done it."""
    who = os.getpid(), hotrestart.state.generation, VERSION
    queue.execute("INSERT INTO done VALUES (?, ?, ?, ?, ?)", (job, time.monotonic(), *who))


if __name__ == "__main__":
    main()
