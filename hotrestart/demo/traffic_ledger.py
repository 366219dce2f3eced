"""The account of a demonstration under traffic: what was promised, what the client has seen, and where the two differ.

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

    from .ledger import Release
    from .traffic import Answer, Traffic

__all__ = ["Hang", "TrafficLedger"]

_SILENCE = 1.0  # seconds that are a fault; a machine that is silent longer even without a reload gets three times that


class Hang(NamedTuple):
    """At `asked` a request made the worker `pid` spin; what had come of it was seen at `answered`."""

    pid: int
    asked: float
    answered: float
    dump: str = ""
    """Where it hung, by its log."""
    is_gone: bool = False
    successor: int = 0
    """The worker in its place; 0 if there is none."""


@dataclass(frozen=True)
class TrafficLedger:
    """What there is to know about the reloads of one program, `pid`, which ended with the exit status `status`;
    `is_early` if nobody had asked it to. `missed`: what has not happened in time."""

    traffic: Traffic
    releases: list[Release]
    hang: Hang | None
    pid: int
    status: int
    is_early: bool = False
    missed: str = ""

    def first_answer(self, version: int) -> float | None:
        """When a version has answered for the first time; None if it never did."""
        return next((each.at for each in self.traffic.answers if each.version == version), None)

    @property
    def deaths(self) -> int:
        """Kept connections that ended without a word, those of the hung worker apart."""
        return sum(each.worker != self._hung for each in self.traffic.deaths)

    @property
    def silence(self) -> float | None:
        """The longest time without any answer before the first reload was asked for; None if there was none."""
        end = self.releases[0].asked if self.releases else float("inf")
        return self._longest([(0.0, end)])

    @property
    def silence_in_reloads(self) -> float | None:
        """The same while a reload was under way."""
        return self._longest([(each.asked, each.answered) for each in self.releases])

    def rows(self) -> list[tuple[str, str]]:
        """The account, as pairs of a name and what there is to say."""
        good = [each for each in self.releases if not each.is_broken]
        took = [at - each.asked for each in good if (at := self.first_answer(each.version)) is not None]
        refusals = [each.refusal for each in self.releases if each.refusal is not None]
        rows = [
            ("requests sent", f"{self.traffic.sent:,}" if self.traffic.sent >= 0 else "unknown"),
            ("requests answered", f"{len(self.traffic.answers):,}"),
            ("requests failed", f"{len(self.traffic.failures):,}"),
            ("on kept connections", f"{sum(each.is_kept for each in self.traffic.answers):,}"),
            ("kept connections that died", f"{self.deaths:,}"),
            ("reloads", f"{len(took)} of {len(good)} took effect"),
            ("refusals", f"{len(refusals)}" + (f" ({'; '.join(refusals)})" if refusals else "")),
            ("pid", f"{self.pid}, " + ("which ended too early" if self.is_early else "from first to last")),
            ("HUP to first answer by new code", spread(took)),
            ("longest time without an answer", self._silences()),
            ("workers that served", str(len({each.worker for each in self.traffic.answers}))),
        ]
        return [*rows, ("lost with the hung worker", self._damage(self.hang))] if self.hang is not None else rows

    def faults(self) -> list[str]:
        """Each promise that was not kept, in one line; empty if all is well."""
        found = [*self._faults_of_requests(), *self._faults_of_releases(), *self._faults_of_silence()]
        return [*found, *self._faults_of_hang(), *self._faults_of_process()]

    def _faults_of_requests(self) -> Iterable[str]:
        traffic = self.traffic
        if not traffic.answers:
            yield "no request was answered at all"
        if traffic.failures:
            reasons = [reason for reason, _ in Counter(each.reason for each in traffic.failures).most_common()]
            yield f"{counted(len(traffic.failures), 'request has', 'requests have')} failed: {listed(reasons, 3)}"
        if self.deaths:
            yield f"{counted(self.deaths, 'kept connection', 'kept connections')} died, and had to be made again"
        missing = traffic.sent - len(traffic.answers) - len(traffic.failures)
        if traffic.sent < 0:
            yield "the client has ended before it could say how many requests it had sent"
        elif missing:
            yield f"{counted(missing, 'request is', 'requests are')} not accounted for"
        if traffic.noise:
            yield f"the client has said: {traffic.noise[-1]}"

    def _faults_of_releases(self) -> Iterable[str]:
        serving = 1
        for number, release in enumerate(self.releases):
            came = self.first_answer(release.version) is not None
            if release.is_broken and release.refusal is None:
                yield f"version {release.version} is broken and was not refused"
            elif not release.is_broken and not came:
                why = f": it was refused: {release.refusal}" if release.refusal is not None else ""
                yield f"the reload did not lead to version {release.version}{why}"
            if not release.is_broken:
                serving = release.version
            until = [*[each.asked for each in self.releases], float("inf")][number + 1]
            answers = [each for each in self.traffic.answers if release.answered < each.sent and each.at < until]
            yield from self._faults_of_answers(release, serving, answers)

    @staticmethod
    def _faults_of_answers(release: Release, serving: int, answers: list[Answer]) -> Iterable[str]:
        """Those that were asked for after a release, and before the next."""
        what = "was refused" if release.is_broken else "had taken over"
        strangers = sorted({each.version for each in answers} - {serving})
        if not answers:
            yield f"no request was answered any more after version {release.version} {what}"
        if strangers:
            yield f"version {listed(strangers)} answered after version {release.version} {what}"

    def _faults_of_silence(self) -> Iterable[str]:
        before, during = self.silence or 0.0, self.silence_in_reloads or 0.0
        if during > max(_SILENCE, 3 * before):
            yield f"nobody answered for {milliseconds(during)} while a reload was under way"

    def _faults_of_hang(self) -> Iterable[str]:
        hang = self.hang
        if hang is not None:
            if not hang.pid:
                yield "the request that was to make a worker hang was not taken"
                return
            if not hang.is_gone:
                yield f"worker {hang.pid} hung and was not ended"
            if not hang.dump:
                yield f"worker {hang.pid} hung and the log does not say where"
            if not hang.successor:
                yield f"worker {hang.pid} hung and was not replaced"

    def _faults_of_process(self) -> Iterable[str]:
        if self.is_early:
            yield f"the pid did not stay {self.pid}: that process ended before it was asked to"
        if self.missed and not self.is_early:
            yield f"this did not come about in time: {self.missed}"
        if self.status != 0:
            yield f"the program ended with status {self.status}, not 0"

    @property
    def _hung(self) -> int:
        return self.hang.pid if self.hang is not None else 0

    def _damage(self, hang: Hang) -> str:
        died = len(self.traffic.deaths) - self.deaths
        silence = milliseconds(self._longest([(hang.asked, hang.answered)]))
        return f"1 request (on purpose), {counted(died, 'kept connection', 'kept connections')}; {silence} of silence"

    def _silences(self) -> str:
        return f"{milliseconds(self.silence)} before, {milliseconds(self.silence_in_reloads)} during reloads"

    def _longest(self, windows: list[tuple[float, float]]) -> float | None:
        """The longest gap between two answers that overlaps with one of the windows."""
        times = sorted(each.at for each in self.traffic.answers)
        gaps = [
            after - before
            for before, after in pairwise(times)
            if any(after > begin and before < end for begin, end in windows)
        ]
        return max(gaps, default=None)
