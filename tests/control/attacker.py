"""Somebody who means a program ill: `python attacker.py HOW PATH SIZE`, at the control socket PATH, until it is ended.

It prints a line after each round, and ends with status 1 if a connection is refused: whatever happens, the program is
to be asked there.
"""

from __future__ import annotations

import os
import random
import socket
import sys
from collections.abc import Callable, Iterator

GARBAGE = [
    b"",
    b"\n",
    b"{",
    b"\0" * 5000,
    b"\xff\xfe\n",
    b"[" * 900 + b"\n",
    b'{"request": "res',
    b"GET / HTTP/1.1\r\n\r\n",
]
ODD = [
    *GARBAGE,
    b'{"request": "restart"',
    b'{"request": "scale", "to": 1e9}\n',
    b'{"request": "nothing"}\n',
]


def connect(path: str) -> socket.socket:
    visitor = socket.socket(socket.AF_UNIX)
    visitor.connect(path)
    return visitor


def crowd(path: str, size: int) -> Iterator[None]:
    """So many connections, held all at once; whoever is thrown out does not notice."""
    while True:
        held = [connect(path) for _ in range(size)]
        yield
        for each in held:
            each.close()


def endless(path: str, size: int) -> Iterator[None]:
    """A line of so many bytes, on as many connections as it takes."""
    chunk = b"x" * 65536
    while True:
        sent = 0
        while sent < size:
            with connect(path) as visitor:
                try:
                    while sent < size:
                        sent += visitor.send(chunk)
                except (BrokenPipeError, ConnectionResetError):
                    continue
        yield


def odd(path: str, size: int) -> Iterator[None]:
    """So many times garbage or half a line, with or without descriptors that come along; many stay."""
    chance = random.Random(5)
    stay: list[socket.socket] = []
    _, writer = os.pipe()
    while True:
        for _ in range(size):
            visitor = connect(path)
            try:
                socket.send_fds(visitor, [chance.choice(ODD) or b" "], [writer] * chance.choice([0, 1, 100]))
            except (BrokenPipeError, ConnectionResetError):
                pass
            stay.append(visitor)
            if len(stay) > 50:
                stay.pop(chance.randrange(50)).close()
        yield


HOW: dict[str, Callable[[str, int], Iterator[None]]] = {"crowd": crowd, "endless": endless, "odd": odd}

if __name__ == "__main__":
    how, path, size = sys.argv[1:]
    for _ in HOW[how](path, int(size)):
        print("round", flush=True)
