"""The rolling restart, shown: release after release on disk, a HUP for each, and requests that never stop coming.

One release does not load, one dies after it was ready, and one request makes a worker hang.
"""

from __future__ import annotations

import os
import re
from contextlib import closing
from http.client import HTTPConnection, HTTPException
from time import monotonic

from .ledger import Release
from .process import Process, Program
from .story import FORGETS, Story, settle
from .traffic import Traffic
from .traffic_ledger import Hang, TrafficLedger
from .wording import milliseconds

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path

    from ..sleeper import Sleeper
    from .display import Display

__all__ = ["demonstrate"]

_ENTERED = "    with hotrestart.worker_loop() as loop:\n"
_DIES = (_ENTERED, f"{_ENTERED}        loop.sleep(0.3)\n        raise LookupError('no such table')\n")
_IS_WATCHED = ("soak=0.3", "soak=5.0")  # long enough to see it die on the busiest machine; it takes no longer than that

_FIRST, _RELEASES, _LAST = 1, (2, 3, 4, 5, 6), 7
_FLAWS = {4: (FORGETS,), 6: (_DIES, _IS_WATCHED)}
_AT_WORK = 0.3  # seconds of undisturbed work between two releases
_UNDISTURBED = 1.0  # seconds before the first release
_PATIENCE = 5.0  # seconds for the head of an answer
_OUTCOME = re.compile(r"^hotrestart: generation \d+ (?:serves .*?|failed at stage (.*?)) \[pid ", re.MULTILINE)
_PORT = re.compile(r"^serving on port (\d+)$", re.MULTILINE)
_DUMP = re.compile(r"^Fatal Python error: Aborted$.*?(\w+\.py)\", line (\d+) in spin$", re.MULTILINE | re.DOTALL)


def demonstrate(folder: Path, display: Display, sleeper: Sleeper) -> int:
    """Show it, with all files in `folder`. 0 if every promise was kept, else 1. Raises Interrupted."""
    began = display.elapsed()
    display.line("A server with two workers gets new code by kill -HUP, while clients ask and ask.", "title")
    display.line()
    server = Program(folder, "server.py")
    server.deploy(_FIRST)
    with server:
        story = _Story(server, display, sleeper)
        story.tell()
        has_ended = server.has_ended()
        status = server.stop()
    ledger = TrafficLedger(
        story.traffic, story.releases, story.hang, server.pid, status, is_early=has_ended, missed=story.missed
    )
    return settle(ledger, display, log_tail=server.log_tail(), began=began)


class _Story(Story):
    def __init__(self, server: Program, display: Display, sleeper: Sleeper) -> None:
        super().__init__(server, display, sleeper)
        self.traffic = Traffic()
        self.releases: list[Release] = []
        self.hang: Hang | None = None
        self._serving = _FIRST

    def tell(self) -> None:
        """Let clients ask from the moment that the server is there, until the story has ended."""
        if not self._until(lambda: self._port() is not None, f"version {_FIRST} starts"):
            return
        client = Process(self._program.folder, "client", "-m", f"{__package__}.client", str(self._port()))
        with client, self.traffic.reading(client.log_file):
            if self._tell():
                self._display.event("no more requests, TERM")
            client.let_go()

    def _tell(self) -> bool:
        return (
            self._begin()
            and all(map(self._release, _RELEASES))
            and self._let_one_hang()
            and self._release(_LAST)
            and self._work_on(_AT_WORK)
        )

    def _begin(self) -> bool:
        if not self._until(lambda: bool(self.traffic.answers and self._outcomes()), "the first request"):
            return False
        where = f"127.0.0.1:{self._port()}"
        self._display.event(f"version {_FIRST} serves on {where}, supervisor {self._program.pid}, two workers")
        return self._work_on(_UNDISTURBED)

    def _release(self, version: int) -> bool:
        if not self._work_on(_AT_WORK):
            return False
        flaws = _FLAWS.get(version, ())
        self._program.deploy(version, *flaws)
        told = len(self._outcomes())
        asked = self._program.hup()
        what = f"HUP for version {version}"
        self._until(lambda: len(self._outcomes()) > told, what)
        refusal = next(iter(self._outcomes()[told:]), "") or None
        if refusal is None:
            self._until(lambda: self._is_alone(version), what)
        release = Release(version, asked, monotonic(), bool(flaws), refusal)
        self.releases.append(release)
        self._announce(release)
        return self._serving == version or (bool(flaws) and refusal is not None)

    def _announce(self, release: Release) -> None:
        what = f"version {release.version} on disk, HUP: "
        mine = [each.at for each in self.traffic.answers if each.version == release.version]
        if release.refusal is not None:
            self._display.event(f"{what}refused, version {self._serving} goes on")
            self._display.line(f"{'':9}{release.refusal}")
        elif mine:
            old = [each.at for each in self.traffic.answers if each.version == self._serving]
            both = max(0.0, max(old) - mine[0])
            self._serving = release.version
            first = milliseconds(mine[0] - release.asked)
            self._display.event(f"{what}first answer {first} later, both answer for {milliseconds(both)}")
        else:
            self._display.event(f"{what}version {self._serving} is still there", "bad")

    def _let_one_hang(self) -> bool:
        """Have a request make a worker spin, and wait until it has been replaced."""
        if not self._work_on(_AT_WORK):
            return False
        known = {each.worker for each in self.traffic.answers}
        asked = monotonic()
        with closing(HTTPConnection("127.0.0.1", self._port(), timeout=_PATIENCE)) as connection:
            pid = _begin_to_spin(connection)
            self._display.event(f"a request makes worker {pid} spin for ever")
            self._until(lambda: not _is_there(pid) and self._newcomer(known) != 0, f"worker {pid} hangs")
        dump = _DUMP.search(self._program.log())
        where = f"{dump[1]}, line {dump[2]}" if dump else ""
        self.hang = Hang(pid, asked, monotonic(), where, not _is_there(pid), self._newcomer(known))
        after = f"{self.hang.answered - asked:.1f} s later"
        if self.hang.is_gone and self.hang.successor:
            self._display.event(
                f"its stack is in the log ({where}), it is killed; {self.hang.successor} serves {after}"
            )
        else:
            self._display.event(f"it is not replaced {after}", "bad")
        return self.hang.is_gone and self.hang.successor != 0

    def _check(self) -> None:
        self.traffic.look()

    def _state(self) -> str:
        answers = self.traffic.answers
        if not answers:
            return ""
        failed = f"{len(self.traffic.failures):,} failed"
        return f"version {answers[-1].version}, {len(answers):,} requests answered, {failed}"

    def _port(self) -> int | None:
        found = _PORT.search(self._program.log())
        return int(found[1]) if found else None

    def _outcomes(self) -> list[str]:
        """What became of each generation, by the log: why it has failed, or ""."""
        return _OUTCOME.findall(self._program.log())

    def _is_alone(self, version: int) -> bool:
        """Whether it answers, and no process is there that has answered for another."""
        answers = self.traffic.answers
        if not answers or answers[-1].version != version:
            return False
        return not any(map(_is_there, {each.worker for each in answers if each.version != version}))

    def _newcomer(self, known: set[int]) -> int:
        return next((each.worker for each in self.traffic.answers if each.worker not in known), 0)


def _begin_to_spin(connection: HTTPConnection) -> int:
    """The worker that has sent the head of an answer, and nothing more; 0 if none did."""
    try:
        connection.request("GET", "/spin")
        return int(connection.getresponse().headers["X-Worker"])
    except (OSError, HTTPException, TypeError):
        return 0


def _is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
