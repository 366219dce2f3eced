"""A gRPC server, which binds its port by itself: no call fails whose client has a retry policy and `wait_for_ready`."""

from __future__ import annotations

import json
from contextlib import closing

import pytest

from tests.conftest import need
from tests.harness import PATIENCE, Program
from tests.recipes.load import KINDS, restart_under_traffic

# A call that comes between the server's decision to stop and its GOAWAY is cancelled: one in a thousand, under load.
RETRIES = {
    "maxAttempts": 4,
    "initialBackoff": "0.01s",
    "maxBackoff": "0.1s",
    "backoffMultiplier": 2,
    "retryableStatusCodes": ["CANCELLED", "UNAVAILABLE"],
}
OPTIONS = [("grpc.service_config", json.dumps({"methodConfig": [{"name": [{}], "retryPolicy": RETRIES}]}))]


class Clients:
    """One channel on one connection, as most gRPC clients have it; and one with a new connection for each call."""

    def __init__(self, port: int) -> None:
        import grpc

        self._address = f"127.0.0.1:{port}"
        self._grpc = grpc
        self._kept = grpc.insecure_channel(self._address, OPTIONS)

    def ask(self, number: int) -> int:
        """The version that answers."""
        if number % 2:
            return self._call(self._kept, number)
        options = [*OPTIONS, ("grpc.use_local_subchannel_pool", 1)]
        with self._grpc.insecure_channel(self._address, options) as channel:
            return self._call(channel, number)

    def close(self) -> None:
        self._kept.close()

    def _call(self, channel, number: int) -> int:
        call = channel.unary_unary("/Echo/Ask")
        echo, version = call(b"%d" % number, timeout=PATIENCE, wait_for_ready=True).split()
        assert int(echo) == number
        return int(version)


@pytest.mark.figures
@pytest.mark.parametrize("kind", KINDS)
def test_no_call_fails(program: Program, port: int, kind: str, full: bool) -> None:
    need("grpc")
    with closing(Clients(port)) as clients:
        restart_under_traffic(program, port, "grpc_server", kind, clients.ask, 50 if full else 4)
