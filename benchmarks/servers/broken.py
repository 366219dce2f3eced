"""Code that is broken is deployed, and a reload asked for: who is served in the next ten seconds, who is told; what a
worker's crash does after that, while the broken code is still on the disk; and whether the mended code gets in.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Sequence
from pathlib import Path
from time import monotonic
from typing import Any

from . import apps, ledger
from .clients import Load, Record
from .peers import Peer
from .reloads import serving
from .service import Service

OBSERVED = 10.0  # seconds after the reload of broken code
CRASHED = 3.0  # seconds after the crash of a worker
RECOVERY = 8.0  # seconds in which the mended code has to answer
RATE = 25.0  # requests a second of each kind
TIMEOUT = 2.0  # seconds until a request counts as not answered
READY = 5.0  # seconds that new code has: the limit of those that have one, and of the script around gunicorn
BEFORE, STEP = 1.0, 0.5  # seconds before the reload that the plot shows, and of one of its points


async def all_kinds(peer: Peer, package: Path, kinds: Sequence[str]) -> dict[str, Any]:
    """All ways to be broken, side by side: this is about who is served, not how fast."""
    return dict(zip(kinds, await asyncio.gather(*(_one(peer, package, kind) for kind in kinds)), strict=True))


async def _one(peer: Peer, package: Path, kind: str) -> dict[str, Any]:
    async with serving(peer, package, ready_timeout=READY) as service:
        async with Load(service.port, rate=RATE, timeout=TIMEOUT) as load:
            await asyncio.sleep(BEFORE + 0.2)
            began = monotonic()
            told, took = await _deploy_broken(service, kind, began)
            await asyncio.sleep(TIMEOUT)  # what was sent in the time has had its time, before anything else happens
            is_alive, status = await asyncio.to_thread(lambda: (service.is_alive, service.exit_status))
            victim = 0 if peer.is_single else _who_serves(load.records, began + OBSERVED)
            crashed = monotonic()
            if victim:
                await asyncio.to_thread(_kill, service, victim)
                await asyncio.sleep(CRASHED)
            mended = monotonic()
            recovery = await _mend(service, load) if is_alive else None
            await asyncio.sleep(2.0)  # for the plot alone
            ended = monotonic()
        return {
            "availability": ledger.availability(load.records, began, began + OBSERVED),
            "lost": ledger.losses(ledger.between(load.records, began, began + OBSERVED)),
            "told": told,
            "told_after": took,
            "service_ended": None if is_alive else status,
            "is_dead": not is_alive,
            "after_a_crash": ledger.availability(load.records, crashed, mended) if victim else None,
            "recovery": recovery,
            "timeline": _timeline(load.records, began, ended),
            "marks": [round(crashed - began, 2), round(mended - began, 2)],
        }


async def _deploy_broken(service: Service, kind: str, began: float) -> tuple[str, float | None]:
    """What the one who asks is told within the time, and after how many seconds."""
    service.deploy(2, apps.BROKEN[kind])
    ask = service.peer.asks or service.peer.reload
    asked = asyncio.create_task(asyncio.to_thread(ask, service, 2))
    await asyncio.wait([asked], timeout=OBSERVED)
    took = monotonic() - began
    await asyncio.sleep(OBSERVED - took)
    if not asked.done():
        asked.add_done_callback(_forget)
        return "nothing in 10 s", None
    told = asked.result()
    return told, took if told else None


async def _mend(service: Service, load: Load) -> float | None:
    """Seconds until the mended code answers; None if it does not."""
    service.deploy(3)
    began = monotonic()
    asked = asyncio.create_task(asyncio.to_thread(service.peer.reload, service, 3))
    while 3 not in load.first_answer and monotonic() < began + RECOVERY:
        await asyncio.sleep(0.02)
    await asyncio.wait([asked], timeout=RECOVERY)
    asked.add_done_callback(_forget)
    return load.first_answer[3] - began if 3 in load.first_answer else None


def _forget(asked: asyncio.Task[str]) -> None:
    """What comes of an answer that nobody waits for any more: the service may have ended under it."""
    if not asked.cancelled():
        asked.exception()


def _who_serves(records: Sequence[Record], since: float) -> int:
    """The process that has answered last; 0 if none has since then."""
    return next((each.pid for each in reversed(records) if not each.failure and each.ended > since), 0)


def _kill(service: Service, pid: int) -> None:
    if pid in service.pids():
        service.send(signal.SIGKILL, pid)


def _timeline(records: Sequence[Record], began: float, ended: float) -> list[list[float]]:
    """For the plot: [second, the share in percent of what was sent then that was answered]."""
    points = range(int(-BEFORE / STEP), int((ended - began) / STEP))
    bounds = [began + point * STEP for point in points]
    return [
        [round(point * STEP, 2), round(ledger.availability(records, bound, bound + STEP), 1)]
        for point, bound in zip(points, bounds, strict=True)
    ]
