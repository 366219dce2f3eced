"""Real programs under test: start one in a folder of its own, deploy code to it, signal it, read what it reports.

A program reports by appending JSON lines to the file that $REPORT names (`report(...)` in the source below). Wait for
what a program reports or logs, with a deadline; never sleep and hope. Everything started here is ended here, by pid.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
PATIENCE = 60.0  # seconds: how long a busy machine may take for anything; passing tests never wait that long

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


class Program:
    """A real program in a folder of its own. Use it in a `with` block, or through the fixture `program`."""

    def __init__(self, folder: Path, *, python: str = sys.executable) -> None:
        self.folder = folder
        self.python = python
        self.folder.mkdir(parents=True, exist_ok=True)
        self.report_file = folder / "report.jsonl"
        self.log_file = folder / "log.txt"
        self.process: subprocess.Popen[bytes] | None = None

    def deploy(self, source: str, name: str = "app.py") -> Path:
        """Write `source`, with the function `report` in front, as a new file under the name (atomically)."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_name(f".{path.name}.new")
        new.write_text(REPORT + source)
        new.replace(path)
        return path

    def start(
        self, *arguments: str, cwd: Path | None = None, env: dict[str, str] | None = None, **popen: object
    ) -> Program:
        """Start `python ARGUMENTS` (default: app.py) in the folder; standard output and error go to the log."""
        command = [self.python, *(arguments or ("app.py",))]
        return self.start_command(command, cwd=cwd, env=env, **popen)

    def start_command(
        self, command: list[str], *, cwd: Path | None = None, env: dict[str, str] | None = None, **popen: object
    ) -> Program:
        where = str(cwd or self.folder)
        environment = clean_environment(REPORT=str(self.report_file), PWD=where, **(env or {}))
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                command,
                cwd=where,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                **popen,  # type: ignore[call-overload]
            )
        return self

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def hup(self) -> None:
        os.kill(self.pid, signal.SIGHUP)

    def term(self) -> None:
        os.kill(self.pid, signal.SIGTERM)

    def log(self) -> str:
        return self.log_file.read_text(errors="replace") if self.log_file.exists() else ""

    def reports(self, **like: object) -> list[dict[str, object]]:
        """What the program has reported so far; with arguments, the reports that have these items."""
        text = self.report_file.read_text() if self.report_file.exists() else ""
        found = [json.loads(line) for line in text.split("\n")[:-1]]
        return [each for each in found if like.items() <= each.items()]

    def wait_until(self, condition, what: str, timeout: float = PATIENCE):
        """Wait until `condition()` is true, and return what it is; fail with the log if the program ends before."""
        deadline = time.monotonic() + timeout
        while True:
            ended = self.process is not None and self.process.poll() is not None
            value = condition()
            if value:
                return value
            if ended or time.monotonic() > deadline:
                why = f"the program ended ({self.process.returncode})" if ended else f"not within {timeout} s"
                raise AssertionError(f"{what}: {why}; reports: {self.reports()[-5:]}; log:\n{self.log()[-4000:]}")
            time.sleep(0.005)

    def wait_report(self, timeout: float = PATIENCE, *, count: int = 1, **like: object) -> dict[str, object]:
        """Wait for the `count`th report that has these items, and return it."""
        return self.wait_until(lambda: (self.reports(**like) + [None] * count)[count - 1], f"report {like}", timeout)

    def wait_log(self, text: str, *, count: int = 1, timeout: float = PATIENCE) -> str:
        """Wait until the log has `text` in it `count` times; return the log."""
        self.wait_until(lambda: self.log().count(text) >= count, f"log {text!r}", timeout)
        return self.log()

    def wait_exit(self, timeout: float = PATIENCE) -> int:
        """Wait until the program ends; its exit status, negative for a signal."""
        assert self.process is not None
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the program did not end within {timeout} s; log:\n{self.log()[-4000:]}") from None

    def stop(self) -> int:
        """TERM, and wait for the end."""
        self.term()
        return self.wait_exit()

    def fds(self) -> list[str]:
        """The open descriptors, as "number -> target"."""
        found = []
        for entry in Path(f"/proc/{self.pid}/fd").iterdir():
            try:
                found.append(f"{entry.name} -> {os.readlink(entry)}")
            except FileNotFoundError:
                continue  # closed just now
        return sorted(found)

    def children(self) -> list[int]:
        """The pids of its children, zombies included."""
        return [int(pid) for pid in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()]

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()


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
