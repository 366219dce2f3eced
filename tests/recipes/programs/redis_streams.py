"""A queue that is a Redis stream, read by a consumer group: an entry is acknowledged when its job is done."""

import os
import socket
import sys

import redis
from ledger import report

import hotrestart

VERSION = 0
ABANDONED = 600_000  # milliseconds: longer than the longest job and grace together


def handle(job):
    report(done=int(job), version=VERSION)


def entries(queue, loop):
    """The entries of the stream for this worker, one by one, as long as the program runs."""
    me = f"{socket.gethostname()}-{os.getpid()}"  # no other worker's name, and the same after a restart in place
    queue.xautoclaim("jobs", "workers", me, ABANDONED)  # what killed workers have left
    since = "0"  # first what was read under this name and not acknowledged: it was cut off when grace was over
    while loop.running:
        # redis-py does not hand out its socket for loop.wait(), so the wait is a short one. No exception out of a
        # signal handler may end it: an entry that Redis had just handed out would stay pending.
        found = queue.xreadgroup("workers", me, {"jobs": since}, count=1, block=100)
        if found and found[0][1]:
            yield found[0][1][0]
        else:
            since = ">"  # then what is new
    if not queue.xpending_range("jobs", "workers", "-", "+", 1, me):  # what is pending would go with the name
        queue.xgroup_delconsumer("jobs", "workers", me)


@hotrestart.restartable(workers=2)
def main():
    queue = redis.Redis(unix_socket_path=sys.argv[1], protocol=2)  # so that all versions of redis-py answer alike
    try:
        queue.xgroup_create("jobs", "workers", id="0", mkstream=True)
    except redis.ResponseError:
        pass  # it is there
    with hotrestart.worker_loop() as loop:
        for entry, fields in entries(queue, loop):
            handle(fields[b"job"])
            queue.xack("jobs", "workers", entry)


if __name__ == "__main__":
    main()
