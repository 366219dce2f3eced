"""`Subject`: one queue worker that runs, is fed, is deployed to and restarted, and what its ledger says."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from measure import clean_environment
from processes import family, session

from .broker import DATABASES, flush
from .sides import BY_HAND, JOBS, REDIS_PY, Side

PATIENCE = 60.0  # seconds until a worker that does not come to where it should is given up
CALM = 0.5  # seconds without an exec, with jobs done: a worker is at rest again

IDLE = 5.0  # seconds without a job done: what is not done by then never will be
SAID = 160  # characters of its log's last line, in a reason

_FEEDER = Path(__file__).with_name("feeder.py")
_databases = itertools.count()


@dataclass(frozen=True)
class Where:
    """What all subjects share: a folder, the environment with the peers, our package, and the port of Redis."""

    folder: Path
    python: Path
    package: Path
    port: int


@dataclass(frozen=True)
class Line:
    """One line of a ledger; `moment` in seconds."""

    number: int
    what: str
    pid: int
    version: int
    moment: float
    task: str  # what its queue calls the task, and whether it says that it has been delivered before; "-" if unknown


class WorkerError(Exception):
    """A worker is not as it should be; the text says how, with the end of its log."""


class Subject:
    """A worker in a folder of its own, with a database of its own. Use it in a `with` block."""

    def __init__(self, where: Where, side: Side) -> None:
        number = next(_databases)
        self.side, self.version, self._where, self._database = side, 0, where, number % DATABASES
        self._folder = where.folder / str(number)
        self._folder.mkdir()
        (self._folder / "jobs.py").write_text(JOBS)
        (self._folder / "redis_py.py").write_text(REDIS_PY)
        (self._folder / "by_hand.py").write_text(BY_HAND)
        (self._folder / "feeding.py").write_text(side.feeding(where.port, self._database))
        (self._folder / "ledger").touch()
        self._read, self._lines = 0, list[Line]()
        self._process: subprocess.Popen[bytes] | None = None
        flush(where.port, self._database)
        self.deploy()
        self._feeder = self._popen([str(where.python), str(_FEEDER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    # -- what is done to it

    def deploy(self, text: str | None = None) -> int:
        """A new version, in one step; its number. `text`: in the place of the program."""
        self.version += 1
        new = self._folder / "app.py.new"
        new.write_text(text or self.side.source(self.version, self._where.port, self._database))
        new.replace(self._folder / "app.py")
        return self.version

    def start(self) -> None:
        program, *arguments = self.side.command.format(port=self._where.port, database=self._database).split()
        self._process = self._popen([str(self._where.python.parent / program), *arguments], stdin=subprocess.DEVNULL)
        version = self.version
        self.wait(lambda: self.begun_by(version), "a first job")

    def send(self, number: int) -> None:
        if self._process is not None and self._process.poll() is None:
            os.kill(self._process.pid, number)

    def slow_job(self, number: int, seconds: float) -> None:
        assert self._feeder.stdin is not None
        self._feeder.stdin.write(f"slow {number} {seconds}\n".encode())
        self._feeder.stdin.flush()

    def catch_up(self, timeout: float) -> bool:
        """Wait until all jobs that have been put in so far are done. False if that takes too long."""
        assert self._feeder.stdin is not None
        assert self._feeder.stdout is not None
        self._feeder.stdin.write(b"count\n")
        self._feeder.stdin.flush()
        numbers = range(int(self._feeder.stdout.readline()))
        try:
            self.wait(lambda: all(number in self.done() for number in numbers), "all jobs done", timeout)
        except WorkerError:
            if self.exit_code() is not None:
                raise
            return False
        return True

    def finish(self) -> int:
        """No more jobs are put in; how many there were. Waits until all are done, or none has been for some time: a
        worker that was away for long has much to catch up with, and what waits in the queue is not lost."""
        assert self._feeder.stdin is not None
        assert self._feeder.stdout is not None
        self._feeder.stdin.close()
        numbers = int(self._feeder.stdout.readline() or 0)
        self._feeder.wait()
        progress = -1
        while progress < len(self.done()) < numbers:
            progress = len(self.done())
            with contextlib.suppress(WorkerError):
                self.wait(lambda before=progress: len(self.done()) > before, "a job done", IDLE)
        return numbers

    # -- what is seen of it

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def exit_code(self) -> int | None:
        """None while it runs."""
        assert self._process is not None
        return self._process.poll()

    def wait(
        self, condition: Callable[[], object], what: str, timeout: float = PATIENCE, *, alive: bool = True
    ) -> None:
        """Until the condition is true. `alive`: WorkerError at once if the worker ends before."""
        deadline = time.monotonic() + timeout
        while not condition():
            if alive and self.exit_code() is not None:
                raise WorkerError(f"waiting for {what}: {how_it_ended(self.exit_code())}: {self._said()}")
            if time.monotonic() > deadline:
                raise WorkerError(f"waiting for {what}: not within {timeout:g} s: {self._said()}")
            time.sleep(0.005)

    def lines(self) -> list[Line]:
        with (self._folder / "ledger").open("rb") as ledger:
            ledger.seek(self._read)
            new = ledger.read()
        new = new[: new.rfind(b"\n") + 1]
        self._read += len(new)
        for line in new.decode().splitlines():
            number, what, pid, version, moment, task = line.split(maxsplit=5)
            self._lines.append(Line(int(number), what, int(pid), int(version), int(moment) / 1e9, task))
        return self._lines

    def begun_by(self, version: int, after: float = 0.0) -> Line | None:
        """The first job that this version, or a later one, began after the moment."""
        found = (each for each in self.lines() if each.version >= version and each.moment > after)
        return next((each for each in found if each.what == "begun"), None)

    def done(self) -> Counter[int]:
        """How often each numbered job was done."""
        return Counter(each.number for each in self.lines() if each.what == "done")

    def repeats(self) -> list[str]:
        """Each numbered job that was done more than once: whether it was the same task again."""
        tasks: dict[int, list[str]] = {}
        for each in self.lines():
            if each.what == "done":
                tasks.setdefault(each.number, []).append(each.task)
        return [how_repeated(each) for each in tasks.values() if len(each) > 1]

    def longest_gap(self, since: float) -> float:
        """The longest time between two beginnings of jobs from a little before the moment on."""
        moments = [each.moment for each in self.lines() if each.what == "begun" and each.moment > since - 0.2]
        return max(after - before for before, after in itertools.pairwise(moments))

    def mark(self) -> bytes:
        """Another one after each exec: the kernel's random bytes and addresses for the program."""
        with contextlib.suppress(OSError):
            return Path(f"/proc/{self.pid}/auxv").read_bytes()
        return b""

    def wait_calm(self, timeout: float = 20.0) -> None:
        """Until it has worked for a while without an exec."""
        mark, since = self.mark(), time.monotonic()

        def is_calm() -> bool:
            nonlocal mark, since
            if self.mark() != mark:
                mark, since = self.mark(), time.monotonic()
            return time.monotonic() > since + CALM and self.begun_by(0, since + CALM / 2) is not None

        self.wait(is_calm, "at rest", timeout)

    def _said(self) -> str:
        lines = (self._folder / "log").read_text(errors="replace").strip().splitlines() or ["it has said nothing"]
        said = lines[-1].replace(str(self._folder), ".").replace(str(self._where.python.parent.parent), "(environment)")
        return said[:SAID]

    # -- its life

    def _popen(self, command: list[str], **streams: int) -> subprocess.Popen[bytes]:
        path = f"{self._where.python.parent}{os.pathsep}{os.environ.get('PATH', '')}"
        with (self._folder / "log").open("ab") as log:
            return subprocess.Popen(
                command,
                cwd=self._folder,
                env={
                    **clean_environment(),
                    "PYTHONPATH": f"{self._where.package}{os.pathsep}{self._folder}",
                    "PATH": path,
                    "PWD": str(self._folder),
                },
                stderr=log,
                start_new_session=True,
                **{"stdout": log, **streams},
            )

    def kill(self) -> None:
        """The worker with all its processes."""
        if self._process is not None:
            pids = family(self._process.pid)
            if self._process.poll() is None:
                self._process.kill()
            for pid in [*pids[1:], *session(self._process.pid)]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._process.wait()

    def __enter__(self) -> Subject:
        try:
            self.start()
        except BaseException:
            self.__exit__(*sys.exc_info())
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.kill()
        self._feeder.kill()
        self._feeder.wait()
        for stream in (self._feeder.stdin, self._feeder.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()


def how_repeated(tasks: list[str]) -> str:
    """Of a job that was done so often, by the names of its tasks: "ID", or "ID redelivered"."""
    if "-" in tasks:
        return "its queue does not tell"
    if len({task.split()[0] for task in tasks}) > 1:
        return "published twice"
    return f"the same task again, {'' if any('redelivered' in task for task in tasks) else 'not '}marked as redelivered"


def how_it_ended(status: int | None) -> str:
    """In words."""
    return f"signal {-status} has ended it" if status and status < 0 else f"exit {status}"
