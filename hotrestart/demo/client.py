"""The client, a process of its own: requests one after the other in each of four threads, and a line for each outcome.

Two threads make a new connection for each request, two keep theirs. A kept connection that ends without a byte of an
answer is what a good client cannot see coming: it asks once more on a new one, and both are written down. Nothing else
is ever tried again. It ends when its standard input does.
"""

from __future__ import annotations

import os
import sys
from http.client import HTTPConnection, HTTPException, HTTPResponse
from threading import Event, Thread
from time import monotonic

__all__ = ["main"]

_PATIENCE = 10.0  # seconds for an answer
_PAUSE = 0.002  # seconds between two requests, so that a small machine has some time left for the server


class _Browser:
    """One thread of requests. `sent`: how many so far."""

    def __init__(self, number: int, port: int, enough: Event) -> None:
        self.sent = 0
        self._number, self._enough = number, enough
        self._keeps = number % 2 == 0
        self._connection = HTTPConnection("127.0.0.1", port, timeout=_PATIENCE)
        self._worker = ""  # at the other end of the kept connection; "" if there is none

    def run(self) -> None:
        while not self._enough.wait(_PAUSE):
            self.sent += 1
            began = monotonic()
            try:
                is_kept = bool(self._worker)
                version, worker = self._answer()
                _say("answered", began, monotonic(), version, worker, int(is_kept))
            except (OSError, HTTPException, ValueError) as error:
                self._connection.close()
                self._worker = ""
                _say("failed", began, monotonic(), f"{type(error).__name__}: {error}".replace("\n", " "))
        self._connection.close()

    def _answer(self) -> tuple[int, int]:
        """The version and the worker that have answered the next request."""
        path = f"/{self._number}/{self.sent}"
        response = self._ask(path)
        body = response.read().decode()
        if response.status != 200 or body != path:
            raise ValueError(f"asked for {path}, was answered {response.status} {body!r}")
        if self._keeps and not response.will_close:
            self._worker = response.headers["X-Worker"]
        else:
            self._connection.close()
        return int(response.headers["X-Version"]), int(response.headers["X-Worker"])

    def _ask(self, path: str) -> HTTPResponse:
        """Ask, if need be twice; the head of the answer."""
        headers = {} if self._keeps else {"Connection": "close"}
        kept_with = self._worker
        self._worker = ""
        try:
            self._connection.request("GET", path, headers=headers)
            return self._connection.getresponse()
        except ConnectionError:  # RemoteDisconnected is one
            if not kept_with:
                raise
            self._connection.close()
            _say("died", monotonic(), kept_with)
            self._connection.request("GET", path, headers=headers)
            return self._connection.getresponse()


def main(port: int) -> None:
    """Ask the server on that port until standard input ends, and say how many requests that were."""
    enough = Event()
    browsers = [_Browser(number, port, enough) for number in range(4)]
    threads = [Thread(target=each.run) for each in browsers]
    for thread in threads:
        thread.start()
    while os.read(0, 1):
        pass
    enough.set()
    for thread in threads:
        thread.join()
    _say("sent", sum(each.sent for each in browsers))


def _say(*words: object) -> None:
    """One system call a line, so that threads do not mix theirs."""
    os.write(1, (" ".join(map(str, words)) + "\n").encode(errors="replace"))


if __name__ == "__main__":
    main(int(sys.argv[1]))
