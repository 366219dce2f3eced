"""What this process is just now: a program that restarts in place, a worker, or nothing; and whom a request goes to."""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Protocol

    from .sleeper import Sleeper

    class Role(Protocol):
        """What every role can do; all of it in any thread, the requests in a signal handler too."""

        sleeper: Sleeper
        has_heir: bool  # what this process bequeaths reaches the next generation

        def ready(self) -> None:
            """This generation serves."""

        def request_restart(self) -> object:
            """Ask for a newer generation."""

        def request_stop(self) -> None:
            """Ask for the end of the program."""

        def prepare_to_end(self) -> None:
            """The exit handlers come next."""

        def hand_over(self) -> tuple[dict[str, Any], set[int]]:
            """What the next generation is told, and the descriptors of it, just before an exec."""
            ...

        def resume(self) -> None:
            """That exec has failed."""

        def abandon(self) -> None:
            """The process ends at once."""


__all__ = ["current", "has_event_loop", "ready", "request_restart", "request_stop"]

current: Role | None = None
"""The role of this process, while it has one. A forked child has none."""


def request_restart() -> None:
    """Ask this program to restart, as a HUP does. Returns at once; a worker asks its supervisor.

    In any thread, and in a signal handler. Raises HotRestartError if no `@restartable` function or `worker_loop` runs.
    """
    _the_role().request_restart()


def request_stop() -> None:
    """Ask this program to stop, as a TERM does. Returns at once; where and when as for `request_restart`."""
    _the_role().request_stop()


def ready() -> None:
    """Say that this program serves now. Entering `worker_loop` says it; the first word counts. Any thread."""
    role = _the_role()
    role.ready()
    role.prepare_to_end()


def has_event_loop() -> bool:
    """Whether an event loop with asyncio's interface runs in this thread. asyncio is not imported to find out."""
    running = getattr(sys.modules.get("asyncio"), "_get_running_loop", None)  # another thread may be importing it
    return running is not None and running() is not None


def _the_role() -> Role:
    if current is None:
        from .errors import HotRestartError

        raise HotRestartError("no program runs here: call this inside an @restartable function or a worker_loop()")
    return current


def _forget_after_fork() -> None:
    global current
    current = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)
