"""`Program`: a real program in a folder of its own, for a test to deploy, start, restart, watch and end."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from time import monotonic, sleep

from .. import control
from ..errors import HotRestartError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from typing_extensions import Self

    from ..outcome import Outcome

__all__ = ["Program"]

_UNWANTED = ("HOTRESTART", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "NOTIFY_SOCKET", "WATCHDOG_USEC")
_FLATTERING = ("PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE")  # they hide what a restart can get wrong
_PAUSE = 0.005  # seconds between two looks, at first
_LONGEST_PAUSE = 0.02  # once it takes long: looking takes the machine's time too
_SHOWN = 4000  # characters of the log


class Program:
    """A program under test. Use it in a `with` block: what it has started is ended with it, by force if need be.

    Everything that waits does so for a condition, `patience` seconds at most, and fails with the program's log in the
    message. One thread at a time.
    """

    python: str
    patience: float

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        python: str = sys.executable,
        env: Mapping[str, str] | None = None,
        patience: float = 60.0,
    ) -> None:
        """`folder` is made if it is not there; the program's log is written there. `env`: variables to add to ours."""
        self.folder: Path = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.python, self.patience = python, patience
        self.env: dict[str, str] = dict(env or {})
        self.log_file: Path = self.folder / "log.txt"
        self.process: subprocess.Popen[bytes] | None = None

    # -- deploying and starting ------------------------------------------------------------------------------------

    def deploy(self, source: str | Path, name: str = "") -> Path:
        """Put a version of the code in place, in one step: `source` itself, or a copy of a file. `name`: of the file,
        with folders below ours ("app.py", or the file's own)."""
        path = self.folder / (name or (source.name if isinstance(source, Path) else "app.py"))
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_name(f".{path.name}.new")
        if isinstance(source, Path):
            shutil.copyfile(source, new)
        else:
            new.write_text(source, encoding="utf-8")
        new.replace(path)
        return path

    def start(self, *arguments: str, **popen: Any) -> Self:
        """Start `python ARGUMENTS` ("app.py" if there are none) in the folder. More goes to `subprocess.Popen`."""
        return self.start_command([self.python, *(arguments or ("app.py",))], **popen)

    def start_command(
        self,
        command: list[str],
        *,
        cwd: str | os.PathLike[str] | None = None,
        env: Mapping[str, str] | None = None,
        **popen: Any,
    ) -> Self:
        """Start any command. Standard output and error go to the log."""
        where = str(cwd or self.folder)
        with self.log_file.open("ab") as log:
            streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log}
            environment = {**self.environment(), "PWD": where, **(env or {})}
            start: Any = subprocess.Popen  # what it takes depends on too much for a type
            self.process = start(command, cwd=where, env=environment, **{**streams, **popen})
        return self

    def environment(self) -> dict[str, str]:
        """What the program is started with: ours and `env`, without what would change the picture."""
        kept = {name: value for name, value in os.environ.items() if name not in _UNWANTED + _FLATTERING}
        return {**kept, **self.env}

    # -- asking it -------------------------------------------------------------------------------------------------

    @property
    def pid(self) -> int:
        """Its pid, which no restart changes."""
        assert self.process is not None, "start the program first"
        return self.process.pid

    @property
    def is_running(self) -> bool:
        """Whether it has been started and has not ended."""
        return self.process is not None and self.process.poll() is None

    def restart(self, timeout: float | None = None) -> Outcome:
        """Restart it, and wait for the outcome."""
        return control.restart(self.pid, timeout=timeout or self.patience)

    def status(self) -> dict[str, Any]:
        """What it says of itself."""
        return control.status(self.pid, timeout=self.patience)

    def wait_ready(self, generation: int = 1) -> Self:
        """Wait until this generation, or a later one, serves."""

        def serves() -> bool:
            try:
                status = self.status()
            except HotRestartError:
                return False  # it has not come so far
            return bool(status["generation"] >= generation and status["state"] == "serving")

        self.wait_until(serves, f"generation {generation} serves")
        return self

    def send_signal(self, number: int) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    def stop(self) -> int:
        """TERM, and wait for the end; the exit status, negative for a signal."""
        self.send_signal(signal.SIGTERM)
        return self.wait_exit()

    # -- watching it -----------------------------------------------------------------------------------------------

    def log(self) -> str:
        """All that it has printed."""
        return self.log_file.read_text(errors="replace") if self.log_file.exists() else ""

    def describe(self) -> str:
        """What a failure shows."""
        return f"log:\n{self.log()[-_SHOWN:]}"

    def wait_until(self, condition: Callable[[], Any], what: str, timeout: float | None = None) -> Any:
        """Wait until `condition()` is true, and return what it is. AssertionError if it is not in time, or if the
        program ends before."""
        timeout = timeout or self.patience
        deadline, pause = monotonic() + timeout, _PAUSE
        while True:
            ended = self.process is not None and self.process.poll() is not None
            value = condition()
            if value:
                return value
            if ended or monotonic() > deadline:
                status = self.process.returncode if self.process is not None else None
                why = f"the program ended ({status})" if ended else f"not within {timeout:g} s"
                raise AssertionError(f"{what}: {why}; {self.describe()}")
            sleep(pause)
            pause = min(1.05 * pause, _LONGEST_PAUSE)

    def wait_log(self, text: str, *, count: int = 1, timeout: float | None = None) -> str:
        """Wait until the log has `text` in it `count` times; the log."""
        self.wait_until(lambda: self.log().count(text) >= count, f"log {text!r}", timeout)
        return self.log()

    def wait_exit(self, timeout: float | None = None) -> int:
        """Wait until it ends; the exit status, negative for a signal."""
        assert self.process is not None, "start the program first"
        try:
            return self.process.wait(timeout or self.patience)
        except subprocess.TimeoutExpired:
            why = f"the program did not end within {timeout or self.patience:g} s"
            raise AssertionError(f"{why}; {self.describe()}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
