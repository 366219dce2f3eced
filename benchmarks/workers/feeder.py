"""Puts jobs in from outside: number after number, one each 20 ms, at the moments of a clock and not after each other.

Run in a side's folder. Reads commands from standard input: "slow NUMBER SECONDS" puts in one more job, "count" is
answered with how many numbers it has put in; at the end of the file it stops, and says so once more.
"""

from __future__ import annotations

import sys
import threading
import time

EACH = 0.020  # seconds


def main() -> None:
    sys.path.insert(0, ".")
    from feeding import put  # the side's own file

    lock, is_over = threading.Lock(), threading.Event()
    numbers = 0

    def feed() -> None:
        nonlocal numbers
        began = time.monotonic()
        while not is_over.wait(max(0.0, began + numbers * EACH - time.monotonic())):
            with lock:
                put(numbers, 0)
                numbers += 1

    feeding = threading.Thread(target=feed)
    feeding.start()
    for line in sys.stdin:
        command, *arguments = line.split()
        with lock:
            if command == "count":
                print(numbers, flush=True)
            else:
                put(int(arguments[0]), float(arguments[1]))
    is_over.set()
    feeding.join()
    print(numbers, flush=True)


if __name__ == "__main__":
    main()
