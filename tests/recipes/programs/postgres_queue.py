"""A queue that is a table in PostgreSQL, with psycopg: a job, what it writes there, and its end are one transaction."""

import sys

import psycopg

import hotrestart

VERSION = 0
NEXT = """
    DELETE FROM jobs WHERE job = (SELECT job FROM jobs ORDER BY job LIMIT 1 FOR UPDATE SKIP LOCKED) RETURNING job
"""


def handle(job, database):
    database.execute("INSERT INTO done VALUES (%s, %s)", (job, VERSION))


def work(database):
    """Do one job, which nobody else has in hand. False if there is none."""
    with database.transaction():  # COMMIT, or ROLLBACK if anything fails; kill -9 is a ROLLBACK too
        found = database.execute(NEXT).fetchone()
        if found is not None:
            handle(found[0], database)
    return found is not None


@hotrestart.restartable(workers=2)
def main():
    with psycopg.connect(sys.argv[1], autocommit=True) as database, hotrestart.worker_loop() as loop:
        database.execute("LISTEN jobs")
        while loop.running:
            # Wait for the connection, and only then read from it: this wait ends when the program shall end. To end a
            # blocking call with an exception out of a signal handler may lose what it has just read.
            if not work(database) and not list(database.notifies(timeout=0)):
                loop.wait(database, timeout=60)


if __name__ == "__main__":
    main()
