"""The restart in place, shown: release after release on disk, a HUP for each, and jobs that never stop coming.

One release is broken.
"""

from __future__ import annotations

import re
from time import monotonic

from .jobs import Feeder, Queue
from .ledger import Ledger, Release
from .process import Program
from .story import FORGETS, Story, settle

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path

    from ..sleeper import Sleeper
    from .display import Display
    from .ledger import Done

__all__ = ["demonstrate"]

_FIRST, _RELEASES, _BROKEN = 1, (2, 3, 4, 5, 6, 7, 8), 5
_AT_WORK = 0.6  # seconds of undisturbed work between two releases
_REFUSED = re.compile(r"^restart refused, the old code goes on: (.*?)(?: \[pid .*)?$", re.MULTILINE)


def demonstrate(folder: Path, display: Display, sleeper: Sleeper) -> int:
    """Show it, with all files in `folder`. 0 if every promise was kept, else 1. Raises Interrupted."""
    began = display.elapsed()
    display.line("A worker takes jobs from a queue. Its code is changed on disk, and kill -HUP restarts it.", "title")
    display.line()
    file = folder / "jobs.db"
    worker = Program(folder, "worker.py")
    worker.deploy(_FIRST)
    with Queue(file) as queue, worker, Feeder(file) as feeder:
        story = _Story(worker, queue, feeder, display, sleeper)
        story.tell()
        feeder.stop()
        status = worker.stop()
        ledger = Ledger(queue.jobs(), queue.done(), story.releases, worker.pid, status)
    return settle(ledger, display, log_tail=worker.log_tail(), began=began)


class _Story(Story):
    def __init__(self, worker: Program, queue: Queue, feeder: Feeder, display: Display, sleeper: Sleeper) -> None:
        super().__init__(worker, display, sleeper)
        self.releases: list[Release] = []
        self._worker, self._queue, self._feeder = worker, queue, feeder

    def tell(self) -> bool:
        return self._begin() and all(map(self._release, _RELEASES)) and self._work_on(_AT_WORK) and self._finish()

    def _begin(self) -> bool:
        if not self._until(lambda: self._latest() is not None, f"version {_FIRST} starts"):
            return False
        self._display.event(f"version {_FIRST} is at work, pid {self._worker.pid}")
        return True

    def _release(self, version: int) -> bool:
        if not self._work_on(_AT_WORK):
            return False
        broken = version == _BROKEN
        self._worker.deploy(version, *([FORGETS] if broken else []))
        refusals = len(self._refusals())
        asked = self._worker.hup()
        self._until(
            lambda: self._is_at_work(version) or len(self._refusals()) > refusals,
            f"HUP for version {version}",
        )
        refusal = next(iter(self._refusals()[refusals:]), None)
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

    def _finish(self) -> bool:
        """No more jobs, and those that are waiting get done."""
        self._feeder.stop()
        if not self._until(lambda: self._queue.waiting() == 0, "the last jobs"):
            return False
        self._display.event("no more jobs, the queue is empty, TERM")
        return True

    def _check(self) -> None:
        self._feeder.check()

    def _state(self) -> str:
        count, latest = self._queue.latest()
        return f"version {latest.version}, pid {latest.pid}: {count:,} jobs done" if latest is not None else ""

    def _refusals(self) -> list[str]:
        """The reasons for which its log says that it has refused to restart."""
        return _REFUSED.findall(self._worker.log())

    def _latest(self) -> Done | None:
        return self._queue.latest()[1]

    def _is_at_work(self, version: int) -> bool:
        latest = self._latest()
        return latest is not None and latest.version == version
