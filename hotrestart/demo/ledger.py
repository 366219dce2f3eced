"""The account of a demonstration: what was promised, what was written down, and where the two differ.

Pure: it knows records and times, no files and no processes. All times are seconds of the monotonic clock, which is
one for all processes of a machine.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from .wording import counted, listed, milliseconds, spread

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Done", "Ledger", "Release"]


class Done(NamedTuple):
    """A job was done, then and by them."""

    job: int
    at: float
    pid: int
    generation: int
    version: int


class Release(NamedTuple):
    """New code was put on disk, HUP sent at `asked`, and what came of it seen at `answered`.

    `refusal`: the reason in the program's log, if it gave one.
    """

    version: int
    asked: float
    answered: float
    is_broken: bool = False
    refusal: str | None = None


@dataclass(frozen=True)
class Ledger:
    """What there is to know about the restarts of one program, `pid`, which ended with the exit status `status`."""

    jobs: list[int]
    done: list[Done]
    releases: list[Release]
    pid: int
    status: int

    @property
    def lost(self) -> list[int]:
        """Jobs that were put in and never done."""
        return sorted(set(self.jobs) - {each.job for each in self.done})

    @property
    def repeated(self) -> list[int]:
        """Jobs that were done more than once."""
        return sorted(job for job, times in Counter(each.job for each in self.done).items() if times > 1)

    def restart_time(self, release: Release) -> float | None:
        """From the HUP to the first job done by the new code; None if it did none."""
        return next((each.at - release.asked for each in self.done if each.version == release.version), None)

    def rows(self) -> list[tuple[str, str]]:
        """The account, as pairs of a name and what there is to say."""
        good = [each for each in self.releases if not each.is_broken]
        took = [seconds for each in good if (seconds := self.restart_time(each)) is not None]
        pauses = [after.at - before.at for before, after in pairwise(self.done)]
        refusals = [each.refusal for each in self.releases if each.refusal is not None]
        pids = sorted({self.pid, *(each.pid for each in self.done)})
        return [
            ("jobs put in", f"{len(self.jobs):,}"),
            ("jobs done", f"{len({each.job for each in self.done}):,}"),
            ("jobs lost", f"{len(self.lost):,}"),
            ("jobs repeated", f"{len(self.repeated):,}"),
            ("restarts", f"{len(took)} of {len(good)} led to the new code"),
            ("refusals", f"{len(refusals)}" + (f" ({'; '.join(refusals)})" if refusals else "")),
            ("pid", f"{self.pid}, from first to last" if len(pids) == 1 else listed(pids)),
            ("HUP to first job by new code", spread(took)),
            ("longest time without a job", milliseconds(max(pauses, default=None))),
        ]

    def faults(self) -> list[str]:
        """Each promise that was not kept, in one line; empty if all is well."""
        return [*self._faults_of_jobs(), *self._faults_of_releases(), *self._faults_of_process()]

    def _faults_of_jobs(self) -> Iterable[str]:
        if not self.done:
            yield "no job was done at all"
        elif self.lost:
            yield f"{_jobs_were(self.lost)} lost: {listed(self.lost)}"
        if self.repeated:
            yield f"{_jobs_were(self.repeated)} done more than once: {listed(self.repeated)}"
        if any(before.version > after.version for before, after in pairwise(self.done)):
            yield "old code did a job after the new code had begun"

    def _faults_of_releases(self) -> Iterable[str]:
        for release in self.releases:
            came = self.restart_time(release) is not None
            if release.is_broken and came:
                yield f"version {release.version} is broken and did a job all the same"
            elif release.is_broken and release.refusal is None:
                yield f"version {release.version} is broken and was not refused"
            elif release.is_broken and not any(each.at > release.answered for each in self.done):
                yield f"no job was done any more after version {release.version} had been refused"
            elif not release.is_broken and not came:
                why = f": it was refused: {release.refusal}" if release.refusal is not None else ""
                yield f"the restart did not lead to version {release.version}{why}"

    def _faults_of_process(self) -> Iterable[str]:
        strangers = sorted({each.pid for each in self.done} - {self.pid})
        if strangers:
            yield f"the pid did not stay {self.pid}: jobs were done by {listed(strangers)}"
        expected = 1 + sum(not each.is_broken for each in self.releases)
        if self.done and self.done[-1].generation != expected:
            yield f"the last generation is number {self.done[-1].generation}, not {expected}"
        if self.status != 0:
            yield f"the program ended with status {self.status}, not 0"


def _jobs_were(jobs: list[int]) -> str:
    return counted(len(jobs), "job was", "jobs were")
