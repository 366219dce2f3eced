"""A multiprocessing.Process with a loop of its own: it is asked to end, and waited for."""

import multiprocessing
import time

from ledger import report, take

import hotrestart

VERSION = 0
METHOD = "fork"


def work(ending):
    while not ending.is_set():
        job = take()
        time.sleep(0.02)
        report(done=job, version=VERSION)


@hotrestart.restartable(workers=2)
def main():
    context = multiprocessing.get_context(METHOD)
    ending = context.Event()
    processes = [context.Process(target=work, args=(ending,)) for _ in range(2)]
    for each in processes:
        each.start()
    with hotrestart.worker_loop() as loop:
        loop.sleep()
    ending.set()
    for each in processes:
        each.join()


if __name__ == "__main__":
    main()
