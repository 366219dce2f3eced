"""Jobs in a ThreadPoolExecutor: those that were handed in are finished, whether or not main() waits for them."""

import time
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait

from ledger import report, take

import hotrestart

VERSION = 0


def handle(job):
    time.sleep(0.02)
    report(done=job, version=VERSION)


@hotrestart.restartable(workers=2)
def main():
    pending = set()
    with ThreadPoolExecutor(4) as pool, hotrestart.worker_loop() as loop:
        while loop.running:
            pending.add(pool.submit(handle, take()))
            if len(pending) == 8:  # a drain lasts as long as what has been handed in
                _, pending = wait(pending, return_when=FIRST_COMPLETED)


if __name__ == "__main__":
    main()
