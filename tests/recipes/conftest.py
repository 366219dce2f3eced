from __future__ import annotations

import os
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
