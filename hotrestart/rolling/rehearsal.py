"""The rehearsal of a move: a child loads the supervisor from where the program has gone, before the supervisor follows.

An exec cannot be taken back. A library that is just being replaced, or that does not load without the program's own
paths, or never comes to an end of it, would end the service.
"""

from __future__ import annotations

import os
import selectors
import signal
from time import monotonic

from .. import command, fds, processes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from ..processes import Child
    from .home import Home

__all__ = ["Rehearsal"]

_CODE = "import sys; sys.path.append(sys.argv[1]); import hotrestart.rolling.bare; print('loaded')"

_PATIENCE = 30.0  # seconds for what takes a tenth of one


class Rehearsal:
    """A child that loads what the supervisor is to become. `ended` is called with why that does not work, or "" if it
    does, by whoever drives `selector`, and calls `look` at `deadline`; then `child` is to be reaped. Raises OSError if
    there is no child to be had."""

    def __init__(self, home: Home, selector: selectors.BaseSelector, ended: Callable[[str], None]) -> None:
        self._selector, self._ended, self._said = selector, ended, b""
        self.deadline: float = monotonic() + _PATIENCE
        self._reader, writer = (fds.above_stdio(fd) for fd in os.pipe())
        try:
            self.child: Child = processes.spawn(
                [home.python, "-I", "-S", "-B", "-c", _CODE, home.library], env=command.first.env, redirect={1: writer}
            )
        except BaseException:
            os.close(self._reader)
            raise
        finally:
            os.close(writer)
        selector.register(self._reader, selectors.EVENT_READ, self._hear)

    def _hear(self) -> None:
        said = os.read(self._reader, 4096)
        self._said += said
        if not said:
            self._end("" if self._said == b"loaded\n" else "hotrestart cannot be loaded there")

    def look(self, now: float) -> None:
        """Kill one that hangs; it is not waited for, for it may be inside the kernel."""
        if now >= self.deadline:
            self.kill()
            self._end(f"hotrestart does not load there within {_PATIENCE:g} s")

    def kill(self) -> None:
        """Nobody wants to know any more."""
        self.child.send_signal(signal.SIGKILL)

    def _end(self, why: str) -> None:
        self._selector.unregister(self._reader)
        os.close(self._reader)
        self._ended(why)
