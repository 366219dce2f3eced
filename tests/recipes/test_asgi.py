"""Servers of others that run on asyncio, under load, restarted in both ways: 0 failed requests, 0 retries."""

from __future__ import annotations

import importlib.util
import os
import sys
import time

import pytest

from tests.harness import Program
from tests.recipes.load import KINDS, Load, reload, start

SERVERS = {"asgi_uvicorn": "uvicorn", "asgi_hypercorn": "hypercorn", "aiohttp_app": "aiohttp"}


@pytest.fixture(params=SERVERS)
def app(request: pytest.FixtureRequest) -> str:
    """The program of a server that is installed."""
    name = str(request.param)
    if importlib.util.find_spec(SERVERS[name]) is None:
        message = f"{SERVERS[name]} is not installed"
        if os.environ.get("HOTRESTART_CI") and sys.version_info[:2] == (3, 11):
            pytest.fail(message)
        pytest.skip(message)
    return name


@pytest.mark.parametrize("kind", KINDS)
def test_reloads_under_load_lose_nothing(program: Program, port: int, app: str, kind: str, full: bool) -> None:
    reloads = 50 if full else 20
    start(program, app, port, kind)
    with Load(port) as load:
        began = time.monotonic()
        reload(program, load, app, kind, range(2, reloads + 2))
        took = time.monotonic() - began
    print(f"{app}, {kind}: {reloads} reloads in {took:.1f} s, {len(load.answers)} answers,", end=" ")
    print(f"{len(load.failures)} failed, {len(load.retries)} retries,", end=" ")
    print(f"longest silence {load.longest_silence(began, began + took) * 1000:.0f} ms")
    load.check(reloads + 1)
    assert program.stop() == 0, program.log()
    assert "Traceback" not in program.log()
