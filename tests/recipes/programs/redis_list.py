"""A queue that is a Redis list: each worker moves a job to a list of its own, and takes it off when it is done."""

import os
import sys

import redis
from ledger import report

import hotrestart

VERSION = 0


def handle(job):
    report(done=int(job), version=VERSION)


@hotrestart.restartable(workers=2)
def main():
    queue = redis.Redis(unix_socket_path=sys.argv[1])
    mine = f"jobs:{os.getpid()}"  # the pid: no other worker has it, and it stays over a restart in place
    while queue.lmove(mine, "jobs", "LEFT", "LEFT"):
        pass  # a job that was cut off when grace was over
    with hotrestart.worker_loop() as loop:
        while loop.running:
            # redis-py does not hand out its socket for loop.wait(), so the wait is a short one. No exception out of a
            # signal handler may end it: a job that Redis had just moved would be lost to the program.
            job = queue.blmove("jobs", mine, 0.1, "LEFT", "RIGHT")
            if job is not None:
                handle(job)
                queue.lpop(mine)


if __name__ == "__main__":
    main()
