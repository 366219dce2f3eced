"""A queue that is a table in an SQLite file: a job, what it writes there, and its end are one transaction."""

import sqlite3
import sys

import hotrestart

VERSION = 0


def handle(job, database):
    database.execute("INSERT INTO done VALUES (?, ?)", (job, VERSION))


def work(database):
    """Do one job. False if there is none."""
    with database:  # COMMIT, or ROLLBACK if anything fails; kill -9 is a ROLLBACK too
        database.execute("BEGIN IMMEDIATE")
        query = "DELETE FROM jobs WHERE job = (SELECT min(job) FROM jobs) RETURNING job"
        found = database.execute(query).fetchall()
        for (job,) in found:
            handle(job, database)
    return bool(found)


@hotrestart.restartable(workers=2)
def main():
    database = sqlite3.connect(sys.argv[1], timeout=60, isolation_level=None)
    with hotrestart.worker_loop() as loop:
        while loop.running:
            if not work(database):
                loop.sleep(0.05)  # SQLite tells nobody that there is a job


if __name__ == "__main__":
    main()
