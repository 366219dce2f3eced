"""The worker as a process: its code on disk, its start, the HUPs, its log, its end."""

from __future__ import annotations

import os
import pkgutil
import re
import signal
import subprocess
import sys
from pathlib import Path
from time import monotonic

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Worker"]

_MEANT_FOR_US = ("HOTRESTART", "LISTEN_FDNAMES", "LISTEN_FDS", "LISTEN_PID", "NOTIFY_SOCKET")
_FLATTERING = ("PYTHONDONTWRITEBYTECODE", "PYTHONINSPECT", "PYTHONUNBUFFERED")  # they hide what a restart can get wrong
_REFUSED = re.compile(r"^restart refused, the old code goes on: (.*?)(?: \[pid .*)?$", re.MULTILINE)
_PATIENCE = 5.0  # seconds from TERM to KILL


class Worker:
    """`worker.py` in a folder of its own, started when the `with` block begins and surely ended when it ends."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._log_file = folder / "worker.log"
        self._process: subprocess.Popen[bytes]

    def deploy(self, version: int, *, broken: bool = False) -> None:
        """Put a version of its code on disk, in one step; a broken one needs a module that nobody has installed."""
        source = (pkgutil.get_data(__package__ or "", "worker.py") or b"").decode()
        changed = f"import forgotten_dependency\n\nVERSION = {version}" if broken else f"VERSION = {version}"
        new = self._folder / "worker.py.new"
        new.write_text(source.replace("VERSION = 1", changed, 1), encoding="utf-8")
        new.replace(self._folder / "worker.py")

    @property
    def pid(self) -> int:
        """The pid of the worker, which must never change."""
        return self._process.pid

    def has_ended(self) -> bool:
        """Whether it has ended, of itself if nobody asked."""
        return self._process.poll() is not None

    def hup(self) -> float:
        """Ask for a restart; when that was."""
        asked = monotonic()
        if not self.has_ended():
            os.kill(self.pid, signal.SIGHUP)
        return asked

    def refusals(self) -> list[str]:
        """The reasons for which its log says that it has refused to restart."""
        return _REFUSED.findall(self._log())

    def log_tail(self, lines: int = 25) -> list[str]:
        """The end of all that it has printed."""
        return self._log().splitlines()[-lines:]

    def stop(self) -> int:
        """Have it end with the job in hand, or end it; its exit status."""
        self._process.terminate()
        try:
            return self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            os.killpg(self.pid, signal.SIGKILL)
            return self._process.wait()

    def _log(self) -> str:
        return self._log_file.read_text(encoding="utf-8", errors="replace")

    def _start(self) -> None:
        """Start it in a session of its own, out of reach of the terminal's Ctrl-C and hangup.

        Standard input is a pipe that nothing is ever written to. Its end tells the worker that we are gone. HUP may be
        ignored here (nohup), and what is ignored stays so in a child: so not while it is started.
        """
        before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
        try:
            with self._log_file.open("wb") as log:
                self._process = subprocess.Popen(
                    [sys.executable, "worker.py"],
                    cwd=self._folder,
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


def _environment() -> dict[str, str]:
    """Ours, with this very hotrestart to import, and without what is meant for us or would change the picture."""
    environment = {name: value for name, value in os.environ.items() if name not in _MEANT_FOR_US + _FLATTERING}
    here = str(Path(__file__).resolve().parent.parent.parent)
    before = os.environ.get("PYTHONPATH")
    return {**environment, "PYTHONPATH": os.pathsep.join([here, before] if before else [here])}
