"""A UDP server under load, restarted in both ways: every datagram is answered, and once."""

from __future__ import annotations

import socket
from contextlib import closing
from queue import SimpleQueue

import pytest

from tests.harness import PATIENCE, Program
from tests.recipes.load import CLIENTS, KINDS, restart_under_traffic


class Clients:
    """Connected sockets, one for each request at a time: an answer that comes twice is taken for that to the next."""

    def __init__(self, port: int) -> None:
        self._free: SimpleQueue[socket.socket] = SimpleQueue()
        for _ in range(CLIENTS):
            each = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            each.settimeout(PATIENCE)
            each.connect(("127.0.0.1", port))
            self._free.put(each)

    def ask(self, number: int) -> int:
        """The version that answers."""
        each = self._free.get()
        try:
            each.send(b"%d" % number)
            echo, version = each.recv(100).split()
            assert int(echo) == number
            return int(version)
        finally:
            self._free.put(each)

    def close(self) -> None:
        for _ in range(self._free.qsize()):
            self._free.get().close()


@pytest.fixture
def udp_port() -> int:
    """A port that is free."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.mark.figures
@pytest.mark.parametrize("kind", KINDS)
def test_every_datagram_is_answered_once(program: Program, udp_port: int, kind: str, full: bool) -> None:
    with closing(Clients(udp_port)) as clients:
        restart_under_traffic(program, udp_port, "udp_echo", kind, clients.ask, 50 if full else 4)
