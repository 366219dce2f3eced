"""A UDP server under load, restarted in both ways: every datagram is answered, and once."""

from __future__ import annotations

import socket
from contextlib import closing
from queue import SimpleQueue

import pytest

from hotrestart.testing import Traffic
from tests.harness import PATIENCE, Program
from tests.recipes import figures
from tests.recipes.load import KINDS, deploy

CLIENTS = 6


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
    reloads = 50 if full else 6
    deploy(program, "udp_echo", 1, kind)
    program.start("app.py", f"127.0.0.1:{udp_port}").wait_ready()
    with closing(Clients(udp_port)) as clients, Traffic(clients.ask, clients=CLIENTS) as traffic:
        traffic.wait_for(1)
        for version in range(2, reloads + 2):
            deploy(program, "udp_echo", version, kind)
            assert program.restart().ok
            traffic.wait_for(version)
    figures.note("udp_echo", kind, reloads, len(traffic.answers), failed=len(traffic.failures))
    traffic.check()
    assert program.stop() == 0, program.log()
    assert "Traceback" not in program.log()
