from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from tests.systemd_box import Box, Unavailable


@pytest.fixture(scope="session")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    """A real systemd, one for all tests of this process. Every `tmp_path` is the same folder in there."""
    shared = tmp_path_factory.getbasetemp().resolve()
    try:
        each = Box(tmp_path_factory.mktemp("systemd").resolve(), shared)
    except Unavailable as reason:
        if os.environ.get("HOTRESTART_CI"):
            pytest.fail(str(reason))
        pytest.skip(str(reason))
    yield each
    each.close()


@pytest.fixture
def port() -> Iterator[int]:
    """A port that nobody else is given meanwhile."""
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", 0))
        yield int(held.getsockname()[1])
