"""Real programs under test: start one in a folder of its own, deploy code to it, signal it, read what it reports.

A program reports by appending JSON lines to the file that $REPORT names (`report(...)` in the source below). Wait for
what a program reports or logs, with a deadline; never sleep and hope. Everything started here is ended here, by pid.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import signal
import sys
import sysconfig
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hotrestart import testing

CHECKOUT = Path(__file__).resolve().parent.parent
LIBRARY = sysconfig.get_path("stdlib")
PATIENCE = 60.0  # seconds: how long a busy machine may take for anything; passing tests never wait that long
PACE = 0.01  # seconds a client under load rests before it asks again (conftest.py: none with --full): a busy service
# is what is tested, and not a machine that is busy with its clients

REPORT = """
import json as _json, os as _os
def report(**what):
    line = (_json.dumps(what) + "\\n").encode()
    fd = _os.open(_os.environ["REPORT"], _os.O_WRONLY | _os.O_APPEND | _os.O_CREAT, 0o600)
    _os.write(fd, line)
    _os.close(fd)
"""


def clean_environment(**more: str) -> dict[str, str]:
    """The environment for a program under test: this checkout importable, and nothing that hides flush or pyc traps."""
    unwanted = (
        "PYTHONUNBUFFERED",
        "PYTHONDONTWRITEBYTECODE",
        "HOTRESTART",
        "HOTRESTART_CI",
        "LISTEN_FDS",
        "LISTEN_PID",
        "NOTIFY_SOCKET",
    )
    env = {name: value for name, value in os.environ.items() if name not in unwanted}
    env["PYTHONPATH"] = str(CHECKOUT)
    env["SPT_NOENV"] = "1"  # setproctitle shall not write over the environments by which processes are found
    env.update(more)
    return env


def open_files(pid: int) -> dict[int, str]:
    """What each descriptor of the process leads to; but for those open for a moment, to import or report."""
    found: dict[int, str] = {}
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = os.readlink(entry)
        except FileNotFoundError:
            continue  # it was open only for a moment
        is_import = target.endswith((".py", ".pyc", ".so")) or target.startswith((f"{CHECKOUT}/hotrestart", LIBRARY))
        if not is_import and not target.endswith("/report.jsonl"):
            found[int(entry.name)] = target
    return found


def copy_library(folder: Path) -> Path:
    """A copy of this checkout's package in `folder`, with its bytecode: only what a test edits is compiled again.
    For that to be newer than its source, as if it had been written there, its time is a second ahead."""
    being_written = shutil.ignore_patterns("*.pyc.*")
    copy = shutil.copytree(CHECKOUT / "hotrestart", folder / "hotrestart", ignore=being_written)
    for each in copy.rglob("*.pyc"):
        os.utime(each, (time.time() + 1,) * 2)
    return copy


def tried_three_times(test: Callable[..., None]) -> Callable[..., None]:
    """For what has limits of its own that a busy machine may miss now and then: what is broken fails each time."""

    @functools.wraps(test)
    def attempts(*arguments: Any, **more: Any) -> None:
        for _ in range(2):
            with contextlib.suppress(AssertionError):
                return test(*arguments, **more)
        return test(*arguments, **more)

    return attempts


def in_child(function: Callable[[], object]) -> int:
    """The exit code of a forked child that calls `function`: 0, or 1 and a traceback; -SIGALRM if it hangs."""
    pid = os.fork()
    if pid == 0:
        try:
            signal.alarm(int(PATIENCE))
            function()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


class Program(testing.Program):
    """A real program in a folder of its own. Use it in a `with` block, or through the fixture `program`."""

    def __init__(self, folder: Path, *, python: str = sys.executable) -> None:
        super().__init__(folder, python=python, patience=PATIENCE)
        self.report_file = folder / "report.jsonl"
        self._reports: list[dict[str, object]] = []
        self._read = 0  # bytes of the file that are in there
        self._reading = threading.Lock()

    def deploy(self, source: str, name: str = "app.py") -> Path:
        """Write `source`, with the function `report` in front, as a new file under the name (atomically)."""
        return super().deploy(REPORT + source, name)

    def environment(self) -> dict[str, str]:
        return clean_environment(REPORT=str(self.report_file))

    def hup(self) -> None:
        self.send_signal(signal.SIGHUP)

    def term(self) -> None:
        self.send_signal(signal.SIGTERM)

    def reports(self, **like: object) -> list[dict[str, object]]:
        """What the program has reported so far; with arguments, the reports that have these items."""
        with self._reading:
            if self.report_file.exists():
                with self.report_file.open("rb") as file:
                    file.seek(self._read)
                    *lines, _ = file.read().split(b"\n")  # what follows the last newline is just being written
                self._reports += map(json.loads, lines)
                self._read += sum(len(line) + 1 for line in lines)
            return [each for each in self._reports if like.items() <= each.items()]

    def forget_reports(self) -> None:
        """Begin again with none."""
        with self._reading:
            self.report_file.unlink(missing_ok=True)
            self._reports, self._read = [], 0

    def describe(self) -> str:
        return f"reports: {self.reports()[-5:]}; {super().describe()}"

    def wait_report(self, timeout: float = PATIENCE, *, count: int = 1, **like: object) -> dict[str, object]:
        """Wait for the `count`th report that has these items, and return it."""
        return self.wait_until(lambda: (self.reports(**like) + [None] * count)[count - 1], f"report {like}", timeout)

    def fds(self) -> list[str]:
        """The open descriptors, as "number -> target"."""
        return sorted(f"{number} -> {target}" for number, target in open_files(self.pid).items())

    def children(self) -> list[int]:
        """The pids of its children, zombies included."""
        return [int(pid) for pid in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()]


WORKER = """
import hotrestart

VERSION = {version!r}

@hotrestart.restartable{options}
def main():
    with hotrestart.worker_loop() as loop:
        report(ready=hotrestart.state.generation, version=VERSION)
        while loop.running:
            loop.sleep({pause})

if __name__ == "__main__":
    main()
    report(ended=hotrestart.state.reason)
"""


def worker(version: object = 1, options: str = "", pause: float = 5) -> str:
    """The source of the smallest worker: reports `ready=<generation>` and `version`, then sleeps until asked to end."""
    return WORKER.format(version=version, options=options, pause=pause)
