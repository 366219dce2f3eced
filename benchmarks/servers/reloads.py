"""A server under load while it is reloaded: in the open loop and in the closed one, with code that loads slowly, and
unloaded on the scales."""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import threading
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

from processes import has_gone

from . import apps, ledger
from .apps import Slow
from .clients import Load
from .ledger import Window
from .peers import Peer
from .service import Service, wait_for

QUIET = 1.0  # seconds of rest after a reload on the scales
TAKES = 8.0  # seconds, and the import several times, in which the first answer by the new code has to come
LIMIT = 15.0  # seconds, and the import several times, in which the last one by the old code has to come
SEVERAL = 2.5  # imports: some do it twice, to try the code before it is needed
AFTER = 0.5  # seconds that belong to a reload after the first new and the last old answer


@dataclass(frozen=True)
class Plan:
    """How much is measured. SHORT shows that it works and nothing else; MANY is about what is lost, and no times."""

    runs: int = 3
    opened: int = 3  # reloads in the open loop, a run
    closed: int = 2
    slow: tuple[Slow, ...] = (Slow(3.0), Slow(8.0), Slow(3.0, is_busy=True))  # how the new code is imported
    slow_runs: int = 2  # of each of them
    steady: float = 2.0  # seconds of each load before the first reload
    quiet: float = 1.0  # seconds without an answer by the old code: then a reload is over, and the next one comes
    broken: Sequence[str] = tuple(apps.BROKEN)  # the kinds of broken deploys
    side_by_side: int = 1  # peers that are reloaded at the same time: more than one if nothing is timed
    rate: float = 100.0  # requests a second of the open loop, on new connections, and as many on kept ones


SHORT = Plan(
    runs=1,
    opened=1,
    closed=1,
    slow=(Slow(0.5, is_busy=True),),
    slow_runs=1,
    steady=0.5,
    quiet=0.3,
    broken=("raises",),
    rate=20.0,  # on a busy machine more would wait in the queue at the reload, and all be answered by the new code
)
MANY = Plan(runs=5, opened=20, closed=20, slow=(), quiet=0.3, broken=(), side_by_side=2)


@asynccontextmanager
async def serving(
    peer: Peer, package: Path, *, ready_timeout: float = 60.0, loads: float = 0.0
) -> AsyncIterator[Service]:
    """The service, started and ended beside the event loop."""
    with tempfile.TemporaryDirectory(prefix="peers-", ignore_cleanup_errors=True) as folder:
        service = Service(peer, Path(folder), package, ready_timeout=ready_timeout, loads=loads)
        await asyncio.to_thread(service.__enter__)
        try:
            yield service
        finally:
            await asyncio.to_thread(service.__exit__)


async def run(peer: Peer, package: Path, plan: Plan) -> dict[str, Any]:
    """One run: one start of the service; memory first, then each load."""
    async with serving(peer, package) as service:
        found: dict[str, Any] = {"memory": await asyncio.to_thread(_weigh, service)}
        found["open"], found["timeline"] = await _under(service, plan, plan.rate, range(3, 3 + plan.opened))
        found["closed"], _ = await _under(service, plan, 0.0, range(100, 100 + plan.closed))
    return found


async def slow(peer: Peer, package: Path, plan: Plan) -> dict[str, Any]:
    """New code that takes its time to be imported, in each of the ways, by its name."""
    found: dict[str, Any] = {}
    for each in plan.slow:
        async with serving(peer, package, loads=each.takes) as service:
            found[each.name], _ = await _under(service, plan, plan.rate, range(2, 3), each)
    return found


async def _under(
    service: Service, plan: Plan, rate: float, versions: range, slow: Slow | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Reload to one version after the other under a load; the account, and the timeline of the first reload."""
    marks: list[tuple[int, float, float]] = []
    told: Counter[str] = Counter()
    async with Load(service.port, rate=rate, timeout=LIMIT + service.loads) as load:
        await asyncio.sleep(0.5)  # connections are made, caches warm
        began = monotonic()
        await asyncio.sleep(plan.steady)
        steady = (began, monotonic())
        for version in versions:
            service.deploy(version, slow.first if slow else "")
            asked_at = monotonic()
            asked = asyncio.create_task(asyncio.to_thread(service.peer.reload, service, version))
            marks.append((version, asked_at, await _over(service, load, version, asked, plan.quiet)))
            told[asked.result()] += 1
            if version not in load.first_answer:
                break  # the next one would not take effect either
    ends = [*(mark[1] for mark in marks[1:]), monotonic()]
    windows = [Window(*mark, until) for mark, until in zip(marks, ends, strict=True)]
    account = {**ledger.account(load.records, steady, windows), "told": {text: told[text] for text in told if text}}
    return account, ledger.timeline(load.records, windows[0])


async def _over(service: Service, load: Load, version: int, asked: asyncio.Task[str], quiet: float) -> float:
    """When the reload is over, as the clients see it. It has its time from the end of the asking on: a script may have
    had to wait for an old one that does not go."""
    began = since = monotonic()
    while True:
        await asyncio.sleep(0.02)
        first = load.first_answer.get(version)
        old = max((when for number, when in load.last_answer.items() if number != version), default=began)
        now = monotonic()
        since = since if asked.done() else now
        is_over = asked.done() and now - max(old, first or now) > quiet
        if is_over or now - since > (LIMIT if first else TAKES) + SEVERAL * service.loads:
            break
    return min(monotonic(), max(old, first or monotonic()) + AFTER)


def _weigh(service: Service) -> dict[str, float]:
    """All its processes, in MB of PSS: at work but not loaded, and at most while it is reloaded (a rough one: they are
    sampled while they come and go)."""
    for _ in range(100):
        service.ask()
    steady = statistics.median(service.pss() for _ in range(3))
    old = service.others()
    samples = [steady]
    is_over = threading.Event()

    def sample() -> None:
        while not is_over.wait(0.01):
            samples.append(service.pss())

    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        service.deploy(2)
        service.peer.reload(service, 2)
        service.wait_answer(2, TAKES)
        wait_for(lambda: all(map(has_gone, old)), LIMIT)  # some ignore the next reload until then
        is_over.wait(QUIET)
    finally:
        is_over.set()
        sampler.join()
    return {"steady": steady, "peak": max(samples)}
