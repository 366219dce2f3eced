"""The processes of the demonstration: the program that is restarted, its code on disk, the HUPs, its log, its end."""

from __future__ import annotations

import os
import pkgutil
import signal
import subprocess
import sys
from pathlib import Path
from time import monotonic

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Process", "Program"]

_MEANT_FOR_US = ("HOTRESTART", "LISTEN_FDNAMES", "LISTEN_FDS", "LISTEN_PID", "NOTIFY_SOCKET")
_FLATTERING = ("PYTHONDONTWRITEBYTECODE", "PYTHONINSPECT", "PYTHONUNBUFFERED")  # they hide what a restart can get wrong
_PATIENCE = 5.0  # seconds from TERM to KILL


class Process:
    """This Python with some arguments, started when the `with` block begins; surely ended, with its whole session, when
    the block ends. What it prints goes to a log."""

    def __init__(self, folder: Path, name: str, *arguments: str) -> None:
        self.folder = folder
        self.log_file: Path = folder / f"{name}.log"
        self._arguments = arguments
        self._process: subprocess.Popen[bytes]
        self._is_over = False

    @property
    def pid(self) -> int:
        """Its pid, which must never change."""
        return self._process.pid

    def has_ended(self) -> bool:
        """Whether it has ended, of itself if nobody asked."""
        return self._process.poll() is not None

    def log(self) -> str:
        """All that it has printed."""
        return self.log_file.read_text(encoding="utf-8", errors="replace")

    def log_tail(self, lines: int = 25) -> list[str]:
        """The end of all that it has printed."""
        return self.log().splitlines()[-lines:]

    def stop(self) -> int:
        """Have it end with what it has in hand, or end it; its exit status. Nothing of its session is left."""
        self._process.terminate()
        return self._wait()

    def let_go(self) -> int:
        """Have it end by closing its standard input, or end it; its exit status."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        return self._wait()

    def _wait(self) -> int:
        try:
            self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self._kill_session()
        status = self._process.wait()
        if not self._is_over:
            self._is_over = True
            self._kill_session()
        return status

    def _kill_session(self) -> None:
        """Its process group, that is: the number cannot belong to others as long as a member is there."""
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass  # nobody is left; macOS says it the other way when zombies are

    def _start(self) -> None:
        """Start it in a session of its own, out of reach of the terminal's Ctrl-C and hangup.

        Standard input is a pipe that nothing is ever written to. Its end tells the process that we are gone. HUP may be
        ignored here (nohup), and what is ignored stays so in a child: so not while it is started.
        """
        before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
        try:
            with self.log_file.open("wb") as log:
                self._process = subprocess.Popen(
                    [sys.executable, *self._arguments],
                    cwd=self.folder,
                    env=_environment(),
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
        finally:
            signal.signal(signal.SIGHUP, before)

    def __enter__(self) -> Self:
        self._start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()
        if self._process.stdin is not None:
            self._process.stdin.close()


class Program(Process):
    """A program of this package, copied into a folder of its own. Deploy it before the `with` block begins."""

    def __init__(self, folder: Path, file: str) -> None:
        super().__init__(folder, Path(file).stem, file)
        self._file = file

    def deploy(self, version: int, *changes: tuple[str, str]) -> None:
        """Put a version of its code on disk, in one step, with `changes` from one text to another."""
        source = (pkgutil.get_data(__package__ or "", self._file) or b"").decode()
        for before, after in (("VERSION = 1", f"VERSION = {version}"), *changes):
            source = source.replace(before, after, 1)
        new = self.folder / f"{self._file}.new"
        new.write_text(source, encoding="utf-8")
        new.replace(self.folder / self._file)

    def hup(self) -> float:
        """Ask for a restart; when that was."""
        asked = monotonic()
        if not self.has_ended():
            os.kill(self.pid, signal.SIGHUP)
        return asked


def _environment() -> dict[str, str]:
    """Ours, with this very hotrestart to import, and without what is meant for us or would change the picture."""
    environment = {name: value for name, value in os.environ.items() if name not in _MEANT_FOR_US + _FLATTERING}
    here = str(Path(__file__).resolve().parent.parent.parent)
    before = os.environ.get("PYTHONPATH")
    return {**environment, "PYTHONPATH": os.pathsep.join([here, before] if before else [here])}
