"""The restart in place, shown: release after release on disk, a HUP for each, and jobs that never stop coming.

One release is broken. The story ends early when something does not happen in time; the ledger then says what.
"""

from __future__ import annotations

from time import monotonic

from .jobs import Feeder, Queue
from .ledger import Ledger, Release
from .process import Worker

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from ..sleeper import Sleeper
    from .display import Display
    from .ledger import Done

__all__ = ["Interrupted", "demonstrate", "settle"]

_FIRST, _RELEASES, _BROKEN = 1, (2, 3, 4, 5, 6, 7, 8), 5
_AT_WORK = 0.6  # seconds of undisturbed work between two releases
_PATIENCE = 15.0  # seconds for anything that takes milliseconds on an idle machine
_TURN = 0.01  # seconds


class Interrupted(Exception):
    """Somebody wants it to end before it is over."""


def demonstrate(folder: Path, display: Display, sleeper: Sleeper) -> int:
    """Show it, with all files in `folder`. 0 if every promise was kept, else 1. Raises Interrupted."""
    display.line("A worker takes jobs from a queue. Its code is changed on disk, and kill -HUP restarts it.", "title")
    display.line()
    file = folder / "jobs.db"
    worker = Worker(folder)
    worker.deploy(_FIRST)
    with Queue(file) as queue, worker, Feeder(file) as feeder:
        story = _Story(worker, queue, feeder, display, sleeper)
        story.tell()
        feeder.stop()
        status = worker.stop()
        ledger = Ledger(queue.jobs(), queue.done(), story.releases, worker.pid, status)
    return settle(ledger, display, log_tail=worker.log_tail())


def settle(ledger: Ledger, display: Display, *, log_tail: list[str]) -> int:
    """Show the ledger and what it comes to: 0 if every promise was kept, else 1, with the end of the log."""
    faults = ledger.faults()
    display.line()
    display.table(ledger.rows())
    display.line()
    if not faults:
        display.line(f"Every promise was kept. It took {display.elapsed():.1f} s.", "good")
        return 0
    for fault in faults:
        display.line(f"FAILED: {fault}", "bad")
    display.line()
    display.line("The end of the worker's log:" if log_tail else "The worker has logged nothing.")
    for line in log_tail:
        display.line(f"    {line}")
    return 1


class _Story:
    """One step after the other; each is True if the next one can be taken."""

    def __init__(self, worker: Worker, queue: Queue, feeder: Feeder, display: Display, sleeper: Sleeper) -> None:
        self.releases: list[Release] = []
        self._worker, self._queue, self._feeder = worker, queue, feeder
        self._display, self._sleeper = display, sleeper

    def tell(self) -> bool:
        return self._begin() and all(map(self._release, _RELEASES)) and self._work_on() and self._finish()

    def _begin(self) -> bool:
        if not self._until(lambda: self._latest() is not None, f"version {_FIRST} starts"):
            return False
        self._display.event(f"version {_FIRST} is at work, pid {self._worker.pid}")
        return True

    def _release(self, version: int) -> bool:
        if not self._work_on():
            return False
        broken = version == _BROKEN
        self._worker.deploy(version, broken=broken)
        refusals = len(self._worker.refusals())
        asked = self._worker.hup()
        self._until(
            lambda: self._is_at_work(version) or len(self._worker.refusals()) > refusals,
            f"HUP for version {version}",
        )
        refusal = next(iter(self._worker.refusals()[refusals:]), None)
        self.releases.append(Release(version, asked, monotonic(), broken, refusal))
        self._announce(version, asked, refusal)
        return self._is_at_work(version) or (broken and refusal is not None)

    def _announce(self, version: int, asked: float, refusal: str | None) -> None:
        latest = self._latest()
        if latest is None:
            return
        if refusal is not None:
            self._display.event(f"version {version} on disk, HUP: refused, version {latest.version} goes on")
            self._display.line(f"{'':9}{refusal}")
        elif latest.version == version:
            took = next(each.at for each in self._queue.done() if each.version == version) - asked
            self._display.event(f"version {version} on disk, HUP: at work {took * 1000:.0f} ms later")
        else:
            self._display.event(f"version {version} on disk, HUP: version {latest.version} is still there", "bad")

    def _work_on(self) -> bool:
        end = monotonic() + _AT_WORK
        return self._until(lambda: monotonic() > end)

    def _finish(self) -> bool:
        """No more jobs, and those that are waiting get done."""
        self._feeder.stop()
        if not self._until(lambda: self._queue.waiting() == 0, "the last jobs"):
            return False
        self._display.event("no more jobs, the queue is empty, TERM")
        return True

    def _until(self, condition: Callable[[], bool], what: str = "") -> bool:
        """Wait, with a live display; False if the worker ends before `condition()` is true, or patience does."""
        deadline = monotonic() + _PATIENCE
        self._display.clear()  # so that what is waited for is seen at once
        while not condition():
            if monotonic() > deadline or self._worker.has_ended():
                return False
            self._feeder.check()
            self._show(what)
            if self._sleeper.sleep(_TURN):
                raise Interrupted
        return True

    def _show(self, what: str) -> None:
        count, latest = self._queue.latest()
        if latest is None:
            self._display.moving(what)
        else:
            doing = f"version {latest.version}, pid {latest.pid}: {count:,} jobs done"
            self._display.moving(f"{doing}, {what}" if what else doing)

    def _latest(self) -> Done | None:
        return self._queue.latest()[1]

    def _is_at_work(self, version: int) -> bool:
        latest = self._latest()
        return latest is not None and latest.version == version
