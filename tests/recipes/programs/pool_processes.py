"""Jobs in a multiprocessing.Pool: leaving its `with` block would kill those in hand, so it is closed and joined."""

import multiprocessing
import signal
import time

from ledger import report, take

import hotrestart

VERSION = 0
METHOD = "fork"


def handle(job):
    time.sleep(0.02)
    report(done=job, version=VERSION)


@hotrestart.restartable(workers=2)
def main():
    context = multiprocessing.get_context(METHOD)
    pool = context.Pool(2, signal.signal, (signal.SIGINT, signal.SIG_IGN))  # Ctrl-C goes to the whole group
    pending = []
    with hotrestart.worker_loop() as loop:
        while loop.running:
            pending.append(pool.apply_async(handle, (take(),)))
            if len(pending) == 4:
                pending.pop(0).get()
    pool.close()
    pool.join()


if __name__ == "__main__":
    main()
