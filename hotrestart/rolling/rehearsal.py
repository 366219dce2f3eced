"""The rehearsal of a move: a child loads the supervisor from where the program has gone, before the supervisor follows.

An exec cannot be taken back. A library that is just being replaced, or that does not load without the program's own
paths, would end the service.
"""

from __future__ import annotations

import os
import selectors

from .. import command, fds, processes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from ..processes import Child
    from .home import Home

__all__ = ["Rehearsal"]

_CODE = "import sys; sys.path.append(sys.argv[1]); import hotrestart.rolling.bare; print('loaded')"


class Rehearsal:
    """A child that loads what the supervisor is to become. `ended` is called with whether that has worked, by whoever
    drives `selector`; then `child` is to be reaped. Raises OSError if there is no child to be had."""

    def __init__(self, home: Home, selector: selectors.BaseSelector, ended: Callable[[bool], None]) -> None:
        self._selector, self._ended, self._said = selector, ended, b""
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
            self._selector.unregister(self._reader)
            os.close(self._reader)
            self._ended(self._said == b"loaded\n")
