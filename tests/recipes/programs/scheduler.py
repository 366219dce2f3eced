"""A scheduler that must be alone: one tick after the other, none missed and none doubled, whoever is at work."""

import fcntl
import sqlite3
import time

import hotrestart

VERSION = 0
EVERY = 0.05  # seconds; ticks are numbered by time


def run(tick, database):
    database.execute("INSERT INTO ran VALUES (?, ?)", (tick, VERSION))


def is_alone(lock):
    """Take the lock, if nobody has it. It is given back by the end of the process, however it ends."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def next_tick(database):
    """The one after the last that has run, so that what was missed is caught up; at first, the coming one."""
    database.execute("CREATE TABLE IF NOT EXISTS ran (tick INTEGER, version INTEGER)")
    last = database.execute("SELECT max(tick) FROM ran").fetchone()[0]
    return int(time.time() / EVERY if last is None else last) + 1


@hotrestart.restartable(workers=1)
def main():
    with open("lock", "w") as lock, hotrestart.worker_loop() as loop:  # ready, so the old one is asked to end
        while not is_alone(lock):  # it has a tick in hand
            if loop.sleep(0.01):
                return
        database = sqlite3.connect("ticks.sqlite")
        tick = next_tick(database)
        while not loop.sleep(max(0, tick * EVERY - time.time())):
            with database:  # what a tick does, and that it has been done, are one transaction: also for kill -9
                run(tick, database)
            tick += 1


if __name__ == "__main__":
    main()
