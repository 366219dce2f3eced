"""A scheduler that must be alone, restarted in both ways and killed: no tick is missed, none is doubled."""

from __future__ import annotations

import random
import sqlite3
import time
from contextlib import closing, suppress
from pathlib import Path

import pytest

from tests.harness import PATIENCE
from tests.recipes import figures
from tests.recipes.load import FOLDERS
from tests.rolling.programs import Rolling

KINDS = {"worker": "(workers=1)", "in place": ""}
BUSY = """
    time.sleep(0.02)
"""
HELD = """
    while os.path.exists("hold"):
        report(held=tick)
        time.sleep(0.01)
"""


class Scheduler(Rolling):
    """The program, and the account of its ticks."""

    def put(self, version: int, kind: str, *, hold: bool = False) -> None:
        source = (FOLDERS[1] / "scheduler.py").read_text()
        run = "def run(tick, database):\n"
        assert source.count(run) == 1
        assert "(workers=1)" in source
        source = source.replace("VERSION = 0\n", f"VERSION = {version}\n").replace("(workers=1)", KINDS[kind])
        self.deploy("import os\n" + source.replace(run, run + (HELD if hold else BUSY)))

    def ran(self) -> list[tuple[int, int]]:
        """The ticks in the order in which they have run, and the version that did."""
        if not (self.folder / "ticks.sqlite").exists():
            return []
        with closing(sqlite3.connect(self.folder / "ticks.sqlite", timeout=PATIENCE)) as database:
            try:
                return database.execute("SELECT tick, version FROM ran ORDER BY rowid").fetchall()
            except sqlite3.OperationalError:
                return []  # no table so far

    def wait_ran(self, version: int) -> None:
        self.wait_until(lambda: version in {each for _, each in self.ran()}, f"a tick by version {version}")

    def check(self, kind: str = "one restart", restarts: int = 1) -> None:
        """Ticks one after another, up to the present."""
        now = int(time.time() * 20)
        self.wait_until(lambda: self.ran()[-1][0] >= now, "the present")
        assert self.stop() == 0, self.log()
        self.wait_gone()
        ran = self.ran()
        ticks = [tick for tick, _ in ran]
        expected = range(ticks[0], ticks[-1] + 1)
        missed, doubled = len(set(expected) - set(ticks)), len(ticks) - len(set(ticks))
        figures.note("scheduler", kind, restarts, len(expected), failed=missed, repeated=doubled)
        assert ticks == list(expected)
        versions = [version for _, version in ran]
        assert versions == sorted(versions), "one after the other, not in turn"
        assert "Traceback" not in self.log()


@pytest.fixture
def scheduler(tmp_path: Path):
    with Scheduler(tmp_path / "program") as each:
        yield each


@pytest.mark.figures
@pytest.mark.parametrize("kind", KINDS)
def test_no_tick_is_missed_or_doubled(scheduler: Scheduler, kind: str, full: bool) -> None:
    scheduler.put(1, kind)
    scheduler.start().wait_ready()
    restarts = 50 if full else 6
    for version in range(1, restarts + 1):
        scheduler.wait_ran(version)
        scheduler.put(version + 1, kind)
        assert scheduler.restart().ok
    scheduler.wait_ran(restarts + 1)
    scheduler.check(kind, restarts)


def test_the_new_worker_is_ready_before_it_is_alone(scheduler: Scheduler) -> None:
    """The restart is done while the old one has a tick in hand; the new one waits for its end."""
    (scheduler.folder / "hold").touch()
    scheduler.put(1, "worker", hold=True)
    scheduler.start()
    held = int(str(scheduler.wait_until(lambda: scheduler.told("held"), "a tick in hand")[0]))
    scheduler.put(2, "worker")
    assert scheduler.restart().ok
    held_still = len(scheduler.told("held"))
    scheduler.wait_until(lambda: len(scheduler.told("held")) > held_still + 5, "it is held still")
    assert scheduler.ran() == []
    (scheduler.folder / "hold").unlink()
    scheduler.wait_ran(2)
    assert [version for tick, version in scheduler.ran() if tick == held] == [1]
    scheduler.check()


@pytest.mark.figures
def test_whoever_is_killed_the_next_catches_up(scheduler: Scheduler, full: bool) -> None:
    """The worker at work, at any moment; each other time while its successor starts or waits for the lock."""
    scheduler.put(1, "worker")
    scheduler.start().wait_ready()
    for version in range(1, (50 if full else 6) + 1):
        scheduler.wait_ran(version)
        (worker,) = scheduler.wait_until(lambda: len(there := scheduler.workers()) == 1 and there, "it is alone")
        scheduler.put(version + 1, "worker")
        if version % 2:
            scheduler.hup()
        time.sleep(random.uniform(0, 0.3))  # at whatever moment
        with suppress(AssertionError, ProcessLookupError):  # it may just have ended by itself
            scheduler.kill(worker)
        if version % 2 == 0:
            scheduler.hup()
    scheduler.wait_ran(version + 1)
    scheduler.check("worker, kill -9", version)


def test_killed_in_place_and_started_again_it_catches_up(scheduler: Scheduler) -> None:
    for version in (1, 2, 3):
        scheduler.put(version, "in place")
        scheduler.start()
        scheduler.wait_ran(version)
        time.sleep(random.uniform(0, 0.1))  # at whatever moment
        scheduler.kill_supervisor()
    scheduler.put(4, "in place")
    scheduler.start().wait_ready()
    scheduler.wait_ran(4)
    scheduler.check()
